"""From poses to the datasets' metrics, on labels given back and spoilt step by step, and their bootstrap."""

from dataclasses import replace

import numpy as np
import pytest

from hrnetpp_lib.data.annotations import read_ai_challenger, read_coco, read_coco_detections, read_coco_truth
from hrnetpp_lib.data.layout import Metric, StageData, load_ai_challenger, load_coco, prepare_data
from hrnetpp_lib.data.persons import PersonTable
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.evaluate.infer import Predictions
from hrnetpp_lib.evaluate.metrics import coco_ap
from hrnetpp_lib.evaluate.score import Claim, Draws, resample, score, scored_poses
from hrnetpp_lib.recipe import SMOKE

PROFILE = replace(SMOKE, synthetic_persons=(10, 24, 30), holdout_persons=8, boxes=None)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return prepare_data(PROFILE, tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def coco(paths):
    return load_coco(PROFILE, paths)


@pytest.fixture(scope="module")
def challenger(paths):
    return load_ai_challenger(PROFILE, paths)


def perfect(table: PersonTable, px: float = 0.0, input_hw: tuple[int, int] = (128, 96)) -> Predictions:
    """The labels themselves, shaken by so many px; unlabelled keypoints go to the middle of the box."""
    middle = table.bboxes_xywh[:, :2] + table.bboxes_xywh[:, 2:] / 2
    labelled = table.keypoints[:, :, 2:] > 0
    keypoints = np.where(labelled, table.keypoints[:, :, :2].astype(np.float64), middle[:, None])
    noise = np.random.default_rng(0).normal(0, px, keypoints.shape)
    return Predictions(keypoints + noise, np.ones(keypoints.shape[:2]), input_hw)


@pytest.mark.parametrize("name", ["coco", "challenger"])
def test_labels_score_one_and_noise_costs(name, request):
    data = request.getfixturevalue(name)
    aps = [score(perfect(data.val, px), data)["AP"] for px in (0.0, 3.0, 30.0)]
    assert aps[0] == pytest.approx(1.0) and aps[0] > aps[1] > aps[2]
    other = perfect(data.val.select(slice(1, None)))
    with pytest.raises(HrnetppError, match="for boxes that need"):
        score(other, data)


def records(found) -> list[dict]:
    """Poses as a COCO result list."""
    triples = np.dstack([found.keypoints, found.keypoint_scores]).reshape(len(found), -1)
    return [
        {"image_id": image_id, "category_id": 1, "keypoints": pose, "score": score}
        for image_id, pose, score in zip(found.image_ids, triples, found.scores, strict=True)
    ]


def test_arrays_score_what_the_files_score(coco, paths):
    predictions = perfect(coco.val, 4.0)
    as_files = coco_ap(paths.coco_json("val"), records(scored_poses(predictions, coco)))
    assert score(predictions, coco) == as_files and 0.1 < as_files["AP"] < 0.9


def test_poses_carry_rescoring_and_suppression(coco):
    labels, n = perfect(coco.val), len(coco.val)
    twice = replace(coco, val=coco.val.select(np.tile(np.arange(n), 2)))
    twice.val.bbox_scores[n:] = 0.5
    doubled = Predictions(np.tile(labels.keypoints, (2, 1, 1)), np.tile(labels.scores, (2, 1)), (128, 96))
    found = scored_poses(doubled, twice)
    assert len(found) == n and (found.scores == 1.0).all()
    assert score(doubled, twice)["AP"] == pytest.approx(1.0)


def test_suppression_measures_against_the_box_as_the_network_saw_it(coco):
    # Beside a tall box, 40 x 160: a square input extends it to 160 x 160 and not to 120 x 160.
    val = coco.val.select([0, 0])
    val.bboxes_xywh[:] = 10, 10, 40, 160
    data = replace(coco, val=val)
    keypoints = np.zeros((2, 17, 2))
    for px in np.linspace(0, 60, 121):
        keypoints[1] = px
        kept = [
            len(scored_poses(Predictions(keypoints, np.ones((2, 17)), hw), data))
            for hw in ((64, 48), (64, 64))
        ]
        if kept == [2, 1]:  # a similarity between 0.9 of the small area and 0.9 of the large one
            break
    assert kept == [2, 1]


def test_keypoints_that_never_had_a_label_do_not_count_in_scores(coco):
    labels = perfect(coco.val)
    labels.scores[:, :5] = 0.5
    keypoints = coco.train.keypoints.copy()
    keypoints[:, :5] = 0
    faceless = replace(coco, train=replace(coco.train, keypoints=keypoints))
    assert np.allclose(scored_poses(labels, coco).scores, (5 * 0.5 + 12) / 17)
    assert (scored_poses(labels, faceless).scores == 1.0).all()


def test_real_sets_score_their_own_labels_one(real_data):
    for json_name, images, persons in (
        ("coco_mini/annotations/person_keypoints_train2017.json", "coco_mini/train2017", 86),
        ("coco_test/test_coco.json", "coco_test", 12),
    ):
        files = real_data / json_name, real_data / images
        table = read_coco(*files)
        data = StageData(table, table, read_coco_truth(*files), Metric.COCO_AP, "true")
        assert len(table) == persons and score(perfect(table), data)["AP"] == pytest.approx(1.0)
    sample = real_data / "aic_sample"
    table = read_ai_challenger(sample / "keypoint_sample_annotations.json", sample / "images")
    data = StageData(table, table, table, Metric.AI_CHALLENGER_AP, "true")
    assert len(table) == 9 and score(perfect(table), data)["AP"] == pytest.approx(1.0)


def test_boxes_of_a_real_detector_can_be_scored(real_data):
    folder = real_data / "coco_test"
    files = folder / "test_coco.json", folder
    boxes = read_coco_detections(folder / "test_coco_det_AP_H_56.json", *files)
    data = StageData(read_coco(*files), boxes, read_coco_truth(*files), Metric.COCO_AP, "a detector")
    assert len(boxes) == 118 and 0 < len(scored_poses(perfect(boxes), data)) <= 118
    assert score(perfect(boxes), data)["AP"] < 0.1  # all keypoints in the middles of the boxes


# ---------------------------------------------------------------------------------------- bootstrap


def test_the_whole_set_scores_as_usual_and_draws_scatter_about_it(coco):
    silent = replace(perfect(coco.val), keypoints=np.full((len(coco.val), 17, 2), 1e5))
    methods = {"good": perfect(coco.val, 2.0), "worse": perfect(coco.val, 4.0), "silent": silent}
    draws = resample(methods, coco, draws=40, seed=0)
    assert draws.metrics == {method: score(found, coco) for method, found in methods.items()}
    for name in ("good", "worse"):
        assert draws.drawn[name].shape == (40,) and draws.drawn[name].std() > 0.005
        assert abs(draws.drawn[name].mean() - draws.metrics[name]["AP"]) < 0.1
    assert draws.difference("good", "worse")[1] > 0
    assert draws.metrics["silent"]["AP"] == 0 and not draws.drawn["silent"].any()


def test_a_draw_is_the_ap_of_its_images(coco):
    predictions = perfect(coco.val, 4.0)
    draws = resample({"a": predictions}, coco, draws=3, seed=5)
    images = len(coco.truth.image_ids)
    for value, sample in zip(
        draws.drawn["a"], np.random.default_rng(5).integers(0, images, (3, images)), strict=True
    ):
        # The drawn images as a set of its own, a copy for each time that one is drawn.
        rows = [np.flatnonzero(coco.val.image_index == image) for image in sample]
        true = [np.flatnonzero(coco.truth.image_index == image) for image in sample]

        def drawn(table, rows):
            numbers = np.repeat(np.arange(images), [len(r) for r in rows])
            return replace(
                table.select(np.concatenate(rows)), image_index=numbers, image_ids=np.arange(images)
            )

        copies = replace(coco, val=drawn(coco.val, rows), truth=drawn(coco.truth, true))
        chosen = np.concatenate(rows)
        again = replace(
            predictions, keypoints=predictions.keypoints[chosen], scores=predictions.scores[chosen]
        )
        assert value == pytest.approx(score(again, copies)["AP"], abs=1e-12)


@pytest.mark.parametrize("first_id", [0, 7])
def test_resampling_does_not_mind_the_ids_of_persons(coco, first_id):
    ids = np.arange(first_id, first_id + len(coco.truth))
    data = replace(coco, truth=replace(coco.truth, person_ids=ids))
    draws = resample({"labels": perfect(data.val)}, data, draws=3)
    assert draws.metrics["labels"]["AP"] == pytest.approx(1) and draws.drawn["labels"] == pytest.approx(1)


def test_draws_are_the_same_images_for_all_methods_and_repeatable(coco):
    noisy = perfect(coco.val, 3.0)
    first = resample({"a": noisy, "b": noisy}, coco, draws=5)
    assert np.array_equal(first.drawn["a"], first.drawn["b"])
    assert np.array_equal(first.drawn["a"], resample({"a": noisy}, coco, draws=5).drawn["a"])
    assert not np.array_equal(first.drawn["a"], resample({"a": noisy}, coco, draws=5, seed=1).drawn["a"])


def test_nothing_to_predict_on_scores_zero(coco):
    nobody = replace(coco, val=coco.val.select([]))
    draws = resample({"none": perfect(nobody.val)}, nobody, draws=4)
    assert draws.metrics["none"]["AP"] == 0 and draws.drawn["none"].tolist() == [0] * 4


def test_comparison_by_hand():
    metrics = {"x": {"AP": 0.5}, "y": {"AP": 0.48}}
    draws = Draws(metrics, {"x": np.full(50, 0.52), "y": np.linspace(0.45, 0.5, 50)})
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
