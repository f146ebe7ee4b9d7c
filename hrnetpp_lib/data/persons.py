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
    """Persons of one dataset as flat arrays: I images, N persons, K keypoints; coordinates in image px.

    Attributes:
        name: Where it comes from, for messages and provenance.
        skeleton: The keypoint convention of `keypoints`.
        image_dir: Folder that `image_files` are relative to.
        image_files: (I,) bytes, file names.
        image_ids: (I,) int64 for COCO; bytes for AI Challenger.
        image_hw: (I, 2) int32 (height, width); -1 where the file does not say.
        image_index: (N,) int32, person -> image.
        person_ids: (N,) int64, annotation id, or the running number in the file where there is none.
        bboxes_xywh: (N, 4) float64.
        bbox_scores: (N,) float64; 1 for ground truth.
        areas: (N,) float64 px^2: the file's own, else the box area.
        keypoints: (N, K, 3) float32 x, y, v with v = 0 unlabelled (x = y = 0), 1 occluded, 2 visible; zeros
            for detections.
        dropped: How many records were left out, by reason.
    """

    name: str
    skeleton: Skeleton
    image_dir: Path
    image_files: np.ndarray
    image_ids: np.ndarray
    image_hw: np.ndarray
    image_index: np.ndarray
    person_ids: np.ndarray
    bboxes_xywh: np.ndarray
    bbox_scores: np.ndarray
    areas: np.ndarray
    keypoints: np.ndarray
    dropped: dict[str, int]

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
    """All true persons of a COCO file as its metric counts them: crowds and unlabelled ones, too.

    Boxes are the file's own, not clipped, and keypoints float64.

    Attributes:
        num_keypoints: (N,) int64, the file's own count; with 0 a person is neither found nor missed.
        crowd: (N,) bool; a crowd counts like that, and may be found several times.
        category_id: The file's number for persons; COCO's own is 1.
    """

    num_keypoints: np.ndarray
    crowd: np.ndarray
    category_id: int = 1

    _COLUMNS: ClassVar = (*PersonTable._COLUMNS, "num_keypoints", "crowd")


def split_by_image(table: PersonTable, holdout_persons: int) -> tuple[PersonTable, PersonTable]:
    """Whole images held out until they contain at least so many persons.

    Images go in the order of the SHA-1 of their file name without folders, so the split depends neither on
    the order of the file nor on where the images lie, and two images of one name stay together.

    Returns:
        The training part and the part held out.

    Raises:
        HrnetppError: If nothing would be left to train on.

    Reference: HRNet++ report, data and augmentation (444K / 5K persons of AI Challenger).
    """
    names, image_name = np.unique([os.path.basename(name) for name in table.image_files], return_inverse=True)
    person_name = image_name.reshape(-1)[table.image_index]
    counts = np.bincount(person_name, minlength=len(names))
    order = np.argsort(np.array([hashlib.sha1(name).digest() for name in names], "S20"), kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    held_out = np.zeros(len(names), bool)
    held_out[order[before < holdout_persons]] = True
    in_holdout = held_out[person_name]
    if in_holdout.all():
        raise HrnetppError(
            f"{table.name}: holding out {holdout_persons} of {len(table)} persons leaves none to train on; "
            "hold out fewer"
        )
    return table.select(~in_holdout), table.select(in_holdout)


def concat(tables: Sequence[PersonTable]) -> PersonTable:
    """The persons of several tables in one, image files relative to the folder that all their folders share.

    person_ids stay those of each file, so they may repeat.

    Raises:
        HrnetppError: If there is no table, or they differ in skeleton or in the kind of image ids.
    """
    if len({(table.skeleton.name, table.image_ids.dtype.kind) for table in tables}) != 1:
        described = ", ".join(f"{table.name} ({table.skeleton.name})" for table in tables)
        raise HrnetppError(
            f"concat needs tables of one skeleton and one kind of image ids, not: {described or 'none'}"
        )
    folders = [table.image_dir.resolve() for table in tables]
    root = Path(os.path.commonpath(folders))
    prefixes = [
        b"" if folder == root else f"{folder.relative_to(root).as_posix()}/".encode() for folder in folders
    ]
    offsets = np.cumsum([0] + [len(table.image_files) for table in tables])
    columns = ("image_ids", "image_hw", "person_ids", "bboxes_xywh", "bbox_scores", "areas", "keypoints")
    reasons = dict.fromkeys(reason for table in tables for reason in table.dropped)
    return replace(
        tables[0],
        name=" + ".join(table.name for table in tables),
        image_dir=root,
        image_files=np.concatenate(
            [np.char.add(p, t.image_files) for p, t in zip(prefixes, tables, strict=True)]
        ),
        image_index=np.concatenate(
            [t.image_index + np.int32(o) for t, o in zip(tables, offsets[:-1], strict=True)]
        ),
        dropped={reason: sum(table.dropped.get(reason, 0) for table in tables) for reason in reasons},
        **{column: np.concatenate([getattr(table, column) for table in tables]) for column in columns},
    )


def check_images(table: PersonTable, decode: bool = False) -> None:
    """Makes sure that the image of every person exists.

    Args:
        table: The persons.
        decode: Whether each image must be readable, too; milliseconds an image, on all cores.

    Raises:
        HrnetppError: Naming the first missing or unreadable files and counting them all.
    """
    used = [name.decode() for name in table.image_files[np.unique(table.image_index)]]
    missing = [name for name in used if not os.path.isfile(table.image_dir / name)]
    if missing:
        first = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise HrnetppError(
            f"{table.image_dir}: {len(missing)} of {len(used)} images of {table.name} are missing: {first}; "
            "complete the folder or correct its path"
        )
    if decode:
        # OpenCV decodes without Python's lock.
        with ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST_DECODERS)) as pool:
            found = pool.map(_complaint, [table.image_dir / name for name in used])
            complaints = [complaint for complaint in found if complaint]
        if complaints:
            raise HrnetppError(
                f"{len(complaints)} of {len(used)} images of {table.name} cannot be read, the first: "
                f"{complaints[0]}"
            )


def _complaint(path: Path) -> str:
    """What is wrong with an image; nothing if it can be read."""
    try:
        read_image(path)
    except HrnetppError as error:
        return str(error)
    return ""
