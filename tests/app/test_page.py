"""The page of the explorers: what it shows, and what is refused before anything is served."""

import re
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from hrnetpp_lib.__main__ import main
from hrnetpp_lib.app.page import build_page
from hrnetpp_lib.model.hrnet import HRNet
from hrnetpp_lib.model.weights import ModelCard, save_checkpoint
from hrnetpp_lib.recipe import HRNET, SMOKE, three_stages
from hrnetpp_lib.train.loop import checkpoint_path


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    model = HRNet(8, blocks_per_branch=1, modules=(1, 1, 1), stem_channels=8, layer1_blocks=1)
    save_checkpoint(model, ModelCard(input_hw=(64, 96)), path := tmp_path / "run" / "model.safetensors")
    return path


@pytest.fixture
def photograph(tmp_path):
    cv2.imwrite(str(path := tmp_path / "photo.png"), np.full((70, 50, 3), 90, np.uint8))
    return path


def test_own_pictures_and_networks_need_no_data(tmp_path, checkpoint, photograph):
    page = build_page("mini", tmp_path, [str(photograph)], [str(checkpoint)])
    (explorer,) = page.children
    assert page.titles == ("heatmaps",)
    assert (explorer.network.options, explorer.picture.options) == (("run",), (("photo.png", 0),))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photo.png", "run"]


def test_networks_are_those_that_are_finished_or_that_of_predict(
    tmp_path, checkpoint, photograph, monkeypatch
):
    packaged = checkpoint.rename(checkpoint.with_name("packaged.safetensors"))
    monkeypatch.setattr("hrnetpp_lib.app.photo.packaged_checkpoint", lambda _: packaged)
    (explorer,) = build_page("smoke", tmp_path, [str(photograph)]).children
    assert explorer.network.options == ("packaged.safetensors",)
    for run in (three_stages(SMOKE)[2], three_stages(SMOKE, HRNET)[1]):
        path = checkpoint_path(tmp_path / "runs" / "smoke", run.name)
        path.parent.mkdir(parents=True)
        path.write_bytes(packaged.read_bytes())
    (explorer,) = build_page("smoke", tmp_path, [str(photograph)]).children
    assert explorer.network.options == ("regression", "plain HRNet")


def test_mistakes_are_one_line_before_anything_is_served(
    tmp_path, checkpoint, photograph, capsys, monkeypatch
):
    monkeypatch.setattr("hrnetpp_lib.app.photo.packaged_checkpoint", lambda _: None)
    found = SimpleNamespace(find_spec=lambda _: True)
    monkeypatch.setattr("hrnetpp_lib.app.page.importlib", SimpleNamespace(util=found))
    files, network = [str(photograph)], ["--checkpoint", str(checkpoint)]
    for arguments, words in (
        ([*files, "--profile", "big"], "unknown profile 'big'"),
        (files, "no finished HRNet"),
        ([str(tmp_path / "none"), *network], "none: no picture there"),
        ([*files, "--checkpoint", str(photograph)], "photo.png: damaged"),
        ([*files, "--checkpoint", str(tmp_path / "gone.onnx")], "gone.onnx: there is no such file"),
        (["--profile", "lspet", *network], "To get them: download joints.mat"),
    ):
        assert main(["explore", *arguments, "--output", str(tmp_path)]) == 2
        assert re.fullmatch(rf"error: .*{words}.*\n", capsys.readouterr().err)
    found.find_spec = lambda _: None
    assert main(["explore", *files, *network]) == 2
    assert "needs voila; pip install 'hrnetpp-lib[explore]'" in capsys.readouterr().err
