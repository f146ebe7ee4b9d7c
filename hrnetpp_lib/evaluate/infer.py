"""From boxes to poses: flip test, decoding, test-time augmentation and the ensemble."""

import contextlib
import os
import sys
import zipfile
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tqdm.std
from torch import Tensor

from hrnetpp_lib.data.crops import BoxCrops, View, crops_of_box, normalise
from hrnetpp_lib.data.persons import PersonTable
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.evaluate.runtime import PreparedNetwork, is_exported, open_exported
from hrnetpp_lib.evaluate.runtime import prepare as prepare  # it is used by this name
from hrnetpp_lib.files import check_file, whole_file
from hrnetpp_lib.model.weights import ModelCard, load_checkpoint
from hrnetpp_lib.pose.geometry import invert_matrix, transform_points
from hrnetpp_lib.pose.heatmap import decode, flip_averages, flip_back
from hrnetpp_lib.pose.softargmax import soft_argmax

SINGLE_VIEW = (View(),)
# CHOICE: the report gives the scales and the rotations; we take their union, not their product.
TTA_VIEWS = (View(0.8), View(1.0), View(1.2), View(1.0, -10.0), View(1.0, 10.0))

_CROPS_A_BATCH = 32  # of the network; on a CPU larger ones no longer fit the memory allocator's reserve
_MOST_HELD_BYTES = 2**30  # of images whose boxes wait for a batch
_SECONDS_BETWEEN_LINES = 60.0
_PERSONS_AT_ONCE = 25  # of a CPU: fewer cost more calls, more no longer fit its cache


@dataclass(frozen=True, eq=False)
class Predictions:
    """Poses of N boxes.

    Attributes:
        keypoints: (N, K, 2) as (x, y) in image px.
        scores: (N, K), the maximum of each keypoint's flip-averaged raw heatmap.
        input_hw: Height and width of the network's input, whose shape the boxes were extended to.
    """

    keypoints: np.ndarray
    scores: np.ndarray
    input_hw: tuple[int, int]

    def save(self, path: Path) -> None:
        """Write to an .npz file, whole or not at all."""
        with whole_file(path) as part:
            np.savez(part, **asdict(self))

    @classmethod
    def load(cls, path: Path) -> "Predictions":
        """Read a file of `save`. Raises: HrnetppError if it is missing, damaged, or not such a file."""
        remedy = "delete it to predict anew"
        check_file(path, remedy)
        try:
            with zipfile.ZipFile(path) as archive:
                # As `save` writes them: nothing grows in unpacking. Numpy alone would skip some checksums.
                packed = any(part.compress_type for part in archive.infolist())
                if packed or len(archive.infolist()) != 3 or archive.testzip():
                    raise ValueError("it has other parts than poses have, or damaged ones")
            with np.load(path) as arrays:
                found = cls(**arrays)
            floats, sizes = (found.keypoints, found.scores), found.input_hw
            good = floats[0].shape == (*floats[1].shape, 2) and floats[1].ndim == 2 and sizes.shape == (2,)
            good &= all(array.dtype.kind == "f" for array in floats) and sizes.dtype.kind == "i"
            if not good or not all(np.isfinite(array).all() for array in floats) or (sizes <= 0).any():
                raise ValueError("it has other arrays than poses, or a number is not finite")
        except Exception as error:  # a damaged file can raise nearly anything
            reason = str(error)[:200] or type(error).__name__
            raise HrnetppError(f"{path}: no predictions can be read from it ({reason}); {remedy}") from error
        return replace(found, input_hw=tuple(sizes.tolist()))


def pick_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def open_network(
    path: Path, runtime: str = "auto", precision: str = "fp32", input_hw: tuple[int, int] | None = None
) -> tuple[PreparedNetwork, ModelCard]:
    """A checkpoint's network, prepared, or a graph that `export` wrote; and its card.

    Args:
        path: A file that `load_checkpoint` takes, or one that `runtime.open_exported` takes.
        runtime, precision: As of `prepare`; the device is `pick_device`'s.
        input_hw: Of a published network's input, as of `load_checkpoint`.

    Raises: HrnetppError if the file cannot be used, or a graph would have to change.
    """
    if not is_exported(path):
        model, card = load_checkpoint(path, input_hw)
        return prepare(model.to(pick_device()), card, runtime, precision), card
    network, card = open_exported(path)
    asked = runtime in ("auto", network.runtime) and precision == "fp32" and input_hw in (None, card.input_hw)
    if not asked:
        how = "{}, input {}x{}".format(network.described, *card.input_hw)
        raise HrnetppError(f"{path}: is a graph for {how}; ask for these, or give the checkpoint it is of")
    return network, card


