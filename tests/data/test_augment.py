"""Half body by hand, and the statistics and geometry of random crops."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from hrnetpp_lib.data.augment import half_body, sample_crop
from hrnetpp_lib.pose.geometry import bbox_to_center_scale, crop_matrix, transform_points
from hrnetpp_lib.pose.keypoints import COCO17
from hrnetpp_lib.recipe import Augmentation

INPUT_HW = (256, 192)
KEYPOINTS = np.column_stack([np.random.default_rng(1).uniform(40, 160, (17, 2)), np.full(17, 2)])
CENTER, SCALE = bbox_to_center_scale(np.array([40.0, 40.0, 120.0, 120.0]), INPUT_HW)
PLAIN = crop_matrix(CENTER, SCALE, 0.0, INPUT_HW)
STILL = partial(Augmentation, 0.0, 0.0, 0.0, 0.0)


def draw(augmentation, seed, keypoints=KEYPOINTS):
    return sample_crop(
        augmentation, keypoints, CENTER, SCALE, COCO17, INPUT_HW, np.random.default_rng((0, 0, seed))
    )


def half_of(keypoints, indices, upper):
    return half_body(keypoints, np.isin(np.arange(17), indices), COCO17, INPUT_HW, upper)


def test_half_body_by_hand():
    keypoints = np.zeros((17, 2))
    keypoints[[5, 6, 7]] = [[10, 20], [50, 20], [30, 50]]
    keypoints[[11, 12, 13]] = [[100, 100], [110, 100], [105, 190]]
    center, scale = half_of(keypoints, [5, 6, 7, 11, 12, 13], upper=True)
    assert center == pytest.approx([30, 30], abs=1e-4)
    assert scale == pytest.approx([1.5 * 40, 1.5 * 40 / 0.75], abs=1e-3)  # 40x30 is too wide for 3:4
    center, scale = half_of(keypoints, [5, 6, 7, 11, 12, 13], upper=False)
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
    center, _ = half_of(KEYPOINTS[:, :2], indices, upper)
    assert center == pytest.approx(KEYPOINTS[uses, :2].mean(axis=0), abs=1e-3)


def test_half_body_needs_two_keypoints_apart():
    assert half_of(KEYPOINTS[:, :2], [5], True) is None
    assert half_of(np.full((17, 2), 7.0), [5, 6, 7], True) is None


def test_without_randomness_the_crop_is_plain_or_reflected_about_its_middle():
    matrix, flipped = draw(STILL(0.0, 0.0), 0)
    assert not flipped and np.allclose(matrix, PLAIN)
    matrix, flipped = draw(STILL(1.0, 0.0), 0)
    plain, mirrored = (transform_points(KEYPOINTS[:, :2], m) for m in (PLAIN, matrix))
    assert flipped and np.allclose(mirrored, np.column_stack([INPUT_HW[1] - plain[:, 0], plain[:, 1]]))


def test_distributions_are_the_official_ones():
    crops = [draw(Augmentation(half_body_probability=0), i) for i in range(4000)]
    flips = np.array([flipped for _, flipped in crops])
    linear = np.stack([matrix[:, :2] @ np.diag([-1 if flipped else 1, 1]) for matrix, flipped in crops])
    zooms = INPUT_HW[1] / SCALE[0] / np.sqrt(np.linalg.det(linear))
    angles = -np.degrees(np.arctan2(linear[:, 1, 0], linear[:, 0, 0]))
    assert zooms.min() == pytest.approx(0.65) and zooms.max() == pytest.approx(1.35)
    assert np.mean(np.isclose(zooms, 1.35)) == pytest.approx(0.159, abs=0.02)  # P(N > 1)
    assert np.abs(angles).max() == pytest.approx(90) and np.mean(angles == 0) == pytest.approx(0.4, abs=0.03)
    assert np.std(angles[(angles != 0) & (np.abs(angles) < 89)]) == pytest.approx(39.3, abs=2)
    assert np.mean(flips) == pytest.approx(0.5, abs=0.03)


def test_half_body_is_taken_as_often_as_the_official_code_does():
    boxes = [
        crop_matrix(*half_of(KEYPOINTS[:, :2], range(17), upper), 0.0, INPUT_HW) for upper in (True, False)
    ]
    matrices = [draw(STILL(0.0, half_body_probability=0.3), i)[0] for i in range(3000)]
    upper, lower = (sum(np.allclose(matrix, box) for matrix in matrices) for box in boxes)
    assert (upper + lower) / 3000 == pytest.approx(0.3, abs=0.03)
    assert upper / (upper + lower) == pytest.approx(0.691, abs=0.05)  # P(N < 0.5)


def test_half_body_happens_only_with_more_than_eight_keypoints():
    for count, plain in ((8, True), (9, False)):
        some = KEYPOINTS.copy()
        some[count:, 2] = 0
        assert np.allclose(draw(STILL(0.0, 1.0), 3, some)[0], PLAIN) == plain


def test_half_a_body_is_scaled_in_float64():
    """Its keypoints are float32; in which of the two it is scaled decides on the last bits of the crop."""
    keypoints = KEYPOINTS.astype(np.float32)
    augmentation = replace(STILL(0.0, half_body_probability=1.0), scale_std=0.35)
    random = np.random.default_rng((0, 0, 3))
    random.random()
    half = half_of(keypoints, range(17), upper=random.standard_normal() < 0.5)
    scale = half[1].astype(np.float64) * np.clip(1 + 0.35 * random.standard_normal(), 0.65, 1.35)
    np.testing.assert_array_equal(
        draw(augmentation, 3, keypoints)[0], crop_matrix(half[0], scale, 0.0, INPUT_HW)
    )
