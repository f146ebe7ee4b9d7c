"""One synthetic person: a pose in space, its keypoints, and how its parts are painted.

Body frame: (left, up, forward) of the person, in statures, hips at the origin. Camera frame: (x to the
right, y up, d towards the viewer). A person who faces the camera has its left at larger image x.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np

_SIDES = {"left": 1, "right": -1}  # sign of the body frame's first axis
# Part -> the two joints it runs between, its radii there and how far it is lifted towards the viewer, in
# statures; arms lie over the torso unless they are clearly behind it.
_LIMBS = {
    "upper_arm": ("shoulder", "elbow", (0.033, 0.026), 0.015),
    "forearm": ("elbow", "hand", (0.026, 0.019), 0.025),
    "thigh": ("hip", "knee", (0.052, 0.037), -0.03),
    "shin": ("knee", "ankle", (0.037, 0.023), -0.02),
    "foot": ("ankle", "toe", (0.024, 0.02), -0.01),
}
PARTS = ("torso", "head", *(f"{side}_{limb}" for side in _SIDES for limb in _LIMBS))
_SKIN = np.array([[255, 219, 190], [236, 188, 150], [198, 140, 100], [141, 91, 60], [96, 60, 42]], float)
_HAIR = np.array([[30, 24, 22], [78, 52, 34], [150, 104, 56], [208, 176, 110], [120, 120, 122]], float)


@dataclass(frozen=True)
class Person:
    """A posed and dressed person; colours are (3,) RGB in [0, 255]."""

    joints: dict[str, np.ndarray]  # (3,) camera frame in statures: keypoints of both sets, ends of limbs
    head_rotation: np.ndarray  # (3, 3), head frame (left, up, forward) -> camera frame
    facing: float  # share of the chest's normal that points at the viewer, -1..1
    colours: dict[str, np.ndarray]  # of the parts
    hair: np.ndarray
    skin: np.ndarray
    front: np.ndarray  # of the shirt
    stripes: int  # on the shirt, 0 for none
    girth: float  # factor on all thicknesses


def _rotation(axis: int, angle: float) -> np.ndarray:
    """Right-handed rotation about one of the axes."""
    matrix = np.eye(3)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
    return matrix


def _limb(side: int, forward: float, sideways: float) -> np.ndarray:
    """Unit vector of a limb that hangs down, swung forward and then sideways, away from the body."""
    down = np.cos(sideways)
    return np.array([side * np.sin(sideways), -down * np.cos(forward), down * np.sin(forward)])


def _sample_limb_angles(rng: np.random.Generator) -> tuple[dict[str, dict[str, float]], float, float]:
    """Side -> angles of its arm and leg, forward lean and sideways roll of one of five kinds of pose."""
    kind = rng.choice(["standing", "walking", "arms", "crouching", "lying"], p=[0.28, 0.27, 0.22, 0.15, 0.08])
    angles: dict[str, dict[str, float]] = {}
    stride = rng.uniform(0.25, 0.75) * rng.choice([-1, 1])
    for side, sign in _SIDES.items():
        swing = sign * stride if kind == "walking" else rng.normal(0, 0.1)
        raised = kind == "arms" and rng.random() < 0.75
        angles[side] = {
            "arm_forward": rng.normal(0, 0.25) - swing * 0.8,
            "arm_sideways": rng.uniform(0.9, 2.7) if raised else abs(rng.normal(0.22, 0.2)),
            "elbow": abs(rng.normal(0.35, 0.5)) if rng.random() < 0.7 else rng.uniform(0.8, 2.0),
            "elbow_inward": rng.normal(0.0, 0.35),
            "leg_forward": swing,
            "leg_sideways": abs(rng.normal(0.08, 0.1)) + (0.15 if kind == "arms" else 0),
            "knee": abs(rng.normal(0.1, 0.15)) + max(0.0, -swing) * 0.8,
        }
        if kind == "crouching":
            legs = {"leg_forward": (0.8, 1.6), "leg_sideways": (0.1, 0.5), "knee": (1.0, 1.9)}
            angles[side] |= {name: rng.uniform(*bounds) for name, bounds in legs.items()}
    lean = abs(rng.normal(0.05, 0.1)) + (rng.uniform(0.1, 0.5) if kind == "crouching" else 0)
    roll = rng.normal(0, 0.12) + (rng.choice([-1, 1]) * rng.uniform(0.8, 1.6) if kind == "lying" else 0)
    return angles, lean, roll


def sample_person(rng: np.random.Generator) -> Person:
    """Draw pose, clothes and view: six in ten from the front, two from behind, two from the side."""
    angles, lean, roll = _sample_limb_angles(rng)
    yaw = rng.choice([0.0, np.pi, np.pi / 2, -np.pi / 2], p=[0.6, 0.2, 0.1, 0.1]) + rng.uniform(-0.6, 0.6)
    torso, camera = _rotation(0, lean), _rotation(2, roll) @ _rotation(1, yaw)
    head_rotation = camera @ torso @ _rotation(1, rng.normal(0, 0.3)) @ _rotation(0, rng.normal(0, 0.15))
    body = {"pelvis": np.zeros(3), "neck": torso @ [0, 0.3, 0], "head": torso @ [0, 0.395, 0.012]}
    # The front of the shirt, just proud of the chest: it tells front from back where no face is in sight.
    body |= {"collar": torso @ [0, 0.27, 0.05], "navel": torso @ [0, 0.03, 0.06]}
    for side, sign in _SIDES.items():
        angle = angles[side]
        body[f"{side}_shoulder"] = torso @ [sign * 0.105, 0.275, 0]
        body[f"{side}_hip"] = np.array([sign * 0.058, 0.0, 0])
        forward, sideways = angle["arm_forward"], angle["arm_sideways"]
        body[f"{side}_elbow"] = body[f"{side}_shoulder"] + 0.16 * _limb(sign, forward, sideways)
        lower = _limb(sign, forward + angle["elbow"], sideways * 0.8 + angle["elbow_inward"])
        body[f"{side}_wrist"] = body[f"{side}_elbow"] + 0.145 * lower
        body[f"{side}_hand"] = body[f"{side}_wrist"] + 0.045 * lower
        forward, sideways = angle["leg_forward"], angle["leg_sideways"]
        body[f"{side}_knee"] = body[f"{side}_hip"] + 0.235 * _limb(sign, forward, sideways)
        shin = _limb(sign, forward - angle["knee"], sideways * 0.5)
        body[f"{side}_ankle"] = body[f"{side}_knee"] + 0.23 * shin
        toe = np.cross([1.0, 0.0, 0.0], shin) + 0.15 * shin  # forward, square to the shin
        body[f"{side}_toe"] = body[f"{side}_ankle"] + 0.035 * shin + 0.075 * toe
    joints = {name: camera @ point for name, point in body.items()}
    face = {"nose": (0, -0.009, 0.074), "head_top": (0, 0.098, -0.006)}
    for side, sign in _SIDES.items():
        face |= {f"{side}_eye": (sign * 0.029, 0.014, 0.06), f"{side}_ear": (sign * 0.066, 0.0, -0.002)}
    joints |= {name: joints["head"] + head_rotation @ offset for name, offset in face.items()}
    return Person(joints, head_rotation, float((camera @ torso)[2, 2]), *_dress(rng))


def random_colour(rng: np.random.Generator, saturations: tuple, values: tuple) -> np.ndarray:
    """(3,) RGB in [0, 255] of any hue; saturation and value lie in half-open ranges of 0..255."""
    hsv = np.array([[[rng.integers(180), rng.integers(*saturations), rng.integers(*values)]]], np.uint8)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0].astype(float)


def _dress(rng: np.random.Generator) -> tuple:
    """Person's last six fields: colours of all parts, hair, skin, the shirt's front, stripes and girth."""
    cloth = partial(random_colour, rng, (20, 230), (50, 245))
    skin = _SKIN[rng.integers(len(_SKIN))] * rng.uniform(0.93, 1.0)
    shirt, trousers, shoe = cloth(), cloth(), cloth() * 0.6
    long_sleeves, long_trousers = rng.random() < 0.5, rng.random() < 0.65
    colours = {"torso": shirt, "head": skin}
    for side in _SIDES:
        colours |= {
            f"{side}_upper_arm": shirt if long_sleeves or rng.random() < 0.9 else skin,
            f"{side}_forearm": shirt * 0.96 if long_sleeves else skin,
            f"{side}_thigh": trousers,
            f"{side}_shin": trousers * 0.96 if long_trousers else skin,
            f"{side}_foot": shoe,
        }
    stripes = int(rng.integers(4, 8)) if rng.random() < 0.25 else 0
    front = 255 - 0.8 * shirt if rng.random() < 0.5 else np.clip(shirt * 0.4 + 150, 0, 255)
    return colours, _HAIR[rng.integers(len(_HAIR))], skin, front, stripes, rng.uniform(1.0, 1.4)


def face_turned_away(person: Person, name: str) -> bool:
    """Whether an eye, an ear or the nose lies on the far side of the head."""
    if name not in ("nose", "left_eye", "right_eye", "left_ear", "right_ear"):
        return False
    offset = person.joints[name] - person.joints["head"]
    return offset[2] < (-0.3 if "ear" in name else 0.1) * np.linalg.norm(offset)


# Which own parts may cover a keypoint without hiding it.
_SHOWN_ON = {"shoulder": ("torso", "upper_arm"), "elbow": ("upper_arm", "forearm"), "wrist": ("forearm",)}
_SHOWN_ON |= {"hip": ("torso", "thigh"), "knee": ("thigh", "shin"), "ankle": ("shin", "foot")}


def shown_on(name: str) -> set[str]:
    """Own parts on which a keypoint of either set is in sight."""
    side, _, joint = name.partition("_")
    if joint in _SHOWN_ON:
        return {part if part == "torso" else f"{side}_{part}" for part in _SHOWN_ON[joint]}
    return {"head", "torso"} if name == "neck" else {"head"}


_TORSO_RADII = {"left_shoulder": 0.036, "right_shoulder": 0.036, "left_hip": 0.052, "right_hip": 0.052}


@dataclass
class Canvas:
    """A picture being painted and who owns each of its pixels."""

    image: np.ndarray  # (h, w, 3) float32 RGB in [0, 255]
    owner: np.ndarray  # (h, w) int32; 0 background, 100 * person + part + 1, or -1 for an object in front
    light: np.ndarray  # (2,) direction in the image plane that light comes from

    def blend(self, x0: int, y0: int, colour: np.ndarray, alpha: np.ndarray, owner: int) -> None:
        """Lay an (n, m, 3) patch over the picture with its corner at (x0, y0), cut off at the border.

        Pixels whose alpha, (n, m) in [0, 1], is above a half get the new owner.
        """
        height, width = self.owner.shape
        top, left = max(0, -y0), max(0, -x0)
        bottom, right = min(alpha.shape[0], height - y0), min(alpha.shape[1], width - x0)
        if bottom <= top or right <= left:
            return
        part = np.s_[y0 + top : y0 + bottom, x0 + left : x0 + right]
        a = alpha[top:bottom, left:right]
        self.image[part] += a[:, :, None] * (colour[top:bottom, left:right] - self.image[part])
        self.owner[part][a > 0.5] = owner


def paint_person(canvas: Canvas, person: Person, number: int, hips_xy: np.ndarray, stature_px: float) -> None:
    """Paint a person, far parts first, with its hips at (2,) image px; `number` marks its pixels."""
    points = {name: project(joint, hips_xy, stature_px) for name, joint in person.joints.items()}
    for part in sorted(PARTS, key=partial(_depth, person)):
        owner = 100 * number + PARTS.index(part) + 1
        paint_limb = partial(_paint_limb, canvas, owner, stature_px, girth=person.girth)
        if part == "torso":
            _paint_torso(canvas, person, points, stature_px, owner, paint_limb)
        elif part == "head":
            paint_limb(points["neck"], points["head"], (0.03, 0.03), person.skin)
            _paint_head(canvas, person, points, stature_px, owner, paint_limb)
        else:
            side, _, limb = part.partition("_")
            start, end, radii, _ = _LIMBS[limb]
            paint_limb(points[f"{side}_{start}"], points[f"{side}_{end}"], radii, person.colours[part])
            if limb == "forearm":
                paint_limb(points[f"{side}_wrist"], points[f"{side}_hand"], (0.02, 0.022), person.skin)


def project(joint: np.ndarray, hips_xy: np.ndarray, stature_px: float) -> np.ndarray:
    """(2,) image px of a (3,) point of the camera frame; no perspective."""
    return np.asarray(hips_xy) + stature_px * np.array([joint[0], -joint[1]])


def _depth(person: Person, part: str) -> float:
    """How near the viewer a part is, in statures."""
    if part == "torso":
        return 0.5 * person.joints["neck"][2]
    if part == "head":
        return person.joints["head"][2] + 0.02
    side, _, limb = part.partition("_")
    start, end, _, lift = _LIMBS[limb]
    return 0.35 * person.joints[f"{side}_{start}"][2] + 0.65 * person.joints[f"{side}_{end}"][2] + lift


def _shade(across: np.ndarray, axis: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Brightness of a round body along an axis from its middle (0) to its edges (-1, 1)."""
    height = np.sqrt(np.clip(1 - across**2, 0, 1))
    return 0.55 + 0.38 * height + 0.22 * across * float(light[1] * axis[0] - light[0] * axis[1])


