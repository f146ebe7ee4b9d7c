"""Leeds Sports Pose Extended: real photographs that play both AI Challenger and COCO at a small scale."""

import contextlib
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from hrnetpp_lib.data.images import MOST_IMAGE_BYTES, decode_image
from hrnetpp_lib.data.persons import PersonTable
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.files import check_file, read_bytes, write_json
from hrnetpp_lib.pose.keypoints import AIC14, AIC_TO_COCO, COCO17

_TO_AIC14 = [8, 7, 6, 9, 10, 11, 2, 1, 0, 3, 4, 5, 13, 12]  # the place of each AIC14 keypoint in joints.mat
_OUTSIDE_TOLERANCE_PX = 2  # a label farther outside its image is a mistake, a nearer one sloppiness
_BOX_MARGIN, _BOX_MARGIN_MIN_PX = 0.1, 5
_SEGMENT_SHARE_OF_BOX = 0.53  # COCO areas are outlines, which are here not drawn

_MOST_MAT_BYTES = 2**26  # 20 times the public file
_MATRIX, _COMPRESSED = 14, 15  # MATLAB's numbers for what an element is
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
# Validation images that show the same photograph as a training image.
_TWINS_IN_TRAINING = (9054, 9082, 9130, 9195, 9345, 9410)


def read_lspe(joints_mat: str | Path, images: str | Path, skip_missing_images: bool = False) -> PersonTable:
    """The one annotated person of each image, as AI Challenger's 14 keypoints, which are the same joints.

    Labels follow the file's flag alone. A keypoint up to 2 px outside its image is clipped to it, one farther
    outside counts as unlabelled. The box is the keypoints' extent plus a tenth of its longest side (at least
    5 px) on every side, clipped; the area is 0.53 of the box. `dropped` counts missing_image and no_keypoints
    (images), keypoint_outside and keypoint_clipped (keypoints; clipped ones stay).

    Args:
        joints_mat: The dataset's joints.mat.
        images: The folder of im00001.jpg ..., or a folder of zip archives that hold them. With archives the
            table's files do not exist as such: `write_lspe` unpacks them.
        skip_missing_images: Leave out images that are not there; otherwise they are an error.

    Raises:
        HrnetppError: If joints.mat or an image is missing or broken.

    Reference: Johnson & Everingham, CVPR 2011.
    """
    joints = _load_joints(Path(joints_mat))
    names = [f"im{number:05d}.jpg" for number in range(1, len(joints) + 1)]
    image_hw = _image_sizes(names, Path(images), skip_missing_images)
    present = image_hw[:, 0] > 0
    keypoints, repaired = _repair(joints[:, _TO_AIC14], image_hw, present)
    usable = present & (keypoints[..., 2] > 0).any(axis=1)
    numbers, image_hw, keypoints = 1 + np.flatnonzero(usable), image_hw[usable], keypoints[usable]
    bboxes = _boxes(keypoints, image_hw)
    areas = _SEGMENT_SHARE_OF_BOX * bboxes[:, 2] * bboxes[:, 3]
    files, image_index = np.array(names, np.bytes_)[usable], np.arange(len(numbers), dtype=np.int32)
    source = (str(joints_mat), AIC14, Path(images), files, numbers, image_hw, image_index, numbers)
    counts = {"missing_image": int((~present).sum()), "no_keypoints": int((present & ~usable).sum())}
    keypoints, scores = keypoints.astype(np.float32), np.ones(len(bboxes))
    return PersonTable(*source, bboxes, scores, areas, keypoints, counts | repaired)


def write_lspe(
    joints_mat: Path, images: Path, sets: dict[str, tuple[Path, Path]], skip_missing_images: bool = False
) -> dict[str, int]:
    """Write the photographs as the sets of `DataPaths`; persons in each, and what was left out by reason.

    Images 1-5000 become AI Challenger (every tenth its validation part), 5001-9000 COCO train, the rest COCO
    val, without the six whose twin is in training. Raises: HrnetppError as `read_lspe`; or for an empty set.
    """
    table, read = read_lspe(joints_mat, images, skip_missing_images), _image_source(images)
    numbers, twin = table.person_ids, np.isin(table.person_ids, _TWINS_IN_TRAINING)
    aic, val = numbers <= 5000, numbers > 9000
    # CHOICE: every tenth image is AI Challenger's validation part, so that both of its files have persons;
    # training pools the two and splits them anew.
    tenth = numbers % 10 == 0
    roles = {"ai_challenger_train": aic & ~tenth, "ai_challenger_validation": aic & tenth}
    roles |= {"coco_train": ~aic & ~val, "coco_val": val}
    members = {name: table.select(mask & ~twin) for name, mask in roles.items()}
    if empty := [name for name, part in members.items() if not len(part)]:
        raise HrnetppError(
            f"{images}: no image for {', '.join(empty)}. Images 1-5000 play AI Challenger (every tenth its "
            "validation part), 5001-9000 COCO train, those from 9001 on COCO val; some of each must be there"
        )
    for name, part in members.items():
        json_path, folder = sets[name]
        folder.mkdir(parents=True)
        for file in part.image_files[part.image_index]:
            (folder / file.decode()).write_bytes(read(file.decode()))
        write_json(json_path, _to_coco(part) if name.startswith("coco") else _to_ai_challenger(part))
    counts = {"near_duplicate": int(twin.sum())}
    return {name: len(part) for name, part in members.items()} | table.dropped | counts


