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
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from test_mannequin import HEIGHT, HIPS, PAIRS, STATURE, empty_canvas, from_behind, from_the_front, people

from hrnetpp_lib.data import synthetic
from hrnetpp_lib.data.annotations import read_ai_challenger, read_coco, read_coco_detections
from hrnetpp_lib.data.images import read_image
from hrnetpp_lib.data.layout import DataPaths
from hrnetpp_lib.data.mannequin import PARTS, paint_person, shown_on
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.pose.keypoints import AIC14, COCO17
from hrnetpp_lib.recipe import SYNTHETIC_BOXES

COUNTS = (11, 20, 7)  # COCO train, AI Challenger (2 of them for validation), COCO val
EXPECTED = {"coco_train": 11, "coco_val": 7, "ai_challenger_train": 18, "ai_challenger_validation": 2}
TRAIN_JSON, VAL_JSON = (f"coco/annotations/person_keypoints_{split}2017.json" for split in ("train", "val"))
BOXES = f"coco/person_detection_results/{SYNTHETIC_BOXES}"
FIRST_PICTURE = "coco/train2017/000000000001.jpg"


def digests(root: Path) -> dict[str, str]:
    files = [path for path in root.rglob("*") if path.is_file()]
    return {str(f.relative_to(root)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def load(path: Path):
    return json.loads(path.read_text())


def write_dataset(root: Path, *persons: int, **options) -> Path:
    synthetic.write_dataset(root, lambda folder: DataPaths(folder).sets(), *persons, **options)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("synthetic") / "data", *COUNTS, seed=3)


def labelled(person, number: int = 0, cover=None, skeleton=COCO17, hips=HIPS):
    canvas = empty_canvas()
    paint_person(canvas, person, number, hips, STATURE)
    if cover:
        canvas.owner[cover] = -1
    return canvas, synthetic._keypoints(canvas, number, person, hips, STATURE, skeleton)


@pytest.mark.parametrize("skeleton", [COCO17, AIC14], ids=lambda s: s.name)
def test_visible_keypoints_lie_on_their_own_person(skeleton):
    seen = 0
    for person in people(lambda person: True, 25):
        canvas, keypoints = labelled(person, 1, skeleton=skeleton)
        for name, (x, y, v) in zip(skeleton.names, keypoints, strict=True):
            if v == 2 and name != "head_top":  # that one lies on the outline
                owner = canvas.owner[round(y), round(x)]
                assert owner // 100 == 1 and PARTS[owner % 100 - 1] in shown_on(name)
                seen += 1
    assert seen > 200


def test_shoulders_and_hips_of_a_facing_person_are_visible():
    hidden = 0
    for person in people(from_the_front):
        keypoints = dict(zip(COCO17.names, labelled(person)[1], strict=True))
        for left, right in PAIRS:
            assert keypoints[left][0] > keypoints[right][0]
            hidden += (keypoints[left][2] == 1) + (keypoints[right][2] == 1)
    assert hidden < 10  # of 48; only an arm may lie in front


def test_what_an_object_covers_is_labelled_but_hidden():
    person = people(from_the_front, 1)[0]
    free, covered = labelled(person)[1], labelled(person, cover=np.s_[int(HIPS[1]) - 5 :, :])[1]
    np.testing.assert_array_equal(free[:, :2], covered[:, :2])
    below, above = free[:, 1] > HIPS[1] - 4, free[:, 1] < HIPS[1] - 6
    assert below.sum() >= 6 and (covered[below & (free[:, 2] > 0), 2] == 1).all()
    np.testing.assert_array_equal(covered[above], free[above])


def test_what_another_person_covers_is_hidden():
    front, canvas = people(from_the_front, 1)[0], empty_canvas()
    for number in (0, 1):
        paint_person(canvas, front, number, HIPS, STATURE)
    far, near = (synthetic._keypoints(canvas, n, front, HIPS, STATURE, COCO17)[:, 2] for n in (0, 1))
    assert not (far == 2).any() and (near == 2).sum() >= 10


def test_faces_turned_away_and_points_outside_are_not_labelled():
    behind = labelled(people(from_behind, 1)[0])[1]
    np.testing.assert_array_equal(behind[COCO17.names.index("nose")], [0, 0, 0])
    low = np.array([100.0, HEIGHT - 20.0])
    keypoints = dict(zip(COCO17.names, labelled(people(from_the_front, 1)[0], hips=low)[1], strict=True))
    assert not keypoints["left_ankle"].any() and not keypoints["right_ankle"].any()
    assert keypoints["left_shoulder"][2] > 0


def test_box_and_area_are_those_of_the_pixels_in_sight():
    canvas, person = empty_canvas(), people(from_the_front, 1)[0]
    canvas.owner[30:50, 60:75] = 101 + PARTS.index("torso")
    label = synthetic._label(canvas, 1, person, HIPS, STATURE)
    assert label.bbox_xywh.tolist() == [60, 30, 15, 20] and label.area == 300
    assert set(label.keypoints) == {"coco17", "aic14"}
    assert synthetic._label(canvas, 0, person, HIPS, STATURE) is None  # nothing of number 0


def test_both_skeletons_agree_on_the_keypoints_they_share():
    shared = [COCO17.names.index(name) for name in AIC14.names[:12]]
    for person in people(from_the_front, 5):
        coco, challenger = labelled(person)[1], labelled(person, skeleton=AIC14)[1]
        np.testing.assert_array_equal(challenger[:12], coco[shared])


@pytest.fixture(scope="module")
def scenes() -> list:
    return [synthetic.render_scene(np.random.default_rng(seed)) for seed in range(40)]


def test_labels_lie_inside_the_picture_of_two_shapes_and_what_is_visible_in_the_box(scenes):
    assert {image.shape for image, _ in scenes} == {(240, 320, 3), (320, 240, 3)}
    for image, persons in scenes:
        assert image.dtype == np.uint8 and image.std() > 5
        size = np.array(image.shape[1::-1])
        for person in persons:
            low, high = person.bbox_xywh[:2], person.bbox_xywh[:2] + person.bbox_xywh[2:]
            assert (low >= 0).all() and (high <= size).all() and (person.bbox_xywh[2:] > 0).all()
            assert 150 <= person.area <= np.prod(person.bbox_xywh[2:])
            for xy, v in ((keypoints[:, :2], keypoints[:, 2]) for keypoints in person.keypoints.values()):
                assert set(np.unique(v)) <= {0, 1, 2} and not xy[v == 0].any()
                assert (xy >= 0).all() and (xy <= size - 1).all()
            visible = person.keypoints["coco17"][person.keypoints["coco17"][:, 2] == 2, :2]
            assert (visible >= low - 1).all() and (visible <= high).all()


def test_one_to_four_people_and_all_three_visibilities_occur(scenes):
    counts = {len(persons) for _, persons in scenes}
    assert {1, 2, 3} <= counts and max(counts) <= 4
    flags = np.concatenate([p.keypoints["coco17"][:, 2] for _, persons in scenes for p in persons])
    assert (np.bincount(flags.astype(int), minlength=3) > 20).all() and (flags == 2).mean() > 0.5
    alone = [synthetic.render_scene(np.random.default_rng(seed), max_people=1)[1] for seed in range(15)]
    assert {len(persons) for persons in alone} <= {0, 1}


def test_the_same_seed_gives_the_same_scene(scenes):
    image, persons = synthetic.render_scene(np.random.default_rng(11))
    before = scenes[11][0], [vars(person) for person in scenes[11][1]]
    np.testing.assert_equal((image, [vars(person) for person in persons]), before)
    assert not np.array_equal(image[:240, :240], scenes[12][0][:240, :240])


def test_far_people_are_painted_first():
    for seed in range(20):
        statures = [entry[2] for entry in synthetic._place(np.random.default_rng(seed), 4, 240, 320)]
        assert statures == sorted(statures)


def test_one_seed_gives_the_same_bytes_whatever_the_processes_and_no_picture_twice(root, tmp_path):
    first = digests(root)
    pictures = [digest for name, digest in first.items() if name.endswith(".jpg")]
    assert len(pictures) == len(set(pictures)) > 15
    for processes in (1, 2):
        again = write_dataset(tmp_path / str(processes), *COUNTS, seed=3, processes=processes)
        assert digests(again) == first
    other = write_dataset(tmp_path / "other", 1, 2, 1, seed=4)
    assert first[FIRST_PICTURE] != digests(other)[FIRST_PICTURE]


def test_a_picture_is_its_scene_and_fewer_persons_are_the_first_of_more(root, tmp_path):
    image, _ = synthetic.render_scene(np.random.default_rng((3, 0, 1)))  # seed, role, number
    read = read_image(root / FIRST_PICTURE).astype(int)
    assert np.abs(read - image).mean() < 5 < 9 < np.abs(read[..., ::-1] - image).mean()
    fewer = write_dataset(tmp_path / "fewer", 4, 2, 1, seed=3)
    few, many = (load(folder / TRAIN_JSON)["annotations"] for folder in (fewer, root))
    assert len(few) == 4 and few[:2] == many[:2]


def test_a_folder_written_whole_lists_every_file_is_found_again_and_not_touched(root, capsys):
    assert {path.name for path in root.parent.iterdir()} == {"data", ".data.lock"}
    manifest = load(root / "manifest.json")
    assert manifest["persons"] == EXPECTED
    files = {f.relative_to(root).as_posix(): f.stat().st_size for f in root.rglob("*") if f.is_file()}
    assert manifest["files"] == {name: n for name, n in files.items() if name != "manifest.json"}
    before = {path: path.stat().st_mtime_ns for path in root.parent.rglob("*")}
    write_dataset(root, *COUNTS, seed=3)
    assert {path: path.stat().st_mtime_ns for path in root.parent.rglob("*")} == before
    assert capsys.readouterr().out == ""


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("small") / "data", 3, 2, 1)


