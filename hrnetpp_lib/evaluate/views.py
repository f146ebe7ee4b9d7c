"""More views of a box, and two networks: what they do to AP, and sentences that say it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from pycocotools import mask
from torch import nn

from hrnetpp_lib.data.crops import BoxCrops, View
from hrnetpp_lib.data.layout import StageData
from hrnetpp_lib.evaluate.diagnose import px_per_cell
from hrnetpp_lib.evaluate.infer import TTA_VIEWS, Predictions, average, poses_of_crops, predict_boxes
from hrnetpp_lib.evaluate.score import score
from hrnetpp_lib.evaluate.table import METRICS, PAPER_TABLE_1, points
from hrnetpp_lib.model.weights import ModelCard
from hrnetpp_lib.pose.geometry import EXACT_SHIFT, OFFICIAL, transform_points

_PLAIN = TTA_VIEWS.index(View())
_SHIFTS = (replace(OFFICIAL, flip_shift=0.0), EXACT_SHIFT, OFFICIAL)
# The report's steps, each from the second row to the first, and what its Table 1 calls the rows.
STEPS = {
    "TTA, regression": ("regression + TTA", "regression"),
    "TTA, ensemble": ("ensemble + TTA", "ensemble"),
    "ensemble": ("ensemble", "regression"),
    "ensemble, with TTA": ("ensemble + TTA", "regression + TTA"),
}
_IN_REPORT = {"regression": "HRNet++ (regression)", "regression + TTA": "HRNet++ (regression) + TTA"}


def score_flips(model: nn.Module, card: ModelCard, data: StageData) -> dict[str, float]:
    """AP, 0..1, of one network on val's boxes: without the flip test, and with it at three flip shifts.

    Raises: HrnetppError as `score`.
    """
    aps = {"no flip test": score(predict_boxes(model, card, data.val, flip=False), data)["AP"]}
    for convention in _SHIFTS:
        found = predict_boxes(model, replace(card, coordinates=convention), data.val)
        aps[f"flip test, shift {convention.flip_shift:g}"] = score(found, data)["AP"]
    return aps


def say_flips(aps: Mapping[str, float]) -> str:
    """What the flip test and its shift did, of `score_flips`."""
    without, *flipped = (round(100 * ap, 1) for ap in aps.values())
    unmoved, exact, official = flipped
    return (
        f"In this run the flip test with the official shift of a whole cell moved AP by "
        f"{points(official - without)}; with the exact one, 0.75, it moves AP by {points(exact - without)}, "
        f"and with none by {points(unmoved - without)}."
    )


def title_flips(aps: Mapping[str, float]) -> str:
    """The finding of `say_flips` in a few words."""
    without, _, exact, official = (round(100 * ap, 1) for ap in aps.values())
    return (
        f"the flip test moves AP by {points(official - without)} with the official shift, by "
        f"{points(exact - without)} with the exact one"
    )


def largest_person(data: StageData) -> tuple[int, int]:
    """A row of val's boxes and one of the true persons: the rule for who is shown.

    The person with the most labelled keypoints, of equals the largest, in the box that overlaps theirs most.
    """
    truth, val = data.truth, data.val
    ids, seen = truth.image_ids[truth.image_index], val.image_ids[val.image_index]
    labelled = (truth.keypoints[:, :, 2] > 0).sum(axis=1) * np.isin(ids, seen)
    person = int(np.lexsort((truth.areas, labelled))[-1])
    boxes = np.flatnonzero(seen == ids[person])
    overlap = mask.iou(val.bboxes_xywh[boxes], truth.bboxes_xywh[[person]], np.zeros(1))
    return int(boxes[overlap[:, 0].argmax()]), person


@dataclass(frozen=True)
class ViewsOfBox:
    """A box seen V times, and as last what the mean of the V answers makes of the plain view.

    Attributes:
        crops: (V + 1, h, w, 3) uint8 RGB.
        poses: (V + 1, K, 3) as (x, y, score) in each crop's px.
        truth: (V + 1, K, 3) the labels in each crop's px.
        error_cells: (V + 1, K) distance from the label in heatmap cells; NaN where there is none, or where
            the keypoint was never trained.
        spread_cells: (K,) root mean square distance of the V answers from their mean, likewise.
    """

    crops: np.ndarray
    poses: np.ndarray
    truth: np.ndarray
    error_cells: np.ndarray
    spread_cells: np.ndarray


def look_at_box(model: nn.Module, card: ModelCard, data: StageData, box: int, person: int) -> ViewsOfBox:
    """One of val's boxes in the five views of TTA, beside the labels of a true person.

    Raises: HrnetppError if the image cannot be read.
    """
    crops, matrices = BoxCrops(data.val, card.input_hw, TTA_VIEWS, card.coordinates)[box]
    found = poses_of_crops(model, card, torch.from_numpy(crops), matrices)
    places = np.concatenate([found.keypoints, found.keypoints.mean(axis=0, keepdims=True)])
    scores = np.concatenate([found.scores, found.scores.mean(axis=0, keepdims=True)])
    shown = [*range(len(TTA_VIEWS)), _PLAIN]
    label = data.truth.keypoints[person].astype(np.float64)
    poses, truth = (
        np.dstack([[transform_points(xy[i], matrices[v]) for i, v in enumerate(shown)], third])
        for xy, third in (
            (places, scores),
            (np.stack([label[:, :2]] * len(shown)), np.stack([label[:, 2]] * len(shown))),
        )
    )
    known = np.where((label[:, 2] > 0) & data.trained_keypoints, 1.0, np.nan)
    known /= px_per_cell(data.val.bboxes_xywh[[box]], card.input_hw)
    errors = np.linalg.norm(places - label[:, :2], axis=2) * known
    away = np.linalg.norm(places[:-1] - places[-1], axis=2)
    return ViewsOfBox(crops[shown], poses, truth, errors, np.sqrt(np.square(away).mean(axis=0)) * known)


def say_views(views: ViewsOfBox, names: Sequence[str]) -> str:
    """How far five answers and their mean are from the label, and where they scatter most."""
    labelled = ~np.isnan(views.spread_cells)
    *single, mean = np.median(views.error_cells[:, labelled], axis=1).round(2).tolist()
    nearer, worst = sum(mean < one for one in single), int(np.nanargmax(views.spread_cells))
    return (
        f"In this run the five answers are off by {min(single):.2f} to {max(single):.2f} cells (median over "
        f"the labelled keypoints) and their mean by {mean:.2f}, which is nearer than "
        f"{ {0: 'none', len(single): 'each'}.get(nearer, nearer) } of the five. They scatter most at the "
        f"{names[worst].replace('_', ' ')}: {views.spread_cells[worst]:.2f} cells."
    )


def score_rows(found: Mapping[tuple[str, bool], Predictions], data: StageData) -> dict[str, dict[str, float]]:
    """Metrics, 0..1, of the heatmap model, the regression model and their ensemble, without and with TTA.

    Args:
        found: Poses of val's boxes by 'heatmap' or 'regression' and by whether TTA was used.
        data: What they are of.

    Raises: HrnetppError as `score`.
    """
    both = {("ensemble", tta): average([found["heatmap", tta], found["regression", tta]]) for tta in (0, 1)}
    rows = {(name, bool(tta)): poses for (name, tta), poses in (dict(found) | both).items()}
    return {name + " + TTA" * tta: score(poses, data) for (name, tta), poses in rows.items()}


def measure_steps(rows: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, tuple[float, float]]]:
    """Step of `STEPS` -> metric -> points here and in the report, of `score_rows`.

    Differences of rounded figures, so that they agree with a table of one digit. A metric that counts nobody
    here is left out.
    """
    report = {name: PAPER_TABLE_1[_IN_REPORT.get(name, name)] for pair in STEPS.values() for name in pair}
    return {
        step: {
            metric: (
                round(round(100 * rows[to][metric], 1) - round(100 * rows[start][metric], 1), 1),
                round(report[to][i] - report[start][i], 1),
            )
            for i, metric in enumerate(METRICS)
            if min(rows[to][metric], rows[start][metric]) >= 0
        }
        for step, (to, start) in STEPS.items()
    }


def say_tta(steps: Mapping[str, Mapping[str, tuple[float, float]]]) -> str:
    """What five views did here, and in the report, of `measure_steps`."""
    one, two = steps["TTA, regression"], steps["TTA, ensemble"]
    said = (
        f"In this run TTA moved the AP of the regression model by {_beside(one['AP'])} and that of the "
        f"ensemble by {_beside(two['AP'])}; their AP50 by {_beside(one['AP50'])} and {_beside(two['AP50'])}"
    )
    sizes = [metric for metric in ("APM", "APL") if metric in one]
    people = {"APM": "medium people", "APL": "large ones"}
    moved = (f"by {_beside(one[metric])} for {people[metric]}" for metric in sizes)
    return f"{said}. The regression model's AP moved {' and '.join(moved)}." if sizes else f"{said}."


def title_steps(steps: Mapping[str, Mapping[str, tuple[float, float]]]) -> str:
    """What TTA and the ensemble did to AP here, of `measure_steps`, in a few words."""
    tta, both, one, two = (points(steps[name]["AP"][0]) for name in STEPS)
    return f"AP here: TTA {tta} and {both}, the ensemble {one} and {two}"


def say_ensemble(steps: Mapping[str, Mapping[str, tuple[float, float]]]) -> str:
    """What the second network did to the regression model's AP, of `measure_steps`."""
    plain, tta = steps["ensemble"]["AP"], steps["ensemble, with TTA"]["AP"]
    return (
        f"In this run the heatmap model, averaged in, moved the regression model's AP by {_beside(plain)} "
        f"without TTA and by {_beside(tta)} with it."
    )


def _beside(pair: tuple[float, float]) -> str:
    return f"{points(pair[0])} (report {points(pair[1])})"
