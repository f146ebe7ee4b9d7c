"""Our readers and metrics on real files: ground truth given back as a prediction must score 1."""

from pathlib import Path

import numpy as np

from hrnetpp_lib.data.annotations import read_ai_challenger, read_coco, read_coco_detections
from hrnetpp_lib.data.layout import GROUND_TRUTH_BOXES, StageData
from hrnetpp_lib.data.persons import PersonTable, check_images
from hrnetpp_lib.evaluate.infer import Predictions
from hrnetpp_lib.evaluate.metrics import bbox_ap
from hrnetpp_lib.evaluate.score import score


def perfect_predictions(table: PersonTable) -> Predictions:
    """The labels themselves as predictions; unlabelled keypoints go to the middle of the box."""
    middle = table.bboxes_xywh[:, :2] + table.bboxes_xywh[:, 2:] / 2
    labelled = table.keypoints[:, :, 2:] > 0
    keypoints = np.where(labelled, table.keypoints[:, :, :2].astype(np.float64), middle[:, None])
    return Predictions(keypoints, np.ones(keypoints.shape[:2]))


def check_real_data(folder: Path) -> list[dict[str, object]]:
    """Read what real sets a folder has, and score their own labels.

    Args:
        folder: May hold coco_mini/, coco_test/ and aic_sample/.

    Returns:
        Per set: name, images, persons, labelled keypoints, metric and its value; a detector's figures where
        there are boxes of one.
    """
    checks = []
    sets = {
        "coco_mini": ("annotations/person_keypoints_train2017.json", "train2017"),
        "coco_test": ("test_coco.json", "."),
    }
    for name, (json_name, images) in sets.items():
        truth = folder / name / json_name
        if truth.is_file():
            table = read_coco(truth, folder / name / images)
            checks.append(_check(name, table, "COCO AP", truth))
    challenger = folder / "aic_sample" / "keypoint_sample_annotations.json"
    if challenger.is_file():
        table = read_ai_challenger(challenger, challenger.parent / "images")
        checks.append(_check("aic_sample", table, "AI Challenger AP", None))
    boxes = folder / "coco_test" / "test_coco_det_AP_H_56.json"
    if boxes.is_file():
        found = read_coco_detections(boxes, folder / "coco_test/test_coco.json", folder / "coco_test")
        box_ap = bbox_ap(folder / "coco_test/test_coco.json", boxes)
        checks.append(
            {"set": "coco_test, a real detector", "boxes": len(found), "person box AP": round(box_ap, 3)}
        )
    return checks


def _check(name: str, table: PersonTable, metric: str, truth: Path | None) -> dict[str, object]:
    """One set's counts, and the score of its labels given back."""
    check_images(table)
    data = StageData(table, table, metric, GROUND_TRUTH_BOXES, truth)
    return {
        "set": name,
        "images": len(table.image_files),
        "persons": len(table),
        "labelled keypoints": int((table.keypoints[:, :, 2] > 0).sum()),
        f"{metric} of the labels": round(score(perfect_predictions(table), data)["AP"], 4),
    }
