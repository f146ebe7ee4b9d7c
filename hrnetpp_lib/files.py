"""Files that are read whole and within bounds, and written whole or not at all."""

import contextlib
import glob
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from operator import methodcaller
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import msgspec
from filelock import FileLock

from hrnetpp_lib.errors import HrnetppError

_MOST_BYTES = 4 * 2**30  # the largest json of the public sets has a quarter of a gigabyte

Content = TypeVar("Content")


def project_root() -> Path:
    """Folder of data/, runs/ and figures/ unless told otherwise: the checkout, else the current folder."""
    checkout = Path(__file__).resolve().parents[1]
    return checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()


def check_file(path: Path, remedy: str, most_bytes: int = _MOST_BYTES) -> None:
    """Refuse all but a regular file of 1 to so many bytes. Raises: HrnetppError that ends with the remedy."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise HrnetppError(f"{path}: there is no such file; {remedy}") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise HrnetppError(f"{path}: cannot be read ({error}); {remedy}") from None
    if not stat.S_ISREG(status.st_mode):
        raise HrnetppError(f"{path}: is no regular file; {remedy}")
    if not status.st_size:  # endless files of the kernel have no bytes either
        raise HrnetppError(f"{path}: is empty; {remedy}")
    if status.st_size > most_bytes:
        size = f"{status.st_size} bytes, more than the {most_bytes} that make sense"
        raise HrnetppError(f"{path}: has {size}; is it the right file?")


def read_bytes(path: Path, remedy: str = "check the path", most_bytes: int = _MOST_BYTES) -> bytes:
    """The content of a regular file. Raises: HrnetppError as `check_file`, or if it cannot be read."""
    check_file(path, remedy, most_bytes)
    try:
        return path.read_bytes()
    except OSError as error:
        raise HrnetppError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None


def read_json(path: Path, kind: type[Content], remedy: str = "check the path", mend: str = "") -> Content:
    """What a json file holds, as the type that it must be (a msgspec Struct, a dataclass, ...).

    `mend` is the remedy where the file is there and holds something else.
    """
    return decode_json(read_bytes(path, remedy), kind, path, mend or remedy)


def decode_json(text: bytes | str, kind: type[Content], name: Path | str, remedy: str) -> Content:
    """As `read_json`, for text in memory. Raises: HrnetppError that begins with `name` and says the place."""
    text = text.removeprefix(b"\xef\xbb\xbf") if isinstance(text, bytes) else text  # editors on Windows
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:  # a ValidationError is a DecodeError
        reason = " ".join(str(error).split())[:300]  # it may quote what the file says
        place = re.search(r"malformed.*\(byte (\d+)\)", reason)
        around = str(text[max(0, int(place[1]) - 4) : int(place[1]) + 8]) if place else ""
        if re.search("nan|inf", around, re.IGNORECASE):
            reason += ": json has no NaN or infinity"
        raise HrnetppError(f"{name}: {reason}; {remedy}") from None


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Make the folder of `path`, and say in one line what keeps from writing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        remedy = "make room or choose a place that can be written to, and give the command again"
        raise HrnetppError(f"{path}: cannot be written ({error.strerror or error}); {remedy}") from error


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to; after a block that succeeds its content, on the disk, takes `path`'s place."""
    # Of two writers, the last one's stays. They look at the suffix: it stays the last part of the name.
    part = path.with_name(f".{path.stem}.{uuid4().hex}.part{path.suffix}")
    with _writing(path):
        try:
            yield part
            replace_durably(part, path)
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)


def replace_durably(part: Path, path: Path) -> None:
    """Give a finished temporary file of the same folder its name, once its content has reached the disk."""
    with open(part, "rb+") as file:
        os.fsync(file.fileno())
    part.replace(path)
    if os.name == "posix":  # Windows cannot open folders
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_json(path: Path, content: object) -> None:
    """Write dataclasses, arrays and the like as indented json. Raises: HrnetppError if that cannot be."""
    try:
        text = msgspec.json.encode(content, enc_hook=methodcaller("tolist"))  # numpy's numbers
    except UnicodeError as error:  # the name of a file may be no text
        raise HrnetppError(f"{path}: cannot be written ({error}); rename the file of that name") from None
    with whole_file(path) as part:
        part.write_bytes(msgspec.json.format(text, indent=2) + b"\n")


@contextlib.contextmanager
def whole_folder(path: Path, is_whole: Callable[[Path], bool] = os.path.exists) -> Iterator[Path | None]:
    """A folder to fill, which gets its name after the block; None where it needs no making.

    Processes that want the same folder wait for one another. Where it is there but not whole, the files of
    the new one take their places in it, and whatever else it holds stays. Nothing half made is left.
    """
    if is_whole(path):  # it may lie where nobody can write
        yield None
        return
    lock = path.with_name(f".{path.name}.lock")
    with _writing(path):
        lock.touch()  # where that cannot be, FileLock would try for ever
    with _writing(path), FileLock(lock):
        if is_whole(path):
            yield None
            return
        for left_by_the_killed in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
            shutil.rmtree(left_by_the_killed, ignore_errors=True)
        part = path.with_name(f".{path.name}.{uuid4().hex}.part")
        try:
            part.mkdir()
            yield part
            if path.exists():
                for file in [file for file in part.rglob("*") if file.is_file()]:
                    target = path / file.relative_to(part)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    file.replace(target)
            else:
                part.rename(path)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
