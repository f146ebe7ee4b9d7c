"""Weight files in the layouts people have: official pose, ImageNet, timm, our own; and files gone wrong."""

import hashlib
import json
import os
import resource
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from official_hrnet import official_shapes
from safetensors.torch import save_file

from hrnetpp_lib import create_model
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.model import weights
from hrnetpp_lib.model.hrnet import HRNet
from hrnetpp_lib.model.weights import LoadReport, ModelCard, load_checkpoint, load_weights, save_checkpoint
from hrnetpp_lib.pose.geometry import OFFICIAL, UDP
from hrnetpp_lib.pose.keypoints import AIC14, COCO17
from hrnetpp_lib.recipe import SMOKE, STAGE3, resolve

ALL_ON = {"se": True, "avgpool_down": True, "skips": True, "subpixel_head": True}
SMALL = {"blocks_per_branch": 1, "modules": (1, 1, 1), "stem_channels": 8, "layer1_blocks": 1}
HEAD = ("final_layer.weight", "final_layer.bias")
STEM_AND_LAYER1 = ("conv1.", "bn1.", "conv2.", "bn2.", "layer1.")
CARD = ModelCard(AIC14, (64, 96), "soft_argmax", 27.0, UDP, "some run")
load_stem_and_layer1 = weights.load_stem_and_layer1
LOADERS = [load_weights, load_stem_and_layer1, lambda model, path: load_checkpoint(path)]


def small(num_keypoints: int = 5, seed: int = 0, **switches) -> HRNet:
    """A narrow network with nothing at its initial value."""
    torch.manual_seed(seed)
    model = HRNet(8, num_keypoints, **(SMALL | switches))
    for tensor in model.state_dict().values():
        tensor.uniform_(0.5, 1.5) if tensor.is_floating_point() else tensor.fill_(7 + seed)
    return model


