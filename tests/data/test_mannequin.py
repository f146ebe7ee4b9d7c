"""Synthetic people: sides, bones, clothes, and what is painted where; the seed decides everything."""

from dataclasses import replace
from functools import partial
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrnetpp_lib.data import mannequin
from hrnetpp_lib.data.mannequin import PARTS, Canvas, paint_person, project, shown_on
from hrnetpp_lib.pose.keypoints import AIC14, COCO17

HEIGHT, WIDTH = 240, 200
HIPS = np.array([100.0, 120.0])
STATURE = 170.0
PAIRS = [(f"left_{joint}", f"right_{joint}") for joint in ("shoulder", "hip")]


def empty_canvas() -> Canvas:
    grey = np.full((HEIGHT, WIDTH, 3), 128, np.float32)
    return Canvas(grey, np.zeros((HEIGHT, WIDTH), np.int32), np.array([1.0, 0.0]))


def a_person(seed: int) -> mannequin.Person:
    return mannequin.sample_person(np.random.default_rng(seed))


def people(wanted, count: int = 12) -> list[mannequin.Person]:
    """The first sampled persons of whom `wanted` is true."""
    found = list(islice(filter(wanted, map(a_person, range(3000))), count))
    assert len(found) == count
    return found


def from_the_front(person, sign: int = 1) -> bool:
    return person.joints["neck"][1] > 0.25 and sign * person.facing > 0.85


from_behind = partial(from_the_front, sign=-1)


@pytest.mark.parametrize(("view", "sign"), [(from_the_front, 1), (from_behind, -1)])
def test_facing_persons_have_their_left_at_larger_x_and_a_face_where_the_chest_is(view, sign):
    for person in people(view):
        for left, right in PAIRS:
            assert sign * (person.joints[left][0] - person.joints[right][0]) > 0.05
        assert mannequin.face_turned_away(person, "nose") == (sign < 0)
        assert not mannequin.face_turned_away(person, "left_shoulder")
        assert sign * (person.joints["left_eye"][0] - person.joints["right_eye"][0]) > 0


def test_front_views_are_the_most_common():
    facing = np.array([a_person(seed).facing for seed in range(600)])
    assert 0.5 < (facing > 0.5).mean() < 0.8 and 0.1 < (facing < -0.5).mean() < 0.35


