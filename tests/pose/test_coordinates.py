"""Three coordinate conventions: what the flip test leaves as bias, and round trips through crop and cells."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.model.anatomy import flip_test_bias
from hrnetpp_lib.pose.geometry import (
    EXACT_SHIFT,
    OFFICIAL,
    UDP,
    bbox_to_center_scale,
    crop_matrix,
    get_convention,
    transform_points,
)
from hrnetpp_lib.pose.heatmap import flip_back

INPUT_HW = (256, 192)


@pytest.mark.parametrize(("coordinates", "bias"), [(OFFICIAL, 0.125), (EXACT_SHIFT, 0.0), (UDP, 0.0)])
@given(x=st.floats(50, 140))
def test_bias_of_the_flip_test(coordinates, bias, x):
    assert flip_test_bias(coordinates, x) == pytest.approx(bias, abs=1e-4)


def test_without_shift_the_official_convention_is_three_eighths_of_a_cell_off():
    assert flip_test_bias(replace(OFFICIAL, flip_shift=0.0), 96.0) == pytest.approx(-0.375, abs=1e-4)


def test_a_part_of_a_cell_is_interpolated():
    maps = torch.tensor([0.0, 0.0, 4.0, 8.0]).reshape(1, 1, 1, 4).repeat(2, 3, 5, 1)
    # mirrored: 8 4 0 0; moved by a cell: 8 8 4 0
    assert flip_back(maps, (), shift=0.75)[1, 2, 3].tolist() == [8.0, 7.0, 3.0, 0.0]
    assert torch.equal(flip_back(maps, (), shift=1.0), flip_back(maps, ()))
    assert torch.equal(flip_back(maps, (), shift=0.0), flip_back(maps, (), shift=False))
    with pytest.raises(ValueError, match="within 0 and 1"):
        flip_back(maps, (), shift=1.5)


@pytest.mark.parametrize("coordinates", [OFFICIAL, EXACT_SHIFT, UDP])
def test_corners_of_the_padded_box_go_to_the_ends_of_the_crop(coordinates):
    center, scale = bbox_to_center_scale(np.array([30.0, 40.0, 60.0, 90.0]), INPUT_HW)
    matrix = crop_matrix(center, scale, 0.0, coordinates.crop_hw(INPUT_HW))
    ends = transform_points(np.array([center - scale / 2, center + scale / 2]), matrix)
    far = (191, 255) if coordinates.size_minus_one else (192, 256)
    # The zoom follows the width alone, so between pixel centres the height is a sixth of a px off.
    assert np.allclose(ends, [(0, 0), far], atol=0.17)
    assert np.allclose(ends[:, 0], (0, far[0]))


def test_udps_outermost_cells_lie_on_the_outermost_pixels():
    stride = UDP.stride_xy(INPUT_HW)
    assert np.allclose(stride * (192 / 4 - 1, 256 / 4 - 1), (191, 255))
    assert OFFICIAL.stride_xy(INPUT_HW).tolist() == [4.0, 4.0]


def test_unknown_name_lists_the_valid_ones():
    assert get_convention("udp") is UDP
    with pytest.raises(HrnetppError, match="official, exact_shift, udp"):
        get_convention("dark")