def forward(model: torch.nn.Module, crops: Tensor, card: ModelCard, flip: bool = True) -> Tensor:
    """(B, K, h/4, w/4) fp32 raw heatmaps of (B, h, w, 3) uint8 RGB crops, averaged with the mirrored crops'.

    Reference: HRNet++ report, testing: heatmaps are averaged, for both kinds of model.
    """
    if not flip:
        return plain_and_mirrored(model, crops, flip)[0]
    plain, mirrored = raw_heatmaps(model, crops, card)
    return 0.5 * (plain + mirrored)


def raw_heatmaps(model: torch.nn.Module, crops: Tensor, card: ModelCard) -> tuple[Tensor, Tensor]:
    """The two maps that `forward` averages: of the crops, and of the mirrored crops, brought back."""
    plain, mirrored = plain_and_mirrored(model, crops, flip=True)
    return plain, flip_back(mirrored, card.skeleton.flip_pairs, card.coordinates.flip_shift)


@torch.no_grad()
def plain_and_mirrored(model: torch.nn.Module, crops: Tensor, flip: bool) -> tuple[Tensor, Tensor | None]:
    """Raw heatmaps (B, K, h/4, w/4) of (B, h, w, 3) crops and, if asked for, of the mirrored ones: one batch.

    The second are as they come, not brought back; None without `flip`.
    """
    first = next(model.parameters(), None)
    crops = crops.to(model.device if first is None else first.device)
    images = normalise(torch.cat([crops, crops.flip(2)]) if flip else crops)
    maps = model(images).float()
    return (maps[: len(crops)], maps[len(crops) :]) if flip else (maps, None)


def decode_heatmaps(heatmaps: Tensor, card: ModelCard) -> tuple[Tensor, Tensor]:
    """Keypoints (B, K, 2) in heatmap px by the card's decoder, and the heatmaps' maxima (B, K).

    Raises: HrnetppError if the decoder is unknown.
    """
    if card.decoder not in ("quarter_offset", "soft_argmax"):
        raise HrnetppError(f"decoder {card.decoder!r} is unknown; use quarter_offset or soft_argmax")
    keypoints, scores = decode(heatmaps)
    # CHOICE: the confidence is the heatmap's maximum for soft-argmax too; the report does not say.
    return (keypoints if card.decoder == "quarter_offset" else soft_argmax(heatmaps, card.alpha)), scores


def poses_of_crops(
    model: torch.nn.Module, card: ModelCard, crops: Tensor, matrices: np.ndarray, flip: bool = True
) -> Predictions:
    """Decode a batch of crops and bring the keypoints back to the image.

    Args:
        model: In eval mode.
        card: How to decode.
        crops: (B, h, w, 3) uint8 RGB.
        matrices: (B, 2, 3), image px -> input px.
        flip: Whether to average with the mirrored crops.
    """
    return poses_of_heatmaps(*plain_and_mirrored(model, crops, flip), matrices, card)


def poses_of_heatmaps(
    plain: Tensor, mirrored: Tensor | None, matrices: np.ndarray, card: ModelCard
) -> Predictions:
    """Average with the mirrored crops' maps, decode, and bring the keypoints back to the image.

    Args:
        plain: (B, K, H, W) raw heatmaps of the crops.
        mirrored: The same of the mirrored crops, not brought back; None without the flip test.
        matrices: (B, 2, 3), image px -> input px.
        card: How to decode.
    """
    if mirrored is None:
        averages = iter([plain])
    else:
        flip, shift = card.skeleton.flip_pairs, card.coordinates.flip_shift
        averages = flip_averages(plain, mirrored, flip, shift, _PERSONS_AT_ONCE)
    decoded = [decode_heatmaps(maps, card) for maps in averages]
    keypoints, scores = (torch.cat(part).cpu().numpy() for part in zip(*decoded, strict=True))
    return Predictions(points_to_image(keypoints, matrices, card), scores, card.input_hw)


def points_to_image(points_heatmap: np.ndarray, matrices: np.ndarray, card: ModelCard) -> np.ndarray:
    """(B, K, 2) heatmap px -> image px, through (B, 2, 3) matrices, image px -> input px."""
    points_input = np.asarray(points_heatmap) * card.coordinates.stride_xy(card.input_hw)
    return transform_points(points_input, invert_matrix(matrices))


