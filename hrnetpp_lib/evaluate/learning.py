"""What a training on heatmaps came to, beside another: sentences made from its own numbers, and hills."""

from collections.abc import Sequence

import numpy as np

from hrnetpp_lib.data.layout import StageData
from hrnetpp_lib.data.overlap import labelled_truth, persons_of_boxes
from hrnetpp_lib.evaluate.hills import two_highest
from hrnetpp_lib.evaluate.infer import Predictions
from hrnetpp_lib.evaluate.metrics import oks
from hrnetpp_lib.evaluate.table import PAPER_TABLE_1, in_percent

# Key of an epoch -> what to call it.
_LOSSES = {"loss": "training loss", "val_loss": "loss on val, where nothing is augmented,"}
_FLAT = 0.01  # of a loss: it has to fall by more to count as improved
_HIGH = 0.5  # of the highest hill: from there on a second one counts
_STRIDE = 4  # input px per cell
_RIGHT_CELLS = 2.0  # so near to the truth a peak is right
# Epochs of `train.journal`; two trainings go by their names, the plain one first.
Epochs = Sequence[dict]
Pair = dict[str, Epochs]


def second_hill(heatmap: np.ndarray) -> float:
    """Height of the second hill of a (H, W) map in shares of the first; 0 without one."""
    (first, second), _ = two_highest(heatmap)
    return second / first if first > 0 else 0.0


def spread_cells(heatmap: np.ndarray) -> int:
    """How many cells of a map are at least half as high as its peak: wide is undecided."""
    return int((heatmap >= heatmap.max() / 2).sum()) if heatmap.max() > 0 else heatmap.size


def say_losses(pair: Pair) -> str:
    """How the two trainings ended: by training loss and, where it was measured, by the loss on val."""
    first, second = pair
    said = [f"{_LOSSES[key]} of {_beside(_end(pair, key), first)}" for key in _measured(*_last(pair))]
    return f"In this run {second} ends at a {', and at a '.join(said)}."


def title_losses(pair: Pair) -> str:
    """Which of the two ends with the lower loss, on val where that was measured, for a figure."""
    key = _measured(*_last(pair))[-1]
    plain, ours = _end(pair, key)
    lower = "lower" if ours < plain else "higher"
    return f"{list(pair)[1]}'s {_LOSSES[key].split(',')[0]}:\n" + (
        f"{_percent(ours, plain)} {lower} at the end" if ours != plain else "the same at the end"
    )


def say_metric(pair: Pair) -> str:
    """Who ends ahead in the metric of val, and by how much."""
    (first, plain), (second, ours) = ((name, _scored(epochs)[-1]) for name, epochs in pair.items())
    values = [in_percent(end["value"]) for end in (plain, ours)]
    return (
        f"In this run {second} ends at {ours['metric']} {values[1]:.1f}, {first} at {values[0]:.1f}, on "
        f"{ours['boxes']}: {_ahead((first, second), values)}."
    )


def title_metric(pair: Pair) -> str:
    """The same for a figure."""
    return _ahead(tuple(pair), [in_percent(_scored(epochs)[-1]["value"]) for epochs in pair.values()])


def title_end(epochs: Epochs) -> str:
    """Where one training ends in the metric of val, for a figure."""
    return f"it ends at {in_percent(_scored(epochs)[-1]['value']):.1f}"


def say_end(name: str, epochs: Epochs) -> str:
    """Whether a training still improved between its last two evaluations: loss (by 1%) and metric on val."""
    scored = _scored(epochs)
    if len(scored) < 2:
        return f"Scored on val once: nobody can say whether {name} still improved."
    before, last = scored[-2:]
    key = _measured(before, last)[-1]
    (earlier, loss), (low, value) = (
        [f(epoch[what]) for epoch in (before, last)] for f, what in ((_rounded, key), (in_percent, "value"))
    )
    better = [
        what
        for what, holds in (("loss", loss < (1 - _FLAT) * earlier), (last["metric"], value > low))
        if holds
    ]
    only = f"only its {better[0]} still improved" if better else "neither improved any more"
    verdict = "both still improved" if len(better) == 2 else only
    return (
        f"From epoch {before['epoch']} to {last['epoch']} {name}'s {_LOSSES[key]} went {earlier:.3e} -> "
        f"{loss:.3e}, its {last['metric']} {low:.1f} -> {value:.1f}: {verdict}."
    )


