"""What is wrong with predicted keypoints: good, jitter, inversion, swap or miss, and by how many px."""

from dataclasses import dataclass

import numpy as np

from hrnetpp_lib.data.persons import PersonTable
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.evaluate.metrics import ScoredPoses, keypoint_similarity, oks
from hrnetpp_lib.pose.geometry import bbox_to_center_scale
from hrnetpp_lib.pose.keypoints import Skeleton

LABELS = ("good", "jitter", "inversion", "swap", "miss")
GOOD, JITTER, INVERSION, SWAP, MISS = range(5)
UNLABELLED = -1
MATCH_OKS = 0.1


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

    def localisation_errors(self, px_per_cell: np.ndarray | float = 1.0) -> np.ndarray:
        """Sorted errors of the good and jitter keypoints, ready to be drawn as a distribution.

        Args:
            px_per_cell: (P,) or one number, image px in a heatmap px; 1 leaves the errors in image px.

        Returns:
            (n,) heatmap px, ascending.
        """
        near = (self.labels == GOOD) | (self.labels == JITTER)
        cells = np.broadcast_to(np.asarray(px_per_cell, np.float64), len(self.labels))[:, None]
        return np.sort((self.error_px / cells)[near])


def px_per_cell(bboxes_xywh: np.ndarray, input_hw: tuple[int, int]) -> np.ndarray:
    """(N,) image px that a heatmap cell covers in the crop of each box.

    Args:
        bboxes_xywh: (N, 4) in image px.
        input_hw: Height and width of the crops in px; a cell is four input px.
    """
    return bbox_to_center_scale(bboxes_xywh, input_hw)[1][:, 0] / (input_hw[1] / 4)


def diagnose(truth: PersonTable, poses: ScoredPoses) -> Diagnosis:
    """Match predicted with true persons, image by image, and name the error of each labelled keypoint.

    A pair needs an OKS of 0.1 over the labelled keypoints. The most similar of all true keypoints of the
    image, plain and mirrored, decides: its similarity below 0.5 is a miss, another person's a swap, the own
    mirrored one an inversion, and the own above 0.85 good, else jitter.

    Args:
        truth: N persons with their labels.
        poses: Of the same images and keypoints; better poses choose first.

    Raises:
        HrnetppError: If the poses have another number of keypoints.

    Reference: Ronchi & Perona, ICCV 2017.
    """
    skeleton, truth_image_ids = truth.skeleton, truth.image_ids[truth.image_index]
    if poses.keypoints.shape[1:] != (len(skeleton), 2):
        raise HrnetppError(
            f"poses of shape {poses.keypoints.shape}: give (P, {len(skeleton)}, 2) for {skeleton.name}"
        )
    pairs, rows = [], []
    for image_id in np.unique(poses.image_ids):
        persons = np.flatnonzero(truth_image_ids == image_id)
        found = np.flatnonzero(poses.image_ids == image_id)
        found = found[np.argsort(-poses.scores[found], kind="stable")]
        true_poses, areas = truth.keypoints[persons].astype(np.float64), truth.areas[persons]
        for person, pose in _match(true_poses, areas, poses.keypoints[found], skeleton):
            pairs.append((persons[person], found[pose]))
            rows.append(_name_errors(true_poses, areas, person, poses.keypoints[found[pose]], skeleton))
    pairs = np.array(pairs, np.int64).reshape(-1, 2)
    labels, similarity, error_px = np.array(rows, np.float64).reshape(-1, 3, len(skeleton)).swapaxes(0, 1)
    return Diagnosis(pairs[:, 0], pairs[:, 1], labels.astype(np.int64), similarity, error_px)


def _match(
    truth: np.ndarray, areas: np.ndarray, poses: np.ndarray, skeleton: Skeleton
) -> list[tuple[int, int]]:
    """Pairs (person, pose) of one image: each pose in turn takes the most similar person left."""
    labelled = truth[:, :, 2] > 0
    similarity = oks(poses[:, None], truth[None], areas, skeleton.oks_sigmas, labelled)
    pairs = []
    for pose in range(len(poses) if len(truth) else 0):
        person = int(similarity[pose].argmax())
        if similarity[pose, person] >= MATCH_OKS:
            pairs.append((person, pose))
            similarity[:, person] = -1
    return pairs


def _name_errors(
    truth: np.ndarray, areas: np.ndarray, person: int, pose: np.ndarray, skeleton: Skeleton
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, similarity and error in px, (K,) each, of a pose matched with one of an image's persons."""
    others = np.arange(len(truth)) != person
    mirrored = truth[:, skeleton.flip_order]
    # Of equal candidates the first wins: a keypoint without a mirror pair is its own mirror image.
    candidates = np.concatenate([truth[[person]], mirrored[[person]], truth[others], mirrored[others]])
    candidate_areas = np.concatenate([areas[[person]], areas[[person]], areas[others], areas[others]])
    similarity = keypoint_similarity(pose, candidates, candidate_areas, skeleton.oks_sigmas)
    similarity = np.where(candidates[:, :, 2] > 0, similarity, -1)
    best, winner = similarity.max(axis=0), similarity.argmax(axis=0)
    labels = np.select(
        [best < 0.5, winner > 1, winner == 1, best > 0.85], [MISS, SWAP, INVERSION, GOOD], default=JITTER
    )
    labelled = truth[person, :, 2] > 0
    error = np.linalg.norm(pose[:, :2] - truth[person, :, :2], axis=1)
    return (
        np.where(labelled, labels, UNLABELLED),
        np.where(labelled, similarity[0], np.nan),
        np.where(labelled, error, np.nan),
    )
