"""Files that are read whole and within bounds, and written whole or not at all."""

import contextlib
import glob
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
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
    """Make sure that a path is a regular file of a size that fits into memory.

    Args:
        path: The file.
        remedy: What to do where it is not there.
        most_bytes: The largest size that makes sense.

    Raises:
        HrnetppError: If it is missing, empty, a folder, a pipe or a device, or larger.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = (
            "there is no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        )
        raise HrnetppError(f"{path}: {reason}; {remedy}") from None
    if not stat.S_ISREG(status.st_mode) or not status.st_size:  # endless files of the kernel have 0 bytes too
        wrong = "is empty" if stat.S_ISREG(status.st_mode) else "is no regular file"
        raise HrnetppError(f"{path}: {wrong}; {remedy}")
    if status.st_size > most_bytes:
        size = f"{status.st_size} bytes, more than the {most_bytes} that make sense"
        raise HrnetppError(f"{path}: has {size}; is it the right file?")


def read_bytes(path: Path, remedy: str = "check the path", most_bytes: int = _MOST_BYTES) -> bytes:
    """The content of a regular file; see `check_file`.

    Raises:
        HrnetppError: If it is missing, no regular file, too large, or cannot be read.
    """
    check_file(path, remedy, most_bytes)
    try:
        return path.read_bytes()
    except OSError as error:
        raise HrnetppError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None


def read_json(
    path: Path, kind: type[Content], remedy: str = "check the path", most_bytes: int = _MOST_BYTES
) -> Content:
    """What a json file holds, as the type that it must be.

    Args:
        path: The file.
        kind: A msgspec Struct, a dataclass, or a type built of such and of lists, dicts, texts and numbers.
        remedy: What to do where the file is missing or wrong.
        most_bytes: The largest size that makes sense.

    Raises:
        HrnetppError: If it cannot be read, is no json, or not of that type; names the place in the file.
    """
    return decode_json(read_bytes(path, remedy, most_bytes), kind, path, remedy)


def decode_json(text: bytes | str, kind: type[Content], name: Path | str, remedy: str) -> Content:
    """As `read_json`, for text that is in memory.

    Raises:
        HrnetppError: If it is no json, or not of that type; the message begins with `name`.
    """
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:  # a ValidationError is a DecodeError
        reason = " ".join(str(error).split())[:300]  # it may quote what the file says
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
    """A path to write to; after the block its content has reached the disk and takes the place of `path`.

    The folder is made. Two processes that write the same file do not meet: the last one's file stays.

    Raises:
        HrnetppError: If something cannot be written; `path` is as it was.
    """
    # Writers look at the suffix, so it stays the last part of the name.
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
    """Write indented json, whole or not at all; dataclasses and tuples become objects and lists.

    Raises:
        HrnetppError: If it cannot be written.
    """
    try:
        text = msgspec.json.format(msgspec.json.encode(content, enc_hook=_to_builtin), indent=2)
    except UnicodeError as error:  # the name of a file may be no text
        raise HrnetppError(f"{path}: cannot be written ({error}); rename the file of that name") from None
    with whole_file(path) as part:
        part.write_bytes(text + b"\n")


def _to_builtin(value: object) -> object:
    """A numpy scalar or array as Python's own numbers."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as json")


@contextlib.contextmanager
def whole_folder(path: Path, is_whole: Callable[[Path], bool] = os.path.exists) -> Iterator[Path | None]:
    """A folder to fill, which gets its name after the block; None where somebody has made it already.

    Processes that want the same folder wait for one another. Where it is there but not whole, the files of
    the new one take their places in it, and whatever else it holds stays.

    Args:
        path: The folder.
        is_whole: Whether it needs no making.

    Raises:
        HrnetppError: If something cannot be written; nothing half made is left under that name.
    """
    if is_whole(path):  # it may lie where nobody can write
        yield None
        return
    with _writing(path), FileLock(path.with_name(f".{path.name}.lock")):
        if is_whole(path):
            yield None
            return
        for left_by_the_killed in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
            shutil.rmtree(left_by_the_killed, ignore_errors=True)
        part = path.with_name(f".{path.name}.{uuid4().hex}.part")
        try:
            part.mkdir()
            yield part
            _take_place(part, path)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _take_place(part: Path, path: Path) -> None:
    """Rename a folder, or move its files to where they belong in the one that is there."""
    if not path.exists():
        part.rename(path)
        return
    for file in [file for file in part.rglob("*") if file.is_file()]:
        target = path / file.relative_to(part)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