def _paint_limb(canvas: Canvas, owner: int, stature_px: float, start, end, radii, colour, girth) -> None:
    """A tapered capsule, shaded across."""
    r0, r1 = (max(radius * stature_px * girth, 1.0) for radius in radii)
    reach = max(r0, r1) + 1.5
    x0, y0 = np.floor(np.minimum(start, end) - reach).astype(int)
    x1, y1 = np.ceil(np.maximum(start, end) + reach).astype(int)
    axis = end - start
    length = max(float(np.hypot(*axis)), 1e-3)
    along_axis = axis / length
    dx = np.arange(x0, x1 + 1, dtype=np.float32)[None, :] - np.float32(start[0])
    dy = np.arange(y0, y1 + 1, dtype=np.float32)[:, None] - np.float32(start[1])
    along = np.clip((dx * along_axis[0] + dy * along_axis[1]) / length, 0, 1)
    distance = np.hypot(dx - along * axis[0], dy - along * axis[1])
    radius = r0 + (r1 - r0) * along
    across = np.clip((dy * along_axis[0] - dx * along_axis[1]) / radius, -1, 1)
    shade = _shade(across, along_axis, canvas.light)
    canvas.blend(x0, y0, shade[:, :, None] * colour, np.clip(radius - distance + 0.5, 0, 1), owner)


