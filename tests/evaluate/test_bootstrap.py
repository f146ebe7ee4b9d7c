"""Bootstrap intervals: AP of the whole set is the official one, pairs are paired, verdicts follow."""

import numpy as np
import pytest
from realdata import perfect_predictions

from hrnetpp_lib.data.layout import load_coco, prepare_data
from hrnetpp_lib.evaluate.infer import Predictions
from hrnetpp_lib.evaluate.metrics import coco_ap
from hrnetpp_lib.evaluate.score import Claim, Draws, coco_results, paired_bootstrap
from hrnetpp_lib.recipe import SMOKE, replace


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Ground truth and the results of a good, a worse and a silent method."""
    profile = replace(SMOKE, synthetic_persons=(10, 12, 30), boxes=None)
    data = load_coco(profile, prepare_data(profile, tmp_path_factory.mktemp("data")))
    labels = perfect_predictions(data.val)
    rng = np.random.default_rng(0)
    results = {"silent": []}
    for name, px in (("good", 2.0), ("worse", 4.0)):
        noisy = labels.keypoints + rng.normal(0, px, labels.keypoints.shape)
        results[name] = coco_results(Predictions(noisy, labels.scores), data)
    return data.val_json, results


def test_the_whole_set_scores_as_usual_and_draws_scatter_about_it(scored):
    truth, results = scored
    draws = paired_bootstrap(truth, results, draws=40, seed=0)
    for name in ("good", "worse"):
        assert draws.whole[name] == pytest.approx(coco_ap(truth, results[name])["AP"], abs=1e-12)
        assert draws.drawn[name].shape == (40,) and draws.drawn[name].std() > 0.005
        assert abs(draws.drawn[name].mean() - draws.whole[name]) < 0.1
    assert draws.whole["silent"] == 0 and not draws.drawn["silent"].any()


def test_draws_are_the_same_images_for_all_methods_and_repeatable(scored):
    truth, results = scored
    first = paired_bootstrap(truth, {"a": results["good"], "b": results["good"]}, draws=5)
    assert np.array_equal(first.drawn["a"], first.drawn["b"])
    again = paired_bootstrap(truth, {"a": results["good"]}, draws=5)
    other = paired_bootstrap(truth, {"a": results["good"]}, draws=5, seed=1)
    assert np.array_equal(first.drawn["a"], again.drawn["a"])
    assert not np.array_equal(first.drawn["a"], other.drawn["a"])


def test_comparison_by_hand():
    draws = Draws({"x": 0.5, "y": 0.48}, {"x": np.full(50, 0.52), "y": np.linspace(0.45, 0.5, 50)})
    claim = draws.compare("x", "y", {"x": (76.7, 1), "y": (76.5, 1)})
    assert claim.paper == pytest.approx(0.2) and claim.ours == pytest.approx(2.0)
    assert (claim.low, claim.high) == (pytest.approx(2.125, abs=0.01), pytest.approx(6.875, abs=0.01))
    assert str(claim).startswith("x - y: report +0.2, ours +2.0 [+2.1, +6.9]")
    assert draws.interval("x") == (0.52, 0.52)
    assert draws.interval("y") == (pytest.approx(0.45125), pytest.approx(0.49875))
    assert draws.difference("y", "x") == pytest.approx((-0.02, -0.06875, -0.02125))


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.1, 2, "above zero on this val set"),
        (-2, -0.1, "below zero on this val set"),
        (-1, 1, "not decided by this val set"),
    ],
)
def test_verdicts(low, high, verdict):
    assert Claim("a", "b", 0.2, 0.5, low, high).verdict == verdict
