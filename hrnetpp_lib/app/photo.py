"""Photographs, folders and clips in, poses out: which network, which boxes, and how far it has come."""

import contextlib
import re
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from hrnetpp_lib.app.detector import Boxes, open_detector
from hrnetpp_lib.app.pictures import (
    FRAMES_A_CLIP,
    Complain,
    Failures,
    Frame,
    find_files,
    image_id,
    in_groups,
    is_clip,
    read_frames,
)
from hrnetpp_lib.app.poses import CATEGORY_IDS, Poses, pose_files
from hrnetpp_lib.data.annotations import read_person_boxes
from hrnetpp_lib.data.images import read_image
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.evaluate import infer
from hrnetpp_lib.files import project_root
from hrnetpp_lib.model.weights import ModelCard
from hrnetpp_lib.pose.geometry import Size
from hrnetpp_lib.pose.keypoints import Skeleton
from hrnetpp_lib.recipe import SMOKE, read_recipe, three_stages

PACKAGED = Path("weights", "lspet_cpu_hrnetpp.safetensors")  # trained on photographs
_CROPS_A_BATCH = {"cpu": 32, "cuda": 256}
_SECONDS_BETWEEN_LINES = 10.0
_NOT_BOTH = "give boxes, a file of detections or a detector, not both"
_FindBoxes = Callable[[Sequence[Frame]], Iterable[Boxes]]


def parse_boxes(text: str) -> np.ndarray:
    """(N, 4) xywh in image px from 'x,y,w,h x,y,w,h ...'. Raises: HrnetppError if it is another text."""
    try:
        boxes = [[float(number) for number in box.split(",")] for box in text.split()]
        if not boxes or any(len(box) != 4 for box in boxes):
            raise ValueError("a box has four numbers")
        if not np.isfinite(boxes).all():
            raise ValueError("nan and inf are no numbers of px")
    except ValueError as error:
        remedy = "write x,y,w,h for each, with spaces between; a json goes to --detections"
        raise HrnetppError(f"boxes {text!r}: {error}; {remedy}") from error
    return np.array(boxes)


def default_checkpoint(root: Path) -> Path:
    """The HRNet++ regression network in root/runs that was finished last, the end of a profile's own chain.

    Ablations are no candidates. Without one, the network for photographs that comes with the package, which
    is said; profile smoke's counts only where the package came without.

    Raises: HrnetppError if there is none; names a command that trains one.
    """
    found = []
    for path in root.glob("runs/*/stage3_*/model.safetensors"):
        with contextlib.suppress(HrnetppError):  # no recipe, or one of another version
            run = read_recipe(path.parent / "recipe.json")
            if path.parent.name == three_stages(run.profile, seed=run.seed)[-1].name:
                found.append(path)
    packaged = packaged_checkpoint(Path(__file__).resolve().parents[1])
    counted = [path for path in found if not packaged or path.parent.parent.name != SMOKE.name]
    if counted:
        return max(counted, key=lambda path: path.stat().st_mtime_ns)
    if packaged:
        what = "nothing trained but smoke" if found else "nothing trained"
        print(f"{root / 'runs'}: {what}, so the packaged network; its limits: {packaged.parent}")
        return packaged
    raise HrnetppError(
        f"{root / 'runs'}: no finished HRNet++ regression network; give a checkpoint, or train one with "
        "python -m hrnetpp_lib train --profile mini (minutes on two cores; smoke: seconds, but poor)"
    )


def packaged_checkpoint(package: Path) -> Path | None:
    """The network in the package's folder (a wheel's), or in its checkout; None if it came without."""
    places = (package / PACKAGED, package.parent / PACKAGED)
    return next((path for path in places if path.is_file()), None)


@dataclass(frozen=True)
class _Network:
    """A network ready to be asked."""

    model: torch.nn.Module
    card: ModelCard
    described: str
    batch_size: int
    flip: bool = True


def _open_network(
    checkpoint: str | Path | None,
    runtime: str,
    precision: str,
    flip: bool = True,
    input_hw: Size | None = None,
) -> _Network:
    path = Path(checkpoint) if checkpoint else default_checkpoint(project_root())
    network, card = infer.open_network(path, runtime, precision, input_hw)
    how = ", ".join(filter(None, (card.run, card.decoder, card.skeleton.name, network.described)))
    return _Network(network, card, f"{path} ({how})", _CROPS_A_BATCH.get(network.device.type, 32), flip)


