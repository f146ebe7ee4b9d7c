"""The hills of a heatmap: which keypoints to show, by a rule, and sentences about where they are read."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import nn

from hrnetpp_lib.data.crops import BoxCrops
from hrnetpp_lib.data.persons import PersonTable
from hrnetpp_lib.evaluate.infer import forward
from hrnetpp_lib.model.weights import ModelCard
from hrnetpp_lib.pose.geometry import transform_points
from hrnetpp_lib.pose.heatmap import decode
from hrnetpp_lib.pose.softargmax import soft_argmax

APART = 4.0  # cells between two hills, at least
_BATCH = 16


@dataclass(frozen=True, eq=False)
class Landing:
    """A keypoint of a person in its true box, as a network sees it.

    Attributes:
        name: Of the keypoint.
        keypoint: Its row in the poses.
        crop: (h, w, 3) uint8 RGB.
        heatmap: (H, W) averaged with the mirrored crop's.
        truth: (K, 3) labels in px of the crop.
        pose: (K, 3) as (x, y, score) by soft-argmax, likewise.
        stride_xy: (2,) px of the crop per cell.
        heights: Of its two highest hills; the second is 0 where there is one alone.
        apart: Cells between them.
    """

    name: str
    keypoint: int
    crop: np.ndarray
    heatmap: np.ndarray
    truth: np.ndarray
    pose: np.ndarray
    stride_xy: np.ndarray
    heights: tuple[float, float]
    apart: float

    @property
    def ratio(self) -> float:
        """How high the second hill is beside the first."""
        return self.heights[1] / max(self.heights[0], 1e-6)

    @property
    def true_xy(self) -> np.ndarray:
        """(2,) the label in heatmap px."""
        return self.truth[self.keypoint, :2] / self.stride_xy

    def places(self, alpha: float) -> dict[str, np.ndarray]:
        """Decoder -> (2,) where it reads the heatmap, in heatmap px."""
        maps = torch.from_numpy(self.heatmap)[None, None]
        found = {
            "arg_max": decode(maps, quarter_offset=False)[0],
            "quarter_offset": decode(maps)[0],
            "soft_argmax": soft_argmax(maps, alpha),
        }
        return {name: xy[0, 0].double().numpy() for name, xy in found.items()}

    def errors(self, alpha: float) -> dict[str, float]:
        """Decoder -> distance from the label in cells."""
        return {name: float(np.hypot(*(xy - self.true_xy))) for name, xy in self.places(alpha).items()}


def two_highest(heatmap: np.ndarray) -> tuple[tuple[float, float], float]:
    """Heights of the highest hill of a (H, W) heatmap and of the next one, and the cells between them.

    A hill's top is above 0 and no lower than its eight neighbours; the next one is at least `APART` cells
    away. Where there is none its height, and the distance, are 0.
    """
    heatmap = np.ascontiguousarray(heatmap, np.float32)
    ys, xs = np.nonzero(heatmap == cv2.dilate(heatmap, np.ones((3, 3), np.uint8)))
    order = np.argsort(-heatmap[ys, xs], kind="stable")
    tops = np.stack([xs, ys], axis=1)[order]
    away = np.hypot(*(tops - tops[0]).T)
    others = np.flatnonzero((away >= APART) & (heatmap[tops[:, 1], tops[:, 0]] > 0))
    first = float(heatmap[tops[0][1], tops[0][0]])
    if not len(others):
        return (first, 0.0), 0.0
    x, y = tops[others[0]]
    return (first, float(heatmap[y, x])), float(away[others[0]])


def pick_examples(
    model: nn.Module, card: ModelCard, table: PersonTable, people: int = 64
) -> tuple[Landing, Landing]:
    """Two keypoints among the first so many labelled people: one sharp and right, one with two hills.

    Sharp and right: of the tenth that soft-argmax reads nearest to their labels, the one whose second hill is
    the lowest beside its first. Two hills: of those whose peak is at least half the median peak, the one
    whose second hill comes nearest to its first.

    Raises: HrnetppError if an image cannot be read.
    """
    counted = (table.keypoints[:, :, 2] > 0).any(axis=1) & (table.bboxes_xywh[:, 2:] > 0).all(axis=1)
    found = _look(model.eval(), card, table.select(np.flatnonzero(counted)[:people]))
    near = sorted(found, key=lambda one: one.errors(card.alpha)["soft_argmax"])[: -(-len(found) // 10)]
    enough = 0.5 * np.median([one.heights[0] for one in found])
    high = [one for one in found if one.heights[0] >= enough]
    return min(near, key=lambda one: one.ratio), max(high, key=lambda one: one.ratio)


def _look(model: nn.Module, card: ModelCard, table: PersonTable) -> list[Landing]:
    """Every labelled keypoint of a table's people."""
    stride, found = card.coordinates.stride_xy(card.input_hw), []
    batches = BoxCrops(table, card.input_hw, coordinates=card.coordinates).batches(_BATCH, 1)
    with contextlib.closing(batches):
        for rows, crops, matrices in batches:
            maps = forward(model, torch.from_numpy(crops[:, 0]), card).cpu()
            xy, scores = soft_argmax(maps, card.alpha).numpy() * stride, maps.amax(dim=(2, 3)).numpy()
            for i, row in enumerate(rows):
                label = table.keypoints[row].astype(np.float64)
                places = transform_points(label[:, :2], matrices[i, 0])
                truth, pose = np.column_stack([places, label[:, 2]]), np.column_stack([xy[i], scores[i]])
                for k in np.flatnonzero(label[:, 2]):
                    heat, name = maps[i, k].numpy(), card.skeleton.names[k].replace("_", " ")
                    seen = crops[i, 0], heat, truth, pose, stride
                    found.append(Landing(name, int(k), *seen, *two_highest(heat)))
    return found


