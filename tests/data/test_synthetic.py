"""Synthetic scenes and their labels; as files: the same bytes each time, original formats, never by half."""

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from test_mannequin import (
    HEIGHT,
    HIPS,
    PAIRS,
    STATURE,
    empty_canvas,
    from_behind,
    from_the_front,
    people,
)

from hrnetpp_lib.data.annotations import read_ai_challenger, read_coco, read_coco_detections
from hrnetpp_lib.data.images import read_image
from hrnetpp_lib.data.layout import DataPaths, prepare_data
from hrnetpp_lib.data.mannequin import PARTS, paint_person, shown_on
from hrnetpp_lib.data.synthetic import (
    _keypoints,
    _label,
    _place,
    _simulate_detector,
    render_scene,
    write_dataset,
)
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.pose.keypoints import AIC14, COCO17
from hrnetpp_lib.recipe import SMOKE, SYNTHETIC_BOXES

COUNTS = (11, 20, 7)  # COCO train, AI Challenger (2 of them for validation), COCO val
EXPECTED = {"coco_train": 11, "coco_val": 7, "ai_challenger_train": 18, "ai_challenger_validation": 2}
AIC_TRAIN = "ai_challenger/ai_challenger_keypoint_train_20170902"
AIC_VALIDATION = "ai_challenger/ai_challenger_keypoint_validation_20170911"


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def load(path: Path):
    return json.loads(path.read_text())


def places(folder: Path) -> dict[str, tuple[Path, Path]]:
    return DataPaths(folder).sets()


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "data"
    assert write_dataset(folder, places, *COUNTS, seed=3) == EXPECTED
    return folder


@pytest.fixture(scope="module")
def coco_val(root) -> dict:
    return load(root / "coco/annotations/person_keypoints_val2017.json")


@pytest.fixture(scope="module")
def detections(root) -> list[dict]:
    return load(root / "coco/person_detection_results" / SYNTHETIC_BOXES)


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


# -------------------------------------------------------------------------------------------- bytes


def test_two_runs_and_two_processes_write_the_same_bytes(root, tmp_path):
    first = digests(root)
    assert len(first) > 20
    write_dataset(tmp_path / "again", places, *COUNTS, seed=3)
    assert digests(tmp_path / "again") == first
    write_dataset(tmp_path / "two", places, *COUNTS, seed=3, processes=2)
    assert digests(tmp_path / "two") == first


def test_another_seed_gives_other_pictures(root, tmp_path):
    write_dataset(tmp_path / "other", places, 1, 2, 1, seed=4)
    name = "coco/train2017/000000000001.jpg"
    mine, others = digests(root), digests(tmp_path / "other")
    assert {name} <= set(mine) & set(others) and mine[name] != others[name]


def test_a_picture_is_its_scene_but_for_the_compression(root):
    image, _ = render_scene(np.random.default_rng((3, 0, 1)))  # seed, role, number
    read = read_image(root / "coco/train2017/000000000001.jpg").astype(int)
    assert np.abs(read - image).mean() < 5 < 9 < np.abs(read[..., ::-1] - image).mean()


def test_the_four_parts_share_no_picture(root):
    pictures = [digest for name, digest in digests(root).items() if name.endswith(".jpg")]
    assert len(pictures) == len(set(pictures))


def test_fewer_persons_are_the_first_of_more(root, tmp_path):
    write_dataset(tmp_path / "fewer", places, 4, 2, 1, seed=3)
    few = load(tmp_path / "fewer/coco/annotations/person_keypoints_train2017.json")["annotations"]
    many = load(root / "coco/annotations/person_keypoints_train2017.json")["annotations"]
    assert len(few) == 4
    assert few[:2] == many[:2]


# ------------------------------------------------------------------------------------------- folder


def test_nothing_half_written_is_left_and_the_manifest_lists_every_file(root):
    assert {path.name for path in root.parent.iterdir()} == {"data", ".data.lock"}
    manifest = load(root / "manifest.json")
    assert manifest["persons"] == EXPECTED
    files = {f.relative_to(root).as_posix(): f.stat().st_size for f in root.rglob("*") if f.is_file()}
    assert manifest["files"] == {name: n for name, n in files.items() if name != "manifest.json"}


def test_a_folder_written_before_is_found_and_not_touched(root, capsys):
    before = {path: path.stat().st_mtime_ns for path in root.parent.rglob("*")}
    assert write_dataset(root, places, *COUNTS, seed=3) == EXPECTED
    assert {path: path.stat().st_mtime_ns for path in root.parent.rglob("*")} == before
    assert capsys.readouterr().out == ""


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "data"
    write_dataset(folder, places, 3, 2, 1)
    return folder


