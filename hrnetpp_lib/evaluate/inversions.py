"""How often a network takes left for right, which some trainings unlearn and others of their kind do not."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hrnetpp_lib.pose.keypoints import Skeleton

# CHOICE: many are more than 25%, half of what chance would give; chosen after the first trainings were seen.
_MANY = 25.0
NETWORKS = {  # in words
    "hrnet": "HRNet",
    "heatmap": "HRNet++",
    "reported": "HRNet++ at the report's rate",
    "grown_hrnet": "HRNet from a larger start",
    "grown": "HRNet++ from a larger start",
    "regression": "HRNet++ after stage 3",
    "control": "HRNet++ after stage 3's control",
}


@dataclass(frozen=True)
class Inversions:
    """A training, and how often its network takes left for right.

    Attributes:
        network: Of `NETWORKS`.
        seed: Of the training.
        ap: In percent.
        of_keypoints: (K,) percent of each labelled keypoint, see `measure.Measure`.
    """

    network: str
    seed: int
    ap: float
    of_keypoints: tuple[float, ...]

    def share(self, pair: tuple[int, int]) -> float:
        """Percent of a pair's keypoints."""
        return float(np.mean([self.of_keypoints[k] for k in pair]))


def widest_pair(trainings: Sequence[Inversions], skeleton: Skeleton) -> tuple[int, int]:
    """The left and right keypoint whose inversions differ most between trainings; the first without any."""
    if not trainings:
        return skeleton.flip_pairs[0]

    def apart(pair: tuple[int, int]) -> tuple[float, float]:
        shares = [one.share(pair) for one in trainings]
        return np.ptp(shares), max(shares)

    return max(skeleton.flip_pairs, key=apart)


def plural(pair: tuple[int, int], skeleton: Skeleton) -> str:
    """What to call both keypoints of a pair."""
    return skeleton.names[pair[0]].partition("_")[2] + "s"


def title_inversions(trainings: Sequence[Inversions], skeleton: Skeleton) -> str:
    """Between what shares of that pair trainings lie, in a few words; none without trainings."""
    if not trainings:
        return ""
    pair = widest_pair(trainings, skeleton)
    shares = [one.share(pair) for one in trainings]
    return (
        f"trainings differ most in {plural(pair, skeleton)}: {min(shares):.0f} to {max(shares):.0f}% inverted"
    )


def say_inversions(trainings: Sequence[Inversions], skeleton: Skeleton) -> str:
    """How many trainings of each network invert that pair often, and what AP these and the others have."""
    if not trainings:
        return "No training was measured for this yet."
    pair = widest_pair(trainings, skeleton)
    often, rarely = (
        [one for one in trainings if (one.share(pair) > _MANY) == many] for many in (True, False)
    )
    counts = [
        f"{sum(one.network == name for one in often)} of {len(of)} of {words}"
        for name, words in NETWORKS.items()
        if (of := [one for one in trainings if one.network == name])
    ]
    ranges = [
        f"{words} at {_range([one.ap for one in group])}"
        for words, group in (("these end", often), ("the others", rarely))
        if group
    ]
    return (
        f"Trainings that take more than {_MANY:g}% of the {plural(pair, skeleton)} for those of the other "
        f"side: {', '.join(counts)}. In AP {', '.join(ranges)}.{_say_gains(trainings, often)}"
    )


def _say_gains(trainings: Sequence[Inversions], often: Sequence[Inversions]) -> str:
    """What stage 3 and its control add to a network that inverts the pair often, and to another."""
    after, control = (
        {one.seed: one.ap for one in trainings if one.network == name} for name in ("regression", "control")
    )
    before = [one for one in trainings if one.network == "heatmap" and one.seed in {*after} & {*control}]
    said = []
    for does in ("is", "is not"):
        of = [one for one in before if (one in often) == (does == "is")]
        if of:
            gain, as_long = ([end[one.seed] - one.ap for one in of] for end in (after, control))
            ranges = f"{_range(gain, '+.1f')}, its control by {_range(as_long, '+.1f')},"
            said.append(f"by {ranges} where the start {does} among these ({len(of)} of {len(before)})")
    return f" Stage 3 moves AP {', and '.join(said)}." if said else ""


def _range(values: Sequence[float], form: str = ".1f") -> str:
    ends = sorted({format(value, form) for value in (min(values), max(values))}, key=float)
    return " to ".join(ends)
