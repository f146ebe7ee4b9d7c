"""The dataset's own metric of a network on its validation boxes."""

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object

from hrnetpp_lib.bootstrap import Draws, paired_bootstrap
from hrnetpp_lib.checkpoint import ModelCard
from hrnetpp_lib.datasets import StageData
from hrnetpp_lib.evaluate import ai_challenger_ap, coco_ap, to_coco_results
from hrnetpp_lib.geometry import bbox_to_center_scale
from hrnetpp_lib.hrnet import HRNet
from hrnetpp_lib.infer import SINGLE_VIEW, Predictions, predict_boxes
from hrnetpp_lib.loader import usable_workers
from hrnetpp_lib.persons import PersonTable


def validate(
    model: HRNet, card: ModelCard, data: StageData, accelerator: Accelerator, workers: int = 0
) -> dict[str, object]:
    """Predict on val's boxes with the flip test, every process on its share, and score the result.

    Returns:
        On the main process metric, value (0..1) and boxes, ready to be logged; on others nothing.
    """
    rows = np.arange(accelerator.process_index, len(data.val), accelerator.num_processes)
    mine = predict_boxes(
        model, card, data.val.select(rows), views=SINGLE_VIEW, workers=usable_workers(workers)
    )
    # A list in, the concatenated lists of all processes out; nobody's rows are padded.
    shares = gather_object([(rows, mine)])
    if not accelerator.is_main_process:
        return {}
    order = np.argsort(np.concatenate([rows for rows, _ in shares]))
    predictions = Predictions(
        np.concatenate([share.keypoints for _, share in shares])[order],
        np.concatenate([share.scores for _, share in shares])[order],
    )
    return {"metric": data.metric, "value": score(predictions, data)["AP"], "boxes": data.boxes}


def score(predictions: Predictions, data: StageData) -> dict[str, float]:
    """The dataset's figures for poses of val's boxes.

    Args:
        predictions: One pose per row of data.val.
        data: COCO data give the ten COCO figures, AI Challenger data AP, AP50 and AP75.
    """
    if data.metric == "COCO AP":
        return coco_ap(data.val_json, coco_results(predictions, data))
    return ai_challenger_ap(*_ai_challenger_records(predictions, data.val))


def resample(predictions: dict[str, Predictions], data: StageData, draws: int = 1000, seed: int = 0) -> Draws:
    """COCO AP of several methods on the same random samples of val's images; see `paired_bootstrap`.

    Args:
        predictions: Method -> one pose per row of data.val.
        data: Of COCO.
        draws: How many samples.
        seed: Of the sampling.
    """
    results = {method: coco_results(found, data) for method, found in predictions.items()}
    return paired_bootstrap(data.val_json, results, draws, seed)


def coco_results(predictions: Predictions, data: StageData) -> list[dict]:
    """COCO results of the poses of val's boxes; areas are those of the padded boxes.

    Keypoints that no training person has labelled take no part in scores and suppression: their channels
    never trained.
    """
    table = data.val
    areas = np.array([bbox_to_center_scale(box, (4, 3))[1].prod() for box in table.bboxes_xywh])
    return to_coco_results(
        table.image_ids[table.image_index],
        predictions.keypoints,
        predictions.scores,
        table.bbox_scores,
        areas,
        scored=data.trained_keypoints,
    )


def _ai_challenger_records(predictions: Predictions, table: PersonTable) -> tuple[list[dict], list[dict]]:
    """True and predicted poses of a ground-truth table in AI Challenger's format, one record per image."""
    truth: dict[str, dict] = {}
    predicted: dict[str, dict] = {}
    for person, pose in enumerate(predictions.keypoints):
        image_id, human = table.image_ids[table.image_index[person]].decode(), f"human{person}"
        x, y, w, h = table.bboxes_xywh[person]
        labels = table.keypoints[person].astype(float)
        labels[:, 2] = 3 - labels[:, 2]  # 2 visible, 1 hidden, 0 not labelled -> 1, 2, 3
        for records, triples in ((truth, labels), (predicted, np.column_stack([pose, np.ones(len(pose))]))):
            record = records.setdefault(
                image_id, {"image_id": image_id, "human_annotations": {}, "keypoint_annotations": {}}
            )
            record["human_annotations"][human] = [x, y, x + w, y + h]
            record["keypoint_annotations"][human] = triples.ravel().tolist()
    return list(truth.values()), list(predicted.values())