def most_spread(maps: torch.Tensor, alpha: float) -> int:
    """Which of (K, H, W) maps has the softmax that is spread the widest: the lowest share of its first cell.

    Of those whose peak is at least half as high as the highest.
    """
    first = torch.softmax(alpha * maps.flatten(1), dim=1).amax(dim=1)
    peaks = maps.amax(dim=(1, 2))
    return int(torch.where(peaks >= peaks.max() / 2, first, torch.inf).argmin())


def in_markdown(example: Landing, alpha: float) -> str:
    """What each decoder reads and how far it is from the label, in cells, as a table."""
    places, errors = example.places(alpha), example.errors(alpha)
    lines = ["| | x | y | cells from the label |", "|---|---|---|---|"]
    for name, (x, y) in places.items():
        lines.append(f"| {name.replace('_', ' ')} | {x:.2f} | {y:.2f} | {errors[name]:.2f} |")
    x, y = example.true_xy
    return "\n".join([*lines, f"| label | {x:.2f} | {y:.2f} | |"])


def say_hills(example: Landing) -> str:
    """How many hills this heatmap has, and how high they are."""
    first, second = example.heights
    if not round(second, 2):
        return f"In this run it has one hill, {first:.3f} high."
    share = 100 * example.ratio
    return (
        f"In this run its highest hill is {first:.3f} high, the next {second:.3f} ({share:.0f}% of it) and "
        f"{example.apart:.1f} cells away."
    )


def say_positions(example: Landing, alpha: float) -> str:
    """Which decoder comes nearest to the label, and whether the choice of decoder is what matters."""
    errors = {name.replace("_", " "): round(error, 2) for name, error in example.errors(alpha).items()}
    places = example.places(alpha).values()
    apart = round(max(float(np.hypot(*(a - b))) for a in places for b in places), 2)
    least = min(errors.values())
    best = [name for name, error in errors.items() if error == least]
    which = f"{best[0]} comes" if len(best) == 1 else f"{' and '.join(best)} come"
    matter = (
        "less than the best of them is from the label: most of the error is the network's own"
        if apart < least
        else "no less than the best of them is from the label: here the decoder matters"
    )
    return (
        f"In this run {which} nearest to the label, {least:.2f} cells away. The decoders are up to "
        f"{apart:.2f} cells apart, {matter}."
    )


def say_alphas(sharp: Mapping[float, float], two: Mapping[float, float], alpha: float) -> str:
    """What the network's own alpha costs beside the best one that was tried, of the two examples' errors."""
    parts = f"{_best_alpha(sharp, alpha)} on the first and {_best_alpha(two, alpha)} on the second"
    return f"In this run alpha {alpha:g}, the dashed line, errs by {parts}."


def _best_alpha(errors: Mapping[float, float], alpha: float) -> str:
    rounded = {one: round(error, 2) for one, error in errors.items()}
    best = min(rounded, key=rounded.get)
    if rounded[best] == rounded[alpha]:
        return f"{rounded[alpha]:.2f} cells (no other alpha does better)"
    return f"{rounded[alpha]:.2f} cells (the best, alpha {best:.3g}, by {rounded[best]:.2f})"
