"""Boxes, crop matrices, points and pixel conventions: by hand, against OpenCV, and round trips."""

import re

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.pose import geometry
from hrnetpp_lib.pose.geometry import bbox_to_center_scale, crop_matrix, invert_matrix, transform_points

INPUT_HW = (384, 288)
coordinate, extent, angle = st.floats(-2000, 2000), st.floats(1, 1500), st.floats(-180, 180)
point_xy = st.tuples(coordinate, coordinate)


@pytest.mark.parametrize(
    ("box", "center", "scale"),
    [
        ((10, 20, 30, 40), (25, 40), (37.5, 50)),  # 3:4 already
        ((10, 20, 60, 40), (40, 40), (75, 100)),  # too wide: the height grows to 80
        ((10, 20, 30, 80), (25, 60), (75, 100)),  # too tall: the width grows to 60
        ((-31, 20, 60, 40), (-1, 40), (75, 100)),  # padded like any other
    ],
)
def test_box_by_hand(box, center, scale):
    found = bbox_to_center_scale(np.array(box), INPUT_HW)
    assert found[0] == pytest.approx(center) and found[1] == pytest.approx(scale)


def test_many_boxes_at_once_and_padding():
    boxes = np.random.default_rng(0).uniform(1, 90, (2, 5, 4))
    centers, scales = bbox_to_center_scale(boxes, (64, 96), padding=1.0)
    assert centers.shape == scales.shape == (2, 5, 2)
    for i, j in np.ndindex(2, 5):
        center, scale = bbox_to_center_scale(boxes[i, j], (64, 96), padding=1.0)
        assert np.array_equal(centers[i, j], center) and np.array_equal(scales[i, j], scale)
        assert scale[0] / scale[1] == pytest.approx(1.5)
        assert (scale >= boxes[i, j, 2:] - 1e-9).all() and np.isclose(scale, boxes[i, j, 2:]).any()


@pytest.mark.parametrize(
    "box",
    [
        *[(0, 0, 0, 5), (0, 0, 5, 0), (0, 0, -3, 5), (np.nan, 0, 5, 5), (0, 0, 5, np.inf), (0, 0, 5)],
        *[(0, 0, 1e308, 1e308), (1.7e308, 0, 1.7e308, 5), (-np.inf, 0, 5, 5)],
    ],
)
def test_bad_boxes_are_refused_and_named_among_good_ones(box):
    with pytest.raises(HrnetppError, match="box"):
        bbox_to_center_scale(np.array(box), INPUT_HW)
    if len(box) == 4:
        with pytest.raises(HrnetppError, match=re.escape(str([*map(float, box)]))):
            bbox_to_center_scale(np.array([[1, 2, 3, 4], box, [1, 2, 3, 4]]), INPUT_HW)


def test_crop_matrix_and_quarter_turn_by_hand():
    box = np.array([100, 50]), np.array([144, 192])
    matrix = crop_matrix(*box, 0.0, INPUT_HW)
    assert matrix == pytest.approx(np.array([[2, 0, -56], [0, 2, 92]]))
    corners = np.array([[100 - 72, 50 - 96], [100 + 72, 50 + 96]])
    assert transform_points(corners, matrix) == pytest.approx(np.array([[0, 0], [288, 384]]))
    # The image's up (0, -1), turned by 90 degrees from x towards y, is (1, 0): it becomes the output's up.
    points = transform_points(np.array([[101, 50], [100, 51]]), crop_matrix(*box, 90.0, INPUT_HW))
    assert points == pytest.approx(np.array([[144, 190], [146, 192]]))


def three_point_matrix(center, scale, rotation_deg, output_hw) -> np.ndarray:
    """By OpenCV from three pairs of points: the middle, the top, and a right angle from the two."""
    height, width = output_hw
    radians = np.radians(rotation_deg)
    up = np.array([np.sin(radians), -np.cos(radians)]) * scale[0] / 2
    source = [center, center + up, center + up + [up[1], -up[0]]]
    middle = np.array([width / 2, height / 2])
    target = [middle, middle + [0, -width / 2], middle + [-width / 2, -width / 2]]
    return cv2.getAffineTransform(np.array(source, np.float32), np.array(target, np.float32))


@given(st.tuples(st.floats(0, 640), st.floats(0, 640)), st.floats(40, 800), angle)
def test_agrees_with_three_point_transform(center, width, rotation):
    center, scale = np.array(center), np.array([width, width / 0.75])
    ours = crop_matrix(center, scale, rotation, INPUT_HW)
    theirs = three_point_matrix(center, scale, rotation, INPUT_HW)
    # OpenCV's points are float32, hence the tolerance.
    points = center + np.array([[-0.5, -0.5], [0.5, -0.5], [0.1, 0.4]]) * scale
    assert np.abs(transform_points(points, ours) - transform_points(points, theirs)).max() < 2e-3


