"""Keypoint sets: names, mirror pairs, OKS sigmas and drawing limbs of COCO and AI Challenger."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Skeleton:
    """One keypoint convention; indices always refer to `names`.

    Attributes:
        name: Short identifier, written into files.
        names: K keypoint names, left and right being the person's own.
        flip_pairs: Index pairs that trade places in a mirrored image.
        oks_sigmas: K per-keypoint standard deviations of the dataset's metric (dimensionless).
        upper_body: Indices of the upper body, for half-body augmentation.
        limbs: Index pairs joined by a line when a pose is drawn.
    """

    name: str
    names: tuple[str, ...]
    flip_pairs: tuple[tuple[int, int], ...]
    oks_sigmas: tuple[float, ...]
    upper_body: tuple[int, ...]
    limbs: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def flip_order(self) -> np.ndarray:
        """(K,) int64: entry k is the keypoint whose place k takes in a mirrored image."""
        other = {left: right for pair in self.flip_pairs for left, right in (pair, pair[::-1])}
        return np.array([other.get(k, k) for k in range(len(self))])

    @property
    def lower_body(self) -> tuple[int, ...]:
        """Indices that are not in the upper body."""
        return tuple(k for k in range(len(self.names)) if k not in self.upper_body)

    def side(self, keypoint: int) -> str:
        """'left', 'right' or 'centre' of the person, read off the keypoint's name."""
        prefix = self.names[keypoint].split("_")[0]
        return prefix if prefix in ("left", "right") else "centre"


_ARM, _LEG = ("shoulder", "elbow", "wrist"), ("hip", "knee", "ankle")
COCO17 = Skeleton(
    name="coco17",
    names=(
        "nose",
        *(f"{side}_{part}" for part in ("eye", "ear", *_ARM, *_LEG) for side in ("left", "right")),
    ),
    flip_pairs=tuple((left, left + 1) for left in range(1, 17, 2)),
    oks_sigmas=(0.026, *np.repeat((0.025, 0.035, 0.079, 0.072, 0.062, 0.107, 0.087, 0.089), 2).tolist()),
    upper_body=tuple(range(11)),
    limbs=(
        *((0, 1), (0, 2), (1, 3), (2, 4), (5, 6), (5, 7), (7, 9), (6, 8), (8, 10)),
        *((5, 11), (6, 12), (11, 12), (11, 13), (13, 15), (12, 14), (14, 16)),
    ),
)
"""COCO's 17 keypoints."""
AIC14 = Skeleton(
    name="aic14",
    names=(
        *(f"{side}_{part}" for limb in (_ARM, _LEG) for side in ("right", "left") for part in limb),
        *("head_top", "neck"),
    ),
    flip_pairs=((0, 3), (1, 4), (2, 5), (6, 9), (7, 10), (8, 11)),
    oks_sigmas=(
        *(0.01388152, 0.01515228, 0.01057665, 0.01417709, 0.01497891, 0.01402144, 0.03909642),
        *(0.03686941, 0.01981803, 0.03843971, 0.03412318, 0.02415081, 0.01291456, 0.01236173),
    ),
    upper_body=(0, 1, 2, 3, 4, 5, 12, 13),
    limbs=(
        *((12, 13), (13, 0), (13, 3), (0, 1), (1, 2), (3, 4), (4, 5)),
        *((0, 6), (3, 9), (6, 9), (6, 7), (7, 8), (9, 10), (10, 11)),
    ),
)
"""AI Challenger's 14 keypoints."""
SKELETONS = {skeleton.name: skeleton for skeleton in (COCO17, AIC14)}
AIC_TO_COCO = {AIC14.names.index(name): COCO17.names.index(name) for name in AIC14.names[:12]}
"""The 12 keypoints both sets share, as AI Challenger index -> COCO index."""
