"""Synthetic people: sides, visibility, what is painted where, and that the seed decides everything."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrnetpp_lib.pose.keypoints import AIC14, COCO17
from hrnetpp_lib.data.mannequin import PARTS, face_turned_away, sample_person, shown_on
from hrnetpp_lib.data.mannequin import Canvas, paint_person, project
from hrnetpp_lib.data.synthetic import _keypoints, _label, _place, render_scene

HEIGHT, WIDTH = 240, 200
HIPS = np.array([100.0, 120.0])
STATURE = 170.0
PAIRS = [(f"left_{joint}", f"right_{joint}") for joint in ("shoulder", "hip")]


def empty_canvas() -> Canvas:
    grey = np.full((HEIGHT, WIDTH, 3), 128, np.float32)
    return Canvas(grey, np.zeros((HEIGHT, WIDTH), np.int32), np.array([1.0, 0.0]))


def people(wanted, count: int = 12) -> list:
    """The first sampled persons of whom `wanted` is true."""
    found = (sample_person(np.random.default_rng(seed)) for seed in range(3000))
    return [person for person, _ in zip(filter(wanted, found), range(count), strict=False)]


def upright(person) -> bool:
    return person.joints["neck"][1] > 0.25


def from_the_front(person) -> bool:
    return upright(person) and person.facing > 0.85


def from_behind(person) -> bool:
    return upright(person) and person.facing < -0.85


# ------------------------------------------------------------------------------------------ mannequin


def test_facing_persons_have_their_left_at_larger_x():
    chosen = people(from_the_front)
    assert len(chosen) == 12
    for person in chosen:
        for left, right in PAIRS:
            assert person.joints[left][0] > person.joints[right][0] + 0.05


def test_persons_seen_from_behind_have_their_left_at_smaller_x():
    chosen = people(from_behind)
    assert len(chosen) == 12
    for person in chosen:
        for left, right in PAIRS:
            assert person.joints[left][0] < person.joints[right][0] - 0.05


def test_the_face_looks_where_the_chest_does():
    for person in people(from_the_front):
        assert not face_turned_away(person, "nose")
        assert person.joints["left_eye"][0] > person.joints["right_eye"][0]
    for person in people(from_behind):
        assert face_turned_away(person, "nose")
        assert not face_turned_away(person, "left_shoulder")


def test_front_views_are_the_most_common():
    facing = np.array([sample_person(np.random.default_rng(seed)).facing for seed in range(600)])
    assert 0.5 < (facing > 0.5).mean() < 0.8
    assert 0.1 < (facing < -0.5).mean() < 0.35


@given(st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_bones_keep_their_length_in_every_pose(seed):
    joints = sample_person(np.random.default_rng(seed)).joints
    bones = {
        ("shoulder", "elbow"): 0.16,
        ("elbow", "wrist"): 0.145,
        ("hip", "knee"): 0.235,
        ("knee", "ankle"): 0.23,
    }
    for side in ("left", "right"):
        for (start, end), length in bones.items():
            found = np.linalg.norm(joints[f"{side}_{end}"] - joints[f"{side}_{start}"])
            assert found == pytest.approx(length, abs=1e-9)
    assert np.linalg.norm(joints["left_shoulder"] - joints["right_shoulder"]) == pytest.approx(0.21)
    assert np.linalg.norm(joints["left_hip"] - joints["right_hip"]) == pytest.approx(0.116)


def test_every_keypoint_of_both_sets_has_a_joint_and_parts_to_be_seen_on():
    joints = sample_person(np.random.default_rng(0)).joints
    for name in {*COCO17.names, *AIC14.names}:
        assert name in joints
        assert shown_on(name) and shown_on(name) <= set(PARTS)
    assert shown_on("left_wrist") == {"left_forearm"}
    assert shown_on("right_hip") == {"torso", "right_thigh"}
    assert shown_on("neck") == {"head", "torso"}
    assert shown_on("head_top") == shown_on("left_ear") == {"head"}


def test_colours_are_rgb():
    for seed in range(30):
        person = sample_person(np.random.default_rng(seed))
        assert set(person.colours) == set(PARTS)
        for colour in (*person.colours.values(), person.skin, person.hair, person.front):
            assert np.shape(colour) == (3,)
            assert np.min(colour) >= 0 and np.max(colour) <= 255


def test_the_same_seed_gives_the_same_person():
    first, second, other = (sample_person(np.random.default_rng(seed)) for seed in (7, 7, 8))
    for name, joint in first.joints.items():
        np.testing.assert_array_equal(joint, second.joints[name])
    assert any(not np.array_equal(joint, other.joints[name]) for name, joint in first.joints.items())


# ------------------------------------------------------------------------------------------- painter


def test_projection_turns_up_into_smaller_y():
    np.testing.assert_allclose(project(np.array([0.5, 0.25, 9.0]), np.array([10.0, 20.0]), 100), [60, -5])


def test_a_blended_patch_is_cut_off_at_the_border():
    canvas = empty_canvas()
    red = np.broadcast_to([200.0, 0.0, 0.0], (4, 6, 3))
    canvas.blend(-2, HEIGHT - 1, red, np.full((4, 6), 0.75), owner=5)
    np.testing.assert_allclose(canvas.image[HEIGHT - 1, :4], np.broadcast_to([182, 32, 32], (4, 3)))
    assert (canvas.image[: HEIGHT - 1] == 128).all() and (canvas.image[:, 4:] == 128).all()
    assert canvas.owner.sum() == 4 * 5
    canvas.blend(3, 3, red, np.full((4, 6), 0.5), owner=6)
    assert not (canvas.owner == 6).any()  # half transparent: still what is behind it
    for corner in ((WIDTH, 0), (-6, 0), (0, HEIGHT), (0, -4)):
        canvas.blend(*corner, red, np.ones((4, 6)), owner=7)
    assert not (canvas.owner == 7).any()


def test_only_the_persons_pixels_are_painted():
    canvas = empty_canvas()
    paint_person(canvas, people(from_the_front)[0], 2, HIPS, STATURE)
    owners = np.unique(canvas.owner)
    assert owners[0] == 0 and owners[1] > 200 and owners[-1] <= 200 + len(PARTS)
    assert len(owners) > 8
    untouched = (canvas.image == 128).all(axis=2)
    assert untouched[canvas.owner == 0].mean() > 0.97  # but for soft edges
    assert not untouched[canvas.owner > 0].all()
    assert canvas.image.min() >= 0


def test_the_shirts_front_shows_from_the_front_only():
    for wanted, shown in ((from_the_front, True), (from_behind, False)):
        for person in people(wanted, 6):
            # All red but for a green front.
            red = np.array([180.0, 60.0, 60.0])
            colours, front = dict.fromkeys(PARTS, red), np.array([0.0, 255.0, 0.0])
            person = replace(person, colours=colours, skin=red, hair=red, front=front, stripes=0)
            canvas = empty_canvas()
            paint_person(canvas, person, 0, HIPS, STATURE)
            green = canvas.image[..., 1] - canvas.image[..., [0, 2]].max(axis=2) > 90
            torso = canvas.owner == PARTS.index("torso") + 1
            assert ((green & torso).sum() > 20) == shown


def test_a_person_outside_the_picture_leaves_it_alone():
    for hips in ((-900.0, 100.0), (900.0, 100.0), (100.0, -900.0), (100.0, 900.0)):
        canvas = empty_canvas()
        paint_person(canvas, sample_person(np.random.default_rng(3)), 0, np.array(hips), STATURE)
        assert (canvas.image == 128).all() and not canvas.owner.any()


# --------------------------------------------------------------------------------------------- scene


def labelled(person, number: int = 0, cover: tuple[slice, slice] | None = None, skeleton=COCO17):
    canvas = empty_canvas()
    paint_person(canvas, person, number, HIPS, STATURE)
    if cover:
        canvas.owner[cover] = -1
    return canvas, _keypoints(canvas, number, person, HIPS, STATURE, skeleton)


@pytest.mark.parametrize("skeleton", [COCO17, AIC14], ids=lambda s: s.name)
def test_visible_keypoints_lie_on_their_own_person(skeleton):
    seen = 0
    for person in people(lambda person: True, 25):
        canvas, keypoints = labelled(person, 1, skeleton=skeleton)
        for name, (x, y, v) in zip(skeleton.names, keypoints, strict=True):
            if v == 2 and name != "head_top":  # that one lies on the outline
                owner = canvas.owner[int(np.round(y)), int(np.round(x))]
                assert owner // 100 == 1
                assert PARTS[owner % 100 - 1] in shown_on(name)
                seen += 1
    assert seen > 200


def test_shoulders_and_hips_of_a_facing_person_are_visible():
    names = list(COCO17.names)
    hidden = 0
    for person in people(from_the_front):
        keypoints = labelled(person)[1]
        for left, right in PAIRS:
            assert keypoints[names.index(left), 0] > keypoints[names.index(right), 0]
            hidden += (keypoints[[names.index(left), names.index(right)], 2] == 1).sum()
    assert hidden < 10  # of 48; only an arm may lie in front


def test_what_an_object_covers_is_labelled_but_hidden():
    person = people(from_the_front)[0]
    free = labelled(person)[1]
    covered = labelled(person, cover=np.s_[int(HIPS[1]) - 5 :, :])[1]
    np.testing.assert_array_equal(free[:, :2], covered[:, :2])
    below = free[:, 1] > HIPS[1] - 4
    assert below.sum() >= 6
    assert (covered[below & (free[:, 2] > 0), 2] == 1).all()
    np.testing.assert_array_equal(
        covered[~below & (free[:, 1] < HIPS[1] - 6)], free[~below & (free[:, 1] < HIPS[1] - 6)]
    )


def test_what_another_person_covers_is_hidden():
    front = people(from_the_front)[0]
    canvas = empty_canvas()
    for number in (0, 1):
        paint_person(canvas, front, number, HIPS, STATURE)
    far = _keypoints(canvas, 0, front, HIPS, STATURE, COCO17)
    near = _keypoints(canvas, 1, front, HIPS, STATURE, COCO17)
    assert not (far[:, 2] == 2).any()
    assert (near[:, 2] == 2).sum() >= 10


def test_faces_turned_away_and_points_outside_are_not_labelled():
    names = list(COCO17.names)
    keypoints = labelled(people(from_behind)[0])[1]
    np.testing.assert_array_equal(keypoints[names.index("nose")], [0, 0, 0])
    person = people(from_the_front)[0]
    canvas = empty_canvas()
    low = np.array([100.0, HEIGHT - 20.0])
    paint_person(canvas, person, 0, low, STATURE)
    keypoints = _keypoints(canvas, 0, person, low, STATURE, COCO17)
    np.testing.assert_array_equal(
        keypoints[[names.index(f"{s}_ankle") for s in ("left", "right")]], np.zeros((2, 3))
    )
    assert keypoints[names.index("left_shoulder"), 2] > 0


def test_box_and_area_are_those_of_the_pixels_in_sight():
    canvas = empty_canvas()
    canvas.owner[30:50, 60:75] = 101 + PARTS.index("torso")
    person = _label(canvas, 1, people(from_the_front)[0], HIPS, STATURE)
    np.testing.assert_array_equal(person.bbox_xywh, [60, 30, 15, 20])
    assert person.area == 300
    assert set(person.keypoints) == {"coco17", "aic14"}
    assert _label(canvas, 0, people(from_the_front)[0], HIPS, STATURE) is None  # nothing of number 0


def test_both_skeletons_agree_on_the_keypoints_they_share():
    for person in people(from_the_front, 5):
        coco, challenger = labelled(person)[1], labelled(person, skeleton=AIC14)[1]
        for k, name in enumerate(AIC14.names[:12]):
            np.testing.assert_array_equal(challenger[k], coco[COCO17.names.index(name)])


@pytest.fixture(scope="module")
def scenes() -> list:
    return [render_scene(np.random.default_rng(seed)) for seed in range(40)]


def test_pictures_are_uint8_rgb_of_two_shapes(scenes):
    assert {image.shape for image, _ in scenes} == {(240, 320, 3), (320, 240, 3)}
    assert all(image.dtype == np.uint8 and image.std() > 5 for image, _ in scenes)


def test_labels_lie_inside_the_picture(scenes):
    for image, persons in scenes:
        size = np.array(image.shape[1::-1])
        for person in persons:
            low, high = person.bbox_xywh[:2], person.bbox_xywh[:2] + person.bbox_xywh[2:]
            assert (low >= 0).all() and (high <= size).all() and (person.bbox_xywh[2:] > 0).all()
            assert 150 <= person.area <= np.prod(person.bbox_xywh[2:])
            for keypoints in person.keypoints.values():
                assert set(np.unique(keypoints[:, 2])) <= {0, 1, 2}
                assert (keypoints[keypoints[:, 2] == 0] == 0).all()
                labelled_xy = keypoints[keypoints[:, 2] > 0, :2]
                assert (labelled_xy >= 0).all() and (labelled_xy <= size - 1).all()


def test_visible_keypoints_lie_in_the_box(scenes):
    for _, persons in scenes:
        for person in persons:
            visible = person.keypoints["coco17"][person.keypoints["coco17"][:, 2] == 2, :2]
            low, high = person.bbox_xywh[:2] - 1, person.bbox_xywh[:2] + person.bbox_xywh[2:]
            assert (visible >= low).all() and (visible <= high).all()


def test_one_to_four_people_and_all_three_visibilities_occur(scenes):
    counts = {len(persons) for _, persons in scenes}
    assert {1, 2, 3} <= counts and max(counts) <= 4
    flags = np.concatenate([p.keypoints["coco17"][:, 2] for _, persons in scenes for p in persons])
    assert (np.bincount(flags.astype(int), minlength=3) > 20).all()
    assert (flags == 2).mean() > 0.5


def test_max_people_is_obeyed():
    for seed in range(15):
        assert len(render_scene(np.random.default_rng(seed), max_people=1)[1]) <= 1


def test_the_same_seed_gives_the_same_scene(scenes):
    image, persons = render_scene(np.random.default_rng(11))
    np.testing.assert_array_equal(image, scenes[11][0])
    for again, before in zip(persons, scenes[11][1], strict=True):
        np.testing.assert_array_equal(again.bbox_xywh, before.bbox_xywh)
        np.testing.assert_array_equal(again.keypoints["coco17"], before.keypoints["coco17"])
    assert not np.array_equal(scenes[11][0][:240, :240], scenes[12][0][:240, :240])


def test_far_people_are_painted_first():
    for seed in range(20):
        statures = [entry[2] for entry in _place(np.random.default_rng(seed), 4, 240, 320)]
        assert statures == sorted(statures)
