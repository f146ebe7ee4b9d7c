"""Training or decoding: what stage 3 does to AP and to peaks, and sentences that say it."""

from dataclasses import replace

import numpy as np
from torch import nn

from hrnetpp_lib.data.layout import StageData
from hrnetpp_lib.evaluate.infer import predict_boxes
from hrnetpp_lib.evaluate.score import score
from hrnetpp_lib.evaluate.table import in_percent, points
from hrnetpp_lib.model.weights import ModelCard

_NETWORKS, (_QUARTER, _SOFT) = ("heatmap", "regression"), ("quarter_offset", "soft_argmax")
_COUNTS_FROM = 0.2  # the score from which on a keypoint counts in its person's; see metrics.rescore


def score_decoders(model: nn.Module, card: ModelCard, data: StageData) -> dict[str, float]:
    """Decoder -> AP, 0..1, of one network on val's boxes. Raises: HrnetppError as `score`."""
    cards = {decoder: replace(card, decoder=decoder) for decoder in (_QUARTER, _SOFT)}
    return {name: score(predict_boxes(model, one, data.val), data)["AP"] for name, one in cards.items()}


def say_decoders(aps: dict[str, dict[str, float]]) -> str:
    """What stage 3's training and its decoder did, of 'heatmap' and 'regression' -> decoder -> AP, 0..1."""
    # Differences of rounded numbers, so that they agree with those in the figure, and add up.
    before, after = ({name: in_percent(ap) for name, ap in aps[key].items()} for key in _NETWORKS)
    return (
        f"In this run stage 3 moved AP by {points(after[_SOFT] - before[_QUARTER])}: its training by "
        f"{points(after[_QUARTER] - before[_QUARTER])} (both networks read by the quarter offset), and then "
        f"soft-argmax by {points(after[_SOFT] - after[_QUARTER])}. The heatmap model itself, read by "
        f"soft-argmax, moves by {points(before[_SOFT] - before[_QUARTER])}."
    )


def say_peaks(before: np.ndarray, after: np.ndarray) -> str:
    """How the heights of heatmaps, which are the keypoints' scores, went from one network to the other."""
    first, then = (round(float(np.median(scores)), 2) for scores in (before, after))
    weak = [100 * np.mean(scores < _COUNTS_FROM) for scores in (before, after)]
    way = "fell" if then < first else "rose" if then > first else "stayed"
    return (
        f"In this run the median peak {way}, {first:.2f} -> {then:.2f}; below {_COUNTS_FROM}, where a "
        f"keypoint has no say in its person's score, were {weak[0]:.0f}% of all, and now are {weak[1]:.0f}%."
    )


def say_scores(own: float, swapped: float) -> str:
    """What the regression model's scores are worth: its AP, 0..1, by its own and by the heatmap model's."""
    own, swapped = map(in_percent, (own, swapped))
    verdict = "as well as" if own == swapped else "better than" if own > swapped else "worse than"
    return (
        f"In this run the regression model's own scores rank people {verdict} the heatmap model's do on the "
        f"same poses: AP {own:.1f} against {swapped:.1f}."
    )