def imagenet_layout(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A classification network on the same trunk: another head, and a last block that fuses everywhere."""
    shapes = {"stage4.0.fuse_layers.1.0.0.0.weight": (16, 8, 3, 3), "downsamp_modules.0.0.bias": (64,)}
    shapes |= {"incre_modules.0.0.conv1.weight": (32, 8, 1, 1), "classifier.weight": (10, 128)}
    shapes |= {"final_layer.0.weight": (128, 64, 1, 1), "final_layer.0.bias": (128,)}
    trunk = {name: tensor for name, tensor in state.items() if name not in HEAD}
    return trunk | {name: torch.rand(shape) for name, shape in shapes.items()}


def put(path: Path, content) -> Path:
    """A file of these tensors, in the layout of its ending."""
    (save_file if path.suffix == ".safetensors" else torch.save)(content, path)
    return path


def same(a: dict, b: dict, names) -> bool:
    assert names
    return all(torch.equal(a[name], b[name]) for name in names)


def unchanged(model: HRNet, seed: int) -> bool:
    return same(model.state_dict(), small(seed=seed).state_dict(), model.state_dict())


def check_partition(report: LoadReport, model: HRNet, file: dict) -> None:
    """loaded and new make up the network; loaded, skipped and mismatched the file."""
    assert sorted(report.loaded + report.new) == sorted(model.state_dict())
    assert sorted(report.loaded + report.skipped + report.mismatched) == sorted(file)


@pytest.mark.parametrize("switches", [{}, ALL_ON | {"se_bias": 3.0, "skip_bn": True, "head": "sum"}])
def test_checkpoint_round_trip(tmp_path, switches):
    model = small(14, **switches).to(memory_format=torch.channels_last)
    path = tmp_path / "run" / "model.safetensors"
    save_checkpoint(model, CARD, path)
    random = torch.get_rng_state()
    copy, card = load_checkpoint(str(path))
    assert torch.equal(torch.get_rng_state(), random)
    assert card == CARD and not copy.training and copy.config == model.config
    assert list(copy.state_dict()) == list(model.state_dict())
    assert same(copy.state_dict(), model.state_dict(), model.state_dict())
    assert all(parameter.requires_grad for parameter in copy.parameters())
    assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]
    (tmp_path / "any").touch()
    assert path.stat().st_mode == (tmp_path / "any").stat().st_mode  # for whom other files are, too


def test_bytes_of_a_checkpoint_stay_what_they_were(tmp_path):
    model = HRNet(2, 14, **(SMALL | {"stem_channels": 1}))
    for tensor in model.state_dict().values():
        tensor.fill_(1)
    save_checkpoint(model, CARD, tmp_path / "model.safetensors")
    digest = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    assert digest == "cd1132424a1f0d5fe47aae99f9adb0f245cfe4892c3cb2a02776703edd20bc14"


def test_card_of_a_run():
    run = resolve(replace(STAGE3, alpha=27.0, coordinates="udp"), SMOKE)
    assert ModelCard.of_run(run, AIC14) == ModelCard(AIC14, (64, 64), "soft_argmax", 27.0, UDP, run.name)


def test_a_web_page_in_the_place_of_weights_is_called_one(tmp_path):
    path = tmp_path / "pose_hrnet.pth"
    path.write_bytes(b"\n<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></html>")
    with pytest.raises(HrnetppError, match="pose_hrnet.pth: a web page, not weights"):
        load_checkpoint(path)


def test_files_of_old_pytorch_have_no_counts_of_batches(tmp_path):
    model = create_model("hrnet_w32").eval()
    tensors = {n: t for n, t in model.state_dict().items() if not n.endswith("num_batches_tracked")}
    torch.save(tensors, tmp_path / "pose_hrnet_w32.pth")
    read, _ = load_checkpoint(tmp_path / "pose_hrnet_w32.pth")
    assert same(read.state_dict(), model.state_dict(), tensors)
    report = weights.load_stem_and_layer1(create_model("hrnet_w32"), tmp_path / "pose_hrnet_w32.pth")
    assert "bn1.num_batches_tracked" in report.loaded


def test_a_full_disk_keeps_the_older_file(tmp_path, full_disk):
    path = tmp_path / "model.safetensors"
    save_checkpoint(small(14, seed=1), CARD, path)
    full = pytest.raises(HrnetppError, match=r"model\.safetensors: cannot be written .*make room")
    with full, full_disk(2**16):
        save_checkpoint(small(14, seed=2), CARD, path)
    assert same(load_checkpoint(path)[0].state_dict(), small(14, seed=1).state_dict(), HEAD)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def rewritten(path: Path, card: dict | None = None, network: dict | None = None, tensors=None) -> Path:
    """A checkpoint whose header or tensors were changed; a value of ... takes the field away."""
    model, good = small(14), {"card": vars(CARD) | {"skeleton": "aic14", "coordinates": "udp"}}
    good["hrnet"] = model.config
    for part, changes in (("card", card or {}), ("hrnet", network or {})):
        fields = good[part] | changes
        good[part] = json.dumps({name: value for name, value in fields.items() if value is not ...})
    save_file(model.state_dict() | (tensors or {}), path, metadata={"hrnetpp_lib": json.dumps(good)})
    return path


BAD_CARDS = [
    *[
        ("alpha", None, "got `null` - at"),
        ("alpha", -60.0, "> 0.0 - at"),
        ("alpha", 1e39, "<= 1000000.0 - at"),
    ],
    *[("alpha", float("nan"), "malformed"), ("alpha", float("inf"), "malformed"), ("alpha", ..., "missing")],
    *[("decoder", "other", "'other' - at"), ("skeleton", "aic15", "'aic15' - at"), ("beta", 1, "unknown")],
    *[("coordinates", "dark", "'dark' - at"), ("skeleton", "coco17", "14 heatmaps, but coco17")],
    *[("input_hw", [64, 48], "multiple of 32 - at"), ("input_hw", [64, 2**32 + 32], "<= 2048 - at")],
    *[("input_hw", [0, 64], ">= 32 - at"), ("input_hw", [64], "length 2"), ("run", 7, "got `int` - at")],
    *[("run", "\ud800", "its card: "), ("run", "a\nb", "- at")],
]


def test_a_rewritten_checkpoint_is_good_unless_something_is_changed(tmp_path):
    assert load_checkpoint(rewritten(tmp_path / "a.safetensors"))[1] == CARD


@pytest.mark.parametrize(("field", "value", "message"), BAD_CARDS)
def test_bad_cards_are_refused(tmp_path, field, value, message):
    path = rewritten(tmp_path / "bad.safetensors", card={field: value})
    place = rf" `\$\.{field}" if message.endswith("- at") else ""
    with pytest.raises(HrnetppError, match=rf"bad\.safetensors: .*{message}{place}.*train with it") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_channels": 10**6}, r"<= 2048 - at `\$\.base_channels`"),
        ({"base_channels": 2048}, "its tensors are not those"),  # would be 300 gigabytes
        ({"modules": [32, 32, 32], "blocks_per_branch": 32, "skips": True}, "its tensors are not those"),
        ({"num_keypoints": 17}, "its tensors are not those"),
        ({"head": "sum"}, "no effect without subpixel_head"),
        ({"se": None}, r"Expected `bool`, got `null` - at `\$\.se`"),
        ({"layer1_blocks": ...}, "missing required field `layer1_blocks`"),
    ],
)
def test_networks_that_the_tensors_do_not_bear_out_are_refused(tmp_path, changes, message):
    path = rewritten(tmp_path / "bad.safetensors", network=changes)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(HrnetppError, match=rf"bad\.safetensors: .*{message}"):
        load_checkpoint(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < peak + 2**18  # KiB


# --------------------------------------------------------------------------------- published networks


class HistoryBuffer:
    """As mmengine's: its state has functions that pickle finds by getattr, and arrays of numpy."""

    def __init__(self):
        self.history = np.arange(3.0)

    def mean(self):
        raise AssertionError("this must not run")

    def __getstate__(self):
        return {"history": self.history, "statistics_methods": {"mean": HistoryBuffer.mean}}

    def __setstate__(self, state):
        raise AssertionError("this must not run")


HistoryBuffer.__module__ = "mmengine.logging.history_buffer"


@pytest.fixture
def mmengine(monkeypatch):
    """A module that only the one who saves has."""
    with monkeypatch.context() as patch:
        for name in ("mmengine", "mmengine.logging", HistoryBuffer.__module__):
            patch.setitem(sys.modules, name, SimpleNamespace(HistoryBuffer=HistoryBuffer))
        yield patch


def mmpose_layout(state: dict, head: str) -> dict[str, torch.Tensor]:
    return {(f"{head}." if name in HEAD else "backbone.") + name: tensor for name, tensor in state.items()}


def as_saved(layout: str, state: dict) -> dict:
    """What the training scripts of others put into a file."""
    epoch = {"epoch": 209, "perf": np.float64(0.763), "optimizer": {"state": {0: {"step": 7}}, "lr": 1e-3}}
    parallel = {f"module.{name}": tensor for name, tensor in state.items()}
    described = {"sigmas": np.array([0.026, 0.025], np.float32), "names": np.array(["nose", "eye"])}
    hub = {"log_scalars": {"loss": HistoryBuffer()}, "runtime_info": {"iter": np.int64(3)}}
    return {
        "bare": state,
        "parallel": parallel,
        "epoch": epoch | {"state_dict": parallel, "best_state_dict": state},
        "best": epoch | {"best_state_dict": state},
        "mmpose 0.x": {
            "meta": {"mmpose_version": "0.29.0", "config": "model = dict()", "best": np.float64(0.7)},
            "state_dict": mmpose_layout(state, "keypoint_head"),
            "optimizer": epoch["optimizer"],
        },
        "mmpose 1.x": {
            "meta": {"dataset_meta": described, "seed": 5},
            "message_hub": hub,
            "state_dict": mmpose_layout(state, "head"),
            "ema_state_dict": {"steps": torch.tensor(7)},
            "param_schedulers": [{"last_step": 3, "_last_value": [5e-4]}],
        },
    }[layout]


LAYOUTS = ("bare", "parallel", "epoch", "best", "mmpose 0.x", "mmpose 1.x")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_published_networks_are_read_in_every_layout(tmp_path, capsys, mmengine, layout, legacy):
    state, path = small(17).state_dict(), tmp_path / "pose_hrnet_w8_64x96.pth"
    torch.save(as_saved(layout, state), path, _use_new_zipfile_serialization=not legacy)
    mmengine.undo()
    model, card = load_checkpoint(path)
    assert not model.training and same(model.state_dict(), state, state)
    assert card == ModelCard(COCO17, (64, 96), "quarter_offset", coordinates=OFFICIAL) and card.run == ""
    words = "HRNet-W8, coco17, input 64x96 (by its name), coordinates official (flip shift 1)"
    says = f"no card, so read as {words}, decoder quarter_offset, SHA-256 unknown, so not checked"
    assert capsys.readouterr().out == f"{path.name}: {says}\n"
    assert load_weights(small(17, seed=1), path).new == ()  # to train from


def test_the_official_depth_is_read_too(tmp_path):
    state = {n: torch.rand(shape) if shape else torch.tensor(5) for n, shape in official_shapes(4, 17)}
    model, _ = load_checkpoint(put(tmp_path / "net_64x64.pth", state))
    assert same(model.state_dict(), state, state) and model.config["modules"] == (1, 4, 3)


@pytest.mark.parametrize("switches", [{}, {"se": True, "se_reduction": 4}, ALL_ON])
def test_what_a_published_network_is_comes_from_its_tensors(tmp_path, capsys, switches):
    model = small(14, **switches)
    again, card = load_checkpoint(put(tmp_path / "aic.safetensors", model.state_dict()), (96, 64))
    assert again.config == model.config and card.skeleton is AIC14 and card.input_hw == (96, 64)
    assert same(again.state_dict(), model.state_dict(), model.state_dict())
    network = ", ".join(["HRNet-W8", *(name for name in ALL_ON if switches.get(name))])
    assert f"read as {network}, aic14, input 96x64 (as given)" in capsys.readouterr().out


def test_published_sizes_without_a_word_are_the_widths_usual_ones(tmp_path, capsys):
    for width, hw in ((32, (256, 192)), (48, (384, 288))):
        state = HRNet(width, **SMALL).state_dict()
        assert load_checkpoint(put(tmp_path / "net.pth", state))[1].input_hw == hw
        assert f"{hw[0]}x{hw[1]} (as usual for W{width})" in capsys.readouterr().out
    with pytest.raises(HrnetppError, match=r"net\.pth: neither its name nor width 8 tells .*--input"):
        load_checkpoint(put(tmp_path / "net.pth", small(17).state_dict()))


@pytest.mark.parametrize(
    ("name", "coordinates"), [("udp_64x64", UDP), ("dark_64x64", OFFICIAL)], ids=["udp", "dark"]
)
def test_what_cannot_be_done_as_its_authors_did_is_said(tmp_path, capsys, name, coordinates):
    _, card = load_checkpoint(put(tmp_path / f"hrnet_{name}.pth", small(17).state_dict()))
    assert (card.coordinates, card.decoder) == (coordinates, "quarter_offset")
    assert "its authors' DARK is not here" in capsys.readouterr().out


def test_a_published_network_saved_again_has_its_card(tmp_path, capsys):
    model, card = load_checkpoint(put(tmp_path / "net_64x96.pth", small(17).state_dict()))
    save_checkpoint(model, card, tmp_path / "own.safetensors")
    capsys.readouterr()
    again, same_card = load_checkpoint(tmp_path / "own.safetensors", (64, 96))
    assert same_card == card and same(again.state_dict(), model.state_dict(), HEAD)
    assert capsys.readouterr().out == ""
    with pytest.raises(HrnetppError, match=r"own\.safetensors: its card says input 64x96; leave 96x64 out"):
        load_checkpoint(tmp_path / "own.safetensors", (96, 64))


NO_HEAD = {name: tensor for name, tensor in small(17).state_dict().items() if name not in HEAD}
NOT_PUBLISHED = [
    ("mpii_64x64.pth", small(16).state_dict(), None, "has 16 keypoints; this package knows COCO's 17"),
    ("hrnet_h36m_64x64.pth", small(17).state_dict(), None, "17 keypoints of h36m, by its name"),
    ("crowdpose_64x64.pth", small(14).state_dict(), None, "14 keypoints of crowdpose"),
    ("net_100x64.pth", small(17).state_dict(), None, "input '100x64': give height x width, multiples of 32"),
    ("net.pth", small(17).state_dict(), (64, 0), "input '64x0'"),
    ("imagenet.pth", imagenet_layout(small().state_dict()), None, "no pose network of HRNet's layout"),
    ("half.pth", NO_HEAD, None, "no pose network"),
    ("more_64x64.pth", small(17).state_dict() | {"extra": torch.ones(2)}, None, "its tensors are not those"),
    ("kernel3_64x64.pth", small(17, **ALL_ON, head="sum").state_dict(), None, "its tensors are not those"),
    ("flat.pth", small(17).state_dict() | {"final_layer.weight": torch.ones(17)}, None, "no pose network"),
    (
        "zero_64x64.pth",
        small(17).state_dict() | {"final_layer.weight": torch.ones(17, 0, 1, 1)},
        None,
        ">= 1",
    ),
    (
        "nan_64x64.pth",
        small(17).state_dict() | {"final_layer.bias": torch.full((17,), torch.nan)},
        None,
        "fin",
    ),
]


@pytest.mark.parametrize(("name", "state", "hw", "message"), NOT_PUBLISHED, ids=[n[0] for n in NOT_PUBLISHED])
def test_what_is_no_published_network_is_named(tmp_path, capsys, name, state, hw, message):
    with pytest.raises(HrnetppError, match=rf"{name}: .*{message}|{message}") as caught:
        load_checkpoint(put(tmp_path / name, state), hw)
    assert "\n" not in str(caught.value) and capsys.readouterr().out == ""


def test_a_file_that_is_not_the_one_of_its_name_is_refused(tmp_path, capsys):
    path = put(tmp_path / "net_64x64.pth", small(17).state_dict())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    good = path.rename(tmp_path / f"net_64x64-{digest[:8]}_20220909.pth")
    load_checkpoint(good)
    assert "SHA-256 as its name says" in capsys.readouterr().out
    for name in ("net_64x64-0123abcd_20220909.pth", "net-0123abcd.pth", "pose_hrnet_w48_384x288.pth"):
        path = good.rename(tmp_path / name)
        for load in LOADERS:
            with pytest.raises(HrnetppError, match=rf"{name}: SHA-256 is {digest}, not .*get it again"):
                load(small(), path)
        good = path


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrapper", ["plain", "state_dict", "module"])
def test_official_pose_checkpoint(tmp_path, wrapper, legacy):
    source, model, path = small(seed=1), small(seed=2), tmp_path / "pose_hrnet.pth"
    prefix = "module." if wrapper == "module" else ""
    content = {prefix + name: tensor for name, tensor in source.state_dict().items()}
    if wrapper != "plain":
        content = {"epoch": 210, "perf": 0.758, "state_dict": content, "optimizer": {"lr": 1e-3}}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    assert load_weights(model, path) == LoadReport(tuple(source.state_dict()), (), (), ())
    assert same(model.state_dict(), source.state_dict(), source.state_dict())


def test_other_number_of_keypoints_keeps_the_final_layer(tmp_path):
    source, model = small(num_keypoints=6, seed=1), small(num_keypoints=5, seed=2)
    report = load_weights(model, put(tmp_path / "aic.safetensors", source.state_dict()))
    assert report.new == report.mismatched == HEAD and report.skipped == ()
    check_partition(report, model, source.state_dict())
    assert same(model.state_dict(), small(num_keypoints=5, seed=2).state_dict(), HEAD)
    assert same(model.state_dict(), source.state_dict(), report.loaded)


OTHERS = [({"se": True}, "0 names missing"), ({"blocks_per_branch": 2}, "0 names missing")]
OTHERS += [({name: True}, "names missing") for name in ("avgpool_down", "subpixel_head")]


@pytest.mark.parametrize(("other", "message"), [*OTHERS, ({"stem_channels": 4}, "of another shape")])
def test_another_architecture_is_refused_and_changes_nothing(tmp_path, other, message):
    model, path = small(seed=1), put(tmp_path / "other.safetensors", small(seed=2, **other).state_dict())
    message = rf"other\.safetensors: belongs to another .*{message}.*load_stem_and_layer1"
    with pytest.raises(HrnetppError, match=message):
        load_weights(model, path)
    assert unchanged(model, seed=1)


def test_another_width_or_half_of_a_final_layer_is_not_another_number_of_keypoints(tmp_path):
    wide = put(tmp_path / "wide.pth", HRNet(16, 6, **SMALL).state_dict())
    kernel3 = small(seed=1).state_dict() | {"final_layer.weight": torch.ones(5, 8, 3, 3)}
    with pytest.raises(HrnetppError, match="another architecture"):
        load_weights(small(), wide)
    with pytest.raises(HrnetppError, match=r"another architecture.*for example final_layer\.weight"):
        load_weights(small(), put(tmp_path / "kernel3.pth", kernel3))


@pytest.mark.parametrize("extension", ["pth", "safetensors"])
def test_imagenet_file_fills_the_whole_trunk(tmp_path, extension):
    source, model = small(seed=1), small(seed=2)
    file = imagenet_layout(source.state_dict())
    report = load_weights(model, put(tmp_path / f"hrnet.{extension}", file))
    check_partition(report, model, file)
    assert report.new == HEAD and not report.mismatched
    assert set(report.skipped) == set(file) - set(source.state_dict())
    assert same(model.state_dict(), source.state_dict(), report.loaded)


@pytest.mark.parametrize("switches", [{}, ALL_ON], ids=["hrnet", "hrnetpp"])
@pytest.mark.parametrize("imagenet", [True, False], ids=["imagenet", "pose"])
def test_stem_and_layer1_alone(tmp_path, switches, imagenet):
    source, model = small(seed=1), small(seed=2, **switches)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    file = imagenet_layout(source.state_dict()) if imagenet else source.state_dict()
    report = weights.load_stem_and_layer1(model, put(tmp_path / "hrnet.pth", file))
    check_partition(report, model, file)
    assert set(report.loaded) == {name for name in source.state_dict() if name.startswith(STEM_AND_LAYER1)}
    assert same(model.state_dict(), source.state_dict(), report.loaded)
    assert same(model.state_dict(), before, report.new)
    assert any(".se." in name for name in report.new) == bool(switches)
    assert report.mismatched == ()


def test_stem_and_layer1_takes_the_gates_of_our_own_files(tmp_path):
    source, model = small(seed=1, **ALL_ON), small(seed=2, **ALL_ON)
    report = weights.load_stem_and_layer1(model, put(tmp_path / "own.safetensors", source.state_dict()))
    assert "layer1.0.se.expand.bias" in report.loaded
    assert same(model.state_dict(), source.state_dict(), report.loaded)


@pytest.mark.parametrize(("width", "found"), [(None, "is missing"), (48, r"has shape \(48,\)")])
def test_stem_and_layer1_of_another_network_is_refused(tmp_path, width, found):
    file = dict(small().state_dict())
    del file["layer1.0.bn3.running_var"]
    if width:
        file["layer1.0.bn3.running_var"] = torch.ones(width)
    message = rf"resnet\.pth: layer1\.0\.bn3\.running_var {found}, expected \(32,\)"
    with pytest.raises(HrnetppError, match=message):
        load_stem_and_layer1(small(), put(tmp_path / "resnet.pth", file))


class Code:
    def __reduce__(self):
        return print, ("this must not run",)


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("name", ["model.pth", "legacy.pth", "model.safetensors"])
@pytest.mark.parametrize("keep", [0, 0.001, 0.5, 0.999])
def test_truncated_file(tmp_path, load, name, keep):
    path = put(tmp_path / name, small().state_dict())
    if name.startswith("legacy"):
        torch.save(small().state_dict(), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(HrnetppError, match=rf"{name}: (is empty|damaged.*download it again)"):
        load(small(), path)


def test_code_in_a_pickle_is_refused(tmp_path, capsys):
    path = put(tmp_path / "evil.pth", {"state_dict": small().state_dict(), "extra": Code()})
    with pytest.raises(HrnetppError, match=r"evil\.pth: .*holds print.*can run code.*safetensors"):
        load_weights(small(), path)
    assert "must not run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        *[([torch.ones(2)], "not a state"), ({"a": 1}, "not a state"), (torch.ones(3), "not a state")],
        *[({1: torch.ones(2)}, "not a state"), ({"a\nb": torch.ones(2)}, "not a state")],
        *[
            ({"a": torch.ones(2).to_sparse()}, "not a state"),
            ({"a": torch.ones(2, device="meta")}, "not a state"),
        ],
        ({"state_dict": {"state_dict": {"a": torch.ones(2)}}}, "not a state_dict"),
        ({"bn1.bias": torch.ones(8), "module.bn1.bias": torch.ones(8)}, "holds names twice"),
        ({"a": bytearray(b"spam")}, ".*holds a bytearray"),
    ],
)
def test_something_else_than_a_state_dict(tmp_path, content, message):
    with pytest.raises(HrnetppError, match=rf"list\.pth: {message}"):
        load_weights(small(), put(tmp_path / "list.pth", content))


