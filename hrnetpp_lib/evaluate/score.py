"""The dataset's own metric of a network on its validation boxes, and how far another sample could move it."""

import contextlib
import copy
import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from pycocotools.cocoeval import COCOeval

from hrnetpp_lib.data.layout import Metric, StageData
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.evaluate.infer import Predictions
from hrnetpp_lib.evaluate.metrics import (
    ScoredPoses,
    ai_challenger_metrics,
    coco_metrics,
    match_coco,
    rescore_and_suppress,
)
from hrnetpp_lib.pose.geometry import bbox_to_center_scale


def score(predictions: Predictions, data: StageData) -> dict[str, float]:
    """The dataset's metrics for poses of val's boxes.

    Args:
        predictions: One pose per row of data.val.
        data: COCO data give the ten COCO metrics, AI Challenger data AP, AP50 and AP75.

    Raises:
        HrnetppError: If the predictions are not of val's boxes.
    """
    if data.metric is Metric.COCO_AP:
        return coco_metrics(match_coco(data.truth, scored_poses(predictions, data)))
    _check_rows(predictions, data)
    return ai_challenger_metrics(_by_image(predictions, data), data.truth.skeleton.oks_sigmas)


def scored_poses(predictions: Predictions, data: StageData) -> ScoredPoses:
    """The poses of val's boxes after rescoring and suppression, for COCO's metric and for `diagnose`.

    Keypoints that no training person has labelled take no part in either: their channels never trained.

    Raises:
        HrnetppError: If the predictions are not of val's boxes.
    """
    _check_rows(predictions, data)
    table = data.val
    return rescore_and_suppress(
        table.image_ids[table.image_index],
        predictions.keypoints,
        predictions.scores,
        table.bbox_scores,
        bbox_to_center_scale(table.bboxes_xywh, predictions.input_hw)[1].prod(axis=1),
        table.skeleton,
        scored=data.trained_keypoints,
    )


def _check_rows(predictions: Predictions, data: StageData) -> None:
    """Refuse predictions of other boxes or keypoints."""
    wanted = (len(data.val), len(data.val.skeleton), 2)
    if predictions.keypoints.shape != wanted:
        raise HrnetppError(f"poses of shape {predictions.keypoints.shape} for boxes that need {wanted}")


def _by_image(predictions: Predictions, data: StageData) -> Iterator[tuple[np.ndarray, ...]]:
    """What AI Challenger's metric takes of each image of val; val's boxes are the true ones."""
    truth = data.truth
    for image in np.unique(truth.image_index):
        persons = truth.image_index == image
        found = predictions.keypoints[data.val.image_index == image]
        yield truth.keypoints[persons].astype(np.float64), truth.areas[persons], found


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
    """The metrics of several methods on the whole set, and their AP on the same resampled sets.

    Attributes:
        metrics: Method -> the ten COCO metrics on all images, 0..1.
        drawn: Method -> (draws,) AP, 0..1.
    """

    metrics: dict[str, dict[str, float]]
    drawn: dict[str, np.ndarray]

    def interval(self, method: str) -> tuple[float, float]:
        """The 95% interval of a method's AP, 0..1."""
        low, high = np.percentile(self.drawn[method], (2.5, 97.5))
        return float(low), float(high)

    def difference(self, better: str, worse: str) -> tuple[float, float, float]:
        """The paired difference of two methods' AP and its 95% interval, -1..1."""
        low, high = np.percentile(self.drawn[better] - self.drawn[worse], (2.5, 97.5))
        return self.metrics[better]["AP"] - self.metrics[worse]["AP"], float(low), float(high)

    def compare(self, better: str, worse: str, paper: dict[str, tuple[float, ...]]) -> Claim:
        """The paired difference of two methods beside the report's.

        Args:
            better, worse: Methods of both tables.
            paper: Method -> metrics in percent, AP first.
        """
        ours, low, high = self.difference(better, worse)
        return Claim(better, worse, paper[better][0] - paper[worse][0], 100 * ours, 100 * low, 100 * high)


def resample(predictions: dict[str, Predictions], data: StageData, draws: int = 1000, seed: int = 0) -> Draws:
    """Score several methods, and score them again on the same random samples of val's images.

    Images are drawn with replacement. Poses are matched once; a sample adds up the matches of its images.

    Args:
        predictions: Method -> one pose per row of data.val.
        data: Of COCO.
        draws: How many samples.
        seed: Of the sampling.

    Reference: Efron and Tibshirani, An Introduction to the Bootstrap.
    """
    matches = {m: match_coco(data.truth, scored_poses(found, data)) for m, found in predictions.items()}
    images = len(data.truth.image_ids)
    samples = np.random.default_rng(seed).integers(0, images, (draws, images))
    drawn = {
        m: np.array([_resampled_ap(found, sample) for sample in samples]) for m, found in matches.items()
    }
    return Draws({m: coco_metrics(found) for m, found in matches.items()}, drawn)


def _resampled_ap(matches: COCOeval | None, sample: np.ndarray) -> float:
    """AP over the sampled images; an image that is drawn twice counts twice."""
    if matches is None:
        return 0.0
    sampled, params = copy.copy(matches), copy.copy(matches.params)
    params.areaRng = params.areaRng[:1]  # all sizes, which come first: an entry for each image
    sampled.evalImgs = [matches.evalImgs[image] for image in sample]
    with contextlib.redirect_stdout(io.StringIO()):
        sampled.accumulate(params)
    precision = sampled.eval["precision"]
    return float(precision[precision > -1].mean()) if (precision > -1).any() else 0.0
