"""Poses of one picture; and the files for those of many: COCO json, and pictures and clips that show them."""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import cv2
import msgspec
import numpy as np

from hrnetpp_lib import draw
from hrnetpp_lib.app.pictures import Complain, Frame
from hrnetpp_lib.data.images import read_image
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.evaluate.metrics import rescore
from hrnetpp_lib.files import whole_file
from hrnetpp_lib.pose.keypoints import AIC14, COCO17, Skeleton

DRAWN_ABOVE = 0.2  # the score above which a keypoint is drawn, and counts in evaluation
# COCO's own categories are 1 to 90; poses with other keypoints must not be taken for its persons.
CATEGORY_IDS = {COCO17.name: 1, AIC14.name: 1014}
_SURE = 0.3  # the box score from which on a person is drawn: a detector's file may hold any number of doubts
_SHOWN_PX = 900  # longer side of what a notebook shows


@dataclass(frozen=True, eq=False, repr=False)
class Poses:
    """Poses of the N persons of one picture, K keypoints each; a notebook shows them drawn.

    Attributes:
        keypoints: (N, K, 2) as (x, y) in image px.
        scores: (N, K), each keypoint's confidence: the maximum of its heatmap.
        boxes_xywh: (N, 4) in image px, where persons were looked for.
        box_scores: (N,) in 0..1; 1 for boxes that were given.
        skeleton: What the keypoints are.
        image: The picture, (height, width, 3) uint8 RGB, or its file.
        upright: Whether a file's pixels are turned as its EXIF entry says.
    """

    keypoints: np.ndarray
    scores: np.ndarray
    boxes_xywh: np.ndarray
    box_scores: np.ndarray
    skeleton: Skeleton
    image: np.ndarray | Path
    upright: bool = True

    def __len__(self) -> int:
        return len(self.keypoints)

    def __repr__(self) -> str:
        return f"Poses({self.describe()}, {self.skeleton.name})"

    def describe(self) -> str:
        """Their number, and how many keypoints are worth drawing, in words."""
        sure = f"{(self.scores > DRAWN_ABOVE).sum()} of {self.scores.size}"
        return f"{len(self)} poses, {sure} keypoints above {DRAWN_ABOVE}"

    @property
    def instance_scores(self) -> np.ndarray:
        """(N,): the persons' scores in COCO's sense, `metrics.rescore`'s."""
        return rescore(self.scores, self.box_scores)

    def draw(self, threshold: float = DRAWN_ABOVE) -> np.ndarray:
        """The picture, (height, width, 3) uint8 RGB, with the poses whose box scores 0.3 or more.

        Raises: HrnetppError if the picture's file can no longer be read.
        """
        pixels = self.image if isinstance(self.image, np.ndarray) else read_image(self.image, self.upright)
        sure = self.box_scores >= _SURE
        poses = np.dstack([self.keypoints, self.scores])[sure]
        return draw.paint_poses(pixels, poses, self.skeleton, self.boxes_xywh[sure], threshold)

    def _repr_png_(self) -> bytes:
        drawn = self.draw()
        if (shrink := _SHOWN_PX / max(drawn.shape)) < 1:
            drawn = cv2.resize(drawn, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
        return _encoded(drawn, ".png")

    def coco_results(self, image_id: int) -> list[dict]:
        """Records of a COCO result list; category 1 for COCO's keypoints, 1014 for AI Challenger's 14."""
        category, poses = CATEGORY_IDS[self.skeleton.name], np.dstack([self.keypoints, self.scores])
        rows = zip(poses, self.instance_scores, self.boxes_xywh, self.box_scores, strict=True)
        return [
            {
                "image_id": image_id,
                "category_id": category,
                "keypoints": np.round(pose, 3).ravel().tolist(),
                "score": float(score),
                "box_xywh": np.round(box, 2).tolist(),  # "bbox" would be where pycocotools takes areas from
                "box_score": float(box_score),
                "keypoint_set": self.skeleton.name,
            }
            for pose, score, box, box_score in rows
        ]


def _encoded(rgb: np.ndarray, suffix: str) -> bytes:
    is_done, encoded = cv2.imencode(suffix, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    if not is_done:
        raise HrnetppError(f"OpenCV writes no {suffix} of {rgb.shape[1]}x{rgb.shape[0]} px")
    return encoded.tobytes()


class PoseFiles:
    """What `pose_files` opens: gets poses frame by frame, holds none of them."""

    def __init__(self, folder: Path, inputs: list[Path], results: BinaryIO, complain: Complain):
        self._folder, self._results, self._complain = folder, results, complain
        self._taken = {os.path.abspath(path).casefold() for path in inputs}  # no input is written over
        self._first, self._clip_path, self._write = True, None, None
        self.clip = contextlib.ExitStack()  # open while frames of a clip come

    def add(self, frame: Frame, poses: Poses) -> None:
        """Write a picture's poses, and the picture. Raises: HrnetppError if the disk refuses."""
        beside = {"file_name": os.fsencode(frame.path.name).decode(errors="replace")}
        beside |= {} if frame.number is None else {"frame": frame.number}
        for record in poses.coco_results(frame.image_id):
            self._results.write(b"[\n" if self._first else b",\n")
            self._results.write(msgspec.json.encode(record | beside))
            self._first = False
        if frame.number is None:
            try:
                drawn = _encoded(poses.draw(), ".jpg")
            except HrnetppError as error:  # its poses can still be had
                self._complain(HrnetppError(f"{frame.path}: not drawn, its poses are written ({error})"))
                return
            with whole_file(self._new(frame.path, ".jpg")) as part:
                part.write_bytes(drawn)
            return
        if frame.path != self._clip_path:
            self.end_clip()
            self._clip_path = frame.path
            try:
                self._write = self.clip.enter_context(_clip(self._new(frame.path, ".mp4"), frame))
            except HrnetppError as error:  # its poses can still be had
                self._complain(error)
        if self._write:
            self._write(poses.draw())

    def end_clip(self) -> None:
        """Close the clip that is being written, if one is."""
        self._write = None
        self.clip.close()

    def end(self) -> None:
        """After the last picture."""
        self.end_clip()
        self._results.write(b"[]\n" if self._first else b"\n]\n")

    def _new(self, path: Path, suffix: str) -> Path:
        """`<name>_poses.jpg`, with a number where that is another picture's."""
        for number in range(1, 2 + len(self._taken)):
            name = f"{path.stem}_poses{'' if number == 1 else f'_{number}'}{suffix}"
            key = os.path.abspath(self._folder / name).casefold()
            if key not in self._taken:
                self._taken.add(key)
                return self._folder / name
        raise AssertionError("more names than were taken")


@contextlib.contextmanager
def pose_files(folder: Path, inputs: list[Path], complain: Complain) -> Iterator[PoseFiles]:
    """Files in a folder for the poses of pictures and clips.

    `poses.json` is a COCO result list, `image_id` as `pictures.image_id`; score by the rescoring rule; box,
    its score, keypoint set, the file's name and, in a clip, the frame's number from 0 are kept beside. It is
    written whole or, if the block fails, not at all. Each picture is drawn as `<name>_poses.jpg`, each clip
    as `<name>_poses.mp4`.
    """
    with whole_file(folder / "poses.json") as part, open(part, "wb") as results:
        files = PoseFiles(folder, inputs, results, complain)
        with files.clip:
            yield files
            files.end()


@contextlib.contextmanager
def _clip(path: Path, first: Frame) -> Iterator[Callable[[np.ndarray], None]]:
    """A function that writes frames, RGB, of the first one's size; sides of odd length lose a pixel."""
    (height, width), frames = first.pixels.shape[:2], 0

    def write(rgb: np.ndarray) -> None:
        nonlocal frames
        writer.write(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
        frames += 1

    with _quiet_opencv(), whole_file(path) as part:
        code = cv2.VideoWriter.fourcc(*"mp4v")
        writer = cv2.VideoWriter(str(part), code, first.of_clip[1], (width, height))
        if not writer.isOpened():
            wrong = f"OpenCV writes no mp4 of {width}x{height} px here"
            raise HrnetppError(f"{path}: {wrong}; the poses are in poses.json")
        try:
            yield write
        finally:
            writer.release()
        if cv2.VideoCapture(str(part)).get(cv2.CAP_PROP_FRAME_COUNT) != frames:  # OpenCV says nothing itself
            raise HrnetppError(f"{path}: cannot be written whole; make room on the disk and try again")


@contextlib.contextmanager
def _quiet_opencv() -> Iterator[None]:
    """One line of ours says what is wrong."""
    logging = cv2.utils.logging
    level = logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        logging.setLogLevel(level)
