"""COCO, AI Challenger and Leeds annotation files, read into one flat and validated table of persons."""

from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np

from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.pose.keypoints import AIC14, COCO17
from hrnetpp_lib.data.lspe import read_lspe
from hrnetpp_lib.data.persons import CocoTruth, PersonTable, check_images, concat, split_by_image
from hrnetpp_lib.data.records import Records, load_json, stack_rows

__all__ = [
    "PersonTable",
    "check_images",
    "concat",
    "read_ai_challenger",
    "read_coco",
    "read_coco_detections",
    "read_coco_truth",
    "read_lspe",
    "split_by_image",
]

_AIC_TO_COCO_VISIBILITY = np.array([0, 2, 1, 0], np.float32)  # 1 visible, 2 occluded, 3 unlabelled


def read_coco(json_path: str | Path, image_dir: str | Path, require_keypoints: bool = True) -> PersonTable:
    """Ground-truth persons of a COCO person_keypoints file, without crowds.

    Boxes are clipped to the image; those without area are dropped. `dropped` counts what was left out, by the
    first reason that applies: other_category, crowd, empty_box, no_keypoints.

    Args:
        json_path: For example person_keypoints_train2017.json.
        image_dir: Folder of its images.
        require_keypoints: Drop persons without a labelled keypoint, as training does.

    Raises:
        HrnetppError: If the file or folder is missing, the json is broken, or a record is not well formed.
    """
    path, folder = Path(json_path), _existing_folder(image_dir)
    document = load_json(path, dict)
    images = _coco_images(document, path)
    annotations = _records(document, "annotations", path)
    category_ids = annotations.integers("category_id")
    known, person_category = _categories(document, path)
    annotations.forbid(~np.isin(category_ids, known), "its category_id is not among the file's categories")
    crowd = np.array([bool(record.get("iscrowd", 0)) for record in annotations.items], bool)
    keep, dropped = _sift({"other_category": category_ids != person_category, "crowd": crowd})
    persons = annotations.select(keep)
    image_index = persons.find("image_id", images["image_ids"])
    bboxes, areas = _clip(persons.rows("bbox", 4), images["image_hw"][image_index]), persons.floats("area")
    keypoints = persons.rows("keypoints", 3 * len(COCO17)).reshape(-1, len(COCO17), 3)
    persons.forbid(~np.isin(keypoints[..., 2], (0, 1, 2)).all(1), "a keypoint's v is not 0, 1 or 2")
    keypoints[keypoints[..., 2] == 0] = 0
    table = PersonTable(
        name=str(path),
        skeleton=COCO17,
        image_dir=folder,
        **images,
        image_index=image_index,
        person_ids=persons.integers("id"),
        bboxes_xywh=bboxes,
        bbox_scores=np.ones(len(bboxes)),
        areas=areas,
        keypoints=keypoints.astype(np.float32),
        dropped=dropped,
    )
    return _drop_unusable(table, (bboxes[:, 2:] <= 0).any(1) | (areas <= 0), require_keypoints)


def read_coco_truth(json_path: str | Path, image_dir: str | Path) -> CocoTruth:
    """All persons of a COCO person_keypoints file, for its metric; nothing is dropped but other categories.

    Args:
        json_path: For example person_keypoints_val2017.json.
        image_dir: Folder of its images.

    Raises:
        HrnetppError: If the file or folder is missing, the json is broken, or a record is not well formed.
    """
    path, folder = Path(json_path), _existing_folder(image_dir)
    document = load_json(path, dict)
    images = _coco_images(document, path)
    annotations = _records(document, "annotations", path)
    person = annotations.integers("category_id") == _categories(document, path)[1]
    persons = annotations.select(person)
    keypoints = persons.rows("keypoints", 3 * len(COCO17)).reshape(-1, len(COCO17), 3)
    bboxes = persons.rows("bbox", 4)
    return CocoTruth(
        name=str(path),
        skeleton=COCO17,
        image_dir=folder,
        **images,
        image_index=persons.find("image_id", images["image_ids"]),
        person_ids=persons.integers("id"),
        bboxes_xywh=bboxes,
        bbox_scores=np.ones(len(bboxes)),
        areas=persons.floats("area"),
        keypoints=keypoints,
        dropped={"other_category": int((~person).sum())},
        num_keypoints=persons.integers("num_keypoints"),
        crowd=persons.integers("iscrowd") > 0,
    )


