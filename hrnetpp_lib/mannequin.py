"""One synthetic person: a pose in space, its keypoints, and how its parts are painted.

Body frame: (left, up, forward) of the person, in statures, hips at the origin. Camera frame: (x to the
right, y up, d towards the viewer). A person who faces the camera has its left at larger image x.
"""

from dataclasses import dataclass

import cv2
import numpy as np

PARTS = (
    *("torso", "head", "left_upper_arm", "left_forearm", "right_upper_arm", "right_forearm"),
    *("left_thigh", "left_shin", "right_thigh", "right_shin", "left_foot", "right_foot"),
)
_SKIN = np.array([[255, 219, 190], [236, 188, 150], [198, 140, 100], [141, 91, 60], [96, 60, 42]], float)
_HAIR = np.array([[30, 24, 22], [78, 52, 34], [150, 104, 56], [208, 176, 110], [120, 120, 122]], float)


@dataclass(frozen=True)
class Person:
    """A posed and dressed person.

    Attributes:
        joints: Name -> (3,) camera frame in statures, for every keypoint of both sets and the limb ends.
        head_rotation: (3, 3), head frame (left, up, forward) -> camera frame.
        colours: Part -> (3,) RGB in [0, 255].
        hair: (3,) RGB.
        skin: (3,) RGB.
        front: (3,) RGB of the shirt's front.
        facing: Share of the chest's normal that points at the viewer, -1..1.
        stripes: Stripes on the shirt, 0 for none.
        girth: Factor on all thicknesses.
    """

    joints: dict[str, np.ndarray]
    head_rotation: np.ndarray
    colours: dict[str, np.ndarray]
    hair: np.ndarray
    skin: np.ndarray
    facing: float
    front: np.ndarray
    stripes: int
    girth: float


def _rotation(axis: int, angle: float) -> np.ndarray:
    """Right-handed rotation about one of the axes."""
    c, s = np.cos(angle), np.sin(angle)
    matrix = np.eye(3)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix[[i, i, j, j], [i, j, i, j]] = c, -s, s, c
    return matrix


def _limb(side: int, forward: float, sideways: float) -> np.ndarray:
    """Unit vector of a limb that hangs down, swung forward and then sideways, away from the body."""
    return np.array(
        [side * np.sin(sideways), -np.cos(sideways) * np.cos(forward), np.cos(sideways) * np.sin(forward)]
    )


def _sample_limb_angles(rng: np.random.Generator) -> tuple[dict[str, float], float, float]:
    """Angles of arms and legs, forward lean and sideways roll of one of five kinds of pose."""
    kind = rng.choice(["standing", "walking", "arms", "crouching", "lying"], p=[0.28, 0.27, 0.22, 0.15, 0.08])
    angles: dict[str, float] = {}
    stride = rng.uniform(0.25, 0.75) * rng.choice([-1, 1])
    for side, sign in (("left", 1), ("right", -1)):
        swing = sign * stride if kind == "walking" else rng.normal(0, 0.1)
        raised = kind == "arms" and rng.random() < 0.75
        angles[f"{side}_arm_forward"] = rng.normal(0, 0.25) - swing * 0.8
        angles[f"{side}_arm_sideways"] = rng.uniform(0.9, 2.7) if raised else abs(rng.normal(0.22, 0.2))
        angles[f"{side}_elbow"] = abs(rng.normal(0.35, 0.5)) if rng.random() < 0.7 else rng.uniform(0.8, 2.0)
        angles[f"{side}_elbow_inward"] = rng.normal(0.0, 0.35)
        angles[f"{side}_leg_forward"] = swing
        angles[f"{side}_leg_sideways"] = abs(rng.normal(0.08, 0.1)) + (0.15 if kind == "arms" else 0)
        angles[f"{side}_knee"] = abs(rng.normal(0.1, 0.15)) + max(0.0, -swing) * 0.8
        if kind == "crouching":
            angles[f"{side}_leg_forward"] = rng.uniform(0.8, 1.6)
            angles[f"{side}_leg_sideways"] = rng.uniform(0.1, 0.5)
            angles[f"{side}_knee"] = rng.uniform(1.0, 1.9)
    lean = abs(rng.normal(0.05, 0.1)) + (rng.uniform(0.1, 0.5) if kind == "crouching" else 0)
    roll = rng.normal(0, 0.12) + (rng.choice([-1, 1]) * rng.uniform(0.8, 1.6) if kind == "lying" else 0)
    return angles, lean, roll


