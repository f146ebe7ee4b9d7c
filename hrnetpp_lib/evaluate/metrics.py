"""The figures: object keypoint similarity, OKS-NMS, rescoring, COCO AP and AI Challenger's own AP."""

import contextlib
import io
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.pose.keypoints import AIC14, COCO17

COCO_FIGURES = ("AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL")


def keypoint_similarity(
    keypoints: np.ndarray, others: np.ndarray, areas: np.ndarray | float, sigmas: Sequence[float]
) -> np.ndarray:
    """Similarity of single keypoints: a Gaussian of their distance, as wide as the person is large.

    Args:
        keypoints: (..., K, >=2) in image px.
        others: (..., K, >=2) in image px, compared keypoint by keypoint.
        areas: (...) px^2 of the persons that the distances are measured against.
        sigmas: K per-keypoint standard deviations.

    Returns:
        (..., K) in [0, 1].

    Reference: COCO keypoint evaluation.
    """
    squared = np.square(np.asarray(keypoints)[..., :2] - np.asarray(others)[..., :2]).sum(axis=-1)
    variance = np.square(2 * np.asarray(sigmas))
    # The smallest step above 1 keeps an area of 0 from dividing by it, as in the official code.
    return np.exp(-squared / variance / (np.asarray(areas)[..., None] + np.spacing(1)) / 2)


def oks(
    keypoints: np.ndarray,
    others: np.ndarray,
    areas: np.ndarray | float,
    sigmas: Sequence[float],
    counted: np.ndarray | None = None,
) -> np.ndarray:
    """Object keypoint similarity of poses: the mean over their keypoints.

    Args:
        keypoints: (..., K, >=2) in image px.
        others: (..., K, >=2) in image px.
        areas: (...) px^2 that the squared distances are measured against.
        sigmas: K per-keypoint standard deviations.
        counted: (..., K) bool, the keypoints to average over; all of them if None. A pose with none has 0.

    Returns:
        (...) in [0, 1].

    Reference: COCO keypoint evaluation; official HRNet, oks_iou.
    """
    similarity = keypoint_similarity(keypoints, others, areas, sigmas)
    if counted is None:
        return similarity.mean(axis=-1)
    return (similarity * counted).sum(axis=-1) / np.maximum(np.sum(counted, axis=-1), 1)


def oks_nms(
    keypoints: np.ndarray,
    areas: np.ndarray,
    scores: np.ndarray,
    threshold: float = 0.9,
    sigmas: Sequence[float] = COCO17.oks_sigmas,
) -> np.ndarray:
    """Greedy suppression of poses that repeat a better one.

    Args:
        keypoints: (N, K, 3) in image px; the third value is not used.
        areas: (N,) px^2; a pair is measured against the mean of its two.
        scores: (N,); equal ones come in the order of numpy's default sort, read backwards.
        threshold: A pose goes if its OKS with a kept one exceeds this.
        sigmas: K per-keypoint standard deviations.

    Returns:
        Indices of the poses kept, best first.

    Reference: official HRNet, oks_nms without its optional visibility threshold.
    """
    keypoints, areas = np.asarray(keypoints), np.asarray(areas, np.float64)
    # The official code sorts like this, so equal scores come in its order too; a stable sort would differ.
    order = np.asarray(scores).argsort()[::-1]
    kept = []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(best)
        similarity = oks(keypoints[best], keypoints[rest], (areas[best] + areas[rest]) / 2, sigmas)
        order = rest[similarity <= threshold]
    return np.array(kept, np.int64)


def rescore(keypoint_scores: np.ndarray, bbox_scores: np.ndarray, threshold: float = 0.2) -> np.ndarray:
    """Score of a person: the box's score times the mean of the keypoint scores above a threshold.

    Args:
        keypoint_scores: (N, K).
        bbox_scores: (N,).
        threshold: Keypoints at or below it do not count; with none above it the score is 0.

    Returns:
        (N,).

    Reference: official HRNet, COCODataset.evaluate.
    """
    keypoint_scores = np.asarray(keypoint_scores)
    counted = keypoint_scores > threshold
    total = np.where(counted, keypoint_scores, 0).sum(axis=1)
    return np.asarray(bbox_scores) * total / np.maximum(counted.sum(axis=1), 1)


