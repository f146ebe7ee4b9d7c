"""What a network says about one box, kept so that decoding anew needs no new forward."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from pycocotools import mask

from hrnetpp_lib.data.crops import View, crops_of_box
from hrnetpp_lib.data.images import PICTURE_SUFFIXES, decode_image, read_image
from hrnetpp_lib.data.persons import CocoTruth, PersonTable
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.evaluate.infer import SINGLE_VIEW, points_to_image, prepare, raw_heatmaps
from hrnetpp_lib.evaluate.metrics import keypoint_similarity
from hrnetpp_lib.evaluate.runtime import is_exported, open_exported
from hrnetpp_lib.model.weights import ModelCard, load_checkpoint
from hrnetpp_lib.pose.geometry import BOX_PADDING, transform_points
from hrnetpp_lib.pose.heatmap import decode
from hrnetpp_lib.pose.softargmax import soft_argmax

Network = tuple[torch.nn.Module, ModelCard] | Path | str  # ready to be asked, or its checkpoint
TRUTH = "truth"  # beside "arg_max", "quarter_offset" and "soft_argmax", the decoders
_FAR_PX = 1e6  # no picture is as large
_MOST_PICTURES, _MOST_PEOPLE = 300, 10
_THUMBNAIL_HW = (96, 72)


@dataclass(frozen=True)
class Box:
    """A person to look at."""

    bbox_xywh: np.ndarray  # (4,) in image px
    truth: np.ndarray | None = None  # (K, 3) labelled keypoints in image px
    area: float | None = None  # px^2 of the person, for similarities; None without truth
    row: int | None = None  # of the table that the person comes from, if any

    @property
    def labelled(self) -> int:
        return 0 if self.truth is None else int((self.truth[:, 2] > 0).sum())


@dataclass(frozen=True)
class Answer:
    """The raw output for V views of one box."""

    card: ModelCard
    crops: np.ndarray  # (V, h, w, 3) uint8 RGB
    matrices: np.ndarray  # (V, 2, 3), image px -> input px
    plain: torch.Tensor  # (V, K, H, W) fp32 heatmaps of the crops
    mirrored: torch.Tensor  # (V, K, H, W) fp32 heatmaps of the mirrored crops, brought back

    @property
    def stride_xy(self) -> np.ndarray:
        """(2,) input px per cell."""
        return self.card.coordinates.stride_xy(self.card.input_hw)

    def heatmaps(self, flip: bool) -> torch.Tensor:
        """(V, K, H, W): averaged with those of the mirrored crops, or not."""
        return 0.5 * (self.plain + self.mirrored) if flip else self.plain

    def positions(self, alpha: float, flip: bool) -> dict[str, np.ndarray]:
        """Each decoder's (K, 2) in heatmap px of the first view; several views give their mean place."""
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
    model: torch.nn.Module,
    card: ModelCard,
    image: np.ndarray,
    bbox_xywh: np.ndarray,
    views: tuple[View, ...] = SINGLE_VIEW,
    padding: float = BOX_PADDING,
) -> Answer:
    """Run a network in eval mode on a box, (4,) in px of a (height, width, 3) RGB image, and its padding.

    Raises: HrnetppError if the box has no area, or is far from any picture.
    """
    bbox_xywh = np.asarray(bbox_xywh, np.float64)
    if not (np.abs(bbox_xywh) < _FAR_PX).all():
        raise HrnetppError(f"box {bbox_xywh.tolist()} lies in no picture; give x, y, w, h in its px")
    # The plain view comes first: it is the one that is drawn.
    ordered = sorted(views, key=lambda view: view != View())
    padded = tuple(View(view.scale * padding / BOX_PADDING, view.rotation_deg) for view in ordered)
    crops, matrices = crops_of_box(image, bbox_xywh, card.input_hw, padded, card.coordinates)
    plain, mirrored = raw_heatmaps(model, torch.from_numpy(crops), card)
    return Answer(card, crops, matrices, plain.cpu(), mirrored.cpu())


@dataclass(frozen=True)
class Position:
    """Where a decoder, or the truth, puts a keypoint; and how good the person is: NaN without truth."""

    source: str  # of `Answer.positions`, or TRUTH
    xy_heatmap: np.ndarray  # (2,) in heatmap px
    error_heatmap: float = np.nan  # distance from the truth in heatmap px
    error_input: float = np.nan  # and in input px
    similarity: float = np.nan  # of this keypoint, 0..1
    oks: float = np.nan  # of all labelled keypoints, 0..1


def compare(answer: Answer, box: Box, keypoint: int, positions: dict[str, np.ndarray]) -> list[Position]:
    """Of one keypoint an entry per decoder of `Answer.positions`, and one for the truth if it is labelled."""
    if not box.labelled:
        return [Position(source, points[keypoint]) for source, points in positions.items()]
    labelled, sigmas = box.truth[:, 2] > 0, answer.card.skeleton.oks_sigmas
    known = 1.0 if labelled[keypoint] else np.nan
    truth = answer.to_heatmap(box.truth[:, :2])[keypoint]
    found = []
    for source, points in positions.items():
        similarity = keypoint_similarity(answer.to_image(points), box.truth, box.area, sigmas)
        away = (points[keypoint] - truth) * known
        errors = np.hypot(*away), np.hypot(*(away * answer.stride_xy))
        numbers = *errors, similarity[keypoint] * known, similarity[labelled].mean()
        found.append(Position(source, points[keypoint], *map(float, numbers)))
    return [*found, Position(TRUTH, truth, 0.0, 0.0, 1.0, 1.0)] if labelled[keypoint] else found


