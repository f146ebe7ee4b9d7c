"""How many keypoints go wrong in which way, one example of each, and sentences that say it."""

from collections.abc import Mapping, Sequence
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


def say_examples(examples: Sequence[Mistake], names: Sequence[str]) -> str:
    """How far off the examples are, from the nearest to the furthest, by their keypoints' names."""
    if not examples:
        return "In this run nobody was found, so there is no example."
    told = [
        f"{one.kind} {one.error_cells:.1f} ({names[one.keypoint].replace('_', ' ')})"
        for one in sorted(examples, key=lambda one: one.error_cells)
    ]
    without = [kind for kind in LABELS if kind not in {one.kind for one in examples}]
    none = f"; of {' and '.join(without)} there is none" if without else ""
    return f"In this run these keypoints are off by, in cells: {', '.join(told)}{none}."


def title_kinds(before: Shares, after: Shares) -> str:
    """The finding of `say_change` in a few words."""
    moved = _moved(before, after)
    most = max(LABELS, key=lambda kind: abs(moved[kind]))
    if not moved[most]:
        return "from heatmaps to regression no kind changed by a tenth of a point"
    return f"from heatmaps to regression {most} changed most, {moved[most]:+.1f} points"


def _moved(before: Shares, after: Shares) -> dict[str, float]:
    """By how many points each kind changed, of shares as they are printed."""
    return {kind: round(round(after[kind], 1) - round(before[kind], 1), 1) for kind in LABELS}


def title_keypoints(found: Diagnosis, names: Sequence[str]) -> str:
    """Which keypoint is good most and least often, of those that are labelled."""
    counts = found.counts()
    total = sum(counts.values())
    shares = {names[k].replace("_", " "): 100 * counts["good"][k] / total[k] for k in np.flatnonzero(total)}
    if not shares:
        return "nobody was found"
    most, least = (choose(shares, key=shares.get) for choose in (max, min))
    return f"good most often: {most}, {shares[most]:.0f}%; least often: {least}, {shares[least]:.0f}%"


def say_change(before: Shares, after: Shares) -> str:
    """What became of each kind from the heatmap model to the regression model."""
    first, then = (round(shares["jitter"], 1) for shares in (before, after))
    moved = _moved(before, after)
    jitter = "fell" if moved["jitter"] < 0 else "rose" if moved["jitter"] > 0 else "stayed"
    most = max(LABELS, key=lambda kind: abs(moved[kind]))
    largest = f"the largest change is that of {most}, {moved[most]:+.1f} points" if moved[most] else ""
    return (
        f"In this run jitter, the kind that a finer decoder could mend, {jitter} from the heatmap to the "
        f"regression model, {first:.1f} -> {then:.1f}%; "
        f"{largest or 'no kind changed by a tenth of a point'}."
    )


def median_errors(errors: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Network -> median of its `Diagnosis.localisation_errors`; NaN where it found nothing."""
    return {name: float(np.median(one)) if len(one) else float("nan") for name, one in errors.items()}


def title_precision(errors: Mapping[str, np.ndarray]) -> str:
    """The finding of `say_precision` in a few words."""
    known = _known_medians(errors)
    least = f": half within {min(known.values()):.2f} cells" if known else ""
    return f"{_most_precise(known)}{least}"


def _known_medians(errors: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Those of the networks that found anybody, as they are printed."""
    medians = {name: round(value, 2) for name, value in median_errors(errors).items()}
    return {name: value for name, value in medians.items() if not np.isnan(value)}


def _most_precise(known: Mapping[str, float]) -> str:
    best = [name for name, value in known.items() if value == min(known.values())]
    if not best:
        return "no network found anybody"
    return f"the most precise is {best[0]}" if len(best) == 1 else f"{' and '.join(best)} are level"


def say_precision(errors: Mapping[str, np.ndarray]) -> str:
    """Which network is the most precise where it is right, in heatmap cells."""
    known = _known_medians(errors)
    if not known:
        return f"In this run {_most_precise(known)}, so none has an error to speak of."
    halves = ", ".join(f"{name} {value:.2f}" for name, value in known.items())
    return (
        f"In this run half of these keypoints are nearer to their labels than (cells): {halves}; "
        f"{_most_precise(known)}."
    )