def to_coco_results(
    image_ids: np.ndarray,
    keypoints: np.ndarray,
    keypoint_scores: np.ndarray,
    bbox_scores: np.ndarray,
    areas: np.ndarray,
    sigmas: Sequence[float] = COCO17.oks_sigmas,
    keypoint_threshold: float = 0.2,
    nms_threshold: float = 0.9,
    scored: np.ndarray | None = None,
) -> list[dict]:
    """Rescore poses, suppress repetitions image by image, and write what is left as COCO results.

    Args:
        image_ids: (N,) integers.
        keypoints: (N, K, 2) in image px.
        keypoint_scores: (N, K).
        bbox_scores: (N,).
        areas: (N,) px^2 of the padded boxes.
        sigmas: K per-keypoint standard deviations, for the suppression.
        keypoint_threshold: Keypoints that score no more do not count towards a pose's score.
        nms_threshold: OKS above which the worse of two poses goes.
        scored: (K,) bool; keypoints that take part in score and suppression. Leave out those that never
            had a label in training: their heatmaps mean nothing.

    Returns:
        COCO keypoint results, per image best first.

    Reference: official HRNet, COCODataset.evaluate.
    """
    keypoint_scores, areas = np.asarray(keypoint_scores), np.asarray(areas)
    triples = np.concatenate([keypoints, keypoint_scores[:, :, None]], axis=2).astype(np.float64)
    scored = np.ones(triples.shape[1], bool) if scored is None else np.asarray(scored, bool)
    scores = rescore(keypoint_scores[:, scored], bbox_scores, keypoint_threshold)
    sigmas = np.asarray(sigmas)[scored]
    persons = defaultdict(list)
    for person, image_id in enumerate(np.asarray(image_ids).tolist()):
        persons[image_id].append(person)
    results = []
    for image_id, members in persons.items():
        poses = triples[members][:, scored]
        kept = oks_nms(poses, areas[members], scores[members], nms_threshold, sigmas)
        for person in np.array(members)[kept]:
            pose, score = triples[person].ravel().tolist(), float(scores[person])
            results.append({"image_id": image_id, "category_id": 1, "keypoints": pose, "score": score})
    return results


def coco_ap(
    gt_json: str | Path | dict,
    results: str | Path | list[dict],
    sigmas: Sequence[float] | None = None,
    keypoints: Sequence[int] | None = None,
) -> dict[str, float]:
    """The ten COCO keypoint figures, by pycocotools with 20 detections an image.

    Args:
        gt_json: COCO keypoint annotations, a path or what it holds.
        results: COCO keypoint results, a path or what it holds. No result at all scores 0.
        sigmas: K standard deviations; COCO's 17 if None.
        keypoints: Indices of the keypoints that count; the labels of others are ignored. All if None.

    Returns:
        AP AP50 AP75 APM APL AR AR50 AR75 ARM ARL in [0, 1]; -1 where no person could be found.

    Raises:
        HrnetppError: If a file or record cannot be used.
    """
    sigmas = np.asarray(COCO17.oks_sigmas if sigmas is None else sigmas)
    numbers = {"image_id": 1, "category_id": 1, "keypoints": 3 * len(sigmas)}
    truth = _load_truth(gt_json, {**numbers, "num_keypoints": 1})
    results = _load(results, list)
    _check_numbers(results, {**numbers, "score": 1}, "result")
    for part, field in (("images", "image_id"), ("categories", "category_id")):
        known = {record["id"] for record in truth[part]}
        for number, result in enumerate(results):
            if result[field] not in known:
                wrong = f"result {number}: {field} {result[field]!r} is not in the ground truth"
                raise HrnetppError(f"{wrong}; evaluate on the set predicted on, with persons as category 1")
    if not results:
        return dict.fromkeys(COCO_FIGURES, 0.0)  # pycocotools refuses an empty list
    persons = [dict(person) for person in truth["annotations"]]
    if keypoints is not None:
        left_out = np.delete(np.arange(len(sigmas)), np.asarray(keypoints))
        for person in persons:
            triples = np.array(person["keypoints"]).reshape(-1, 3)
            triples[left_out] = 0
            person |= {"keypoints": triples.ravel().tolist(), "num_keypoints": int((triples[:, 2] > 0).sum())}
    # A result may also hold its box, which pycocotools would take for what is to be scored.
    poses = [{field: result[field] for field in (*numbers, "score")} for result in results]
    figures = _evaluate({**truth, "annotations": persons}, poses, "keypoints", sigmas)
    return dict(zip(COCO_FIGURES, figures, strict=True))


def bbox_ap(gt_json: str | Path | dict, detections_json: str | Path | list[dict]) -> float:
    """Person box AP of a detector, by pycocotools.

    Args:
        gt_json: COCO annotations, a path or what it holds.
        detections_json: COCO box results, a path or what it holds; other categories than 1 and unknown
            images are left out.

    Raises:
        HrnetppError: If a file or record cannot be used.
    """
    numbers = {"image_id": 1, "category_id": 1, "bbox": 4, "score": 1}
    truth, detections = _load_truth(gt_json, {"image_id": 1, "category_id": 1}), _load(detections_json, list)
    _check_numbers(detections, numbers, "detection")
    known = {image["id"] for image in truth["images"]}
    boxes = [
        {field: detection[field] for field in numbers}
        for detection in detections
        if detection["category_id"] == 1 and detection["image_id"] in known
    ]
    if not boxes:
        return 0.0
    return _evaluate({**truth, "categories": [{"id": 1}]}, boxes, "bbox")[0]


