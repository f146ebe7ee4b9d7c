"""COCO, AI Challenger and Leeds annotation files, read into one flat and validated table of persons.

A schema of each format bounds what the parser takes, so that every number fits the array that it goes into;
what ties records together is checked on the arrays.
"""

import contextlib
import gc
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, replace
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from msgspec import Meta, Struct

from hrnetpp_lib.data.lspe import read_lspe as read_lspe
from hrnetpp_lib.data.persons import CocoTruth, PersonTable, first_few
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.files import read_json
from hrnetpp_lib.pose.keypoints import AIC14, COCO17

_MOST = 2.0**24  # px; beyond it float32 leaves out whole numbers
_Number = Annotated[float, Meta(ge=-_MOST, le=_MOST)]
_Box = tuple[_Number, _Number, _Number, _Number]
_Id = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
_Side = Annotated[int, Meta(gt=0, le=int(_MOST))]
_Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
_Name = Annotated[str, Meta(min_length=1, max_length=255)]

MEND_TRUTH = "is it COCO ground truth? Correct it or get it again"
_NO_NAME = re.compile(r"[\0-\x1f]|^[/\\]|^[A-Za-z]:|(^|[/\\])\.\.([/\\]|$)")
_AIC_TO_COCO_VISIBILITY = np.array([0, 2, 1, 0], np.float32)  # 1 visible, 2 occluded, 3 unlabelled


class _Image(Struct, gc=False):
    id: _Id
    file_name: _Name
    height: _Side
    width: _Side


class _Category(Struct, gc=False):
    id: _Id
    name: str


class _Annotation(Struct, gc=False):
    id: _Id
    image_id: _Id
    category_id: _Id
    bbox: _Box
    area: Annotated[float, Meta(ge=0, le=_MOST**2)]
    iscrowd: Literal[0, 1]
    keypoints: list[_Number] = []  # other categories have other numbers of them, or none
    num_keypoints: _Count = -1


class _CocoImages(Struct):
    images: list[_Image]
    categories: list[_Category]


class _CocoFile(_CocoImages):
    annotations: list[_Annotation]


class _Detection(Struct, gc=False):
    image_id: _Id
    category_id: _Id
    bbox: _Box
    score: _Number


class _NamedDetection(_Detection, gc=False):
    file_name: str = ""


_ChallengerPose = Annotated[list[_Number], Meta(min_length=3 * len(AIC14), max_length=3 * len(AIC14))]