SPOILT = {
    "sparse": lambda weight: weight.to_sparse(),
    "quantised": lambda weight: torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
    "complex": lambda weight: weight + 0j,
    "integer": lambda weight: weight.int(),
    "meta": lambda weight: weight.to("meta"),
    "not a number": lambda weight: torch.full_like(weight, torch.nan),
    "beyond float32": lambda weight: torch.full_like(weight, 1e39, dtype=torch.float64),
    "stride 0": lambda weight: torch.ones(()).expand(10**6, 10**6),
}


@pytest.mark.filterwarnings("ignore:.*quantized.*|.*TypedStorage.*")
@pytest.mark.parametrize("load", [load_weights, load_stem_and_layer1])
@pytest.mark.parametrize("how", SPOILT)
def test_a_spoilt_tensor_is_refused_and_changes_nothing(tmp_path, load, how):
    model, file = small(seed=1), dict(small(seed=2).state_dict())
    file["layer1.0.conv2.weight"] = SPOILT[how](file["layer1.0.conv2.weight"])
    with pytest.raises(HrnetppError, match=r"spoilt\.pth: "):
        load(model, put(tmp_path / "spoilt.pth", file))
    assert unchanged(model, seed=1)


@pytest.mark.parametrize(
    ("name", "value"), [("final_layer.bias", torch.nan), ("bn1.weight", torch.inf), ("bn2.running_var", -1.0)]
)
def test_checkpoints_with_impossible_weights_are_refused(tmp_path, name, value):
    model = small(14)
    model.state_dict()[name][1] = value
    save_checkpoint(model, CARD, tmp_path / "nan.safetensors")
    with pytest.raises(HrnetppError, match=rf"nan\.safetensors: {name} is not finite or negative"):
        load_checkpoint(tmp_path / "nan.safetensors")


