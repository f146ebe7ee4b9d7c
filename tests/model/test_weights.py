"""Weight files in the layouts people have: official pose, ImageNet, timm, our own; and files gone wrong."""

import hashlib
import json
import os
import resource
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.model import weights
from hrnetpp_lib.model.hrnet import HRNet
from hrnetpp_lib.model.weights import LoadReport, ModelCard, load_checkpoint, load_weights, save_checkpoint
from hrnetpp_lib.pose.geometry import UDP
from hrnetpp_lib.pose.keypoints import AIC14
from hrnetpp_lib.recipe import SMOKE, STAGE3, resolve

ALL_ON = {"se": True, "avgpool_down": True, "skips": True, "subpixel_head": True}
SMALL = {"blocks_per_branch": 1, "modules": (1, 1, 1), "stem_channels": 8, "layer1_blocks": 1}
HEAD = ("final_layer.weight", "final_layer.bias")
STEM_AND_LAYER1 = ("conv1.", "bn1.", "conv2.", "bn2.", "layer1.")
CARD = ModelCard(AIC14, (64, 96), "soft_argmax", 27.0, UDP, "some run")
load_stem_and_layer1, download = weights.load_stem_and_layer1, weights.download
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


@pytest.mark.parametrize("name", ["bare.safetensors", "state.pth"])
def test_weights_without_a_card_are_no_checkpoint(tmp_path, name):
    message = rf"{name}: .*missing.*no model card of this package.*load_weights"
    with pytest.raises(HrnetppError, match=message):
        load_checkpoint(put(tmp_path / name, small().state_dict()))


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
    report = load_stem_and_layer1(model, put(tmp_path / "hrnet.pth", file))
    check_partition(report, model, file)
    assert set(report.loaded) == {name for name in source.state_dict() if name.startswith(STEM_AND_LAYER1)}
    assert same(model.state_dict(), source.state_dict(), report.loaded)
    assert same(model.state_dict(), before, report.new)
    assert any(".se." in name for name in report.new) == bool(switches)
    assert report.mismatched == ()


def test_stem_and_layer1_takes_the_gates_of_our_own_files(tmp_path):
    source, model = small(seed=1, **ALL_ON), small(seed=2, **ALL_ON)
    report = load_stem_and_layer1(model, put(tmp_path / "own.safetensors", source.state_dict()))
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
    with pytest.raises(HrnetppError, match=r"evil\.pth: .*can run code.*safetensors"):
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


def test_download_fetches_once_and_checks(tmp_path, monkeypatch):
    name, calls = "hrnet_w48-8ef0771d.pth", []
    source, _ = weights.FILES[name]
    monkeypatch.setitem(weights.FILES, name, (source, hashlib.sha256(b"weights").hexdigest()[:8]))

    def retrieve(url, known_hash, fname, path, progressbar):
        if "w32" in url:
            raise ConnectionError("no route to host")
        calls.append(url)
        (path / fname).write_bytes(b"weights")

    monkeypatch.setattr("pooch.retrieve", retrieve)
    for _ in range(2):
        path = download(name, tmp_path)
        assert path == tmp_path / name and path.read_bytes() == b"weights"
    assert calls == [f"https://download.openmmlab.com/mmpose/pretrain_models/{name}"]
    path.write_bytes(b"weights!")
    for bad, message in (
        (name, r"w48-8ef0771d\.pth: SHA-256 is .*delete the file and get"),
        ("hrnet_w32-36af842e.pth", r"no route to host.*by hand and put it at .*hrnet_w32-36af842e\.pth"),
        ("pose_hrnet_w48_384x288.pth", "no stable address; get .* from the model zoo"),
        ("hrnet_w18.pth", "unknown weight file; choose one of hrnet_w48-8ef0771d.pth"),
    ):
        with pytest.raises(HrnetppError, match=message):
            download(bad, tmp_path)


@pytest.mark.parametrize("switches", [{}, ALL_ON, ALL_ON | {"skip_bn": True}, ALL_ON | {"head": "nearest"}])
def test_a_shrunk_network_computes_what_it_did(switches):
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
        weights.shrink_normalised(model, 1.5)
        assert torch.allclose(model(images), before, rtol=1e-3, atol=1e-3 * float(before.abs().max()))
        trained = model.train()(images)
        weights.shrink_normalised(model, 1 / 1.5)
        assert torch.allclose(trained, model(images), rtol=1e-3, atol=1e-3 * float(before.abs().max()))
        weights.shrink_normalised(model, 1.5)
    assert model.conv1.weight.norm().item() == pytest.approx(norm.item() / 1.5)
    after = [module.bias for module in model.modules() if getattr(module, "bias", None) is not None]
    assert all(map(torch.equal, biased, after))