def _image_sizes(names: list[str], images: Path, skip_missing_images: bool) -> np.ndarray:
    """(I, 2) int32 height, width, zeros where an image is missing; decodes them all, so broken ones show."""
    read = _image_source(images)
    image_hw = np.zeros((len(names), 2), np.int32)
    for index, name in enumerate(names):
        if (data := read(name)) is not None:
            image_hw[index] = decode_image(data, images / name).shape[:2]
    missing = np.flatnonzero(image_hw[:, 0] == 0)
    if len(missing) and not skip_missing_images:
        first = names[missing[0]]
        problem = f"{len(missing)} of the {len(names)} images of joints.mat are missing, first {first}"
        remedy = "complete the folder, or leave them out: --skip-missing-images (skip_missing_images=True)"
        raise HrnetppError(f"{images}: {problem}; {remedy}")
    return image_hw


@contextlib.contextmanager
def _downloaded(problem: str) -> Iterator[None]:
    """Around a parser of a downloaded file, which has as many errors as there are ways to break one."""
    try:
        yield
    except Exception as error:
        raise HrnetppError(f"{problem} ({str(error)[:200]}); download it again") from None


def _load_joints(path: Path) -> np.ndarray:
    """(I, 14, 3) float64 x, y, flag of all images, in the file's own order of joints."""
    data = read_bytes(path, "it comes with the dataset, beside images/", _MOST_MAT_BYTES)
    with _downloaded(f"{path}: no MATLAB 5 file with an array 'joints'"):
        joints = _matlab_array(data, b"joints")
    if joints.ndim != 3 or joints.shape[:2] != (len(AIC14), 3):
        wrong = f"'joints' must be (14, 3, images), found {joints.shape}"
        raise HrnetppError(f"{path}: {wrong}; use the file of LSP *Extended*")
    joints = joints.transpose(2, 0, 1)
    wrong = ~(np.isfinite(joints).all((1, 2)) & np.isin(joints[..., 2], (0, 1)).all(1))
    if wrong.any():
        problem = f"image {wrong.argmax() + 1} has a joint that is not finite or whose flag is not 0 or 1"
        raise HrnetppError(f"{path}: {problem}; download the file again")
    return joints


def _matlab_array(data: bytes, name: bytes) -> np.ndarray:
    """The real array of a MATLAB 5 file that has this name, as float64.

    Not by scipy, whose reader asks for the memory that a file names, and crashes the process on damaged ones.
    """
    order = {b"IM": "<", b"MI": ">"}[data[126:128]]
    for kind, content in _elements(data[128:], order):
        if kind == _COMPRESSED:
            inflater = zlib.decompressobj()
            content = inflater.decompress(content, _MOST_MAT_BYTES)
            if not inflater.eof:
                raise ValueError("truncated, or far larger than the dataset's file")
            kind, content = next(_elements(content, order), (0, b""))
        parts = list(_elements(content, order)) if kind == _MATRIX else []
        if len(parts) >= 4 and parts[2][1] == name:
            _, (_, shape), _, (numbers, values), *rest = parts
            if rest:
                raise ValueError("it is complex or sparse")
            array = np.frombuffer(values, order + _NUMBERS[numbers]).astype(np.float64)
            return array.reshape(np.frombuffer(shape, f"{order}i4").tolist(), order="F")
    raise ValueError("there is none")


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Kind and content of the elements that follow one another in a MATLAB 5 file, or within one of them."""
    position = 0
    while position < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, position)
        start, step = position + 8, 8 + size
        if kind >> 16:  # up to four bytes lie within the tag
            kind, size, start, step = kind & 0xFFFF, kind >> 16, position + 4, 8
        if start + size > len(data):
            raise ValueError("truncated")
        yield kind, data[start : start + size]
        position += step if kind == _COMPRESSED else step + -step % 8


def _image_source(images: Path) -> Callable[[str], bytes | None]:
    """A function from an image's name to its bytes, None if it is in neither the folder nor an archive."""
    if not os.path.isdir(images):
        raise HrnetppError(f"{images}: there is no such folder; it must hold im00001.jpg ... or zips of them")
    archive_of = {}
    for path in sorted(images.glob("*.zip")):
        check_file(path, "it must be a zip archive of the images")
        with _downloaded(f"{path}: not a complete zip archive"):
            archive = zipfile.ZipFile(path)
        archive_of |= dict.fromkeys(archive.namelist(), archive)

    def read(name: str) -> bytes | None:
        archive = archive_of.get(name)
        if archive is None:
            return read_bytes(images / name, "", MOST_IMAGE_BYTES) if os.path.isfile(images / name) else None
        with _downloaded(f"{archive.filename}: {name} in it is damaged"):
            if archive.getinfo(name).file_size > MOST_IMAGE_BYTES:
                raise ValueError("larger than any image")
            return archive.read(name)

    return read


