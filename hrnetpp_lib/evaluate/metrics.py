"""The metrics: keypoint similarity, OKS-NMS, rescoring, COCO AP and AI Challenger's own AP."""

import contextlib
import io
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypedDict

import msgspec
import numpy as np
from msgspec import Meta
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from hrnetpp_lib.data.annotations import no_collection
from hrnetpp_lib.data.persons import CocoTruth
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.files import decode_json, read_json
from hrnetpp_lib.pose.keypoints import AIC14, COCO17

try:  # ten times as fast, of the same names
    import hotcoco
except ImportError:
    hotcoco = None

_ONE_PRINTS = threading.Lock()  # of two threads that redirect stdout, the last leaves the first one's
_POSES_AT_ONCE = 1024  # as many as a processor's cache holds
COCO_METRICS = ("AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL")


@dataclass(frozen=True, eq=False)
class ScoredPoses:
    """P poses as a metric takes them.

    Attributes:
        image_ids: (P,) of the same type as the truth's.
        keypoints: (P, K, 2) as (x, y) in image px.
        keypoint_scores: (P, K).
        scores: (P,) of the whole poses; the better ones choose first.
    """

    image_ids: np.ndarray
    keypoints: np.ndarray
    keypoint_scores: np.ndarray
    scores: np.ndarray


def keypoint_similarity(
    keypoints: np.ndarray, others: np.ndarray, areas: np.ndarray | float, sigmas: Sequence[float]
) -> np.ndarray:
    """(..., K) similarity of single keypoints in [0, 1]: a Gaussian of their distance, as wide as the person.

    Arguments as for `oks`, which is its mean.
    """
    squared = np.square(np.asarray(keypoints)[..., :2] - np.asarray(others)[..., :2])
    variance = np.square(2 * np.asarray(sigmas))
    # The smallest step above 1 keeps an area of 0 from dividing by it, as in the official code.
    squared = squared[..., 0] + squared[..., 1]  # several times as fast as numpy's sum over so short an axis
    return np.exp(-squared / variance / (np.asarray(areas)[..., None] + np.spacing(1)) / 2)


