"""From poses to the datasets' metrics, on labels given back and spoilt step by step, and their bootstrap."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hrnetpp_lib.data.annotations import read_ai_challenger, read_coco, read_coco_detections, read_coco_truth
from hrnetpp_lib.data.layout import Metric, StageData, load_ai_challenger, load_coco, prepare_data
from hrnetpp_lib.data.persons import PersonTable
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.evaluate.infer import Predictions
from hrnetpp_lib.evaluate.metrics import coco_ap
from hrnetpp_lib.evaluate.score import Draws, resample, score, scored_poses
from hrnetpp_lib.pose.keypoints import AIC14, COCO17
from hrnetpp_lib.recipe import SMOKE

PROFILE = replace(SMOKE, synthetic_persons=(10, 24, 30), holdout_persons=8, boxes=None)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return prepare_data(PROFILE, tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def coco(paths):
    return load_coco(PROFILE, paths)


def perfect(table: PersonTable, px: float = 0.0, input_hw: tuple[int, int] = (128, 96)) -> Predictions:
    """The labels themselves, shaken by so many px; unlabelled keypoints go to the middle of the box."""
    middle = table.bboxes_xywh[:, :2] + table.bboxes_xywh[:, 2:] / 2
    labelled = table.keypoints[:, :, 2:] > 0
    keypoints = np.where(labelled, table.keypoints[:, :, :2].astype(np.float64), middle[:, None])
    noise = np.random.default_rng(0).normal(0, px, keypoints.shape)
    return Predictions(keypoints + noise, np.ones(keypoints.shape[:2]), input_hw)


@pytest.mark.parametrize("load", [load_coco, load_ai_challenger])
def test_labels_score_one_and_noise_costs(load, paths):
    data = load(PROFILE, paths)
    aps = [score(perfect(data.val, px), data)["AP"] for px in (0.0, 3.0, 30.0)]
    assert aps[0] == pytest.approx(1.0) and aps[0] > aps[1] > aps[2]
    with pytest.raises(HrnetppError, match="for boxes that need"):
        score(perfect(data.val.select(slice(1, None))), data)


def test_arrays_score_what_the_files_score(coco, paths):
    predictions = perfect(coco.val, 4.0)
    found = scored_poses(predictions, coco)
    triples = np.dstack([found.keypoints, found.keypoint_scores]).reshape(len(found.scores), -1)
    rows = zip(found.image_ids, triples, found.scores, strict=True)
    records = [{"image_id": i, "category_id": 1, "keypoints": pose, "score": s} for i, pose, s in rows]
    as_files = coco_ap(paths.coco_json("val"), records)
    assert score(predictions, coco) == as_files and 0.1 < as_files["AP"] < 0.9


def test_poses_of_images_that_the_truth_does_not_list_are_refused(coco):
    foreign = replace(coco, val=replace(coco.val, image_ids=coco.val.image_ids + 10**6))
    with pytest.raises(HrnetppError, match="images that the truth does not list"):
        score(perfect(foreign.val), foreign)


def test_suppression_measures_against_the_box_as_the_network_saw_it(coco):
    # Beside a tall box, 40 x 160: a square input extends it to 160 x 160 and not to 120 x 160.
    data = replace(coco, val=coco.val.select([0, 0]))
    data.val.bboxes_xywh[:] = 10, 10, 40, 160
    kept = []
    for px in np.linspace(0, 60, 121):
        keypoints = np.stack([np.zeros((17, 2)), np.full((17, 2), px)])
        shapes = [Predictions(keypoints, np.ones((2, 17)), hw) for hw in ((64, 48), (64, 64))]
        kept.append([len(scored_poses(poses, data).scores) for poses in shapes])
    assert [2, 1] in kept  # a similarity between 0.9 of the small area and 0.9 of the large one


def suppress(image_ids, keypoints, scores, bbox_scores, skeleton=COCO17, trained=slice(None)):
    """`scored_poses` of plain arrays, with boxes of 1e4 px^2 when padded."""
    ids, image_index = np.unique(image_ids, return_inverse=True)
    n, no = len(keypoints), np.zeros(0)
    columns = np.arange(n), np.tile([5, 5, 80.0, 80.0], (n, 1)), np.array(bbox_scores), no, no
    val = PersonTable("made up", skeleton, Path(), no, ids, no, image_index, *columns, {})
    data = SimpleNamespace(val=val, trained_keypoints=np.isin(range(len(skeleton)), range(99)[trained]))
    return scored_poses(Predictions(keypoints, scores, (64, 64)), data)


def test_rescoring_and_suppression_by_hand():
    pose = np.random.default_rng(0).uniform(0, 100, (17, 2))
    keypoints = np.stack([pose, pose + 1000, pose, pose]).astype(np.float32)
    scores = np.repeat([[0.5], [0.5], [0.75], [0.5]], 17, axis=1).astype(np.float32)
    found = suppress([7, 7, 7, 3], keypoints, scores, [0.8, 1.0, 0.8, 0.4])
    assert found.image_ids.tolist() == [7, 7, 3] and found.scores == pytest.approx([0.6, 0.5, 0.2])
    assert np.array_equal(found.keypoints[0], keypoints[2]) and (found.keypoint_scores[0] == 0.75).all()


def test_suppression_knows_other_keypoints_and_none():
    keypoints, ones = np.zeros((2, 14, 2)), np.ones((2, 14))
    for similarity, left in ((0.91, 1), (0.89, 2)):
        # exp(-d^2 / (2 * A * (2 sigma)^2)) of 14 keypoints with sigmas of 0.011 to 0.039 each
        keypoints[1, :, 0] = np.sqrt(-np.log(similarity) * 2 * 1e4) * 2 * np.array(AIC14.oks_sigmas)
        assert len(suppress([3, 3], keypoints, ones, [1, 1], AIC14).scores) == left
    nobody = suppress([], keypoints[:0], ones[:0], [], AIC14)
    assert nobody.keypoints.shape == (0, 14, 2) and len(nobody.scores) == 0


def test_keypoints_that_never_had_a_label_change_nothing_but_are_kept(coco):
    rng = np.random.default_rng(0)
    keypoints, scores = np.tile(rng.uniform(0, 99, (3, 17, 2)), (2, 1, 1)), rng.uniform(0.3, 1, (6, 17))
    wild, wild_scores = keypoints.copy(), scores.copy()
    wild[:, :5] += rng.normal(0, 500, (6, 5, 2))
    wild_scores[:, :5] = 5
    plain = suppress(np.zeros(6), keypoints, scores, np.ones(6), trained=slice(5, None))
    found = suppress(np.zeros(6), wild, wild_scores, np.ones(6), trained=slice(5, None))
    assert len(plain.scores) == 3 and plain.scores.tolist() == found.scores.tolist()
    assert len(suppress(np.zeros(6), wild, wild_scores, np.ones(6)).scores) == 6
    assert plain.scores[0] == pytest.approx(scores[:, 5:].mean(axis=1).max())
    assert (found.keypoint_scores[:, :5] == 5).all()
    faceless = replace(coco, train=replace(coco.train, keypoints=coco.train.keypoints.copy()))
    faceless.train.keypoints[:, :5] = 0
    labels = perfect(coco.val)
    labels.scores[:, :5] = 0.5
    assert np.allclose(scored_poses(labels, coco).scores, (5 * 0.5 + 12) / 17)
    assert (scored_poses(labels, faceless).scores == 1.0).all()


def test_real_sets_score_their_own_labels_one(real_data):
    mini, test = real_data / "coco_mini", real_data / "coco_test"
    for *files, persons in (
        (mini / "annotations" / "person_keypoints_train2017.json", mini / "train2017", 86),
        (test / "test_coco.json", test, 12),
    ):
        table = read_coco(*files)
        data = StageData(table, table, read_coco_truth(*files), Metric.COCO_AP, "true")
        assert len(table) == persons and score(perfect(table), data)["AP"] == pytest.approx(1.0)
    boxes = read_coco_detections(test / "test_coco_det_AP_H_56.json", *files)
    detected = replace(data, val=boxes)
    assert len(boxes) == 118 and 0 < len(scored_poses(perfect(boxes), detected).scores) <= 118
    assert score(perfect(boxes), detected)["AP"] < 0.1  # all keypoints in the middles of the boxes
    sample = real_data / "aic_sample"
    table = read_ai_challenger(sample / "keypoint_sample_annotations.json", sample / "images")
    data = StageData(table, table, table, Metric.AI_CHALLENGER_AP, "true")
    assert len(table) == 9 and score(perfect(table), data)["AP"] == pytest.approx(1.0)


def test_the_whole_set_scores_as_usual_and_draws_scatter_about_it(coco):
    silent = replace(perfect(coco.val), keypoints=np.full((len(coco.val), 17, 2), 1e5))
    methods = {"good": perfect(coco.val, 2.0), "worse": perfect(coco.val, 4.0), "silent": silent}
    draws = resample(methods, coco, draws=40, seed=0)
    assert draws.metrics == {method: score(found, coco) for method, found in methods.items()}
    for name in ("good", "worse"):
        assert draws.drawn[name].shape == (40,) and draws.drawn[name].std() > 0.005
        assert abs(draws.drawn[name].mean() - draws.metrics[name]["AP"]) < 0.1
    assert draws.interval("good")[0] > draws.metrics["worse"]["AP"]
    assert draws.metrics["silent"]["AP"] == 0 and not draws.drawn["silent"].any()
    nobody = replace(coco, val=coco.val.select([]))
    draws = resample({"none": perfect(nobody.val)}, nobody, draws=4)
    assert draws.metrics["none"]["AP"] == 0 and draws.drawn["none"].tolist() == [0] * 4


def test_a_draw_is_the_ap_of_its_images(coco):
    predictions, images = perfect(coco.val, 4.0), np.arange(len(coco.truth.image_ids))
    draws = resample({"a": predictions}, coco, draws=3, seed=5).drawn["a"]
    samples = np.random.default_rng(5).integers(0, len(images), (3, len(images)))
    for value, sample in zip(draws, samples, strict=True):
        # The drawn images as a set of its own, a copy for each time that one is drawn.
        drawn = []
        for table in (coco.val, coco.truth):
            rows = [np.flatnonzero(table.image_index == image) for image in sample]
            numbers, chosen = np.repeat(images, [len(r) for r in rows]), np.concatenate(rows)
            drawn.append((chosen, replace(table.select(chosen), image_index=numbers, image_ids=images)))
        (chosen, val), (_, truth) = drawn
        columns = predictions.keypoints[chosen], predictions.scores[chosen]
        again = score(Predictions(*columns, predictions.input_hw), replace(coco, val=val, truth=truth))
        assert value == again["AP"]


def test_draws_are_the_same_for_all_methods_whatever_the_ids_of_persons_and_repeatable(coco):
    noisy = perfect(coco.val, 3.0)
    first = resample({"a": noisy, "b": noisy}, coco, draws=5).drawn
    assert np.array_equal(first["a"], first["b"])
    for first_id in (0, 7):
        ids = np.arange(first_id, first_id + len(coco.truth))
        data = replace(coco, truth=replace(coco.truth, person_ids=ids))
        assert np.array_equal(first["a"], resample({"a": noisy}, data, draws=5).drawn["a"])
        draws = resample({"labels": perfect(data.val)}, data, draws=3)
        assert draws.metrics["labels"]["AP"] == pytest.approx(1) and draws.drawn["labels"] == pytest.approx(1)
    assert not np.array_equal(first["a"], resample({"a": noisy}, coco, draws=5, seed=1).drawn["a"])


def test_intervals_and_differences_by_hand():
    drawn = {"x": np.full(50, 0.52), "y": np.linspace(0.45, 0.5, 50)}
    draws = Draws({"x": {"AP": 0.5}, "y": {"AP": 0.48}}, drawn)
    assert draws.interval("x") == (0.52, 0.52)
    # 30 of 50 lie below 0.48: probits move by twice probit(0.6) to -1.4533 and 2.4666, 7.3% and 99.3%.
    assert draws.interval("y") == (pytest.approx(0.453654, abs=1e-5), pytest.approx(0.499659, abs=1e-5))