def network_name(path: Path | str) -> str:
    """What a menu calls the network of a file: its name, of a run's model.safetensors the run's."""
    path = Path(path)
    return path.parent.name if path.stem in ("model", "network") else path.name


def open_networks(networks: Network | Mapping[str, Network]) -> dict[str, tuple[torch.nn.Module, ModelCard]]:
    """Networks and their cards by name, ready to be asked: of one, named by its run, or several by name.

    A file may be a checkpoint, ours or a published one, which torch prepares as that takes no time, or a
    graph that `export` wrote. A network that is given, prepared by another runtime perhaps, stays as it is.

    Raises: HrnetppError if there is none, or a file cannot be used.
    """
    if isinstance(networks, (str, Path)):
        networks = {network_name(networks): networks}
    elif isinstance(networks, tuple):
        networks = {networks[1].run or "network": networks}
    if not networks or not isinstance(networks, Mapping):
        smallest = "train the smallest with python -m hrnetpp_lib train --profile smoke"
        raise HrnetppError(f"no network to explore; {smallest}")

    return {name: _opened(network) for name, network in networks.items()}


def _opened(network: Network) -> tuple[torch.nn.Module, ModelCard]:
    if isinstance(network, tuple):
        return network[0].eval(), network[1]
    path = Path(os.path.expanduser(network))
    if is_exported(path):
        return open_exported(path)
    model, card = load_checkpoint(path)
    return prepare(model, card, "torch"), card


@dataclass(frozen=True)
class PeopleOfImage:
    """An image and its people."""

    name: str  # for menus
    source: Path | bytes  # the image's file, or the bytes of one that somebody uploaded
    boxes: tuple[Box, ...] = ()  # the people, most confident first; empty where nobody is known

    def read(self) -> np.ndarray:
        """(height, width, 3) uint8 RGB, upright unless annotations refer to the pixels as they are stored."""
        if isinstance(self.source, bytes):
            return decode_image(self.source, self.name, upright=not self.boxes)
        return read_image(self.source, upright=not self.boxes)


def open_people(source: PersonTable | Path | str | Sequence[Path | str]) -> list[PeopleOfImage]:
    """The images, at most 300, of a table of persons, of a folder, or one or several that are named.

    Raises: HrnetppError if there is none, or one does not exist, or nobody in the table has a box.
    """
    if isinstance(source, PersonTable):
        return _people_of_table(source)
    try:
        paths = [
            Path(path).expanduser() for path in ([source] if isinstance(source, (str, Path)) else source)
        ]
        if len(paths) == 1 and paths[0].is_dir():
            found = (path for path in paths[0].iterdir() if path.suffix.lower() in PICTURE_SUFFIXES)
            paths = sorted(path for path in found if _has_content(path))
        missing = [path for path in paths if not _has_content(path)]
    except (OSError, RuntimeError, ValueError) as error:  # no such home, a name too long, a folder locked
        reason = f"{str(source)[:200]}: cannot be looked at ({str(error)[:100]})"
        raise HrnetppError(f"{reason}; check the path") from error
    if missing or not paths:
        wrong = missing[0] if missing else source
        raise HrnetppError(f"{wrong}: no picture there; give a .jpg or .png, or a folder of them")
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

    def box(row: int) -> Box:
        labelled = (table.keypoints[row, :, 2] > 0).any()
        truth = (table.keypoints[row], float(table.areas[row])) if labelled else (None, None)
        return Box(table.bboxes_xywh[row], *truth, int(row))

    opened = []
    for image in np.unique(table.image_index[counted])[:_MOST_PICTURES]:
        rows = np.flatnonzero(counted & (table.image_index == image))
        rows = rows[np.argsort(-table.bbox_scores[rows], kind="stable")][:_MOST_PEOPLE]
        path = table.image_path(rows[0])
        opened.append(PeopleOfImage(path.name, path, tuple(map(box, rows))))
    return opened


def best_labelled(boxes: Sequence[Box]) -> int:
    """Which person has the most labelled keypoints; of equals the first in their table; 0 if none."""
    merits = [(-box.labelled, i if box.row is None else box.row, i) for i, box in enumerate(boxes)]
    return min(merits, default=(0,))[-1]


def best_match(bbox_xywh: np.ndarray, boxes: Sequence[Box]) -> int | None:
    """Which box overlaps a given one, (4,) image px, most; None where none overlaps it enough."""
    others = np.array([box.bbox_xywh for box in boxes])
    overlap = mask.iou(bbox_xywh[None], others, np.zeros(len(others)))[0]
    return int(overlap.argmax()) if overlap.max() >= 0.3 else None


def thumbnails(image: np.ndarray, boxes: Sequence[Box], chosen: int) -> np.ndarray:
    """The people of a picture side by side, the chosen one framed: (96, 72 * N, 3) uint8 RGB."""
    people = [crops_of_box(image, box.bbox_xywh, _THUMBNAIL_HW, (View(),))[0][0] for box in boxes]
    for number, person in enumerate(people):
        colour, width = ((240, 228, 66), 4) if number == chosen else ((120, 120, 120), 1)
        cv2.rectangle(person, (0, 0), (_THUMBNAIL_HW[1] - 1, _THUMBNAIL_HW[0] - 1), colour, width)
    return np.hstack(people)
