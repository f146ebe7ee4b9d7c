"""Which photographs and clips are meant, and their pixels one after another."""

import contextlib
import glob
import hashlib
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from hrnetpp_lib.data.images import PICTURE_SUFFIXES, read_image
from hrnetpp_lib.errors import HrnetppError

# Read at its first clip; one line of ours says what is wrong, so the reader that prints is not asked either.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
os.environ.setdefault("OPENCV_VIDEOIO_PRIORITY_CV_MJPEG", "0")

CLIP_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv")
_READERS = 2  # threads; each may hold an image of the largest size
_MOST_BYTES_A_GROUP = 2**30
FRAMES_A_CLIP = 2**20  # ten hours: ids of clips are so far apart

Complain = Callable[[HrnetppError], None]  # what is done about a file that cannot be used; the rest goes on


@dataclass(frozen=True, eq=False)
class Frame:
    """A photograph, or one frame of a clip."""

    path: Path
    image_id: int
    pixels: np.ndarray  # (height, width, 3) uint8 RGB
    number: int | None = None  # in its clip, from 0
    of_clip: tuple[int, float] = (0, 0.0)  # frames in all, 0 if unknown, and a second

    @property
    def name(self) -> str:
        """For messages."""
        return str(self.path) if self.number is None else f"{self.path}: frame {self.number}"


class Failures:
    """What cannot be used among many inputs: each is said at once, and the rest is done.

    A command's only input is not said twice: `end` raises its own message.
    """

    def __init__(self):
        self._errors, self._inputs = [], 0

    def begin(self, inputs: int) -> None:
        """So many there are, those that failed already counted."""
        self._inputs = inputs
        for error in self._errors:
            self._say(error)

    def add(self, error: HrnetppError) -> None:
        """Remember it, and say it on stderr."""
        self._errors.append(error)
        self._say(error)

    def _say(self, error: HrnetppError) -> None:
        if self._inputs > 1:
            print(" ".join(str(error).splitlines()), file=sys.stderr, flush=True)

    def __len__(self) -> int:
        return len(self._errors)

    def end(self) -> None:
        """Raises: HrnetppError if there was any."""
        if self._errors and self._inputs <= 1:
            raise self._errors[0]
        if self._errors:
            wrong = f"{len(self._errors)} failures in {self._inputs} inputs, named above"
            raise HrnetppError(wrong + "; all else is done" * (len(self._errors) < self._inputs))


def is_clip(path: Path) -> bool:
    """Whether a file's name says that it is a clip."""
    return path.suffix.lower() in CLIP_SUFFIXES


def image_id(path: Path) -> int:
    """The image id of a file in COCO's sense: its stem, where that is a number, as in COCO's own files.

    Of any other name the first six bytes of its SHA-256, so that it is the same everywhere. A clip's is that
    of its first frame; the others count on from it.
    """
    digest = hashlib.sha256(os.fsencode(path.name)).digest()
    if is_clip(path):
        return int.from_bytes(digest[:4], "big") * FRAMES_A_CLIP
    if path.stem.isascii() and path.stem.isdecimal() and len(path.stem) < 19:  # int64
        return int(path.stem)
    return int.from_bytes(digest[:6], "big")


def find_files(inputs: Iterable[str | Path], complain: Complain) -> list[Path]:
    """The files that paths, folders and glob patterns name, each once: pictures and clips of a folder.

    Folders within a folder are not looked into. Names must lead to different image ids.
    """
    found, known = [], {}
    for given in inputs:
        try:
            for path in _files_of(Path(given)):
                first = known.setdefault(image_id(path), path)
                if first is path:
                    found.append(path)
                elif not os.path.samefile(first, path):
                    wrong = f"gets the image id {image_id(path)} by its name, as {first} does"
                    complain(HrnetppError(f"{path}: {wrong}; rename it or give it in another run"))
        except OSError as error:  # a name too long, a folder locked
            complain(HrnetppError(f"{given}: cannot be looked at ({error.strerror}); check the path"))
        except HrnetppError as error:
            complain(error)
    return found


