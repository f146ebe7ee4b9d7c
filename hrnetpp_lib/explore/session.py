"""What a network says about one box, kept so that decoding anew needs no new forward."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from hrnetpp_lib.data.crops import View, crops_of_box, normalise
from hrnetpp_lib.data.images import decode_image
from hrnetpp_lib.data.persons import PersonTable
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.evaluate.infer import SINGLE_VIEW
from hrnetpp_lib.evaluate.metrics import keypoint_similarity
from hrnetpp_lib.model.hrnet import HRNet
from hrnetpp_lib.model.weights import ModelCard, load_checkpoint
from hrnetpp_lib.pose.geometry import invert_matrix, transform_points
from hrnetpp_lib.pose.heatmap import decode, flip_back
from hrnetpp_lib.pose.softargmax import soft_argmax

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
