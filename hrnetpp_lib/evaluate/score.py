"""The dataset's own metric of a network on its validation boxes."""

import contextlib
import copy
import io
from dataclasses import dataclass

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from hrnetpp_lib.data.layout import Metric, StageData
from hrnetpp_lib.data.persons import CocoTruth, PersonTable
from hrnetpp_lib.evaluate.infer import SINGLE_VIEW, Predictions, predict_boxes
from hrnetpp_lib.evaluate.metrics import ai_challenger_ap, coco_ap, to_coco_results
from hrnetpp_lib.model.hrnet import HRNet
from hrnetpp_lib.model.weights import ModelCard
from hrnetpp_lib.pose.geometry import bbox_to_center_scale
from hrnetpp_lib.train.loader import usable_workers


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
    return {"metric": data.metric.value, "value": score(predictions, data)["AP"], "boxes": data.boxes}


def score(predictions: Predictions, data: StageData) -> dict[str, float]:
    """The dataset's figures for poses of val's boxes.

    Args:
        predictions: One pose per row of data.val.
        data: COCO data give the ten COCO figures, AI Challenger data AP, AP50 and AP75.
    """
    if data.metric is Metric.COCO_AP:
        return coco_ap(coco_document(data.truth), coco_results(predictions, data))
    return ai_challenger_ap(*_ai_challenger_records(predictions, data.val))


def coco_document(truth: CocoTruth) -> dict:
    """What pycocotools reads of a COCO file."""
    annotations = [
        {
            "id": number,
            "image_id": image_id,
            "category_id": 1,
            "bbox": bbox,
            "area": area,
            "iscrowd": int(crowd),
            "num_keypoints": count,
            "keypoints": keypoints,
        }
        for number, (image_id, bbox, area, crowd, count, keypoints) in enumerate(
            zip(
                truth.image_ids[truth.image_index].tolist(),
                truth.bboxes_xywh.tolist(),
                truth.areas.tolist(),
                truth.crowd.tolist(),
                truth.num_keypoints.tolist(),
                truth.keypoints.reshape(len(truth), -1).tolist(),
                strict=True,
            ),
            start=1,
        )
    ]
    images = [{"id": image_id} for image_id in truth.image_ids.tolist()]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1}]}


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


@dataclass(frozen=True)
class Claim:
    """A difference between two rows of Table 1: the report's and ours, in points of AP (percent)."""

    better: str
    worse: str
    paper: float
    ours: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """What our interval says of the report's claim that the difference is positive."""
        if self.low > 0:
            return "above zero on this val set"
        return "below zero on this val set" if self.high < 0 else "not decided by this val set"

    def __str__(self) -> str:
        return (
            f"{self.better} - {self.worse}: report {self.paper:+.1f}, ours {self.ours:+.1f} "
            f"[{self.low:+.1f}, {self.high:+.1f}]: {self.verdict}"
        )


@dataclass(frozen=True)
class Draws:
    """AP of several methods on the whole set and on the same resampled sets.

    Attributes:
        whole: Method -> AP on all images, 0..1.
        drawn: Method -> (draws,) AP, 0..1.
    """

    whole: dict[str, float]
    drawn: dict[str, np.ndarray]

    def interval(self, method: str) -> tuple[float, float]:
        """The 95% interval of a method's AP, 0..1."""
        low, high = np.percentile(self.drawn[method], (2.5, 97.5))
        return float(low), float(high)

    def difference(self, better: str, worse: str) -> tuple[float, float, float]:
        """The paired difference of two methods' AP and its 95% interval, -1..1."""
        low, high = np.percentile(self.drawn[better] - self.drawn[worse], (2.5, 97.5))
        return self.whole[better] - self.whole[worse], float(low), float(high)

    def compare(self, better: str, worse: str, paper: dict[str, tuple[float, ...]]) -> Claim:
        """The paired difference of two methods beside the report's.

        Args:
            better, worse: Methods of both tables.
            paper: Method -> figures in percent, AP first.
        """
        ours, low, high = self.difference(better, worse)
        return Claim(better, worse, paper[better][0] - paper[worse][0], 100 * ours, 100 * low, 100 * high)


def paired_bootstrap(truth: dict, results: dict[str, list[dict]], draws: int = 200, seed: int = 0) -> Draws:
    """Score all methods on the same random samples of images, drawn with replacement.

    Args:
        truth: Of `coco_document`.
        results: Method -> COCO keypoint results.
        draws: How many samples.
        seed: Of the sampling.

    Reference: Efron and Tibshirani, An Introduction to the Bootstrap.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluations = {method: _evaluate(coco, found) for method, found in results.items()}
    images = len(coco.getImgIds())
    rng = np.random.default_rng(seed)
    samples = [np.arange(images), *rng.integers(0, images, (draws, images))]
    values = {
        method: np.array([_ap_of(evaluation, sample) for sample in samples])
        if evaluation
        else np.zeros(len(samples))
        for method, evaluation in evaluations.items()
    }
    return Draws({m: float(v[0]) for m, v in values.items()}, {m: v[1:] for m, v in values.items()})


def _evaluate(coco: COCO, results: list[dict]) -> COCOeval | None:
    """Matches of every image, computed once; None without results."""
    if not results:
        return None
    evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), "keypoints")
    evaluation.params.imgIds = sorted(coco.getImgIds())
    evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
    evaluation.evaluate()
    return evaluation


def _ap_of(evaluation: COCOeval, sample: np.ndarray) -> float:
    """AP over the sampled images; an image that is drawn twice counts twice."""
    whole = evaluation.evalImgs
    evaluation.evalImgs = [whole[i] for i in sample]  # one category and one area range: an entry per image
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
    evaluation.evalImgs = whole
    precision = evaluation.eval["precision"]
    return float(precision[precision > -1].mean()) if (precision > -1).any() else 0.0


def resample(predictions: dict[str, Predictions], data: StageData, draws: int = 1000, seed: int = 0) -> Draws:
    """COCO AP of several methods on the same random samples of val's images; see `paired_bootstrap`.

    Args:
        predictions: Method -> one pose per row of data.val.
        data: Of COCO.
        draws: How many samples.
        seed: Of the sampling.
    """
    results = {method: coco_results(found, data) for method, found in predictions.items()}
    return paired_bootstrap(coco_document(data.truth), results, draws, seed)
