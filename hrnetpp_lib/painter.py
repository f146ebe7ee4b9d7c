"""Painting a mannequin: shaded limbs, a torso, and a head with hair and face, far parts first."""

from dataclasses import dataclass

import cv2
import numpy as np

from hrnetpp_lib.mannequin import PARTS, Person

# Part -> the two joints it runs between and its radii there, in statures.
_LIMBS = {
    "upper_arm": ("shoulder", "elbow", 0.033, 0.026),
    "forearm": ("elbow", "hand", 0.026, 0.019),
    "thigh": ("hip", "knee", 0.052, 0.037),
    "shin": ("knee", "ankle", 0.037, 0.023),
    "foot": ("ankle", "toe", 0.024, 0.02),
}
_TORSO_CIRCLES = (
    ("left_shoulder", 0.036),
    ("right_shoulder", 0.036),
    ("left_hip", 0.052),
    ("right_hip", 0.052),
)
_HEAD_RADII = np.array([0.067, 0.088])  # half width and half height, statures


@dataclass
class Canvas:
    """A picture being painted and who owns each of its pixels.

    Attributes:
        image: (h, w, 3) float32 RGB in [0, 255].
        owner: (h, w) int32; 0 background, 100 * person + part + 1, or -1 for an object in front.
        light: (2,) direction in the image plane that light comes from.
    """

    image: np.ndarray
    owner: np.ndarray
    light: np.ndarray

    def blend(self, x0: int, y0: int, colour: np.ndarray, alpha: np.ndarray, owner: int) -> None:
        """Lay a patch over the picture with its corner at (x0, y0), cut off at the border.

        Args:
            x0, y0: Corner in px, may be negative.
            colour: (n, m, 3).
            alpha: (n, m) in [0, 1].
            owner: New owner of the pixels with alpha above a half.
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
    """Paint a person, far parts first.

    Args:
        canvas: Painted on.
        person: Who.
        number: Marks the person's pixels in canvas.owner.
        hips_xy: (2,) image px of the person's hips.
        stature_px: Length of one stature in px.
    """
    points = {name: project(joint, hips_xy, stature_px) for name, joint in person.joints.items()}
    depth = {part: _depth(person, part) for part in PARTS}
    for part in sorted(PARTS, key=depth.get):
        owner = 100 * number + PARTS.index(part) + 1
        if part == "torso":
            _paint_torso(canvas, person, points, stature_px, owner)
        elif part == "head":
            _paint_limb(
                canvas,
                points["neck"],
                points["head"],
                (0.03, 0.03),
                person.skin,
                stature_px,
                owner,
                person.girth,
            )
            _paint_head(canvas, person, points, stature_px, owner)
        else:
            side, _, limb = part.partition("_")
            start, end, *radii = _LIMBS[limb]
            ends = points[f"{side}_{start}"], points[f"{side}_{end}"]
            _paint_limb(canvas, *ends, radii, person.colours[part], stature_px, owner, person.girth)
            if limb == "forearm":
                wrist, hand = points[f"{side}_wrist"], points[f"{side}_hand"]
                _paint_limb(canvas, wrist, hand, (0.02, 0.022), person.skin, stature_px, owner, person.girth)


def project(joint: np.ndarray, hips_xy: np.ndarray, stature_px: float) -> np.ndarray:
    """(2,) image px of a (3,) point of the camera frame; no perspective."""
    return np.asarray(hips_xy) + stature_px * np.array([joint[0], -joint[1]])


def _depth(person: Person, part: str) -> float:
    """How near the viewer a part is; arms lie over the torso unless they are clearly behind it."""
    if part == "torso":
        return 0.5 * person.joints["neck"][2]
    if part == "head":
        return person.joints["head"][2] + 0.02
    side, _, limb = part.partition("_")
    start, end, *_ = _LIMBS[limb]
    nearness = 0.35 * person.joints[f"{side}_{start}"][2] + 0.65 * person.joints[f"{side}_{end}"][2]
    return (
        nearness + {"upper_arm": 0.015, "forearm": 0.025, "thigh": -0.03, "shin": -0.02, "foot": -0.01}[limb]
    )


def _shade(across: np.ndarray, light_across: float) -> np.ndarray:
    """Brightness of a round body from its middle (0) to its edges (-1, 1)."""
    height = np.sqrt(np.clip(1 - across**2, 0, 1))
    return 0.55 + 0.38 * height + 0.22 * across * light_across


def _paint_limb(canvas, start, end, radii, colour, stature_px, owner, girth) -> None:
    """A tapered capsule, shaded across."""
    r0, r1 = (max(radius * stature_px * girth, 1.0) for radius in radii)
    reach = max(r0, r1) + 1.5
    x0, y0 = np.floor(np.minimum(start, end) - reach).astype(int)
    x1, y1 = np.ceil(np.maximum(start, end) + reach).astype(int)
    if x1 < 0 or y1 < 0 or x0 >= canvas.owner.shape[1] or y0 >= canvas.owner.shape[0]:
        return
    axis = end - start
    length = max(float(np.hypot(*axis)), 1e-3)
    along_axis = axis / length
    dx = np.arange(x0, x1 + 1, dtype=np.float32)[None, :] - np.float32(start[0])
    dy = np.arange(y0, y1 + 1, dtype=np.float32)[:, None] - np.float32(start[1])
    along = np.clip((dx * along_axis[0] + dy * along_axis[1]) / length, 0, 1)
    distance = np.hypot(dx - along * axis[0], dy - along * axis[1])
    radius = r0 + (r1 - r0) * along
    across = np.clip((dy * along_axis[0] - dx * along_axis[1]) / radius, -1, 1)
    light_across = float(canvas.light[1] * along_axis[0] - canvas.light[0] * along_axis[1])
    shade = _shade(across, light_across)
    canvas.blend(x0, y0, shade[:, :, None] * colour, np.clip(radius - distance + 0.5, 0, 1), owner)


def _paint_torso(canvas, person, points, stature_px, owner) -> None:
    """The hull of shoulders and hips, shaded across, with stripes."""
    circle = np.stack([np.cos(t := np.linspace(0, 2 * np.pi, 12, endpoint=False)), np.sin(t)], axis=1)
    outline = np.concatenate(
        [points[name] + radius * stature_px * person.girth * circle for name, radius in _TORSO_CIRCLES]
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
    shade = _shade(
        np.clip(sideways / half, -1, 1), float(canvas.light[1] * axis[0] - canvas.light[0] * axis[1])
    )
    if person.stripes:
        shade = shade * np.where(np.sin(along * person.stripes * 2 * np.pi) > 0, 1.0, 0.62)
    canvas.blend(x0, y0, shade[:, :, None] * person.colours["torso"], mask / 255.0, owner)
    if person.facing > 0.2:
        collar, navel = points["collar"], points["navel"]
        width = 0.024 * person.facing
        _paint_limb(canvas, collar, navel, (width, width), person.front, stature_px, owner, person.girth)
        _paint_limb(
            canvas, points["neck"], collar, (0.03, 0.01), person.skin, stature_px, owner, person.girth
        )


def _paint_head(canvas, person, points, stature_px, owner) -> None:
    """An ellipsoid whose hair and face turn with the head."""
    radii = _HEAD_RADII * stature_px * (0.75 + 0.22 * person.girth)
    reach = int(radii.max() * 1.35) + 2
    centre = points["head"]
    x0, y0 = np.floor(centre - reach).astype(int)
    if x0 + 2 * reach < 0 or y0 + 2 * reach < 0 or x0 >= canvas.owner.shape[1] or y0 >= canvas.owner.shape[0]:
        return
    for side in ("left", "right"):
        ear = points[f"{side}_ear"]
        if person.joints[f"{side}_ear"][2] > person.joints["head"][2] - 0.03:
            _paint_limb(
                canvas, ear, ear + [0, 0.5], (0.019, 0.019), person.skin * 0.9, stature_px, owner, 1.0
            )
    grid = np.arange(2 * reach + 1)
    dx, dy = (x0 + grid - centre[0])[None, :], -(y0 + grid - centre[1])[:, None]
    up = person.head_rotation[:2, 1]
    up = up / max(np.hypot(*up), 1e-3)
    u, v = (dx * up[1] - dy * up[0]) / radii[0], (dx * up[0] + dy * up[1]) / radii[1]
    squared = u**2 + v**2
    w = np.sqrt(np.clip(1 - squared, 0, 1))
    # On the unit sphere, from the upright image frame back to camera axes and on into the head's frame.
    surface = np.stack([u * up[1] + v * up[0], -u * up[0] + v * up[1], w], axis=-1) @ person.head_rotation
    left, top, front = surface[..., 0], surface[..., 1], surface[..., 2]
    colour = np.broadcast_to(person.skin, (*left.shape, 3)).copy()
    cheek = np.exp(-((np.abs(left) - 0.5) ** 2 + (top + 0.3) ** 2) / 0.03) * (front > 0)
    colour -= cheek[..., None] * np.array([0, 22, 22])
    colour[(front > 0.3) & (np.abs(top + 0.48) < 0.07) & (np.abs(left) < 0.28)] = person.skin * [
        0.62,
        0.35,
        0.35,
    ]
    colour[(front > 0.5) & (np.abs(left) < 0.1) & (np.abs(top + 0.1) < 0.16)] = person.skin * 0.8
    eye = np.hypot((np.abs(left) - 0.4) / 1.25, top - 0.15)
    colour[(front > 0.1) & (eye < 0.17)] = (245, 245, 245)
    colour[(front > 0.1) & (eye < 0.1)] = (28, 26, 30)
    hair = (top > 0.48) | (front < -0.12) & (top > -0.55) | (np.abs(left) > 0.75) & (top > 0.15)
    colour[hair] = person.hair
    shade = 0.62 + 0.36 * w + 0.12 * (u * canvas.light[0] - v * canvas.light[1])
    edge = np.clip((1 - np.sqrt(squared)) * radii.min() + 0.5, 0, 1)
    canvas.blend(x0, y0, shade[..., None] * colour, edge, owner)