@given(st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_bones_keep_their_length_in_every_pose(seed):
    joints = a_person(seed).joints
    bones = {("left_shoulder", "right_shoulder"): 0.21, ("left_hip", "right_hip"): 0.116}
    for side in ("left", "right"):
        bones |= {(f"{side}_shoulder", f"{side}_elbow"): 0.16, (f"{side}_elbow", f"{side}_wrist"): 0.145}
        bones |= {(f"{side}_hip", f"{side}_knee"): 0.235, (f"{side}_knee", f"{side}_ankle"): 0.23}
    for (start, end), length in bones.items():
        assert np.linalg.norm(joints[end] - joints[start]) == pytest.approx(length, abs=1e-9)


def test_every_keypoint_of_both_sets_has_a_joint_and_parts_to_be_seen_on():
    joints = a_person(0).joints
    for name in {*COCO17.names, *AIC14.names}:
        assert name in joints and shown_on(name) and shown_on(name) <= set(PARTS)
    assert shown_on("left_wrist") == {"left_forearm"}
    assert shown_on("right_hip") == {"torso", "right_thigh"}
    assert shown_on("neck") == {"head", "torso"}
    assert shown_on("head_top") == shown_on("left_ear") == {"head"}


def test_colours_are_rgb():
    for seed in range(30):
        person = a_person(seed)
        assert set(person.colours) == set(PARTS)
        colours = np.array([*person.colours.values(), person.skin, person.hair, person.front])
        assert colours.shape == (len(PARTS) + 3, 3) and colours.min() >= 0 and colours.max() <= 255


def test_the_same_seed_gives_the_same_person():
    first, second, other = (np.array([*a_person(seed).joints.values()]) for seed in (7, 7, 8))
    assert np.array_equal(first, second) and not np.array_equal(first, other)


def test_projection_turns_up_into_smaller_y():
    assert project(np.array([0.5, 0.25, 9.0]), np.array([10.0, 20.0]), 100).tolist() == [60, -5]


def test_a_blended_patch_is_cut_off_at_the_border():
    canvas = empty_canvas()
    red = np.broadcast_to([200.0, 0.0, 0.0], (4, 6, 3))
    canvas.blend(-2, HEIGHT - 1, red, np.full((4, 6), 0.75), owner=5)
    np.testing.assert_allclose(canvas.image[HEIGHT - 1, :4], np.broadcast_to([182, 32, 32], (4, 3)))
    assert (canvas.image[: HEIGHT - 1] == 128).all() and (canvas.image[:, 4:] == 128).all()
    assert canvas.owner.sum() == 4 * 5
    canvas.blend(3, 3, red, np.full((4, 6), 0.5), owner=6)
    for corner in ((WIDTH, 0), (-6, 0), (0, HEIGHT), (0, -4)):
        canvas.blend(*corner, red, np.ones((4, 6)), owner=7)
    assert set(np.unique(canvas.owner)) == {0, 5}  # half transparent: still what is behind it


def test_only_the_persons_pixels_are_painted():
    canvas = empty_canvas()
    paint_person(canvas, people(from_the_front)[0], 2, HIPS, STATURE)
    owners = np.unique(canvas.owner)
    assert owners[0] == 0 and owners[1] > 200 and owners[-1] <= 200 + len(PARTS) and len(owners) > 8
    untouched = (canvas.image == 128).all(axis=2)
    assert untouched[canvas.owner == 0].mean() > 0.97  # but for soft edges
    assert not untouched[canvas.owner > 0].all() and canvas.image.min() >= 0


@pytest.mark.parametrize(("depth", "part"), [(0.3, "left_forearm"), (-0.3, "torso")])
def test_near_parts_cover_far_ones(depth, part):
    person, canvas = people(from_the_front)[0], empty_canvas()
    chest = (person.joints["neck"] + person.joints["pelvis"]) / 2
    moved = {f"left_{name}": chest + [0, 0, depth] for name in ("elbow", "wrist", "hand")}
    moved |= {f"right_{name}": np.array([-2.0, 0, 0]) for name in ("elbow", "wrist", "hand")}
    paint_person(canvas, replace(person, joints=person.joints | moved), 0, HIPS, STATURE)
    x, y = project(chest, HIPS, STATURE).round().astype(int)
    assert canvas.owner[y, x] == PARTS.index(part) + 1


@pytest.mark.parametrize(("view", "shown"), [(from_the_front, True), (from_behind, False)])
def test_the_shirts_front_shows_from_the_front_only(view, shown):
    red, green = np.array([180.0, 60.0, 60.0]), np.array([0.0, 255.0, 0.0])
    all_red = {"colours": dict.fromkeys(PARTS, red), "skin": red, "hair": red, "stripes": 0}
    for person in people(view, 6):
        canvas = empty_canvas()
        paint_person(canvas, replace(person, **all_red, front=green), 0, HIPS, STATURE)
        greenish = canvas.image[..., 1] - canvas.image[..., [0, 2]].max(axis=2) > 90
        assert ((greenish & (canvas.owner == PARTS.index("torso") + 1)).sum() > 20) == shown


def test_a_person_outside_the_picture_leaves_it_alone():
    for hips in ((-900.0, 100.0), (900.0, 100.0), (100.0, -900.0), (100.0, 900.0)):
        canvas = empty_canvas()
        paint_person(canvas, a_person(3), 0, np.array(hips), STATURE)
        assert (canvas.image == 128).all() and not canvas.owner.any()
