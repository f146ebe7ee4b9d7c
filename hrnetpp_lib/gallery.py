"""What an explorer can show: networks by name, and pictures with the people in them."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from hrnetpp_lib.checkpoint import ModelCard, load_checkpoint
from hrnetpp_lib.data import View, crops_of_box
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.exploration import Box
from hrnetpp_lib.hrnet import HRNet
from hrnetpp_lib.images import decode_image
from hrnetpp_lib.persons import PersonTable

Network = tuple[HRNet, ModelCard]
_PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_MOST_SCENES, _MOST_PEOPLE = 300, 10


@dataclass(frozen=True)
class Scene:
    """A picture and its people.

    Attributes:
        name: For menus.
        path: The picture's file.
        boxes: The people, most confident first; empty where nobody is known.
        rows: Their rows in the table that they come from.
    """

    name: str
    path: Path
    boxes: tuple[Box, ...] = ()
    rows: tuple[int, ...] = ()

    @property
    def best_labelled(self) -> int:
        """Which of the people has the most labelled keypoints; the first of equals."""
        return max(range(len(self.boxes)), key=lambda i: self.boxes[i].labelled, default=0)


def open_networks(networks: Network | Path | str | Mapping[str, Network | Path | str]) -> dict[str, Network]:
    """Networks by name, ready to be asked.

    Args:
        networks: A checkpoint, a (network, card) pair, or several of them by name.

    Raises:
        HrnetppError: If there is none, or a checkpoint cannot be used.
    """
    if isinstance(networks, (str, Path)):
        networks = {Path(networks).parent.name: networks}
    elif isinstance(networks, tuple):
        networks = {networks[1].run or "network": networks}
    if not networks:
        raise HrnetppError(
            "no network to explore; train the smallest with python -m hrnetpp_lib train --profile smoke"
        )
    opened = {}
    for name, network in networks.items():
        model, card = network if isinstance(network, tuple) else load_checkpoint(Path(network))
        opened[name] = (model.eval(), card)
    return opened


def open_scenes(source: PersonTable | Path | str | Sequence[Path | str]) -> list[Scene]:
    """The pictures of a table of persons, of a folder, or those named; at most 300.

    Args:
        source: Persons with or without labels; or a picture, a folder of pictures, or several pictures.

    Raises:
        HrnetppError: If there is none, or one does not exist.
    """
    if isinstance(source, PersonTable):
        return _scenes_of_table(source)
    listed = [source] if isinstance(source, (str, Path)) else source
    try:
        paths = [Path(path).expanduser() for path in listed]
        if len(paths) == 1 and paths[0].is_dir():
            paths = sorted(path for path in paths[0].iterdir() if path.suffix.lower() in _PICTURES)
        missing = [path for path in paths if not path.is_file()]
    except (OSError, RuntimeError, ValueError) as error:  # no such home, a name too long, a folder locked
        raise HrnetppError(f"{source}: cannot be looked at ({error}); check the path") from error
    if missing or not paths:
        raise HrnetppError(
            f"{missing[0] if missing else source}: no picture there; give a .jpg or .png, or a folder of them"
        )
    return [Scene(path.name, path) for path in paths[:_MOST_SCENES]]


def _scenes_of_table(table: PersonTable) -> list[Scene]:
    scenes = []
    for image in np.unique(table.image_index)[:_MOST_SCENES]:
        persons = np.flatnonzero(table.image_index == image)
        persons = persons[np.argsort(-table.bbox_scores[persons], kind="stable")][:_MOST_PEOPLE]
        labelled = (table.keypoints[persons][:, :, 2] > 0).any(axis=1)
        boxes = tuple(
            Box(table.bboxes_xywh[p], table.keypoints[p], float(table.areas[p]))
            if known
            else Box(table.bboxes_xywh[p])
            for p, known in zip(persons, labelled, strict=True)
        )
        path = table.image_path(persons[0])
        scenes.append(Scene(path.name, path, boxes, tuple(persons.tolist())))
    return scenes


def best_labelled(scenes: Sequence[Scene]) -> int:
    """The picture of the person with the most labelled keypoints; of equals the first in their table."""

    def merit(number: int) -> tuple[int, int]:
        scene = scenes[number]
        people = zip(scene.boxes, scene.rows, strict=True)
        return max(((box.labelled, -row) for box, row in people), default=(0, -number))

    return max(range(len(scenes)), key=merit)


def best_match(bbox_xywh: np.ndarray, boxes: Sequence[Box], threshold: float = 0.3) -> int | None:
    """Which box overlaps a given one most; None where no intersection over union reaches the threshold.

    Args:
        bbox_xywh: (4,) image px.
        boxes: To choose from.
        threshold: Of intersection over union.
    """
    others = np.array([box.bbox_xywh for box in boxes])
    start = np.maximum(others[:, :2], bbox_xywh[:2])
    end = np.minimum(others[:, :2] + others[:, 2:], bbox_xywh[:2] + bbox_xywh[2:])
    shared = np.maximum(end - start, 0).prod(axis=1)
    overlap = shared / (others[:, 2:].prod(axis=1) + bbox_xywh[2:].prod() - shared)
    return int(overlap.argmax()) if overlap.max() >= threshold else None


def whole_image_box(image: np.ndarray) -> Box:
    """The box of a picture of which nothing is known."""
    return Box(np.array([0.0, 0.0, image.shape[1], image.shape[0]]))


def open_picture(data: bytes, name: str, folder: Path) -> Scene:
    """A picture that somebody uploaded, kept in a folder.

    Raises:
        HrnetppError: If it is no picture.
    """
    decode_image(data, name)
    # A folder for each: another picture of the same name must not replace it.
    path = Path(tempfile.mkdtemp(dir=folder)) / f"picture{Path(name).suffix}"
    path.write_bytes(data)
    return Scene(Path(name).name, path)


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