def ai_challenger_ap(gt_json: str | Path | list, results: str | Path | list) -> dict[str, float]:
    """AI Challenger's own figure, which is not COCO AP.

    A true person takes its best similarity over the image's predictions, which may serve several; only
    keypoints with v = 1 count. An image counts max(true, predicted) persons.

    Args:
        gt_json: AI Challenger annotations, a path or what it holds.
        results: List of {image_id, keypoint_annotations {human: 14 x [x, y, v]}}, a path or what it holds.

    Returns:
        AP, the mean over the thresholds 0.50:0.05:0.95, and AP50, AP75, in [0, 1].

    Raises:
        HrnetppError: If a file or record cannot be used.

    Reference: Wu et al., arXiv 1711.06475; the challenge's evaluation code.
    """
    truth, predicted = _load_persons(gt_json, True), _load_persons(results, False)
    best, persons = [], 0
    for image_id, (poses, boxes) in truth.items():
        candidates = predicted[image_id][0] if image_id in predicted else np.zeros((0, 14, 3))
        best += [_best_similarity(pose, box, candidates) for pose, box in zip(poses, boxes, strict=True)]
        persons += max(len(poses), len(candidates))
    thresholds = np.linspace(0.5, 0.95, 10)
    precision = (np.array(best)[:, None] > thresholds).sum(axis=0) / max(persons, 1)
    return {"AP": float(precision.mean()), "AP50": float(precision[0]), "AP75": float(precision[5])}


def _load_persons(source: str | Path | list, boxed: bool) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Poses (n, 14, 3) and boxes (n, 4), as corners or zeros, of each image of an AI Challenger list."""
    persons = {}
    for number, record in enumerate(_load(source, list)):
        try:
            humans = record["keypoint_annotations"]
            boxes = record["human_annotations"] if boxed else dict.fromkeys(humans, [0] * 4)
            # Both are unordered: names tie them together, and each must have all of the other's.
            poses = np.array([humans[name] for name in boxes], np.float64).reshape(len(humans), 14, 3)
            corners = np.array(list(boxes.values()), np.float64).reshape(len(humans), 4)
            if record["image_id"] in persons or not (np.isfinite(poses).all() and np.isfinite(corners).all()):
                raise ValueError("a number is not finite, or the image occurs twice")
            persons[record["image_id"]] = poses, corners
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            wrong = f"AI Challenger {'annotation' if boxed else 'result'} {number}: {error!r}"
            remedy = "give each image once, 14 x [x, y, v] per person, and a box per true person"
            raise HrnetppError(f"{wrong}; {remedy}") from error
    return persons


def _best_similarity(pose: np.ndarray, box_xyxy: np.ndarray, poses: np.ndarray) -> float:
    """Best similarity of one true person (14, 3) with the poses (n, 14, 3) of its image."""
    visible = pose[:, 2] == 1
    if not visible.any() or not len(poses):
        return 0.0
    area = (box_xyxy[3] - box_xyxy[1]) * (box_xyxy[2] - box_xyxy[0]) + 1
    return float(oks(poses[:, visible], pose[visible], area, np.array(AIC14.oks_sigmas)[visible]).max())


def _evaluate(truth: dict, found: list[dict], kind: str, sigmas: np.ndarray | None = None) -> list[float]:
    """COCOeval's figures, without what it prints."""
    # COCOeval writes into the annotations it gets, and takes a match with one of id 0 for none.
    persons = [{**person, "id": number} for number, person in enumerate(truth["annotations"], 1)]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {**truth, "annotations": persons}
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(found), kind)
        evaluation.params.kpt_oks_sigmas = sigmas  # boxes have no use for them
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(figure) for figure in evaluation.stats]


def _load(source: str | Path | dict | list, kind: type) -> dict | list:
    """What a json file holds, or the thing itself, checked to be a dict or a list."""
    name, content = "the argument", source
    if isinstance(source, str | Path):
        name = str(source)
        try:
            content = json.loads(Path(source).read_text())
        except (OSError, ValueError) as error:
            raise HrnetppError(f"{name}: cannot be read as json ({error}); check the path") from error
    if not isinstance(content, kind):
        raise HrnetppError(f"{name}: holds a {type(content).__name__}, give a {kind.__name__}")
    return content


def _load_truth(source: str | Path | dict, lengths: dict[str, int]) -> dict:
    """COCO annotations with all that pycocotools asks for."""
    truth = _load(source, dict)
    for part in ("images", "annotations", "categories"):
        if not isinstance(truth.get(part), list):
            raise HrnetppError(f"ground truth has no list {part!r}; give COCO annotations")
        _check_numbers(truth[part], {"id": 1}, f"ground truth, {part}")
    _check_numbers(truth["annotations"], lengths | {"bbox": 4, "area": 1, "iscrowd": 1}, "annotation")
    return truth


def _check_numbers(records: list[dict], lengths: dict[str, int], what: str) -> None:
    """Refuse records without so many finite numbers in each field."""
    for number, record in enumerate(records):
        for field, length in lengths.items():
            try:
                numbers = np.array(record[field])
                fits = numbers.shape == ((length,) if length > 1 else ()) and numbers.dtype.kind in "biuf"
                good = fits and np.isfinite(numbers).all()
            except (KeyError, TypeError, ValueError):
                good = False
            if not good:
                raise HrnetppError(f"{what} {number}: needs {length} finite number(s) in {field!r}; mend it")
