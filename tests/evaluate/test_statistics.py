"""The verdicts hold what they promise, on simulated studies whose truth is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hrnetpp_lib.evaluate import statistics
from hrnetpp_lib.evaluate.statistics import corrected_interval, holm, judge, pairs_needed, two_level_interval

STUDIES = 1000


def simulate(
    pairs: int, effect: float, seed: int, studies: int = STUDIES, skewed: bool = False
) -> np.ndarray:
    """(studies, pairs) differences of a known mean and a standard deviation of 2 points."""
    random = np.random.default_rng((seed, pairs))
    luck = random.gamma(4, 0.5, (studies, pairs)) - 2 if skewed else random.normal(0, 1, (studies, pairs))
    return effect + 2 * luck


@pytest.mark.parametrize("pairs", [4, 8])
@pytest.mark.parametrize("skewed", [False, True])
def test_the_interval_over_seeds_covers_the_effect_in_95_of_100_studies(pairs, skewed):
    low, high = statistics.paired_interval(simulate(pairs, 1.7, seed=1, skewed=skewed))
    assert low.shape == (STUDIES,) and 0.92 <= np.mean((low <= 1.7) & (high >= 1.7)) <= 0.98


@pytest.mark.parametrize("pairs", [4, 8])
@pytest.mark.parametrize("spread", [0.3, 6.0])
def test_the_interval_over_seeds_and_persons_covers_the_effect_in_95_of_100_studies(pairs, spread):
    # The persons' part of the variance, which is skewed, is next to nothing, or as large as the seeds'.
    random, persons, covered = np.random.default_rng(pairs), 50, 0
    for _ in range(STUDIES):
        of_seed, of_person = random.normal(0, 2, (pairs, 1)), spread * (random.gamma(4, 0.5, persons) - 2)
        differences = 0.6 + of_seed + of_person + random.normal(0, spread / 2, (pairs, persons))
        low, high = two_level_interval(differences, draws=400, seed=int(random.integers(2**31)))
        covered += low <= 0.6 <= high
    assert 0.92 <= covered / STUDIES <= 0.98


@pytest.mark.parametrize("pairs", [4, 8, 33])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_difference_at_the_bound_is_called_equal_in_at_most_5_of_100_studies(pairs, sign):
    p = statistics.p_equal(simulate(pairs, sign * statistics.BOUND, seed=2, studies=20_000))
    assert np.mean(p <= 0.05) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 20_000)


def test_of_no_difference_the_t_test_is_uniform_and_equal_is_found_with_enough_pairs():
    differences = simulate(60, 0.0, seed=3)
    assert stats.kstest(statistics.p_different(differences), "uniform").pvalue > 0.01
    assert np.mean(statistics.p_equal(differences) <= 0.05) > 0.9


def test_wrong_verdicts_are_rare_in_a_whole_family_of_claims():
    # Two claims are true, three of no difference, three at the bound, where "equal" would be wrong.
    effects, wrong = np.array([3.0, -2.5, 0, 0, 0, 1.0, -1.0, 1.0]), 0
    random = np.random.default_rng(4)
    for _ in range(STUDIES):
        words = [v.words for v in judge(effects[:, None] + random.normal(0, 1.2, (8, 10)))]
        wrong += any(word in ("larger", "smaller") for word in words[2:5])
        wrong += any(word == "equal within 1 AP" for word in words[5:]) or "smaller" in (words[0], words[5])
    assert wrong / STUDIES <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / STUDIES)


def test_tests_are_those_of_scipy():
    differences = np.random.default_rng(5).normal(0.4, 1, (3, 7))
    expected = stats.ttest_1samp(differences, 0, axis=1)
    assert statistics.p_different(differences) == pytest.approx(expected.pvalue)
    assert np.array(statistics.paired_interval(differences)) == pytest.approx(
        np.array(expected.confidence_interval(0.95))
    )
    lower = stats.ttest_1samp(differences, -1, axis=1, alternative="greater").pvalue
    upper = stats.ttest_1samp(differences, 1, axis=1, alternative="less").pvalue
    assert statistics.p_equal(differences) == pytest.approx(np.maximum(lower, upper))


def test_holm_by_hand():
    # Sorted .01 .02 .04: times 3, 2, 1 is .03 .04 .04.
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.04, 0.01, 0.02], at_most_true=2) == pytest.approx([0.04, 0.02, 0.04])
    assert holm([0.6, 0.9]).tolist() == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9), st.integers(1, 9))
def test_holm_keeps_the_order_and_never_lowers_a_p(p, true):
    adjusted = holm(p, min(true, len(p)))
    assert (adjusted >= p).all() and (adjusted <= 1).all()
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()


def test_the_pairs_that_a_difference_needs():
    # The method's rule of thumb, 1.96^2 2.9^2 / 1^2 = 32.3, with Student's t instead of 1.96: 35.
    assert pairs_needed(1.0, 2.9) == 35
    assert stats.t.ppf(0.975, 34) * 2.9 / np.sqrt(35) < 1 < stats.t.ppf(0.975, 33) * 2.9 / np.sqrt(34)
    assert pairs_needed(0.2, 2.9) == 38  # equality within a point is shown sooner than a fifth of a point
    assert pairs_needed(0.2, 2.9, bound=0) == 811
    assert pairs_needed(0.0, 3.0, bound=0) is None


def test_one_rule_words_the_verdicts():
    near, far = [0.1, -0.1, 0.05, -0.02, 0.0, 0.03], [3.0, 3.2, 2.9, 3.1]
    wide = [4.0, -3.0, 2.0, 0.5]
    larger, smaller, equal, open_, none = judge([far, [-d for d in far], near, wide, [0.3]])
    assert [larger.words, smaller.words, equal.words] == ["larger", "smaller", "equal within 1 AP"]
    assert (larger.pairs, larger.mean, larger.more_pairs) == (4, pytest.approx(3.05), 0)
    assert open_.low < 0 < open_.high and open_.more_pairs > 0
    assert open_.words == f"not decided; {open_.more_pairs} more pairs would"
    assert (none.pairs, none.mean, none.words) == (1, None, "not decided; no two pairs yet")
    assert judge([near], "points of OKS")[0].words == "equal within 1 points of OKS"


def test_so_many_more_pairs_do_decide():
    random = np.random.default_rng(6)
    differences = random.normal(0.9, 2, 6)
    (first,) = judge([differences])
    standard = np.resize([-1.0, 1.0], 2 * ((first.pairs + first.more_pairs + 1) // 2))
    later = first.mean + first.spread * standard / standard.std(ddof=1)
    assert judge([later])[0].words != first.words and first.words.startswith("not decided; ")


def test_differences_without_spread():
    same, none = judge([[2.0, 2.0, 2.0], [0.0, 0.0]])
    assert (same.words, none.words) == ("larger", "equal within 1 AP")


def test_a_shifted_bootstrap_is_moved_back():
    # An estimate that is 0.8 of its standard deviations too low, and whose draws are that lower again.
    random, covered, plain = np.random.default_rng(7), 0, 0
    for _ in range(STUDIES):
        estimate = 5 - 0.8 + random.normal()
        drawn = estimate - 0.8 + random.normal(0, 1, 1000)
        low, high = corrected_interval(estimate, drawn)
        covered += low <= 5 <= high
        plain += np.quantile(drawn, 0.025) <= 5 <= np.quantile(drawn, 0.975)
    assert plain / STUDIES < 0.75 and 0.92 <= covered / STUDIES <= 0.98
    symmetric = np.linspace(-1, 1, 2001)
    assert corrected_interval(0.0, symmetric) == pytest.approx((-0.95, 0.95), abs=0.002)
