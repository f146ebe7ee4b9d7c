"""Reading pictures: one strict decoder for every image that enters the program."""

from pathlib import Path

import cv2
import numpy as np

from hrnetpp_lib.errors import HrnetppError

_JPEG_START, _JPEG_SCAN, _JPEG_END = b"\xff\xd8", 0xDA, b"\xff\xd9"
_PNG_START, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND"


def read_image(path: str | Path, upright: bool = False) -> np.ndarray:
    """The pixels of a picture file, exactly as `decode_image` gives them.

    Args:
        path: A JPEG, PNG or any other format that OpenCV reads.
        upright: See `decode_image`.

    Returns:
        (h, w, 3) uint8, RGB.

    Raises:
        HrnetppError: If the file is missing, unreadable, not a picture, undecodable or truncated.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise HrnetppError(
            f"{path}: there is no such image; check the image folder and the file name"
        ) from None
    except OSError as error:
        raise HrnetppError(f"{path}: the image cannot be read ({error.strerror}); check the path") from None
    return decode_image(data, path, upright)


def decode_image(data: bytes, name: str | Path, upright: bool = False) -> np.ndarray:
    """The stored pixels of an encoded picture as 8-bit RGB.

    Grey images are repeated into three channels, 16-bit images are scaled down to 8 bits, alpha is dropped
    (not blended).

    Args:
        data: The bytes of the file.
        name: How error messages call it.
        upright: Whether to turn the picture as its EXIF entry says: for photographs that people look at, not
            for datasets, whose annotations refer to the stored pixels.

    Returns:
        (h, w, 3) uint8, RGB.

    Raises:
        HrnetppError: If data is no picture, undecodable or truncated. Damage that JPEG decoders tolerate, as
            in some pictures of the public sets, gives the pixels that they give.
    """
    # OpenCV may fill what a truncated file lacks with grey and return it, so look for the end ourselves.
    if _is_truncated(data):
        raise HrnetppError(f"{name}: the image is truncated ({len(data)} bytes); copy or download it again")
    try:
        encoded = np.frombuffer(data, np.uint8)
        orientation = 0 if upright else cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imdecode(encoded, cv2.IMREAD_COLOR | orientation)
    except cv2.error:
        image = None
    if image is None:
        raise HrnetppError(f"{name}: this is no image that OpenCV can decode; replace or remove the file")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _is_truncated(data: bytes) -> bool:
    """Whether a JPEG or PNG lacks its end marker; False for other formats."""
    if data.startswith(_PNG_START):
        return _PNG_END not in data[-64:]
    if not data.startswith(_JPEG_START):
        return False
    # An embedded thumbnail has an end marker of its own: skip the header segments by their lengths, then
    # search the scan, where a coded byte 0xFF is always followed by 0x00 and cannot be mistaken for a marker.
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        if data[position + 1] == 0xFF:  # a marker may be preceded by fill bytes
            position += 1
            continue
        if data[position + 1] == _JPEG_SCAN:
            return data.find(_JPEG_END, position) < 0
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return position + 4 > len(data)
