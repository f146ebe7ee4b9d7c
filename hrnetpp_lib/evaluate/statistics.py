"""What differences between trainings say: over seeds, not over images, and one rule that words the verdict.

Two trainings that differ in one thing and share a seed make a pair; all else about them is luck, and a claim
is judged by the spread of its pairs. Differences are in points (percent) of a metric.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri, stdtr, stdtrit

LEVEL = 0.05  # of every test, for all claims together
# CHOICE: a difference of less than a point is none; fixed before anything was trained.
BOUND = 1.0
_MOST_PAIRS = 10_000


def _spread(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Mean (...) of (..., n) differences, its standard error, and the degrees of freedom."""
    differences = np.asarray(differences, np.float64)
    pairs = differences.shape[-1]
    return differences.mean(axis=-1), differences.std(axis=-1, ddof=1) / np.sqrt(pairs), pairs - 1


def paired_interval(differences: np.ndarray, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """Student's interval of the mean of n >= 2 differences (..., n): low (...) and high (...)."""
    mean, error, freedom = _spread(differences)
    half = stdtrit(freedom, 1 - level / 2) * error
    return mean - half, mean + half


def p_different(differences: np.ndarray) -> np.ndarray:
    """(...) two-sided p of the paired t-test that the mean of (..., n >= 2) differences is zero."""
    mean, error, freedom = _spread(differences)
    return 2 * stdtr(freedom, -_ratio(abs(mean), error))


def p_equal(differences: np.ndarray, bound: float = BOUND) -> np.ndarray:
    """(...) p of two one-sided t-tests that the mean of (..., n >= 2) differences is `bound` or more from 0.

    Reference: Schuirmann, J. Pharmacokinet. Biopharm. 1987 (TOST).
    """
    mean, error, freedom = _spread(differences)
    return stdtr(freedom, -_ratio(bound - abs(mean), error))


def _ratio(distance: np.ndarray, error: np.ndarray) -> np.ndarray:
    """t; of differences without spread, infinite, or 0 where there is no distance either."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(np.divide(distance, error), nan=0.0, posinf=np.inf, neginf=-np.inf)


def two_level_interval(
    differences: np.ndarray, draws: int = 2000, seed: int = 0, level: float = LEVEL
) -> tuple[float, float]:
    """Interval of the mean of (n, P) differences, n >= 2 seeds by P persons, for other seeds and persons.

    Persons are drawn with replacement, the same for all seeds. Seeds are too few for that (four have 35
    outcomes, which would cover 80%): their mean moves by Student's t of their spread, through all of whose
    quantiles the draws go in random order, for its tails are too heavy to be met by chance.

    Reference: Efron and Tibshirani, An Introduction to the Bootstrap, chapters 8 and 14.
    """
    pairs, persons = differences.shape
    random = np.random.default_rng(seed)
    of_seed, of_person = differences.mean(axis=1), differences.mean(axis=0)
    drawn = of_person[random.integers(0, persons, (draws, persons), np.int32)].mean(axis=1)
    quantiles = stdtrit(pairs - 1, (random.permutation(draws) + 0.5) / draws)
    moved = quantiles * of_seed.std(ddof=1) / np.sqrt(pairs)
    return tuple(np.quantile(drawn + moved, (level / 2, 1 - level / 2)).tolist())


def corrected_interval(estimate: float, drawn: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """Percentiles of a bootstrap's draws, moved by twice as much as their median is off the estimate.

    Plain percentiles of AP or of a median lie on one side of it. Reference: Efron, JASA 1987 (BC).
    """
    below = (np.mean(drawn < estimate) + np.mean(drawn <= estimate)) / 2
    off = ndtri(np.clip(below, 1 / (2 * len(drawn)), 1 - 1 / (2 * len(drawn))))
    low, high = ndtr(2 * off + ndtri([level / 2, 1 - level / 2]))
    return tuple(np.quantile(drawn, (low, high)).tolist())


def pairs_needed(difference: float, spread: float, level: float = LEVEL, bound: float = BOUND) -> int | None:
    """How many pairs decide, if their mean difference and its standard deviation stay what they are.

    So many that the interval leaves zero out, or lies within the bound: what comes first. None if 10,000 do
    not.
    """

    def decided(pairs: int) -> bool:
        error = spread / np.sqrt(pairs)
        different = stdtrit(pairs - 1, 1 - level / 2) * error < abs(difference)
        return different or stdtrit(pairs - 1, 1 - level) * error < bound - abs(difference)

    pairs = bisect_left(range(_MOST_PAIRS + 1), True, lo=2, key=decided)
    return pairs if pairs <= _MOST_PAIRS else None


def holm(p: Sequence[float], at_most_true: int | None = None) -> np.ndarray:
    """Adjusted p of several tests: where it is <= level, the chance of any false rejection is <= level.

    `at_most_true`: how many of the hypotheses can be true together, if not all.

    Reference: Holm, Scand. J. Statist. 1979; Shaffer, JASA 1986.
    """
    p = np.asarray(p, np.float64)
    order = p.argsort(kind="stable")
    factors = np.minimum(np.arange(len(p), 0, -1), at_most_true or len(p))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * p[order]), 1)
    return adjusted


@dataclass(frozen=True)
class Verdict:
    """What n pairs say of a claim; points.

    Attributes:
        pairs: n.
        mean, low, high: The mean difference and its 95% interval over seeds; None of fewer than two pairs.
        spread: Standard deviation of the differences.
        p_different, p_equal: Of the two tests, corrected for all claims judged together.
        more_pairs: That would decide; 0 where it is decided, None where that cannot be said.
        words: The verdict.
    """

    pairs: int
    mean: float | None
    low: float | None
    high: float | None
    spread: float | None
    p_different: float
    p_equal: float
    more_pairs: int | None
    words: str


@dataclass(frozen=True)
class Judged:
    """A claim, what its pairs of trainings differ by, and what that is worth; points where shares differ.

    Attributes:
        experiment, claim: Where it was tried, and what, as better - worse if it is right.
        report: The report's difference in AP, if it has one.
        seeds: Of the pairs.
        differences: Metric -> one a pair.
        intervals: Metric -> 95% of their mean over seeds.
        two_level: The same of OKS over seeds and persons; None of fewer than two pairs.
        verdicts: On OKS and on AP.
    """

    experiment: str
    claim: str
    report: float | None
    seeds: list[int]
    differences: dict[str, list[float]]
    intervals: dict[str, tuple[float, float]]
    two_level: tuple[float, float] | None
    verdicts: dict[str, Verdict]


def judge(claims: Sequence[Sequence[float]], unit: str = "AP", bound: float = BOUND) -> list[Verdict]:
    """Verdicts on several claims, each by its differences in points, one a pair.

    The rule: "larger" or "smaller" if the paired t-test says so, "equal within 1 AP" if two one-sided tests
    do, at 5% for all claims together (Holm; a difference cannot be both zero and beyond the bound, so no
    more hypotheses than claims are true). Else so many more pairs would decide, at the strictest level.
    """
    claims = [np.asarray(claim, np.float64) for claim in claims]
    tested = [(p_different(c), p_equal(c, bound)) if len(c) > 1 else (1.0, 1.0) for c in claims]
    adjusted = holm(np.array(tested).ravel(), len(claims)).reshape(-1, 2)
    return [
        _word(c, *p.tolist(), LEVEL / max(len(claims), 1), unit, bound)
        for c, p in zip(claims, adjusted, strict=True)
    ]


def _word(differences, different: float, equal: float, level: float, unit: str, bound: float) -> Verdict:
    pairs = len(differences)
    if pairs < 2:
        return Verdict(pairs, *[None] * 4, 1.0, 1.0, None, "not decided; no two pairs yet")
    mean, spread = float(differences.mean()), float(differences.std(ddof=1))
    low, high = map(float, paired_interval(differences))
    more = 0
    if different <= LEVEL:
        words = "larger" if mean > 0 else "smaller"
    elif equal <= LEVEL:
        words = f"equal within {bound:g} {unit}"
    else:
        needed = pairs_needed(mean, spread, level, bound)
        more = max(needed - pairs, 1) if needed else None
        words = f"not decided; {more or f'more than {_MOST_PAIRS}'} more pair{'s' * (more != 1)} would"
    return Verdict(pairs, mean, low, high, spread, different, equal, more, words)
