"""From a table of persons to crops: the training samples and the boxes to predict on."""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from hrnetpp_lib.augment import sample_crop
from hrnetpp_lib.coordinates import OFFICIAL, Coordinates, get_coordinates
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.geometry import bbox_to_center_scale, crop_matrix, transform_points
from hrnetpp_lib.heatmap import locate
from hrnetpp_lib.images import read_image
from hrnetpp_lib.persons import PersonTable
from hrnetpp_lib.recipe import Run

# Mean and standard deviation of ImageNet's RGB values in [0, 255]; official HRNet.
_MEAN = (123.675, 116.28, 103.53)
_STD = (58.395, 57.12, 57.375)


def normalise(images: Tensor) -> Tensor:
    """Network input from raw crops.

    Args:
        images: (B, h, w, 3) uint8 RGB.

    Returns:
        (B, 3, h, w) fp32, zero mean and unit variance over ImageNet; channels last in memory.
    """
    mean, std = images.new_tensor(_MEAN, dtype=torch.float32), images.new_tensor(_STD, dtype=torch.float32)
    return ((images.float() - mean) / std).permute(0, 3, 1, 2)


def warp(image: np.ndarray, matrix: np.ndarray, input_hw: tuple[int, int]) -> np.ndarray:
    """Cut a crop out of an image; what lies outside the image is black.

    Args:
        image: (height, width, 3) uint8.
        matrix: (2, 3) image px -> input px.
        input_hw: Height and width of the crop.

    Returns:
        (h, w, 3) uint8.
    """
    return cv2.warpAffine(image, matrix, (input_hw[1], input_hw[0]), flags=cv2.INTER_LINEAR)


_MOST_REPLACEMENTS = 20  # so many unreadable pictures in a row are no accident


@dataclass
class TrainCrops(torch.utils.data.Dataset):
    """Augmented crops of labelled persons with what both losses ask for.

    Augmentation depends on (run.seed, epoch, index) alone, so any sample can be made again.
    Call `set_epoch` before each epoch.

    Attributes:
        table: The persons.
        run: Gives input size, augmentation and seed.
        epoch: See `set_epoch`.
        skip_bad_images: Whether a person whose picture cannot be read is replaced by another one, drawn
            from (seed, epoch, index) too, instead of stopping the run.
    """

    table: PersonTable
    run: Run
    epoch: int = 0
    skip_bad_images: bool = False

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose augmentation the next samples have."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict[str, np.ndarray | int]:
        """One sample.

        Returns:
            image (h, w, 3) uint8 RGB; for the MSE centres (K, 2) int64 in whole cells and target_weight
            (K,); for the L1 keypoints_heatmap (K, 2) in heatmap px, not rounded, and keypoint_weight (K,),
            1 where labelled and inside the input; person, the row of the table; bad, the row it stands in
            for because that picture cannot be read, else -1.

        Raises:
            HrnetppError: If the picture cannot be read, and may not be skipped or has no successor.
        """
        random = np.random.default_rng((self.run.seed, self.epoch, index))
        person = index
        for _ in range(_MOST_REPLACEMENTS):
            try:
                image = read_image(self.table.image_path(person))
            except HrnetppError:
                if not self.skip_bad_images:
                    raise
                person = int(random.integers(len(self.table)))
                continue
            origin = {"person": person, "bad": -1 if person == index else index}
            return self._sample(image, person, random) | origin
        raise HrnetppError(
            f"{self.table.name}: {_MOST_REPLACEMENTS} pictures in a row cannot be read, the first one "
            f"{self.table.image_path(index)}; mend the image folder"
        )

    def _sample(self, image: np.ndarray, person: int, random: np.random.Generator) -> dict[str, np.ndarray]:
        profile, table = self.run.profile, self.table
        coordinates = get_coordinates(self.run.stage.coordinates)
        center, scale = bbox_to_center_scale(table.bboxes_xywh[person], profile.input_hw)
        crop = sample_crop(
            self.run.stage.augmentation,
            table.keypoints[person],
            center,
            scale,
            table.skeleton,
            profile.input_hw,
            random,
            coordinates,
        )
        keypoints = table.keypoints[person][table.skeleton.flip_order if crop.flipped else slice(None)]
        labelled = keypoints[:, 2] > 0
        points = transform_points(keypoints[:, :2].astype(np.float64), crop.matrix) * labelled[:, None]
        last = np.array(profile.input_hw[::-1]) - 1
        # CHOICE: in the L1, a keypoint that the crop cuts off has no weight; the report does not say.
        inside = labelled & ((points >= 0) & (points <= last)).all(axis=1)
        cells = points / coordinates.stride_xy(profile.input_hw)
        # locate counts four px a cell, whatever the convention.
        centres, weight = locate(
            4 * cells, labelled, profile.input_hw, profile.heatmap_hw, profile.heatmap_sigma
        )
        return {
            "image": warp(image, crop.matrix, profile.input_hw),
            "centres": centres,
            "target_weight": weight,
            "keypoints_heatmap": cells.astype(np.float32),
            "keypoint_weight": inside.astype(np.float32),
        }


@dataclass(frozen=True)
class View:
    """One way to look at a box: the padded box is scaled, then rotated about its centre."""

    scale: float = 1.0
    rotation_deg: float = 0.0


@dataclass
class BoxCrops(torch.utils.data.Dataset):
    """The crops of each box of a table, one per view, with the matrices that made them."""

    table: PersonTable
    input_hw: tuple[int, int]
    views: tuple[View, ...] = (View(),)
    coordinates: Coordinates = OFFICIAL

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """crops (V, h, w, 3) uint8 RGB and matrices (V, 2, 3), image px -> input px."""
        image = read_image(self.table.image_path(index))
        return crops_of_box(image, self.table.bboxes_xywh[index], self.input_hw, self.views, self.coordinates)


def crops_of_box(
    image: np.ndarray,
    bbox_xywh: np.ndarray,
    input_hw: tuple[int, int],
    views: tuple[View, ...],
    coordinates: Coordinates = OFFICIAL,
) -> tuple[np.ndarray, np.ndarray]:
    """Crops and matrices of one box of an open image.

    Args:
        image: (height, width, 3) uint8 RGB.
        bbox_xywh: (4,) image px.
        input_hw: Height and width of the crops.
        views: V views.
        coordinates: What the box is stretched to.

    Returns:
        crops (V, h, w, 3) uint8 and matrices (V, 2, 3), image px -> input px.
    """
    center, scale = bbox_to_center_scale(bbox_xywh, input_hw)
    crop_hw = coordinates.crop_hw(input_hw)
    matrices = np.stack([crop_matrix(center, scale * v.scale, v.rotation_deg, crop_hw) for v in views])
    return np.stack([warp(image, matrix, input_hw) for matrix in matrices]), matrices
