"""How many keypoints go wrong in which way, one example of each, and sentences that say it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hrnetpp_lib.data.persons import PersonTable
from hrnetpp_lib.evaluate.diagnose import LABELS, Diagnosis, px_per_cell
from hrnetpp_lib.evaluate.metrics import ScoredPoses
from hrnetpp_lib.pose.geometry import bbox_to_center_scale

Shares = Mapping[str, float]  # kind of `diagnose.LABELS` -> percent


@dataclass(frozen=True, eq=False)
class Mistake:
    """A keypoint of one kind, and the person that it belongs to.

    Attributes:
        kind: Of `diagnose.LABELS`.
        image: The picture's file.
        frame_xywh: (4,) the person's padded box in image px.
        truth: (K, 3) labels in image px.
        pose: (K, 3) as (x, y, score) in image px.
        keypoint: Its row in both.
        error_cells: Distance from its label in heatmap cells.
    """

    kind: str
    image: Path
    frame_xywh: np.ndarray
    truth: np.ndarray
    pose: np.ndarray
    keypoint: int
    error_cells: float


def share_kinds(found: Diagnosis) -> dict[str, float]:
    """Kind -> percent of the labelled keypoints of matched people; 0 throughout where nobody is matched."""
    counts = {kind: int(number.sum()) for kind, number in found.counts().items()}
    total = max(sum(counts.values()), 1)
    return {kind: 100 * number / total for kind, number in counts.items()}


def in_markdown(found: Mapping[str, Diagnosis]) -> str:
    """The shares of each network as a table in percent, with the number of keypoints."""
    lines = [f"| | {' | '.join(LABELS)} | keypoints |", "|---|" + "---|" * (len(LABELS) + 1)]
    for name, one in found.items():
        cells = [f"{share:.1f}" for share in share_kinds(one).values()]
        lines.append(f"| {name} | {' | '.join(cells)} | {(one.labels >= 0).sum():,} |")
    return "\n".join(lines)


def pick_examples(
    found: Diagnosis, truth: PersonTable, poses: ScoredPoses, input_hw: tuple[int, int]
) -> list[Mistake]:
    """Of each kind that occurs the keypoint with the median error in heatmap cells; of equals the first.

    Args:
        found: `diagnose` of the poses.
        truth: The true persons.
        poses: What was diagnosed.
        input_hw: The network's input, to whose shape boxes are extended.
    """
    cells, chosen = px_per_cell(truth.bboxes_xywh, input_hw), []
    errors = found.error_px / cells[found.truth_index][:, None]
    for label, kind in enumerate(LABELS):
        pairs, keypoints = np.nonzero(found.labels == label)
        if not len(pairs):
            continue
        middle = np.argsort(errors[pairs, keypoints], kind="stable")[(len(pairs) - 1) // 2]
        pair, keypoint = pairs[middle], int(keypoints[middle])
        person, row = found.truth_index[pair], found.predicted_index[pair]
        center, size = bbox_to_center_scale(truth.bboxes_xywh[person], input_hw)
        pose = np.column_stack([poses.keypoints[row], poses.keypoint_scores[row]])
        place = truth.image_path(person), np.concatenate([center - size / 2, size])
        error = float(errors[pair, keypoint])
        chosen.append(Mistake(kind, *place, truth.keypoints[person], pose, keypoint, error))
    return chosen


def say_kinds(shares: Shares, name: str) -> str:
    """How much of one network is good, and what the rest is, most frequent first."""
    wrong = sorted((kind for kind in LABELS if kind != "good"), key=lambda kind: -round(shares[kind], 1))
    rest = ", ".join(f"{kind} {shares[kind]:.1f}%" for kind in wrong)
    return f"In this run {shares['good']:.1f}% of the {name} model's keypoints are good; the others: {rest}."


def say_change(before: Shares, after: Shares) -> str:
    """What became of each kind from the heatmap model to the regression model."""
    first, then = ({kind: round(value, 1) for kind, value in shares.items()} for shares in (before, after))
    moved = {kind: round(then[kind] - first[kind], 1) for kind in LABELS}
    jitter = "fell" if moved["jitter"] < 0 else "rose" if moved["jitter"] > 0 else "stayed"
    most = max(LABELS, key=lambda kind: abs(moved[kind]))
    largest = f"the largest change is that of {most}, {moved[most]:+.1f} points" if moved[most] else ""
    return (
        f"In this run jitter, the kind that a finer decoder could mend, {jitter} from the heatmap to the "
        f"regression model, {first['jitter']:.1f} -> {then['jitter']:.1f}%; "
        f"{largest or 'no kind changed by a tenth of a point'}."
    )


def median_errors(errors: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Network -> median of its `Diagnosis.localisation_errors`; NaN where it found nothing."""
    return {name: float(np.median(one)) if len(one) else float("nan") for name, one in errors.items()}


def say_precision(errors: Mapping[str, np.ndarray]) -> str:
    """Which network is the most precise where it is right, in heatmap cells."""
    medians = {name: round(value, 2) for name, value in median_errors(errors).items()}
    known = {name: value for name, value in medians.items() if not np.isnan(value)}
    if not known:
        return "In this run no network found anybody, so none has an error to speak of."
    best = [name for name, value in known.items() if value == min(known.values())]
    verdict = f"the most precise is {best[0]}" if len(best) == 1 else f"{' and '.join(best)} are level"
    halves = ", ".join(f"{name} {value:.2f}" for name, value in known.items())
    return (
        f"In this run half of these keypoints are nearer to their labels than (cells): {halves}; {verdict}."
    )
