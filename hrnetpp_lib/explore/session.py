"""What a network says about one box, kept so that decoding anew needs no new forward."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from pycocotools import mask

from hrnetpp_lib.data.crops import View, crops_of_box
from hrnetpp_lib.data.images import decode_image, read_image
from hrnetpp_lib.data.persons import CocoTruth, PersonTable
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.evaluate.infer import SINGLE_VIEW, points_to_image, raw_heatmaps
from hrnetpp_lib.evaluate.metrics import keypoint_similarity
from hrnetpp_lib.model.hrnet import HRNet
from hrnetpp_lib.model.weights import ModelCard, load_checkpoint
from hrnetpp_lib.pose.geometry import transform_points
from hrnetpp_lib.pose.heatmap import decode
from hrnetpp_lib.pose.softargmax import soft_argmax

TRUTH = "truth"  # beside "arg_max", "quarter_offset" and "soft_argmax", the decoders
_FAR_PX = 1e6  # no picture is as large
_PADDING = 1.25  # of bbox_to_center_scale; other paddings are views
_PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_MOST_PICTURES, _MOST_PEOPLE = 300, 10


@dataclass(frozen=True)
class Box:
    """A person to look at.

    Attributes:
        bbox_xywh: (4,) in image px.
        truth: (K, 3) labelled keypoints in image px, or None.
        area: px^2 of the person, for similarities; None without truth.
        row: Of the table that the person comes from, if any.
    """

    bbox_xywh: np.ndarray
    truth: np.ndarray | None = None
    area: float | None = None
    row: int | None = None

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

    @property
    def stride_xy(self) -> np.ndarray:
        """(2,) input px per cell."""
        return self.card.coordinates.stride_xy(self.card.input_hw)

    def heatmaps(self, flip: bool) -> torch.Tensor:
        """(V, K, H, W): averaged with those of the mirrored crops, or not."""
        return 0.5 * (self.plain + self.mirrored) if flip else self.plain

    def positions(self, alpha: float, flip: bool) -> dict[str, np.ndarray]:
        """Where each decoder puts the keypoints; with several views the mean of their places in the image.

        Args:
            alpha: Inverse temperature of soft-argmax, > 0.
            flip: See `heatmaps`.

        Returns:
            "arg_max", and the decoders as model cards call them -> (K, 2) in heatmap px of the first view.
        """
        maps = self.heatmaps(flip)
        decoded = {
            "arg_max": decode(maps, quarter_offset=False)[0],
            "quarter_offset": decode(maps)[0],
            "soft_argmax": soft_argmax(maps, alpha),
        }
        places = {key: points_to_image(xy, self.matrices, self.card) for key, xy in decoded.items()}
        return {key: self.to_heatmap(place.mean(axis=0)) for key, place in places.items()}

    def scores(self, flip: bool) -> np.ndarray:
        """(K,) maxima of the heatmaps, averaged over the views."""
        return self.heatmaps(flip).amax(dim=(2, 3)).mean(dim=0).numpy()

    def to_heatmap(self, points_image: np.ndarray) -> np.ndarray:
        """(K, 2) image px -> heatmap px of the first view."""
        return transform_points(points_image, self.matrices[0]) / self.stride_xy

    def to_image(self, points_heatmap: np.ndarray) -> np.ndarray:
        """(K, 2) heatmap px of the first view -> image px."""
        return points_to_image(points_heatmap[None], self.matrices[:1], self.card)[0]


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
        HrnetppError: If the box has no area, or is far from any picture.
    """
    bbox_xywh = np.asarray(bbox_xywh, np.float64)
    if not (np.abs(bbox_xywh) < _FAR_PX).all():
        raise HrnetppError(f"box {bbox_xywh.tolist()} lies in no picture; give x, y, w, h in its px")
    # The plain view comes first: it is the one that is drawn.
    ordered = sorted(views, key=lambda view: view != View())
    padded = tuple(View(view.scale * padding / _PADDING, view.rotation_deg) for view in ordered)
    crops, matrices = crops_of_box(image, bbox_xywh, card.input_hw, padded, card.coordinates)
    plain, mirrored = raw_heatmaps(model, torch.from_numpy(crops), card)
    return Answer(card, crops, matrices, plain.cpu(), mirrored.cpu())


