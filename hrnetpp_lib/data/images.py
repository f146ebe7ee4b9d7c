"""Reading images: one strict decoder for every image that enters the program."""

import contextlib
import io
import struct
from pathlib import Path

import cv2
import numpy as np

from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.files import read_bytes

try:
    import simplejpeg  # extra `fast`: the libjpeg-turbo that OpenCV has, straight to RGB
except ImportError:
    simplejpeg = None

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")  # in small letters
MOST_IMAGE_BYTES = 2**28
_MOST_PIXELS = 2**28  # 16384 x 16384; OpenCV itself would go on to four times as many
_JPEG_FROM_TOP = {0xC0, 0xC1}  # frames that may be coded in one scan, row by row
_ROWS_AROUND = 32  # two rows of the largest blocks: how far below a row lie pixels that its colours depend on
_JPEG_SCAN, _JPEG_FRAMES = 0xDA, set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers; frames say the size
_JPEG_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length


def read_image(
    path: str | Path, upright: bool = False, channels: int = 3, rows: int | None = None
) -> np.ndarray:
    """The stored pixels of an image file as 8-bit RGB.

    Grey is repeated into three channels, 16 bits are scaled down to 8, alpha is dropped (not blended).

    Args:
        path: A JPEG, PNG or any other format that both OpenCV and Pillow know.
        upright: Whether to turn the image as its EXIF entry says: for photographs that people look at, not
            for datasets, whose annotations refer to the stored pixels.
        channels: 3, or 4 for a last one without meaning, with which OpenCV warps twice as fast.
        rows: How many of the upper rows (1 or more) are needed, if not all; decoders that can stop there.

    Returns:
        (h, w, channels) uint8, RGB; the same pixels whether simplejpeg (extra `fast`) is installed or not. Of
        more rows than `rows` asks for, any number may be missing.

    Raises:
        HrnetppError: If the file is missing, no regular file, no image, truncated, or has over 2^28 pixels.
            Damage that JPEG decoders tolerate, as in some public images, gives the pixels that they give.
    """
    data = read_bytes(Path(path), "check the image folder and the file name", MOST_IMAGE_BYTES)
    return decode_image(data, path, upright, channels, rows)


def decode_image(
    data: bytes, name: str | Path, upright: bool = False, channels: int = 3, rows: int | None = None
) -> np.ndarray:
    """`read_image` for the bytes of a file; messages call it `name`. Raises: see there."""
    height, width, ends, height_at = _header(data)
    # OpenCV may fill what a truncated file lacks with grey and return it, so the end is looked for here.
    if not ends:
        raise HrnetppError(f"{name}: the image is truncated ({len(data)} bytes); copy or download it again")
    if height * width > _MOST_PIXELS:
        wrong = f"says that it has {width} x {height} pixels, more than {_MOST_PIXELS}"
        raise HrnetppError(f"{name}: the image {wrong}; scale it down or remove the file")
    if simplejpeg and not upright and data.startswith(b"\xff\xd8"):
        part, cut = data, height_at and rows and rows + _ROWS_AROUND < height
        if cut:  # it stops at the height that it is told, and then misses the end, which we have seen
            part = data[:height_at] + (rows + _ROWS_AROUND).to_bytes(2, "big") + data[height_at + 2 :]
        # What it has any doubt about, as damage, is OpenCV's to decide on.
        with contextlib.suppress(ValueError):
            return simplejpeg.decode_jpeg(part, "RGB" if channels == 3 else "RGBX", strict=not cut)[:rows]
    flags = cv2.IMREAD_COLOR | (0 if upright else cv2.IMREAD_IGNORE_ORIENTATION)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if height else None
    except cv2.error:
        image = None
    if image is None:
        raise HrnetppError(f"{name}: this is no image that OpenCV can decode; replace or remove the file")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB if channels == 3 else cv2.COLOR_BGR2RGBA)


def _header(data: bytes) -> tuple[int, int, bool, int]:
    """Height and width that a file states, zeros without any; whether its end is there (True if unknown).

    And where a JPEG that is coded from top to bottom states its height; 0 for all others.
    """
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return *(int.from_bytes(data[at : at + 4], "big") for at in (20, 16)), b"IEND" in data[-64:], 0
    if data.startswith(b"\xff\xd8"):
        return _jpeg_header(data)
    from PIL import Image  # knows many formats, and reads no pixels yet

    try:
        return *Image.open(io.BytesIO(data)).size[::-1], True, 0
    except Exception:  # every format of Pillow's breaks in its own way
        return 0, 0, True, 0


def _jpeg_header(data: bytes) -> tuple[int, int, bool, int]:
    """As `_header`, going from segment to segment, and skipping what decoders skip."""
    height, width, frame, position = 0, 0, 0, 2
    while (position := data.find(b"\xff", position)) >= 0 and position + 5 <= len(data):
        marker = data[position + 1]
        if marker == _JPEG_SCAN:
            # A thumbnail has an end marker of its own, but lies in a segment before the scan; in the scan a
            # coded byte 0xFF is always followed by 0x00 and cannot be mistaken for a marker.
            ends = data.rfind(b"\xff\xd9", position) >= 0  # most end with it
            # As many colours in the scan as in the frame: there is no other scan.
            whole = data[frame + 1] in _JPEG_FROM_TOP and data[frame + 9] == data[position + 4]
            return height, width, ends, frame + 5 if whole else 0
        if marker in _JPEG_FRAMES and position + 10 <= len(data) and not height:
            height, width, frame = *struct.unpack_from(">HH", data, position + 5), position
        length = 0 if marker in _JPEG_ALONE else int.from_bytes(data[position + 2 : position + 4], "big")
        # 00 makes no marker of the FF before it; another FF only fills, and the marker may follow.
        position += {0x00: 2, 0xFF: 1}.get(marker, 2 + length)
    return height, width, False, 0