def _paint_torso(canvas: Canvas, person, points, stature_px: float, owner: int, paint_limb: Callable) -> None:
    """The hull of shoulders and hips, shaded across, with stripes."""
    circle = np.stack([np.cos(t := np.linspace(0, 2 * np.pi, 12, endpoint=False)), np.sin(t)], axis=1)
    outline = np.concatenate(
        [points[name] + radius * stature_px * person.girth * circle for name, radius in _TORSO_RADII.items()]
    )
    x0, y0 = np.floor(outline.min(axis=0) - 2).astype(int)
    width, height = np.ceil(outline.max(axis=0) + 2).astype(int) - (x0, y0) + 1
    if x0 + width <= 0 or y0 + height <= 0 or x0 >= canvas.owner.shape[1] or y0 >= canvas.owner.shape[0]:
        return
    hull = cv2.convexHull(((outline - (x0, y0)) * 16).round().astype(np.int32))
    mask = np.zeros((height, width), np.uint8)
    cv2.fillConvexPoly(mask, hull, 255, cv2.LINE_AA, shift=4)
    top = 0.5 * (points["left_shoulder"] + points["right_shoulder"])
    axis = points["pelvis"] - top
    length = max(float(np.hypot(*axis)), 1e-3)
    axis = axis / length
    dx = np.arange(width)[None, :] + x0 - top[0]
    dy = np.arange(height)[:, None] + y0 - top[1]
    along, sideways = (dx * axis[0] + dy * axis[1]) / length, dy * axis[0] - dx * axis[1]
    half = np.abs(sideways[mask > 0]).max() + 1.0 if mask.any() else 1.0
    shade = _shade(np.clip(sideways / half, -1, 1), axis, canvas.light)
    if person.stripes:
        shade = shade * np.where(np.sin(along * person.stripes * 2 * np.pi) > 0, 1.0, 0.62)
    canvas.blend(x0, y0, shade[:, :, None] * person.colours["torso"], mask / 255.0, owner)
    if person.facing > 0.2:
        paint_limb(points["collar"], points["navel"], (0.024 * person.facing,) * 2, person.front)
        paint_limb(points["neck"], points["collar"], (0.03, 0.01), person.skin)


