"""A dataset of synthetic people, written as real files in the original formats of COCO and AI Challenger."""

import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np

from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.keypoints import AIC14, COCO17
from hrnetpp_lib.scene import LabelledPerson, render_scene

VERSION = 1  # raise it whenever the same seed gives other files
JPEG_QUALITY = 92
_ROLES = {"coco_train": 0, "coco_val": 1, "ai_challenger_train": 2, "ai_challenger_validation": 3}
DETECTIONS_NAME = "COCO_val2017_detections_synthetic_person.json"


def write_dataset(
    root: Path,
    persons_coco: int,
    persons_ai_challenger: int,
    persons_val: int,
    seed: int = 0,
    processes: int = 1,
) -> dict[str, int]:
    """Render and label a whole dataset, or find it written.

    Files are the same to the byte for the same arguments, whatever the number of processes.

    Args:
        root: Gets coco/ and ai_challenger/ in the layout of `datasets`.
        persons_coco: Labelled persons of COCO train.
        persons_ai_challenger: Of AI Challenger, a tenth of them in its validation part.
        persons_val: Of COCO val, which also gets a detector's boxes.
        seed: Seeds everything.
        processes: Number of rendering processes.

    Returns:
        Set name -> number of labelled persons.

    Raises:
        HrnetppError: If root holds something else, or a count is not positive.
    """
    held = max(persons_ai_challenger // 10, 1)
    counts = {
        "coco_train": persons_coco,
        "coco_val": persons_val,
        "ai_challenger_train": persons_ai_challenger - held,
        "ai_challenger_validation": held,
    }
    if min(counts.values()) < 1:
        raise HrnetppError(f"synthetic data: each set needs a person at least, asked for {counts}")
    manifest = {"version": VERSION, "seed": seed, "persons": counts}
    if root.exists():
        _check_manifest(root, manifest)
        return counts
    print(f"rendering {sum(counts.values())} synthetic people into {root} ...", flush=True)
    part = root.with_name(root.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    _write_parts(part, counts, seed, processes)
    (part / "manifest.json").write_text(json.dumps(manifest))
    part.rename(root)
    return counts


def _write_parts(root: Path, counts: dict[str, int], seed: int, processes: int) -> None:
    """All four sets, rendered by so many processes."""
    with ProcessPoolExecutor(processes, get_context("spawn"), cv2.setNumThreads, (1,)) as pool:
        mapper = map if processes == 1 else partial(pool.map, chunksize=4)
        for split in ("train", "val"):
            _write_coco(root / "coco", split, counts[f"coco_{split}"], seed, mapper)
        for split in ("train", "validation"):
            _write_ai_challenger(
                root / "ai_challenger", split, counts[f"ai_challenger_{split}"], seed, mapper
            )


def _check_manifest(root: Path, manifest: dict) -> None:
    """Accept a folder only if it was written with the same version, seed and counts."""
    try:
        found = json.loads((root / "manifest.json").read_text())
    except (OSError, ValueError):
        found = None
    if found != manifest:
        raise HrnetppError(
            f"{root}: holds {found or 'no readable manifest.json'}, not the synthetic data asked for "
            f"({manifest}); delete the folder to have them rendered"
        )


def _render_jpeg(
    folder: Path, name_pattern: str, role: str, seed: int, number: int, max_people: int = 4
) -> list[LabelledPerson]:
    """Render picture `number` of a role and write it; an empty picture is not written."""
    rng = np.random.default_rng((seed, _ROLES[role], number))
    image, persons = render_scene(rng, max_people)
    if persons:
        path = folder / name_pattern.format(number)
        written = cv2.imwrite(str(path), image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        if not written:
            raise HrnetppError(f"{path}: cannot be written; check the disk")
    return persons


def _render_until(
    folder: Path, name_pattern: str, role: str, seed: int, persons: int, mapper: Callable
) -> Iterator[tuple[int, list[LabelledPerson]]]:
    """Render pictures until exactly so many persons are labelled; yields (picture number, its persons)."""
    folder.mkdir(parents=True)
    render = partial(_render_jpeg, folder, name_pattern, role, seed)
    number = 0
    while persons:
        numbers = range(number + 1, number + 1 + min(64, persons))
        for number, found in zip(numbers, mapper(render, numbers), strict=True):  # noqa: B020
            if persons and len(found) > persons:
                found = render(number, persons)
            elif not persons:
                (folder / name_pattern.format(number)).unlink(missing_ok=True)
                continue
            if found:
                persons -= len(found)
                yield number, found


def _write_coco(root: Path, split: str, persons: int, seed: int, mapper: Callable) -> None:
    """COCO pictures and person_keypoints json; for val, a detector's boxes too."""
    images, annotations = [], []
    folder = root / f"{split}2017"
    for number, found in _render_until(folder, "{:012d}.jpg", f"coco_{split}", seed, persons, mapper):
        height, width = cv2.imread(str(folder / f"{number:012d}.jpg")).shape[:2]
        images.append({"id": number, "file_name": f"{number:012d}.jpg", "height": height, "width": width})
        for person in found:
            keypoints = person.keypoints[COCO17.name]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "iscrowd": 0,
                    "bbox": person.bbox_xywh.tolist(),
                    "area": person.area,
                    "segmentation": [],
                    "num_keypoints": int((keypoints[:, 2] > 0).sum()),
                    "keypoints": np.round(keypoints, 2).ravel().tolist(),
                }
            )
    skeleton = [[a + 1, b + 1] for a, b in COCO17.limbs]
    category = {"id": 1, "name": "person", "supercategory": "person", "skeleton": skeleton}
    content = {
        "info": {"description": "synthetic people", "version": str(VERSION), "year": 2026},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [category | {"keypoints": list(COCO17.names)}],
    }
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"person_keypoints_{split}2017.json").write_text(json.dumps(content))
    if split == "val":
        rng = np.random.default_rng((seed, len(_ROLES)))
        (root / "person_detection_results").mkdir()
        path = root / "person_detection_results" / DETECTIONS_NAME
        path.write_text(json.dumps(simulate_detector(images, annotations, rng)))