def oks(
    keypoints: np.ndarray,
    others: np.ndarray,
    areas: np.ndarray | float,
    sigmas: Sequence[float],
    counted: np.ndarray | None = None,
) -> np.ndarray:
    """Object keypoint similarity of poses, (...) in [0, 1]: the mean over their keypoints.

    Args:
        keypoints, others: (..., K, >=2) in image px, compared keypoint by keypoint.
        areas: (...) px^2 that the squared distances are measured against.
        sigmas: K per-keypoint standard deviations.
        counted: (..., K) bool, the keypoints to average over; all of them if None. A pose with none has 0.

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
    return suppress([np.arange(len(scores))], keypoints, areas, scores, threshold, sigmas)


def suppress(
    images: Iterable[np.ndarray],
    keypoints: np.ndarray,
    areas: np.ndarray,
    scores: np.ndarray,
    threshold: float = 0.9,
    sigmas: Sequence[float] = COCO17.oks_sigmas,
) -> np.ndarray:
    """`oks_nms` of many images at once.

    Args:
        images: The rows of each image.
        keypoints, areas, scores, threshold, sigmas: As for `oks_nms`, of all images.

    Returns:
        Rows of the poses kept, image by image, best first.
    """
    keypoints, areas = np.ascontiguousarray(keypoints)[..., :2], np.asarray(areas, np.float64)
    # The official code sorts like this, so equal scores come in its order too; a stable sort would differ.
    ordered = [rows[np.asarray(scores)[rows].argsort()[::-1]] for rows in images]
    rows = np.concatenate([np.zeros(0, np.int64), *ordered])
    image, kept = np.repeat(np.arange(len(ordered)), [len(part) for part in ordered]), [rows[:0]]
    for waiting in np.split(np.arange(len(rows)), np.unique(image.searchsorted(image[::_POSES_AT_ONCE])))[1:]:
        while len(waiting):  # each image's best pose at once
            best = np.r_[True, np.diff(image[waiting]) > 0]
            kept.append(waiting[best])
            better, waiting = rows[waiting[best][best.cumsum() - 1][~best]], waiting[~best]
            other = rows[waiting]
            similarity = oks(keypoints[better], keypoints[other], (areas[better] + areas[other]) / 2, sigmas)
            waiting = waiting[similarity <= threshold]
    return rows[np.sort(np.concatenate(kept))]


def rows_by_image(image_ids: np.ndarray) -> dict[object, np.ndarray]:
    """The rows of each image, images in the order of their first row."""
    ids, first, image = np.unique(image_ids, return_index=True, return_inverse=True)
    parts = np.split(np.argsort(image, kind="stable"), np.bincount(image).cumsum()[:-1])
    return {ids[number]: parts[number] for number in first.argsort()}


def rescore(keypoint_scores: np.ndarray, bbox_scores: np.ndarray, threshold: float = 0.2) -> np.ndarray:
    """Scores of persons, (N,): the box's score times the mean of the keypoint scores above a threshold.

    Args:
        keypoint_scores: (N, K).
        bbox_scores: (N,).
        threshold: Keypoints at or below it do not count; with none above it the score is 0.

    Reference: official HRNet, COCODataset.evaluate.
    """
    keypoint_scores = np.asarray(keypoint_scores)
    counted = keypoint_scores > threshold
    total = np.where(counted, keypoint_scores, 0).sum(axis=1)
    return np.asarray(bbox_scores) * total / np.maximum(counted.sum(axis=1), 1)


def match_coco(truth: CocoTruth, poses: ScoredPoses) -> COCOeval | None:
    """Matches of found with true persons, 20 poses an image; None without poses.

    Their images are numbered in the order of the truth's ids. By hotcoco where it is installed, else by
    pycocotools: the metrics are equal to the last bit, but for a pose whose similarities to two persons are
    the same sum in another order, which each library rounds in its own way.

    Raises: HrnetppError if a pose is of no image of the truth.
    """
    ids, keypoints = np.unique(truth.image_ids), [poses.keypoints, poses.keypoint_scores[..., None]]
    if not np.isin(poses.image_ids, ids).all():
        raise HrnetppError("poses of images that the truth does not list; score them on the set predicted on")
    true = {
        "image_id": ids.searchsorted(truth.image_ids[truth.image_index]),
        "bbox": truth.bboxes_xywh,
        "area": truth.areas,
        "iscrowd": truth.crowd.astype(int),
        "num_keypoints": truth.num_keypoints,
        "keypoints": truth.keypoints.reshape(-1, 3 * len(truth.skeleton)),
    }
    triples = np.concatenate(keypoints, axis=2).reshape(-1, 3 * len(truth.skeleton))
    found = {"image_id": ids.searchsorted(poses.image_ids), "keypoints": triples, "score": poses.scores}
    for persons in (true, found):
        persons["category_id"] = np.zeros(len(persons["image_id"]), int)
    return _match(len(ids), 1, true, found, "keypoints")


@no_collection()
def _match(
    images: int, categories: int, true: dict[str, np.ndarray], found: dict[str, np.ndarray], kind: str
) -> COCOeval | None:
    """COCOeval of columns of persons, summarised without a word; images and categories numbered from 0."""
    if not len(found["score"]):
        return None  # pycocotools refuses an empty list
    true = true | {"id": np.arange(1, len(true["area"]) + 1)}  # a match with one of id 0 is taken for none
    truth = {
        "images": [{"id": number} for number in range(images)],
        "annotations": _records(true),
        "categories": [{"id": number, "name": str(number)} for number in range(categories)],
    }
    library = (hotcoco.COCO, hotcoco.COCOeval) if hotcoco else (COCO, COCOeval)
    return _evaluate(*library, truth, _records(found), kind)


def _records(columns: dict[str, np.ndarray]) -> list[dict]:
    """Persons as pycocotools takes them."""
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _evaluate(coco: type, coco_eval: type, truth: dict, found: list[dict], kind: str) -> COCOeval:
    """All that is COCO, by one of two libraries that share their names; it may write into the records."""
    with _ONE_PRINTS, contextlib.redirect_stdout(io.StringIO()):
        reference = coco()
        reference.dataset = truth
        reference.createIndex()
        matches = coco_eval(reference, reference.loadRes(found), kind)
        matches.params.kpt_oks_sigmas = np.array(COCO17.oks_sigmas)
        matches.evaluate()
        matches.accumulate()
        matches.summarize()
    return matches


def coco_metrics(matches: COCOeval | None) -> dict[str, float]:
    """The ten COCO metrics of matched poses by their names, in [0, 1]; see `coco_ap`."""
    if matches is None:
        return dict.fromkeys(COCO_METRICS, 0.0)
    return dict(zip(COCO_METRICS, matches.stats.tolist(), strict=False))  # boxes have twelve, AP first


def ai_challenger_metrics(
    images: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]], sigmas: Sequence[float] = AIC14.oks_sigmas
) -> dict[str, float]:
    """AI Challenger's own metric; see `ai_challenger_ap`.

    Of each image it takes the true keypoints (n, K, 3), of which those with v = 2 count, the areas of their
    boxes (n,) px^2, and the predicted keypoints (m, K, >=2), in image px.
    """
    best, persons, sigmas = [], 0, np.array(sigmas)
    for truth, areas, found in images:
        persons += max(len(truth), len(found))
        for pose, area in zip(truth, areas, strict=True):
            visible = pose[:, 2] == 2
            similarity = 0.0
            if visible.any() and len(found):
                similarity = oks(found[:, visible], pose[visible], area + 1, sigmas[visible]).max()
            best.append(similarity)
    precision = (np.array(best)[:, None] > np.linspace(0.5, 0.95, 10)).sum(axis=0) / max(persons, 1)
    return {"AP": float(precision.mean()), "AP50": float(precision[0]), "AP75": float(precision[5])}


# ------------------------------------------------------------------------- files and lists, checked here

_Number = Annotated[float, Meta(gt=-1e9, lt=1e9)]
_Id = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
_Box = Annotated[list[_Number], Meta(min_length=4, max_length=4)]
_Keypoints = Annotated[list[_Number], Meta(min_length=51, max_length=51)]
_Keypoints14 = Annotated[list[_Number], Meta(min_length=42, max_length=42)]
_Area = Annotated[float, Meta(ge=0, lt=1e18)]
_Count = Annotated[int, Meta(ge=0, le=17)]

# What is read of each record; it may hold more.
_PERSON = {"image_id": _Id, "category_id": _Id}
_TRUE_BOX = _PERSON | {"bbox": _Box, "area": _Area, "iscrowd": Literal[0, 1] | bool}
_TRUE_POSE = _TRUE_BOX | {"num_keypoints": _Count, "keypoints": _Keypoints}
_FOUND_BOX = _PERSON | {"score": _Number, "bbox": _Box}
_FOUND_POSE = _PERSON | {"score": _Number, "keypoints": _Keypoints}
_FOUND_HUMANS = {"image_id": str, "keypoint_annotations": dict[str, _Keypoints14]}
_TRUE_HUMANS = _FOUND_HUMANS | {"human_annotations": dict[str, _Box]}


def coco_ap(gt_json: str | Path | dict, results: str | Path | list[dict]) -> dict[str, float]:
    """The ten COCO keypoint metrics, 20 poses an image, as pycocotools computes them.

    Where hotcoco is installed it does, at a tenth of the time; see `match_coco`.

    Args:
        gt_json: COCO keypoint annotations, a path or what it holds.
        results: COCO keypoint results, a path or what it holds; their boxes, if any, are not looked at.

    Returns:
        AP AP50 AP75 APM APL AR AR50 AR75 ARM ARL in [0, 1]; -1 where no person could be found. No result at
        all scores 0.

    Raises: HrnetppError if a file or record cannot be used.
    """
    truth, found = _load_truth(gt_json, _TRUE_POSE), _load(results, _list_of(_FOUND_POSE), "results")
    for part, field in (("images", "image_id"), ("categories", "category_id")):
        known = {record["id"] for record in truth[part]}
        for number, result in enumerate(found):
            if result[field] not in known:
                wrong = f"result {number}: {field} {result[field]} is not in the ground truth"
                raise HrnetppError(f"{wrong}; evaluate on the set predicted on, with persons as category 1")
    return coco_metrics(_match_records(truth, found, _TRUE_POSE, _FOUND_POSE, "keypoints"))


def bbox_ap(gt_json: str | Path | dict, detections_json: str | Path | list[dict]) -> float:
    """Person box AP of a detector, as pycocotools computes it.

    Args:
        gt_json: COCO annotations, a path or what it holds.
        detections_json: COCO box results, a path or what it holds; other categories than 1 and unknown
            images are left out.

    Raises: HrnetppError if a file or record cannot be used.
    """
    truth, found = _load_truth(gt_json, _TRUE_BOX), _load(detections_json, _list_of(_FOUND_BOX), "detections")
    known = {image["id"] for image in truth["images"]}
    boxes = [box for box in found if box["category_id"] == 1 and box["image_id"] in known]
    persons = [box for box in truth["annotations"] if box["category_id"] == 1]
    truth = truth | {"annotations": persons, "categories": [{"id": 1}]}
    return coco_metrics(_match_records(truth, boxes, _TRUE_BOX, _FOUND_BOX, "bbox"))["AP"]


def _match_records(
    truth: dict, found: list[dict], true_fields: dict, found_fields: dict, kind: str
) -> COCOeval:
    """`_match` of records with these fields."""
    ids = {part: np.unique([record["id"] for record in truth[part]]) for part in ("images", "categories")}
    sides = []
    for records, fields in ((truth["annotations"], true_fields), (found, found_fields)):
        columns = {name: np.array([record[name] for record in records]) for name in fields}
        for part, field in (("images", "image_id"), ("categories", "category_id")):
            columns[field] = ids[part].searchsorted(columns[field])
        sides.append(columns)
    return _match(len(ids["images"]), len(ids["categories"]), *sides, kind)


def ai_challenger_ap(gt_json: str | Path | list, results: str | Path | list) -> dict[str, float]:
    """AI Challenger's own metric, which is not COCO AP.

    A true person takes its best similarity over the image's predictions, which may serve several; only
    keypoints with v = 1 count. An image counts max(true, predicted) persons.

    Args:
        gt_json: AI Challenger annotations, a path or what it holds.
        results: List of {image_id, keypoint_annotations {human: 14 x [x, y, v]}}, a path or what it holds.

    Returns:
        AP, the mean over the thresholds 0.50:0.05:0.95, and AP50, AP75, in [0, 1].

    Raises: HrnetppError if a file or record cannot be used.

    Reference: Wu et al., arXiv 1711.06475; the challenge's evaluation code.
    """
    truth = _load_humans(gt_json, _TRUE_HUMANS, "annotation")
    predicted, images = _load_humans(results, _FOUND_HUMANS, "result"), []
    for number, (image_id, record) in enumerate(truth.items()):
        # Both parts are unordered: names tie them together, and each must have all of the other's.
        poses, boxes = record["keypoint_annotations"], record["human_annotations"]
        corners = np.array([boxes.get(name, [np.nan] * 4) for name in poses]).reshape(-1, 2, 2)
        sizes = corners[:, 1] - corners[:, 0]
        if len(poses) != len(boxes) or not (sizes >= 0).all():
            wrong = f"AI Challenger annotation {number}: persons and boxes do not belong together"
            raise HrnetppError(f"{wrong}; give each person one box as x1, y1, x2, y2")
        found = predicted[image_id]["keypoint_annotations"] if image_id in predicted else {}
        keypoints, found = (np.array(list(part.values())).reshape(-1, 14, 3) for part in (poses, found))
        keypoints[..., 2] = 3 - keypoints[..., 2]  # 1 visible, 2 hidden, 3 not labelled -> 2, 1, 0
        images.append((keypoints, sizes.prod(axis=1), found))
    return ai_challenger_metrics(images)


def _load_humans(source: str | Path | list, fields: dict[str, object], what: str) -> dict[str, dict]:
    """AI Challenger's records by image."""
    images = {}
    for number, record in enumerate(_load(source, _list_of(fields), f"AI Challenger {what}s")):
        if images.setdefault(record["image_id"], record) is not record:
            wrong = f"AI Challenger {what} {number}: its image has come before"
            raise HrnetppError(f"{wrong}; give each image once")
    return images


