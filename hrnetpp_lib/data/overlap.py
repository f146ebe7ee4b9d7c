"""Boxes to predict on beside the true persons: whose box each is, and what a detector missed or made up."""

from collections.abc import Mapping

import numpy as np
from pycocotools import mask

from hrnetpp_lib.data.annotations import labelled_persons
from hrnetpp_lib.data.layout import GROUND_TRUTH_BOXES, Metric, StageData
from hrnetpp_lib.data.persons import PersonTable
from hrnetpp_lib.pose.geometry import Size, bbox_to_center_scale, crop_matrix, transform_points

_WHOLE = "a box each"
_SAME = 0.5  # overlap from which on a box is a person's


def persons_of_boxes(boxes: PersonTable, truth: PersonTable) -> np.ndarray:
    """(N,) row of the true person that each box overlaps most, by half or more; -1 where there is none.

    Both tables are of the same images.
    """
    rows = np.full(len(boxes), -1)
    for image in np.intersect1d(boxes.image_index, truth.image_index):
        mine, theirs = (np.flatnonzero(table.image_index == image) for table in (boxes, truth))
        found = mask.iou(boxes.bboxes_xywh[mine], truth.bboxes_xywh[theirs], np.zeros(len(theirs)))
        rows[mine] = np.where(found.max(axis=1) >= _SAME, theirs[found.argmax(axis=1)], -1)
    return rows


def labelled_truth(data: StageData) -> PersonTable:
    """The labelled true persons of val's images."""
    return labelled_persons(data.truth) if data.metric is Metric.COCO_AP else data.truth


def matrices_of_boxes(bboxes_xywh: np.ndarray, input_hw: Size) -> np.ndarray:
    """(n, 2, 3) image px -> input px of the crops of (n, 4) boxes."""
    boxes = zip(*bbox_to_center_scale(bboxes_xywh, input_hw), strict=True)
    return np.array([crop_matrix(*box, 0.0, input_hw) for box in boxes]).reshape(-1, 2, 3)


def truth_in_crops(data: StageData, rows: np.ndarray, input_hw: Size) -> np.ndarray:
    """(n, K, 3) true keypoints of some of val's boxes, in input px of their crops; zeros where nobody's."""
    truth, boxes = labelled_truth(data), data.val.select(rows)
    persons = persons_of_boxes(boxes, truth)
    found = truth.keypoints[persons].astype(float) * (persons >= 0)[:, None, None]
    found[:, :, :2] = transform_points(found[:, :, :2], matrices_of_boxes(boxes.bboxes_xywh, input_hw))
    return found * (found[:, :, 2:] > 0)


def example_images(data: StageData, number: int) -> dict[int, str]:
    """So many images with boxes and what is to be seen in each: the first of each kind, then whole ones.

    Kinds: every person has one box and no box is on nobody; a person without a box; a doubled one; a box on
    nobody. Gives image -> kind.
    """
    boxes, truth = data.val, labelled_truth(data)
    rows, whole, found = persons_of_boxes(boxes, truth), {}, {}
    for image in np.unique(boxes.image_index).tolist():
        mine = rows[boxes.image_index == image]
        there = np.flatnonzero(truth.image_index == image)
        hits = np.array([(mine == person).sum() for person in there])
        kinds = {
            "a person without a box": (hits == 0).any(),
            "two boxes for one person": (hits > 1).any(),
            "a box on nobody": (mine < 0).any(),
        }
        if not any(kinds.values()):
            whole[image] = _WHOLE
        for kind in (kind for kind, holds in kinds.items() if holds):
            if image not in found and kind not in found.values():
                found[image] = kind
        if len(whole) >= number and len(found) == len(kinds):
            break
    return dict([*list(whole.items())[: max(1, number - len(found))], *found.items()][:number])


def say_examples(examples: Mapping[int, str]) -> str:
    """What is to be seen in the images of `example_images`."""
    if set(examples.values()) == {_WHOLE}:
        return "the first pictures of val, where all is well"
    return "a picture where all is well, and the first of val with each kind of fault that there is"


def say_boxes(data: StageData) -> str:
    """Whose boxes val's are, and how they fit the true persons (labelled ones) of its images."""
    if data.boxes == GROUND_TRUTH_BOXES:
        return (
            f"Here the {len(data.val)} boxes are the true ones, from the labels: no detector ran, nobody is "
            "missed and nobody found twice. Numbers on them cannot be compared with numbers on a detector's."
        )
    truth = labelled_truth(data)
    rows = persons_of_boxes(data.val, truth)
    hit = rows[rows >= 0]
    missed = 100 * (1 - len(np.unique(hit)) / max(len(truth), 1))
    nobody, again = (rows < 0).sum(), len(hit) - len(np.unique(hit))
    return (
        f"Here a detector gave {len(rows)} boxes for {len(truth)} labelled persons. If a box is a person's "
        f"where the two overlap by half, {missed:.0f}% of the persons have none; on a person who has one "
        f"already: {_count(again)}; on no labelled person: {_count(nobody)}."
    )


def _count(boxes: int) -> str:
    return "1 box" if boxes == 1 else f"{boxes} boxes"