@dataclass(frozen=True)
class Position:
    """Where one decoder, or the truth, puts one keypoint; and how good the whole person is.

    Attributes:
        source: Of `Answer.positions`, or TRUTH.
        xy_heatmap: (2,) in heatmap px.
        error_heatmap, error_input: Distance from the truth in heatmap and input px; NaN without truth.
        similarity: Keypoint similarity, 0..1; NaN without truth.
        oks: Of all labelled keypoints, 0..1; NaN without truth.
    """

    source: str
    xy_heatmap: np.ndarray
    error_heatmap: float = np.nan
    error_input: float = np.nan
    similarity: float = np.nan
    oks: float = np.nan


def compare(answer: Answer, box: Box, keypoint: int, positions: dict[str, np.ndarray]) -> list[Position]:
    """One entry per decoder, and one for the truth if the keypoint is labelled.

    Args:
        answer: Gives frames and skeleton.
        box: With or without truth.
        keypoint: Index.
        positions: Of `Answer.positions`.
    """
    if not box.labelled:
        return [Position(source, points[keypoint]) for source, points in positions.items()]
    labelled = box.truth[:, 2] > 0
    truth = answer.to_heatmap(box.truth[:, :2])[keypoint]
    found = []
    for source, points in positions.items():
        sigmas = answer.card.skeleton.oks_sigmas
        similarity = keypoint_similarity(answer.to_image(points), box.truth, box.area, sigmas)
        away = points[keypoint] - truth if labelled[keypoint] else np.full(2, np.nan)
        own = similarity[keypoint] if labelled[keypoint] else np.nan
        numbers = np.hypot(*away), np.hypot(*(away * answer.stride_xy)), own, similarity[labelled].mean()
        found.append(Position(source, points[keypoint], *map(float, numbers)))
    return [*found, Position(TRUTH, truth, 0.0, 0.0, 1.0, 1.0)] if labelled[keypoint] else found


def open_networks(
    networks: tuple[HRNet, ModelCard] | Path | str | Mapping[str, tuple[HRNet, ModelCard] | Path | str],
) -> dict[str, tuple[HRNet, ModelCard]]:
    """Networks and their cards by name, ready to be asked.

    Args:
        networks: A checkpoint, a (network, card) pair, or several of them by name.

    Raises:
        HrnetppError: If there is none, or a checkpoint cannot be used.
    """
    if isinstance(networks, (str, Path)):
        networks = {Path(networks).parent.name: networks}
    elif isinstance(networks, tuple):
        networks = {networks[1].run or "network": networks}
    if not networks or not isinstance(networks, Mapping):
        raise HrnetppError(
            "no network to explore; train the smallest with python -m hrnetpp_lib train --profile smoke"
        )
    opened = {}
    for name, network in networks.items():
        model, card = network if isinstance(network, tuple) else load_checkpoint(Path(network))
        opened[name] = (model.eval(), card)
    return opened


@dataclass(frozen=True)
class PeopleOfImage:
    """An image and its people.

    Attributes:
        name: For menus.
        source: The image's file, or the bytes of one that somebody uploaded.
        boxes: The people, most confident first; empty where nobody is known.
    """

    name: str
    source: Path | bytes
    boxes: tuple[Box, ...] = ()

    def read(self) -> np.ndarray:
        """(height, width, 3) uint8 RGB.

        Raises:
            HrnetppError: If it is no image.
        """
        # Annotations refer to the stored pixels; an image without them is shown as its camera was held.
        upright = not self.boxes
        if isinstance(self.source, bytes):
            return decode_image(self.source, self.name, upright)
        return read_image(self.source, upright)


