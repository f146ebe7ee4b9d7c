"""Encoding, decoding and mirroring of heatmaps, against hand-computed values and an explicit loop."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.pose.heatmap import decode, encode, flip_averages, flip_back

INPUT_HW, HEATMAP_HW = (64, 48), (16, 12)


def loop_target(x: float, y: float, sigma: int, hw=HEATMAP_HW) -> tuple[np.ndarray, int]:
    """The target rule cell by cell: round half up (truncating towards zero), cut off at 3 sigma."""
    height, width = hw
    mu_x, mu_y = int(x / 4 + 0.5), int(y / 4 + 0.5)
    radius = 3 * sigma
    target = np.zeros(hw)
    if not (-radius - 1 <= mu_x < width + radius and -radius - 1 <= mu_y < height + radius):
        return target, 0
    for row, column in np.ndindex(hw):
        if abs(row - mu_y) <= radius and abs(column - mu_x) <= radius:
            target[row, column] = math.exp(-((row - mu_y) ** 2 + (column - mu_x) ** 2) / (2 * sigma**2))
    return target, 1


@given(st.floats(-80, 130), st.floats(-80, 150), st.sampled_from([2, 3]))
@settings(max_examples=150, deadline=None)
def test_encode_equals_the_rule_cell_by_cell(x, y, sigma):
    heatmaps, weight = encode(np.array([[x, y]]), np.array([1]), INPUT_HW, HEATMAP_HW, sigma)
    expected, expected_weight = loop_target(x, y, sigma)
    assert np.abs(heatmaps[0] - expected).max() < 1e-6
    assert weight[0] == expected_weight


# sigma 2: radius 6. Cell -7 leaves the patch ending at cell -1, which the official rule still counts.
@pytest.mark.parametrize(("x", "weight"), [(-33.9, 1), (-34.0, 0), (72 - 2.1, 1), (72 - 1.9, 0)])
def test_weight_at_and_beyond_the_border(x, weight):
    assert encode(np.array([[x, 20.0]]), np.array([1]), INPUT_HW, HEATMAP_HW, 2)[1][0] == weight
    heatmaps, _ = encode(np.array([[-5.9, -5.9]]), np.array([1]), INPUT_HW, HEATMAP_HW, 2)
    assert heatmaps[0, 0, 0] == 1.0  # -5.9 / 4 + 0.5 = -0.975, truncated to 0


def test_unlabelled_keypoints_have_no_weight_even_if_not_finite():
    points = np.array([[np.nan, 3.0], [20.0, 20.0]])
    heatmaps, weight = encode(points, np.array([0, 2]), INPUT_HW, HEATMAP_HW, 1.5)
    assert weight.tolist() == [0, 1] and not heatmaps[0].any() and heatmaps[1].max() == 1
    assert heatmaps.dtype == weight.dtype == np.float32


def test_decode_moves_a_quarter_cell_towards_the_higher_neighbour():
    maps = torch.zeros(2, 3, 7, 9)
    maps[0, 0, 3, 4], maps[0, 0, 3, 5], maps[0, 0, 2, 4] = 1.0, 0.5, 0.4
    maps[0, 1, 3, 4] = 1.0  # symmetric: no step
    maps[0, 2, 3, 8] = 1.0  # last column: no step in either direction
    maps[0, 2, 2, 8] = 0.5
    maps[1, 0] = -1.0  # nothing positive
    maps[1, 1, 1, 4], maps[1, 1, 1, 5] = 1.0, 0.5  # second row: px > 1 fails
    maps[1, 2, 5, 7], maps[1, 2, 5, 6] = 0.3, 0.2  # px < W-1 and py < H-1 hold
    before = maps.clone()
    keypoints, scores = decode(maps)
    assert torch.equal(maps, before)
    assert keypoints.tolist() == [
        [[4.25, 2.75], [4.0, 3.0], [8.0, 3.0]],
        [[0.0, 0.0], [4.0, 1.0], [6.75, 5.0]],
    ]
    assert torch.allclose(scores, torch.tensor([[1.0, 1.0, 1.0], [-1.0, 1.0, 0.3]]))
    assert decode(maps, quarter_offset=False)[0][0, 0].tolist() == [4.0, 3.0]


def loop_decode(heatmap: np.ndarray) -> tuple[float, float]:
    """The decoding rule, step by step, for one map."""
    height, width = heatmap.shape
    y, x = divmod(int(heatmap.argmax()), width)
    if heatmap.max() <= 0:
        return 0.0, 0.0
    if not (1 < x < width - 1 and 1 < y < height - 1):
        return float(x), float(y)
    return (
        x + 0.25 * np.sign(heatmap[y, x + 1] - heatmap[y, x - 1]),
        y + 0.25 * np.sign(heatmap[y + 1, x] - heatmap[y - 1, x]),
    )


# Few values, so that ties, flat neighbourhoods and maxima at the border are common.
@given(st.integers(1, 6), st.integers(1, 7), st.integers(0, 2**32 - 1), st.integers(-2, 1))
@settings(max_examples=300, deadline=None)
def test_decode_equals_the_rule_cell_by_cell(height, width, seed, lowest):
    maps = np.random.default_rng(seed).integers(lowest, 3, (2, 3, height, width)).astype(np.float32)
    keypoints, scores = decode(torch.from_numpy(maps))
    for b, k in np.ndindex(2, 3):
        assert tuple(keypoints[b, k].tolist()) == loop_decode(maps[b, k])
        assert scores[b, k] == maps[b, k].max()


@given(st.integers(2, 9), st.integers(2, 12))
def test_encode_then_decode_returns_the_cell(x, y):
    heatmaps, _ = encode(np.array([[4.0 * x, 4.0 * y]]), np.array([1]), INPUT_HW, HEATMAP_HW, 2)
    assert decode(torch.from_numpy(heatmaps[None]))[0][0, 0].tolist() == [x, y]


def test_flip_back_swaps_pairs_mirrors_and_shifts():
    maps = torch.arange(2 * 3 * 2 * 4, dtype=torch.float32).reshape(2, 3, 2, 4)
    before = maps.clone()
    back = flip_back(maps, ((1, 2),))
    assert torch.equal(maps, before) and torch.equal(back, flip_back(maps, ((1, 2),), shift=1.0))
    assert back[0, 0, 0].tolist() == [3, 3, 2, 1]
    assert back[0, 1, 0].tolist() == [19, 19, 18, 17]  # from keypoint 2
    assert flip_back(maps, ((1, 2),), shift=False)[1, 2, 1].tolist() == maps[1, 1, 1].tolist()[::-1]
    assert torch.equal(flip_back(flip_back(maps, ((0, 2),), 0.0), ((0, 2),), False), maps)
    part = torch.tensor([0.0, 0.0, 4.0, 8.0]).reshape(1, 1, 1, 4).repeat(2, 3, 5, 1)
    # mirrored: 8 4 0 0; moved by a cell: 8 8 4 0
    assert flip_back(part, (), shift=0.75)[1, 2, 3].tolist() == [8.0, 7.0, 3.0, 0.0]
    with pytest.raises(HrnetppError, match="within 0 and 1"):
        flip_back(maps, (), shift=1.5)


@pytest.mark.parametrize("shift", [True, 1.0, 0.75, 0])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_flip_averages_are_the_mean_with_what_flip_back_gives(shift, layout):
    maps, mirrored = torch.randn(2, 4, 3, 5, 6).contiguous().unbind(0)
    before, kept = maps.clone(), mirrored.clone()
    given = (each.contiguous(memory_format=layout) for each in (maps, mirrored))
    means = [mean.clone() for mean in flip_averages(*given, ((0, 2),), shift, 3)]
    assert torch.equal(torch.cat(means), 0.5 * (maps + flip_back(mirrored, ((0, 2),), shift)))
    assert torch.equal(maps, before) and torch.equal(mirrored, kept)
    with pytest.raises(HrnetppError, match="within 0 and 1"):
        next(flip_averages(maps, mirrored, (), -0.1, 3))


def test_decode_reads_channels_last_maps_too():
    maps = torch.randn(3, 4, 7, 9)
    for mine, yours in zip(
        decode(maps), decode(maps.contiguous(memory_format=torch.channels_last)), strict=True
    ):
        assert torch.equal(mine, yours)


def test_heatmaps_of_another_shape_or_not_finite_are_refused():
    for shape in (3, 4, 5), (2, 3, 0, 5):
        for call in decode, lambda maps: flip_back(maps, ()):
            with pytest.raises(HrnetppError, match="B, K, H, W"):
                call(torch.zeros(shape))
    for value in math.nan, math.inf:
        maps = torch.zeros(2, 3, 5, 4)
        maps[1, 2, 4, 0] = value
        with pytest.raises(HrnetppError, match="not finite"):
            decode(maps)


def test_keypoints_that_are_nowhere_and_sigmas_that_make_no_sense_are_refused():
    for x in math.nan, -math.inf, 1e308, 2.0**34:
        with pytest.raises(HrnetppError, match="keypoint 1 is labelled but at"):
            encode(np.array([[5.0, 3.0], [x, 3.0], [9.0, 9.0]]), np.ones(3), INPUT_HW, HEATMAP_HW, 2)
    for sigma in 0, -1.0, 1e-300, math.nan, math.inf, 1e9:
        with pytest.raises(HrnetppError, match="sigma must be 0.01 to 1000 cells"):
            encode(np.zeros((1, 2)), np.ones(1), INPUT_HW, HEATMAP_HW, sigma)