class _ChallengerImage(Struct, gc=False):
    image_id: _Name
    human_annotations: dict[str, _Box]
    keypoint_annotations: dict[str, _ChallengerPose]


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """No search for cycles meanwhile: among a million new lists it would cost more than the work."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def read_coco(json_path: str | Path, image_dir: str | Path, require_keypoints: bool = True) -> PersonTable:
    """Ground-truth persons of a COCO person_keypoints file, without crowds; see `labelled_persons`.

    Args:
        json_path: For example person_keypoints_train2017.json.
        image_dir: Folder of its images.
        require_keypoints: Drop persons without a labelled keypoint, as training does.

    Raises:
        HrnetppError: If the file or folder is missing, the json is broken, or a record is not well formed.
    """
    return labelled_persons(read_coco_truth(json_path, image_dir), require_keypoints)


def labelled_persons(truth: CocoTruth, require_keypoints: bool = True) -> PersonTable:
    """Persons to train on or to take the true boxes of: clipped to the image, those without area dropped.

    `dropped` counts what was left out, by the first to apply: other_category, crowd, empty_box, no_keypoints.
    """
    start = np.maximum(truth.bboxes_xywh[:, :2], 0)
    # DEVIATION: boxes are clipped to the whole image; the official loader takes a pixel off true ones.
    image_wh = truth.image_hw[truth.image_index][:, ::-1]
    end = np.minimum(truth.bboxes_xywh[:, :2] + truth.bboxes_xywh[:, 2:], image_wh)
    bboxes, keypoints = np.hstack([start, end - start]), truth.keypoints.astype(np.float32)
    keypoints[keypoints[..., 2] == 0] = 0
    columns = {field.name: getattr(truth, field.name) for field in fields(PersonTable)}
    table = PersonTable(**columns | {"bboxes_xywh": bboxes, "keypoints": keypoints})
    empty = (bboxes[:, 2:] <= 0).any(1) | (truth.areas <= 0)
    unlabelled = ~(keypoints[..., 2] > 0).any(1) & require_keypoints
    return _drop(table, {"crowd": truth.crowd, "empty_box": empty, "no_keypoints": unlabelled})


@no_collection()
def read_coco_truth(json_path: str | Path, image_dir: str | Path) -> CocoTruth:
    """As `read_coco`, but all persons as they are, for its metric; only other categories are dropped."""
    path, folder = Path(json_path), _existing_folder(image_dir)
    mend = "is it COCO ground truth with keypoints? Correct it or get it again"
    file = read_json(path, _CocoFile, mend=mend)
    images, known, category = _coco_images(path, file)
    ids = _unique(path, "annotation", np.array([annotation.id for annotation in file.annotations], np.int64))
    categories = np.array([annotation.category_id for annotation in file.annotations], np.int64)
    _forbid(path, "annotation", ids, ~np.isin(categories, known), "its category_id is not a category's")
    persons, ids = [a for a in file.annotations if a.category_id == category], ids[categories == category]
    image_index = _find([person.image_id for person in persons], images["image_ids"])
    _forbid(path, "annotation", ids, image_index < 0, "its image_id is not among the images")
    wrong = np.array([len(person.keypoints) != 3 * len(COCO17) for person in persons], bool)
    _forbid(path, "annotation", ids, wrong, f"its keypoints are not {3 * len(COCO17)} numbers")
    keypoints = _numbers((person.keypoints for person in persons), (len(persons), len(COCO17), 3))
    wrong = ~np.isin(keypoints[..., 2], (0, 1, 2)).all(1)
    _forbid(path, "annotation", ids, wrong, "a keypoint's v is not 0, 1 or 2")
    counts = np.array([person.num_keypoints for person in persons], np.int64)
    _forbid(path, "annotation", ids, counts < 0, "it has no num_keypoints")
    bboxes, scores = _numbers((person.bbox for person in persons), (len(persons), 4)), np.ones(len(persons))
    areas = np.array([person.area for person in persons], np.float64)
    crowd = np.array([person.iscrowd for person in persons], bool)
    dropped = {"other_category": len(file.annotations) - len(persons)}
    source = (str(path), COCO17, folder, *images.values(), image_index, ids)
    return CocoTruth(*source, bboxes, scores, areas, keypoints, dropped, counts, crowd, category)


@no_collection()
def read_coco_detections(
    json_path: str | Path,
    gt_json: str | Path | CocoTruth,
    image_dir: str | Path,
    score_threshold: float = 0.0,
    allow_unknown_images: bool = False,
) -> PersonTable:
    """Person boxes of a COCO result list, for the images of a ground-truth file; boxes are not clipped.

    `dropped` counts other_category, unknown_image, below_score_threshold, empty_box, by the first to apply.

    Args:
        json_path: For example COCO_val2017_detections_AP_H_56_person.json; other classes may be in it.
        gt_json: COCO file with the images and the categories, or what `read_coco_truth` read of it.
        image_dir: Folder of the images.
        score_threshold: Boxes that score less are dropped.
        allow_unknown_images: Drop detections in images that gt_json does not list, to evaluate on a subset.
            Otherwise they are an error, because they usually mean that the files are of different splits.

    Raises:
        HrnetppError: If a file or folder is missing, a json is broken, or a record is not well formed.
    """
    path, folder = Path(json_path), _existing_folder(image_dir)
    if isinstance(gt_json, CocoTruth):
        images = {column: getattr(gt_json, column) for column in ("image_files", "image_ids", "image_hw")}
        gt_json, category = gt_json.name, gt_json.category_id
    else:
        file = read_json(Path(gt_json), _CocoImages, mend=MEND_TRUTH)
        images, _, category = _coco_images(Path(gt_json), file)
    remedy = "is it a COCO result list of boxes? Correct it or write it again"
    detections = read_json(path, list[_Detection], mend=remedy)
    other = np.array([detection.category_id != category for detection in detections], bool)
    image_ids = [detection.image_id for detection in detections]
    image_index = _find(image_ids, images["image_ids"])
    unknown = sorted({image_ids[number] for number in np.flatnonzero((image_index < 0) & ~other)})
    if unknown and not allow_unknown_images:
        raise HrnetppError(
            f"{path}: {len(unknown)} image ids are not in {gt_json}: {first_few(unknown)}; use the ground "
            "truth of the same split, or (from Python) pass allow_unknown_images=True to evaluate on a subset"
        )
    bboxes = _numbers((detection.bbox for detection in detections), (len(detections), 4))
    scores = np.array([detection.score for detection in detections], np.float64)
    nowhere = np.zeros((len(detections), len(COCO17), 3), np.float32)
    source = (str(path), COCO17, folder, *images.values(), image_index)
    table = _numbered(source, bboxes, bbox_scores=scores, keypoints=nowhere)
    reasons = {"other_category": other, "unknown_image": image_index < 0}
    reasons |= {"below_score_threshold": scores < score_threshold, "empty_box": (bboxes[:, 2:] <= 0).any(1)}
    return _drop(table, reasons)


@no_collection()
def read_person_boxes(json_path: str | Path) -> dict[int | str, np.ndarray]:
    """Boxes of persons, category 1, in a COCO result list, without the ground truth of its images.

    Returns:
        (n, 5) x, y, w, h in image px, and score, for each picture by its file name, without folders, if the
        records have a `file_name`, else by its image id.

    Raises: HrnetppError if the file is missing, broken or no such list.
    """
    path, remedy = Path(json_path), "is it a COCO result list of boxes? Correct it or write it again"
    rows: dict[int | str, list] = {}
    for found in read_json(path, list[_NamedDetection], mend=remedy):
        if found.category_id == 1:
            rows.setdefault(_base_name(found.file_name) or found.image_id, []).append(
                (*found.bbox, found.score)
            )
    return {key: np.array(of_picture) for key, of_picture in rows.items()}


def read_image_ids(json_path: str | Path) -> dict[str, int]:
    """The image id that a COCO ground-truth file gives each file name, without folders.

    Raises: HrnetppError if the file is missing, broken or no such file.
    """
    file = read_json(Path(json_path), _CocoImages, mend=MEND_TRUTH)
    return {_base_name(image.file_name): image.id for image in file.images}


def _base_name(file_name: str) -> str:
    return file_name.replace("\\", "/").rsplit("/", 1)[-1]


@no_collection()
def read_ai_challenger(
    json_path: str | Path, image_dir: str | Path, require_keypoints: bool = True
) -> PersonTable:
    """Persons of an AI Challenger keypoint file, visibility turned into COCO's convention.

    Persons keep the file's own order, in which human3 may precede human1; person_ids number them from 0.
    Labelled keypoints outside their box are kept. `dropped` counts empty_box and no_keypoints.

    Args, and Raises: HrnetppError, as of `read_coco`.

    Reference: Wu et al., AI Challenger, arXiv 1711.06475.
    """
    path, folder = Path(json_path), _existing_folder(image_dir)
    remedy = "is it a list of AI Challenger's annotations? Correct it or get it again"
    images = read_json(path, list[_ChallengerImage], mend=remedy)
    names = [image.image_id for image in images]
    image_ids = np.array([name.encode() for name in names], np.bytes_)
    columns = _images(path, names, image_ids, np.full((len(names), 2), -1, np.int32))
    wrong = [image.human_annotations.keys() != image.keypoint_annotations.keys() for image in images]
    problem = "human_annotations and keypoint_annotations do not name the same humans"
    _forbid(path, "image", image_ids, np.array(wrong, bool), problem)
    humans = [(image, human) for image in images for human in image.human_annotations]
    image_index = np.repeat(np.arange(len(images)), [len(image.human_annotations) for image in images])
    bboxes = _numbers((image.human_annotations[human] for image, human in humans), (len(humans), 4))
    bboxes[:, 2:] -= bboxes[:, :2]  # the file holds corners; no pixel is added
    rows = (image.keypoint_annotations[human] for image, human in humans)
    keypoints = _numbers(rows, (len(humans), len(AIC14), 3))
    wrong = ~np.isin(keypoints[..., 2], (1, 2, 3)).all(1)
    _forbid(path, "image", image_ids[image_index], wrong, "a keypoint's v is not 1, 2 or 3")
    keypoints[..., 2] = _AIC_TO_COCO_VISIBILITY[keypoints[..., 2].astype(np.int8)]
    keypoints[keypoints[..., 2] == 0] = 0
    columns["image_files"] = np.char.add(image_ids, b".jpg")
    source = (str(path), AIC14, folder, *columns.values(), image_index.astype(np.int32))
    table = _numbered(
        source, bboxes, bbox_scores=np.ones(len(bboxes)), keypoints=keypoints.astype(np.float32)
    )
    unlabelled = ~(keypoints[..., 2] > 0).any(1) & require_keypoints
    return _drop(table, {"empty_box": (bboxes[:, 2:] <= 0).any(1), "no_keypoints": unlabelled})


def _numbered(source: tuple, bboxes: np.ndarray, **columns: np.ndarray) -> PersonTable:
    """A table (`source`: name to image_index) of persons numbered as in the file, with their boxes' areas."""
    areas = bboxes[:, 2] * bboxes[:, 3]
    return PersonTable(*source, np.arange(len(bboxes)), bboxes, areas=areas, dropped={}, **columns)


