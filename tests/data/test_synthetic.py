"""The synthetic dataset as files: the same bytes every time, original formats, nothing half written."""

import contextlib
import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from hrnetpp_lib.data.annotations import read_ai_challenger, read_coco, read_coco_detections
from hrnetpp_lib.data.layout import DataPaths, prepare_data
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.data.images import read_image
from hrnetpp_lib.pose.keypoints import AIC14, COCO17
from hrnetpp_lib.recipe import SMOKE
from hrnetpp_lib.data.synthetic import DETECTIONS_NAME, simulate_detector, write_dataset

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


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "data"
    assert write_dataset(folder, *COUNTS, seed=3) == EXPECTED
    return folder


@pytest.fixture(scope="module")
def coco_val(root) -> dict:
    return load(root / "coco/annotations/person_keypoints_val2017.json")


@pytest.fixture(scope="module")
def detections(root) -> list[dict]:
    return load(root / "coco/person_detection_results" / DETECTIONS_NAME)


# -------------------------------------------------------------------------------------------- bytes


def test_two_runs_and_two_processes_write_the_same_bytes(root, tmp_path):
    first = digests(root)
    assert len(first) > 20
    write_dataset(tmp_path / "again", *COUNTS, seed=3)
    assert digests(tmp_path / "again") == first
    write_dataset(tmp_path / "two", *COUNTS, seed=3, processes=2)
    assert digests(tmp_path / "two") == first


def test_another_seed_gives_other_pictures(root, tmp_path):
    write_dataset(tmp_path / "other", 1, 2, 1, seed=4)
    name = "coco/train2017/000000000001.jpg"
    mine, others = digests(root), digests(tmp_path / "other")
    assert {name} <= set(mine) & set(others) and mine[name] != others[name]


def test_the_four_parts_share_no_picture(root):
    pictures = [digest for name, digest in digests(root).items() if name.endswith(".jpg")]
    assert len(pictures) == len(set(pictures))


def test_fewer_persons_are_the_first_of_more(root, tmp_path):
    write_dataset(tmp_path / "fewer", 4, 2, 1, seed=3)
    few = load(tmp_path / "fewer/coco/annotations/person_keypoints_train2017.json")["annotations"]
    many = load(root / "coco/annotations/person_keypoints_train2017.json")["annotations"]
    assert len(few) == 4
    assert few[:2] == many[:2]


# ------------------------------------------------------------------------------------------- folder


def test_nothing_half_written_is_left(root):
    assert [path.name for path in root.parent.iterdir()] == ["data"]
    assert load(root / "manifest.json")["persons"] == EXPECTED


def test_a_folder_written_before_is_found_and_not_touched(root, capsys):
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert write_dataset(root, *COUNTS, seed=3) == EXPECTED
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("arguments", [(12, 20, 7, 3), (11, 21, 7, 3), (11, 20, 8, 3), (11, 20, 7, 4)])
def test_a_folder_of_other_data_is_refused(root, arguments):
    *counts, seed = arguments
    with pytest.raises(HrnetppError, match="not the synthetic data asked for.*delete the folder") as caught:
        write_dataset(root, *counts, seed=seed)
    assert str(root) in str(caught.value)


@pytest.mark.parametrize("content", [None, "", "{", "[1]"])
def test_a_folder_of_something_else_is_refused_and_kept(tmp_path, content):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "precious.txt").write_text("keep me")
    if content is not None:
        (folder / "manifest.json").write_text(content)
    with pytest.raises(HrnetppError, match="delete the folder"):
        write_dataset(folder, 1, 2, 1)
    assert (folder / "precious.txt").read_text() == "keep me"


def test_leftovers_of_an_interrupted_run_do_no_harm(tmp_path):
    part = tmp_path / "data.part"
    (part / "coco/train2017").mkdir(parents=True)
    (part / "coco/train2017/junk.jpg").write_bytes(b"half a picture")
    write_dataset(tmp_path / "data", 1, 2, 1)
    assert not part.exists()
    assert not list(tmp_path.rglob("junk.jpg"))


@pytest.mark.parametrize("counts", [(0, 2, 1), (1, 1, 1), (1, 2, 0), (1, 0, 1), (-3, 2, 1)])
def test_every_part_needs_a_person(tmp_path, counts):
    with pytest.raises(HrnetppError, match="each set needs a person"):
        write_dataset(tmp_path / "data", *counts)
    assert not (tmp_path / "data").exists()


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
        found = coco.loadRes(str(root / "coco/person_detection_results" / DETECTIONS_NAME))
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
    found = simulate_detector(images, truths, np.random.default_rng(0))
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
    again = simulate_detector(images, truths, np.random.default_rng(0))
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
        result = coco.loadRes(simulate_detector(images, truths, rng))
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
    boxes = paths.coco / "person_detection_results" / DETECTIONS_NAME
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