def _repair(
    joints: np.ndarray, image_hw: np.ndarray, present: np.ndarray
) -> tuple[np.ndarray, dict[str, int]]:
    """Keypoints (I, 14, 3) with v = 2 or 0, inside those images that are there; and how many were mended."""
    last_xy = image_hw[:, None, ::-1] - 1.0
    excess = np.maximum(-joints[..., :2], joints[..., :2] - last_xy).max(2)
    flagged = (joints[..., 2] == 1) & present[:, None]
    labelled = flagged & (excess <= _OUTSIDE_TOLERANCE_PX)
    keypoints = np.dstack([np.clip(joints[..., :2], 0, last_xy), np.full_like(joints[..., 2], 2)])
    keypoints[~labelled] = 0
    counts = {"keypoint_outside": flagged & ~labelled, "keypoint_clipped": labelled & (excess > 0)}
    return keypoints, {reason: int(mask.sum()) for reason, mask in counts.items()}


def _boxes(keypoints: np.ndarray, image_hw: np.ndarray) -> np.ndarray:
    """(I, 4) xywh around the labelled keypoints, with a margin, clipped to the image."""
    unlabelled = keypoints[..., 2:] == 0
    start = np.where(unlabelled, np.inf, keypoints[..., :2]).min(1)
    end = np.where(unlabelled, -np.inf, keypoints[..., :2]).max(1)
    margin = np.maximum(_BOX_MARGIN * (end - start).max(1, keepdims=True), _BOX_MARGIN_MIN_PX)
    start = np.maximum(start - margin, 0)
    return np.hstack([start, np.minimum(end + margin, image_hw[:, ::-1]) - start])


def _to_ai_challenger(table: PersonTable) -> list[dict]:
    """AI Challenger's json document; labelled keypoints count as visible, for want of a code."""
    visibility = np.where(table.keypoints[..., 2:] > 0, 1, 3)
    keypoints = np.dstack([table.keypoints[..., :2], visibility]).reshape(len(table), -1)
    corners = np.hstack([table.bboxes_xywh[:, :2], table.bboxes_xywh[:, :2] + table.bboxes_xywh[:, 2:]])
    names = [table.image_path(person).stem for person in range(len(table))]
    return [
        {"image_id": name, "human_annotations": {"human1": box}, "keypoint_annotations": {"human1": pose}}
        for name, box, pose in zip(names, corners.tolist(), keypoints.tolist(), strict=True)
    ]


def _to_coco(table: PersonTable) -> dict:
    """COCO's json document, the 12 shared keypoints labelled where they are here."""
    keypoints = np.zeros((len(table), len(COCO17), 3))
    keypoints[:, list(AIC_TO_COCO.values())] = table.keypoints[:, list(AIC_TO_COCO)]
    images, annotations = [], []
    for person, number in enumerate(table.person_ids.tolist()):
        height, width = table.image_hw[table.image_index[person]].tolist()
        file_name = table.image_path(person).name
        images.append({"id": number, "file_name": file_name, "height": height, "width": width})
        record = {"id": number, "image_id": number, "category_id": 1, "iscrowd": 0}
        record |= {"bbox": table.bboxes_xywh[person].tolist(), "area": float(table.areas[person])}
        record["num_keypoints"] = int((keypoints[person, :, 2] > 0).sum())
        annotations.append(record | {"keypoints": keypoints[person].ravel().tolist()})
    category = {"id": 1, "name": "person", "supercategory": "person", "keypoints": list(COCO17.names)}
    return {"images": images, "annotations": annotations, "categories": [category]}
