"""A dataset of synthetic people, written as real files in the original formats of COCO and AI Challenger."""

import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from hrnetpp_lib.data import mannequin
from hrnetpp_lib.data.mannequin import PARTS, Canvas, Person, project, random_colour
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.files import read_json, whole_folder, write_json
from hrnetpp_lib.pose.keypoints import AIC14, COCO17, Skeleton
from hrnetpp_lib.recipe import SYNTHETIC_BOXES

_VERSION = 1  # raise it whenever the same seed gives other files
_ROLES = ("coco_train", "coco_val", "ai_challenger_train", "ai_challenger_validation")  # order seeds them


@dataclass(frozen=True)
class LabelledPerson:
    """What an annotator would write down."""

    keypoints: dict[str, np.ndarray]  # skeleton name -> (K, 3) image px and COCO visibility; 0 where v is 0
    bbox_xywh: np.ndarray  # (4,) around the pixels in sight, image px
    area: float  # number of pixels in sight


def render_scene(rng: np.random.Generator, max_people: int = 4) -> tuple[np.ndarray, list[LabelledPerson]]:
    """Paint one picture: (h, w, 3) uint8 RGB, 320x240 or 240x320, and its persons, near ones last."""
    height, width = (240, 320) if rng.random() < 0.6 else (320, 240)
    angle = rng.uniform(0, 2 * np.pi)
    light, owner = np.array([np.cos(angle), np.sin(angle)]), np.zeros((height, width), np.int32)
    canvas = Canvas(_background(rng, height, width), owner, light)
    count = min(max_people, int(rng.choice([1, 2, 3, 4], p=[0.45, 0.3, 0.17, 0.08])))
    placed = _place(rng, count, height, width)
    for number, (person, hips_xy, stature_px) in enumerate(placed):
        mannequin.paint_person(canvas, person, number, hips_xy, stature_px)
    if rng.random() < 0.45:
        _paint_object(canvas, rng)
    labelled = [_label(canvas, number, *entry) for number, entry in enumerate(placed)]
    return _photograph(canvas.image, rng), [person for person in labelled if person is not None]


def _place(rng, count: int, height: int, width: int) -> list[tuple[Person, np.ndarray, float]]:
    """People with hips and stature, far (small) ones first; crowded placements are drawn again."""
    placed, boxes = [], []
    statures = np.sort(rng.uniform(85, 225, count)) if count > 1 else rng.uniform(110, 250, 1)
    for stature in statures:
        person = mannequin.sample_person(rng)
        reach = np.array([project(joint, np.zeros(2), stature) for joint in person.joints.values()])
        low, high = reach.min(axis=0) - 0.05 * stature, reach.max(axis=0) + 0.05 * stature
        for _ in range(12):
            # The whole person fits if it can; up to a fifth of it may stick out.
            slack = 0.2 * (high - low) * (rng.random() < 0.35)
            first, last = -low - slack, (width, height) - high + slack
            drawn = rng.uniform(np.minimum(first, last), np.maximum(first, last))
            hips = np.where(last > first, drawn, (first + last) / 2)
            box = np.concatenate([hips + low, high - low])
            if all(_intersection(box, b) < 0.3 * min(box[2:].prod(), b[2:].prod()) for b in boxes):
                placed.append((person, hips, float(stature)))
                boxes.append(box)
                break
    return placed


def _intersection(a: np.ndarray, b: np.ndarray) -> float:
    """Area that two xywh boxes share."""
    sides = np.minimum(a[:2] + a[2:], b[:2] + b[2:]) - np.maximum(a[:2], b[:2])
    return float(np.clip(sides, 0, None).prod())


def _label(canvas: Canvas, number: int, person: Person, hips_xy, stature_px) -> LabelledPerson | None:
    """Keypoints, box and area of a painted person; None if next to nothing of it is in sight."""
    mine = (canvas.owner > 100 * number) & (canvas.owner <= 100 * number + len(PARTS))
    if (area := int(mine.sum())) < 150:  # px: too few to be labelled and counted
        return None
    box = np.array(cv2.boundingRect(mine.astype(np.uint8)), float)
    annotate = partial(_keypoints, canvas, number, person, hips_xy, stature_px)
    return LabelledPerson({one.name: annotate(one) for one in (COCO17, AIC14)}, box, float(area))


