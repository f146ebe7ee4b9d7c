"""From a table of persons to crops: the training samples and the boxes to predict on."""

import contextlib
import functools
import os
import re
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Self

import cv2
import numpy as np
import torch
from torch import Tensor

from hrnetpp_lib.data.augment import sample_crop
from hrnetpp_lib.data.images import read_image
from hrnetpp_lib.data.persons import PersonTable
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.pose import geometry
from hrnetpp_lib.pose.geometry import OFFICIAL, PixelConvention
from hrnetpp_lib.pose.heatmap import locate
from hrnetpp_lib.recipe import Augmentation, Run

# Mean and standard deviation of ImageNet's RGB values in [0, 255]; official HRNet.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
_MOST_REPLACEMENTS = 20  # so many unreadable images in a row are no accident


def normalise(images: Tensor) -> Tensor:
    """Network input (B, 3, h, w) fp32, channels last in memory, of raw crops (B, h, w, 3) uint8 RGB."""
    # A row at a time: torch is slow with three numbers against a whole image.
    mean, std = (images.new_tensor(each, dtype=torch.float32).repeat(images.shape[2]) for each in (MEAN, STD))
    return images.flatten(2).float().sub_(mean).div_(std).view(images.shape).permute(0, 3, 1, 2)


def warp(image: np.ndarray, matrix: np.ndarray, input_hw: tuple[int, int]) -> np.ndarray:
    """The crop (h, w, 3) that matrix (2, 3), image px -> input px, cuts out; black outside of the image.

    The image may have a fourth channel, which is dropped, and with which OpenCV is twice as fast.
    """
    crop = cv2.warpAffine(image, matrix, (input_hw[1], input_hw[0]), flags=cv2.INTER_LINEAR)
    return crop if crop.shape[2] == 3 else cv2.cvtColor(crop, cv2.COLOR_RGBA2RGB)


def rows_of_crop(matrix: np.ndarray, input_hw: tuple[int, int]) -> int:
    """How many of an image's upper rows (1 or more) `warp` looks at; matrix (2, 3), image px -> input px."""
    (a, b, left), (c, d, top) = matrix.tolist()
    height, width = input_hw
    lowest = max((a * (y - top) - c * (x - left)) / (a * d - b * c) for x in (0, width) for y in (0, height))
    return max(1, int(lowest) + 3) if lowest < 2**31 else 2**31  # between two rows it takes both


class Sample(NamedTuple):
    """One training crop and what both losses ask for; torch's collation makes a batch of the same type."""

    image: np.ndarray | Tensor  # (h, w, 3) uint8 RGB
    peaks: np.ndarray | Tensor  # (K, 2) int64 x, y: the whole cells that the MSE's Gaussians are drawn on
    target_weight: np.ndarray | Tensor  # (K,) fp32, 0 where unlabelled or the Gaussian lies wholly outside
    keypoints_heatmap: np.ndarray | Tensor  # (K, 2) fp32 x, y in heatmap px, not rounded, for the L1
    keypoint_weight: np.ndarray | Tensor  # (K,) fp32, 1 where labelled and inside the input
    person: int | Tensor  # row of the table
    bad: int | Tensor  # the row that it stands in for because that image cannot be read, else -1


