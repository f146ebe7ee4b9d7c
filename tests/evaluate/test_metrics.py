"""Similarity, suppression, rescoring and both datasets' metrics: by hand, by slow loops, on real files."""

import copy
import json
import math
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.evaluate import ai_challenger_ap, bbox_ap, coco_ap, oks, oks_nms, rescore
from hrnetpp_lib.evaluate import metrics as metrics_module
from hrnetpp_lib.evaluate.metrics import COCO_METRICS, keypoint_similarity, rows_by_image, suppress
from hrnetpp_lib.pose.keypoints import AIC14, COCO17

poses = arrays(np.float64, (17, 2), elements=st.floats(-500, 500))
area = st.floats(50, 1e5)
MINI = "coco_mini/annotations/person_keypoints_train2017.json"


def test_similarity_by_hand():
    true = np.array([[10.0, 20.0, 2], [5.0, 5.0, 2], [0.0, 0.0, 2]])
    found = np.array([[[13.0, 24.0], [5.0, 5.0], [0.0, 1.0]]])
    pair, sigmas = (true, found), (0.25, 0.1, 0.05)
    # area 50: variances 0.25, 0.04, 0.01 and squared distances 25, 0, 1
    expected = [math.exp(-25 / (2 * 50 * 0.25)), 1.0, math.exp(-1 / (2 * 50 * 0.01))]
    assert keypoint_similarity(*pair, np.array([50.0]), sigmas) == pytest.approx(np.array([expected]))
    assert oks(*pair, np.array([50.0]), sigmas) == pytest.approx([sum(expected) / 3])
    some = oks(*pair, 50.0, sigmas, np.array([True, False, True]))
    assert some == pytest.approx([(expected[0] + expected[2]) / 2])
    assert oks(*pair, 50.0, sigmas, np.zeros(3, bool)) == [0.0]


@given(poses, poses, area, st.floats(0.1, 10), st.floats(-300, 300))
def test_oks_properties(a, b, size, zoom, shift):
    sigmas = COCO17.oks_sigmas
    assert oks(a, a, size, sigmas) == 1.0
    value = oks(a, b, size, sigmas)
    assert 0 <= value <= 1 and value == oks(b, a, size, sigmas)
    assert oks(a * zoom + shift, b * zoom + shift, size * zoom**2, sigmas) == pytest.approx(value, abs=1e-6)
    assert oks(a, a + (b - a) / 2, size, sigmas) >= value


def slow_nms(keypoints, areas, scores, threshold, sigmas) -> list[int]:
    """The rule one number at a time."""
    waiting, kept = [int(i) for i in np.asarray(scores).argsort()[::-1]], []
    while waiting:
        kept.append(best := waiting.pop(0))
        for other in list(waiting):
            variances = [(2 * sigma) ** 2 * (areas[best] + areas[other]) / 2 for sigma in sigmas]
            keypoint_pairs = zip(keypoints[best], keypoints[other], variances, strict=True)
            total = sum(
                math.exp(-((x - u) ** 2 + (y - v) ** 2) / 2 / s) for (x, y, _), (u, v, _), s in keypoint_pairs
            )
            if total / len(sigmas) > threshold:
                waiting.remove(other)
    return kept


def crowd(seed: int, persons: int, copies: int) -> tuple[np.ndarray, np.ndarray]:
    """Poses in jittered copies, (persons * copies, 17, 3), and areas of two orders of magnitude."""
    rng = np.random.default_rng(seed)
    base = np.repeat(rng.uniform(0, 200, (persons, 17, 2)), copies, axis=0)
    count = persons * copies
    noise = rng.normal(0, 1, (count, 17, 2)) * rng.uniform(0, 6, (count, 1, 1))
    return np.concatenate([base + noise, rng.random((count, 17, 1))], axis=2), rng.uniform(300, 3e4, count)


