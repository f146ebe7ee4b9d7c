"""The two keypoint sets and the map between them."""

import pytest

from hrnetpp_lib.pose.keypoints import AIC14, AIC_TO_COCO, COCO17


@pytest.mark.parametrize(("skeleton", "count"), [(COCO17, 17), (AIC14, 14)])
def test_each_set_is_consistent(skeleton, count):
    assert len(skeleton) == len(set(skeleton.names)) == len(skeleton.oks_sigmas) == count
    for a, b in skeleton.flip_pairs:
        assert {skeleton.side(a), skeleton.side(b)} == {"left", "right"}
        assert skeleton.names[a].split("_")[1] == skeleton.names[b].split("_")[1]
        assert skeleton.flip_order[a] == b and skeleton.flip_order[b] == a
    paired = [k for pair in skeleton.flip_pairs for k in pair]
    assert len(paired) == len(set(paired))
    assert all(skeleton.side(k) == "centre" for k in set(range(count)) - set(paired))
    assert sorted(skeleton.flip_order) == list(range(count))
    assert sorted(skeleton.upper_body + skeleton.lower_body) == list(range(count))


def test_shared_keypoints():
    assert AIC_TO_COCO == {0: 6, 1: 8, 2: 10, 3: 5, 4: 7, 5: 9, 6: 12, 7: 14, 8: 16, 9: 11, 10: 13, 11: 15}
    assert COCO17.oks_sigmas[0] == 0.026 and COCO17.oks_sigmas[16] == 0.089