def open_people(source: PersonTable | Path | str | Sequence[Path | str]) -> list[PeopleOfImage]:
    """The images of a table of persons, of a folder, or those named; at most 300.

    Args:
        source: Persons with or without labels; or an image, a folder of images, or several images.

    Raises:
        HrnetppError: If there is none, or one does not exist, or nobody in the table has a box.
    """
    if isinstance(source, PersonTable):
        return _people_of_table(source)
    listed = [source] if isinstance(source, (str, Path)) else source
    try:
        paths = [Path(path).expanduser() for path in listed]
        if len(paths) == 1 and paths[0].is_dir():
            found = (path for path in paths[0].iterdir() if path.suffix.lower() in _PICTURES)
            paths = sorted(path for path in found if _has_content(path))
        missing = [path for path in paths if not _has_content(path)]
    except (OSError, RuntimeError, ValueError) as error:  # no such home, a name too long, a folder locked
        reason = f"{str(source)[:200]}: cannot be looked at ({str(error)[:100]})"
        raise HrnetppError(f"{reason}; check the path") from error
    if missing or not paths:
        raise HrnetppError(
            f"{missing[0] if missing else source}: no picture there; give a .jpg or .png, or a folder of them"
        )
    return [PeopleOfImage(path.name, path) for path in paths[:_MOST_PICTURES]]


def _has_content(path: Path) -> bool:
    """Whether it is a regular file; those of the kernel, which may never end, say that they have 0 bytes."""
    return path.is_file() and path.stat().st_size > 0


def _people_of_table(table: PersonTable) -> list[PeopleOfImage]:
    """Those of whom a crop can be made; a crowd is nobody to look at."""
    counted = (table.bboxes_xywh[:, 2:] > 0).all(axis=1)
    if isinstance(table, CocoTruth):
        counted &= ~table.crowd
    if not counted.any():
        raise HrnetppError(f"{table.name}: has no person with a box; choose another table")
    labelled = (table.keypoints[:, :, 2] > 0).any(axis=1)
    opened = []
    for image in np.unique(table.image_index[counted])[:_MOST_PICTURES]:
        persons = np.flatnonzero(counted & (table.image_index == image))
        persons = persons[np.argsort(-table.bbox_scores[persons], kind="stable")][:_MOST_PEOPLE]
        boxes = tuple(
            Box(
                table.bboxes_xywh[p],
                table.keypoints[p] if labelled[p] else None,
                float(table.areas[p]) if labelled[p] else None,
                int(p),
            )
            for p in persons
        )
        path = table.image_path(persons[0])
        opened.append(PeopleOfImage(path.name, path, boxes))
    return opened


def best_labelled(boxes: Sequence[Box]) -> int:
    """Which person has the most labelled keypoints; of equals the first in their table; 0 if none."""

    def merit(number: int) -> tuple[int, int]:
        box = boxes[number]
        return box.labelled, -(number if box.row is None else box.row)

    return max(range(len(boxes)), key=merit, default=0)


def best_match(bbox_xywh: np.ndarray, boxes: Sequence[Box], threshold: float = 0.3) -> int | None:
    """Which box overlaps a given one most; None where no intersection over union reaches the threshold.

    Args:
        bbox_xywh: (4,) image px.
        boxes: To choose from.
        threshold: Of intersection over union.
    """
    others = np.array([box.bbox_xywh for box in boxes])
    overlap = mask.iou(bbox_xywh[None], others, np.zeros(len(others)))[0]
    return int(overlap.argmax()) if overlap.max() >= threshold else None


def whole_image_box(image: np.ndarray) -> Box:
    """The box of a picture of which nothing is known."""
    return Box(np.array([0.0, 0.0, image.shape[1], image.shape[0]]))


def thumbnails(image: np.ndarray, boxes: Sequence[Box], chosen: int, height: int = 96) -> np.ndarray:
    """The people of a picture side by side, the chosen one framed.

    Args:
        image: (height, width, 3) uint8 RGB.
        boxes: At least one.
        chosen: Index.
        height: Of the strip in px; every person takes 3/4 of it in width.

    Returns:
        (height, N * 3/4 height, 3) uint8 RGB.
    """
    size = (height, height * 3 // 4)
    people = [crops_of_box(image, box.bbox_xywh, size, (View(),))[0][0] for box in boxes]
    for number, person in enumerate(people):
        colour = (240, 228, 66) if number == chosen else (120, 120, 120)
        cv2.rectangle(person, (0, 0), (size[1] - 1, size[0] - 1), colour, 4 if number == chosen else 1)
    return np.hstack(people)
