"""Files that are read whole and within bounds, and written whole or not at all."""

import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

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
        HrnetppError: If it is missing, a folder, a pipe or a device, or larger.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = (
            "there is no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        )
        raise HrnetppError(f"{path}: {reason}; {remedy}") from None
    if not stat.S_ISREG(status.st_mode):
        raise HrnetppError(f"{path}: is no regular file; {remedy}")
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


def read_json(path: Path, kind: type[Content], remedy: str = "check the path") -> Content:
    """What a json file holds, as the type that it must be.

    Args:
        path: The file.
        kind: A msgspec Struct, a dataclass, or a type built of such and of lists, dicts, texts and numbers.
        remedy: What to do where the file is missing or wrong.

    Raises:
        HrnetppError: If it cannot be read, is no json, or not of that type; names the place in the file.
    """
    return decode_json(read_bytes(path, remedy), kind, path, remedy)


def decode_json(text: bytes | str, kind: type[Content], name: Path | str, remedy: str) -> Content:
    """As `read_json`, for text that is in memory.

    Raises:
        HrnetppError: If it is no json, or not of that type; the message begins with `name`.
    """
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:  # a ValidationError is a DecodeError
        reason = str(error) or "truncated or nested too deep"
        raise HrnetppError(f"{name}: {reason[:300]}; {remedy}") from None


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to; after the block its content has reached the disk and takes the place of `path`.

    The folder is made. Two processes that write the same file do not meet: the last one's file stays.

    Raises:
        HrnetppError: If something cannot be written; `path` is as it was.
    """
    # Writers look at the suffix, so it stays the last part of the name.
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        replace_durably(part, path)
    except OSError as error:
        raise HrnetppError(
            f"{path}: cannot be written ({error.strerror or error}); make room and give the command again"
        ) from error
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
    with whole_file(path) as part:
        part.write_bytes(
            msgspec.json.format(msgspec.json.encode(content, enc_hook=_to_builtin), indent=2) + b"\n"
        )


def _to_builtin(value: object) -> object:
    """A numpy scalar or array as Python's own numbers."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as json")


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path | None]:
    """A folder to fill, which gets its name after the block; None where somebody has made it already.

    Processes that want the same folder wait for one another.

    Raises:
        HrnetppError: If something cannot be written; nothing of that name is left.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            if path.exists():
                yield None
                return
            part = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
            try:
                yield part
                part.chmod(0o755)  # mkdtemp's are private
                part.rename(path)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise HrnetppError(
            f"{path}: cannot be written ({error}); make room and give the command again"
        ) from error


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
