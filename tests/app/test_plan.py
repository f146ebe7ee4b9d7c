"""The plan: what is there, what was measured, and arithmetic that can be done by hand."""

import re
import shutil
from dataclasses import replace

import pytest
import torch

import hrnetpp_lib.app.plan as module
from hrnetpp_lib.__main__ import PROJECT_ROOT
from hrnetpp_lib.app.plan import plan
from hrnetpp_lib.data.layout import DataPaths, load_coco, missing_files, prepare_data
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.recipe import COCO, SMOKE, Network, three_stages

TINY = replace(SMOKE, synthetic_persons=(16, 12, 4), holdout_persons=2)
# The paper's profile with a network that can be measured in a test.
PAPER = replace(COCO, network=SMOKE.network, input_hw=(64, 32), precision="fp32")


def text_of(profile, root, gpus=1) -> str:
    return "\n".join(plan(profile, root, gpus))


def test_everything_of_a_profile_that_makes_its_data(tmp_path):
    text = text_of(TINY, tmp_path, gpus=2)
    assert "batch 8 = 2 x 4" in text and "missing" not in text
    assert "coco train: 16 persons" in text and re.search(r"person box AP \d+\.\d on val", text)
    assert re.search(r"model on this CPU, 20 steps of 4 crops, fp32: [\d.]+ crops/s", text)
    assert re.search(r"loader with 0 processes, 16 crops: [\d.]+ crops/s", text)
    assert "16 persons (counted) = 16 samples" in text and "loads its crops itself" in text
    assert not re.search(r"\bnan\b|\binf\b|None", text)


def test_the_papers_cost_without_its_data(tmp_path):
    text = text_of(PAPER, tmp_path, gpus=8)
    assert "batch 96 = 8 x 12" in text
    for missing in ("train2017", "keypoint_train_images_20170902", "AP_H_56", "hrnet_w48-8ef0771d.pth"):
        assert re.search(rf"missing: .*{missing}", text)
    assert "30 epochs x 444000 persons (the report's number) = 13.3 M samples" in text
    assert "150 epochs x 149813 persons" in text and "all                      38.8 M samples" in text
    assert "loader: not measured" in text and "unknown: the loader was not measured" in text
    assert "GPU-hours, and again by 8" in text


def test_cost_by_hand():
    runs = three_stages(replace(PAPER, epochs=(1, 2, 3)))
    persons = {"ai_challenger": (36_000, "counted"), "coco": (7_200, "counted")}
    lines = list(module._cost(runs, persons, 2.0, torch.device("cpu"), 4))
    assert "= 36000 samples, 5 hours of this CPU" in lines[1]
    assert "= 14400 samples, 2 hours" in lines[2] and "= 21600 samples, 3 hours" in lines[3]
    assert "72000 samples, 10 hours of this CPU" in lines[4]
    gpu = list(module._cost(runs, persons, 2.0, torch.device("cuda"), 4))
    assert gpu[-1] == "  on 4 such GPUs, if they scale perfectly: 2.5 hours"


def test_the_slower_side_is_named_by_hand():
    eight = list(module._bottleneck(replace(PAPER, workers=8), 100.0, 30.0, gpus=2))
    assert "the model" in eight[1] and "4 loader processes (cores) feed one such device, 8 feed 2" in eight[2]
    assert "the loader" in list(module._bottleneck(replace(PAPER, workers=3), 100.0, 30.0, 1))[1]
    assert "75.0 crops/s together" in list(module._bottleneck(SMOKE, 100.0, 300.0, 1))[1]


def test_the_papers_training_crop_costs_211_gflop():
    """W48 with the four switches, at 384x288: 35.13 GMACs forward, twice that backward."""
    from hrnetpp_lib.model.anatomy import count_macs
    from hrnetpp_lib.train.loop import build_model

    run = three_stages(replace(COCO, network=Network(48)))[1]
    assert 6 * count_macs(build_model(run, 17), COCO.input_hw) / 1e9 == pytest.approx(210.8, rel=1e-3)


def test_a_batch_that_gpus_cannot_share_is_refused(tmp_path):
    with pytest.raises(HrnetppError, match="batch of 8 cannot be divided into 3"):
        text_of(TINY, tmp_path, gpus=3)


def test_a_flat_folder_of_coco_pictures_is_read_too(tmp_path):
    paths = prepare_data(TINY, tmp_path)
    official = load_coco(TINY, paths)
    shutil.copytree(paths.coco_images("train"), paths.coco / "images")
    shutil.copytree(paths.coco_images("val"), paths.coco / "images", dirs_exist_ok=True)
    for split in ("train", "val"):
        shutil.rmtree(paths.coco / f"{split}2017")
    assert missing_files(TINY, DataPaths(paths.root)) == []
    flat = load_coco(TINY, paths)
    assert flat.train.image_dir == paths.coco / "images" and flat.train.image_path(0).is_file()
    assert flat.train.fingerprint() == official.train.fingerprint()


def test_a_picture_that_is_gone_or_torn_costs_no_other_line(tmp_path):
    paths = prepare_data(TINY, tmp_path / "data")
    pictures = sorted(paths.coco_images("train").iterdir())
    for picture in pictures:
        picture.write_bytes(b"torn")
    pictures[0].unlink()
    text = text_of(TINY, tmp_path)
    assert f"images of {paths.coco_json('train')} are missing: {pictures[0].name}" in text
    assert "loader: not measured: " in text and "unknown: the loader was not measured" in text
    assert "cost of hrnetpp" in text and "free here" in text


def test_real_boxes_have_their_ap(real_data):
    from hrnetpp_lib.evaluate.metrics import bbox_ap

    folder = real_data / "coco_test"
    ap = bbox_ap(folder / "test_coco.json", folder / "test_coco_det_AP_H_56.json")
    assert 0.3 < ap < 1


def test_the_project_root_is_the_default():
    assert (PROJECT_ROOT / "pyproject.toml").is_file()