def predict_boxes(
    model: torch.nn.Module,
    card: ModelCard,
    table: PersonTable,
    flip: bool = True,
    views: tuple[View, ...] = SINGLE_VIEW,
    batch_size: int = _CROPS_A_BATCH,
    workers: int = 0,
) -> Predictions:
    """Poses of all boxes of a table; with several views, the mean of their positions and scores.

    Args:
        model: The network; put into eval mode.
        card: How to decode.
        table: N boxes, detected or true.
        flip: Whether to average each view's heatmaps with the mirrored crop's.
        views: `SINGLE_VIEW` or `TTA_VIEWS`.
        batch_size: Crops that go through the network at once, all views and mirrored ones counted; at least
            one box. On a CPU 16 to 32 are fastest, a GPU takes hundreds.
        workers: Threads that read images and cut crops while the network runs; at least one.

    Returns:
        N poses in the table's order.

    Raises: HrnetppError if an image cannot be read.

    Reference: HRNet++ report, testing.
    """
    model.eval()
    boxes = _boxes_a_batch(batch_size, views, flip)
    batches = BoxCrops(table, card.input_hw, views, card.coordinates).batches(boxes, workers)
    keypoints = np.zeros((len(table), len(card.skeleton), 2))
    scores = np.zeros((len(table), len(card.skeleton)), np.float32)
    with contextlib.closing(batches), _progress(len(table)) as lines:
        for rows, crops, matrices in batches:
            found = _mean_of_views(model, card, crops, matrices, flip)
            keypoints[rows], scores[rows] = found.keypoints, found.scores
            lines.update(len(rows))
    return Predictions(keypoints, scores, card.input_hw)


def _progress(boxes: int) -> tqdm.std.tqdm:
    """How far, how fast and how long to go: seldom a line, none from a short job."""
    seldom = dict.fromkeys(("mininterval", "maxinterval", "delay"), _SECONDS_BETWEEN_LINES)
    line, first = "predicted {n}/{total} boxes, {rate_fmt}, {remaining} to go\n", os.environ.get("RANK", "0")
    shown = {"bar_format": line, "file": sys.stdout, "leave": False, "disable": first != "0"}
    return tqdm.std.tqdm(total=boxes, unit="box", **shown, **seldom)


