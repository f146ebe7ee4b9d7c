"""The dataset's own metric of a network on its validation boxes, and how far another sample could move it."""

from dataclasses import dataclass

import numpy as np
from pycocotools.cocoeval import COCOeval

from hrnetpp_lib.data.layout import Metric, StageData
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.evaluate import metrics
from hrnetpp_lib.evaluate.infer import Predictions
from hrnetpp_lib.evaluate.statistics import corrected_interval
from hrnetpp_lib.pose.geometry import bbox_to_center_scale


def score(predictions: Predictions, data: StageData) -> dict[str, float]:
    """The dataset's metrics for poses of val's boxes.

    Args:
        predictions: One pose per row of data.val.
        data: COCO data give the ten COCO metrics, AI Challenger data AP, AP50 and AP75.

    Raises: HrnetppError if the predictions are not of val's boxes.
    """
    if data.metric is Metric.COCO_AP:
        return metrics.coco_metrics(metrics.match_coco(data.truth, scored_poses(predictions, data)))
    _check_rows(predictions, data)
    found, truth = predictions.keypoints, data.truth  # val's boxes are the true ones
    rows, nobody = metrics.rows_by_image(data.val.image_index), np.zeros(0, int)
    by_image = ((t, rows.get(i, nobody)) for i, t in metrics.rows_by_image(truth.image_index).items())
    images = ((truth.keypoints[t].astype(np.float64), truth.areas[t], found[f]) for t, f in by_image)
    return metrics.ai_challenger_metrics(images, truth.skeleton.oks_sigmas)


def scored_poses(predictions: Predictions, data: StageData) -> metrics.ScoredPoses:
    """The poses of val's boxes after rescoring and suppression, for COCO's metric and for `diagnose`.

    They come image by image in the order of the first box, best first. Keypoints that no training person has
    labelled have no say: their channels never trained.

    Raises: HrnetppError if the predictions are not of val's boxes.

    Reference: official HRNet, COCODataset.evaluate.
    """
    _check_rows(predictions, data)
    table, scored = data.val, data.trained_keypoints
    image_ids, keypoints = table.image_ids[table.image_index], np.asarray(predictions.keypoints, np.float64)
    scores = metrics.rescore(predictions.scores[:, scored], table.bbox_scores)
    # The boxes as the network saw them, padded and extended to its input's shape.
    areas = bbox_to_center_scale(table.bboxes_xywh, predictions.input_hw)[1].prod(axis=1)
    sigmas = np.array(table.skeleton.oks_sigmas)[scored]
    images = metrics.rows_by_image(image_ids).values()
    kept = metrics.suppress(images, keypoints[:, scored], areas, scores, sigmas=sigmas)
    return metrics.ScoredPoses(image_ids[kept], keypoints[kept], predictions.scores[kept], scores[kept])


def _check_rows(predictions: Predictions, data: StageData) -> None:
    """Refuse predictions of other boxes or keypoints, and such as are no numbers."""
    wanted = (len(data.val), len(data.val.skeleton), 2)
    if predictions.keypoints.shape != wanted:
        raise HrnetppError(f"poses of shape {predictions.keypoints.shape} for boxes that need {wanted}")
    if not (np.isfinite(predictions.keypoints).all() and np.isfinite(predictions.scores).all()):
        raise HrnetppError("poses are not finite; predict them anew, by another network")


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
        return corrected_interval(self.metrics[method]["AP"], self.drawn[method])


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
    images, whole, drawn = len(data.truth.image_ids), {}, {}
    samples = np.random.default_rng(seed).integers(0, images, (draws, images))
    for method, found in predictions.items():
        matches = metrics.match_coco(data.truth, scored_poses(found, data))
        drawn[method] = _resampled_aps(matches, samples)
        whole[method] = metrics.coco_metrics(matches)
    return Draws(whole, drawn)


def _resampled_aps(matches: COCOeval | None, samples: np.ndarray) -> np.ndarray:
    """(draws,) AP over the images of each row of `samples`; one that is drawn twice counts twice.

    What pycocotools' accumulate and summarize would have, to the last bit.
    """
    everyone, people = [np.zeros((21, 0))] * samples.shape[1], np.zeros(samples.shape[1], np.int64)
    for image in filter(None, matches.evalImgs if matches else ()):
        if list(image["aRng"]) == [0, 1e10]:  # all sizes
            matched, ignored = (np.array(image[name], bool) for name in ("dtMatches", "dtIgnore"))
            columns = [[image["dtScores"]], matched & ~ignored, ~matched & ~ignored]
            everyone[image["image_id"]] = np.concatenate(columns)
            people[image["image_id"]] = np.count_nonzero(~np.array(image["gtIgnore"], bool))
    counts = np.array([poses.shape[1] for poses in everyone])
    ends, (scores, *hits) = counts.cumsum(), np.concatenate(everyone, axis=1)
    rank, hits = np.unique(-scores, return_inverse=True)[1], np.array(hits)

    def ap(sample: np.ndarray) -> float:
        drawn, total = counts[sample], people[sample].sum()
        poses = np.arange(drawn.sum()) + np.repeat(ends[sample] - drawn.cumsum(), drawn)
        poses = poses[rank[poses].argsort(kind="stable")]
        right, wrong = hits[:, poses].cumsum(axis=1).reshape(2, 10, -1)
        precision = np.pad(right / (wrong + right + np.spacing(1)), ((0, 0), (0, 1)))
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        reached = [recall.searchsorted(np.linspace(0, 1, 101)) for recall in right / max(total, 1)]
        return float(np.take_along_axis(precision, np.array(reached), axis=1).mean()) if total else 0.0

    return np.array([ap(sample) for sample in samples])
