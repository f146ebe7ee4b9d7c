"""What a network says about one box, kept so that decoding anew needs no new forward."""

from dataclasses import dataclass

import numpy as np
import torch

from hrnetpp_lib.checkpoint import ModelCard
from hrnetpp_lib.data import View, crops_of_box, normalise
from hrnetpp_lib.evaluate import keypoint_similarity
from hrnetpp_lib.geometry import invert_matrix, transform_points
from hrnetpp_lib.heatmap import decode, flip_back
from hrnetpp_lib.hrnet import HRNet
from hrnetpp_lib.infer import SINGLE_VIEW
from hrnetpp_lib.softargmax import soft_argmax

METHODS = ("arg-max", "quarter offset", "soft-argmax")
TRUTH = "ground truth"
_PADDING = 1.25  # of bbox_to_center_scale; other paddings are views


@dataclass(frozen=True)
class Box:
    """A person to look at.

    Attributes:
        bbox_xywh: (4,) in image px.
        truth: (K, 3) labelled keypoints in image px, or None.
        area: px^2 of the person, for similarities; None without truth.
    """

    bbox_xywh: np.ndarray
    truth: np.ndarray | None = None
    area: float | None = None

    @property
    def labelled(self) -> int:
        """How many keypoints have a label."""
        return 0 if self.truth is None else int((self.truth[:, 2] > 0).sum())


@dataclass(frozen=True)
class Answer:
    """The raw output for V views of one box.

    Attributes:
        card: How the network is to be used.
        crops: (V, h, w, 3) uint8 RGB.
        matrices: (V, 2, 3), image px -> input px.
        plain: (V, K, H, W) fp32 heatmaps of the crops.
        mirrored: (V, K, H, W) fp32 heatmaps of the mirrored crops, brought back.
    """

    card: ModelCard
    crops: np.ndarray
    matrices: np.ndarray
    plain: torch.Tensor
    mirrored: torch.Tensor

    def heatmaps(self, flip: bool) -> torch.Tensor:
        """(V, K, H, W): averaged with those of the mirrored crops, or not."""
        return 0.5 * (self.plain + self.mirrored) if flip else self.plain

    def positions(self, alpha: float, flip: bool) -> dict[str, np.ndarray]:
        """Where each decoder puts the keypoints; with several views the mean of their places in the image.

        Args:
            alpha: Inverse temperature of soft-argmax, > 0.
            flip: See `heatmaps`.

        Returns:
            Method -> (K, 2) in heatmap px of the first view.
        """
        maps = self.heatmaps(flip)
        decoded = (decode(maps, quarter_offset=False)[0], decode(maps)[0], soft_argmax(maps, alpha))
        return {
            method: self.to_heatmap(self._mean_in_image(keypoints.numpy()))
            for method, keypoints in zip(METHODS, decoded, strict=True)
        }

    def scores(self, flip: bool) -> np.ndarray:
        """(K,) maxima of the heatmaps, averaged over the views."""
        return self.heatmaps(flip).amax(dim=(2, 3)).mean(dim=0).numpy()

    def to_heatmap(self, points_image: np.ndarray) -> np.ndarray:
        """(K, 2) image px -> heatmap px of the first view."""
        stride = self.card.coordinates.stride_xy(self.card.input_hw)
        return transform_points(points_image, self.matrices[0]) / stride

    def to_image(self, points_heatmap: np.ndarray) -> np.ndarray:
        """(K, 2) heatmap px of the first view -> image px."""
        stride = self.card.coordinates.stride_xy(self.card.input_hw)
        return transform_points(points_heatmap * stride, invert_matrix(self.matrices[0]))

    def _mean_in_image(self, keypoints: np.ndarray) -> np.ndarray:
        """(V, K, 2) in the views' heatmap px -> (K, 2) in image px."""
        stride = self.card.coordinates.stride_xy(self.card.input_hw)
        back = [
            transform_points(points * stride, invert_matrix(matrix))
            for points, matrix in zip(keypoints, self.matrices, strict=True)
        ]
        return np.mean(back, axis=0)


@torch.no_grad()
def ask(
    model: HRNet,
    card: ModelCard,
    image: np.ndarray,
    bbox_xywh: np.ndarray,
    views: tuple[View, ...] = SINGLE_VIEW,
    padding: float = _PADDING,
) -> Answer:
    """Run a network on a box, plain and mirrored.

    Args:
        model: In eval mode, on any device.
        card: How to use it.
        image: (height, width, 3) uint8 RGB.
        bbox_xywh: (4,) in image px, with positive size.
        views: The first one is shown, all are averaged; see `infer.TTA_VIEWS`.
        padding: How much larger than the box the crop is, at equal aspect ratio.

    Raises:
        HrnetppError: If the box has no area.
    """
    # The plain view comes first: it is the one that is drawn.
    ordered = sorted(views, key=lambda view: view != View())
    padded = tuple(View(view.scale * padding / _PADDING, view.rotation_deg) for view in ordered)
    crops, matrices = crops_of_box(image, np.asarray(bbox_xywh), card.input_hw, padded, card.coordinates)
    images = normalise(torch.from_numpy(crops).to(next(model.parameters()).device))
    plain, mirrored = (model(inputs).float().cpu() for inputs in (images, images.flip(-1)))
    back = flip_back(mirrored, card.skeleton.flip_pairs, card.coordinates.flip_shift)
    return Answer(card, crops, matrices, plain, back)


@dataclass(frozen=True)
class Row:
    """What one method says about one keypoint, and about the whole person.

    Attributes:
        method: One of METHODS, or TRUTH.
        xy_heatmap: (2,) in heatmap px.
        error_heatmap, error_input: Distance from the truth in heatmap and input px; NaN without truth.
        similarity: Keypoint similarity, 0..1; NaN without truth.
        oks: Of all labelled keypoints, 0..1; NaN without truth.
    """

    method: str
    xy_heatmap: np.ndarray
    error_heatmap: float
    error_input: float
    similarity: float
    oks: float


def compare(answer: Answer, box: Box, keypoint: int, positions: dict[str, np.ndarray]) -> list[Row]:
    """One row per method, and one for the truth if the keypoint is labelled.

    Args:
        answer: Gives frames and skeleton.
        box: With or without truth.
        keypoint: Index.
        positions: Of `Answer.positions`.
    """
    known = box.truth is not None and box.truth[keypoint, 2] > 0
    rows = []
    stride = answer.card.coordinates.stride_xy(answer.card.input_hw)
    truth = answer.to_heatmap(box.truth[:, :2]) if box.truth is not None else None
    for method, points in positions.items():
        error, similarity, oks = (np.full(2, np.nan), np.nan, np.nan)
        if box.truth is not None:
            labelled = box.truth[:, 2] > 0
            sigmas = answer.card.skeleton.oks_sigmas
            per_keypoint = keypoint_similarity(answer.to_image(points), box.truth, box.area, sigmas)
            oks = per_keypoint[labelled].mean() if labelled.any() else np.nan
        if known:
            error, similarity = points[keypoint] - truth[keypoint], per_keypoint[keypoint]
        distances = np.hypot(*error), np.hypot(*(error * stride))
        rows.append(Row(method, points[keypoint], *map(float, (*distances, similarity, oks))))
    if known:
        rows.append(Row(TRUTH, truth[keypoint], 0.0, 0.0, 1.0, 1.0))
    return rows
