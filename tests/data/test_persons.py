"""The table's operations: selection, the split by images, joining, and the check of the pictures."""

import hashlib
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrnetpp_lib.data.persons import PersonTable, check_images, concat, split_by_image
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.pose.keypoints import AIC14, COCO17


def make_table(file_names, persons_per_image, folder="images", ids=None, skeleton=AIC14):
    image_index = np.repeat(np.arange(len(file_names)), persons_per_image).astype(np.int32)
    count = len(image_index)
    files, hw = np.array(file_names, np.bytes_), np.full((len(file_names), 2), -1, np.int32)
    return PersonTable(
        *(f"table {folder}", skeleton, folder, files, files if ids is None else np.array(ids), hw),
        *(image_index, np.arange(count), np.arange(4.0 * count).reshape(count, 4), np.ones(count)),
        *(np.ones(count), np.full((count, len(skeleton), 3), 2, np.float32), {"crowd": count}),
    )


def names_of(table):
    """Files that some person is in."""
    return {table.image_files[i] for i in table.image_index}


def test_select_takes_indices_and_masks():
    table = make_table(["a.jpg", "b.jpg", "c.jpg"], [1, 2, 1])
    by_index, by_mask = table.select([3, 1]), table.select(np.array([False, True, False, True]))
    assert by_index.person_ids.tolist() == [3, 1] and by_index.image_index.tolist() == [2, 1]
    assert by_mask.person_ids.tolist() == [1, 3] and len(by_mask.image_files) == 3
    assert by_mask.bboxes_xywh.tolist() == [[4, 5, 6, 7], [12, 13, 14, 15]] and len(by_mask.keypoints) == 2


@settings(deadline=None)
@given(
    st.dictionaries(st.text("abcdef", min_size=1), st.integers(0, 4), min_size=1, max_size=12),
    st.randoms(),
    st.integers(0, 20),
)
def test_split_holds_out_whole_images_and_no_more_than_needed(images, random, holdout_persons):
    images = list(images.items())
    table = make_table(*zip(*images, strict=True))
    if holdout_persons >= len(table) or len(table) == 0:
        with pytest.raises(HrnetppError, match="none to train on"):
            split_by_image(table, holdout_persons)
        return
    try:
        train, holdout = split_by_image(table, holdout_persons)
    except HrnetppError:
        return  # one image holds all that is left
    assert sorted([*train.person_ids, *holdout.person_ids]) == list(range(len(table)))
    assert not set(train.image_index) & set(holdout.image_index)
    assert len(holdout) >= holdout_persons
    if len(holdout):  # without its last image it would be too few
        last = max(names_of(holdout), key=lambda name: hashlib.sha1(name).digest())
        assert sum(table.image_files[i] != last for i in holdout.image_index) < holdout_persons
    shuffled = random.sample(images, len(images))
    again = split_by_image(make_table(*zip(*shuffled, strict=True)), holdout_persons)[1]
    assert names_of(again) == names_of(holdout)


def test_split_does_not_depend_on_folders_and_keeps_equal_names_together():
    def bare_names(*folders):
        names = [f"{folder}{number}.jpg" for folder in folders for number in range(9)]
        parts = split_by_image(make_table(names, [1] * len(names)), 4)
        return [{os.path.basename(name) for name in names_of(part)} for part in parts], len(parts[1])

    assert bare_names("") == bare_names("train/")
    (train, holdout), persons = bare_names("t/", "v/")
    assert not train & holdout and persons == 2 * len(holdout)


def test_concat_makes_paths_relative_to_the_common_folder(tmp_path):
    first = make_table(["a.jpg", "b.jpg"], [1, 2], tmp_path / "train" / "images")
    second = make_table(["longer/c.jpg"], [2], tmp_path / "val")
    table = concat([first, second])
    assert table.image_dir == tmp_path.resolve() and len(table) == 5
    assert table.image_files.tolist() == [b"train/images/a.jpg", b"train/images/b.jpg", b"val/longer/c.jpg"]
    assert table.image_index.tolist() == [0, 1, 1, 2, 2] and table.image_index.dtype == np.int32
    assert table.image_path(4) == tmp_path.resolve() / "val" / "longer" / "c.jpg"
    assert table.dropped == {"crowd": 5} and table.keypoints.shape == (5, 14, 3)
    assert table.bboxes_xywh[3:].tolist() == second.bboxes_xywh.tolist()
    assert table.image_ids.tolist() == [b"a.jpg", b"b.jpg", b"longer/c.jpg"]
    same = concat([make_table([name], [1], tmp_path) for name in ("a.jpg", "b.jpg")])
    assert same.image_files.tolist() == [b"a.jpg", b"b.jpg"] and same.image_dir == tmp_path


def test_concat_refuses_what_does_not_belong_together(tmp_path):
    with pytest.raises(HrnetppError, match=r"\(coco17\).*\(aic14\)"):
        concat([make_table(["a.jpg"], [1], tmp_path, skeleton=skeleton) for skeleton in (COCO17, AIC14)])
    with pytest.raises(HrnetppError, match="one kind of image ids"):
        concat([make_table(["a"], [1], tmp_path), make_table(["a"], [1], tmp_path, ids=[5])])
    with pytest.raises(HrnetppError, match="none"):
        concat([])


def test_check_images_counts_the_missing_ones_that_have_persons(tmp_path):
    names = [f"{number}.jpg" for number in range(8)]
    table = make_table(names, [1, 1, 0, 2, 1, 1, 1, 1], tmp_path)
    for name in names[:2]:
        (tmp_path / name).touch()
    missing = r"5 of 7 images .* missing: 3.jpg, 4.jpg, 5.jpg, 6.jpg, 7.jpg; "
    with pytest.raises(HrnetppError, match=missing) as caught:
        check_images(table)
    assert "2.jpg" not in str(caught.value) and str(tmp_path) in str(caught.value)
    check_images(table.select([0, 1]))
    with pytest.raises(HrnetppError, match=r"2 of 2 images .* cannot be read, the first: .*0\.jpg"):
        check_images(table.select([0, 1]), decode=True)
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(HrnetppError, match=r"2 of 2 images .* are missing: pipe\.jpg, "):
        check_images(make_table(["pipe.jpg", "x" * 400], [1, 1], tmp_path), decode=True)
