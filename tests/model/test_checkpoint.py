"""A checkpoint brings back the network and how to use it, or says why it cannot."""

from dataclasses import replace

import pytest
import torch

from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.model.hrnet import HRNet
from hrnetpp_lib.model.weights import ModelCard, load_checkpoint, save_checkpoint, save_model
from hrnetpp_lib.pose.geometry import UDP
from hrnetpp_lib.pose.keypoints import AIC14
from hrnetpp_lib.recipe import HRNETPP, SMOKE, STAGE3, resolve

SMALL = {"blocks_per_branch": 1, "modules": (1, 1, 1), "stem_channels": 8, "layer1_blocks": 1}
CARD = ModelCard(AIC14, (64, 96), "soft_argmax", 27.0, UDP, "some run")


def test_round_trip(tmp_path):
    torch.manual_seed(0)
    model = HRNet(8, 14, **SMALL, **HRNETPP.switches)
    save_checkpoint(model, CARD, tmp_path / "new" / "model.safetensors")
    loaded, card = load_checkpoint(tmp_path / "new" / "model.safetensors")
    assert card == CARD and not loaded.training and loaded.config == model.config
    images = torch.rand(2, 3, 64, 96)
    assert torch.equal(loaded(images), model.eval()(images))


def test_card_of_a_run():
    run = resolve(replace(STAGE3, alpha=27.0, coordinates="udp"), SMOKE)
    card = ModelCard.of_run(run, AIC14)
    assert card == ModelCard(AIC14, (64, 64), "soft_argmax", 27.0, UDP, run.name)


def test_foreign_damaged_and_missing_files_are_refused(tmp_path):
    model = HRNet(8, **SMALL)
    save_model(model, tmp_path / "bare.safetensors", {})
    with pytest.raises(HrnetppError, match="bare.safetensors.*no model card"):
        load_checkpoint(tmp_path / "bare.safetensors")
    save_checkpoint(model, ModelCard(), tmp_path / "cut.safetensors")
    content = (tmp_path / "cut.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(HrnetppError, match="cut.safetensors"):
        load_checkpoint(tmp_path / "cut.safetensors")
    with pytest.raises(HrnetppError, match="gone.safetensors"):
        load_checkpoint(tmp_path / "gone.safetensors")


def test_a_card_with_an_unknown_skeleton_is_refused(tmp_path):
    card = ModelCard(replace(AIC14, name="aic15"))
    save_checkpoint(HRNet(8, 14, **SMALL), card, tmp_path / "model.safetensors")
    with pytest.raises(HrnetppError, match="aic15"):
        load_checkpoint(tmp_path / "model.safetensors")


def test_weights_that_are_not_finite_are_refused(tmp_path):
    model = HRNet(8, 17, blocks_per_branch=1, modules=(1, 1, 1))
    model.final_layer.bias.data[3] = float("nan")
    save_checkpoint(model, ModelCard(), tmp_path / "nan.safetensors")
    with pytest.raises(HrnetppError, match=r"nan.safetensors: final_layer.bias is not finite"):
        load_checkpoint(tmp_path / "nan.safetensors")