def simulate_detector(images: list[dict], annotations: list[dict], rng: np.random.Generator) -> list[dict]:
    """Boxes as a person detector would give them: shaken, scored, some twice, some missed, some made up.

    Args:
        images: COCO images.
        annotations: COCO annotations of persons.
        rng: Decides everything.

    Returns:
        COCO box results, per image best first.
    """
    detections = []
    for image in images:
        size = np.array([image["width"], image["height"]], float)
        found = []
        for annotation in (a for a in annotations if a["image_id"] == image["id"]):
            if rng.random() < 0.02:
                continue
            truth = np.array(annotation["bbox"])
            for factor in [1.0] + [0.4] * (rng.random() < 0.1):
                box = _shake(truth, 0.045 if factor == 1 else 0.1, size, rng)
                score = factor * (0.2 + 0.8 * _iou(box, truth) ** 1.5) + rng.normal(0, 0.05)
                found.append((box, score))
        for _ in range(rng.poisson(0.3)):
            w, h = rng.uniform(0.08, 0.4, 2) * size
            x, y = rng.uniform(0, size[0] - w), rng.uniform(0, size[1] - h)
            found.append((np.array([x, y, w, h]), rng.beta(1.2, 6)))
        for box, score in sorted(found, key=lambda entry: -entry[1]):
            detections.append(
                {
                    "image_id": image["id"],
                    "category_id": 1,
                    "bbox": np.round(box, 2).tolist(),
                    "score": round(float(np.clip(score, 0.01, 0.999)), 4),
                }
            )
    return detections


def _shake(box: np.ndarray, amount: float, image_size: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An xywh box whose four sides have moved by normal shares of its size, inside the image."""
    moved = np.concatenate([box[:2], box[:2] + box[2:]]) + rng.normal(0, amount, 4) * np.tile(box[2:], 2)
    low = np.clip(moved[:2], 0, image_size - 2)
    high = np.clip(moved[2:], low + 2, image_size)
    return np.concatenate([low, high - low])


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two xywh boxes."""
    sides = np.clip(np.minimum(a[:2] + a[2:], b[:2] + b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    return float(sides.prod() / (a[2:].prod() + b[2:].prod() - sides.prod()))


def _write_ai_challenger(root: Path, split: str, persons: int, seed: int, mapper: Callable) -> None:
    """AI Challenger pictures and json in the original format: v 1 visible, 2 hidden, 3 not labelled."""
    picture_day, json_day = ("20170902", "20170909") if split == "train" else ("20170911", "20170911")
    folder = root / f"ai_challenger_keypoint_{split}_{picture_day}"
    pictures = folder / f"keypoint_{split}_images_{picture_day}"
    records = []
    for number, found in _render_until(
        pictures, "{:040x}.jpg", f"ai_challenger_{split}", seed, persons, mapper
    ):
        boxes, poses = {}, {}
        for i, person in enumerate(found, start=1):
            x, y, w, h = person.bbox_xywh
            keypoints = np.round(person.keypoints[AIC14.name]).astype(int)
            keypoints[:, 2] = 3 - keypoints[:, 2]
            boxes[f"human{i}"] = [int(x), int(y), int(x + w), int(y + h)]
            poses[f"human{i}"] = keypoints.ravel().tolist()
        records.append(
            {
                "image_id": f"{number:040x}",
                "url": "synthetic",
                "human_annotations": boxes,
                "keypoint_annotations": poses,
            }
        )
    (folder / f"keypoint_{split}_annotations_{json_day}.json").write_text(json.dumps(records))