def _files_of(given: Path) -> list[Path]:
    if os.path.isdir(given):
        files = sorted(path for path in given.iterdir() if _is_picture(path) or is_clip(path))
        if not files:
            wrong = "no picture or clip lies in this folder; for those in folders below"
            raise HrnetppError(f"{given}: {wrong} give the pattern '{given / '**' / '*.jpg'}'")
        return files
    if os.path.lexists(given) or not glob.has_magic(str(given)):
        return [given]  # if it is not there, reading it says so
    files = [Path(name) for name in sorted(glob.glob(str(given), recursive=True)) if os.path.isfile(name)]
    if not files:
        raise HrnetppError(f"{given}: no file has such a name; check the pattern")
    return files


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURE_SUFFIXES


def read_frames(paths: Iterable[Path], complain: Complain, upright: bool = True) -> Iterator[Frame]:
    """The pixels of photographs and clips in their order; a few photographs are read ahead by threads.

    Args:
        paths: Files.
        complain: Is told of those that cannot be read, or not to their end.
        upright: Whether to turn photographs as their EXIF entry says, see `read_image`.
    """
    waiting, ahead = iter(paths), deque()
    pool = ThreadPoolExecutor(_READERS, "read pictures")
    try:
        while True:
            while len(ahead) <= _READERS and (path := next(waiting, None)) is not None:
                ahead.append((path, None if is_clip(path) else pool.submit(read_image, path, upright)))
            if not ahead:
                return
            path, photograph = ahead.popleft()
            try:
                if photograph is None:
                    yield from _frames_of_clip(path)
                else:
                    yield Frame(path, image_id(path), photograph.result())
            except HrnetppError as error:
                complain(error)
    finally:
        pool.shutdown(cancel_futures=True)


def in_groups(frames: Iterable[Frame], most: int) -> Iterator[list[Frame]]:
    """Frames in groups of so many, or fewer where they are large."""
    group: list[Frame] = []
    for frame in frames:
        group.append(frame)
        if len(group) == most or sum(each.pixels.nbytes for each in group) > _MOST_BYTES_A_GROUP:
            yield group
            group = []
    if group:
        yield group


def _frames_of_clip(path: Path) -> Iterator[Frame]:
    """Raises: HrnetppError if there is none, if their size changes, or if many lack at the end."""
    if not os.path.isfile(path):
        raise HrnetppError(f"{path}: there is no such file; check the path")
    with contextlib.closing(_Capture(path)) as clip:
        stated, rate, first_id, number, size = clip.stated, clip.rate, image_id(path), 0, None
        while (pixels := clip.read()) is not None:
            size = size or pixels.shape
            if pixels.shape != size:  # FFmpeg scales them to the first one's size, unseen; others do not
                wrong = f"frame {number} has another size than those before; the clip ends there"
                raise HrnetppError(f"{path}: {wrong}, cut it in two")
            if number == FRAMES_A_CLIP:
                raise HrnetppError(f"{path}: frame {number} is one too many; it ends there, cut it in two")
            yield Frame(path, first_id + number, pixels, number, (stated, rate))
            number += 1
    if not number:
        raise HrnetppError(
            f"{path}: has no frame that OpenCV can decode; is it whole? Copy it again, or convert it to .mp4"
        )
    if number < 0.9 * stated:  # not all formats state it to the frame
        raise HrnetppError(f"{path}: ends after {number} of {stated} frames; is it whole? Copy it again")


class _Capture:
    """A clip that OpenCV has opened, or has not."""

    def __init__(self, path: Path):
        self._capture = cv2.VideoCapture(str(path))
        stated, rate = (self._capture.get(key) for key in (cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FPS))
        self.stated = int(stated) if 0 < stated < FRAMES_A_CLIP else 0
        self.rate = rate if 1 <= rate <= 240 else 25.0  # formats without a clock give anything

    def read(self) -> np.ndarray | None:
        """The next frame as (height, width, 3) uint8 RGB; None at the end."""
        got, pixels = self._capture.read()
        return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB) if got else None

    def close(self) -> None:
        self._capture.release()
