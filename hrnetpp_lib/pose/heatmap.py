"""Heatmaps and keypoints: Gaussian encoding, quarter-offset decoding, and averaging with the mirror image.

A cell's integer index is its centre, (0, 0) being the top-left cell's::

      cell index     0     1     2     3
                  +-----+-----+-----+-----+
                  |  x  |  x  |  x  |  x  |      one cell = input width / heatmap width input px (4)
                  +-----+-----+-----+-----+
      input px    0     4     8    12            cell i answers for input px 4*i
"""

from collections.abc import Iterator

import cv2
import numpy as np
import torch
from torch import Tensor

from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.pose.geometry import Size


def encode(
    keypoints_input: np.ndarray, labelled: np.ndarray, input_hw: Size, heatmap_hw: Size, sigma: float
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one unit-peak Gaussian per keypoint, on a whole cell, cut off at 3 sigma.

    Args:
        keypoints_input: (K, 2) as (x, y) in input px.
        labelled: (K,) bool or 0/1; unlabelled keypoints give an empty map and weight 0.
        input_hw, heatmap_hw: Height and width, in px and in cells.
        sigma: Standard deviation in cells, 0.01 to 1000.

    Returns:
        heatmaps (K, H, W) float32 in [0, 1] and target_weight (K,) float32, 0 or 1.

    Raises: HrnetppError if a shape or sigma makes no sense, or a labelled keypoint is not finite or far away.
    Reference: official HRNet, JointsDataset.generate_target.
    """
    stride_xy = np.array(input_hw[::-1]) / np.array(heatmap_hw[::-1])
    peaks, weight = locate(np.asarray(keypoints_input, np.float64) / stride_xy, labelled, heatmap_hw, sigma)
    maps = draw_gaussians(torch.from_numpy(peaks[None]), torch.from_numpy(weight[None]), heatmap_hw, sigma)
    return maps[0].numpy(), weight


def locate(
    keypoints_heatmap: np.ndarray, labelled: np.ndarray, heatmap_hw: Size, sigma: float
) -> tuple[np.ndarray, np.ndarray]:
    """First half of `encode`: (K, 2) heatmap px to peaks, (K, 2) int64 cells, and target_weight (K,) float32.

    Raises: HrnetppError as `encode`. Peaks may be outside the map.
    """
    if not 0.01 <= sigma <= 1000:  # the table of `draw_gaussians` grows with its square
        raise HrnetppError(f"sigma must be 0.01 to 1000 cells, got {sigma}")
    points, labelled = np.asarray(keypoints_heatmap, np.float64), np.asarray(labelled) > 0
    if points.shape != (*labelled.shape, 2):
        raise HrnetppError(f"keypoints {points.shape} and labelled {labelled.shape}: give (K, 2) and (K,)")
    points = np.where(labelled[:, None], points, 0.0)
    good = (np.abs(points) < 2**31).all(axis=1)  # false for NaN; the cells are whole numbers below
    if not good.all():
        worst = np.argmin(good)
        raise HrnetppError(f"keypoint {worst} is labelled but at {points[worst]}; mend its place")
    # The official rule rounds half up but truncates towards zero, so that -0.5 < position < 0 counts as 0.
    peaks = np.trunc(points + 0.5).astype(np.int64)
    # CHOICE: the official patch is only defined for a whole 3 sigma; ours is cut at the last cell within it.
    radius = int(3 * sigma)
    outside = (peaks - radius >= heatmap_hw[::-1]) | (peaks + radius + 1 < 0)
    return peaks, (labelled & ~outside.any(axis=1)).astype(np.float32)


def draw_gaussians(peaks: Tensor, target_weight: Tensor, heatmap_hw: Size, sigma: float) -> Tensor:
    """Second half of `encode`, of a batch: (B, K, 2) cells and (B, K) weights to (B, K, H, W) fp32."""
    radius = int(3 * sigma)
    distance = np.arange(radius + 2, dtype=np.float32)
    # In fp32, as the official code computes it.
    patch = np.exp(-(distance[:, None] ** 2 + distance**2) / (2 * sigma**2)).astype(np.float32)
    patch[-1] = patch[:, -1] = 0  # everything further away than 3 sigma
    table = torch.from_numpy(patch).to(peaks.device)
    cells_y, cells_x = (torch.arange(size, device=peaks.device) for size in heatmap_hw)
    away_x = (cells_x - peaks[..., :1]).abs().clamp(max=radius + 1)  # (B, K, W)
    away_y = (cells_y - peaks[..., 1:]).abs().clamp(max=radius + 1)  # (B, K, H)
    # Values are only looked up, so all devices agree.
    return table[away_y[..., :, None], away_x[..., None, :]] * target_weight[:, :, None, None]


def decode(heatmaps: Tensor, quarter_offset: bool = True) -> tuple[Tensor, Tensor]:
    """Position of each map's maximum, moved a quarter cell towards the higher neighbour.

    A map whose maximum is not positive decodes to (0, 0). The first of several equal maxima wins.

    Args:
        heatmaps: (B, K, H, W) raw network output; left untouched.
        quarter_offset: Whether to refine by the quarter cell, away from the outermost two cells.

    Returns:
        keypoints (B, K, 2) as (x, y) in heatmap px and scores (B, K), the maxima; both fp32 or fp64.

    Raises: HrnetppError if heatmaps is not 4-D, or a maximum is not finite.
    Reference: HRNet++ report, testing; official HRNet, get_final_preds.
    """
    maps = _check_4d(heatmaps)
    height, width = maps.shape[-2:]
    flat = maps.flatten(2)
    if flat.is_cpu:  # numpy's search is many times faster; both take the first NaN, or the first maximum
        index = torch.from_numpy(flat.detach().numpy().argmax(axis=2))
        scores = flat.gather(2, index[:, :, None])[:, :, 0]
    else:
        scores, index = flat.max(dim=2)
    if not scores.isfinite().all():
        raise HrnetppError("heatmaps are not finite; use another network, or other images")
    index = index * (scores > 0)
    x, y = index % width, index // width
    keypoints = torch.stack([x, y], dim=2).to(maps.dtype)
    if quarter_offset and min(height, width) > 2:
        inner = (x > 1) & (x < width - 1) & (y > 1) & (y < height - 1)
        # Elsewhere any cell with four neighbours will do.
        cells = torch.where(inner, index, width + 1)[:, :, None]
        around = flat.gather(2, cells + torch.tensor([-1, -width, 1, width], device=flat.device))
        step = (around[:, :, 2:] - around[:, :, :2]).sign()
        keypoints = keypoints + 0.25 * step * inner[:, :, None]
    return keypoints, scores


def flip_back(heatmaps: Tensor, flip_pairs: tuple[tuple[int, int], ...], shift: float = True) -> Tensor:
    """Bring the heatmaps of a mirrored image back to the unmirrored frame.

    Args:
        heatmaps: (B, K, H, W) network output for the mirrored input; left untouched.
        flip_pairs: Keypoint index pairs that trade places.
        shift: How many cells to move the result to the right, 0 to 1. True is 1, as in the official code.
            Mirroring at stride 4 leaves the maps 0.75 cells too far left. The first column is repeated.

    Returns:
        (B, K, H, W), a new tensor.

    Raises: HrnetppError if heatmaps is not 4-D, or shift is not within 0 and 1.
    Reference: official HRNet, flip_back and SHIFT_HEATMAP.
    """
    maps = _check_4d(heatmaps)
    # Along memory: channels-last maps would be read with large strides.
    back = maps.contiguous().index_select(1, _flip_order(maps, flip_pairs, shift)).flip(-1)
    if not shift:
        return back
    moved = torch.cat([back[..., :1], back[..., :-1]], dim=-1)
    return moved if shift == 1 else torch.lerp(back, moved, float(shift))


@torch.no_grad()
def flip_averages(
    heatmaps: Tensor, mirrored: Tensor, flip_pairs: tuple[tuple[int, int], ...], shift: float, at_once: int
) -> Iterator[Tensor]:
    """Means of (B, K, H, W) heatmaps and `flip_back` of the mirrored image's, some persons at a time.

    Each is good until the next is asked for: they share memory, as new memory costs more than the sums.

    Raises: HrnetppError as `flip_back`.
    """
    heatmaps, mirrored = _check_4d(heatmaps), _check_4d(mirrored)
    order = _flip_order(heatmaps, flip_pairs, shift)
    if shift != 1 or not heatmaps.is_cpu or heatmaps.dtype != torch.float32 or not len(heatmaps):
        yield 0.5 * (heatmaps + flip_back(mirrored, flip_pairs, shift))
        return
    # Person by person, so that the copies stay in the cache.
    maps, others, order = heatmaps.numpy(), mirrored.contiguous().numpy(), order.numpy()
    exchanged, back = np.empty((2, *maps.shape[1:]), np.float32)
    means = np.empty(maps[:at_once].shape, np.float32)
    for start in range(0, len(maps), at_once):
        part = means[: len(maps) - start]
        for person, mean in enumerate(part, start):
            others[person].take(order, axis=0, out=exchanged, mode="clip")
            cv2.flip(exchanged.reshape(-1, maps.shape[-1]), 1, dst=back.reshape(-1, maps.shape[-1]))
            # One run through memory; what it makes of each row's first cell is mended.
            np.add(maps[person].reshape(-1)[1:], back.reshape(-1)[:-1], out=mean.reshape(-1)[1:])
            np.add(maps[person, ..., 0], back[..., 0], out=mean[..., 0])
        part *= np.float32(0.5)
        yield torch.from_numpy(part)


def _flip_order(heatmaps: Tensor, flip_pairs: tuple[tuple[int, int], ...], shift: float) -> Tensor:
    """Which keypoint takes each one's place in a mirrored image. Raises: HrnetppError for a bad shift."""
    if not 0 <= shift <= 1:
        raise HrnetppError(f"shift must be within 0 and 1 cells, got {shift}")
    order = list(range(heatmaps.shape[1]))
    for left, right in flip_pairs:
        order[left], order[right] = order[right], order[left]
    return torch.tensor(order, device=heatmaps.device)


def _check_4d(heatmaps: Tensor) -> Tensor:
    maps = torch.as_tensor(heatmaps)
    if maps.ndim != 4 or 0 in maps.shape[2:]:
        raise HrnetppError(f"heatmaps must be (B, K, H, W), got shape {tuple(maps.shape)}")
    return maps if maps.dtype in (torch.float32, torch.float64) else maps.float()