def _keypoints(canvas: Canvas, number: int, person, hips_xy, stature_px, skeleton: Skeleton) -> np.ndarray:
    """(K, 3): v = 2 in sight, 1 hidden by something, 0 outside the picture or on the face's far side."""
    height, width = canvas.owner.shape
    keypoints = np.zeros((len(skeleton), 3))
    for k, name in enumerate(skeleton.names):
        x, y = project(person.joints[name], hips_xy, stature_px)
        if not (0 <= x <= width - 1 and 0 <= y <= height - 1) or mannequin.face_turned_away(person, name):
            continue
        # The top of the head lies on its outline: look a little further in.
        inwards = project(person.joints["head"], hips_xy, stature_px) - (x, y) if name == "head_top" else 0
        column, row = np.round((x, y) + 0.2 * np.asarray(inwards)).astype(int)
        owner = canvas.owner[min(max(row, 0), height - 1), min(max(column, 0), width - 1)] - 1
        in_sight = owner // 100 == number and owner >= 0 and PARTS[owner % 100] in mannequin.shown_on(name)
        keypoints[k] = x, y, 2 if in_sight else 1
    return keypoints


def _background(rng, height: int, width: int) -> np.ndarray:
    """(height, width, 3) float32: wall or sky over a floor, texture, and a few flat shapes."""

    def muted() -> np.ndarray:
        return random_colour(rng, (5, 110), (60, 240)).astype(np.float32)

    horizon = int(height * rng.uniform(0.45, 0.85))
    ramp = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    image = np.repeat(muted() * (1 - 0.35 * ramp) + muted() * 0.25 * ramp, width, axis=1)
    image[horizon:] = muted() * (0.7 + 0.3 * ramp[horizon:])
    for _ in range(rng.integers(0, 6)):
        x, y = int(rng.uniform(0, width)), int(rng.uniform(0.1, 1) * height)
        w, h = int(rng.uniform(0.05, 0.3) * width), int(rng.uniform(0.08, 0.5) * height)
        colour = tuple(float(c) for c in muted())
        if rng.random() < 0.6:
            cv2.rectangle(image, (x, y - h), (x + w, y), colour, -1, cv2.LINE_AA)
        else:
            cv2.ellipse(image, (x, y), (w, h // 2), rng.uniform(0, 90), 0, 360, colour, -1, cv2.LINE_AA)
    coarse = rng.normal(0, rng.uniform(2, 12), (height // 16, width // 16, 1)).astype(np.float32)
    image += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)[:, :, None]
    return image.clip(0, 255)


def _paint_object(canvas: Canvas, rng) -> None:
    """A post, a bench or a crate in front of everybody; it hides what is behind it."""
    height, width = canvas.owner.shape
    kind = int(rng.choice(3))  # a post, a bench, a crate
    # One draw for every kind: the pictures of a seed stay what they are.
    w = rng.uniform((0.025, 0.3, 0.1), (0.06, 0.6, 0.22))[kind]
    h = rng.uniform((0.6, 0.06, 0.12), (1.0, 0.12, 0.22))[kind]
    w, h = max(int(w * width), 4), max(int(h * height), 4)
    x, y = int(rng.uniform(-0.1, 0.9) * width), height - h - int(rng.uniform(0, 0.3) * height)
    shade = 0.75 + 0.35 * np.sin(np.linspace(0.2, 2.8, w))[None, :, None]
    colour = shade * rng.uniform(40, 220, 3) * np.ones((h, 1, 1))
    canvas.blend(x, y, colour, np.ones((h, w)), -1)


def _photograph(image: np.ndarray, rng) -> np.ndarray:
    """Exposure, tint, a little blur and noise; uint8."""
    gain = rng.uniform(0.75, 1.15) * rng.uniform(0.94, 1.06, 3)
    image = (image * gain).astype(np.float32)
    if rng.random() < 0.4:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 0.9))
    noise = rng.standard_normal(image.shape, np.float32) * rng.uniform(0.5, 5.0)
    return (image + noise).clip(0, 255).astype(np.uint8)


@dataclass(frozen=True)
class _Synthetic:
    """What a folder holds: manifest.json, written last, vouches for every file by its size in bytes."""

    version: int
    seed: int
    persons: dict[str, int]
    files: dict[str, int] = field(default_factory=dict, repr=False)


def write_dataset(root: Path, places: Callable, *persons: int, seed: int = 0, processes: int = 1) -> None:
    """Render and label a whole dataset into `root`, or find it written; cut or missing files are made again.

    `places` gives the json and image folder of each set below a folder. Persons are those of COCO train, of
    AI Challenger (a tenth of them for its validation) and of COCO val, which also gets a detector's boxes.
    The same numbers and seed give the same bytes; several programs may ask for the same folder at once.
    Raises: HrnetppError if root holds something else or cannot be written, or a number is not positive.
    """
    coco_train, ai_challenger, coco_val = persons
    held = max(ai_challenger // 10, 1)
    counts = dict(zip(_ROLES, (coco_train, coco_val, ai_challenger - held, held), strict=True))
    if min(counts.values()) < 1:
        raise HrnetppError(f"synthetic data: each set needs a person at least, asked for {counts}")
    if processes < 1:
        raise HrnetppError(f"synthetic data: {processes} processes cannot render; give 1 or more")
    asked = _Synthetic(_VERSION, seed, counts)
    with whole_folder(root, partial(_is_whole, asked=asked)) as part:
        if part is not None:
            print(f"rendering {sum(counts.values())} synthetic people into {root} ...", flush=True)
            _write_sets(places(part), counts, seed, processes)
            sizes = {f.relative_to(part).as_posix(): f.stat().st_size for f in part.rglob("*") if f.is_file()}
            write_json(part / "manifest.json", replace(asked, files=sizes))


def _is_whole(root: Path, asked: _Synthetic) -> bool:
    """Whether a folder has all that its manifest lists; one of other version, seed or counts is refused."""
    if not os.path.exists(root):
        return False
    remedy = "delete the folder to have its data rendered"
    found = read_json(root / "manifest.json", _Synthetic, f"no synthetic data; {remedy}")
    if replace(found, files={}) != asked:
        raise HrnetppError(f"{root}: holds {found}, not the synthetic data asked for ({asked}); {remedy}")
    sizes = {name: os.path.getsize(root / name) for name in found.files if os.path.isfile(root / name)}
    return bool(sizes) and sizes == found.files  # older manifests list nothing


def _write_sets(places: dict, counts: dict[str, int], seed: int, processes: int) -> None:
    """All four sets, rendered by so many processes; COCO val gets a detector's boxes too."""
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _start_worker) as pool:
        mapper = map if processes == 1 else partial(pool.map, chunksize=4)
        for role, persons in counts.items():
            json_path, folder = places[role]
            folder.mkdir(parents=True)
            json_path.parent.mkdir(exist_ok=True)
            coco = role.startswith("coco")
            name_pattern, label = ("{:012d}.jpg", _label_coco) if coco else ("{:040x}.jpg", _label_challenger)
            render = partial(_render_jpeg, folder, name_pattern, (seed, _ROLES.index(role)))
            content = label(_render_until(persons, render, mapper))
            json_path.write_text(json.dumps(content))
            if role == "coco_val":
                boxes = json_path.parents[1] / "person_detection_results" / SYNTHETIC_BOXES
                boxes.parent.mkdir()
                rng = np.random.default_rng((seed, len(_ROLES)))
                boxes.write_text(json.dumps(_simulate_detector(content, rng)))


def _start_worker() -> None:
    """One thread; and an end when the parent ends, even if it was killed and cannot tell."""
    cv2.setNumThreads(1)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _render_jpeg(
    folder: Path, name_pattern: str, seed: tuple[int, int], number: int, max_people: int = 4
) -> tuple[Path, tuple[int, int], list[LabelledPerson]]:
    """Render picture `number` of a set, write it unless empty; its file, (height, width) and persons."""
    image, persons = render_scene(np.random.default_rng((*seed, number)), max_people)
    path = folder / name_pattern.format(number)
    if persons:
        # Not cv2.imwrite, which may call a file written that a full disk has cut.
        jpeg = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1]
        path.write_bytes(jpeg)
    return path, image.shape[:2], persons