@given(st.integers(0, 999), st.integers(1, 4), st.integers(1, 8), st.integers(1, 50), st.floats(0.3, 0.95))
def test_nms_is_the_slow_rule_ties_included(seed, persons, copies, levels, threshold):
    keypoints, areas = crowd(seed, persons, copies)
    scores = np.random.default_rng(seed).integers(0, levels, len(areas)) / levels
    kept = oks_nms(keypoints, areas, scores, threshold, COCO17.oks_sigmas)
    assert kept.tolist() == slow_nms(keypoints, areas, scores, threshold, COCO17.oks_sigmas)


@pytest.mark.parametrize("at_once", [1, 7, 1000])
def test_suppression_of_many_images_is_that_of_each(at_once, monkeypatch):
    monkeypatch.setattr(metrics_module, "_POSES_AT_ONCE", at_once)
    keypoints, areas = crowd(5, 9, 11)
    rng = np.random.default_rng(5)
    scores, image_ids = rng.integers(0, 9, 99) / 9, rng.choice([7, -2, 2**62, 5], 99)
    images = rows_by_image(image_ids)
    assert list(images) == list(dict.fromkeys(image_ids.tolist()))
    assert all((image_ids[rows] == i).all() and (np.diff(rows) > 0).all() for i, rows in images.items())
    apart = [rows[oks_nms(keypoints[rows], areas[rows], scores[rows], 0.7)] for rows in images.values()]
    together = suppress(images.values(), keypoints, areas, scores, 0.7)
    assert together.tolist() == np.concatenate(apart).tolist() and 4 < len(together) < 99
    assert len(suppress([], keypoints[:0], areas[:0], scores[:0])) == 0 and rows_by_image(areas[:0]) == {}


def test_nms_by_hand():
    pose = np.random.default_rng(0).uniform(0, 100, (17, 3))
    far = pose + 1000
    keypoints, areas = np.stack([pose, far, pose, far, pose]), np.full(5, 900.0)
    assert oks_nms(keypoints, areas, np.array([0.3, 0.5, 0.9, 0.1, 0.2])).tolist() == [2, 1]
    first = np.full(5, 0.5).argsort()[-1]  # of equal scores the last of numpy's default order goes first
    assert oks_nms(keypoints, areas, np.full(5, 0.5))[0] == first
    # Suppression asks for more than the threshold: a similarity of exactly 1 passes a threshold of 1.
    assert oks_nms(keypoints, areas, np.array([5, 4, 3, 2, 1]), threshold=1.0).tolist() == [0, 1, 2, 3, 4]
    assert oks_nms(keypoints[:0], areas[:0], np.zeros(0)).tolist() == []
    # A pair is measured against its mean area A: exp(-100 / (2 * 0.01 * A)) > 0.5 if A > 7213.
    moved = np.stack([np.zeros((14, 3)), np.tile([6.0, 8.0, 0.0], (14, 1))])
    for areas, kept in (((4000, 10500), [1]), ((4000, 10400), [1, 0]), ((14426, 2), [1])):
        assert oks_nms(moved, np.array(areas), np.array([1, 2]), 0.5, np.full(14, 0.05)).tolist() == kept


def test_rescore_by_hand():
    keypoint_scores = np.array([[0.2, 0.5, 0.9, -0.1], [0.1, 0.2, 0.0, 0.15], [0.21, 0.1, 0.1, 0.1]])
    scores = rescore(keypoint_scores, np.array([0.5, 1.0, 2.0]))
    assert scores == pytest.approx([0.5 * 0.7, 0.0, 0.42])
    assert rescore(keypoint_scores, np.array([1, 1, 1]), threshold=0.5) == pytest.approx([0.9, 0, 0])