def read_coco_detections(
    json_path: str | Path,
    gt_json: str | Path,
    image_dir: str | Path,
    score_threshold: float = 0.0,
    allow_unknown_images: bool = False,
) -> PersonTable:
    """Person boxes of a COCO result list, for the images of a ground-truth file; boxes are not clipped.

    `dropped` counts other_category, unknown_image, below_score_threshold, empty_box, by the first to apply.

    Args:
        json_path: For example COCO_val2017_detections_AP_H_56_person.json; other classes may be in it.
        gt_json: COCO file with the images and the categories.
        image_dir: Folder of the images.
        score_threshold: Boxes that score less are dropped.
        allow_unknown_images: Drop detections in images that gt_json does not list, to evaluate on a subset.
            Otherwise they are an error, because they usually mean that the files are of different splits.

    Raises:
        HrnetppError: If a file or folder is missing, a json is broken, or a record is not well formed.
    """
    path, folder = Path(json_path), _existing_folder(image_dir)
    images, person_category = _images_and_person(Path(gt_json))
    detections = Records(path, "detection", load_json(path, list))
    other = detections.integers("category_id") != person_category
    found_ids = detections.integers("image_id")
    unknown = ~np.isin(found_ids, images["image_ids"])
    if not allow_unknown_images:
        _forbid_unknown_images(np.unique(found_ids[unknown & ~other]), path, gt_json)
    scores = detections.floats("score")
    reasons = {"other_category": other, "unknown_image": unknown}
    keep, dropped = _sift(reasons | {"below_score_threshold": scores < score_threshold})
    persons = detections.select(keep)
    bboxes = persons.rows("bbox", 4)
    table = PersonTable(
        name=str(path),
        skeleton=COCO17,
        image_dir=folder,
        **images,
        image_index=persons.find("image_id", images["image_ids"]),
        person_ids=np.flatnonzero(keep),
        bboxes_xywh=bboxes,
        bbox_scores=scores[keep],
        areas=bboxes[:, 2] * bboxes[:, 3],
        keypoints=np.zeros((len(bboxes), len(COCO17), 3), np.float32),
        dropped=dropped,
    )
    return _drop(table, {"empty_box": (bboxes[:, 2:] <= 0).any(1)})


def read_ai_challenger(
    json_path: str | Path, image_dir: str | Path, require_keypoints: bool = True
) -> PersonTable:
    """Persons of an AI Challenger keypoint file, visibility turned into COCO's convention.

    Persons keep the file's own order, in which human3 may precede human1; person_ids number them from 0.
    Labelled keypoints outside their box are kept. `dropped` counts empty_box and no_keypoints.

    Args:
        json_path: For example keypoint_train_annotations_20170909.json.
        image_dir: Folder of its images.
        require_keypoints: Drop persons without a labelled keypoint, as training does.

    Raises:
        HrnetppError: If the file or folder is missing, the json is broken, or a record is not well formed.

    Reference: Wu et al., AI Challenger, arXiv 1711.06475.
    """
    path, folder = Path(json_path), _existing_folder(image_dir)
    images = Records(path, "image", load_json(path, list))
    image_ids = images.texts("image_id")
    images.forbid_repeated(image_ids, "image_id")
    image_index, bboxes, keypoints = _ai_challenger_humans(images)
    table = PersonTable(
        name=str(path),
        skeleton=AIC14,
        image_dir=folder,
        image_files=np.char.add(image_ids, b".jpg"),
        image_ids=image_ids,
        image_hw=np.full((len(image_ids), 2), -1, np.int32),
        image_index=image_index,
        person_ids=np.arange(len(bboxes)),
        bboxes_xywh=bboxes,
        bbox_scores=np.ones(len(bboxes)),
        areas=bboxes[:, 2] * bboxes[:, 3],
        keypoints=keypoints,
        dropped={},
    )
    return _drop_unusable(table, (bboxes[:, 2:] <= 0).any(1), require_keypoints)