def damaged_folders():
    train = "coco/annotations/person_keypoints_train2017.json"
    return {
        "a picture is missing": lambda root: (root / "coco/train2017/000000000001.jpg").unlink(),
        "a json is cut": lambda root: os.truncate(root / train, 100),
        "a folder is missing": lambda root: shutil.rmtree(root / "ai_challenger"),
        "the manifest lists nothing": lambda root: (root / "manifest.json").write_text(
            json.dumps(load(root / "manifest.json") | {"files": {}})
        ),
        # As two programs at once left it before there was a lock.
        "an older manifest over one file": lambda root: (
            [f.unlink() for f in root.rglob("*.jpg")],
            (root / "manifest.json").write_text(
                json.dumps({n: load(root / "manifest.json")[n] for n in ("version", "seed", "persons")})
            ),
        ),
    }


@pytest.mark.parametrize("damage", damaged_folders())
def test_what_is_missing_or_cut_is_made_again_and_the_rest_kept(whole, tmp_path, damage):
    root = tmp_path / "data"
    shutil.copytree(whole, root)
    (root / "notes.txt").write_text("mine")
    damaged_folders()[damage](root)
    write_dataset(root, places, 3, 2, 1)
    assert (root / "notes.txt").read_text() == "mine"
    (root / "notes.txt").unlink()
    assert digests(root) == digests(whole)


@pytest.mark.parametrize("arguments", [(12, 20, 7, 3), (11, 21, 7, 3), (11, 20, 8, 3), (11, 20, 7, 4)])
def test_a_folder_of_other_data_is_refused(root, arguments):
    *counts, seed = arguments
    with pytest.raises(HrnetppError, match="not the synthetic data asked for.*delete the folder") as caught:
        write_dataset(root, places, *counts, seed=seed)
    assert str(root) in str(caught.value)


@pytest.mark.parametrize("content", [None, "", "{", "[1]", '{"version": 1, "seed": 0, "persons": 7}'])
def test_a_folder_of_something_else_is_refused_and_kept(tmp_path, content):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "precious.txt").write_text("keep me")
    if content is not None:
        (folder / "manifest.json").write_text(content)
    with pytest.raises(HrnetppError, match="delete the folder"):
        write_dataset(folder, places, 1, 2, 1)
    assert (folder / "precious.txt").read_text() == "keep me"


WRITE = """
import sys, time
from pathlib import Path
from hrnetpp_lib.data.layout import DataPaths
from hrnetpp_lib.data.synthetic import write_dataset

if __name__ == "__main__":
    time.sleep(float(sys.argv[2]))
    persons = int(sys.argv[3]), 2, 1
    write_dataset(Path(sys.argv[1]), lambda folder: DataPaths(folder).sets(), *persons, processes=2)
"""


@pytest.fixture
def start_writing(tmp_path):
    """Starts a program that writes tmp_path/data after so many seconds."""
    (tmp_path / "write.py").write_text(WRITE)
    started = []

    def start(delay: float, persons: int) -> subprocess.Popen:
        command = [sys.executable, tmp_path / "write.py", tmp_path / "data", str(delay), str(persons)]
        started.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True))
        return started[-1]

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_programs_that_want_the_same_folder_at_once_all_find_it_whole(start_writing, whole, tmp_path):
    for round_ in range(2):
        programs = [start_writing(delay, 3) for delay in (0, 0.1 * round_, 0.3)]
        assert [(p.communicate(timeout=120)[1], p.returncode) for p in programs] == [("", 0)] * 3
        assert digests(tmp_path / "data") == digests(whole)
        shutil.rmtree(tmp_path / "data")


def test_a_killed_program_leaves_no_workers_and_nothing_that_is_taken_for_whole(
    start_writing, whole, tmp_path
):
    program = start_writing(0, 600)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".data.*.part/coco/train2017/*.jpg")):
        assert time.monotonic() < deadline and program.poll() is None
        time.sleep(0.02)
    program.kill()
    program.wait()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:  # until its workers have noticed
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, 0)
            time.sleep(0.02)
            continue
        break
    else:
        pytest.fail("workers outlive their program")
    assert not (tmp_path / "data").exists()
    write_dataset(tmp_path / "data", places, 3, 2, 1)
    assert digests(tmp_path / "data") == digests(whole)
    assert {path.name for path in tmp_path.iterdir()} == {"data", ".data.lock", "write.py"}