def truth_of(persons: int = 1) -> dict:
    """COCO annotations of one image with persons side by side, all keypoints visible."""
    annotations = []
    for number in range(persons):
        rng = np.random.default_rng(number)
        triples = np.column_stack([rng.uniform(0, 80, (17, 2)) + [1000 * number, 0], np.full(17, 2)])
        record = {"id": number + 1, "image_id": 9, "category_id": 1, "iscrowd": 0, "area": 5000.0}
        record |= {"bbox": [1000 * number, 0, 80, 80], "num_keypoints": 17}
        annotations.append(record | {"keypoints": triples.ravel().tolist()})
    categories = [{"id": 1, "name": "person"}]
    return {"images": [{"id": 9, "width": 3000}], "annotations": annotations, "categories": categories}


def result_of(person: dict, score: float = 1.0, shift: np.ndarray | float = 0.0) -> dict:
    triples = np.reshape(person["keypoints"], (17, 3)) + np.pad(np.zeros((17, 1)) + shift, ((0, 0), (0, 2)))
    record = {"image_id": person["image_id"], "category_id": 1, "score": score}
    return record | {"keypoints": triples.ravel().tolist()}


def test_coco_ap_by_hand(capsys):
    truth = truth_of()
    person = truth["annotations"][0]
    # px by which each keypoint is off for a similarity of 0.72
    shift = np.sqrt(-np.log(0.72) * 2 * 5000) * 2 * np.array(COCO17.oks_sigmas)[:, None]
    metrics = coco_ap(truth, [result_of(person, shift=shift)])
    assert tuple(metrics) == COCO_METRICS and capsys.readouterr().out == ""
    # 0.72 reaches 0.5 to 0.7, five of ten thresholds; 5000 px^2 is a medium person, there is no large one
    expected = {"AP": 0.5, "AP50": 1, "AP75": 0, "APM": 0.5, "APL": -1}
    expected |= {"AR": 0.5, "AR50": 1, "AR75": 0, "ARM": 0.5, "ARL": -1}
    assert metrics == pytest.approx(expected)


def test_threads_that_evaluate_together_leave_the_standard_output_as_it_was():
    truth, before = truth_of(), sys.stdout
    found = [result_of(truth["annotations"][0])] * 50
    with ThreadPoolExecutor(8) as pool:
        aps = {metrics["AP"] for metrics in pool.map(lambda _: coco_ap(truth, found), range(40))}
    assert sys.stdout is before and list(aps) == [pytest.approx(1)]


def test_coco_ap_over_two_persons_and_twenty_results():
    truth = truth_of(2)
    first, second = truth["annotations"]
    # One of two found: precision 1 up to a recall of 0.5, which is 51 of the 101 points.
    assert coco_ap(truth, [result_of(first)])["AP"] == pytest.approx(51 / 101)
    wrong = [result_of(first, score=0.9, shift=5000.0 + 100 * i) for i in range(20)]
    assert coco_ap(truth, [*wrong[:19], result_of(second, 0.1)])["AR"] == pytest.approx(0.5)
    assert coco_ap(truth, [*wrong, result_of(second, 0.1)])["AR"] == 0  # the 21st of an image is not seen
    assert coco_ap(truth, []) == dict.fromkeys(COCO_METRICS, 0.0)
    for first["id"], second["id"] in ((0, 1), (5, 5)):  # they do not matter
        assert coco_ap(truth, [result_of(first), result_of(second)])["AP"] == pytest.approx(1)
        assert bbox_ap(truth, [first | {"score": 1}, second | {"score": 1}]) == pytest.approx(1)