def test_weights_of_another_precision_are_converted(tmp_path):
    source, model = small(seed=1).half(), small(seed=2)
    load_weights(model, put(tmp_path / "half.pth", source.state_dict()))
    assert same(model.state_dict(), source.float().state_dict(), model.state_dict())


def test_a_compressed_file_is_refused_before_it_is_unpacked(tmp_path):
    torch.save({"a": torch.zeros(2**22)}, tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, zipfile.ZipFile(tmp_path / "b.pth", "w") as bomb:
        for entry in plain.infolist():
            bomb.writestr(entry.filename, plain.read(entry), zipfile.ZIP_DEFLATED)
    with pytest.raises(HrnetppError, match=r"b\.pth: .*compressed"):
        load_weights(small(), tmp_path / "b.pth")


@pytest.mark.parametrize("load", LOADERS)
def test_pipes_folders_and_missing_files_are_refused(tmp_path, load):
    for name in ("pipe.pth", "pipe.safetensors"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(HrnetppError, match=rf"{name}: is no regular file"):
            load(small(), tmp_path / name)
    with pytest.raises(HrnetppError, match="is no regular file"):
        load(small(), tmp_path)
    with pytest.raises(HrnetppError, match=r"none\.pth: there is no such file"):
        load(small(), tmp_path / "none.pth")
    with pytest.raises(HrnetppError, match=r"weights\.download\('hrnet_w48-8ef0771d\.pth'"):
        load(small(), tmp_path / "hrnet_w48-8ef0771d.pth")


def test_report_prints_as_a_table():
    report = LoadReport(("conv1.weight", "bn1.weight", "bn1.bias"), ("classifier.weight",), HEAD, ())
    rows = ["loaded         3  bn1, conv1", "skipped        1  classifier", "new            2  final_layer"]
    assert str(report).splitlines() == [*rows, "mismatched     0"]


@pytest.mark.parametrize("switches", [{}, ALL_ON, ALL_ON | {"skip_bn": True}, ALL_ON | {"head": "nearest"}])
def test_a_scaled_network_computes_what_it_did(switches):
    torch.manual_seed(1)
    model = HRNet(8, 5, **(SMALL | {"modules": (1, 1, 2)} | switches))
    for parameter in model.parameters():  # large, beside BN's eps, as after training
        parameter.data = torch.randn_like(parameter)
    images = torch.rand(3, 3, 64, 96)
    model.train()(images)  # running statistics
    with torch.no_grad():
        before, norm = model.eval()(images), model.conv1.weight.norm()
        biased = [
            module.bias.clone() for module in model.modules() if getattr(module, "bias", None) is not None
        ]
        weights.scale_normalised(model, 0.625)
        assert torch.allclose(model(images), before, rtol=1e-3, atol=1e-3 * float(before.abs().max()))
        trained = model.train()(images)
        weights.scale_normalised(model, 1.6)
        assert torch.allclose(trained, model(images), rtol=1e-3, atol=1e-3 * float(before.abs().max()))
        weights.scale_normalised(model, 0.625)
    assert model.conv1.weight.norm().item() == pytest.approx(norm.item() * 0.625)
    after = [module.bias for module in model.modules() if getattr(module, "bias", None) is not None]
    assert all(map(torch.equal, biased, after))