def _boxes_a_batch(crops: int, views: tuple[View, ...], flip: bool) -> int:
    return max(1, crops // (len(views) * (2 if flip else 1)))


def _mean_of_views(
    model: torch.nn.Module, card: ModelCard, crops: np.ndarray, matrices: np.ndarray, flip: bool
) -> Predictions:
    """Poses of n boxes by their crops (n, V, h, w, 3) and matrices (n, V, 2, 3), all in one batch."""
    flat = torch.from_numpy(crops).flatten(0, 1), matrices.reshape(-1, 2, 3)
    found = poses_of_crops(model, card, *flat, flip)
    keypoints, scores = (
        part.reshape(*crops.shape[:2], *part.shape[1:]) for part in (found.keypoints, found.scores)
    )
    views = range(crops.shape[1])
    return average([Predictions(keypoints[:, view], scores[:, view], card.input_hw) for view in views])


def average(predictions: list[Predictions]) -> Predictions:
    """Mean positions and mean scores of several predictions for the same boxes (TTA and ensemble).

    Raises: ValueError if they are not of the same boxes, or of inputs of several sizes.

    Reference: HRNet++ report, testing.
    """
    shapes = {(p.keypoints.shape, p.input_hw) for p in predictions}
    if len(shapes) != 1:
        raise ValueError(f"predictions differ in shape: {sorted(shapes)}; they must be of the same boxes")
    # CHOICE: scores are averaged like positions; the report speaks of positions only.
    keypoints = np.mean([p.keypoints for p in predictions], axis=0)
    return Predictions(keypoints, np.mean([p.scores for p in predictions], axis=0), predictions[0].input_hw)


def as_boxes(bboxes_xywh: np.ndarray) -> np.ndarray:
    """Boxes as (N, 4) float64. Raises: HrnetppError if they are of another shape or no numbers."""
    try:
        boxes = np.asarray(bboxes_xywh, np.float64)
    except (TypeError, ValueError) as error:
        raise HrnetppError(f"bboxes_xywh: {error}; give (N, 4) numbers") from None
    if boxes.shape == (0,):  # an empty list
        return boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise HrnetppError(f"bboxes_xywh must be (N, 4), got {boxes.shape}")
    return boxes


def predict(
    model: torch.nn.Module,
    image: np.ndarray,
    bboxes_xywh: np.ndarray,
    flip: bool = True,
    tta: tuple[View, ...] | None = None,
    card: ModelCard | None = None,
) -> np.ndarray:
    """Poses of the given boxes of one image.

    Args:
        model: A network; put into eval mode.
        image: (height, width, 3) uint8 RGB.
        bboxes_xywh: (N, 4) image px.
        flip: Whether to average with the mirrored crops.
        tta: Views to average over, e.g. `TTA_VIEWS`; None for one view.
        card: How to decode; by default COCO keypoints, 384x288 and the quarter offset.

    Returns:
        (N, K, 3) as (x, y, score) in image px.

    Raises: HrnetppError if the image or the boxes are of another shape or type, or no area of a box is in it.
    """
    boxes = check_boxes(bboxes_xywh, image)
    (poses,) = predict_images(model, [(image, boxes)], flip, tta, card)
    return poses


def check_boxes(bboxes_xywh: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Boxes (N, 4) float64 of which each has some area in an image, (height, width, 3) uint8 RGB.

    Raises: HrnetppError if the image or the boxes are of another shape or type, or a box has none.
    """
    boxes = as_boxes(bboxes_xywh)
    fits = boxes_that_fit(boxes, image)
    if not fits.all():
        raise HrnetppError(no_area(boxes[~fits][0], image))
    return boxes


def no_area(box: np.ndarray, image: np.ndarray) -> str:
    """What is wrong with a box that does not fit."""
    size = "{1}x{0}".format(*image.shape)
    return f"box {box.tolist()} has no area in the image of {size} px; give x, y and positive w, h"


def boxes_that_fit(boxes: np.ndarray, image: np.ndarray) -> np.ndarray:
    """(N,) which of (N, 4) boxes have some area in an image, (height, width, 3) uint8 RGB.

    Raises: HrnetppError if the image is of another shape or type.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise HrnetppError(f"image must be (height, width, 3) uint8 RGB, got {image.shape} {image.dtype}")
    height, width = image.shape[:2]
    fits = (np.abs(boxes) < 1e6).all(axis=1) & (boxes[:, 2:] > 1e-3).all(axis=1)  # false for NaN, too
    return fits & (boxes[:, :2] < (width, height)).all(axis=1) & (boxes[:, :2] > -boxes[:, 2:]).all(axis=1)


def predict_images(
    model: torch.nn.Module,
    images: Iterable[tuple[np.ndarray, np.ndarray]],
    flip: bool = True,
    tta: tuple[View, ...] | None = None,
    card: ModelCard | None = None,
    batch_size: int = _CROPS_A_BATCH,
) -> Iterator[np.ndarray]:
    """Poses of the boxes of each image, boxes of several images in one batch of the network.

    Few are held: those whose boxes wait for a batch.

    Args:
        images: (height, width, 3) uint8 RGB, each with boxes (N, 4), in image px, that `check_boxes` took.
        batch_size: Crops that go through the network at once, as in `predict_boxes`.
        model, flip, tta, card: As of `predict`.

    Yields:
        (N, K, 3) as (x, y, score) in image px, image by image.
    """
    card, views = card or ModelCard(), tta or SINGLE_VIEW
    size, cut, held = _boxes_a_batch(batch_size, views, flip), [], deque()
    model.eval()

    def run() -> None:
        poses, *crops = zip(*cut, strict=True)
        found = _mean_of_views(model, card, *map(np.stack, crops), flip)
        for pose, xy, score in zip(poses, found.keypoints, found.scores, strict=True):
            pose[:, :2], pose[:, 2] = xy, score
        cut.clear()

    for image, boxes in images:
        poses, ran = np.zeros((len(boxes), len(card.skeleton), 3)), False
        for pose, box in zip(poses, boxes, strict=True):
            cut.append((pose, *crops_of_box(image, box, card.input_hw, views, card.coordinates)))
            if len(cut) == size:
                run()
                ran = True
        while ran and held:  # what the images before waited for is done
            yield held.popleft()[0]
        held.append((poses, image.nbytes))
        if cut and sum(nbytes for _, nbytes in held) > _MOST_HELD_BYTES:
            run()
        while not cut and held:
            yield held.popleft()[0]
    if cut:
        run()
    yield from (poses for poses, _ in held)
