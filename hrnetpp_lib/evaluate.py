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
from hrnetpp_lib.keypoints import AIC14, COCO17

COCO_FIGURES = ("AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL")


def oks(
    keypoints: np.ndarray, others: np.ndarray, areas: np.ndarray | float, sigmas: Sequence[float]
) -> np.ndarray:
    """Object keypoint similarity of one pose with others, over all keypoints.

    Args:
        keypoints: (K, >=2) in image px.
        others: (N, K, >=2) in image px.
        areas: (N,) or one number, px^2, that the squared distances are measured against.
        sigmas: K per-keypoint standard deviations.

    Returns:
        (N,) in [0, 1].

    Reference: COCO keypoint evaluation; official HRNet, oks_iou.
    """
    squared = np.square(others[:, :, :2] - keypoints[None, :, :2]).sum(axis=2)
    variance = np.square(2 * np.asarray(sigmas))
    scale = np.broadcast_to(np.asarray(areas, np.float64), len(others))[:, None] + np.spacing(1)
    return np.exp(-squared / variance / scale / 2).mean(axis=1)


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
        scores: (N,); of equal scores the later pose goes first, as in the official code.
        threshold: A pose goes if its OKS with a kept one exceeds this.
        sigmas: K per-keypoint standard deviations.

    Returns:
        Indices of the poses kept, best first.

    Reference: official HRNet, oks_nms.
    """
    areas, order = np.asarray(areas, np.float64), np.asarray(scores).argsort()[::-1]
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
    counted = keypoint_scores > threshold
    total = np.where(counted, keypoint_scores, 0).sum(axis=1)
    return bbox_scores * total / np.maximum(counted.sum(axis=1), 1)


def to_coco_results(
    image_ids: np.ndarray,
    keypoints: np.ndarray,
    keypoint_scores: np.ndarray,
    bbox_scores: np.ndarray,
    areas: np.ndarray,
    scored: np.ndarray | None = None,
) -> list[dict]:
    """Rescore poses, suppress repetitions image by image, and write what is left as COCO results.

    Args:
        image_ids: (N,) integers.
        keypoints: (N, 17, 2) in image px.
        keypoint_scores: (N, 17).
        bbox_scores: (N,).
        areas: (N,) px^2 of the padded boxes.
        scored: (17,) bool; keypoints that take part in score and suppression. Leave out those that never
            had a label in training: their heatmaps mean nothing.

    Returns:
        COCO keypoint results, per image best first.
    """
    scored = np.ones(keypoints.shape[1], bool) if scored is None else np.asarray(scored, bool)
    scores = rescore(keypoint_scores[:, scored], bbox_scores)
    sigmas = np.asarray(COCO17.oks_sigmas)[scored]
    triples = np.concatenate([keypoints, keypoint_scores[:, :, None]], axis=2).astype(np.float64)
    persons = defaultdict(list)
    for person, image_id in enumerate(image_ids.tolist()):
        persons[image_id].append(person)
    results = []
    for image_id, members in persons.items():
        members = np.array(members)
        kept = members[oks_nms(triples[members][:, scored], areas[members], scores[members], 0.9, sigmas)]
        results += [
            {
                "image_id": image_id,
                "category_id": 1,
                "keypoints": triples[person].ravel().tolist(),
                "score": float(scores[person]),
            }
            for person in kept
        ]
    return results


def coco_ap(
    gt_json: str | Path | dict, results: str | Path | list[dict], sigmas: Sequence[float] | None = None
) -> dict[str, float]:
    """The ten COCO keypoint figures, by pycocotools with 20 detections an image.

    Args:
        gt_json: COCO keypoint annotations, a path or what it holds.
        results: COCO keypoint results, a path or what it holds. No result at all scores 0.
        sigmas: 17 standard deviations other than COCO's.

    Returns:
        AP AP50 AP75 APM APL AR AR50 AR75 ARM ARL in [0, 1]; -1 where there is nothing to be found.

    Raises:
        HrnetppError: If a file or record cannot be used.
    """
    truth, results = _load(gt_json, dict), _load(results, list)
    _check_results(truth, results)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        # pycocotools refuses an empty list; a result that fits nothing scores the same.
        found = coco.loadRes([dict(result) for result in results]) if results else _no_results(coco)
        evaluation = COCOeval(coco, found, "keypoints")
        evaluation.params.imgIds = sorted(image["id"] for image in truth["images"])
        if sigmas is not None:
            evaluation.params.kpt_oks_sigmas = np.asarray(sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(COCO_FIGURES, map(float, evaluation.stats), strict=True))


def bbox_ap(gt_json: str | Path, detections_json: str | Path) -> float:
    """Person box AP of a detector, by pycocotools.

    Args:
        gt_json: COCO annotations.
        detections_json: COCO box results; other categories than 1 and unknown images are left out.

    Raises:
        HrnetppError: If a file cannot be used.
    """
    truth, detections = _load(gt_json, dict), _load(detections_json, list)
    known = {image["id"] for image in truth["images"]}
    persons = [d for d in detections if d.get("category_id") == 1 and d.get("image_id") in known]
    if not persons:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(persons), "bbox")
        evaluation.params.catIds = [1]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


def ai_challenger_ap(gt_json: str | Path | list, results: str | Path | list) -> dict[str, float]:
    """AI Challenger's own figure, which is not COCO AP.

    A true person takes its best similarity over the image's predictions, which may serve several; only
    keypoints with v = 1 count. An image counts max(true, predicted) persons. An image without prediction
    counts its true persons.

    Args:
        gt_json: AI Challenger annotations, a path or what it holds.
        results: List of {image_id, keypoint_annotations {human: 14 x [x, y, v]}}, a path or what it holds.

    Returns:
        AP, the mean over the thresholds 0.50:0.05:0.95, and AP50, AP75, in [0, 1].

    Raises:
        HrnetppError: If a file or record cannot be used.

    Reference: Wu et al., arXiv 1711.06475; the challenge's evaluation code.
    """
    truth, predicted = _load(gt_json, list), _load(results, list)
    try:
        by_image = {record["image_id"]: _poses(record) for record in predicted}
        best, persons = [], 0
        for record in truth:
            poses = by_image.get(record["image_id"], np.zeros((0, 14, 3)))
            names = list(record["human_annotations"])
            boxes = [record["human_annotations"][name] for name in names]
            best += [
                _best_similarity(pose, box, poses) for pose, box in zip(_poses(record, names), boxes, strict=True)
            ]
            persons += max(len(names), len(poses))
    except (KeyError, TypeError, ValueError) as error:
        raise HrnetppError(f"AI Challenger record with a missing or odd field: {error!r}") from error
    thresholds = np.linspace(0.5, 0.95, 10)
    precision = (np.array(best)[:, None] > thresholds).sum(axis=0) / max(persons, 1)
    return {"AP": float(precision.mean()), "AP50": float(precision[0]), "AP75": float(precision[5])}


def _poses(record: dict, names: list[str] | None = None) -> np.ndarray:
    """(n, 14, 3) of an AI Challenger record."""
    humans = record["keypoint_annotations"]
    return np.array([humans[name] for name in names or humans], np.float64).reshape(-1, 14, 3)


def _best_similarity(pose: np.ndarray, box_xyxy: list[float], poses: np.ndarray) -> float:
    """Best similarity of one true person (14, 3) with the poses (n, 14, 3) of its image."""
    visible = pose[:, 2] == 1
    if not visible.any() or not len(poses):
        return 0.0
    area = (box_xyxy[3] - box_xyxy[1]) * (box_xyxy[2] - box_xyxy[0]) + 1
    squared = np.square(poses[:, visible, :2] - pose[visible, :2]).sum(axis=2)
    variance = np.square(2 * np.array(AIC14.oks_sigmas)[visible])
    return float(np.exp(-squared / 2 / variance / area).mean(axis=1).max())


def _load(source: str | Path | dict | list, kind: type) -> dict | list:
    """What a json file holds, or the thing itself, checked to be a dict or a list."""
    name, content = "the argument", source
    if isinstance(source, str | Path):
        name = str(source)
        try:
            content = json.loads(Path(source).read_text())
        except (OSError, ValueError) as error:
            raise HrnetppError(f"{name}: cannot be read as json ({error})") from error
    if not isinstance(content, kind):
        raise HrnetppError(f"{name}: holds a {type(content).__name__}, expected a {kind.__name__}")
    return content


def _check_results(truth: dict, results: list[dict]) -> None:
    """Refuse results that pycocotools would trip over or silently misread."""
    for part in ("images", "annotations", "categories"):
        if part not in truth:
            raise HrnetppError(f"ground truth has no field {part!r}; give COCO keypoint annotations")
    known = {image["id"] for image in truth["images"]}
    for number, result in enumerate(results):
        missing = {"image_id", "category_id", "keypoints", "score"} - result.keys()
        if missing:
            raise HrnetppError(f"result {number}: has no field {', '.join(sorted(missing))}")
        if result["image_id"] not in known:
            raise HrnetppError(
                f"result {number}: image_id {result['image_id']!r} is not in the ground truth; "
                "evaluate on the set that was predicted on"
            )
        numbers = [*result["keypoints"], result["score"]]
        if len(numbers) != 52 or not np.isfinite(numbers).all():
            raise HrnetppError(f"result {number}: needs 51 finite keypoint numbers and a finite score")


def _no_results(coco: COCO) -> COCO:
    """An index of no results over the same images."""
    empty = COCO()
    empty.dataset = {**coco.dataset, "annotations": []}
    empty.createIndex()
    return empty