def _load_truth(source: str | Path | dict, fields: dict[str, object]) -> dict:
    """COCO annotations with all that pycocotools asks for."""
    listed = _list_of({"id": _Id})
    parts = {"images": listed, "annotations": _list_of(fields), "categories": listed}
    truth = _load(source, TypedDict("_Coco", parts), "ground truth")
    images, categories = ({record["id"] for record in truth[part]} for part in ("images", "categories"))
    for number, person in enumerate(truth["annotations"]):
        listed = person["image_id"] in images and person["category_id"] in categories
        if not listed or min(person["bbox"][2:]) < 0:
            wrong = "its image or category is not listed, or its box has a negative size"
            raise HrnetppError(f"annotation {number}: {wrong}; mend it")
    return truth


def _list_of(fields: dict[str, object]) -> type:
    """Records of these fields."""
    return list[TypedDict("_Record", fields)]


def _load(source: str | Path | dict | list, kind: type, name: str) -> dict | list:
    """The fields of a type in a json file or in a thing of that form, which is left as it is."""
    if isinstance(source, str | Path):
        return read_json(Path(source), kind, "check the path, or mend it")
    try:
        text = msgspec.json.encode(source, enc_hook=lambda array: array.tolist())
    except Exception as error:  # what json does not know: foreign objects, lone surrogates, deep nesting
        raise HrnetppError(f"{name}: cannot be written as json ({str(error)[:200]}); mend it") from None
    return decode_json(text, kind, name, "mend it")
