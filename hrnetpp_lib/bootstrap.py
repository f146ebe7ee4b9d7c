"""How sure an AP is: paired bootstrap over validation images."""

import contextlib
import copy
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


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


def paired_bootstrap(
    gt_json: str | Path, results: dict[str, list[dict]], draws: int = 200, seed: int = 0
) -> Draws:
    """Score all methods on the same random samples of images, drawn with replacement.

    Args:
        gt_json: COCO keypoint annotations.
        results: Method -> COCO keypoint results.
        draws: How many samples.
        seed: Of the sampling.

    Reference: Efron and Tibshirani, An Introduction to the Bootstrap.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(gt_json))
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