def _ai_challenger_humans(images: Records) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image index (N,), boxes xywh (N, 4) and keypoints (N, 14, 3) in COCO's convention of all humans."""
    image_index, humans, bboxes_xyxy, keypoint_rows = [], [], [], []
    for number, image in enumerate(images.items):
        boxes, keypoints = image.get("human_annotations"), image.get("keypoint_annotations")
        if not isinstance(boxes, dict) or not isinstance(keypoints, dict) or boxes.keys() != keypoints.keys():
            images.fail(number, "human_annotations and keypoint_annotations do not name the same humans")
        image_index += [number] * len(boxes)
        humans += boxes
        bboxes_xyxy += boxes.values()
        keypoint_rows += [keypoints[human] for human in boxes]

    def fail(person: int, problem: str) -> NoReturn:
        images.fail(image_index[person], f"{humans[person]}: {problem}")

    bboxes = stack_rows(bboxes_xyxy, 4, "human_annotations", fail)
    bboxes[:, 2:] -= bboxes[:, :2]  # the file holds corners; no pixel is added
    keypoints = stack_rows(keypoint_rows, 3 * len(AIC14), "keypoint_annotations", fail)
    keypoints = keypoints.reshape(-1, len(AIC14), 3)
    wrong = ~np.isin(keypoints[..., 2], (1, 2, 3)).all(1)
    if wrong.any():
        fail(int(wrong.argmax()), "a keypoint's v is not 1, 2 or 3")
    keypoints[..., 2] = _AIC_TO_COCO_VISIBILITY[keypoints[..., 2].astype(np.int8)]
    keypoints[keypoints[..., 2] == 0] = 0
    return np.array(image_index, np.int32), bboxes, keypoints.astype(np.float32)


def _records(document: dict, field: str, path: Path) -> Records:
    """One of the lists of a COCO document, its ids being unique."""
    if not isinstance(document.get(field), list):
        raise HrnetppError(f"{path}: has no list '{field}'; is it COCO ground truth with keypoints?")
    records = Records(path, f"entry of '{field}'", document[field])
    records.forbid_repeated(records.integers("id"), "id")
    return records


def _coco_images(document: dict, path: Path) -> dict[str, np.ndarray]:
    """The image columns of the table, for a COCO document."""
    images = _records(document, "images", path)
    image_hw = np.stack([images.integers("height"), images.integers("width")], axis=1)
    images.forbid((image_hw <= 0).any(1), "its height or width is not positive")
    return {
        "image_files": images.texts("file_name"),
        "image_ids": images.integers("id"),
        "image_hw": image_hw.astype(np.int32),
    }


def _categories(document: dict, path: Path) -> tuple[np.ndarray, int]:
    """All category ids of a COCO document, and the one named person."""
    categories = _records(document, "categories", path)
    names = [item.get("name") for item in categories.items]
    if names.count("person") != 1:
        raise HrnetppError(
            f"{path}: one category must be named 'person', found {names}; correct the categories"
        )
    ids = categories.integers("id")
    return ids, int(ids[names.index("person")])


def _images_and_person(gt_path: Path) -> tuple[dict[str, np.ndarray], int]:
    document = load_json(gt_path, dict)
    return _coco_images(document, gt_path), _categories(document, gt_path)[1]


def _forbid_unknown_images(image_ids: np.ndarray, path: Path, gt_json: str | Path) -> None:
    if len(image_ids):
        first = ", ".join(map(str, image_ids[:5])) + (", ..." if len(image_ids) > 5 else "")
        raise HrnetppError(
            f"{path}: {len(image_ids)} image ids are not in {gt_json}: {first}; use the ground truth of the "
            "same split, or (from Python) pass allow_unknown_images=True to evaluate on a subset"
        )


def _existing_folder(folder: str | Path) -> Path:
    if not Path(folder).is_dir():
        raise HrnetppError(f"{folder}: there is no such image folder; check the path")
    return Path(folder)


def _clip(bboxes_xywh: np.ndarray, image_hw: np.ndarray) -> np.ndarray:
    """Boxes cut to their images; width or height is not positive where nothing is left."""
    start = np.maximum(bboxes_xywh[:, :2], 0)
    # DEVIATION: boxes are clipped to the whole image; the official loader takes a pixel off true ones.
    end = np.minimum(bboxes_xywh[:, :2] + bboxes_xywh[:, 2:], image_hw[:, ::-1])
    return np.hstack([start, end - start])


def _sift(reasons: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, int]]:
    """What no mask in `reasons` excludes, and how many each of them excludes first."""
    keep, dropped = ~np.zeros_like(next(iter(reasons.values()))), {}
    for reason, excluded in reasons.items():
        dropped[reason] = int((keep & excluded).sum())
        keep &= ~excluded
    return keep, dropped


def _drop(table: PersonTable, reasons: dict[str, np.ndarray]) -> PersonTable:
    """The table without the persons that a mask in `reasons` excludes, which are counted."""
    keep, dropped = _sift(reasons)
    return replace(table.select(keep), dropped=table.dropped | dropped)


def _drop_unusable(table: PersonTable, empty_box: np.ndarray, require_keypoints: bool) -> PersonTable:
    unlabelled = ~(table.keypoints[..., 2] > 0).any(1)
    return _drop(table, {"empty_box": empty_box, "no_keypoints": unlabelled & require_keypoints})