def sample_person(rng: np.random.Generator) -> Person:
    """Draw pose, view and clothes.

    Six views in ten are from the front, two from behind, two from the side; each within 35 degrees.
    """
    angles, lean, roll = _sample_limb_angles(rng)
    yaw = rng.choice([0.0, np.pi, np.pi / 2, -np.pi / 2], p=[0.6, 0.2, 0.1, 0.1]) + rng.uniform(-0.6, 0.6)
    torso_rotation = _rotation(0, lean)
    camera = _rotation(2, roll) @ _rotation(1, yaw)
    head_rotation = (
        camera @ torso_rotation @ _rotation(1, rng.normal(0, 0.3)) @ _rotation(0, rng.normal(0, 0.15))
    )
    body = {"pelvis": np.zeros(3), "neck": torso_rotation @ [0, 0.3, 0]}
    # The front of the shirt, just proud of the chest: it tells front from back where no face is in sight.
    body |= {"collar": torso_rotation @ [0, 0.27, 0.05], "navel": torso_rotation @ [0, 0.03, 0.06]}
    head = torso_rotation @ [0, 0.395, 0.012]
    for side, sign in (("left", 1), ("right", -1)):
        body[f"{side}_shoulder"] = torso_rotation @ [sign * 0.105, 0.275, 0]
        body[f"{side}_hip"] = np.array([sign * 0.058, 0.0, 0])
        forward, sideways = angles[f"{side}_arm_forward"], angles[f"{side}_arm_sideways"]
        body[f"{side}_elbow"] = body[f"{side}_shoulder"] + 0.16 * _limb(sign, forward, sideways)
        lower = _limb(
            sign, forward + angles[f"{side}_elbow"], sideways * 0.8 + angles[f"{side}_elbow_inward"]
        )
        body[f"{side}_wrist"] = body[f"{side}_elbow"] + 0.145 * lower
        body[f"{side}_hand"] = body[f"{side}_wrist"] + 0.045 * lower
        forward, sideways = angles[f"{side}_leg_forward"], angles[f"{side}_leg_sideways"]
        body[f"{side}_knee"] = body[f"{side}_hip"] + 0.235 * _limb(sign, forward, sideways)
        shin = _limb(sign, forward - angles[f"{side}_knee"], sideways * 0.5)
        body[f"{side}_ankle"] = body[f"{side}_knee"] + 0.23 * shin
        toe = np.cross([1.0, 0.0, 0.0], shin) + 0.15 * shin  # forward, square to the shin
        body[f"{side}_toe"] = body[f"{side}_ankle"] + 0.035 * shin + 0.075 * toe
    joints = {name: camera @ point for name, point in body.items()}
    joints["head"] = camera @ head
    face = {"nose": (0, -0.009, 0.074), "head_top": (0, 0.098, -0.006)}
    for side, sign in (("left", 1), ("right", -1)):
        face |= {f"{side}_eye": (sign * 0.029, 0.014, 0.06), f"{side}_ear": (sign * 0.066, 0.0, -0.002)}
    joints |= {name: joints["head"] + head_rotation @ offset for name, offset in face.items()}
    facing = float((camera @ torso_rotation)[2, 2])
    colours, hair, skin, *rest = _dress(rng)
    return Person(joints, head_rotation, colours, hair, skin, facing, *rest)


def _dress(rng: np.random.Generator) -> tuple:
    """Colours of all parts, hair, skin, the shirt's front, stripes and girth."""

    def cloth() -> np.ndarray:
        hsv = np.array([[[rng.integers(180), rng.integers(20, 230), rng.integers(50, 245)]]], np.uint8)
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0].astype(float)

    skin = _SKIN[rng.integers(len(_SKIN))] * rng.uniform(0.93, 1.0)
    shirt, trousers, shoe = cloth(), cloth(), cloth() * 0.6
    long_sleeves, long_trousers = rng.random() < 0.5, rng.random() < 0.65
    colours = {"torso": shirt, "head": skin}
    for side in ("left", "right"):
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
SHOWN_ON = {
    "shoulder": ("torso", "upper_arm"),
    "elbow": ("upper_arm", "forearm"),
    "wrist": ("forearm",),
    "hip": ("torso", "thigh"),
    "knee": ("thigh", "shin"),
    "ankle": ("shin", "foot"),
}


def shown_on(name: str) -> set[str]:
    """Own parts on which a keypoint of either set is in sight."""
    side, _, joint = name.partition("_")
    if joint in SHOWN_ON:
        return {part if part == "torso" else f"{side}_{part}" for part in SHOWN_ON[joint]}
    return {"head", "torso"} if name == "neck" else {"head"}
