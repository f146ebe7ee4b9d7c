"""A synthetic picture: background, one to four people, objects in front, and everybody's keypoints."""

from dataclasses import dataclass

import cv2
import numpy as np

from hrnetpp_lib.keypoints import AIC14, COCO17, Skeleton
from hrnetpp_lib.mannequin import PARTS, Person, face_turned_away, sample_person, shown_on
from hrnetpp_lib.painter import Canvas, paint_person, project

_MIN_VISIBLE_PX = 150  # a person with fewer pixels in sight is not labelled and not counted


@dataclass(frozen=True)
class LabelledPerson:
    """What an annotator would write down.

    Attributes:
        keypoints: Skeleton name -> (K, 3) image px and COCO visibility; zeros where v is 0.
        bbox_xywh: (4,) around the pixels in sight, image px.
        area: Number of pixels in sight.
    """

    keypoints: dict[str, np.ndarray]
    bbox_xywh: np.ndarray
    area: float


def render_scene(rng: np.random.Generator, max_people: int = 4) -> tuple[np.ndarray, list[LabelledPerson]]:
    """Paint one picture.

    Args:
        rng: Decides everything.
        max_people: At most so many persons.

    Returns:
        image (h, w, 3) uint8 RGB, 320x240 or 240x320, and its persons, near ones last.
    """
    height, width = (240, 320) if rng.random() < 0.6 else (320, 240)
    angle = rng.uniform(0, 2 * np.pi)
    canvas = Canvas(
        _background(rng, height, width),
        np.zeros((height, width), np.int32),
        np.array([np.cos(angle), np.sin(angle)]),
    )
    count = min(max_people, int(rng.choice([1, 2, 3, 4], p=[0.45, 0.3, 0.17, 0.08])))
    placed = _place(rng, count, height, width)
    for number, (person, hips_xy, stature_px) in enumerate(placed):
        paint_person(canvas, person, number, hips_xy, stature_px)
    if rng.random() < 0.45:
        _paint_object(canvas, rng)
    labelled = [_label(canvas, number, *entry) for number, entry in enumerate(placed)]
    return _photograph(canvas.image, rng), [person for person in labelled if person is not None]


def _place(rng, count: int, height: int, width: int) -> list[tuple[Person, np.ndarray, float]]:
    """People with hips and stature, far (small) ones first; crowded placements are drawn again."""
    placed, boxes = [], []
    statures = np.sort(rng.uniform(85, 225, count)) if count > 1 else rng.uniform(110, 250, 1)
    for stature in statures:
        person = sample_person(rng)
        reach = np.array([project(joint, np.zeros(2), stature) for joint in person.joints.values()])
        low, high = reach.min(axis=0) - 0.05 * stature, reach.max(axis=0) + 0.05 * stature
        size = np.array([width, height])
        for _ in range(12):
            # The whole person fits if it can; up to a fifth of it may stick out.
            slack = 0.2 * (high - low) * (rng.random() < 0.35)
            first, last = -low - slack, size - high + slack
            middle = (first + last) / 2
            hips = np.where(
                last > first, rng.uniform(np.minimum(first, last), np.maximum(first, last)), middle
            )
            box = np.concatenate([hips + low, hips + high])
            if all(_overlap(box, other) < 0.3 for other in boxes):
                placed.append((person, hips, float(stature)))
                boxes.append(box)
                break
    return placed


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection of two xyxy boxes over the smaller one's area."""
    sides = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    return float(sides.prod() / min(np.prod(a[2:] - a[:2]), np.prod(b[2:] - b[:2])))


def _label(canvas: Canvas, number: int, person: Person, hips_xy, stature_px) -> LabelledPerson | None:
    """Keypoints, box and area of a painted person; None if next to nothing of it is in sight."""
    mine = (canvas.owner > 100 * number) & (canvas.owner <= 100 * number + len(PARTS))
    area = int(mine.sum())
    if area < _MIN_VISIBLE_PX:
        return None
    columns, rows = np.flatnonzero(mine.any(axis=0)), np.flatnonzero(mine.any(axis=1))
    box = np.array([columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1], float)
    keypoints = {
        skeleton.name: _keypoints(canvas, number, person, hips_xy, stature_px, skeleton)
        for skeleton in (COCO17, AIC14)
    }
    return LabelledPerson(keypoints, box, float(area))


def _keypoints(canvas: Canvas, number: int, person, hips_xy, stature_px, skeleton: Skeleton) -> np.ndarray:
    """(K, 3): v = 2 in sight, 1 hidden by something, 0 outside the picture or on the face's far side."""
    height, width = canvas.owner.shape
    keypoints = np.zeros((len(skeleton), 3))
    for k, name in enumerate(skeleton.names):
        x, y = project(person.joints[name], hips_xy, stature_px)
        if not (0 <= x <= width - 1 and 0 <= y <= height - 1) or face_turned_away(person, name):
            continue
        # The top of the head lies on its outline: look a little further in.
        inwards = project(person.joints["head"], hips_xy, stature_px) - (x, y) if name == "head_top" else 0
        column, row = np.round((x, y) + 0.2 * np.asarray(inwards)).astype(int)
        owner = canvas.owner[min(max(row, 0), height - 1), min(max(column, 0), width - 1)] - 1
        in_sight = owner // 100 == number and owner >= 0 and PARTS[owner % 100] in shown_on(name)
        keypoints[k] = x, y, 2 if in_sight else 1
    return keypoints


def _background(rng, height: int, width: int) -> np.ndarray:
    """(height, width, 3) float32: wall or sky over a floor, texture, and a few flat shapes."""

    def muted() -> np.ndarray:
        hsv = np.array([[[rng.integers(180), rng.integers(5, 110), rng.integers(60, 240)]]], np.uint8)
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0].astype(np.float32)

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
    kind = rng.choice(["post", "bench", "crate"])
    w = {"post": rng.uniform(0.025, 0.06), "bench": rng.uniform(0.3, 0.6), "crate": rng.uniform(0.1, 0.22)}[
        kind
    ]
    h = {"post": rng.uniform(0.6, 1.0), "bench": rng.uniform(0.06, 0.12), "crate": rng.uniform(0.12, 0.22)}[
        kind
    ]
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
