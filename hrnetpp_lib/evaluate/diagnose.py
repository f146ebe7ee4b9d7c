"""What is wrong with predicted keypoints: good, jitter, inversion, swap or miss, and by how many px."""

from dataclasses import dataclass

import numpy as np

from hrnetpp_lib.data.persons import PersonTable
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.evaluate.metrics import ScoredPoses, keypoint_similarity, oks, rows_by_image
from hrnetpp_lib.pose.geometry import bbox_to_center_scale
from hrnetpp_lib.pose.keypoints import Skeleton

LABELS = ("good", "jitter", "inversion", "swap", "miss")
GOOD, JITTER, INVERSION, SWAP, MISS = range(5)
UNLABELLED = -1


@dataclass(frozen=True)
class Diagnosis:
    """The keypoints of P predicted persons that were matched with a true one.

    Attributes:
        truth_index: (P,) int, row of the true person.
        predicted_index: (P,) int, row of the predicted person.
        labels: (P, K) int, index into LABELS; -1 where the true person's keypoint is not labelled.
        similarity: (P, K) with the person's own keypoint; NaN where that is not labelled.
        error_px: (P, K) distance from the person's own keypoint in image px; NaN where not labelled.
    """

    truth_index: np.ndarray
    predicted_index: np.ndarray
    labels: np.ndarray
    similarity: np.ndarray
    error_px: np.ndarray

    def counts(self) -> dict[str, np.ndarray]:
        """(K,) numbers of keypoints for each of LABELS."""
        return {name: (self.labels == label).sum(axis=0) for label, name in enumerate(LABELS)}

    def localisation_errors(self, px_per_cell: np.ndarray) -> np.ndarray:
        """Sorted errors (n,) of the good and jitter keypoints in cells of (P,) image px each."""
        near = (self.labels == GOOD) | (self.labels == JITTER)
        return np.sort((self.error_px / px_per_cell[:, None])[near])


def px_per_cell(bboxes_xywh: np.ndarray, input_hw: tuple[int, int]) -> np.ndarray:
    """(N,) image px that a heatmap cell, four input px, covers in the crops of (N, 4) boxes in image px."""
    return bbox_to_center_scale(bboxes_xywh, input_hw)[1][:, 0] / (input_hw[1] / 4)


def diagnose(truth: PersonTable, poses: ScoredPoses) -> Diagnosis:
    """Match predicted with true persons, image by image, and name the error of each labelled keypoint.

    A pair needs an OKS of 0.1 over the labelled keypoints. The most similar of all true keypoints of the
    image, plain and mirrored, decides: its similarity below 0.5 is a miss, another person's a swap, the own
    mirrored one an inversion, and the own above 0.85 good, else jitter.

    Args:
        truth: N persons with their labels.
        poses: Of the same images and keypoints; better poses choose first.

    Raises: HrnetppError if the poses have another number of keypoints.

    Reference: Ronchi & Perona, ICCV 2017.
    """
    skeleton, truth_image_ids = truth.skeleton, truth.image_ids[truth.image_index]
    if poses.keypoints.shape[1:] != (len(skeleton), 2):
        wanted = f"give (P, {len(skeleton)}, 2) for {skeleton.name}"
        raise HrnetppError(f"poses of shape {poses.keypoints.shape}: {wanted}")
    pairs, rows = [], []
    persons_of, found_in = rows_by_image(truth_image_ids), rows_by_image(poses.image_ids)
    for image_id in sorted(persons_of.keys() & found_in.keys()):
        persons, found = persons_of[image_id], found_in[image_id]
        found = found[np.argsort(-poses.scores[found], kind="stable")]
        true, areas = truth.keypoints[persons].astype(np.float64), truth.areas[persons]
        similarity = oks(poses.keypoints[found, None], true, areas, skeleton.oks_sigmas, true[:, :, 2] > 0)
        # Each pose in turn takes the most similar person left.
        for pose, with_each in zip(found, similarity, strict=True):
            person = int(with_each.argmax())
            if with_each[person] >= 0.1:
                similarity[:, person] = -1
                pairs.append((persons[person], pose))
                rows.append(_name_errors(true, areas, person, poses.keypoints[pose], skeleton))
    pairs = np.array(pairs, np.int64).reshape(-1, 2)
    labels, similarity, error_px = np.array(rows, np.float64).reshape(-1, 3, len(skeleton)).swapaxes(0, 1)
    return Diagnosis(pairs[:, 0], pairs[:, 1], labels.astype(np.int64), similarity, error_px)


def _name_errors(
    truth: np.ndarray, areas: np.ndarray, person: int, pose: np.ndarray, skeleton: Skeleton
) -> np.ndarray:
    """(3, K) labels, similarity and error in px of a pose matched with one of an image's persons."""
    # Of equal candidates the first wins: a keypoint without a mirror pair is its own mirror image.
    others = np.arange(len(truth)) != person
    mirrored = truth[:, skeleton.flip_order]
    candidates = np.concatenate([truth[[person]], mirrored[[person]], truth[others], mirrored[others]])
    candidate_areas = np.concatenate([areas[[person]], areas[[person]], areas[others], areas[others]])
    similarity = keypoint_similarity(pose, candidates, candidate_areas, skeleton.oks_sigmas)
    similarity = np.where(candidates[:, :, 2] > 0, similarity, -1)
    best, winner = similarity.max(axis=0), similarity.argmax(axis=0)
    conditions = [best < 0.5, winner > 1, winner == 1, best > 0.85]
    labels = np.select(conditions, [MISS, SWAP, INVERSION, GOOD], default=JITTER)
    error = np.linalg.norm(pose[:, :2] - truth[person, :, :2], axis=1)
    nothing = np.array([[UNLABELLED], [np.nan], [np.nan]])
    return np.where(truth[person, :, 2] > 0, [labels, similarity[0], error], nothing)
