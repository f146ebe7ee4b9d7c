"""Random crops for training: scale, rotation, mirror and half body, all folded into one matrix."""

from dataclasses import dataclass

import numpy as np

from hrnetpp_lib.pose.geometry import OFFICIAL, PixelConvention, crop_matrix
from hrnetpp_lib.pose.keypoints import Skeleton
from hrnetpp_lib.recipe import Augmentation


@dataclass(frozen=True)
class Crop:
    """One crop of one person: `matrix` takes image px to input px, mirroring included.

    Attributes:
        matrix: (2, 3) image px -> input px.
        flipped: Whether the crop is mirrored; keypoints then trade places by the skeleton's flip_pairs.
    """

    matrix: np.ndarray
    flipped: bool


def half_body(
    keypoints: np.ndarray,
    labelled: np.ndarray,
    skeleton: Skeleton,
    input_hw: tuple[int, int],
    upper: bool,
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
    halves = []
    for indices in (skeleton.upper_body, skeleton.lower_body):
        halves.append(points[[k for k in indices if labelled[k] > 0]])
    first, second = halves
    chosen = first if (upper and len(first) > 2) or len(second) <= 2 else second
    if len(chosen) < 2:
        return None
    extent = np.ptp(chosen, axis=0)
    if not extent.any():
        # DEVIATION: half body is left out where the official code goes on with a box of zero area.
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
) -> Crop:
    """Draw one augmented crop, in the official code's order: half body, scale, rotation, mirror.

    Args:
        augmentation: The distributions.
        keypoints: (K, 3) image px and visibility.
        center: (2,) of the person's padded box, image px.
        scale: (2,) width and height of the padded box, image px.
        skeleton: For half body.
        input_hw: Size of the crop.
        rng: Source of all randomness.
        coordinates: What the box is stretched to.

    Reference: HRNet++ report, data and augmentation; official HRNet, JointsDataset.__getitem__.
    """
    labelled = keypoints[:, 2] > 0
    if labelled.sum() > augmentation.half_body_min_keypoints:
        wanted, upper = rng.random() < augmentation.half_body_probability, rng.standard_normal() < 0.5
        half = half_body(keypoints[:, :2], labelled, skeleton, input_hw, upper) if wanted else None
        center, scale = half or (center, scale)
    std, rotation_std = augmentation.scale_std, augmentation.rotation_std_deg
    scale = scale * np.clip(1 + std * rng.standard_normal(), 1 - std, 1 + std)
    bound = augmentation.rotation_bound_deg
    rotation = float(np.clip(rotation_std * rng.standard_normal(), -bound, bound))
    if rng.random() > augmentation.rotation_probability:
        rotation = 0.0
    flipped = rng.random() <= augmentation.flip_probability
    matrix = crop_matrix(center, scale, rotation, coordinates.crop_hw(input_hw))
    if flipped:
        # Mirroring the image, and the center with it, is the same as mirroring about the center.
        mirror = np.array([[-1.0, 0.0, 2 * center[0]], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        matrix = matrix @ mirror
    return Crop(matrix, flipped)
