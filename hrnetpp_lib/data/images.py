"""Reading images: one strict decoder for every image that enters the program."""

import io
import struct
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.files import read_bytes

MOST_IMAGE_BYTES = 2**28
_MOST_PIXELS = 2**28  # 16384 x 16384; OpenCV itself would go on to four times as many
_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_JPEG_SCAN, _JPEG_FRAMES = 0xDA, set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers; frames say the size
_JPEG_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length
_PNG_START, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND"


def read_image(path: str | Path, upright: bool = False) -> np.ndarray:
    """The pixels of an image file, exactly as `decode_image` gives them.

    Args:
        path: A JPEG, PNG or any other format that both OpenCV and Pillow know.
        upright: See `decode_image`.

    Returns:
        (h, w, 3) uint8, RGB.

    Raises:
        HrnetppError: If the file is missing, no regular file, unreadable, or see `decode_image`.
    """
    data = read_bytes(Path(path), "check the image folder and the file name", MOST_IMAGE_BYTES)
    return decode_image(data, path, upright)


def decode_image(data: bytes, name: str | Path, upright: bool = False) -> np.ndarray:
    """The stored pixels of an encoded image as 8-bit RGB.

    Grey images are repeated into three channels, 16-bit images are scaled down to 8 bits, alpha is dropped
    (not blended).

    Args:
        data: The bytes of the file.
        name: How error messages call it.
        upright: Whether to turn the image as its EXIF entry says: for photographs that people look at, not
            for datasets, whose annotations refer to the stored pixels.

    Returns:
        (h, w, 3) uint8, RGB.

    Raises:
        HrnetppError: If data is no image, undecodable, truncated, or of more than 2^28 pixels. Damage that
            JPEG decoders tolerate, as in some images of the public sets, gives the pixels that they give.
    """
    # OpenCV may fill what a truncated file lacks with grey and return it, so look for the end ourselves.
    if _is_truncated(data):
        raise HrnetppError(f"{name}: the image is truncated ({len(data)} bytes); copy or download it again")
    height, width = _stated_hw(data) or (0, 0)
    if height * width > _MOST_PIXELS:
        wrong = f"says that it has {width} x {height} pixels, more than {_MOST_PIXELS}"
        raise HrnetppError(f"{name}: the image {wrong}; scale it down or remove the file")
    try:
        encoded = np.frombuffer(data, np.uint8)
        orientation = 0 if upright else cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imdecode(encoded, cv2.IMREAD_COLOR | orientation) if height else None
    except cv2.error:
        image = None
    if image is None:
        raise HrnetppError(f"{name}: this is no image that OpenCV can decode; replace or remove the file")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _stated_hw(data: bytes) -> tuple[int, int] | None:
    """Height and width by the file's header; None where it has none."""
    if data.startswith(_PNG_START):
        return int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")
    if data.startswith(_JPEG_START):
        frames = (at for marker, at in _jpeg_segments(data) if marker in _JPEG_FRAMES and at + 9 <= len(data))
        return next((struct.unpack_from(">HH", data, at + 5) for at in frames), None)
    from PIL import Image  # knows many formats, and reads no pixels yet

    try:
        return Image.open(io.BytesIO(data)).size[::-1]
    except Exception:  # every format of Pillow's breaks in its own way
        return None


def _is_truncated(data: bytes) -> bool:
    """Whether a JPEG or PNG lacks its end marker; False for other formats."""
    if data.startswith(_PNG_START):
        return _PNG_END not in data[-64:]
    if not data.startswith(_JPEG_START):
        return False
    # An embedded thumbnail has an end marker of its own: skip the header segments by their lengths, then
    # search the scan, where a coded byte 0xFF is always followed by 0x00 and cannot be mistaken for a marker.
    scan = next((at for marker, at in _jpeg_segments(data) if marker == _JPEG_SCAN), None)
    return scan is None or data.find(_JPEG_END, scan) < 0


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Marker and position of each header segment up to the first scan, skipping what decoders skip."""
    position = 2
    while (position := data.find(b"\xff", position)) >= 0 and position + 4 <= len(data):
        marker = data[position + 1]
        if marker in (0x00, 0xFF):  # no marker, or a fill byte before one
            position += 1 + (marker == 0)
            continue
        yield marker, position
        if marker == _JPEG_SCAN:
            return
        length = 0 if marker in _JPEG_ALONE else int.from_bytes(data[position + 2 : position + 4], "big")
        position += 2 + length