@pytest.mark.parametrize("counts", [(0, 2, 1), (1, 1, 1), (1, 2, 0), (1, 0, 1), (-3, 2, 1)])
def test_every_part_needs_a_person(tmp_path, counts):
    with pytest.raises(HrnetppError, match="each set needs a person"):
        write_dataset(tmp_path / "data", places, *counts)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("processes", [0, -1])
def test_without_a_process_nothing_is_rendered(tmp_path, processes):
    with pytest.raises(HrnetppError, match=f"{processes} processes cannot render"):
        write_dataset(tmp_path / "data", places, 1, 2, 1, processes=processes)
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------- COCO


@pytest.mark.parametrize(("split", "persons"), [("train", 11), ("val", 7)])
def test_coco_files(root, split, persons):
    content = load(root / f"coco/annotations/person_keypoints_{split}2017.json")
    folder = root / f"coco/{split}2017"
    assert len(content["annotations"]) == persons
    assert {image["file_name"] for image in content["images"]} == {path.name for path in folder.iterdir()}
    assert {image["id"] for image in content["images"]} == {a["image_id"] for a in content["annotations"]}
    assert content["categories"][0]["keypoints"] == list(COCO17.names)
    sizes = {}
    for image in content["images"]:
        assert image["file_name"] == f"{image['id']:012d}.jpg"
        sizes[image["id"]] = image["width"], image["height"]
        assert read_image(folder / image["file_name"]).shape == (image["height"], image["width"], 3)
    for annotation in content["annotations"]:
        width, height = sizes[annotation["image_id"]]
        x, y, w, h = annotation["bbox"]
        assert w > 0 and h > 0 and x >= 0 and y >= 0 and x + w <= width and y + h <= height
        keypoints = np.array(annotation["keypoints"]).reshape(17, 3)
        assert (keypoints[keypoints[:, 2] == 0] == 0).all()
        assert annotation["num_keypoints"] == (keypoints[:, 2] > 0).sum()
        assert (keypoints[:, :2] <= [width - 1, height - 1]).all()
        assert 0 < annotation["area"] <= w * h


def test_ids_are_unique(coco_val):
    ids = [annotation["id"] for annotation in coco_val["annotations"]]
    assert len(set(ids)) == len(ids) and min(ids) >= 1  # pycocotools takes id 0 for "no match"


def test_pycocotools_loads_ground_truth_and_detections(root, detections):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(root / "coco/annotations/person_keypoints_val2017.json"))
        found = coco.loadRes(str(root / "coco/person_detection_results" / SYNTHETIC_BOXES))
    assert len(coco.getAnnIds(catIds=[1])) == 7
    assert len(found.getAnnIds()) == len(detections) >= 5


def test_detections_have_coco_format(coco_val, detections):
    sizes = {image["id"]: (image["width"], image["height"]) for image in coco_val["images"]}
    for detection in detections:
        assert set(detection) == {"image_id", "category_id", "bbox", "score"}
        assert detection["category_id"] == 1 and 0 < detection["score"] < 1
        width, height = sizes[detection["image_id"]]
        x, y, w, h = detection["bbox"]
        assert w > 0 and h > 0 and x >= 0 and y >= 0
        assert x + w <= width + 0.01 and y + h <= height + 0.01  # rounded to hundredths


def test_detections_are_best_first_in_every_image(detections):
    for image_id in {detection["image_id"] for detection in detections}:
        scores = [d["score"] for d in detections if d["image_id"] == image_id]
        assert scores == sorted(scores, reverse=True)


def test_the_simulated_detector_shakes_misses_doubles_and_invents():
    images = [{"id": i, "width": 320, "height": 240} for i in range(400)]
    box = [100.0, 60.0, 80.0, 120.0]
    truths = [{"image_id": i, "bbox": box} for i in range(400)]
    found = _simulate_detector(images, truths, np.random.default_rng(0))
    per_image = [[d for d in found if d["image_id"] == i] for i in range(400)]
    boxes = np.array([d["bbox"] for d in found])
    near = np.abs(boxes - box).max(axis=1) < 60
    assert 2 <= sum(len(members) == 0 for members in per_image) < 20  # 2% missed, most made up for
    assert 400 < near.sum() < 480
    assert 60 < (~near).sum() < 200
    shift = boxes[near] - box
    assert abs(shift.mean()) < 2 and 2 < shift.std() < 12
    scores = np.array([d["score"] for d in found])
    assert scores[near].mean() > 0.6 > 0.35 > scores[~near].mean()
    again = _simulate_detector(images, truths, np.random.default_rng(0))
    assert again == found