def _render_until(persons: int, render: Callable, mapper: Callable) -> Iterator[tuple]:
    """Pictures as of `_render_jpeg`, numbered, until exactly so many persons are labelled."""
    start = 1
    while persons:
        numbers = range(start, start + min(64, persons))
        start = numbers.stop
        for number, (path, size, found) in zip(numbers, mapper(render, numbers), strict=True):
            if not persons:
                path.unlink(missing_ok=True)
                continue
            if len(found) > persons:
                path, size, found = render(number, persons)
            if found:
                persons -= len(found)
                yield number, path, size, found


def _label_coco(pictures: Iterable[tuple]) -> dict:
    """Content of a person_keypoints json."""
    images, annotations = [], []
    for number, path, (height, width), found in pictures:
        images.append({"id": number, "file_name": path.name, "height": height, "width": width})
        for person in found:
            keypoints = person.keypoints[COCO17.name]
            identity = {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "iscrowd": 0}
            region = {"bbox": person.bbox_xywh.tolist(), "area": person.area, "segmentation": []}
            labelled = {"num_keypoints": int((keypoints[:, 2] > 0).sum())}
            labelled["keypoints"] = np.round(keypoints, 2).ravel().tolist()
            annotations.append(identity | region | labelled)
    skeleton = [[a + 1, b + 1] for a, b in COCO17.limbs]
    category = {"id": 1, "name": "person", "supercategory": "person", "skeleton": skeleton}
    info = {"description": "synthetic people", "version": str(_VERSION), "year": 2026}
    content = {"info": info, "licenses": [], "images": images, "annotations": annotations}
    return content | {"categories": [category | {"keypoints": list(COCO17.names)}]}