def say_sharpening(snapshots: Sequence[dict], keypoint: int, name: str, sigma: float) -> str:
    """How a keypoint's maps changed from the first kept epoch to the last, over all people kept.

    Args:
        snapshots: Of `journal.read_snapshots`.
        keypoint: Its number.
        name: What to call it.
        sigma: Of the targets, in cells.
    """
    first, last = (kept["heatmaps"][:, keypoint].astype(np.float32) for kept in (snapshots[0], snapshots[-1]))
    peaks = [round(float(np.median(maps.max(axis=(1, 2)))), 2) for maps in (first, last)]
    widths = [round(float(np.median([spread_cells(one) for one in maps]))) for maps in (first, last)]
    double = [sum(second_hill(one) >= _HIGH for one in maps) for maps in (first, last)]
    radius = np.arange(-20, 21)
    target = int((radius[:, None] ** 2 + radius**2 <= 2 * np.log(2) * sigma**2).sum())
    start, end = snapshots[0]["epoch"], snapshots[-1]["epoch"]
    return (
        f"In this run, over {len(last)} people and from epoch {start} to {end}, the median peak of the "
        f"{name} {_way(*peaks, '.2f')} and the ground above half of it went {widths[0]} -> {widths[1]} "
        f"cells (a target's is {target}). A second hill at least half as high stood in {double[0]} of the "
        f"first maps and {double[1]} of the last."
    )


def choose_examples(snapshots: Sequence[dict], keypoint: int, truth: np.ndarray) -> dict[str, int]:
    """Two of N people, by their last map of a keypoint: the sharpest that is right, and the most divided.

    Right is a peak within two cells of the truth; where none is, the nearest counts. Sharp is a high peak;
    divided the map whose second hill is highest beside its first. Where no second hill is half as high, the
    other one is that of the lowest peak.

    Args:
        snapshots: Of `journal.read_snapshots`.
        keypoint: Its number.
        truth: (N, K, 3) true keypoints in px of the crops; the third is 0 where there is no label.

    Returns:
        'sharpest', and 'most divided' or 'lowest peak' -> which of the N.
    """
    maps, true = snapshots[-1]["heatmaps"][:, keypoint].astype(np.float32), truth[:, keypoint]
    away = np.where(true[:, 2] > 0, np.linalg.norm(_peaks(maps) - true[:, :2] / _STRIDE, axis=1), 1e9)
    right = away <= max(_RIGHT_CELLS, away.min())
    peaks = maps.max(axis=(1, 2))
    sharp = int(np.argmax(np.where(right, peaks, -np.inf)))
    divided = [second_hill(one) if i != sharp else -1.0 for i, one in enumerate(maps)]
    if max(divided) >= _HIGH:
        return {"sharpest": sharp, "most divided": int(np.argmax(divided))}
    others = [peak if i != sharp else np.inf for i, peak in enumerate(peaks)]
    return {"sharpest": sharp, "lowest peak": int(np.argmin(others))}