def predict(
    image: str | Path | np.ndarray | Sequence[str | Path | np.ndarray],
    checkpoint: str | Path | None = None,
    boxes_xywh: np.ndarray | Sequence[np.ndarray] | None = None,
    detector: str | None = None,
    flip: bool = True,
    runtime: str = "auto",
    precision: str = "fp32",
) -> Poses | list[Poses]:
    """Poses of the persons of one picture, or of each of several, by one network.

    Says what it used. Runs on the GPU if there is one; runtime and precision are `infer.prepare`'s. Persons
    of several pictures go through the network together.

    Args:
        image: A path, or (height, width, 3) uint8 RGB; or a list of these, for a list of poses.
        checkpoint: A file that `infer.open_network` takes; by default that of `default_checkpoint`.
        boxes_xywh: (N, 4) persons in image px, for a list one such array a picture; by default one box, the
            whole image.
        detector: Name of a detector of the transformers library that finds the persons instead.
        flip: Whether to average with the mirrored crop.
        runtime: "auto", "torch", "openvino" or "onnxruntime".
        precision: "fp32" or "bf16".

    Raises: HrnetppError if a file cannot be used, a box has no area, or a checkpoint or a name is wanting.
    """
    if boxes_xywh is not None and detector:
        raise HrnetppError(_NOT_BOTH)
    one = isinstance(image, (str, Path, np.ndarray))
    pictures = [image] if one else list(image)
    given = None if boxes_xywh is None else [boxes_xywh] if one else list(boxes_xywh)
    if given is not None and len(given) != len(pictures):
        wrong = f"boxes_xywh has entries for {len(given)} pictures, there are {len(pictures)}"
        raise HrnetppError(f"{wrong}; give one array of boxes for each")

    def boxes_of(frame: Frame) -> Boxes:
        boxes = infer.as_boxes(given[frame.image_id])
        return boxes, np.ones(len(boxes))

    network, found = _open_network(checkpoint, runtime, precision, flip), []
    find, at_once = _choose_boxes(given and boxes_of, detector)
    for frame, poses in _estimate(network, _boxed(_opened(pictures), find, at_once, _refuse)):
        array = isinstance(pictures[frame.image_id], np.ndarray)
        found.append(Poses(*poses, network.card.skeleton, frame.pixels if array else frame.path))
    said = found[0].describe() if one else f"{sum(map(len, found))} poses in {len(found)} pictures"
    origin = f"by {detector}" if detector else "as given" if given else "the whole image"
    print(f"{said}, by {network.described}, boxes {origin}")
    return found[0] if one else found


def _opened(pictures: Sequence[str | Path | np.ndarray]) -> Iterator[Frame]:
    """Pictures as they are needed, numbered from 0."""
    for number, picture in enumerate(pictures):
        if isinstance(picture, np.ndarray):
            yield Frame(Path(f"picture {number}"), number, picture)
        else:
            yield Frame(Path(picture), number, read_image(Path(picture), upright=True))


def _refuse(error: HrnetppError) -> None:
    raise error


