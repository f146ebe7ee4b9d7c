"""Prepared networks: the same keypoints by every runtime, graphs kept and exported, and what is refused."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hrnetpp_lib.app.photo import predict_files
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.evaluate import infer, runtime
from hrnetpp_lib.evaluate.runtime import FORMATS, RUNTIMES, export, open_exported, prepare
from hrnetpp_lib.files import project_root
from hrnetpp_lib.model.hrnet import HRNet
from hrnetpp_lib.model.weights import ModelCard, save_checkpoint
from hrnetpp_lib.pose.geometry import EXACT_SHIFT, UDP
from hrnetpp_lib.pose.heatmap import encode
from hrnetpp_lib.pose.keypoints import AIC14
from hrnetpp_lib.recipe import ARCHITECTURES

HW = (64, 32)
CARD = ModelCard(input_hw=HW)
CPU = torch.device("cpu")
SHALLOW = {"blocks_per_branch": 1, "modules": (1, 1, 1), "stem_channels": 16, "layer1_blocks": 1}
NETWORKS = [(name, width) for name in ("hrnet", "hrnetpp") for width in (8, 12)]
READY = {name: not runtime._missing(packages) for name, packages in RUNTIMES.items()}


def needs(name: str) -> None:
    if not READY[name]:
        pytest.skip(f"{name} is not installed")


def people(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Crops (B, h, w, 3) with a soft white dot each, and heatmaps of 17 keypoints in a ring around it."""
    rng = np.random.default_rng(seed)
    dots = rng.uniform((11, 13), (21, 51), (count, 2))
    angles = np.linspace(0, 2 * np.pi, 17, endpoint=False)
    ring = 6 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    y, x = np.mgrid[: HW[0], : HW[1]]
    noise = rng.uniform(0, 60, (count, *HW, 3))
    spots = np.exp(-((x - dots[:, :1, None]) ** 2 + (y - dots[:, 1:, None]) ** 2) / 30)
    crops = (noise + 190 * spots[..., None]).astype(np.uint8)
    maps = [encode(dot + ring, np.ones(17), HW, (16, 8), 1.5)[0] for dot in dots]
    return torch.from_numpy(crops), torch.from_numpy(np.stack(maps)).float()


@pytest.fixture(scope="module")
def trained():
    """Networks by architecture and width, trained a little."""
    made = {}

    def get(name: str, width: int) -> HRNet:
        if (name, width) not in made:
            torch.manual_seed(width)
            model = HRNet(width, **ARCHITECTURES[name].switches, **SHALLOW).train()
            for conv in [each for each in model.modules() if isinstance(each, torch.nn.Conv2d)]:
                torch.nn.init.kaiming_normal_(conv.weight)
            optimizer = torch.optim.Adam(model.parameters(), 3e-3)
            losses, (crops, maps) = [], people(48, 0)
            for batch in [*torch.arange(48).split(12)] * 15:
                loss = F.mse_loss(model(infer.normalise(crops[batch])), maps[batch]) * 100
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            assert losses[-1] < 0.5 * losses[0]
            made[name, width] = model.eval()
        return made[name, width]

    return get


def decoded(network: torch.nn.Module, crops: torch.Tensor, card: ModelCard = CARD) -> dict[str, torch.Tensor]:
    """Keypoints in input px by both decoders."""
    maps, cards = infer.forward(network, crops, card), ("quarter_offset", "soft_argmax")
    return {name: 4 * infer.decode_heatmaps(maps, replace(CARD, decoder=name))[0] for name in cards}