def cut_manifest(root: Path, *names: str) -> None:
    """As older versions wrote it."""
    manifest = load(root / "manifest.json") | {"files": {}}
    (root / "manifest.json").write_text(json.dumps({name: manifest[name] for name in names}))


DAMAGES = {
    "a picture is missing": lambda root: (root / FIRST_PICTURE).unlink(),
    "a json is cut": lambda root: os.truncate(root / TRAIN_JSON, 100),
    "a folder is missing": lambda root: shutil.rmtree(root / "ai_challenger"),
    "the manifest lists nothing": lambda root: cut_manifest(root, "version", "seed", "persons", "files"),
    # As two programs at once left it before there was a lock.
    "an older manifest over one file": lambda root: (
        cut_manifest(root, "version", "seed", "persons"),
        [picture.unlink() for picture in root.rglob("*.jpg")],
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_what_is_missing_or_cut_is_made_again_and_the_rest_kept(whole, tmp_path, damage):
    root = shutil.copytree(whole, tmp_path / "data")
    (root / "notes.txt").write_text("mine")
    damage(root)
    write_dataset(root, 3, 2, 1)
    assert (root / "notes.txt").read_text() == "mine"
    (root / "notes.txt").unlink()
    assert digests(root) == digests(whole)


@pytest.mark.parametrize("asked", [(12, 20, 7, 3), (11, 21, 7, 3), (11, 20, 8, 3), (11, 20, 7, 4)])
def test_a_folder_of_other_data_is_refused(root, asked):
    with pytest.raises(HrnetppError, match="not the synthetic data asked for.*delete the folder") as caught:
        write_dataset(root, *asked[:3], seed=asked[3])
    assert str(root) in str(caught.value)


@pytest.mark.parametrize("content", [None, "", "{", "[1]", '{"version": 1, "seed": 0, "persons": 7}'])
def test_a_folder_of_something_else_is_refused_and_kept(tmp_path, content):
    (tmp_path / "precious.txt").write_text("keep me")
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(HrnetppError, match="delete the folder"):
        write_dataset(tmp_path, 1, 2, 1)
    assert (tmp_path / "precious.txt").read_text() == "keep me"


WRITE = """
import sys, time
from pathlib import Path
from hrnetpp_lib.data.layout import DataPaths
from hrnetpp_lib.data.synthetic import write_dataset

if __name__ == "__main__":
    places, (root, delay, persons) = lambda folder: DataPaths(folder).sets(), sys.argv[1:]
    time.sleep(float(delay))
    write_dataset(Path(root), places, int(persons), 2, 1, processes=2)
"""


@pytest.fixture
def start_writing(tmp_path):
    """Starts a program that writes tmp_path/data after so many seconds."""
    started = []

    def start(delay: float, persons: int) -> subprocess.Popen:
        command = [sys.executable, "-c", WRITE, tmp_path / "data", str(delay), str(persons)]
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


def wait_for(is_so, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_killed_program_leaves_no_workers_and_nothing_taken_for_whole(start_writing, whole, tmp_path):
    program = start_writing(0, 600)
    wait_for(lambda: list(tmp_path.glob(".data.*.part/coco/train2017/*.jpg")), 60)
    program.kill()
    assert program.wait() == -signal.SIGKILL
    with contextlib.suppress(ProcessLookupError):  # until its workers have noticed
        wait_for(lambda: os.killpg(program.pid, 0), 10)
    assert not (tmp_path / "data").exists()
    assert digests(write_dataset(tmp_path / "data", 3, 2, 1)) == digests(whole)
    assert {path.name for path in tmp_path.iterdir()} == {"data", ".data.lock"}


FEW = [(0, 2, 1), (1, 1, 1), (1, 2, 0), (1, 0, 1), (-3, 2, 1)]
REFUSED = [*zip(FEW, [1] * 5, ["each set needs a person"] * 5, strict=True)]
REFUSED += [((1, 2, 1), processes, f"{processes} processes cannot render") for processes in (0, -1)]


@pytest.mark.parametrize(("counts", "processes", "reason"), REFUSED)
def test_every_set_needs_a_person_and_rendering_a_process(tmp_path, counts, processes, reason):
    with pytest.raises(HrnetppError, match=reason):
        write_dataset(tmp_path / "data", *counts, processes=processes)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("split", "persons"), [("train", 11), ("val", 7)])
def test_coco_files(root, split, persons):
    content, folder = load(root / VAL_JSON.replace("val", split)), root / f"coco/{split}2017"
    annotations, sizes = content["annotations"], {}
    assert {image["file_name"] for image in content["images"]} == {path.name for path in folder.iterdir()}
    assert {image["id"] for image in content["images"]} == {a["image_id"] for a in annotations}
    assert content["categories"][0]["keypoints"] == list(COCO17.names)
    ids = [annotation["id"] for annotation in annotations]
    assert len(set(ids)) == persons and min(ids) >= 1  # pycocotools takes id 0 for "no match"
    for image in content["images"]:
        assert image["file_name"] == f"{image['id']:012d}.jpg"
        sizes[image["id"]] = image["width"], image["height"]
        pixels = read_image(folder / image["file_name"])
        assert pixels.shape == (image["height"], image["width"], 3) and pixels.std() > 3
    for annotation in annotations:
        width, height = sizes[annotation["image_id"]]
        x, y, w, h = annotation["bbox"]
        assert w > 0 and h > 0 and x >= 0 and y >= 0 and x + w <= width and y + h <= height
        keypoints = np.array(annotation["keypoints"]).reshape(17, 3)
        assert not keypoints[keypoints[:, 2] == 0].any() and 0 < annotation["area"] <= w * h
        assert annotation["num_keypoints"] == (keypoints[:, 2] > 0).sum()
        assert (keypoints[:, :2] <= [width - 1, height - 1]).all()


def test_detections_have_coco_format_and_are_best_first_in_every_image(root):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(root / VAL_JSON))
        found = coco.loadRes(str(root / BOXES))
    detections, scores = load(root / BOXES), {image_id: [] for image_id in coco.imgs}
    assert len(coco.getAnnIds(catIds=[1])) == 7 and len(found.getAnnIds()) == len(detections) >= 5
    for detection in detections:
        assert set(detection) == {"image_id", "category_id", "bbox", "score"}
        assert detection["category_id"] == 1 and 0 < detection["score"] < 1
        image, (x, y, w, h) = coco.imgs[detection["image_id"]], detection["bbox"]
        assert w > 0 and h > 0 and x >= 0 and y >= 0
        assert x + w <= image["width"] + 0.01 and y + h <= image["height"] + 0.01  # rounded to hundredths
        scores[detection["image_id"]].append(detection["score"])
    assert all(found == sorted(found, reverse=True) for found in scores.values())


def test_the_simulated_detector_shakes_misses_doubles_and_invents():
    box = [100.0, 60.0, 80.0, 120.0]
    images = [{"id": i, "width": 320, "height": 240} for i in range(400)]
    content = {"images": images, "annotations": [{"image_id": i, "bbox": box} for i in range(400)]}
    found, again = (synthetic._simulate_detector(content, np.random.default_rng(0)) for _ in range(2))
    assert again == found
    boxes, scores = np.array([d["bbox"] for d in found]), np.array([d["score"] for d in found])
    near = np.abs(boxes - box).max(axis=1) < 60
    assert 2 <= 400 - len({d["image_id"] for d in found}) < 20  # 2% missed, most made up for
    assert 400 < near.sum() < 480 and 60 < (~near).sum() < 200
    shift = boxes[near] - box
    assert abs(shift.mean()) < 2 and 2 < shift.std() < 12
    assert scores[near].mean() > 0.6 > 0.35 > scores[~near].mean()


def test_the_simulated_detector_is_good_but_not_perfect():
    rng = np.random.default_rng(5)
    images = [{"id": i, "width": 320, "height": 240} for i in range(1, 151)]
    truths = []
    for image in images:
        for x in rng.uniform([5, 165], [45, 205]):
            w, h = rng.uniform([40, 90], [95, 180])
            identity = {"id": len(truths) + 1, "image_id": image["id"], "category_id": 1, "iscrowd": 0}
            truths.append(identity | {"bbox": [x, rng.uniform(0, 240 - h), w, h], "area": 0.5 * w * h})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {"images": images, "annotations": truths, "categories": [{"id": 1, "name": "person"}]}
        coco.createIndex()
        result = coco.loadRes(synthetic._simulate_detector(coco.dataset, rng))
        evaluation = COCOeval(coco, result, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    ap, ap50 = evaluation.stats[:2]
    assert 0.6 < ap < 0.85 and 0.9 < ap50 < 0.995


@pytest.mark.parametrize(("split", "persons"), [("train", 18), ("validation", 2)])
def test_ai_challenger_files(root, split, persons):
    day, annotated = {"train": ("20170902", "20170909"), "validation": ("20170911",) * 2}[split]
    folder = root / f"ai_challenger/ai_challenger_keypoint_{split}_{day}"
    pictures = folder / f"keypoint_{split}_images_{day}"
    records = load(folder / f"keypoint_{split}_annotations_{annotated}.json")
    assert sum(len(record["keypoint_annotations"]) for record in records) == persons
    assert {record["image_id"] for record in records} == {path.stem for path in pictures.iterdir()}
    for record in records:
        assert len(record["image_id"]) == 40
        pixels = read_image(pictures / f"{record['image_id']}.jpg")
        height, width = pixels.shape[:2]
        assert pixels.std() > 3
        assert set(record["human_annotations"]) == set(record["keypoint_annotations"])
        for x1, y1, x2, y2 in record["human_annotations"].values():
            assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
        for numbers in record["keypoint_annotations"].values():
            keypoints = np.array(numbers).reshape(14, 3)
            assert keypoints.dtype.kind == "i" and set(keypoints[:, 2]) <= {1, 2, 3}
            assert not keypoints[keypoints[:, 2] == 3, :2].any()


def test_our_readers_read_all_of_it(root):
    paths = DataPaths(root)
    tables = [read_coco(paths.coco_json(split), paths.coco_images(split)) for split in ("train", "val")]
    assert [len(table) for table in tables] == [11, 7]
    assert not any(sum(table.dropped.values()) for table in tables)
    found = read_coco_detections(root / BOXES, paths.coco_json("val"), paths.coco_images("val"))
    assert len(found) == len(load(root / BOXES))
    parts = [read_ai_challenger(*paths.ai_challenger(split)) for split in ("train", "validation")]
    assert [len(part) for part in parts] == [18, 2] and parts[0].skeleton is AIC14
    assert (parts[0].keypoints[:, :, 2] == 2).mean() > 0.5  # AI Challenger's 1 is the common case