def _coco_images(path: Path, file: _CocoImages) -> tuple[dict[str, np.ndarray], np.ndarray, int]:
    """The image columns of a COCO file, all its category ids, and the one named person."""
    ids = _unique(path, "category", np.array([category.id for category in file.categories], np.int64))
    names = [category.name for category in file.categories]
    if names.count("person") != 1:
        found = first_few([repr(name) for name in names]) or "none"
        raise HrnetppError(f"{path}: one category must be named 'person', found {found}; correct them")
    image_ids = np.array([image.id for image in file.images], np.int64)
    image_hw = np.array([(image.height, image.width) for image in file.images], np.int32).reshape(-1, 2)
    columns = _images(path, [image.file_name for image in file.images], image_ids, image_hw)
    return columns, ids, int(ids[names.index("person")])


def _images(path: Path, names: list[str], ids: np.ndarray, image_hw: np.ndarray) -> dict[str, np.ndarray]:
    """The image columns of a table, in its order; no name leads out of the image folder."""
    for name in filter(_NO_NAME.search, names):
        raise HrnetppError(f"{path}: {name!r} names no file within the image folder; correct it")
    files = np.array([name.encode() for name in names], np.bytes_)
    return {"image_files": files, "image_ids": _unique(path, "image", ids), "image_hw": image_hw}