def _paint_head(canvas: Canvas, person, points, stature_px: float, owner: int, paint_limb: Callable) -> None:
    """An ellipsoid whose hair and face turn with the head."""
    radii = np.array([0.067, 0.088]) * stature_px * (0.75 + 0.22 * person.girth)  # half width and height
    reach = int(radii.max() * 1.35) + 2
    centre = points["head"]
    x0, y0 = np.floor(centre - reach).astype(int)
    for ear in ("left_ear", "right_ear"):
        if person.joints[ear][2] > person.joints["head"][2] - 0.03:
            paint_limb(points[ear], points[ear] + [0, 0.5], (0.019, 0.019), person.skin * 0.9, girth=1.0)
    grid = np.arange(2 * reach + 1)
    dx, dy = (x0 + grid - centre[0])[None, :], -(y0 + grid - centre[1])[:, None]
    up = person.head_rotation[:2, 1] / max(np.hypot(*person.head_rotation[:2, 1]), 1e-3)
    u, v = (dx * up[1] - dy * up[0]) / radii[0], (dx * up[0] + dy * up[1]) / radii[1]
    squared = u**2 + v**2
    w = np.sqrt(np.clip(1 - squared, 0, 1))
    # On the unit sphere, from the upright image frame back to camera axes and on into the head's frame.
    surface = np.stack([u * up[1] + v * up[0], -u * up[0] + v * up[1], w], axis=-1) @ person.head_rotation
    left, top, front = surface[..., 0], surface[..., 1], surface[..., 2]
    colour = np.broadcast_to(person.skin, (*left.shape, 3)).copy()
    cheek = np.exp(-((np.abs(left) - 0.5) ** 2 + (top + 0.3) ** 2) / 0.03) * (front > 0)
    colour -= cheek[..., None] * np.array([0, 22, 22])
    lips = (front > 0.3) & (np.abs(top + 0.48) < 0.07) & (np.abs(left) < 0.28)
    colour[lips] = person.skin * [0.62, 0.35, 0.35]
    colour[(front > 0.5) & (np.abs(left) < 0.1) & (np.abs(top + 0.1) < 0.16)] = person.skin * 0.8
    eye = np.hypot((np.abs(left) - 0.4) / 1.25, top - 0.15)
    colour[(front > 0.1) & (eye < 0.17)] = (245, 245, 245)
    colour[(front > 0.1) & (eye < 0.1)] = (28, 26, 30)
    hair = (top > 0.48) | (front < -0.12) & (top > -0.55) | (np.abs(left) > 0.75) & (top > 0.15)
    colour[hair] = person.hair
    shade = 0.62 + 0.36 * w + 0.12 * (u * canvas.light[0] - v * canvas.light[1])
    edge = np.clip((1 - np.sqrt(squared)) * radii.min() + 0.5, 0, 1)
    canvas.blend(x0, y0, shade[..., None] * colour, edge, owner)