def _label_challenger(pictures: Iterable[tuple]) -> list[dict]:
    """Content of AI Challenger's json in the original format: v 1 visible, 2 hidden, 3 not labelled."""
    records = []
    for _, path, _, found in pictures:
        boxes, poses = {}, {}
        for i, person in enumerate(found, start=1):
            x, y, w, h = person.bbox_xywh
            keypoints = np.round(person.keypoints[AIC14.name]).astype(int)
            keypoints[:, 2] = 3 - keypoints[:, 2]
            boxes[f"human{i}"] = [int(x), int(y), int(x + w), int(y + h)]
            poses[f"human{i}"] = keypoints.ravel().tolist()
        labels = {"human_annotations": boxes, "keypoint_annotations": poses}
        records.append({"image_id": path.stem, "url": "synthetic"} | labels)
    return records


def _simulate_detector(content: dict, rng: np.random.Generator) -> list[dict]:
    """COCO box results, per image best first: shaken, scored, some twice, some missed, some made up."""
    detections = []
    for image in content["images"]:
        size = np.array([image["width"], image["height"]], float)
        found = []
        for annotation in (a for a in content["annotations"] if a["image_id"] == image["id"]):
            if rng.random() < 0.02:
                continue
            truth = np.array(annotation["bbox"])
            for factor in [1.0] + [0.4] * (rng.random() < 0.1):
                box = _shake(truth, 0.045 if factor == 1 else 0.1, size, rng)
                shared = _intersection(box, truth)
                iou = shared / (box[2:].prod() + truth[2:].prod() - shared)
                found.append((box, factor * (0.2 + 0.8 * iou**1.5) + rng.normal(0, 0.05)))
        for _ in range(rng.poisson(0.3)):
            w, h = rng.uniform(0.08, 0.4, 2) * size
            x, y = rng.uniform(0, size[0] - w), rng.uniform(0, size[1] - h)
            found.append((np.array([x, y, w, h]), rng.beta(1.2, 6)))
        for box, score in sorted(found, key=lambda entry: -entry[1]):
            likely = round(float(np.clip(score, 0.01, 0.999)), 4)
            result = {"image_id": image["id"], "category_id": 1, "bbox": np.round(box, 2).tolist()}
            detections.append(result | {"score": likely})
    return detections


def _shake(box: np.ndarray, amount: float, image_size: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An xywh box whose four sides have moved by normal shares of its size, inside the image."""
    moved = np.concatenate([box[:2], box[:2] + box[2:]]) + rng.normal(0, amount, 4) * np.tile(box[2:], 2)
    low = np.clip(moved[:2], 0, image_size - 2)
    high = np.clip(moved[2:], low + 2, image_size)
    return np.concatenate([low, high - low])
