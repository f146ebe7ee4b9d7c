"""Where notebooks leave things: pictures of photographs above all."""

import json
import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from hrnetpp_lib import draw
from hrnetpp_lib.app.workspace import Workspace, open_workspace
from hrnetpp_lib.data.crops import View
from hrnetpp_lib.data.images import read_image
from hrnetpp_lib.data.layout import DataPaths, data_paths
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.evaluate.infer import Predictions
from hrnetpp_lib.evaluate.score import resample
from hrnetpp_lib.evaluate.table import PARTS, Training
from hrnetpp_lib.files import read_json, sha256
from hrnetpp_lib.model.hrnet import HRNet
from hrnetpp_lib.model.published import FILES
from hrnetpp_lib.model.weights import ModelCard, save_checkpoint
from hrnetpp_lib.pose.keypoints import COCO17
from hrnetpp_lib.recipe import HRNET, HRNETPP, PROFILES, Run, get_profile, three_stages
from hrnetpp_lib.train.loop import build_model, checkpoint_path

NOISE = np.random.default_rng(0).integers(0, 256, (96, 72, 3)).astype(np.uint8)


def workspace(profile_name: str, root, **options) -> Workspace:
    profile = get_profile(profile_name)
    return Workspace(profile, root, data_paths(profile, root / "data"), **options)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> Workspace:
    return open_workspace("smoke", tmp_path_factory.mktemp("smoke"))


def shown(ws: Workspace) -> np.ndarray:
    """The picture in a figure after the workspace has had it."""
    figure = ws.show(draw.render_images([NOISE], [[]], COCO17), "fig")
    return np.asarray(figure.axes[0].images[0].get_array())


def test_a_pair_is_one_stage_of_plain_hrnet_and_of_hrnetpp(tmp_path):
    ws = workspace("lspet_cpu", tmp_path)
    plain, ours = ws.pair(stage=2, seed=3).values()
    assert (plain, ours) == tuple(three_stages(ws.profile, one, 3)[1] for one in (HRNET, HRNETPP))
    assert list(ws.pair(stage=1)) == ["HRNet", "HRNet++"]
    assert ws.describe_set("coco") == "Leeds Sports Pose in COCO's format"  # nobody calls it COCO
    assert workspace("coco", tmp_path).describe_set("coco") == "COCO 2017"


def test_crops_come_with_truth_and_poses_in_their_own_px(smoke):
    data = smoke.stage_data("coco")
    rows = np.array([2, 0, 1])
    boxes = data.val.bboxes_xywh[:, None]
    centres = np.repeat(boxes[:, :, :2] + boxes[:, :, 2:] / 2, 17, axis=1)
    found = {"HRNet": Predictions(centres, np.full(centres.shape[:2], 0.5, np.float32), (64, 64))}
    crops, truth, poses = smoke.in_crops(rows, found, data)
    assert [crop.shape for crop in crops] == [(64, 64, 3)] * 3 and truth.shape == (3, 17, 3)
    np.testing.assert_allclose(np.array(poses["HRNet"]), np.broadcast_to([32, 32, 0.5], (3, 17, 3)))


@pytest.mark.parametrize("name", ["mini", "lspet_cpu", "lspet", "coco"])
def test_photographs_are_left_out_wherever_a_notebook_runs(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))  # as under nbconvert
    ws = workspace(name, tmp_path)
    is_photograph = name != "mini"
    assert (shown(ws).std() == 0) == is_photograph
    # What lies on the disk too.
    file = read_image(ws.figures / "fig.png").astype(float)
    assert (np.abs(np.diff(file[100:-100, 100:-100], axis=1)).mean() < 2) == is_photograph


def test_photographs_are_shown_when_asked_for_and_nothing_is_saved(tmp_path, smoke):
    ws = workspace("lspet", tmp_path, show_photographs=True)
    np.testing.assert_array_equal(shown(ws), NOISE)
    assert not ws.figures.exists()
    ours = open_workspace("smoke", smoke.root, show_photographs=True)
    assert ours.show_photographs and not smoke.show_photographs
    assert (shown(ours) == NOISE).all() and (ours.figures / "fig.png").exists()


def test_runs_that_are_not_finished_are_named_or_the_command_that_makes_some(tmp_path):
    ws = workspace("mini", tmp_path)
    run = three_stages(ws.profile, seed=7)[1]
    with pytest.raises(HrnetppError, match="no finished run.*train --profile mini"):
        ws.networks({"heatmap": run})
    for use in (ws.load, ws.checkpoint_hash):
        with pytest.raises(HrnetppError, match=rf"{run.name}.*not there; run the notebooks.*\(mini, 7\)"):
            use(run)


