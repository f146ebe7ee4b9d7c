"""From poses to the datasets' figures, on labels given back and spoilt step by step."""

from dataclasses import replace

import numpy as np
import pytest
from realdata import check_real_data, perfect_predictions

from hrnetpp_lib.data.layout import load_ai_challenger, load_coco, prepare_data
from hrnetpp_lib.evaluate.infer import Predictions
from hrnetpp_lib.evaluate.metrics import coco_ap
from hrnetpp_lib.evaluate.score import coco_results, resample, score
from hrnetpp_lib.recipe import SMOKE

PROFILE = replace(SMOKE, synthetic_persons=(10, 24, 14), holdout_persons=8, boxes=None)


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    return load_coco(PROFILE, prepare_data(PROFILE, tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def challenger(tmp_path_factory):
    return load_ai_challenger(PROFILE, prepare_data(PROFILE, tmp_path_factory.mktemp("data")))


def shaken(predictions: Predictions, px: float) -> Predictions:
    noise = np.random.default_rng(0).normal(0, px, predictions.keypoints.shape)
    return Predictions(predictions.keypoints + noise, predictions.scores)


@pytest.mark.parametrize("name", ["coco", "challenger"])
def test_labels_score_one_and_noise_costs(name, request):
    data = request.getfixturevalue(name)
    labels = perfect_predictions(data.val)
    figures = [score(shaken(labels, px), data)["AP"] for px in (0.0, 3.0, 30.0)]
    assert figures[0] == pytest.approx(1.0) and figures[0] > figures[1] > figures[2]


def test_resampling_sees_what_scoring_sees(coco):
    labels = perfect_predictions(coco.val)
    methods = {"labels": labels, "noise": shaken(labels, 5.0)}
    draws = resample(methods, coco, draws=20)
    assert draws.whole == {m: pytest.approx(score(found, coco)["AP"]) for m, found in methods.items()}
    assert draws.drawn["noise"].shape == (20,) and draws.difference("labels", "noise")[1] > 0


def test_results_carry_area_rescoring_and_suppression(coco):
    labels = perfect_predictions(coco.val)
    n = len(coco.val)
    twice = replace(coco, val=coco.val.select(np.tile(np.arange(n), 2)))
    twice.val.bbox_scores[n:] = 0.5
    doubled = Predictions(np.tile(labels.keypoints, (2, 1, 1)), np.tile(labels.scores, (2, 1)))
    results = coco_results(doubled, twice)
    assert len(results) == n and all(result["score"] == 1.0 for result in results)
    assert coco_ap(coco.val_json, results)["AP"] == pytest.approx(1.0)


def test_keypoints_that_never_had_a_label_do_not_count_in_scores(coco):
    labels = perfect_predictions(coco.val)
    scores = labels.scores.copy()
    scores[:, :5] = 0.5
    with_face = coco_results(Predictions(labels.keypoints, scores), coco)
    faceless = replace(coco, train=coco.train.select(slice(None)))
    keypoints = faceless.train.keypoints.copy()
    keypoints[:, :5] = 0
    faceless = replace(faceless, train=replace(faceless.train, keypoints=keypoints))
    without_face = coco_results(Predictions(labels.keypoints, scores), faceless)
    assert {round(r["score"], 6) for r in with_face} == {round((5 * 0.5 + 12) / 17, 6)}
    assert {r["score"] for r in without_face} == {1.0}


def test_real_sets_score_their_own_labels_one(real_data):
    checks = {check["set"]: check for check in check_real_data(real_data)}
    assert checks["coco_mini"]["persons"] == 86 and checks["coco_mini"]["COCO AP of the labels"] == 1.0
    assert checks["coco_test"]["persons"] == 12 and checks["coco_test"]["COCO AP of the labels"] == 1.0
    assert (
        checks["aic_sample"]["persons"] == 9 and checks["aic_sample"]["AI Challenger AP of the labels"] == 1.0
    )
    assert checks["coco_test, a real detector"]["boxes"] == 118


def test_an_empty_folder_has_nothing_to_check(tmp_path):
    assert check_real_data(tmp_path) == []