def _numbers(rows: Iterable[Sequence[float]], shape: tuple[int, ...]) -> np.ndarray:
    """Lists of numbers, whose lengths are right already, as one float64 array."""
    return np.fromiter(chain.from_iterable(rows), np.float64, int(np.prod(shape))).reshape(shape)


def _find(values: list[int], known: np.ndarray) -> np.ndarray:
    """(N,) int32: where in `known` each value stands, -1 for nowhere."""
    places = {value: place for place, value in enumerate(known.tolist())}
    return np.array([places.get(value, -1) for value in values], np.int32)


def _unique(path: Path, kind: str, ids: np.ndarray) -> np.ndarray:
    """(N,) ids, of which none occurs twice."""
    repeated = np.ones(len(ids), bool)
    repeated[np.unique(ids, return_index=True)[1]] = False
    _forbid(path, kind, ids, repeated, "this id occurs twice")
    return ids


def _forbid(path: Path, kind: str, ids: np.ndarray, wrong: np.ndarray, problem: str) -> None:
    """Complain about the first record where the (N,) mask is True."""
    if wrong.any():
        found = ids[wrong.argmax()]
        name = found.decode() if isinstance(found, bytes) else found
        raise HrnetppError(f"{path}: {kind} {name}: {problem}; correct or remove it")


def _existing_folder(folder: str | Path) -> Path:
    if not os.path.isdir(folder):
        raise HrnetppError(f"{folder}: there is no such image folder; check the path")
    return Path(folder)


def _drop(table: PersonTable, reasons: dict[str, np.ndarray]) -> PersonTable:
    """The table without the persons that a mask in `reasons` excludes; the first that does counts them."""
    keep, dropped = np.ones(len(table), bool), {}
    for reason, excluded in reasons.items():
        dropped[reason] = int((keep & excluded).sum())
        keep &= ~excluded
    return replace(table.select(keep), dropped=table.dropped | dropped)