def finish(ws: Workspace, run: Run, *epochs: tuple[int, float]) -> Path:
    """A run's folder as training leaves it, with random weights and the step and seconds of each epoch."""
    path = checkpoint_path(ws.runs, run.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(build_model(run, 17), ModelCard.of_run(run, COCO17), path)
    rest = {"loss": 0.5, "lr": 0.1, "samples_per_s": 9.0, "bad_images": 0, "processes": 1, "accumulate": 1}
    lines = [{"epoch": n, "step": step, "seconds": s} | rest for n, (step, s) in enumerate(epochs, 1)]
    (path.parent / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


def test_predictions_follow_network_boxes_and_views_and_heal(tmp_path, smoke, monkeypatch):
    ws = replace(smoke, root=tmp_path)
    run, data = three_stages(ws.profile, HRNET)[1], ws.stage_data("coco")
    path = finish(ws, run)
    before = ws.predictions(run, data)
    (kept,) = path.parent.glob("predictions_*")
    stamp = kept.stat().st_mtime_ns
    np.testing.assert_array_equal(ws.predictions(run, data).keypoints, before.keypoints)
    assert kept.stat().st_mtime_ns == stamp  # read, not made anew
    n, k = before.scores.shape
    for shape in ((n, 14), (n - 1, k), None):
        kept.write_bytes(kept.read_bytes()[:99])
        if shape:
            Predictions(np.zeros((*shape, 2)), np.zeros(shape), (64, 64)).save(kept)
        np.testing.assert_array_equal(ws.predictions(run, data).keypoints, before.keypoints)
        assert Predictions.load(kept).scores.shape == (n, k)
    moved = replace(data, val=replace(data.val, bboxes_xywh=data.val.bboxes_xywh + [20, 0, 0, 0]))
    assert not np.array_equal(ws.predictions(run, moved).keypoints, before.keypoints)
    monkeypatch.setattr("hrnetpp_lib.app.workspace.SINGLE_VIEW", (View(1.3),))
    assert not np.array_equal(ws.predictions(run, data).keypoints, before.keypoints)
    monkeypatch.undo()
    save_checkpoint(build_model(replace(run, seed=1), 17), ModelCard.of_run(run, COCO17), path)
    assert not np.array_equal(ws.predictions(run, data).scores, before.scores)


def test_table_1_in_one_call(tmp_path, smoke, monkeypatch):
    monkeypatch.setattr("hrnetpp_lib.evaluate.table.resample", partial(resample, draws=20))
    data = DataPaths(shutil.copytree(smoke.data.root, tmp_path / "data"))
    ws = replace(smoke, root=tmp_path, profile=replace(smoke.profile, data="public"), data=data)
    runs = [*three_stages(ws.profile, HRNET)[:2], *three_stages(ws.profile)]
    for run in runs:
        finish(ws, run, (3, 0.015), (6, 0.005))
    rows, claims = ws.table_1()
    written = read_json(ws.figures / "results.json", dict)
    assert [described["name"] for described in written["runs"]] == [run.name for run in runs]
    assert {described["crops"] for described in written["runs"]} == {6 * ws.profile.batch_size}
    assert written["runs"][0]["train_seconds"] == pytest.approx(0.02)  # not 0: notebook 8 divides by it
    assert written["profile"] == "smoke" and written["data"] == ws.describe_data(ws.stage_data("coco"))
    baseline, heatmap, regression = (runs[i].name for i in (1, 3, 4))
    used = [[baseline], [heatmap], *[[regression]] * 2, *[[heatmap, regression]] * 2]
    assert [list(row["runs"]) for row in written["rows"]] == used and len(claims) == 5
    assert [list(row.runs) for row in rows] == used
    assert (ws.figures / "table_1.md").read_text().count("\n| ") == 7
    with pytest.raises(HrnetppError, match="not there; run the notebooks"):
        ws.table_1(seed=1)
    # The published network, if it is there, has a row after the first.
    theirs = ws.data.published
    theirs.parent.mkdir()
    torch.manual_seed(1)
    network = HRNet(2, blocks_per_branch=1, modules=(1, 1, 1), stem_channels=2, layer1_blocks=1)
    torch.save(network.state_dict(), theirs)
    monkeypatch.setitem(FILES, theirs.name, replace(FILES[theirs.name], digest=sha256(theirs)))
    # Five seeds in which the second row is ahead by ten points, where six are planned.
    aps = dict.fromkeys(PARTS, (0.5, 0.5))
    known = [Training(n, aps | {"HRNet": (0.4 + n / 1000, 0.4)}) for n in range(5)]
    monkeypatch.setattr("hrnetpp_lib.app.workspace.trainings", lambda results, profile: known)
    assert ws.table_1()[1][0].verdict.words == "larger"
    monkeypatch.setattr("hrnetpp_lib.app.workspace.planned_seeds", lambda profile: 6)
    assert ws.table_1()[1][0].verdict.words == "not decided; larger so far, 1 more are planned"
    rows = read_json(ws.figures / "results.json", dict)["rows"]
    assert [row["method"] for row in rows[:2]] == ["HRNet", "published HRNet-W48"]
    assert rows[1]["runs"] == {theirs.stem: sha256(theirs)} and len(rows) == 7
    poses = sorted((ws.runs / theirs.stem).iterdir())
    assert [Predictions.load(path).input_hw for path in poses] == [(384, 288)] * 2


def test_results_are_read_back_and_what_is_missing_is_named(tmp_path):
    ws = workspace("smoke", tmp_path)
    ws.save_results("03", {"value": 1})
    assert ws.results("03")["value"] == 1 and ws.results("03")["provenance"]["profile"] == "smoke"
    with pytest.raises(HrnetppError, match="04.json"):
        ws.results("04")
    with pytest.raises(HrnetppError, match="joints.mat"):
        open_workspace("lspet_cpu", tmp_path)


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_says_what_its_numbers_are_worth(tmp_path, profile):
    said = workspace(profile, tmp_path).say_scope()
    assert said.startswith(f"Profile `{profile}`. It ") and said.endswith(".")