def predict_files(
    inputs: Sequence[str | Path],
    checkpoint: str | Path | None = None,
    boxes_xywh: np.ndarray | None = None,
    detections: Path | None = None,
    detector: str | None = None,
    output_dir: Path | None = None,
    runtime: str = "auto",
    precision: str = "fp32",
    input_hw: Size | None = None,
) -> None:
    """Poses of photographs and clips, a line for each; what cannot be used is said, and the rest is done.

    The persons of all pictures go through the network in batches; a few pictures are held at a time.

    Args:
        inputs: Files, folders and glob patterns, see `pictures.find_files`.
        checkpoint: As of `predict`.
        boxes_xywh: (N, 4) persons in image px, of the one picture that there may be then.
        detections: COCO result list of boxes, matched by file name where it has some, else by image id. Its
            boxes refer to the pixels as they are stored; otherwise photographs are turned upright.
        detector: As of `predict`.
        output_dir: Gets `poses.json` and everything drawn, see `pose_files`; None for nothing.
        runtime, precision: As of `predict`.
        input_hw: Of a published network's input, as of `load_checkpoint`.

    Raises: HrnetppError if something could not be used, after all the rest is done; or if nothing can be.
        KeyboardInterrupt, which says what is done; that is written as if it were all.
    """
    if sum(given is not None for given in (boxes_xywh, detections, detector)) > 1:
        raise HrnetppError(_NOT_BOTH)
    failures = Failures()
    paths = _not_ours(find_files(inputs, failures.add), output_dir)
    if boxes_xywh is not None and (len(paths) + len(failures) != 1 or any(map(is_clip, paths))):
        raise HrnetppError("boxes are for one picture; for several, or a clip, give a file of detections")
    failures.begin(len(paths) + len(failures))
    if not paths:
        failures.end()
    boxes_of, origin = None, f"by {detector}" if detector else "the whole image"
    if boxes_xywh is not None:
        boxes_of, origin = (lambda _: (boxes_xywh, np.ones(len(boxes_xywh)))), "as given"
    elif detections:
        boxes_of, origin = _boxes_of_file(detections, paths), f"of {detections}"
    network = _open_network(checkpoint, runtime, precision, input_hw=input_hw)
    finder = _choose_boxes(boxes_of, detector)
    print(f"network {network.described}, boxes {origin}", flush=True)
    with contextlib.closing(read_frames(paths, failures.add, upright=not detections)) as frames:
        estimates = _estimate(network, _boxed(frames, *finder, failures.add, detections))
        _write(estimates, network.card.skeleton, paths, output_dir, failures)
    failures.end()


def _not_ours(paths: list[Path], output_dir: Path | None) -> list[Path]:
    """The files but for those that an earlier run drew into the same folder."""
    if not output_dir or not (output_dir / "poses.json").is_file():
        return paths
    here = [path for path in paths if path.parent.samefile(output_dir)]
    drawn = [path for path in here if re.search(r"_poses(_\d+)?\.(jpg|mp4)$", path.name)]
    if drawn:
        print(
            f"{output_dir}: {len(drawn)} pictures or clips that an earlier run drew are left out", flush=True
        )
    return [path for path in paths if path not in drawn]


def _write(
    estimates: Iterator[tuple[Frame, tuple]],
    skeleton: Skeleton,
    paths: Sequence[Path],
    output_dir: Path | None,
    failures: Failures,
) -> None:
    """Say a line for each picture, and write its poses; nothing is written if there are none at all."""
    lines, nothing, interrupted = _Lines(), contextlib.nullcontext(), False
    first = next(estimates, None)
    if first is None:
        return
    with pose_files(output_dir, paths, failures.add) if output_dir else nothing as files:
        try:
            for frame, found in chain([first], estimates):
                poses = Poses(*found, skeleton, frame.pixels)
                with _uninterrupted():
                    if files:
                        files.add(frame, poses)
                    lines.add(frame, poses)
        except KeyboardInterrupt:  # a second one is not caught
            interrupted = True
    lines.end()
    if output_dir:
        category = CATEGORY_IDS[skeleton.name]
        print(f"written: {output_dir / 'poses.json'} (category {category}), and drawn beside it")
    if interrupted:
        kept = "what is written has their poses" if output_dir else "nothing is written without --output-dir"
        raise KeyboardInterrupt(f"interrupted after {lines.pictures} pictures or frames; {kept}")


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Around what must not be done by half: Ctrl-C has its effect afterwards."""
    if threading.current_thread() is not threading.main_thread():  # which alone gets it
        yield
        return
    came = []
    before = signal.signal(signal.SIGINT, lambda *_: came.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        signal.raise_signal(signal.SIGINT)


def _boxes_of_file(path: Path, paths: Sequence[Path]) -> Callable[[Frame], Boxes]:
    """Looks a picture's boxes up. Raises: HrnetppError if the file has none for any of the pictures."""
    known, nobody = read_person_boxes(path), np.zeros((0, 5))

    def has_boxes(file: Path) -> bool:
        first = image_id(file)
        of_frames = range(first, first + FRAMES_A_CLIP) if is_clip(file) else ()
        return file.name in known or first in known or any(id_ in of_frames for id_ in known)

    if not known:
        wrong = "has no person's box (category 1) at all"
        raise HrnetppError(
            f"{path}: {wrong}; find some with detect, or leave it out: one box, the whole image"
        )
    if not any(map(has_boxes, paths)):
        wrong = "has no person's box in the pictures that are given"
        raise HrnetppError(f"{path}: {wrong}; its file_name or image_id must be theirs")

    def boxes_of(frame: Frame) -> Boxes:
        rows = known.get(frame.path.name, known.get(frame.image_id, nobody))
        return rows[:, :4], rows[:, 4]

    return boxes_of


