"""From a table of persons to crops: the training samples and the boxes to predict on."""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from hrnetpp_lib.data.augment import sample_crop
from hrnetpp_lib.data.images import read_image
from hrnetpp_lib.data.persons import PersonTable
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.pose.geometry import (
    CONVENTIONS,
    OFFICIAL,
    PixelConvention,
    bbox_to_center_scale,
    crop_matrix,
    transform_points,
)
from hrnetpp_lib.pose.heatmap import locate
from hrnetpp_lib.recipe import Augmentation, Run

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


_MOST_REPLACEMENTS = 20  # so many unreadable images in a row are no accident


class Sample(NamedTuple):
    """One training crop and what both losses ask for; torch's own collation makes a batch of the same type.

    Attributes:
        image: (h, w, 3) uint8 RGB.
        peaks: (K, 2) int64 (x, y), the whole cells that the MSE's Gaussians are drawn on.
        target_weight: (K,) fp32, 0 where the Gaussian lies wholly outside or nothing is labelled.
        keypoints_heatmap: (K, 2) fp32 (x, y) in heatmap px, not rounded, for the L1.
        keypoint_weight: (K,) fp32, 1 where labelled and inside the input.
        person: Row of the table.
        bad: The row that it stands in for because that image cannot be read, else -1.
    """

    image: np.ndarray | Tensor
    peaks: np.ndarray | Tensor
    target_weight: np.ndarray | Tensor
    keypoints_heatmap: np.ndarray | Tensor
    keypoint_weight: np.ndarray | Tensor
    person: int | Tensor
    bad: int | Tensor


@dataclass
class TrainCrops(torch.utils.data.Dataset):
    """Augmented crops of labelled persons with what both losses ask for.

    Augmentation depends on (seed, epoch, index) alone, so any sample can be made again.
    Call `set_epoch` before each epoch.

    Attributes:
        table: The persons.
        input_hw: Height and width of the crops, px.
        heatmap_sigma: Of the heatmap targets, in cells.
        augmentation: Which crops are drawn.
        coordinates: What the box is stretched to, and what a cell means.
        seed: Of the augmentation.
        epoch: See `set_epoch`.
        skip_bad_images: Whether a person whose image cannot be read is replaced by another one, drawn
            from (seed, epoch, index) too, instead of stopping the run.
    """

    table: PersonTable
    input_hw: tuple[int, int]
    heatmap_sigma: float
    augmentation: Augmentation
    coordinates: PixelConvention = OFFICIAL
    seed: int = 0
    epoch: int = 0
    skip_bad_images: bool = False

    @classmethod
    def of_run(
        cls, table: PersonTable, run: Run, epoch: int = 0, skip_bad_images: bool = False
    ) -> "TrainCrops":
        """The samples that a training run draws from a table."""
        stage, profile = run.stage, run.profile
        convention = CONVENTIONS[stage.coordinates]
        sizes = (profile.input_hw, profile.heatmap_sigma)
        return cls(table, *sizes, stage.augmentation, convention, run.seed, epoch, skip_bad_images)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose augmentation the next samples have."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Sample:
        """One sample.

        Raises:
            HrnetppError: If the image cannot be read, and may not be skipped or has no successor.
        """
        random = np.random.default_rng((self.seed, self.epoch, index))
        person = index
        for _ in range(_MOST_REPLACEMENTS):
            try:
                image = read_image(self.table.image_path(person))
            except HrnetppError:
                if not self.skip_bad_images:
                    raise
                person = int(random.integers(len(self.table)))
                continue
            return self._sample(image, person, -1 if person == index else index, random)
        raise HrnetppError(
            f"{self.table.name}: {_MOST_REPLACEMENTS} images in a row cannot be read, the first one "
            f"{self.table.image_path(index)}; mend the image folder"
        )

    def _sample(self, image: np.ndarray, person: int, bad: int, random: np.random.Generator) -> Sample:
        table, input_hw = self.table, self.input_hw
        center, scale = bbox_to_center_scale(table.bboxes_xywh[person], input_hw)
        crop = sample_crop(
            self.augmentation,
            table.keypoints[person],
            center,
            scale,
            table.skeleton,
            input_hw,
            random,
            self.coordinates,
        )
        keypoints = table.keypoints[person][table.skeleton.flip_order if crop.flipped else slice(None)]
        labelled = keypoints[:, 2] > 0
        points = transform_points(keypoints[:, :2].astype(np.float64), crop.matrix) * labelled[:, None]
        last = np.array(input_hw[::-1]) - 1
        # CHOICE: in the L1, a keypoint that the crop cuts off has no weight; the report does not say.
        inside = labelled & ((points >= 0) & (points <= last)).all(axis=1)
        cells = points / self.coordinates.stride_xy(input_hw)
        peaks, weight = locate(cells, labelled, (input_hw[0] // 4, input_hw[1] // 4), self.heatmap_sigma)
        pixels = warp(image, crop.matrix, input_hw)
        return Sample(pixels, peaks, weight, cells.astype(np.float32), inside.astype(np.float32), person, bad)


@dataclass(frozen=True)
class View:
    """One way to look at a box: the padded box is scaled, then rotated about its center."""

    scale: float = 1.0
    rotation_deg: float = 0.0


@dataclass
class BoxCrops(torch.utils.data.Dataset):
    """The crops of each box of a table, one per view, with the matrices that made them."""

    table: PersonTable
    input_hw: tuple[int, int]
    views: tuple[View, ...] = (View(),)
    coordinates: PixelConvention = OFFICIAL

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
    coordinates: PixelConvention = OFFICIAL,
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


def usable_workers(wanted: int) -> int:
    """Loader processes that there are cores for; more only get in one another's way.

    Processes that train together on this machine share its cores.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(wanted, max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


@contextlib.contextmanager
def explain_workers(obituary: Callable[[list[int]], str]) -> Iterator[None]:
    """Around a loop over loaded batches: torch reports a dead worker wherever the main process is.

    Args:
        obituary: Gives the message for the process ids of workers that died.

    Raises:
        HrnetppError: If an image cannot be read, or a worker dies.
    """
    try:
        yield
    except HrnetppError as error:
        # A worker's exception comes with its traceback in the message; the last line is what we wrote.
        last = str(error).strip().splitlines()[-1]
        if "HrnetppError: " not in last:
            raise
        raise HrnetppError(last.split("HrnetppError: ", 1)[1]) from error
    except RuntimeError as error:
        dead = re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", str(error))
        if dead is None:
            raise
        raise HrnetppError(obituary([int(number) for number in dead[1].split(",")])) from error
