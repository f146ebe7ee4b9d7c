"""Random crops for training: scale, rotation, mirror and half body, all folded into one matrix."""

import numpy as np

from hrnetpp_lib.pose.geometry import OFFICIAL, PixelConvention, crop_matrix
from hrnetpp_lib.pose.keypoints import Skeleton
from hrnetpp_lib.recipe import Augmentation


def half_body(
    keypoints: np.ndarray, labelled: np.ndarray, skeleton: Skeleton, input_hw: tuple[int, int], upper: bool
) -> tuple[np.ndarray, np.ndarray] | None:
    """Box around the labelled keypoints of the upper or lower body, 1.5 times as large.

    The other half is taken where the wished one has two labelled keypoints or fewer.

    Args:
        keypoints: (K, 2) as (x, y) in image px.
        labelled: (K,) bool or 0/1.
        skeleton: Says which keypoints are the upper body.
        input_hw: Gives the aspect ratio the box is extended to.
        upper: Whether the upper body is wished for.

    Returns:
        center (2,) and scale (2,) = (w, h) in image px, or None with fewer than two labelled keypoints.

    Reference: official HRNet, JointsDataset.half_body_transform.
    """
    points = np.asarray(keypoints, np.float32)[:, :2]
    halves = (skeleton.upper_body, skeleton.lower_body)
    first, second = (points[[k for k in half if labelled[k] > 0]] for half in halves)
    chosen = first if (upper and len(first) > 2) or len(second) <= 2 else second
    # DEVIATION: half body is left out where the official code goes on with a box of zero area.
    if len(chosen) < 2 or not (extent := np.ptp(chosen, axis=0)).any():
        return None
    aspect = input_hw[1] / input_hw[0]
    scale = np.array([max(extent[0], extent[1] * aspect), max(extent[1], extent[0] / aspect)])
    return chosen.mean(axis=0), scale * 1.5


def sample_crop(
    augmentation: Augmentation,
    keypoints: np.ndarray,
    center: np.ndarray,
    scale: np.ndarray,
    skeleton: Skeleton,
    input_hw: tuple[int, int],
    rng: np.random.Generator,
    coordinates: PixelConvention = OFFICIAL,
) -> tuple[np.ndarray, bool]:
    """One crop of a padded box (center and scale (2,) image px), in the official order of random numbers.

    Its matrix (2, 3) takes image px to input px, mirroring included; where it is mirrored (True), keypoints
    (K, 3) trade places. Reference: HRNet++ report, data and augmentation; official JointsDataset.__getitem__.
    """
    labelled = keypoints[:, 2] > 0
    if labelled.sum() > augmentation.half_body_min_keypoints:
        wanted, upper = rng.random() < augmentation.half_body_probability, rng.standard_normal() < 0.5
        half = half_body(keypoints[:, :2], labelled, skeleton, input_hw, upper) if wanted else None
        center, scale = half or (center, scale)
    std, bound = augmentation.scale_std, augmentation.rotation_bound_deg
    factor = min(max(1 + std * rng.standard_normal(), 1 - std), 1 + std)
    scale = scale * np.float64(factor)  # half a body's is float32, and would stay it
    rotation = min(max(augmentation.rotation_std_deg * rng.standard_normal(), -bound), bound)
    if rng.random() > augmentation.rotation_probability:
        rotation = 0.0
    flipped = rng.random() <= augmentation.flip_probability
    matrix = crop_matrix(center, scale, rotation, coordinates.crop_hw(input_hw))
    if flipped:
        # Mirroring the image, and the center with it, is the same as mirroring about the center.
        matrix = matrix @ np.array([[-1.0, 0.0, 2 * center[0]], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    return matrix, flipped
