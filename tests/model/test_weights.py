"""Weight files in the layouts people have: official pose, ImageNet, timm, our own; and files gone wrong."""

import hashlib

import pytest
import torch
from official_hrnet import official_shapes

from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.model import weights
from hrnetpp_lib.model.hrnet import HRNet
from hrnetpp_lib.model.weights import LoadReport, download, load_model, load_stage1, load_weights, save_model

ALL_ON = {"se": True, "avgpool_down": True, "skips": True, "subpixel_head": True}
SMALL = {"blocks_per_branch": 1, "modules": (1, 1, 1), "stem_channels": 8, "layer1_blocks": 1}
HEAD = ("final_layer.weight", "final_layer.bias")
STAGE1 = ("conv1.", "bn1.", "conv2.", "bn2.", "layer1.")


def small(num_keypoints: int = 5, seed: int = 0, **switches) -> HRNet:
    """A narrow network with nothing at its initial value."""
    torch.manual_seed(seed)
    model = HRNet(8, num_keypoints, **(SMALL | switches))
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
        else:
            tensor.fill_(7 + seed)
    return model


def imagenet_layout(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A classification network on the same trunk: another head, and a last block that fuses everywhere."""
    trunk = {name: tensor for name, tensor in state.items() if name not in HEAD}
    return trunk | {
        "stage4.0.fuse_layers.1.0.0.0.weight": torch.rand(16, 8, 3, 3),
        "incre_modules.0.0.conv1.weight": torch.rand(32, 8, 1, 1),
        "downsamp_modules.0.0.bias": torch.rand(64),
        "final_layer.0.weight": torch.rand(128, 64, 1, 1),
        "final_layer.0.bias": torch.rand(128),
        "classifier.weight": torch.rand(10, 128),
    }


def same(a: dict, b: dict, names) -> bool:
    names = list(names)
    assert names
    return all(torch.equal(a[name], b[name]) for name in names)


def check_partition(report: LoadReport, model: HRNet, file: dict) -> None:
    """loaded and new make up the network; loaded, skipped and mismatched the file."""
    assert sorted(report.loaded + report.new) == sorted(model.state_dict())
    assert sorted(report.loaded + report.skipped + report.mismatched) == sorted(file)


# --- Our own files


@pytest.mark.parametrize("switches", [{}, ALL_ON | {"se_bias": 3.0, "skip_bn": True, "head": "sum"}])
def test_save_and_load_model_round_trip(tmp_path, switches):
    model = small(**switches).to(memory_format=torch.channels_last)
    path = tmp_path / "run" / "model.safetensors"
    metadata = {"run": "stage2", "card": '{"sigma": 3}'}
    save_model(model, path, metadata)
    copy, kept = load_model(str(path))
    assert kept == metadata and metadata == {"run": "stage2", "card": '{"sigma": 3}'}
    assert copy.config == model.config
    assert list(copy.state_dict()) == list(model.state_dict())
    assert same(copy.state_dict(), model.state_dict(), model.state_dict())
    images = torch.rand(1, 3, 32, 64)
    torch.testing.assert_close(copy.eval()(images), model.eval()(images))
    assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]


def test_a_failed_save_keeps_the_older_file(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    save_model(small(seed=1), path, {})

    def disk_full(tensors, filename, metadata):
        with open(filename, "wb") as file:
            file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(weights, "save_file", disk_full)
    with pytest.raises(OSError, match="disk full"):
        save_model(small(seed=2), path, {})
    assert same(load_model(path)[0].state_dict(), small(seed=1).state_dict(), HEAD)


def test_load_model_refuses_a_file_without_constructor_arguments(tmp_path):
    path = tmp_path / "foreign.safetensors"
    weights.save_file(small().state_dict(), path)
    with pytest.raises(HrnetppError, match=r"foreign\.safetensors: not a model saved.*load_weights"):
        load_model(path)


# --- Official pose checkpoints


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrapper", ["plain", "state_dict", "module"])
def test_official_pose_checkpoint(tmp_path, wrapper, legacy):
    source, model = small(seed=1), small(seed=2)
    content = dict(source.state_dict())
    if wrapper == "module":
        content = {f"module.{name}": tensor for name, tensor in content.items()}
    if wrapper != "plain":
        content = {"epoch": 210, "perf": 0.758, "state_dict": content, "optimizer": {"lr": 1e-3}}
    path = tmp_path / "pose_hrnet.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    report = load_weights(model, path)
    assert report == LoadReport(tuple(source.state_dict()), (), (), ())
    assert same(model.state_dict(), source.state_dict(), source.state_dict())


def test_full_size_checkpoint_of_official_names(tmp_path):
    state = {name: torch.ones(()).expand(shape) for name, shape in official_shapes(32, 17)}
    path = tmp_path / "pose_hrnet_w32_256x192.pth"
    torch.save(state, path)
    with torch.device("meta"):
        model = HRNet(32)
    model.to_empty(device="cpu")
    report = load_weights(model, path)
    assert len(report.loaded) == 1754 and not report.new
    assert model.stage4[2].fuse_layers[0][3][1].running_var.eq(1).all()


def test_other_number_of_keypoints_keeps_the_final_layer(tmp_path):
    source, model = small(num_keypoints=6, seed=1), small(num_keypoints=5, seed=2)
    before = {name: model.state_dict()[name].clone() for name in HEAD}
    save_model(source, tmp_path / "aic.safetensors", {})
    report = load_weights(model, tmp_path / "aic.safetensors")
    assert report.new == report.mismatched == HEAD and report.skipped == ()
    check_partition(report, model, source.state_dict())
    assert same(model.state_dict(), before, HEAD)
    assert same(model.state_dict(), source.state_dict(), report.loaded)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"se": True}, "0 names missing"),
        ({"blocks_per_branch": 2}, "0 names missing"),
        ({"stem_channels": 4}, "of another shape"),
        ({"avgpool_down": True}, "names missing"),
        ({"subpixel_head": True}, "names missing"),
    ],
)
def test_another_architecture_is_refused_and_changes_nothing(tmp_path, other, message):
    model = small(seed=1)
    path = tmp_path / "other.safetensors"
    save_model(small(seed=2, **other), path, {})
    with pytest.raises(
        HrnetppError, match=rf"other\.safetensors: belongs to another .*{message}.*load_stage1"
    ):
        load_weights(model, path)
    assert same(model.state_dict(), small(seed=1).state_dict(), model.state_dict())


def test_another_width_is_not_taken_for_another_number_of_keypoints(tmp_path):
    torch.save(HRNet(16, 6, **SMALL).state_dict(), tmp_path / "wide.pth")
    with pytest.raises(HrnetppError, match="another architecture"):
        load_weights(small(), tmp_path / "wide.pth")


def test_half_of_a_final_layer_is_not_loaded(tmp_path):
    file = small(seed=1).state_dict() | {"final_layer.weight": torch.ones(5, 8, 3, 3)}
    torch.save(file, tmp_path / "kernel3.pth")
    with pytest.raises(HrnetppError, match=r"another architecture.*for example final_layer\.weight"):
        load_weights(small(), tmp_path / "kernel3.pth")


# --- ImageNet files


@pytest.mark.parametrize("extension", ["pth", "safetensors"])
def test_imagenet_file_fills_the_whole_trunk(tmp_path, extension):
    source, model = small(seed=1), small(seed=2)
    file, path = imagenet_layout(source.state_dict()), tmp_path / f"hrnet.{extension}"
    (torch.save if extension == "pth" else weights.save_file)(file, path)
    report = load_weights(model, path)
    check_partition(report, model, file)
    assert report.new == HEAD and not report.mismatched
    assert set(report.skipped) == set(file) - set(source.state_dict())
    assert same(model.state_dict(), source.state_dict(), report.loaded)


@pytest.mark.parametrize("switches", [{}, ALL_ON], ids=["hrnet", "hrnetpp"])
@pytest.mark.parametrize("imagenet", [True, False], ids=["imagenet", "pose"])
def test_stage1_alone(tmp_path, switches, imagenet):
    source, model = small(seed=1), small(seed=2, **switches)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    file = imagenet_layout(source.state_dict()) if imagenet else source.state_dict()
    torch.save(file, tmp_path / "hrnet.pth")
    report = load_stage1(model, tmp_path / "hrnet.pth")
    check_partition(report, model, file)
    assert set(report.loaded) == {name for name in source.state_dict() if name.startswith(STAGE1)}
    assert same(model.state_dict(), source.state_dict(), report.loaded)
    assert same(model.state_dict(), before, report.new)
    assert any(".se." in name for name in report.new) == bool(switches)
    assert report.mismatched == ()


def test_stage1_takes_the_gates_of_our_own_files(tmp_path):
    source, model = small(seed=1, **ALL_ON), small(seed=2, **ALL_ON)
    save_model(source, tmp_path / "own.safetensors", {})
    report = load_stage1(model, tmp_path / "own.safetensors")
    assert "layer1.0.se.expand.bias" in report.loaded
    assert same(model.state_dict(), source.state_dict(), report.loaded)


@pytest.mark.parametrize("fault", ["missing", "shape"])
def test_stage1_of_another_network_is_refused(tmp_path, fault):
    file = dict(small().state_dict())
    if fault == "missing":
        del file["layer1.0.bn3.running_var"]
    else:
        file["layer1.0.bn3.running_var"] = torch.ones(48)
    torch.save(file, tmp_path / "resnet.pth")
    found = "is missing" if fault == "missing" else r"has shape \(48,\)"
    with pytest.raises(
        HrnetppError, match=rf"resnet\.pth: layer1\.0\.bn3\.running_var {found}, expected \(32,\)"
    ):
        load_stage1(small(), tmp_path / "resnet.pth")


# --- Files gone wrong


class Code:
    def __reduce__(self):
        return print, ("this must not run",)


@pytest.mark.parametrize("load", [load_weights, load_stage1, lambda model, path: load_model(path)])
@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
@pytest.mark.parametrize("keep", [0, 0.5, 0.999])
def test_truncated_file(tmp_path, load, name, keep):
    path = tmp_path / name
    if name.endswith(".pth"):
        torch.save(small().state_dict(), path)
    else:
        save_model(small(), path, {})
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(HrnetppError, match=rf"{name}: (damaged|not a model).*(download|copy) it again"):
        load(small(), path)


@pytest.mark.parametrize("keep", [1, 300, 0.5])
def test_truncated_legacy_file(tmp_path, keep):
    path = tmp_path / "old.pth"
    torch.save(small().state_dict(), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[: keep if keep >= 1 else int(keep * path.stat().st_size)])
    with pytest.raises(HrnetppError, match=r"old\.pth: damaged.*download it again"):
        load_weights(small(), path)


def test_code_in_a_pickle_is_refused(tmp_path, capsys):
    path = tmp_path / "evil.pth"
    torch.save({"state_dict": small().state_dict(), "extra": Code()}, path)
    with pytest.raises(HrnetppError, match=r"evil\.pth: .*can run code.*safetensors"):
        load_weights(small(), path)
    assert "must not run" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [[torch.ones(2)], {"a": 1}, torch.ones(3)])
def test_something_else_than_a_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "list.pth")
    with pytest.raises(HrnetppError, match=r"list\.pth: not a state_dict"):
        load_weights(small(), tmp_path / "list.pth")


def test_missing_file(tmp_path):
    for load in (load_weights, load_stage1, lambda model, path: load_model(path)):
        with pytest.raises(HrnetppError, match=r"none\.pth: no such file"):
            load(small(), tmp_path / "none.pth")
    with pytest.raises(HrnetppError, match=r"weights\.download\('hrnet_w48-8ef0771d\.pth'"):
        load_stage1(small(), tmp_path / "hrnet_w48-8ef0771d.pth")


def test_report_prints_as_a_table():
    report = LoadReport(("conv1.weight", "bn1.weight", "bn1.bias"), ("classifier.weight",), HEAD, ())
    assert str(report).splitlines() == [
        "loaded         3  bn1, conv1",
        "skipped        1  classifier",
        "new            2  final_layer",
        "mismatched     0",
    ]


# --- Downloads, with the network replaced


@pytest.fixture
def content(monkeypatch):
    """Bytes that pass for hrnet_w48-8ef0771d.pth."""
    data = b"weights"
    where, _ = weights.FILES["hrnet_w48-8ef0771d.pth"]
    digest = hashlib.sha256(data).hexdigest()[:8]
    monkeypatch.setitem(weights.FILES, "hrnet_w48-8ef0771d.pth", (where, digest))
    return data


def test_download_fetches_once_and_checks(tmp_path, monkeypatch, content):
    calls = []

    def retrieve(url, known_hash, fname, path, progressbar):
        calls.append(url)
        path.mkdir(parents=True)
        (path / fname).write_bytes(content)

    monkeypatch.setattr("pooch.retrieve", retrieve)
    for _ in range(2):
        path = download("hrnet_w48-8ef0771d.pth", tmp_path / "weights")
        assert path == tmp_path / "weights" / "hrnet_w48-8ef0771d.pth" and path.read_bytes() == content
    assert calls == ["https://download.openmmlab.com/mmpose/pretrain_models/hrnet_w48-8ef0771d.pth"]


def test_wrong_digest(tmp_path, content):
    (tmp_path / "hrnet_w48-8ef0771d.pth").write_bytes(content + b"!")
    with pytest.raises(HrnetppError, match=r"w48-8ef0771d\.pth: SHA-256 is .*delete the file and get"):
        download("hrnet_w48-8ef0771d.pth", tmp_path)


def test_offline_says_where_to_put_the_file(tmp_path, monkeypatch):
    def retrieve(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("pooch.retrieve", retrieve)
    with pytest.raises(
        HrnetppError, match=r"no route to host.*by hand and put it at .*hrnet_w32-36af842e\.pth"
    ):
        download("hrnet_w32-36af842e.pth", tmp_path)


def test_files_without_an_address_are_named_with_their_source(tmp_path):
    with pytest.raises(HrnetppError, match="no stable address; get .* from the model zoo"):
        download("pose_hrnet_w48_384x288.pth", tmp_path)
    with pytest.raises(HrnetppError, match="unknown weight file; choose one of hrnet_w48-8ef0771d.pth"):
        download("hrnet_w18.pth", tmp_path)