def _peaks(maps: np.ndarray) -> np.ndarray:
    """(N, 2) cells of the maxima of (N, H, W) maps, as (x, y)."""
    flat = maps.reshape(len(maps), -1).argmax(axis=1)
    return np.column_stack([flat % maps.shape[2], flat // maps.shape[2]])


def say_maps(maps: np.ndarray, truth: np.ndarray) -> str:
    """How many of a crop's (K, H, W) maps peak near the truth, (K, 3) in its px; third 0 without a label."""
    labelled = truth[:, 2] > 0
    away = np.linalg.norm(_peaks(maps) - truth[:, :2] / _STRIDE, axis=1)[labelled]
    near = int((away <= _RIGHT_CELLS).sum())
    return (
        f"In this crop the peaks of {near} of the {len(away)} labelled keypoints lie within two cells of "
        f"the truth; the median is {np.median(away):.1f} cells away."
    )


def oks_of_persons(
    found: dict[str, Predictions], data: StageData
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """OKS of several networks' poses of val's boxes, on each labelled person's most confident box.

    Returns:
        rows (n,) of val, one for each person that has a box, and name -> (n,) OKS in 0..1.
    """
    truth = labelled_truth(data)
    persons = persons_of_boxes(data.val, truth)
    order = np.argsort(-data.val.bbox_scores, kind="stable")
    chosen, first = np.unique(persons[order], return_index=True)
    rows = order[first[chosen >= 0]]
    true = truth.select(persons[rows])
    against = (
        true.keypoints.astype(np.float64),
        true.areas,
        true.skeleton.oks_sigmas,
        true.keypoints[:, :, 2] > 0,
    )
    return rows, {name: oks(poses.keypoints[rows], *against) for name, poses in found.items()}


def ranked(values: np.ndarray, number: int) -> np.ndarray:
    """(number,) indices of (n,) values from the highest to the lowest, at equal steps of rank."""
    return np.argsort(-values, kind="stable")[np.linspace(0, len(values) - 1, number).round().astype(int)]


def say_oks(similarity: dict[str, np.ndarray]) -> str:
    """How two networks' poses of the same N persons compare person by person, by their (N,) OKS in 0..1."""
    (first, plain), (second, ours) = similarity.items()
    better, worse = int((ours > plain).sum()), int((ours < plain).sum())
    middle = [in_percent(np.median(values)) for values in (plain, ours)]
    return (
        f"In this run, on {len(ours)} persons with a box, the median OKS is {middle[1]:.1f} for {second} "
        f"and {middle[0]:.1f} for {first}; {second} is nearer to the truth on {better} of them, {first} on "
        f"{worse}."
    )


def say_stage_2(metrics: dict[str, dict[str, float]], boxes: str) -> str:
    """The heatmap model's AP beside plain HRNet's, and beside the report's own step."""
    values = [in_percent(one["AP"]) for one in metrics.values()]
    theirs = PAPER_TABLE_1["HRNet++ (heatmap)"][0] - PAPER_TABLE_1["HRNet"][0]
    names = tuple(metrics)
    return (
        f"In this run, on {boxes}, {names[1]} scores AP {values[1]:.1f} and {names[0]} {values[0]:.1f}: "
        f"{_ahead(names, values)}. The report's step is {theirs:+.1f}, from another baseline, on COCO."
    )


def _scored(epochs: Epochs) -> list[dict]:
    return [epoch for epoch in epochs if "value" in epoch]


def _rounded(loss: float) -> float:
    """A loss as it is printed, so that what is said of two agrees with what is seen of them."""
    return float(f"{loss:.3e}")


def _last(pair: Pair) -> list[dict]:
    return [epochs[-1] for epochs in pair.values()]


def _measured(*epochs: dict) -> list[str]:
    """Which losses all of some epochs have."""
    return [key for key in _LOSSES if all(key in epoch for epoch in epochs)]


def _end(pair: Pair, key: str) -> tuple[float, float]:
    return tuple(_rounded(epoch[key]) for epoch in _last(pair))


def _percent(ours: float, plain: float) -> str:
    return f"{100 * abs(ours / plain - 1):.1f}%"


def _beside(losses: tuple[float, float], name: str) -> str:
    plain, ours = losses
    less = "less" if ours < plain else "more"
    return (
        f"{ours:.3e}, "
        + (f"{_percent(ours, plain)} {less} than" if ours != plain else "as")
        + f" {name}'s {plain:.3e}"
    )


def _ahead(names: tuple[str, str], values: Sequence[float]) -> str:
    lead = round(values[1] - values[0], 1)
    return f"{names[lead > 0]} is ahead by {abs(lead):.1f} points" if lead else "the two are level"


def _way(first: float, last: float, digits: str) -> str:
    way = "fell" if last < first else "rose" if last > first else "stayed"
    return f"{way}, {first:{digits}} -> {last:{digits}},"