@given(point_xy, extent, angle, point_xy)
def test_there_and_back_by_a_similarity_without_mirror(center, width, rotation, point):
    matrix = crop_matrix(np.array(center), np.array([width, width]), rotation, (96, 72))
    back = transform_points(transform_points(np.array(point), matrix), invert_matrix(matrix))
    assert np.abs(back - point).max() < 1e-8
    assert transform_points(np.array(center), matrix) == pytest.approx((36, 48), abs=1e-7)
    linear = matrix[:, :2]
    assert np.allclose(linear @ linear.T, np.eye(2) * (72 / width) ** 2) and np.linalg.det(linear) > 0


def test_a_general_map():
    matrix = np.array([[2.0, 0.3, 5.0], [-0.7, 1.1, -4.0]])
    assert invert_matrix(matrix) == pytest.approx(cv2.invertAffineTransform(matrix), rel=1e-12)
    points = transform_points(np.full((2, 3, 4, 2), 0.25, np.float32), [[2, 0, 1], [0, 3, 0]])
    assert points.shape == (2, 3, 4, 2) and points.dtype == np.float64
    assert np.array_equal(points[1, 2, 3], [1.5, 0.75])


def test_bad_crops_are_refused():
    finite = (0, 0), (2, 1)
    boxes = [((0, 0), (0, 1)), ((0, 0), (-2, 1)), ((np.nan, 0), (2, 1)), ((0, 0), (2, np.nan))]
    boxes += [((0, 0), (np.inf, 1)), ((1e308, 0), (2, 1)), ((0, 0), (1e-307, 1))]
    for (center, scale), rotation in [*((box, 0) for box in boxes), (finite, np.inf)]:
        with pytest.raises(HrnetppError, match="padded box"):
            crop_matrix(np.array(center), np.array(scale), rotation, INPUT_HW)


def test_many_maps_at_once_are_inverted_and_applied_as_each_alone():
    random = np.random.default_rng(3)
    boxes = zip(random.uniform(-50, 900, (40, 2)), random.uniform(5, 900, (40, 2)), strict=True)
    maps = np.stack(
        [crop_matrix(center, scale, 7.0 * i, INPUT_HW) for i, (center, scale) in enumerate(boxes)]
    )
    points, inverses = random.uniform(-5, 100, (40, 17, 2)), invert_matrix(maps)
    moved = transform_points(points, inverses)
    assert moved.shape == (40, 17, 2) and inverses.shape == (40, 2, 3)
    for i, matrix in enumerate(maps):
        assert np.array_equal(inverses[i], invert_matrix(matrix))
        assert np.array_equal(moved[i], transform_points(points[i], inverses[i]))
    maps[7, :, :2] = 0
    with pytest.raises(HrnetppError, match=re.escape(f"matrix {maps[7].tolist()}: has no inverse")):
        invert_matrix(maps)


def test_maps_without_inverse_or_of_another_shape_are_refused():
    for linear in [[1, 2], [2, 4]], [[np.nan, 0], [0, 1]], [[1e-200, 0], [0, 1e-200]]:
        with pytest.raises(HrnetppError, match="no inverse"):
            invert_matrix(np.column_stack([linear, [5, 6]]))
    for shape in (2, 2), (3, 3), (6,):
        for call in invert_matrix, lambda matrix: transform_points(np.zeros((4, 2)), matrix):
            with pytest.raises(HrnetppError, match=r"give \(2, 3\)"):
                call(np.ones(shape))


@pytest.mark.parametrize("coordinates", geometry.CONVENTIONS.values())
def test_corners_of_the_padded_box_go_to_the_ends_of_the_crop(coordinates):
    center, scale = bbox_to_center_scale(np.array([30.0, 40.0, 60.0, 90.0]), (256, 192))
    matrix = crop_matrix(center, scale, 0.0, coordinates.crop_hw((256, 192)))
    ends = transform_points(np.array([center - scale / 2, center + scale / 2]), matrix)
    far = (191, 255) if coordinates.size_minus_one else (192, 256)
    # The zoom follows the width alone, so between pixel centres the height is a sixth of a px off.
    assert np.allclose(ends, [(0, 0), far], atol=0.17)
    assert np.allclose(ends[:, 0], (0, far[0]))


def test_udps_outermost_cells_lie_on_the_outermost_pixels():
    stride = geometry.UDP.stride_xy((256, 192))
    assert np.allclose(stride * (192 / 4 - 1, 256 / 4 - 1), (191, 255))
    assert geometry.OFFICIAL.stride_xy((256, 192)).tolist() == [4.0, 4.0]
