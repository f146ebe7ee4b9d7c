"""From a person's box to a crop and back: center and scale, the crop matrix, points, and what a cell means.

Frames: image px, and input px of the crop. Points are (x, y), sizes (height, width).
"""

from dataclasses import dataclass

import numpy as np

from hrnetpp_lib.errors import HrnetppError

Size = tuple[int, int]  # height, width
BOX_PADDING = 1.25


def bbox_to_center_scale(
    bbox_xywh: np.ndarray, input_hw: Size, padding: float = BOX_PADDING
) -> tuple[np.ndarray, np.ndarray]:
    """Center and size of boxes, extended to the input's aspect ratio and then padded.

    Args:
        bbox_xywh: (..., 4) in image px, finite, with positive width and height.
        input_hw: Gives the aspect ratio.
        padding: Factor on both sides.

    Returns:
        center (..., 2) and scale (..., 2) = (w, h) of the padded boxes, both in image px.

    Raises: HrnetppError if a box is not four numbers of sensible size with positive width and height.
    Reference: HRNet++ report, data and augmentation; official HRNet, _xywh2cs.
    """
    boxes = np.asarray(bbox_xywh, np.float64)
    if boxes.shape[-1:] != (4,):
        raise HrnetppError(f"boxes of shape {boxes.shape}: give (..., 4) as x, y, w, h")
    size = boxes[..., 2:]
    aspect = input_hw[1] / input_hw[0]
    # DEVIATION: the official code leaves out the padding of a box whose center has x = -1.
    with np.errstate(over="ignore", invalid="ignore"):
        center = boxes[..., :2] + size / 2
        # The size asked of each side by the other one is (h * aspect, w / aspect).
        scale = np.maximum(size, size[..., ::-1] * [aspect, 1 / aspect]) * padding
    # No image is that large; false for NaN.
    good = (np.abs([center, scale]) < 2**31).all(axis=(0, -1)) & (size > 0).all(axis=-1)
    if not good.all():
        box = boxes[~good][0].tolist()
        raise HrnetppError(f"box {box}: needs x, y and positive w, h of an image's size; drop it or mend it")
    return center, scale


def crop_matrix(center: np.ndarray, scale: np.ndarray, rotation_deg: float, output_hw: Size) -> np.ndarray:
    """The similarity that takes a padded box to the whole output.

    The box's center goes to (w/2, h/2) of the output and its width to w: sizes count, not sizes minus one.

    Args:
        center: (2,) image px.
        scale: (2,) width and height of the padded box in image px; only the width decides.
        rotation_deg: The output's upward direction is the image's, turned by this angle from x towards y.
        output_hw: Height and width of the output in px.

    Returns:
        (2, 3) float64, image px -> output px.

    Raises: HrnetppError if a number is not finite or too large, or the width is not positive or too small.
    Reference: official HRNet, get_affine_transform.
    """
    center, scale = np.asarray(center, np.float64), np.asarray(scale)
    with np.errstate(all="ignore"):
        zoom, angle = output_hw[1] / scale[0], np.deg2rad(rotation_deg)
        cosine, sine = zoom * np.cos(angle), zoom * np.sin(angle)
        linear = np.array([[cosine, sine], [-sine, cosine]])
        matrix = np.empty((2, 3))
        matrix[:, :2], matrix[:, 2] = linear, np.array(output_hw[::-1]) / 2 - linear @ center
    if not (np.isfinite(matrix).all() and np.isfinite(scale).all() and 0 < zoom < np.inf):
        box = f"padded box at {center.tolist()} of size {scale.tolist()}, rotated by {rotation_deg} degrees"
        raise HrnetppError(f"{box}: needs finite numbers and a positive width")
    return matrix


def invert_matrix(matrix: np.ndarray) -> np.ndarray:
    """The (..., 2, 3) inverses of affine maps (..., 2, 3), float64. Raises: HrnetppError if there is none."""
    matrix = _check_affine(matrix)
    (a, b), (c, d) = np.moveaxis(matrix[..., :2], (-2, -1), (0, 1))
    with np.errstate(all="ignore"):
        adjugate = np.stack([np.stack([d, -b], axis=-1), np.stack([-c, a], axis=-1)], axis=-2)
        linear = adjugate / (a * d - b * c)[..., None, None]
        inverse = np.concatenate([linear, -linear @ matrix[..., 2:]], axis=-1)
    good = np.isfinite(inverse).all(axis=(-2, -1))
    if not good.all():
        raise HrnetppError(f"matrix {matrix[~good][0].tolist()}: has no inverse")
    return inverse


def transform_points(points_xy: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Points (..., 2) under a (2, 3) affine map, or (B, K, 2) under (B, 2, 3), one map each; float64.

    Raises: HrnetppError if the map is of another shape.
    """
    matrix = _check_affine(matrix)
    shift = matrix[..., 2] if matrix.ndim == 2 else matrix[..., None, :, 2]
    return np.asarray(points_xy, np.float64) @ matrix[..., :2].swapaxes(-1, -2) + shift


def _check_affine(matrix: np.ndarray) -> np.ndarray:
    matrix = np.asarray(matrix, np.float64)
    if matrix.shape[-2:] != (2, 3):
        raise HrnetppError(f"matrix of shape {matrix.shape}: give (2, 3)")
    return matrix


@dataclass(frozen=True)
class PixelConvention:
    """What a cell of a heatmap means in input px.

    Attributes:
        name: As recipes and checkpoints call it.
        flip_shift: Cells that the maps of a mirrored crop are moved to the right (official SHIFT_HEATMAP).
        size_minus_one: Whether lengths run between the outermost pixels' centres (UDP, CVPR 2020), not edges.
    """

    name: str
    flip_shift: float
    size_minus_one: bool = False

    def crop_hw(self, input_hw: Size) -> Size:
        """Output size for `crop_matrix`: what a padded box is stretched to, in input px."""
        return (input_hw[0] - 1, input_hw[1] - 1) if self.size_minus_one else input_hw

    def stride_xy(self, input_hw: Size) -> np.ndarray:
        """(2,) input px per cell, along x and y, of heatmaps at a quarter of the input's size."""
        size = np.array(input_hw[::-1], np.float64)
        return (size - 1) / (size / 4 - 1) if self.size_minus_one else np.full(2, 4.0)


# CHOICE: the official shift of a whole cell is the default; the report does not mention one.
OFFICIAL = PixelConvention("official", flip_shift=1.0)
EXACT_SHIFT = PixelConvention("exact_shift", flip_shift=0.75)
UDP = PixelConvention("udp", flip_shift=0.0, size_minus_one=True)
CONVENTIONS = {convention.name: convention for convention in (OFFICIAL, EXACT_SHIFT, UDP)}