@dataclass
class TrainCrops(torch.utils.data.Dataset):
    """Augmented crops of labelled persons with what both losses ask for.

    Call `set_epoch` first; augmentation depends on (seed, epoch, index) alone: any sample can be made again.
    """

    table: PersonTable
    input_hw: tuple[int, int]  # of the crops, px
    heatmap_sigma: float  # of the targets, in cells
    augmentation: Augmentation
    coordinates: PixelConvention = OFFICIAL
    seed: int = 0
    epoch: int = 0
    skip_bad_images: bool = False  # another person, drawn from (seed, epoch, index) too, stands in

    @classmethod
    def of_run(cls, table: PersonTable, run: Run, epoch: int = 0, skip_bad_images: bool = False) -> Self:
        """The samples that a training run draws from a table."""
        convention = geometry.CONVENTIONS[run.stage.coordinates]
        sizes = (run.profile.input_hw, run.profile.heatmap_sigma)
        return cls(table, *sizes, run.stage.augmentation, convention, run.seed, epoch, skip_bad_images)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose augmentation the next samples have."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Sample:
        """Raises: HrnetppError if the image cannot be read, and may not be skipped or has no successor."""
        random = np.random.default_rng((self.seed, self.epoch, index))
        person = index
        for _ in range(_MOST_REPLACEMENTS):
            before = random.bit_generator.state
            matrix, flipped = self._crop(person, random)
            try:
                rows = rows_of_crop(matrix, self.input_hw)
                image = read_image(self.table.image_path(person), channels=4, rows=rows)
            except HrnetppError:
                if not self.skip_bad_images:
                    raise
                random.bit_generator.state = before  # as if no crop had been drawn
                person = int(random.integers(len(self.table)))
                continue
            return self._sample(image, person, -1 if person == index else index, matrix, flipped)
        wrong = f"{_MOST_REPLACEMENTS} images in a row cannot be read, first {self.table.image_path(index)}"
        raise HrnetppError(f"{self.table.name}: {wrong}; mend the image folder")

    def _crop(self, person: int, random: np.random.Generator) -> tuple[np.ndarray, bool]:
        """Matrix and mirroring of a person's next crop."""
        table, (centers, scales) = self.table, self._boxes
        around = (table.keypoints[person], centers[person], scales[person], table.skeleton, self.input_hw)
        return sample_crop(self.augmentation, *around, random, self.coordinates)

    @functools.cached_property
    def _boxes(self) -> tuple[np.ndarray, np.ndarray]:
        """Of all persons at once: for each alone it would take as long as its crop's matrix."""
        return geometry.bbox_to_center_scale(self.table.bboxes_xywh, self.input_hw)

    def _sample(self, image: np.ndarray, person: int, bad: int, matrix: np.ndarray, flipped: bool) -> Sample:
        keypoints, input_hw = self.table.keypoints[person], self.input_hw
        keypoints = keypoints[self.table.skeleton.flip_order if flipped else slice(None)]
        labelled = keypoints[:, 2] > 0
        points = geometry.transform_points(keypoints[:, :2].astype(np.float64), matrix) * labelled[:, None]
        # CHOICE: in the L1, a keypoint that the crop cuts off has no weight; the report does not say.
        inside = labelled & ((points >= 0) & (points <= np.array(input_hw[::-1]) - 1)).all(axis=1)
        cells = points / self.coordinates.stride_xy(input_hw)
        peaks, weight = locate(cells, labelled, (input_hw[0] // 4, input_hw[1] // 4), self.heatmap_sigma)
        pixels = warp(image, matrix, input_hw)
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
        crops, matrices = self._empty(1)
        self._cut(None, np.array([index]), crops, matrices, keep=False)
        return crops[0], matrices[0]

    def batches(self, boxes: int, workers: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """All boxes, in the order of their images, while threads read ahead: each image is read once.

        Close the generator, or use it up, and its threads have ended.

        Args:
            boxes: At most so many a batch; batches are of nearly one size.
            workers: Threads; at least one.

        Yields:
            rows (n,) of the table, crops (n, V, h, w, 3) uint8 RGB and matrices (n, V, 2, 3).

        Raises: HrnetppError if an image cannot be read.
        """
        if not len(self):
            return
        order = np.argsort(self.table.image_index, kind="stable")
        threads, ahead = max(1, workers), deque()
        pool, image, last = ThreadPoolExecutor(threads, "read images"), None, -1
        try:
            for rows in np.array_split(order, -(-len(order) // boxes)):
                crops, matrices = self._empty(len(rows))
                of_image = self.table.image_index[rows]
                starts = np.flatnonzero(np.diff(of_image, prepend=-1))
                jobs = []
                for start, end in zip(starts, [*starts[1:], len(rows)], strict=True):
                    # A job waits for none but an earlier one, which has a thread already.
                    before, last = image if of_image[start] == last else None, of_image[start]
                    part = slice(start, end)
                    keep = end == len(rows)  # for the next batch; other images are let go
                    image = pool.submit(self._cut, before, rows[part], crops[part], matrices[part], keep)
                    jobs.append(image)
                ahead.append((jobs, rows, crops, matrices))
                if len(ahead) > 1 + threads:
                    yield _finished(*ahead.popleft())
            while ahead:
                yield _finished(*ahead.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _empty(self, boxes: int) -> tuple[np.ndarray, np.ndarray]:
        views = (boxes, len(self.views))
        return np.empty((*views, *self.input_hw, 3), np.uint8), np.empty((*views, 2, 3))

    def _cut(
        self, before: Future | None, rows: np.ndarray, crops: np.ndarray, matrices: np.ndarray, keep: bool
    ) -> np.ndarray | None:
        """Fill in the crops of some boxes of one image, which the job before may have read and kept."""
        image = before.result() if before else read_image(self.table.image_path(rows[0]))
        for i, box in enumerate(self.table.bboxes_xywh[rows]):
            crops[i], matrices[i] = crops_of_box(image, box, self.input_hw, self.views, self.coordinates)
        return image if keep else None


def _finished(jobs: list[Future], *batch: np.ndarray) -> tuple[np.ndarray, ...]:
    """A batch once its crops are made. Raises: HrnetppError if an image of it cannot be read."""
    for job in jobs:
        job.result()
    return batch


def crops_of_box(
    image: np.ndarray,
    bbox_xywh: np.ndarray,
    input_hw: tuple[int, int],
    views: tuple[View, ...],
    coordinates: PixelConvention = OFFICIAL,
) -> tuple[np.ndarray, np.ndarray]:
    """Crops (V, h, w, 3) uint8 of one box of an open image, and matrices (V, 2, 3), image px -> input px."""
    center, scale = geometry.bbox_to_center_scale(bbox_xywh, input_hw)
    turned = ((center, scale * view.scale, view.rotation_deg) for view in views)
    matrices = np.stack([geometry.crop_matrix(*box, coordinates.crop_hw(input_hw)) for box in turned])
    return np.stack([warp(image, matrix, input_hw) for matrix in matrices]), matrices


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_workers(wanted: int) -> int:
    """Loader processes that there are cores for; processes that train together on a machine share them."""
    return min(wanted, max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


@contextlib.contextmanager
def explain_workers(obituary: Callable[[list[int]], str]) -> Iterator[None]:
    """Around a loop over loaded batches: torch reports a dead worker wherever the main process is.

    Raises: HrnetppError if an image cannot be read, or a worker dies: what `obituary` says of process ids.
    """
    try:
        yield
    except HrnetppError as error:
        # A worker's exception comes with its traceback in the message; the last line is what we wrote.
        last = str(error).strip().splitlines()[-1]
        raise HrnetppError(last.split("HrnetppError: ", 1)[-1]) from error
    except RuntimeError as error:
        if dead := re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", str(error)):
            raise HrnetppError(obituary([int(number) for number in dead[1].split(",")])) from error
        raise
