"""The table of persons that every reader fills: flat arrays, one row a person."""

import hashlib
import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from hrnetpp_lib.data.images import read_image
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.pose.keypoints import Skeleton

_MOST_DECODERS = 16  # each may hold an image of the largest size


@dataclass(frozen=True, eq=False)
class PersonTable:
    """Persons of one dataset as flat arrays: I images, N persons, K keypoints; coordinates in image px."""

    name: str  # where it comes from, for messages and provenance
    skeleton: Skeleton  # the convention of `keypoints`
    image_dir: Path  # that `image_files` are relative to
    image_files: np.ndarray  # (I,) bytes
    image_ids: np.ndarray  # (I,) int64 for COCO, bytes for AI Challenger
    image_hw: np.ndarray  # (I, 2) int32 height, width; -1 where the file does not say
    image_index: np.ndarray  # (N,) int32, person -> image
    person_ids: np.ndarray  # (N,) int64, annotation id, or the running number where there is none
    bboxes_xywh: np.ndarray  # (N, 4) float64
    bbox_scores: np.ndarray  # (N,) float64, 1 for ground truth
    areas: np.ndarray  # (N,) float64 px^2: the file's own, else the box area
    keypoints: np.ndarray  # (N, K, 3) float32 x, y, v: 0 unlabelled (x = y = 0), 1 occluded, 2 visible
    dropped: dict[str, int]  # how many records were left out, by reason

    _COLUMNS: ClassVar = ("image_index", "person_ids", "bboxes_xywh", "bbox_scores", "areas", "keypoints")

    def __len__(self) -> int:
        return len(self.image_index)

    def select(self, persons: np.ndarray) -> "PersonTable":
        """The same images with some of the persons, given by indices or by a (N,) mask."""
        return replace(self, **{column: getattr(self, column)[persons] for column in self._COLUMNS})

    def fingerprint(self) -> dict[str, int]:
        """Numbers of persons and images and a checksum of each column, to notice that data changed."""
        columns = ("image_files", "image_index", "person_ids", "bboxes_xywh", "keypoints")
        checksums = {c: zlib.crc32(np.ascontiguousarray(getattr(self, c))) for c in columns}
        return {"persons": len(self), "images": len(self.image_files)} | checksums

    def image_path(self, person: int) -> Path:
        """The image that a person is in."""
        return self.image_dir / self.image_files[self.image_index[person]].decode()


@dataclass(frozen=True, eq=False)
class CocoTruth(PersonTable):
    """All true persons for COCO's metric: crowds, unlabelled ones, unclipped boxes, float64 keypoints."""

    num_keypoints: np.ndarray  # (N,) int64, the file's own; a person of 0 is neither found nor missed
    crowd: np.ndarray  # (N,) bool; counts like that, and may be found several times
    category_id: int = 1  # the file's number for persons; 1 in COCO's own

    _COLUMNS: ClassVar = (*PersonTable._COLUMNS, "num_keypoints", "crowd")


def split_by_image(table: PersonTable, holdout_persons: int) -> tuple[PersonTable, PersonTable]:
    """The persons to train on, and whole images held out until they contain at least so many persons.

    Images go in the order of the SHA-1 of their file name without folders, so the split depends neither on
    the order of the file nor on where the images lie, and two images of one name stay together.

    Raises: HrnetppError if nothing would be left to train on. Reference: HRNet++ report, section on data.
    """
    names, image_name = np.unique([os.path.basename(name) for name in table.image_files], return_inverse=True)
    person_name = image_name.reshape(-1)[table.image_index]
    counts = np.bincount(person_name, minlength=len(names))
    order = np.argsort(np.array([hashlib.sha1(name).digest() for name in names], "S20"), kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    in_holdout = np.isin(person_name, order[before < holdout_persons])
    if in_holdout.all():
        remedy = "leaves none to train on; hold out fewer"
        raise HrnetppError(f"{table.name}: holding out {holdout_persons} of {len(table)} persons {remedy}")
    return table.select(~in_holdout), table.select(in_holdout)


def concat(tables: Sequence[PersonTable]) -> PersonTable:
    """The persons of several tables in one, image files relative to the folder that all their folders share.

    person_ids may repeat. Raises: HrnetppError without tables, or if skeletons or kinds of image ids differ.
    """
    if len({(table.skeleton.name, table.image_ids.dtype.kind) for table in tables}) != 1:
        found = ", ".join(f"{table.name} ({table.skeleton.name})" for table in tables) or "none"
        raise HrnetppError(f"concat needs tables of one skeleton and one kind of image ids, not: {found}")
    folders = [table.image_dir.resolve() for table in tables]
    root = Path(os.path.commonpath(folders))
    files, indices, offset = [], [], np.int32(0)
    for table, folder in zip(tables, folders, strict=True):
        prefix = "" if folder == root else f"{folder.relative_to(root).as_posix()}/"
        files.append(np.char.add(prefix.encode(), table.image_files))
        indices.append(table.image_index + offset)
        offset += np.int32(len(table.image_files))
    columns = ("image_ids", "image_hw", "person_ids", "bboxes_xywh", "bbox_scores", "areas", "keypoints")
    reasons = dict.fromkeys(reason for table in tables for reason in table.dropped)
    return replace(
        tables[0],
        name=" + ".join(table.name for table in tables),
        image_dir=root,
        image_files=np.concatenate(files),
        image_index=np.concatenate(indices),
        dropped={reason: sum(table.dropped.get(reason, 0) for table in tables) for reason in reasons},
        **{column: np.concatenate([getattr(table, column) for table in tables]) for column in columns},
    )


def check_images(table: PersonTable, decode: bool = False) -> None:
    """Make sure that the image of every person exists; to decode each, too, takes milliseconds on all cores.

    Raises: HrnetppError naming the first missing or unreadable files and counting them all.
    """
    used = [name.decode() for name in table.image_files[np.unique(table.image_index)]]
    if missing := [name for name in used if not os.path.isfile(table.image_dir / name)]:
        wrong = f"{len(missing)} of {len(used)} images of {table.name} are missing: {first_few(missing)}"
        raise HrnetppError(f"{table.image_dir}: {wrong}; complete the folder or correct its path")
    if decode:
        # OpenCV decodes without Python's lock.
        with ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST_DECODERS)) as pool:
            complaints = list(filter(None, pool.map(_complaint, [table.image_dir / name for name in used])))
        if complaints:
            count = f"{len(complaints)} of {len(used)} images of {table.name}"
            raise HrnetppError(f"{count} cannot be read, the first: {complaints[0]}")


def first_few(names: Sequence[object]) -> str:
    """The first five, for a message."""
    return ", ".join(map(str, names[:5])) + (", ..." if len(names) > 5 else "")


def _complaint(path: Path) -> str:
    """What is wrong with an image; nothing if it can be read."""
    try:
        read_image(path)
    except HrnetppError as error:
        return str(error)
    return ""
