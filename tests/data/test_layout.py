"""A profile's files: made, converted, or asked for by name."""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import numpy as np
import pytest

from hrnetpp_lib.data import layout
from hrnetpp_lib.data.layout import DataPaths, Metric, convert_lspe, load_coco, load_stage_data, prepare_data
from hrnetpp_lib.data.persons import check_images
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.files import read_json
from hrnetpp_lib.recipe import COCO, LSPET, SMOKE

PROFILE = replace(SMOKE, synthetic_persons=(10, 12, 5), holdout_persons=3)


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> DataPaths:
    return prepare_data(PROFILE, tmp_path_factory.mktemp("data"))


def test_synthetic_data_are_made_once(paths):
    assert layout.missing_files(PROFILE, paths) == []
    stamp = paths.coco_json("train").stat().st_mtime_ns
    assert prepare_data(PROFILE, paths.root.parent) == paths
    assert paths.coco_json("train").stat().st_mtime_ns == stamp


def test_coco_val_has_the_detectors_boxes_or_the_true_ones(paths):
    detected = load_coco(PROFILE, paths)
    assert len(detected.train) == 10 and detected.boxes == PROFILE.boxes and detected.metric is Metric.COCO_AP
    assert not detected.val.keypoints.any() and (detected.val.bbox_scores < 1).all()
    true = load_coco(replace(PROFILE, boxes=None), paths)
    assert (
        true.boxes == layout.GROUND_TRUTH_BOXES and len(true.val) == 5 and (true.val.bbox_scores == 1).all()
    )


def test_ai_challenger_is_pooled_and_split_by_image(paths):
    data = load_stage_data("ai_challenger", PROFILE, paths)
    assert len(data.train) + len(data.val) == 12 and len(data.val) >= 3
    assert data.metric is Metric.AI_CHALLENGER_AP and data.boxes == layout.GROUND_TRUTH_BOXES
    assert not set(data.train.image_index) & set(data.val.image_index)
    assert all(data.train.image_path(i).is_file() for i in range(len(data.train)))


def test_missing_public_data_are_named_with_a_way_out(tmp_path):
    with pytest.raises(HrnetppError) as error:
        prepare_data(COCO, tmp_path)
    for part in ("person_keypoints_train2017.json", "val2017", "AP_H_56", "hrnet_w48", "--profile mini"):
        assert part in str(error.value)


def test_val_alone_needs_and_reads_no_training_data(tmp_path, paths, monkeypatch):
    with pytest.raises(HrnetppError) as error:
        prepare_data(COCO, tmp_path, val_only=True)
    assert "val2017" in str(error.value) and "AP_H_56" in str(error.value)
    assert not any(word in str(error.value) for word in ("train2017", "challenger", "hrnet_w48"))
    monkeypatch.setattr(layout, "read_coco", None)
    data, whole = load_coco(PROFILE, paths, val_only=True), paths.coco_json("val")
    assert data.boxes == PROFILE.boxes and len(data.train) == 5 and whole.is_file()
    assert data.trained_keypoints.all()


@pytest.fixture
def small_lspe(write_source):
    """Two pictures of each role."""
    return write_source(np.ones((14, 3, 10_000)), (1, 10, 5001, 5002, 9001, 9002))


def test_lspe_needs_its_source_and_all_of_its_pictures(tmp_path, small_lspe):
    with pytest.raises(HrnetppError, match="convert-lspe joints.mat images/"):
        prepare_data(LSPET, tmp_path)
    with pytest.raises(HrnetppError, match="joints.mat: there is no such file"):
        convert_lspe(tmp_path / "images/joints.mat", tmp_path, tmp_path)
    with pytest.raises(HrnetppError, match="9994 of the 10000 images"):
        convert_lspe(*small_lspe, tmp_path)
    assert not (tmp_path / "lspet").exists()


def test_lspe_plays_all_three_roles_and_is_converted_once(tmp_path, small_lspe):
    assert convert_lspe(*small_lspe, tmp_path, skip_missing_images=True) == tmp_path / "lspet"
    with pytest.raises(HrnetppError, match="is there already"):
        convert_lspe(*small_lspe, tmp_path, skip_missing_images=True)
    coco = load_coco(LSPET, paths := prepare_data(LSPET, tmp_path))
    assert len(coco.train) == 2 and len(coco.val) == 2 and coco.boxes == layout.GROUND_TRUTH_BOXES
    assert not coco.train.keypoints[:, :5].any() and (coco.train.keypoints[:, 5:, 2] == 2).all()
    challenger = layout.load_ai_challenger(replace(LSPET, holdout_persons=1), paths)
    assert len(challenger.train) == len(challenger.val) == 1


def test_processes_that_convert_together_leave_one_whole_folder(tmp_path, small_lspe):
    with ProcessPoolExecutor(3, get_context("spawn")) as pool:
        runs = [pool.submit(convert_lspe, *small_lspe, tmp_path, True) for _ in range(3)]
    failures = [str(run.exception()) for run in runs if run.exception()]
    assert len(failures) == 2 and all("lspet: is there already" in failure for failure in failures)
    coco = load_coco(LSPET, DataPaths(tmp_path / "lspet"))
    check_images(coco.train, decode=True)
    assert len(coco.train) == len(coco.val) == 2
    left = {path.name for path in tmp_path.iterdir() if path.suffix != ".lock"}
    assert left == {"images", "joints.mat", "lspet"}


def test_processes_that_prepare_together_find_whole_data(tmp_path):
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        found = list(pool.map(prepare_data, [PROFILE] * 2, [tmp_path] * 2))
    data = load_coco(PROFILE, found[0])
    check_images(data.train, decode=True)
    assert found[0] == found[1] and len(data.train) == 10 and len(data.val) == 5


def test_val_is_read_once(paths, monkeypatch):
    opened = []

    def read(path, *arguments, **mend):
        opened.append(path.name)
        return read_json(path, *arguments, **mend)

    monkeypatch.setattr("hrnetpp_lib.data.annotations.read_json", read)
    for boxes in (PROFILE.boxes, None):
        load_coco(replace(PROFILE, boxes=boxes), paths)
        assert opened.count("person_keypoints_val2017.json") == 1
        opened.clear()


def test_real_photographs_are_shared_by_profiles(tmp_path, lspe_source):
    """The public file with only the first images at hand: missing ones are counted on request."""
    arguments = (lspe_source / "joints.mat", lspe_source / "images", tmp_path / "data")
    root = convert_lspe(*arguments, skip_missing_images=True)
    profile = replace(LSPET, holdout_persons=5)
    assert layout.data_paths(profile, tmp_path / "data").root == root
    coco, challenger = (load_stage_data(name, profile, DataPaths(root)) for name in ("coco", "ai_challenger"))
    assert (len(coco.train), len(coco.val)) == (10, 5)
    # Nose, eyes and ears are never labelled; all 14 of AI Challenger's keypoints are.
    assert coco.trained_keypoints.tolist() == 5 * [False] + 12 * [True]
    assert challenger.trained_keypoints.all() and len(challenger.trained_keypoints) == 14
    assert len(challenger.train) + len(challenger.val) == 30 and len(challenger.val) >= 5
