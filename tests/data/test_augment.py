"""Half body by hand, and the statistics and geometry of random crops."""

import numpy as np
import pytest

from hrnetpp_lib.data.augment import half_body, sample_crop
from hrnetpp_lib.pose.geometry import bbox_to_center_scale, crop_matrix, transform_points
from hrnetpp_lib.pose.keypoints import COCO17
from hrnetpp_lib.recipe import Augmentation

INPUT_HW = (256, 192)


def labelled_at(indices) -> np.ndarray:
    labelled = np.zeros(17, bool)
    labelled[list(indices)] = True
    return labelled


def test_half_body_by_hand():
    keypoints = np.zeros((17, 2))
    keypoints[[5, 6, 7]] = [[10, 20], [50, 20], [30, 50]]
    keypoints[[11, 12, 13]] = [[100, 100], [110, 100], [105, 190]]
    labelled = labelled_at([5, 6, 7, 11, 12, 13])
    center, scale = half_body(keypoints, labelled, COCO17, INPUT_HW, upper=True)
    assert center == pytest.approx([30, 30], abs=1e-4)
    assert scale == pytest.approx([1.5 * 40, 1.5 * 40 / 0.75], abs=1e-3)  # 40x30 is too wide for 3:4
    center, scale = half_body(keypoints, labelled, COCO17, INPUT_HW, upper=False)
    assert center == pytest.approx([105, 130], abs=1e-4)
    assert scale == pytest.approx([1.5 * 90 * 0.75, 1.5 * 90], abs=1e-3)  # 10x90 is too tall


@pytest.mark.parametrize(
    ("indices", "upper", "uses"),
    [
        ([5, 6, 11, 12, 13], True, [11, 12, 13]),  # two upper keypoints are not enough
        ([5, 6, 11, 12], False, [5, 6]),  # neither are two lower ones: back to the upper body
        ([5, 11, 12, 13], True, [11, 12, 13]),
    ],
)
def test_half_body_falls_back_to_the_other_half(indices, upper, uses):
    keypoints = np.random.default_rng(0).uniform(0, 200, (17, 2))
    center, _ = half_body(keypoints, labelled_at(indices), COCO17, INPUT_HW, upper)
    assert center == pytest.approx(keypoints[uses].mean(axis=0), abs=1e-3)


def test_half_body_needs_two_keypoints_apart():
    keypoints = np.random.default_rng(0).uniform(0, 200, (17, 2))
    assert half_body(keypoints, labelled_at([5]), COCO17, INPUT_HW, True) is None
    assert half_body(np.full((17, 2), 7.0), labelled_at([5, 6, 7]), COCO17, INPUT_HW, True) is None


def person() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    keypoints = np.column_stack([np.random.default_rng(1).uniform(40, 160, (17, 2)), np.full(17, 2)])
    return keypoints, *bbox_to_center_scale(np.array([40.0, 40.0, 120.0, 120.0]), INPUT_HW)


def test_no_randomness_left_is_the_plain_crop():
    keypoints, center, scale = person()
    still = Augmentation(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    crop = sample_crop(still, keypoints, center, scale, COCO17, INPUT_HW, np.random.default_rng(0))
    assert not crop.flipped and np.allclose(crop.matrix, crop_matrix(center, scale, 0.0, INPUT_HW))


def test_mirrored_crop_reflects_about_the_crops_middle():
    keypoints, center, scale = person()
    always = Augmentation(0.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    crop = sample_crop(always, keypoints, center, scale, COCO17, INPUT_HW, np.random.default_rng(0))
    plain = transform_points(keypoints[:, :2], crop_matrix(center, scale, 0.0, INPUT_HW))
    mirrored = transform_points(keypoints[:, :2], crop.matrix)
    assert crop.flipped and np.allclose(mirrored[:, 0], INPUT_HW[1] - plain[:, 0])
    assert np.allclose(mirrored[:, 1], plain[:, 1])


def test_distributions_are_the_official_ones():
    keypoints, center, scale = person()
    zooms, angles, flips = [], [], []
    for i in range(4000):
        crop = sample_crop(
            Augmentation(half_body_probability=0),
            *(keypoints, center, scale, COCO17, INPUT_HW, np.random.default_rng((0, 0, i))),
        )
        linear = crop.matrix[:, :2] @ np.diag([-1 if crop.flipped else 1, 1])
        zooms.append(INPUT_HW[1] / scale[0] / np.sqrt(np.linalg.det(linear)))
        angles.append(-np.degrees(np.arctan2(linear[1, 0], linear[0, 0])))
        flips.append(crop.flipped)
    zooms, angles = np.array(zooms), np.array(angles)
    assert zooms.min() == pytest.approx(0.65) and zooms.max() == pytest.approx(1.35)
    assert np.mean(np.isclose(zooms, 1.35)) == pytest.approx(0.159, abs=0.02)  # P(N > 1)
    assert np.abs(angles).max() == pytest.approx(90) and np.mean(angles == 0) == pytest.approx(0.4, abs=0.03)
    assert np.std(angles[(angles != 0) & (np.abs(angles) < 89)]) == pytest.approx(39.3, abs=2)
    assert np.mean(flips) == pytest.approx(0.5, abs=0.03)


def test_half_body_is_taken_as_often_as_the_official_code_does():
    keypoints, center, scale = person()
    labelled = np.ones(17, bool)
    halves = [half_body(keypoints[:, :2], labelled, COCO17, INPUT_HW, upper) for upper in (True, False)]
    boxes = [crop_matrix(*half, 0.0, INPUT_HW) for half in halves]
    often = Augmentation(0.0, 0.0, 0.0, 0.0, 0.0, half_body_probability=0.3)
    counts = np.zeros(2)
    for i in range(3000):
        rng = np.random.default_rng((1, 0, i))
        crop = sample_crop(often, keypoints, center, scale, COCO17, INPUT_HW, rng)
        counts += [np.allclose(crop.matrix, box) for box in boxes]
    assert counts.sum() / 3000 == pytest.approx(0.3, abs=0.03)
    assert counts[0] / counts.sum() == pytest.approx(0.691, abs=0.05)  # P(N < 0.5)


def test_half_body_happens_only_with_more_than_eight_keypoints():
    keypoints, center, scale = person()
    plain = crop_matrix(center, scale, 0.0, INPUT_HW)
    only_half = Augmentation(0.0, 0.0, 0.0, 0.0, 0.0, 1.0)

    def changed(count: int) -> bool:
        some = keypoints.copy()
        some[count:, 2] = 0
        crop = sample_crop(only_half, some, center, scale, COCO17, INPUT_HW, np.random.default_rng(3))
        return not np.allclose(crop.matrix, plain)

    assert changed(9) and not changed(8)
