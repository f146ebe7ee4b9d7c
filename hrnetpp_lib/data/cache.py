"""A parsed annotation file, kept as arrays that are mapped into memory: seconds instead of half a minute.

cache/<annotation file>/{meta.json, keypoints.npy, ...}

Mapped pages belong to the operating system's file cache, so all processes on a machine share them. A table
that is cut or joined afterwards is a copy, shared by the loader processes that are forked from its owner.
"""

import json
import shutil
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np

from hrnetpp_lib.pose.keypoints import SKELETONS
from hrnetpp_lib.data.persons import PersonTable

_VERSION = 1  # raise it when the readers give other tables
_ARRAYS = tuple(field.name for field in fields(PersonTable) if field.type in (np.ndarray, "np.ndarray"))

Reader = Callable[[Path, Path], PersonTable]


def read_cached(read: Reader, json_path: Path, image_dir: Path, cache_dir: Path) -> PersonTable:
    """The table of an annotation file, from the cache if that is whole and of this very file.

    Where the folder cannot be written to, the file is read anew each time.

    Args:
        read: `annotations.read_coco` or `read_ai_challenger`.
        json_path: The annotation file.
        image_dir: Folder of its images; not part of the cache.
        cache_dir: Folder of all caches.

    Returns:
        What `read` returns; its arrays are read-only if they come from the cache.

    Raises:
        HrnetppError: As `read` does.
    """
    folder = cache_dir / json_path.name
    if not json_path.is_file() or not image_dir.is_dir():
        return read(json_path, image_dir)  # it says what is wrong
    status = json_path.stat()
    key = [_VERSION, read.__name__, str(json_path.resolve()), status.st_size, status.st_mtime_ns]
    if folder.exists():
        try:
            return _load(folder, key, image_dir)
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            print(f"{folder}: {error}; {json_path.name} is read again", flush=True)
    table = read(json_path, image_dir)
    try:
        _save(table, folder, key)
    except OSError as error:
        print(f"{folder}: cannot be written ({error}); {json_path.name} is read again each time", flush=True)
    return table


def _load(folder: Path, key: list, image_dir: Path) -> PersonTable:
    meta = json.loads((folder / "meta.json").read_text())
    if meta["key"] != key:
        raise ValueError("the cache is of another version of the file")
    columns = {}
    for name in _ARRAYS:
        # A plain array over the mapped file, not numpy's memmap, which is slow to index.
        columns[name] = np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False))
        if zlib.crc32(columns[name]) != meta["checksums"][name]:
            raise ValueError(f"the cache is damaged ({name}.npy)")
    skeleton = SKELETONS[meta["skeleton"]]
    return PersonTable(
        name=meta["name"], skeleton=skeleton, image_dir=image_dir, dropped=meta["dropped"], **columns
    )


def _save(table: PersonTable, folder: Path, key: list) -> None:
    """Write all files under another name first: a folder of this name is complete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        arrays = {name: np.ascontiguousarray(getattr(table, name)) for name in _ARRAYS}
        for name, array in arrays.items():
            np.save(part / f"{name}.npy", array)
        meta = {
            "key": key,
            "name": table.name,
            "skeleton": table.skeleton.name,
            "dropped": table.dropped,
            "checksums": {name: zlib.crc32(array) for name, array in arrays.items()},
        }
        (part / "meta.json").write_text(json.dumps(meta))
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)  # fails if another process was faster, whose cache is as good
    finally:
        shutil.rmtree(part, ignore_errors=True)