@pytest.mark.parametrize("name, width", NETWORKS)
@pytest.mark.parametrize("how", RUNTIMES)
def test_exact_runtimes_move_no_keypoint(trained, name, width, how):
    needs(how)
    model, (crops, _) = trained(name, width), people(7, 2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    network = prepare(model, CARD, how)
    assert (network.runtime, network.precision, network.device) == (how, "fp32", CPU)
    images = infer.normalise(crops)
    for batch in (images, images[:1], images.contiguous(), images.flip(-1)):
        with torch.no_grad():
            wanted = model(batch)
        maps = network(batch)
        assert maps.shape == (len(batch), 17, 16, 8) and maps.dtype == torch.float32
        torch.testing.assert_close(maps, wanted, rtol=0, atol=3e-5)
    found = decoded(network, crops)
    for decoder, points in decoded(model, crops).items():
        assert (found[decoder] - points).norm(dim=-1).max() < 0.01
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name, width", NETWORKS[1:3])
@pytest.mark.parametrize("how", ["openvino", "torch"])
def test_bf16_rounds_all_but_the_final_layer(trained, name, width, how):
    needs(how)
    if runtime.imitates_bf16(CPU):
        pytest.skip("no instructions for bf16")
    # In twice as large ones: with AMX, oneDNN gives anything for a strided convolution of 4x2 cells to 2x1.
    model, (crops, _), card = trained(name, width), people(30, 3), replace(CARD, input_hw=(128, 64))
    crops = F.pad(crops, (0, 0, 0, HW[1], 0, HW[0]))
    network = prepare(model, card, how, "bf16")
    maps, wanted = infer.forward(network, crops, card), infer.forward(model, crops, card)
    error = (maps - wanted).square().mean().sqrt() / wanted.std()
    assert 1e-3 < error < 0.05  # of 8 bits
    one = network(infer.normalise(crops))
    assert (one == one.bfloat16().float()).float().mean() < 0.1  # heatmaps themselves are not in bf16
    away = decoded(network, crops, card)["soft_argmax"] - decoded(model, crops, card)["soft_argmax"]
    assert away.norm(dim=-1).median() < 0.5


def test_only_the_bn_after_a_pixel_shuffle_is_not_folded(trained):
    left = [[m for m in runtime._folded(trained(*each)).modules() if isinstance(m, torch.nn.BatchNorm2d)]
            for each in NETWORKS]  # fmt: skip
    assert [len(each) for each in left] == [0, 0, 3, 3]


@pytest.mark.parametrize("how", RUNTIMES)
def test_threads_share_a_network_and_no_image_gives_no_heatmap(trained, how):
    needs(how)
    network, batches = prepare(trained("hrnet", 8), CARD, how), torch.randn(6, 3, 3, *HW)
    wanted = [network(batch) for batch in batches]
    assert network(batches[0][:0]).shape == (0, 17, 16, 8)
    with ThreadPoolExecutor(3) as pool:
        for found in pool.map(lambda _: [network(batch) for batch in batches], range(12)):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_what_cannot_be_prepared_is_named(trained):
    network = prepare(trained("hrnet", 8), CARD, "torch")
    for model, card in ((network, CARD), (trained("hrnet", 8), None)):
        with pytest.raises(HrnetppError, match="give an HRNet"):
            prepare(model, card, "torch")


def test_a_prepared_network_takes_images_of_its_size_only(trained):
    network = prepare(trained("hrnet", 8), CARD, "torch")
    for shape in ((1, 3, 32, 64), (3, 64, 32), (1, 1, 64, 32)):
        with pytest.raises(HrnetppError, match=r"prepared for \(B, 3, 64, 32\)"):
            network(torch.zeros(shape))


# ---------------------------------------------------------------------------------------------- choice


def test_auto_takes_the_fastest_that_is_installed_and_torch_on_a_gpu(monkeypatch):
    absent = {"openvino"}
    monkeypatch.setattr(runtime, "_missing", lambda packages: [name for name in packages if name in absent])
    assert runtime._picked("auto", torch.device("cuda")) == "torch"
    assert runtime._picked("auto", CPU) == "onnxruntime"
    absent.add("onnxscript")
    assert runtime._picked("auto", CPU) == "torch"
    with pytest.raises(
        HrnetppError, match=r"openvino needs openvino, onnxscript; pip install 'hrnetpp-lib\[fast"
    ):
        runtime._picked("openvino", CPU)
    absent.clear()
    assert runtime._picked("auto", CPU) == "openvino"
    absent.add("openvino")
    assert runtime._picked("auto", CPU, "bf16") == "torch"  # ONNX Runtime has no bf16


def test_what_cannot_be_prepared_is_refused(trained, monkeypatch):
    model = trained("hrnet", 8)
    cases = [
        ((model, CARD, "tensorrt"), "runtime 'tensorrt' is unknown; use auto, openvino"),
        ((model, CARD, "torch", "fp16"), "precision 'fp16' is unknown; use fp32 or bf16"),
        ((model, replace(CARD, skeleton=AIC14)), "17 heatmaps, its card 14 keypoints"),
        ((model, replace(CARD, input_hw=(96, 60))), r"input_hw is \(96, 60\); both must be multiples of 32"),
        ((HRNet(8, **SHALLOW).to("meta"), CARD), "device meta has no weights"),
    ]
    if READY["onnxruntime"]:
        cases.append(((model, CARD, "onnxruntime", "bf16"), "onnxruntime computes in fp32 alone"))
    for arguments, message in cases:
        with pytest.raises(HrnetppError, match=message):
            prepare(*arguments)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    with pytest.raises(HrnetppError, match="no instructions for bf16"):
        prepare(model, CARD, "torch", "bf16")


def test_a_network_that_cannot_be_compiled_runs_as_it_is(monkeypatch):
    def broken(network):
        raise RuntimeError("no compiler")

    network = torch.nn.Conv2d(3, 5, 1)
    monkeypatch.setattr(torch, "compile", broken)
    assert runtime._compiled(network, torch.zeros(1, 3, 2, 4)) is network


# --------------------------------------------------------------------------------------- cache, export


@pytest.fixture(scope="module")
def graph(trained, tmp_path_factory) -> Path:
    """A network's ONNX file."""
    needs("onnxruntime")
    path = tmp_path_factory.mktemp("graph") / "network.onnx"
    export(trained("hrnetpp", 12), replace(CARD, decoder="soft_argmax", alpha=12.0), "onnx", path)
    return path


@pytest.fixture
def made(graph, tmp_path, monkeypatch) -> list[Path]:
    """Where graphs were made, in an empty cache below tmp_path; making one is quick."""
    paths = []

    def write(model, card, path):
        paths.append(path)
        path.write_bytes(graph.read_bytes())

    monkeypatch.setattr(runtime, "_write_onnx", write)
    monkeypatch.setattr("platformdirs.user_cache_path", lambda *_, **__: tmp_path / "cache")
    return paths


def test_a_graph_is_made_once_per_network_and_size_and_anew_where_it_is_damaged(trained, made, tmp_path):
    model, images = trained("hrnetpp", 12), infer.normalise(people(2, 5)[0])
    wanted = prepare(model, CARD, "onnxruntime")(images)
    prepare(model, replace(CARD, alpha=3.0), "onnxruntime")
    assert len(made) == 1
    (path,) = tmp_path.glob("cache/*/network.onnx")
    content = bytearray(path.read_bytes())
    content[-len(content) // 2] ^= 1  # silent: a weight's bit
    for damaged in (bytes(content), content[:999], b""):
        path.write_bytes(damaged)
        assert torch.equal(prepare(model, CARD, "onnxruntime")(images), wanted)
    path.unlink()
    assert torch.equal(prepare(model, CARD, "onnxruntime")(images), wanted)
    assert len(made) == 5 and len(list(tmp_path.glob("cache/*/network.onnx"))) == 1
    other = HRNet(**model.config)
    other.load_state_dict(model.state_dict())
    prepare(other, CARD, "onnxruntime")
    assert len(made) == 5  # equal weights
    with torch.no_grad():
        other.final_layer.bias[3] += 1e-3
    prepare(other, CARD, "onnxruntime")
    prepare(model, replace(CARD, input_hw=(96, 64)), "onnxruntime")
    assert len(made) == 7 and len(list(tmp_path.glob("cache/*/network.onnx"))) == 3


def test_a_cache_that_cannot_be_written_is_no_error(trained, made, tmp_path):
    (tmp_path / "cache").touch()
    model, images = trained("hrnetpp", 12), infer.normalise(people(2, 5)[0])
    maps = prepare(model, CARD, "onnxruntime")(images)
    torch.testing.assert_close(maps, model(images).detach(), rtol=0, atol=3e-5)
    assert len(made) == 1 and (tmp_path / "cache").read_bytes() == b""


def test_an_exported_graph_has_its_card_and_stands_alone(trained, graph, tmp_path):
    needs("openvino")
    openvino, onnxruntime = runtime._silent("openvino"), runtime._silent("onnxruntime")
    model, images = trained("hrnetpp", 12), infer.normalise(people(3, 6)[0])
    card = replace(CARD, decoder="soft_argmax", alpha=12.0)
    export(model, card, "openvino", tmp_path / "new" / "ir")
    assert {path.name for path in (tmp_path / "new" / "ir").iterdir()} == {"network.xml", "network.bin"}
    other = openvino.Core().read_model(tmp_path / "new" / "ir" / "network.xml")
    session = onnxruntime.InferenceSession(str(graph))
    texts = session.get_modelmeta().custom_metadata_map["hrnetpp_lib"], other.get_rt_info("hrnetpp_lib").value
    for text in texts:
        facts = json.loads(text)
        assert facts["keypoints"][16] == "right_ankle" and facts["flip_pairs"][0] == [1, 2]
        assert (facts["input_hw"], facts["decoder"], facts["alpha"]) == ([64, 32], "soft_argmax", 12.0)
        assert (facts["channels"], facts["values"], facts["box_padding"]) == ("RGB", [0, 255], 1.25)
        assert facts["limbs"][0] == [0, 1] and facts["skeleton"] == "coco17" and facts["run"] == ""
        assert facts["rgb_mean"] == [123.675, 116.28, 103.53] and facts["rgb_std"] == [58.395, 57.12, 57.375]
        assert facts["coordinates"]["name"] == "official" and facts["heatmap_stride"] == 4
    (maps,) = session.run(["heatmaps"], {"images": np.ascontiguousarray(images)})
    np.testing.assert_allclose(maps, model(images).detach(), rtol=0, atol=3e-5)
    assert [each.any_name for each in (*other.inputs, *other.outputs)] == ["images", "heatmaps"]
    for path in (graph, tmp_path / "new" / "ir", tmp_path / "new" / "ir" / "network.xml"):
        network, same = open_exported(path)
        assert same == card and network.runtime == ("onnxruntime" if path == graph else "openvino")
        torch.testing.assert_close(network(images), model(images).detach(), rtol=0, atol=3e-5)
    (tmp_path / "text.onnx").write_text("no graph")
    (tmp_path / "text.xml").write_text("<net/>")
    wrong = {
        "gone.onnx": "no such file",
        "new": "no such file",
        "text.onnx": "is no graph that `export` wrote",
    }
    for name, words in (wrong | {"text.xml": "is no graph that `export` wrote"}).items():
        with pytest.raises(HrnetppError, match=f"{name}.*{words}"):
            open_exported(tmp_path / name)


def test_a_graph_is_asked_for_what_it_is(graph):
    network, card = infer.open_network(graph, "onnxruntime", "fp32", (64, 32))
    assert network.runtime == "onnxruntime" and card.input_hw == (64, 32)
    for otherwise in (("openvino",), ("auto", "bf16"), ("auto", "fp32", (32, 64))):
        with pytest.raises(
            HrnetppError, match="graph for runtime onnxruntime, precision fp32, input 64x32; ask"
        ):
            infer.open_network(graph, *otherwise)


def test_poses_of_pictures_and_of_a_clip_are_the_same_by_every_runtime(trained, tmp_path):
    for how in RUNTIMES:
        needs(how)
    frames = [F.interpolate(each[None], scale_factor=2)[0] for each in people(15, 8)[0].permute(0, 3, 1, 2)]
    frames = [np.ascontiguousarray(frame.permute(1, 2, 0)) for frame in frames]
    clip = cv2.VideoWriter(str(tmp_path / "walk.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 25.0, (64, 128))
    for frame in frames[3:]:
        clip.write(frame)
    clip.release()
    for number in range(3):
        cv2.imwrite(str(tmp_path / f"{number}.png"), frames[number])
    pictures = [*(tmp_path / f"{number}.png" for number in range(3)), tmp_path / "walk.avi"]
    for decoder in ("quarter_offset", "soft_argmax"):
        path, found = tmp_path / f"{decoder}.safetensors", {}
        model, card = trained("hrnetpp", 12), replace(CARD, decoder=decoder, alpha=12.0)
        save_checkpoint(model, card, path)
        networks = {how: (path, how) for how in RUNTIMES}
        for format in FORMATS:
            export(model, card, format, tmp_path / f"{decoder}_{format}" / "graph.onnx")
            networks[format] = (tmp_path / f"{decoder}_{format}" / "graph.onnx", "auto")
        for how, (network, asked) in networks.items():
            predict_files(pictures, network, output_dir=tmp_path / how, runtime=asked)
            records = json.loads((tmp_path / how / "poses.json").read_text())
            found[how] = np.array([record["keypoints"] for record in records]).reshape(15, 17, 3)
        assert found["torch"][..., 2].max(axis=1).min() > 0.1  # it sees something in each
        for poses in found.values():
            assert np.abs(poses - found["torch"])[..., :2].max() < 0.05


def a_photograph(path: Path) -> np.ndarray:
    """A picture with the soft dot that the networks look for in its middle; RGB."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[:240, :320]
    spot = np.exp(-((x - 171.3) ** 2 + (y - 118.6) ** 2) / 800)[..., None]
    image = (cv2.blur(rng.uniform(0, 60, (240, 320, 3)), (3, 3)) + [150, 190, 170] * spot).astype(np.uint8)
    cv2.imwrite(str(path), image)
    return image[..., ::-1]


WAYS = [
    CARD,
    replace(CARD, decoder="soft_argmax", alpha=12.0),
    replace(CARD, decoder="soft_argmax", alpha=12.0, coordinates=UDP),
    replace(CARD, decoder="soft_argmax", alpha=30.0, coordinates=EXACT_SHIFT),
]


@pytest.mark.parametrize("card", WAYS, ids=["quarter", "soft", "udp", "exact"])
def test_the_example_draws_the_same_pose_without_torch_and_this_package(trained, graph, tmp_path, card):
    onnx, model = pytest.importorskip("onnx"), trained("hrnetpp", 12)
    content = onnx.load(graph)
    (entry,) = [entry for entry in content.metadata_props if entry.key == "hrnetpp_lib"]
    entry.value = runtime._card_as_json(card)  # the graph is the same
    onnx.save(content, tmp_path / "net.onnx")
    image = a_photograph(tmp_path / "photo.png")
    box = np.array([[150, 70, 41.5, 97], [120, 90, 110, 60]][card.decoder == "soft_argmax"])
    example = project_root() / "examples" / "onnx_pose.py"
    code = "import runpy, sys; sys.modules |= dict.fromkeys(('torch', 'hrnetpp_lib')); "
    code += f"sys.argv[0] = 'onnx_pose.py'; runpy.run_path({str(example)!r})"
    arguments = ["net.onnx", "photo.png", ",".join(map(str, box)), "drawn.png"]
    command = [sys.executable, "-I", "-c", code, *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    found, (pose,) = json.loads(done.stdout), infer.predict(model, image, box[None], card=card)
    assert tuple(found) == card.skeleton.names
    found = np.array(list(found.values()))
    assert np.linalg.norm(found[:, :2] - pose[:, :2], axis=1).max() < 0.05 and pose[:, 2].min() > 0.2
    np.testing.assert_allclose(found[:, 2], pose[:, 2], atol=2e-3)
    changed = (cv2.imread(str(tmp_path / "drawn.png"))[..., ::-1] != image).any(axis=2)
    assert 20 < changed.sum() < 5000


def test_an_export_takes_nobodys_place(trained, tmp_path, monkeypatch):
    model = trained("hrnet", 8)
    (tmp_path / "notes.txt").write_text("mine")
    for name, path in (("onnx", tmp_path / "notes.txt"), ("openvino", tmp_path)):
        if not runtime._missing(("onnx", "onnxscript", name)):
            with pytest.raises(HrnetppError, match="is there already; give another place"):
                export(model, CARD, name, path)
    with pytest.raises(HrnetppError, match="format 'tflite' is unknown; use onnx or openvino"):
        export(model, CARD, "tflite", tmp_path / "new")

    def torn(model, card, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(runtime, "_write_onnx", torn)
    monkeypatch.setattr(runtime, "_missing", lambda packages: [])
    with pytest.raises(KeyboardInterrupt):
        export(model, CARD, "onnx", tmp_path / "new.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    monkeypatch.setattr(runtime, "_missing", list)
    with pytest.raises(HrnetppError, match=r"format onnx needs onnx, onnxscript; .*hrnetpp-lib\[export\]"):
        export(model, CARD, "onnx", tmp_path / "new.onnx")


def test_the_libraries_tell_nobody_and_leave_nothing_in_the_users_folder(tmp_path):
    names = [name for name in ("openvino", "onnxruntime") if READY[name]]
    code = f"from hrnetpp_lib.evaluate import runtime; [runtime._silent(name) for name in {names}]"
    folders = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | folders)
    assert not [path for path in tmp_path.rglob("*") if "matplotlib" not in path.parts]
