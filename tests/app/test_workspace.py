"""Where notebooks leave things: pictures of photographs above all."""

import json
from dataclasses import replace

import numpy as np
import pytest

from hrnetpp_lib import draw as plots
from hrnetpp_lib.app.workspace import Workspace, open_workspace
from hrnetpp_lib.data.images import read_image
from hrnetpp_lib.data.layout import data_paths
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.model.weights import ModelCard, save_checkpoint
from hrnetpp_lib.pose.keypoints import COCO17
from hrnetpp_lib.recipe import HRNET, get_profile, three_stages
from hrnetpp_lib.train.loop import build_model, checkpoint_path

NOISE = np.random.default_rng(0).integers(0, 256, (96, 72, 3)).astype(np.uint8)


def workspace(profile_name: str, root) -> Workspace:
    profile = get_profile(profile_name)
    return Workspace(profile, root, data_paths(profile, root / "data"))


def shown(ws: Workspace) -> np.ndarray:
    """The picture in a figure after the workspace has had it."""
    figure = ws.show(plots.render_images([NOISE], [[]], COCO17), "fig")
    return np.asarray(figure.axes[0].images[0].get_array())


@pytest.mark.parametrize("name", ["mini", "lspet_cpu", "lspet", "coco"])
def test_headless_figures_of_photographs_are_blurred(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HRNETPP_HEADLESS", "1")
    ws = workspace(name, tmp_path)
    is_photograph = name != "mini"
    assert (shown(ws).std() < 10) == is_photograph
    # What lies on the disk too: 6.5 inches of noise are rougher than 6.5 inches of blur.
    file = read_image(ws.figures / "fig.png").astype(float)
    assert (np.abs(np.diff(file[100:-100, 100:-100], axis=1)).mean() < 2) == is_photograph


def test_people_see_photographs_as_they_are_and_nothing_is_saved(tmp_path, monkeypatch):
    monkeypatch.setattr("hrnetpp_lib.app.workspace.headless", lambda: False)
    ws = workspace("lspet", tmp_path)
    np.testing.assert_array_equal(shown(ws), NOISE)
    assert not ws.figures.exists()
    assert (shown(workspace("mini", tmp_path)) == NOISE).all() and (
        tmp_path / "figures/mini/fig.png"
    ).exists()


def test_without_a_finished_run_the_command_that_makes_some_is_named(tmp_path):
    ws = workspace("mini", tmp_path)
    runs = {run.stage.name: run for run in three_stages(ws.profile)}
    with pytest.raises(HrnetppError, match="no finished run.*train --profile mini"):
        ws.networks(runs)


def test_a_run_that_is_not_finished_is_named(tmp_path):
    ws = workspace("mini", tmp_path)
    run = three_stages(ws.profile, seed=7)[1]
    for use in (ws.load, ws.checkpoint_hash):
        with pytest.raises(HrnetppError, match=rf"{run.name}.*not there; run the notebooks.*\(mini, 7\)"):
            use(run)


def test_predictions_follow_the_network_and_the_boxes(tmp_path):
    ws = open_workspace("smoke", tmp_path)
    run, data = three_stages(ws.profile, HRNET)[1], ws.stage_data("coco")
    (ws.runs / run.name).mkdir(parents=True, exist_ok=True)
    card = ModelCard.of_run(run, data.val.skeleton)
    path = checkpoint_path(ws.runs, run.name)
    save_checkpoint(build_model(run, 17), card, path)
    before = ws.predictions(run, data)
    files = set(path.parent.glob("predictions_*"))
    np.testing.assert_array_equal(ws.predictions(run, data).keypoints, before.keypoints)
    assert set(path.parent.glob("predictions_*")) == files
    moved = replace(data, val=replace(data.val, bboxes_xywh=data.val.bboxes_xywh + [20, 0, 0, 0]))
    assert not np.array_equal(ws.predictions(run, moved).keypoints, before.keypoints)
    save_checkpoint(build_model(replace(run, seed=1), 17), card, path)
    assert not np.array_equal(ws.predictions(run, data).scores, before.scores)


def test_a_run_is_described_by_all_of_its_epochs(tmp_path):
    ws = workspace("smoke", tmp_path)
    run = three_stages(ws.profile)[1]
    (ws.runs / run.name).mkdir(parents=True)
    epochs = [{"epoch": 1, "step": 3, "seconds": 0.015}, {"epoch": 2, "step": 6, "seconds": 0.005}]
    (ws.runs / run.name / "metrics.jsonl").write_text("\n".join(map(json.dumps, epochs)) + "\n")
    described = ws.describe_run(run)
    assert described["crops"] == 6 * ws.profile.batch_size
    assert described["train_seconds"] == pytest.approx(0.02)  # not 0: notebook 8 divides by it


def test_missing_data_are_named_on_opening(tmp_path):
    with pytest.raises(HrnetppError, match="joints.mat"):
        open_workspace("lspet_cpu", tmp_path)


def test_results_are_read_back(tmp_path):
    ws = workspace("smoke", tmp_path)
    ws.save_results("03", {"value": 1})
    assert ws.results("03")["value"] == 1 and ws.results("03")["provenance"]["profile"] == "smoke"
    with pytest.raises(HrnetppError, match="04.json"):
        ws.results("04")