def test_the_simulated_detector_is_good_but_not_perfect():
    rng = np.random.default_rng(5)
    images = [{"id": i, "width": 320, "height": 240} for i in range(1, 151)]
    truths = []
    for image in images:
        for x in rng.uniform([5, 165], [45, 205]):
            w, h = rng.uniform([40, 90], [95, 180])
            box = [x, rng.uniform(0, 240 - h), w, h]
            truths.append({"image_id": image["id"], "bbox": box, "area": 0.5 * w * h, "iscrowd": 0})
    truths = [truth | {"id": i, "category_id": 1} for i, truth in enumerate(truths, start=1)]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {"images": images, "annotations": truths, "categories": [{"id": 1, "name": "person"}]}
        coco.createIndex()
        result = coco.loadRes(_simulate_detector(images, truths, rng))
        evaluation = COCOeval(coco, result, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    ap, ap50 = evaluation.stats[:2]
    assert 0.6 < ap < 0.85
    assert 0.9 < ap50 < 0.995


# ------------------------------------------------------------------------------------ AI Challenger


@pytest.mark.parametrize(
    ("folder", "split", "days", "persons"),
    [
        (AIC_TRAIN, "train", ("20170902", "20170909"), 18),
        (AIC_VALIDATION, "validation", ("20170911",) * 2, 2),
    ],
)
def test_ai_challenger_files(root, folder, split, days, persons):
    pictures = root / folder / f"keypoint_{split}_images_{days[0]}"
    records = load(root / folder / f"keypoint_{split}_annotations_{days[1]}.json")
    assert sum(len(record["keypoint_annotations"]) for record in records) == persons
    assert {record["image_id"] for record in records} == {path.stem for path in pictures.iterdir()}
    for record in records:
        assert len(record["image_id"]) == 40
        height, width = read_image(pictures / f"{record['image_id']}.jpg").shape[:2]
        assert set(record["human_annotations"]) == set(record["keypoint_annotations"])
        for x1, y1, x2, y2 in record["human_annotations"].values():
            assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
        for numbers in record["keypoint_annotations"].values():
            keypoints = np.array(numbers).reshape(14, 3)
            assert keypoints.dtype.kind == "i"
            assert set(keypoints[:, 2]) <= {1, 2, 3}
            assert (keypoints[keypoints[:, 2] == 3, :2] == 0).all()


def test_ai_challengers_visibility_one_is_the_common_case(root):
    records = load(root / AIC_TRAIN / "keypoint_train_annotations_20170909.json")
    flags = [v for r in records for numbers in r["keypoint_annotations"].values() for v in numbers[2::3]]
    assert np.mean(np.array(flags) == 1) > 0.5


# --------------------------------------------------------------------------------------------- all


def test_every_picture_decodes_to_more_than_one_grey(root):
    pictures = list(root.rglob("*.jpg"))
    assert len(pictures) > 15
    for path in pictures:
        assert cv2.imread(str(path)).std() > 3, path


def test_our_readers_read_all_of_it(root):
    paths = DataPaths(root)
    train = read_coco(paths.coco_json("train"), paths.coco_images("train"))
    truth = read_coco(paths.coco_json("val"), paths.coco_images("val"))
    assert (len(train), len(truth)) == (11, 7)
    assert sum(train.dropped.values()) + sum(truth.dropped.values()) == 0
    boxes = paths.coco / "person_detection_results" / SYNTHETIC_BOXES
    found = read_coco_detections(boxes, paths.coco_json("val"), paths.coco_images("val"))
    assert len(found) == len(load(boxes))
    parts = [read_ai_challenger(*paths.ai_challenger(split)) for split in ("train", "validation")]
    assert [len(part) for part in parts] == [18, 2]
    assert parts[0].skeleton is AIC14
    assert (parts[0].keypoints[:, :, 2] == 2).mean() > 0.5


def test_a_profile_makes_its_own_data(tmp_path):
    profile = replace(SMOKE, synthetic_persons=(2, 3, 2))
    paths = prepare_data(profile, tmp_path)
    assert paths.root == tmp_path / "smoke"
    assert load(paths.root / "manifest.json")["persons"]["coco_train"] == 2
    assert paths.boxes_json(profile).is_file()
