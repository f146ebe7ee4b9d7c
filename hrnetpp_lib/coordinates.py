"""What a heatmap cell means in input px, and what mirroring does to it: three conventions.

Mirroring a crop of w px takes x to w - 1 - x. At stride 4, cells of the mirrored map come back 0.75 cells
too far left. The official code shifts them by 1, which leaves 0.25, and 0.125 in the average of both maps.
"""

from dataclasses import dataclass

import numpy as np

from hrnetpp_lib.errors import HrnetppError


@dataclass(frozen=True)
class Coordinates:
    """One convention.

    Attributes:
        name: As recipes and checkpoints call it.
        flip_shift: Cells that the maps of a mirrored crop are moved to the right.
        size_minus_one: Whether lengths are counted between pixel centres (UDP), so that the outermost cells
            lie on the outermost pixels, instead of by numbers of pixels.
    """

    name: str
    flip_shift: float
    size_minus_one: bool = False

    def crop_hw(self, input_hw: tuple[int, int]) -> tuple[int, int]:
        """Output size for `geometry.crop_matrix`: what a padded box is stretched to, in input px."""
        return (input_hw[0] - 1, input_hw[1] - 1) if self.size_minus_one else input_hw

    def stride_xy(self, input_hw: tuple[int, int]) -> np.ndarray:
        """(2,) input px per cell, along x and y, of heatmaps at a quarter of the input's size."""
        size = np.array(input_hw[::-1], np.float64)
        return (size - 1) / (size / 4 - 1) if self.size_minus_one else np.full(2, 4.0)


# CHOICE: the official shift of a whole cell is the default; the report does not mention one.
OFFICIAL = Coordinates("official", flip_shift=1.0)
EXACT_SHIFT = Coordinates("exact_shift", flip_shift=0.75)
UDP = Coordinates("udp", flip_shift=0.0, size_minus_one=True)
_KNOWN = {convention.name: convention for convention in (OFFICIAL, EXACT_SHIFT, UDP)}


def get_coordinates(name: str) -> Coordinates:
    """The convention of that name.

    Raises:
        HrnetppError: If it is unknown; the message lists the valid ones.

    Reference: official HRNet (SHIFT_HEATMAP); UDP: Huang et al., CVPR 2020.
    """
    if name not in _KNOWN:
        raise HrnetppError(f"unknown coordinates {name!r}; choose one of {', '.join(_KNOWN)}")
    return _KNOWN[name]