def _choose_boxes(boxes_of: Callable[[Frame], Boxes] | None, detector: str | None) -> tuple[_FindBoxes, int]:
    """What finds the boxes of several pictures, and for how many it should be asked at once."""
    if detector:
        opened = open_detector(detector, str(infer.pick_device()))
        return (lambda frames: opened.find([frame.pixels for frame in frames])), opened.at_once

    def whole(frame: Frame) -> Boxes:
        return np.array([[0.0, 0.0, *frame.pixels.shape[1::-1]]]), np.ones(1)

    return (lambda frames: map(boxes_of or whole, frames)), 1


def _boxed(
    frames: Iterable[Frame], find: _FindBoxes, at_once: int, complain: Complain, file: Path | None = None
) -> Iterator[tuple[Frame, np.ndarray, np.ndarray]]:
    """Each picture with boxes (N, 4) and their scores (N,); boxes without area in it are left out, and said.

    `file`: That the boxes are of, if they are of one.
    """
    for group in in_groups(frames, at_once):
        for frame, (boxes, scores) in zip(group, find(group), strict=True):
            boxes = infer.as_boxes(boxes)
            fits = infer.boxes_that_fit(boxes, frame.pixels)
            of = f" in {file}" if file else ""
            for box in boxes[~fits]:
                complain(HrnetppError(f"{frame.name}{of}: {infer.no_area(box, frame.pixels)}"))
            if fits.any() or not len(boxes):
                yield frame, boxes[fits], scores[fits]


def _estimate(
    network: _Network, boxed: Iterable[tuple[Frame, np.ndarray, np.ndarray]]
) -> Iterator[tuple[Frame, tuple[np.ndarray, ...]]]:
    """Each picture with keypoints (N, K, 2), scores (N, K), boxes (N, 4) and box scores (N,)."""
    asked = deque()

    def images() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for frame, boxes, scores in boxed:
            asked.append((frame, boxes, scores))
            yield frame.pixels, boxes

    how = {"card": network.card, "batch_size": network.batch_size}
    for poses in infer.predict_images(network.model, images(), network.flip, **how):
        frame, boxes, scores = asked.popleft()
        yield frame, (poses[..., :2], poses[..., 2], boxes, scores)


class _Lines:
    """Says a line for each photograph and each clip, and every ten seconds how far a clip has come."""

    def __init__(self):
        self.pictures = self._persons = 0
        self._begun = self._clip_begun = self._said = time.monotonic()
        self._clip, self._in_clip = None, 0  # its last frame, and the poses until then

    def add(self, frame: Frame, poses: Poses) -> None:
        """After a photograph, or a frame of a clip, is done."""
        if self._clip and frame.path != self._clip.path:
            self._end_clip()
        self.pictures += 1
        self._persons += len(poses)
        now = time.monotonic()
        self._said = self._said if self._clip else now
        if frame.number is None:
            print(f"{frame.path}: {poses.describe() if len(poses) else 'no box of a person'}", flush=True)
            self._clip_begun = now
            return
        self._clip, self._in_clip = frame, self._in_clip + len(poses)
        if now > self._said + _SECONDS_BETWEEN_LINES:
            self._said = now
            print(self._how_far(), flush=True)

    def _how_far(self) -> str:
        done, stated = self._clip.number + 1, self._clip.of_clip[0]
        rate = done / max(time.monotonic() - self._clip_begun, 1e-3)
        of = f" of {stated}" if stated > done else ""
        return f"{self._clip.path}: {done}{of} frames, {self._in_clip} poses, {rate:.1f} frames/s"

    def _end_clip(self) -> None:
        print(self._how_far(), flush=True)
        self._clip, self._in_clip, self._clip_begun = None, 0, time.monotonic()

    def end(self) -> None:
        """The last clip's line, and what was done in all."""
        if self._clip:
            self._end_clip()
        seconds = time.monotonic() - self._begun
        print(f"{self._persons} poses in {self.pictures} pictures or frames, {seconds:.1f} s")
