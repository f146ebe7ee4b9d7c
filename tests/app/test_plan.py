"""The plan: what is there, what was measured, and arithmetic that can be done by hand."""

import re
import shutil
from dataclasses import replace

import pytest
import torch

import hrnetpp_lib.app.plan as module
from hrnetpp_lib.__main__ import main
from hrnetpp_lib.data import layout
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.evaluate.metrics import bbox_ap
from hrnetpp_lib.files import project_root
from hrnetpp_lib.model.anatomy import count_macs
from hrnetpp_lib.recipe import COCO, HRNETPP, LSPET, MINI, SMOKE, ablation_runs, three_stages
from hrnetpp_lib.train.loop import build_model

TINY = replace(SMOKE, synthetic_persons=(16, 12, 4), holdout_persons=2)
# The paper's profile with a network that can be measured in a test.
PAPER = replace(COCO, network=SMOKE.network, input_hw=(64, 32), precision="fp32")


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(module, "_MEASURED_S", 0.1)


def text_of(profile, root, gpus=1) -> str:
    return "\n".join(module.plan(profile, root, gpus))


def test_everything_of_a_profile_that_makes_its_data(tmp_path):
    text = text_of(TINY, tmp_path, gpus=2)
    assert "batch 8 = 2 x 4" in text and "missing" not in text
    assert "coco train: 16 persons" in text and re.search(r"person box AP \d+\.\d on val", text)
    assert re.search(r"model on one thread of this CPU, steps of 4 crops, fp32: [\d.]+ crops/s", text)
    assert re.search(r"loader with 0 processes, 16 crops: [\d.]+ crops/s", text)
    assert "16 persons (counted) = 16 samples" in text and "loads its crops itself" in text
    assert not re.search(r"\bnan\b|\binf\b|None", text)


def test_the_papers_cost_without_its_data(tmp_path):
    text = text_of(PAPER, tmp_path, gpus=8)
    assert "batch 96 = 8 x 12" in text
    for missing in ("train2017", "keypoint_train_images_20170902", "AP_H_56", "hrnet_w48-8ef0771d.pth"):
        assert re.search(rf"missing: .*{missing}", text)
    assert text.count("30 epochs x 444000 persons (the report's number) = 13,320,000 samples") == 2
    assert text.count("150 epochs x 149813 persons (the report's number) = 22,471,950 samples") == 2
    assert text.count(" 30 epochs x 149813 persons") == 6 and text.count(" 20 epochs x 149813 persons") == 1
    # 2 x 30 x 444,000 + (2 x 150 + 6 x 30 + 20) x 149,813
    assert re.search(r"all 11 trainings +101,546,500 samples", text)
    assert "bottleneck: unknown, the loader was not measured" in text
    assert "GPU-hours, and again by 8" in text


def test_the_notebooks_trainings():
    runs = module.notebook_runs(MINI)
    assert len({run.name for run in runs}) == len(runs) == 12
    assert set(three_stages(MINI)) | set(ablation_runs(MINI)) < set(runs)
    assert [run.stage.alpha for run in runs if run.stage.loss == "softargmax_l1"] == [60, 15]
    assert {run.architecture for run in runs if run.stage.loss == "softargmax_l1"} == {HRNETPP}
    assert len(module.notebook_runs(COCO)) == 11  # sigma 3: alpha fits the heatmaps as it is
    assert module.notebook_runs(LSPET)[-1].stage.alpha == pytest.approx(60 * 4 / 9)


def test_cost_by_hand(monkeypatch):
    runs = three_stages(replace(PAPER, epochs=(1, 2, 3)))
    persons = {"ai_challenger": (36_000, "counted"), "coco": (7_200, "counted")}
    monkeypatch.setattr(module, "processes_at_once", lambda _: 2)
    lines = list(module._cost(runs, persons, 2.0, 4))
    assert "= 36,000 samples, 5 hours of one process" in lines[1]
    assert "= 14,400 samples, 2 hours" in lines[2] and "= 21,600 samples, 3 hours" in lines[3]
    model = build_model(runs[0], 17)
    mib = sum(tensor.nbytes for tensor in model.state_dict().values()) / 2**20
    flop = 6 * count_macs(model, PAPER.input_hw) * 72000
    assert f"72,000 samples, 10 hours of one process, {6 * mib:.0f} MiB, {flop:.2g} FLOP" in lines[4]
    assert f"beside them {9 * mib:.0f} MiB" in lines[5]
    assert lines[6] == "  side by side, with 2 at once all the time: 5 hours of this CPU"
    monkeypatch.setattr(module, "pick_device", lambda: torch.device("cuda"))
    *_, last = module._cost(runs, persons, 2.0, 4)
    assert last == "  on 4 such GPUs, if they scale perfectly: 2.5 hours"


def test_the_slower_side_is_named_by_hand():
    eight = module._bottleneck(replace(PAPER, workers=8), 100.0, 30.0, gpus=2)
    assert "the model" in eight and "4 of them (cores) feed one such device, 8 feed 2" in eight
    assert "the loader" in module._bottleneck(replace(PAPER, workers=3), 100.0, 30.0, 1)
    assert "75.0 crops/s together" in module._bottleneck(SMOKE, 100.0, 300.0, 1)


def test_a_batch_that_gpus_cannot_share_is_refused(tmp_path):
    for gpus, message in ((3, "batch of 8 cannot be divided into 3"), (0, "0 GPUs"), (-1, "at least 1")):
        with pytest.raises(HrnetppError, match=message):
            text_of(TINY, tmp_path, gpus)


def test_a_flat_folder_of_coco_pictures_is_read_too(tmp_path):
    paths = layout.prepare_data(TINY, tmp_path)
    official = layout.load_coco(TINY, paths)
    for split in ("train", "val"):
        shutil.copytree(paths.coco_images(split), paths.coco / "images", dirs_exist_ok=True)
        shutil.rmtree(paths.coco / f"{split}2017")
    assert layout.missing_files(TINY, layout.DataPaths(paths.root)) == []
    flat = layout.load_coco(TINY, paths)
    assert flat.train.image_dir == paths.coco / "images" and flat.train.image_path(0).is_file()
    assert flat.train.fingerprint() == official.train.fingerprint()


def test_a_picture_that_is_gone_or_torn_costs_no_other_line(tmp_path, monkeypatch):
    paths = layout.prepare_data(TINY, tmp_path / "data")
    monkeypatch.setattr(layout, "prepare_data", lambda *_: paths)  # makes none anew
    first, *others = sorted(paths.coco_images("train").iterdir())
    first.unlink()
    for picture in others:
        picture.write_bytes(b"torn")
    text = text_of(TINY, tmp_path)
    assert f"images of {paths.coco_json('train')} are missing: {first.name}" in text
    assert "loader: not measured: " in text and "unknown, the loader was not measured" in text
    assert "cost of the notebooks' trainings" in text and "GiB free" in text


def test_real_boxes_have_their_ap(real_data):
    folder = real_data / "coco_test"
    assert 0.3 < bbox_ap(folder / "test_coco.json", folder / "test_coco_det_AP_H_56.json") < 1


def test_by_default_it_plans_mini_here(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(module, "plan", lambda *given: asked.append(given) or ["a line"])
    assert main(["plan"]) == 0
    assert asked == [(MINI, project_root(), 1)] and capsys.readouterr().out == "a line\n"
