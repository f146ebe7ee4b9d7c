"""A profile's files: made, converted, or asked for by name."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import scipy.io

from hrnetpp_lib.data.layout import (
    GROUND_TRUTH_BOXES,
    DataPaths,
    convert_lspe,
    data_paths,
    find_real_data,
    load_ai_challenger,
    load_coco,
    load_stage_data,
    prepare_data,
    required_files,
)
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.recipe import COCO, LSPET, SMOKE

PROFILE = replace(SMOKE, synthetic_persons=(10, 12, 5), holdout_persons=3)


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> DataPaths:
    return prepare_data(PROFILE, tmp_path_factory.mktemp("data"))


def test_synthetic_data_are_made_once(paths):
    assert all(path.exists() for path in required_files(PROFILE, paths))
    stamp = paths.coco_json("train").stat().st_mtime_ns
    assert prepare_data(PROFILE, paths.root.parent) == paths
    assert paths.coco_json("train").stat().st_mtime_ns == stamp


def test_coco_val_has_the_detectors_boxes_or_the_true_ones(paths):
    detected = load_coco(PROFILE, paths)
    assert len(detected.train) == 10 and detected.boxes == PROFILE.boxes and detected.metric == "COCO AP"
    assert not detected.val.keypoints.any() and (detected.val.bbox_scores < 1).all()
    true = load_coco(replace(PROFILE, boxes=None), paths)
    assert true.boxes == GROUND_TRUTH_BOXES and (true.val.bbox_scores == 1).all() and len(true.val) == 5


def test_ai_challenger_is_pooled_and_split_by_image(paths):
    data = load_stage_data("ai_challenger", PROFILE, paths)
    assert len(data.train) + len(data.val) == 12 and len(data.val) >= 3
    assert data.metric == "AI Challenger AP" and data.boxes == GROUND_TRUTH_BOXES
    assert not set(data.train.image_index) & set(data.val.image_index)
    assert all(data.train.image_path(i).is_file() for i in range(len(data.train)))


def test_missing_public_data_are_named_with_a_way_out(tmp_path):
    with pytest.raises(HrnetppError) as error:
        prepare_data(COCO, tmp_path)
    for part in ("person_keypoints_train2017.json", "val2017", "AP_H_56", "hrnet_w48", "--profile mini"):
        assert part in str(error.value)


@pytest.mark.parametrize(("cut", "message"), [(0.5, "json"), (None, "annotations")])
def test_a_damaged_annotation_file_is_named(tmp_path, cut, message):
    broken = prepare_data(PROFILE, tmp_path)
    path = broken.coco_json("train")
    content = path.read_text()
    content = content[: int(len(content) * cut)] if cut else json.dumps({"images": [], "categories": []})
    path.write_text(content)
    with pytest.raises(HrnetppError, match="person_keypoints_train2017.json") as error:
        load_coco(PROFILE, broken)
    assert message in str(error.value)


def small_lspe(folder) -> None:
    """A public-style folder of Leeds Sports Pose Extended with six pictures of the three roles."""
    (folder / "images").mkdir(parents=True)
    joints = np.zeros((14, 3, 10000))
    numbers = [1, 10, 5001, 5002, 9001, 9002]
    for number in range(1, 10001):
        joints[:, 0, number - 1] = np.linspace(20, 60, 14)
        joints[:, 1, number - 1] = np.linspace(90, 15, 14)
        joints[:, 2, number - 1] = 1
    for number in numbers:
        cv2.imwrite(str(folder / "images" / f"im{number:05d}.jpg"), np.full((120, 90, 3), 90, np.uint8))
    scipy.io.savemat(folder / "joints.mat", {"joints": joints})


def test_lspe_needs_its_source_and_all_of_its_pictures(tmp_path):
    with pytest.raises(HrnetppError, match="convert-lspe joints.mat images/"):
        prepare_data(LSPET, tmp_path)
    with pytest.raises(HrnetppError, match="joints.mat: there is no such file"):
        convert_lspe(tmp_path / "joints.mat", tmp_path, tmp_path)
    small_lspe(tmp_path / "source")
    with pytest.raises(HrnetppError, match="nowhere: there is no such folder"):
        convert_lspe(tmp_path / "source" / "joints.mat", tmp_path / "source" / "nowhere", tmp_path)
    with pytest.raises(HrnetppError, match="9994 of the 10000 images"):
        convert_lspe(tmp_path / "source" / "joints.mat", tmp_path / "source" / "images", tmp_path)
    assert not (tmp_path / "lspet").exists()


def test_lspe_plays_all_three_roles(tmp_path):
    from hrnetpp_lib.data.lspe import write_lspe

    small_lspe(tmp_path / "source")
    source = tmp_path / "source"
    write_lspe(source / "joints.mat", source / "images", tmp_path / "lspet", skip_missing_images=True)
    paths = prepare_data(LSPET, tmp_path)
    coco = load_coco(LSPET, paths)
    assert len(coco.train) == 2 and len(coco.val) == 2 and coco.boxes == GROUND_TRUTH_BOXES
    assert not coco.train.keypoints[:, :5].any() and (coco.train.keypoints[:, 5:, 2] == 2).all()
    challenger = load_ai_challenger(replace(LSPET, holdout_persons=1), paths)
    assert len(challenger.train) == len(challenger.val) == 1


def test_real_data_are_found_by_variable_or_beside_the_project(tmp_path, monkeypatch):
    monkeypatch.setenv("HRNETPP_TEST_DATA", str(tmp_path))
    assert find_real_data(tmp_path / "anywhere") == tmp_path
    monkeypatch.delenv("HRNETPP_TEST_DATA")
    assert find_real_data(tmp_path / "project") is None
    (tmp_path / "shared" / "data").mkdir(parents=True)
    assert find_real_data(tmp_path / "project") == tmp_path / "shared" / "data"


def test_real_photographs_are_converted_once_and_shared_by_profiles(tmp_path, lspe_source):
    """The public file with only the first images at hand: missing ones are counted on request."""
    source = lspe_source
    with pytest.raises(HrnetppError, match="images of joints.mat are missing"):
        convert_lspe(source / "joints.mat", source / "images", tmp_path / "data")
    root = convert_lspe(source / "joints.mat", source / "images", tmp_path / "data", skip_missing_images=True)
    profile = replace(LSPET, holdout_persons=5)
    assert data_paths(profile, tmp_path / "data").root == root
    coco, challenger = (load_stage_data(name, profile, DataPaths(root)) for name in ("coco", "ai_challenger"))
    assert (len(coco.train), len(coco.val)) == (10, 5)
    # Nose, eyes and ears are never labelled; all 14 of AI Challenger's keypoints are.
    assert coco.trained_keypoints.tolist() == 5 * [False] + 12 * [True]
    assert challenger.trained_keypoints.all() and len(challenger.trained_keypoints) == 14
    assert len(challenger.train) + len(challenger.val) == 30 and len(challenger.val) >= 5
    with pytest.raises(HrnetppError, match="is there already"):
        convert_lspe(source / "joints.mat", source / "images", tmp_path / "data")