def test_coco_ap_reads_files_arrays_and_numpy_numbers_and_no_boxes_and_leaves_all_alone(tmp_path):
    truth = truth_of()
    right = result_of(truth["annotations"][0])
    wrong = result_of(truth["annotations"][0], score=2, shift=500.0) | {"bbox": [0, 0, 1, 1]}
    before = copy.deepcopy((truth, results := [wrong, right]))
    for name, content in (("truth", truth), ("results", results)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert coco_ap(tmp_path / "truth.json", str(tmp_path / "results.json")) == coco_ap(truth, results)
    assert (truth, results) == before
    # By its keypoints the wrong one is of medium size too, by the box that it brings along it is tiny.
    assert coco_ap(truth, results)["APM"] == pytest.approx(0.5)
    numbers = {"keypoints": np.array(right["keypoints"]), "score": np.float32(1), "image_id": np.int64(9)}
    assert coco_ap(truth, [right | numbers]) == coco_ap(truth, [right])


TRUE, FOUND = 0, 1  # the list that a wrong record is in, and its number there


def refused(which: int, field: str, *values: object) -> list[tuple[int, dict, str]]:
    """Values that are named by their record and field."""
    return [(which, {field: value}, rf"\[{which}\].{field}") for value in values]


@pytest.mark.parametrize(
    ("which", "change", "message"),
    [
        (FOUND, {"image_id": 10}, "result 1: image_id 10 is not in the ground truth"),
        (FOUND, {"category_id": 2}, "result 1: category_id 2 is not"),
        (FOUND, {"image_id": "\ud800"}, "cannot be written as json"),
        (FOUND, {"extra": object()}, "cannot be written as json"),
        (FOUND, {"keypoints": [1.0, float("inf"), 1.0] * 17}, r"results: .*\[1\].keypoints\[1\]"),
        (FOUND, {"keypoints": [1e39] * 51}, r"\[1\].keypoints\[0\]"),
        *refused(FOUND, "score", float("nan"), None, "0.5", [0.5], 1e308),
        *refused(FOUND, "image_id", [9], 2**63),
        *refused(FOUND, "keypoints", [[1.0, 2.0, 1.0]] * 17, ["1"] * 51, [1.0] * 42, "none"),
        (TRUE, {"bbox": [0, 0, -5, 5]}, "annotation 0.*negative size"),
        (TRUE, {"image_id": 10}, "annotation 0: its image or category is not listed"),
        (TRUE, {"category_id": 7}, "annotation 0: its image or category is not listed"),
        (TRUE, {"area": None}, r"ground truth: .*annotations\[0\].area"),
        *refused(TRUE, "area", -1.0),
        *refused(TRUE, "bbox", [0, 0, 5]),
        *refused(TRUE, "num_keypoints", -1, 1.5),
        *refused(TRUE, "iscrowd", 2, "no"),
    ],
)
def test_bad_records_are_refused(which, change, message):
    truth = truth_of()
    results = [result_of(truth["annotations"][0]) for _ in range(2)]
    (truth["annotations"], results)[which][which] |= change
    with pytest.raises(HrnetppError, match=message):
        coco_ap(truth, results)


def test_bad_files_are_refused(tmp_path):
    truth = truth_of()
    (tmp_path / "half.json").write_text('[{"image_id": 1')
    os.mkfifo(tmp_path / "pipe.json")
    bad = [({k: v for k, v in truth.items() if k != "categories"}, [], "categories")]
    bad += [(tmp_path / "nothing.json", [], r"nothing\.json.*path"), ([], [], "got `array`")]
    bad += [
        (truth, tmp_path / "half.json", r"half\.json"),
        (truth, tmp_path / "pipe.json", "no regular file"),
    ]
    for gt, results, message in bad:
        with pytest.raises(HrnetppError, match=message):
            coco_ap(gt, results)


def noisy_results(truth: dict, strength: float) -> list[dict]:
    """Each labelled person, off by noise in proportion to its size, and as many persons who are not there."""
    rng, results = np.random.default_rng(0), []
    for person in truth["annotations"]:
        if person["num_keypoints"] > 0 and not person["iscrowd"]:
            noise = strength * math.sqrt(person["area"]) * rng.normal(size=(17, 1))
            results.append(result_of(person, rng.random(), noise))
            results.append(result_of(person, rng.random() / 2, noise + 70))
    return results


def plain_metrics(truth: dict, results: list[dict], kind: str = "keypoints") -> list[float]:
    """What pycocotools makes of copies; it takes a match with a person of id 0 for none."""
    truth, results = copy.deepcopy(truth), copy.deepcopy(results)
    for number, person in enumerate(truth["annotations"], 1):
        person["id"] = number
    coco = COCO()
    coco.dataset = truth
    coco.createIndex()
    plain = COCOeval(coco, coco.loadRes(results), kind)
    plain.params.kpt_oks_sigmas = np.array(COCO17.oks_sigmas)  # its own differ in the last bit: 0.26 / 10
    plain.evaluate()
    plain.accumulate()
    plain.summarize()
    return plain.stats.tolist()


def test_coco_ap_is_a_plain_cocoeval_run_on_real_persons(real_data):
    aps = [1.0]
    for strength in (0.02, 0.08, 0.2):
        truth = json.loads((real_data / MINI).read_text())
        results = noisy_results(truth, strength)
        metrics = coco_ap(real_data / MINI, results)
        assert list(metrics.values()) == plain_metrics(truth, results)
        aps.append(metrics["AP"])
    assert sorted(aps, reverse=True) == aps and 0 < aps[-1] < aps[1] < 0.99


def test_real_detections_score_what_cocoeval_says(real_data):
    file = real_data / "coco_test" / "test_coco.json"
    boxes = json.loads(file.with_name("test_coco_det_AP_H_56.json").read_text())
    truth, rng = json.loads(file.read_text()), np.random.default_rng(0)
    true = [a for a in truth["annotations"] if a["num_keypoints"]]
    found = []
    for number, box in enumerate(boxes):  # some where a person is, the others anywhere in their box
        corner, size = np.split(np.array(box["bbox"]), 2)
        triples = np.column_stack([corner + rng.random((17, 2)) * size, np.ones(17)])
        person = true[number % len(true)]
        near = number < 40 and person["image_id"] == box["image_id"]
        triples = np.reshape(person["keypoints"], (17, 3)) + rng.normal(0, 3, (17, 3)) if near else triples
        record = {"image_id": box["image_id"], "category_id": 1, "score": box["score"]}
        found.append(record | {"keypoints": triples.ravel().tolist()})
    assert len(found) == 118 and 0.01 < coco_ap(truth, found)["AP"] < 0.9
    assert list(coco_ap(truth, found).values()) == plain_metrics(truth, found)
    assert bbox_ap(file, boxes) == plain_metrics(truth, boxes, "bbox")[0]


def random_set(seed: int, images: int, persons: int, found: int, levels: int) -> tuple[dict, list[dict]]:
    """Persons of all kinds and sizes, overlapping, and results near them, of few different scores."""
    rng = np.random.default_rng(seed)
    ids = rng.choice(np.array([-(2**40), -3, 0, 1, 7, 900, 2**53 + 1, 2**62]), images, replace=False)
    categories = [{"id": 1, "name": "a"}, {"id": 2**40, "name": "b"}][: rng.integers(1, 3)]
    truth, unlabelled = {"images": [{"id": int(i)} for i in ids], "categories": categories}, rng.random()
    truth["annotations"], results = [], []
    for _ in range(persons):
        box = np.concatenate([rng.integers(0, 60, 2), rng.integers(0, 200, 2)]).astype(float)
        triples = np.column_stack([box[:2] + rng.random((17, 2)) * box[2:], rng.integers(0, 3, 17)])
        triples *= rng.random() > unlabelled
        area = float(rng.choice([1024, 9216, *(box[2:].prod() * rng.random(4))]))
        fields = {"iscrowd": int(rng.random() < 0.1), "area": area}
        fields |= {"num_keypoints": int((triples[:, 2] > 0).sum()), "keypoints": triples.ravel().tolist()}
        place = {
            "image_id": int(rng.choice(ids)),
            "category_id": categories[rng.integers(len(categories))]["id"],
        }
        truth["annotations"].append(place | fields | {"bbox": box.tolist()})
    for _ in range(found):
        person = truth["annotations"][rng.integers(persons)] if persons else None
        record = {"image_id": int(rng.choice(ids)), "category_id": 1, "bbox": rng.integers(1, 99, 4).tolist()}
        keypoints = rng.random(51) * 90
        if person and rng.random() < 0.8:
            record = {name: person[name] for name in ("image_id", "category_id")}
            strength = rng.choice([0, 1, 1, 9])
            record["bbox"] = (np.array(person["bbox"]) + strength * rng.random(4)).tolist()
            keypoints = person["keypoints"] + strength * rng.normal(0, 1, 51)
        score = int(rng.integers(levels)) / levels
        results.append(record | {"keypoints": keypoints.tolist(), "score": score})
    return truth, results


@given(*(st.integers(low, high) for low, high in ((0, 9**9), (1, 8), (0, 40), (1, 150), (1, 30))))
@settings(max_examples=60)
def test_coco_metrics_are_pycocotools_to_the_last_bit(seed, images, persons, found, levels):
    truth, results = random_set(seed, images, persons, found, levels)
    poses = [{name: value for name, value in result.items() if name != "bbox"} for result in results]
    assert list(coco_ap(truth, poses).values()) == plain_metrics(truth, poses)
    truth["annotations"] = [person for person in truth["annotations"] if person["category_id"] == 1]
    boxes = [result for result in results if result["category_id"] == 1]
    if boxes:
        persons_alone = truth | {"categories": truth["categories"][:1]}
        assert bbox_ap(truth, boxes) == plain_metrics(persons_alone, boxes, "bbox")[0]


@pytest.mark.parametrize("fast", [True, False])
def test_a_larger_set_is_pycocotools_too_with_and_without_the_fast_library(fast, monkeypatch):
    if fast:
        pytest.importorskip("hotcoco")
    else:
        monkeypatch.setattr(metrics_module, "hotcoco", None)
    truth, results = random_set(3, 8, 120, 900, 500)
    for result in results:
        del result["bbox"]
    assert list(coco_ap(truth, results).values()) == plain_metrics(truth, results)


def test_oks_is_that_of_cocoeval_on_real_persons(real_data):
    coco = COCO(real_data / MINI)
    found = coco.loadRes(noisy_results(coco.dataset, 0.05))
    evaluation, compared = COCOeval(coco, found, "keypoints"), 0
    evaluation._prepare()
    for image_id in coco.getImgIds():
        theirs = np.array(evaluation.computeOks(image_id, 1))
        persons = coco.loadAnns(coco.getAnnIds(image_id))
        results = sorted(found.loadAnns(found.getAnnIds(image_id)), key=lambda result: -result["score"])
        for i, j in np.ndindex(theirs.shape):
            true, pose = (np.reshape(r["keypoints"], (17, 3)) for r in (persons[j], results[i]))
            if (labelled := true[:, 2] > 0).any():
                ours = oks(pose, true, persons[j]["area"], COCO17.oks_sigmas, labelled)
                assert ours == pytest.approx(theirs[i, j], abs=1e-12)
                compared += 1
    assert compared > 300


def test_bbox_ap(real_data):
    truth = truth_of()
    truth["annotations"][0]["bbox"] = [100, 100, 100, 100]
    truth["annotations"].append(truth["annotations"][0] | {"id": 2, "category_id": 3})  # no person
    truth["categories"].append({"id": 3, "name": "car"})
    found = {"image_id": 9, "category_id": 1, "bbox": [100, 100, 100, 82], "score": 0.5}
    others = [found | {"category_id": 3, "score": 0.9}, found | {"image_id": 8, "score": 0.9}]
    assert bbox_ap(truth, [found, *others]) == pytest.approx(0.7)  # IoU 0.82
    assert bbox_ap(truth, others) == 0.0
    for field, wrong in (("bbox", [1, 2, 3]), ("score", None)):
        with pytest.raises(HrnetppError, match=rf"detections: .*\[0\].{field}"):
            bbox_ap(truth, [found | {field: wrong}])
    file = real_data / "coco_test" / "test_coco.json"
    boxes = [a for a in json.loads(file.read_text())["annotations"] if not a["iscrowd"]]
    assert bbox_ap(file, [box | {"score": 1} for box in boxes]) == pytest.approx(1)
    assert 0.5 < bbox_ap(file, file.with_name("test_coco_det_AP_H_56.json")) < 1


def aic_record(image_id: str, humans: dict[str, np.ndarray], boxes: dict[str, list] | None = None) -> dict:
    poses = {name: pose.ravel().tolist() for name, pose in humans.items()}
    record = {"image_id": image_id, "keypoint_annotations": poses}
    return record if boxes is None else record | {"human_annotations": boxes}


def aic_pose(visibility: int = 1) -> np.ndarray:
    return np.column_stack([np.random.default_rng(0).uniform(0, 200, (14, 2)), np.full(14, visibility)])


def aic_ap(truth: np.ndarray, *found: np.ndarray, box: tuple[int, ...] = (10, 20, 110, 220)) -> float:
    """AP of poses predicted in an image of one person."""
    humans = {f"h{number}": pose for number, pose in enumerate(found)}
    return ai_challenger_ap([aic_record("a", {"p": truth}, {"p": box})], [aic_record("a", humans)])["AP"]


BOX = [10, 20, 110, 220]
WRONG_BOXES = {}, {"other": BOX}, {"human1": BOX, "other": BOX}, {"human1": [9, 9, 5, 20]}
# px by which keypoints must be off for a similarity of 0.72 where the area is 1
OFF = np.sqrt(-np.log(0.72) * 2) * 2 * np.array(AIC14.oks_sigmas)


def test_ai_challenger_ap_by_hand():
    pose = aic_pose()
    moved = pose.copy()
    moved[:, 1] += np.sqrt(20001) * OFF  # the box's area and one; 0.5 to 0.7 pass
    truth = [aic_record("a", {"human1": pose}, {"human1": BOX})]
    expected = {"AP": 0.5, "AP50": 1.0, "AP75": 0.0}
    assert ai_challenger_ap(truth, [aic_record("a", {"h": moved})]) == pytest.approx(expected)
    assert aic_ap(pose, moved + 500, moved, moved + 900) == pytest.approx(0.5 / 3)  # three for one
    assert ai_challenger_ap(truth, [])["AP"] == 0
    assert ai_challenger_ap(truth, [aic_record("b", {"h": pose})])["AP"] == 0  # another image's is not seen
    for twice in ((truth * 2, []), (truth, [aic_record("a", {"h": pose})] * 2)):
        with pytest.raises(HrnetppError, match=r"(annotation|result) 1.*once"):
            ai_challenger_ap(*twice)
    moved[:, 1] = pose[:, 1] + OFF
    assert aic_ap(pose, moved, box=(5, 5, 5, 5)) == pytest.approx(0.5)


@pytest.mark.parametrize(("right", "threshold"), [(7, 0.5), (9, 0.75)])
def test_ai_challenger_thresholds_are_strict(right, threshold):
    # Of 14 or 12 visible keypoints so many are exact and the rest infinitely far: the mean is the threshold.
    pose = aic_pose()
    pose[round(right / threshold) :, 2] = 2
    moved = pose.copy()
    moved[right:, :2] += 1e6
    passed = aic_ap(pose, moved)
    assert passed == pytest.approx((threshold - 0.5) / 0.5)  # one threshold fewer than with >=
    moved[right, :2] = pose[right, :2]
    assert aic_ap(pose, moved) > passed


def test_ai_challenger_counts_only_visible_keypoints():
    truth = aic_pose()
    truth[3:, 2] = [2, 3] * 5 + [2]
    wrong = truth.copy()
    wrong[3:, :2] += 300
    assert aic_ap(truth, wrong) == 1
    assert aic_ap(aic_pose(visibility=2), aic_pose()) == 0


def test_ai_challenger_prediction_may_serve_two_and_keys_are_unordered():
    pose, box = aic_pose(), {"human1": BOX, "human2": [0, 0, 1, 1]}
    truth = [aic_record("a", {"human2": pose + [50, 0, 0], "human1": pose}, box)]
    near = [aic_record("a", {"h": pose + [1.5, 0, 0]})]  # far too much for a box of 1 px^2
    assert ai_challenger_ap(truth, near)["AP50"] == 0.5
    twins = [aic_record("a", {"human2": pose, "human1": pose}, {"human1": BOX, "human2": BOX})]
    assert ai_challenger_ap(twins, [aic_record("a", {"h": pose})])["AP"] == 1


def slow_ai_challenger_ap(truth: list, predicted: list) -> float:
    """The challenge's definition, person by person and keypoint by keypoint."""
    by_image = {record["image_id"]: record["keypoint_annotations"] for record in predicted}
    similarities, denominator = [], 0
    for record in truth:
        candidates = by_image.get(record["image_id"], {})
        denominator += max(len(record["keypoint_annotations"]), len(candidates))
        for name, person in record["keypoint_annotations"].items():
            x1, y1, x2, y2 = record["human_annotations"][name]
            best = 0.0
            for pose in candidates.values():
                terms = []
                for k in (k for k in range(14) if person[3 * k + 2] == 1):
                    squared = sum((person[i] - pose[i]) ** 2 for i in (3 * k, 3 * k + 1))
                    variance = (2 * AIC14.oks_sigmas[k]) ** 2
                    terms.append(math.exp(-squared / (2 * variance * ((x2 - x1) * (y2 - y1) + 1))))
                best = max(best, sum(terms) / len(terms) if terms else 0.0)
            similarities.append(best)
    thresholds = np.linspace(0.5, 0.95, 10).tolist()
    return sum(sum(s > t for s in similarities) / denominator for t in thresholds) / 10


def test_ai_challenger_on_the_official_example(real_data):
    folder = real_data / "aic_sample" / "official_example"
    files = folder / "keypoint_annotations_example.json", folder / "keypoint_predictions_example.json"
    truth, predicted = (json.loads(file.read_text()) for file in files)
    # Everything is found but the 9 persons of the three images without a prediction.
    assert ai_challenger_ap(*files)["AP"] == pytest.approx(1 - 9 / 2761, abs=1e-12)
    assert slow_ai_challenger_ap(truth, predicted) == pytest.approx(1 - 9 / 2761, abs=1e-12)
    rng = np.random.default_rng(0)
    for poses in (record["keypoint_annotations"] for record in predicted[::2]):
        for name, pose in list(poses.items()):
            moved = np.reshape(pose, (14, 3)) + rng.normal(0, rng.uniform(0, 9), (14, 3))
            poses |= {name: moved.ravel().tolist()} | ({f"{name}again": pose} if rng.random() < 0.1 else {})
    value = ai_challenger_ap(truth, predicted)["AP"]
    assert 0.3 < value < 0.95 and value == pytest.approx(slow_ai_challenger_ap(truth, predicted), abs=1e-12)


@pytest.mark.parametrize(
    ("truth_change", "result_change"),
    [
        *(({"human_annotations": boxes}, {}) for boxes in WRONG_BOXES),
        ({"keypoint_annotations": {"human1": [1.0] * 41}}, {}),
        ({"image_id": 3}, {}),
        *(
            ({}, {"keypoint_annotations": {"h": pose}})
            for pose in ([1.0] * 84, [float("nan")] * 42, [1e39] * 42)
        ),
        ({}, {"keypoint_annotations": None}),
    ],
)
def test_bad_ai_challenger_records_are_refused(truth_change, result_change):
    truth = aic_record("a", {"human1": aic_pose()}, {"human1": BOX}) | truth_change
    result = aic_record("a", {"h": aic_pose()}) | result_change
    message = r"annotation( 0|s: .*\[0\])" if truth_change else r"results: .*\[0\]"
    with pytest.raises(HrnetppError, match=message):
        ai_challenger_ap([truth], [result])
