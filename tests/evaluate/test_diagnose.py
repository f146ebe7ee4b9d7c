"""The error taxonomy: one keypoint of each kind by hand, its limits, the matching, and real poses."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrnetpp_lib.data.annotations import read_coco
from hrnetpp_lib.data.persons import PersonTable
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.evaluate.diagnose import LABELS, UNLABELLED, diagnose, px_per_cell
from hrnetpp_lib.evaluate.metrics import ScoredPoses
from hrnetpp_lib.pose.keypoints import AIC14, COCO17

AREA = 3600.0
GOOD, JITTER, INVERSION, SWAP, MISS = range(5)
NOSE, LEFT_WRIST, RIGHT_WRIST, LEFT_KNEE, RIGHT_KNEE = 0, 9, 10, 13, 14


def compare(truth, areas, true_ids, keypoints, scores, image_ids, skeleton=COCO17):
    """`diagnose` of plain arrays."""
    ids, image_index = np.unique(np.array(true_ids), return_inverse=True)
    n, no = len(truth), np.zeros(0)
    boxes = np.zeros((n, 4)), np.ones(n), np.array(areas, float), np.array(truth)
    table = PersonTable("made up", skeleton, Path(), no, ids, no, image_index, np.arange(n), *boxes, {})
    found = np.array(keypoints)[..., :2]
    return diagnose(table, ScoredPoses(np.array(image_ids), found, found[..., 0], np.array(scores)))


def person(x: float = 0.0, visibility: int = 2) -> np.ndarray:
    """(17, 3) with 200 px between any two keypoints: nothing is near anything else by chance."""
    return np.column_stack([np.full(17, x), 200.0 * np.arange(17), np.full(17, visibility)])


def distance_of(similarity: float, keypoint: int, area: float = AREA) -> float:
    return float(np.sqrt(-2 * area * np.log(similarity)) * 2 * COCO17.oks_sigmas[keypoint])


def diagnose_one(truth: list[np.ndarray], pose: np.ndarray, areas: list[float] | None = None):
    areas = [AREA] * len(truth) if areas is None else areas
    found = compare(np.stack(truth), areas, np.zeros(len(truth)), pose[None], np.ones(1), np.zeros(1))
    assert found.truth_index.tolist() == [0] and found.predicted_index.tolist() == [0]
    return found


def test_one_of_each_kind_by_hand():
    own, other = person(), person(5000)
    pose = own[:, :2].copy()
    pose[[LEFT_WRIST, RIGHT_WRIST]] = own[[RIGHT_WRIST, LEFT_WRIST], :2]
    pose[LEFT_KNEE] = other[LEFT_KNEE, :2]
    pose[RIGHT_KNEE] = other[LEFT_KNEE, :2]  # the other person's, and mirrored
    pose[15] += [30, 40]
    pose[16] += [300, 400]
    found = diagnose_one([own, other], pose)
    expected = np.full(17, GOOD)
    expected[[9, 10, 13, 14, 15, 16]] = INVERSION, INVERSION, SWAP, SWAP, MISS, MISS
    assert found.labels[0].tolist() == expected.tolist()
    # exp(-2500 / (2 * 3600 * 0.178^2)) = 0.00002
    assert found.similarity[0, 15] == pytest.approx(np.exp(-2500 / (2 * 3600 * 0.178**2)))
    assert found.error_px[0, [0, 9, 13, 15, 16]] == pytest.approx([0, 200, 5000, 50, 500])
    counts = found.counts()
    assert tuple(counts) == LABELS == ("good", "jitter", "inversion", "swap", "miss")
    assert [int(counts[label].sum()) for label in LABELS] == [11, 0, 2, 2, 2]
    assert counts["swap"].tolist() == [0] * 13 + [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("keypoint", "whose", "target", "limits"),
    [
        (RIGHT_KNEE, 0, RIGHT_KNEE, {0.851: GOOD, 0.849: JITTER, 0.501: JITTER, 0.499: MISS}),
        (LEFT_WRIST, 0, RIGHT_WRIST, {0.501: INVERSION, 0.499: MISS}),
        (NOSE, 1, NOSE, {0.501: SWAP, 0.499: MISS}),
    ],
)
def test_limits_of_similarity(keypoint, whose, target, limits):
    persons = [person(), person(5000)]
    for similarity, label in limits.items():
        pose = persons[0][:, :2].copy()
        pose[keypoint] = persons[whose][target, :2] + [distance_of(similarity, keypoint), 0]
        found = diagnose_one(persons, pose)
        assert found.labels[0, keypoint] == label and (np.delete(found.labels[0], keypoint) == GOOD).all()
        own = similarity if keypoint == RIGHT_KNEE else 0
        assert found.similarity[0, keypoint] == pytest.approx(own, abs=1e-6)


def test_the_nearest_candidate_decides():
    own = person()
    own[RIGHT_WRIST, :2] = own[LEFT_WRIST, :2] + [4, 0]
    pose = own[:, :2].copy()
    pose[LEFT_WRIST] += [1, 0]
    assert diagnose_one([own], pose).labels[0, LEFT_WRIST] == GOOD
    pose[LEFT_WRIST] += [2, 0]  # still a similarity above 0.85, but nearer to the right wrist
    found = diagnose_one([own], pose)
    assert found.labels[0, LEFT_WRIST] == INVERSION and found.similarity[0, LEFT_WRIST] > 0.85


def test_other_persons_count_with_their_own_area():
    own, other = person(), person(5000)
    pose = own[:, :2].copy()
    pose[NOSE] = other[NOSE, :2] + [distance_of(0.7, NOSE, area=4 * AREA), 0]
    assert diagnose_one([own, other], pose, [AREA, 4 * AREA]).labels[0, NOSE] == SWAP
    assert diagnose_one([own, other], pose, [AREA, AREA]).labels[0, NOSE] == MISS


def test_what_is_not_labelled_takes_no_part():
    own, other = person(), person(5000)
    own[[RIGHT_WRIST, 16], 2] = 0
    other[[LEFT_KNEE, RIGHT_KNEE], 2] = 0
    pose = own[:, :2].copy()
    pose[LEFT_WRIST] = own[RIGHT_WRIST, :2]
    pose[LEFT_KNEE] = other[LEFT_KNEE, :2]
    found = diagnose_one([own, other], pose)
    assert found.labels[0, [LEFT_WRIST, LEFT_KNEE]].tolist() == [MISS, MISS]
    assert found.labels[0, [RIGHT_WRIST, 16]].tolist() == [UNLABELLED] * 2
    assert np.isnan(found.error_px[0, [RIGHT_WRIST, 16]]).all() and np.isnan(found.similarity[0, 16])
    assert sum(int(column.sum()) for column in found.counts().values()) == 15
    hidden = diagnose_one([person(visibility=1)], person()[:, :2])
    assert (hidden.labels == GOOD).all()  # they count like visible ones


def test_matching_by_hand():
    # Image 5: two persons; image 6: one, and one without labels.
    truth = [person(), person(5000), person(), person(visibility=0)]
    keypoints = [person(x) for x in (8, 2, 5003, 900, 5000, 8)]
    scores, image_ids = [0.9, 0.5, 0.2, 1.0, 0.9, 0.1], [5, 5, 5, 5, 6, 6]
    found = compare(truth, [AREA] * 4, [5, 5, 6, 6], keypoints, scores, image_ids)
    pairs = set(zip(found.truth_index.tolist(), found.predicted_index.tolist(), strict=True))
    assert pairs == {(0, 0), (1, 2), (2, 5)}  # the better score chose first, and took the person
    found = compare([person(0), person(9)], [AREA] * 2, ["a", "a"], [person(7)], [1], ["a"])
    assert found.truth_index.tolist() == [1]  # a pose takes the most similar one
    for similarity, matched in ((0.101, 1), (0.099, 0)):
        pose = person() + np.array([[distance_of(similarity, k), 0, 0] for k in range(17)])
        found = compare([person()], [AREA], [3], [pose], [1], [3])
        assert found.labels.shape == (matched, 17)


def test_localisation_errors_by_hand():
    truth = np.stack([person(), person(5000)])
    keypoints = truth[:, :, :2].copy()
    keypoints[0, 5, 0] += 3  # good
    keypoints[1, 12, 1] -= distance_of(0.6, 12)  # jitter
    keypoints[1, 1, 1] -= 90  # miss
    found = compare(truth, [AREA, AREA], [0, 0], keypoints, [1, 2], [0, 0])
    errors = found.localisation_errors(np.ones(2))
    assert len(errors) == 33 and not errors[:-2].any()
    assert errors[-2:] == pytest.approx([3, distance_of(0.6, 12)])
    # Rows come by score: the second pose first.
    cells = found.localisation_errors(np.array([8.0, 2.0]))
    assert cells[-2:] == pytest.approx(sorted([3 / 2, distance_of(0.6, 12) / 8]))


def test_nothing_predicted_nothing_true_and_other_keypoints():
    nobody, one = np.zeros((0, 14, 3)), np.ones((1, 14, 3))
    for truth, found in ((nobody, one), (one, nobody), (nobody, nobody)):
        columns = found, np.ones(len(found)), np.zeros(len(found))
        empty = compare(truth, np.ones(len(truth)), np.zeros(len(truth)), *columns, AIC14)
        assert empty.labels.shape == empty.error_px.shape == (0, 14)
        assert len(empty.truth_index) == len(empty.localisation_errors(np.ones(0))) == 0
        assert not any(column.any() for column in empty.counts().values())
    with pytest.raises(HrnetppError, match=r"\(1, 17, 2\): give \(P, 14, 2\) for aic14"):
        compare(one, [1], [0], person()[None], [1], [0], AIC14)


@given(st.integers(0, 9999), st.floats(0.2, 5), st.floats(-900, 900))
def test_moving_and_zooming_the_image_changes_no_label(seed, zoom, shift):
    rng = np.random.default_rng(seed)
    truth = np.concatenate([rng.uniform(0, 100, (3, 17, 2)), rng.integers(0, 3, (3, 17, 1))], axis=2)
    keypoints, areas = truth[:, :, :2] + rng.normal(0, 6, (3, 17, 2)), rng.uniform(1e3, 9e3, 3)
    scores, ids = rng.permutation(3), np.zeros(3)
    found = compare(truth, areas, ids, keypoints, scores, ids)
    moved = truth * [zoom, zoom, 1] + [shift, shift, 0]
    again = compare(moved, areas * zoom**2, ids, keypoints * zoom + shift, scores, ids)
    assert np.array_equal(found.labels, again.labels)
    assert np.allclose(found.error_px * zoom, again.error_px, equal_nan=True)
    counted = sum(column.sum() for column in found.counts().values())
    assert counted == (truth[found.truth_index, :, 2] > 0).sum()


def test_real_persons_against_themselves_and_mirrored(real_data):
    folder = real_data / "coco_mini"
    table = read_coco(folder / "annotations" / "person_keypoints_train2017.json", folder / "train2017")
    truth, ids, ones = table.keypoints, table.image_ids[table.image_index], np.ones(len(table))
    found = diagnose(table, ScoredPoses(ids, truth[..., :2], truth[..., 2], ones))
    assert len(found.labels) == len(table) and np.nanmax(found.error_px) == 0
    assert np.array_equal(found.labels == GOOD, truth[found.truth_index, :, 2] > 0)
    # Each person alone, so that a mirrored pose cannot find a better match.
    alone, mirrored = np.arange(len(table)), truth[:, COCO17.flip_order]
    flipped = compare(truth, table.areas, alone, mirrored, ones, alone)
    assert len(flipped.labels) > 40
    rows = flipped.truth_index
    both = (truth[rows, :, 2] > 0) & (mirrored[rows, :, 2] > 0)
    apart = (truth[rows, :, :2] != mirrored[rows, :, :2]).any(axis=2)
    assert (flipped.labels[both & apart] == INVERSION).all() and (flipped.labels[both & ~apart] == GOOD).all()
    assert (both & apart).sum() > 300


def test_px_per_cell_by_hand():
    boxes = np.array([[5.0, 5.0, 60.0, 80.0], [0.0, 0.0, 10.0, 160.0]])
    # padded by a quarter and brought to 3:4: 75 and 150 px wide, on 24 cells
    assert px_per_cell(boxes, (128, 96)).tolist() == [75 / 24, 150 / 24]
