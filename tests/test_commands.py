"""The command line: exit status, messages for mistakes, and what the commands print and write."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import hrnetpp_lib
from hrnetpp_lib.__main__ import _runs_to_train, build_parser, main
from hrnetpp_lib.app.photo import PACKAGED
from hrnetpp_lib.app.workspace import Workspace
from hrnetpp_lib.data import layout
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.evaluate.infer import predict_boxes
from hrnetpp_lib.evaluate.score import score
from hrnetpp_lib.files import project_root
from hrnetpp_lib.model.hrnet import HRNet
from hrnetpp_lib.model.weights import ModelCard, load_checkpoint, save_checkpoint
from hrnetpp_lib.pose.keypoints import AIC14, COCO17, Skeleton
from hrnetpp_lib.recipe import COCO, MINI, SMOKE, STAGE3, table_runs, three_stages
from hrnetpp_lib.train.loop import build_model, checkpoint_path
from tools.pack import main as pack_command
from tools.pack import pack, round_weights

SMOKE_DATA = ("--profile", "smoke", "--output")


@pytest.fixture(autouse=True)
def this_process():
    """More threads only get into each other's way with networks this small; SIGTERM is left as it was."""
    threads, handler = torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    signal.signal(signal.SIGTERM, handler)


def tiny_checkpoint(path: Path, skeleton: Skeleton) -> Path:
    torch.manual_seed(0)
    model = build_model(three_stages(SMOKE)[1], len(skeleton))
    save_checkpoint(model, ModelCard(skeleton, (64, 64), "soft_argmax", run=f"tiny-{skeleton.name}"), path)
    return path


@pytest.fixture(scope="module")
def smoke_root(tmp_path_factory):
    """A project folder with the smoke profile's data in it."""
    root = tmp_path_factory.mktemp("root")
    assert main(["check-data", *SMOKE_DATA, str(root)]) == 0
    return root


def refused(capsys, *arguments: object) -> str:
    """Runs a command that must fail with status 2 and one line on stderr, and returns that line."""
    assert main([str(argument) for argument in arguments]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1
    return message


# ----------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "arguments, words",
    [
        ("reproduce --profile big", ["unknown profile 'big'", "smoke, mini, lspet_cpu, lspet, coco"]),
        ("train --profile big", ["unknown profile 'big'"]),
        ("check-data --profile big", ["unknown profile 'big'"]),
        ("train --profile smoke --architecture resnet", ["unknown architecture 'resnet'", "hrnet+se"]),
        ("train --set loss", ["--set loss: give NAME=VALUE or, for one stage, stage3.NAME=VALUE"]),
        ("train --set stage4.loss=heatmap_mse", ["--set stage4.loss=heatmap_mse: give NAME=VALUE"]),
        ("train --set depth=3", ["a training stage has no 'depth' to set", "rotation_bound_deg"]),
        ("train --profile ''", ["unknown profile ''"]),  # an empty name is no default
        ("train --profile smoke --architecture ''", ["unknown architecture ''"]),
        ("check-data --profile coco", ["annotations/person_keypoints_train2017.json", "--profile mini"]),
        ("reproduce --profile smoke --only 99", ["no notebook '99'; there are 01_data_exploration"]),
        ("reproduce --profile smoke --set lr=1", ["no notebook has a parameter lr"]),
        ("reproduce --profile smoke --set lr", ["write it as name=value"]),
        ("train --accumulate 0", ["accumulate is 0; give a whole number from 1 on"]),
        *((f"train --save-every {seconds}", ["give seconds from 0 on"]) for seconds in ("nan", "inf", "-1")),
        *((f"train --seed {seed}", ["seed"]) for seed in (-1, 2**63, 2**64, 10**30)),
        ("plan --gpus 0", ["0 GPUs: must be at least 1"]),
    ],
)
def test_mistakes_are_refused_in_one_line_before_anything_is_written(capsys, tmp_path, arguments, words):
    message = refused(capsys, *shlex.split(arguments), "--output", tmp_path)
    assert all(word in message for word in words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [[], ["fly"], ["predict"], ["evaluate"], ["train", "--seed", "x"]])
def test_argparse_refuses_with_status_2(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_a_file_in_the_place_of_a_folder_is_named_and_a_line_break_in_a_name_breaks_no_line(capsys, tmp_path):
    (tmp_path / "a\nb").touch()
    assert f"{tmp_path}/a b" in refused(capsys, "check-data", *SMOKE_DATA, tmp_path / "a\nb")


# ---------------------------------------------------------------------------------------- commands


def test_predict_hands_its_options_on_and_writes_nothing_unasked(monkeypatch):
    calls = []
    monkeypatch.setattr("hrnetpp_lib.app.photo.predict_files", lambda *given: calls.append(given))
    assert main(["predict", "a.jpg", "b/*.png"]) == 0
    assert calls.pop() == (["a.jpg", "b/*.png"], None, None, None, None, None, "auto", "fp32", None)
    options = ["--checkpoint", "m.safetensors", "--boxes=-1,2,3.5,4 5,6,7,8", "--output-dir", "out"]
    options += [
        "--runtime",
        "torch",
        "--precision",
        "bf16",
        "--detections",
        "b.json",
        "--detector",
        "some/model",
        "--input",
        "128x96",
    ]
    assert main(["predict", "a.jpg", *options]) == 0
    inputs, checkpoint, boxes, *others = calls.pop()
    assert (inputs, checkpoint) == (["a.jpg"], Path("m.safetensors"))
    np.testing.assert_array_equal(boxes, [[-1, 2, 3.5, 4], [5, 6, 7, 8]])
    assert others == [Path("b.json"), "some/model", Path("out"), "torch", "bf16", (128, 96)]


def test_explore_hands_its_options_on(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr("hrnetpp_lib.app.page.serve_page", lambda *given: calls.append(given))
    assert main(["explore"]) == 0 and calls.pop() == (MINI, project_root(), [], [])
    options = ["--checkpoint", "a.pth", "--checkpoint", "b.onnx", "--profile", "smoke"]
    assert main(["explore", "1.jpg", "2.jpg", *options, "--output", str(tmp_path)]) == 0
    assert calls == [(SMOKE, tmp_path, ["1.jpg", "2.jpg"], [Path("a.pth"), Path("b.onnx")])]


def test_detect_hands_its_options_on(monkeypatch):
    calls = []
    monkeypatch.setattr("hrnetpp_lib.app.detector.detect", lambda *given: calls.append(given))
    assert main(["detect", "a.jpg", "b", "--output", "boxes.json"]) == 0
    usual = "ustc-community/dfine-large-coco"
    assert calls.pop() == (["a.jpg", "b"], Path("boxes.json"), usual, None)
    assert main(["detect", "a", "--output", "b.json", "--detector", "m", "--annotations", "t.json"]) == 0
    assert calls.pop() == (["a"], Path("b.json"), "m", Path("t.json"))


def test_check_data_counts_what_is_there_and_finds_an_image_that_is_gone_or_torn(
    capsys, smoke_root, monkeypatch
):
    arguments = ["check-data", *SMOKE_DATA, str(smoke_root)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    for line in ("coco17 train: 32 boxes", "aic14 train: ", "aic14 val: ", "  val boxes: ground-truth boxes"):
        assert f"\n{line}" in f"\n{printed}"
    assert "val boxes: COCO_val2017_detections_synthetic_person.json" in printed
    paths = layout.prepare_data(SMOKE, smoke_root / "data")
    monkeypatch.setattr(layout, "prepare_data", lambda *_: paths)  # makes none anew
    image = sorted(paths.coco_images("train").iterdir())[2]
    content = image.read_bytes()
    image.write_bytes(content[:700])
    torn = refused(capsys, *arguments)
    image.unlink()
    gone = refused(capsys, *arguments)
    image.write_bytes(content)
    assert all(image.name in message and "1 of" in message for message in (torn, gone))
    assert "truncated" in torn and "truncated" not in gone


def test_a_recipe_says_it_all(capsys, tmp_path):
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(asdict(three_stages(SMOKE)[0]) | {"seed": -3}))
    assert "seed" in refused(capsys, "train", "--recipe", recipe, "--output", tmp_path)
    options = (["--seed", "0"], ["--profile", "smoke"], ["--architecture", "hrnet"], ["--set", "alpha=27"])
    for option in options:
        message = refused(capsys, "train", "--recipe", recipe, *option)
        assert f"--recipe {recipe} says it all; leave out {option[0]}" in message
    assert list(tmp_path.iterdir()) == [recipe]


def test_the_command_line_names_every_reading():
    words = ["--architecture", "hrnetpp-se+conv3x3", "--set", "rotation_bound_deg=45", "--set"]
    options = build_parser().parse_args(["train", *words, "stage3.loss=heatmap_mse"])
    (runs,) = _runs_to_train(options)
    assert {run.stage.augmentation.rotation_bound_deg for run in runs} == {45.0}
    assert [run.stage.loss for run in runs] == ["heatmap_mse"] * 3 and runs[2].stage.name == STAGE3.name
    assert {(run.architecture.se, run.architecture.downsampling) for run in runs} == {(False, "conv3x3")}
    assert _runs_to_train(build_parser().parse_args(["train"])) == [three_stages(MINI)]


def test_sigterm_before_a_stage_begins_leaves_the_mark(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "prepare_data", lambda *_: signal.raise_signal(signal.SIGTERM))
    assert main(["train", *SMOKE_DATA, str(tmp_path)]) == 75
    assert "the same command goes on" in capsys.readouterr().err
    assert (tmp_path / "runs/smoke/PREEMPTED").exists()


def test_evaluate_says_what_it_measured_and_refuses_14_keypoints(capsys, smoke_root, monkeypatch, tmp_path):
    asked = []

    def spy(model, card, table, flip, views):
        asked.append((len(table), flip, len(views)))
        return predict_boxes(model, card, table, flip, views)

    monkeypatch.setattr("hrnetpp_lib.evaluate.infer.predict_boxes", spy)
    path, other = (tiny_checkpoint(tmp_path / f"{each.name}.safetensors", each) for each in (COCO17, AIC14))
    arguments = ["evaluate", *SMOKE_DATA, str(smoke_root), "--checkpoint"]
    message = refused(capsys, *arguments, other)
    assert "14 keypoints (aic14)" in message and "stage 2 or 3" in message
    arguments.append(str(path))
    assert "runtime 'fastest' is unknown" in refused(capsys, *arguments, "--runtime", "fastest")
    arguments += ["--runtime", "torch"]
    assert main([*arguments, "--no-flip"]) == 0
    printed = capsys.readouterr().out
    assert "runtime torch, precision fp32" in printed
    said = (
        r"boxes COCO_val2017_detections_synthetic_person.json \([1-9]\d* in \d+ pictures\), flip False, TTA F"
    )
    assert re.search(said, printed)
    assert f"checkpoint {path} (tiny-coco17)" in printed and "decoder soft_argmax" in printed
    metrics = printed.splitlines()[-1].split("  ")
    assert [metric.split()[0] for metric in metrics][:6] == ["AP", "AP50", "AP75", "APM", "APL", "AR"]
    assert main([*arguments, "--tta"]) == 0
    assert "flip True, TTA True" in capsys.readouterr().out
    boxes = asked[0][0]
    assert asked == [(boxes, False, 1), (boxes, True, 5)] and boxes > 5


# ----------------------------------------------------------------------------- published networks


@pytest.fixture(scope="module")
def coco_root(real_data, tmp_path_factory) -> Path:
    """Profile coco with four photographs of val2017 and a real detector's 118 boxes; no training data."""
    root, source = tmp_path_factory.mktemp("coco_root"), real_data / "coco_test"
    coco = layout.data_paths(COCO, root / "data")
    for path in (coco.coco_json("val"), coco.boxes_json(COCO)):
        path.parent.mkdir(parents=True)
    shutil.copy(source / "test_coco.json", coco.coco_json("val"))
    shutil.copy(source / "test_coco_det_AP_H_56.json", coco.boxes_json(COCO))
    shutil.copytree(source, coco.coco_images("val"), ignore=shutil.ignore_patterns("*.json"))
    return root


def official_file(path: Path) -> HRNet:
    """A shallow network, saved as the official code saves its own; far from the state of a new one."""
    torch.manual_seed(5)
    model = HRNet(4, blocks_per_branch=1, modules=(1, 1, 1), stem_channels=4, layer1_blocks=1)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(
                torch.rand_like(tensor) + 0.5 if tensor.ndim == 1 else 0.3 * torch.randn_like(tensor)
            )
    torch.save(model.state_dict(), path)
    return model.eval()


def test_evaluate_names_missing_data_before_it_prepares_the_network(capsys, tmp_path, monkeypatch):
    prepared = []
    monkeypatch.setattr("hrnetpp_lib.evaluate.infer.open_network", lambda *how: prepared.append(how))
    message = refused(capsys, *f"evaluate --profile coco --output {tmp_path} --checkpoint x.pth".split())
    assert "person_keypoints_val2017.json" in message and not prepared


def test_a_published_network_is_evaluated_as_our_own_and_stands_beside_its_figures(
    capsys, coco_root, tmp_path, monkeypatch
):
    found = []

    def spy(*arguments, **named):
        found.append(predict_boxes(*arguments, **named))
        return found[-1]

    monkeypatch.setattr("hrnetpp_lib.evaluate.infer.predict_boxes", spy)
    path, own = tmp_path / "pose_hrnet_w48_256x192.pth", tmp_path / "own.safetensors"
    model = official_file(path)
    save_checkpoint(model, ModelCard(COCO17, (256, 192)), own)
    arguments = ["evaluate", "--profile", "coco", "--output", str(coco_root), "--runtime", "torch"]
    for checkpoint in (path, own):
        assert main([*arguments, "--checkpoint", str(checkpoint)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(
        f"{path.name}: no card, so read as HRNet-W4, coco17, input 256x192 (by its name)"
    )
    assert printed[1] == f"checkpoint {path}" and printed[7] == f"checkpoint {own}"
    boxes = f"boxes {COCO.boxes} (118 in 4 pictures)"
    assert f"{boxes}, flip True, TTA False, decoder quarter_offset" in printed[2]
    assert "coordinates official (flip shift 1), input 256x192, runtime torch, precision fp32" in printed[2]
    assert printed[3].removeprefix("measured   ") == printed[9] and printed[9].startswith("AP ")
    assert printed[4].split() == ["published", *re.split(" +", PUBLISHED_W48)]
    assert printed[5].startswith(
        "published by github.com/leoxiaobin/deep-high-resolution-net.pytorch: COCO val"
    )
    assert printed[6] == "measured otherwise: 4 images, not 5000"
    theirs, ours = found
    assert ours.scores.shape == (118, 17) and ours.scores.std() > 0
    np.testing.assert_array_equal(theirs.scores, ours.scores)
    np.testing.assert_array_equal(theirs.keypoints, ours.keypoints)
    data = layout.load_coco(COCO, layout.data_paths(COCO, coco_root / "data"), val_only=True)
    assert printed[9] == "  ".join(f"{name} {value:.4f}" for name, value in score(ours, data).items())
    some = data.val.select(np.arange(5))  # straight through the library
    straight = predict_boxes(load_checkpoint(path)[0], ModelCard(COCO17, (256, 192)), some)
    np.testing.assert_allclose(theirs.scores[:5], straight.scores, rtol=1e-4)
    np.testing.assert_allclose(theirs.keypoints[:5], straight.keypoints, rtol=0, atol=0.01)


PUBLISHED_W48 = "AP 0.7510 AP50 0.9060 AP75 0.8220 APM 0.7150 APL 0.8180 "
PUBLISHED_W48 += "AR 0.8040 AR50 0.9430 AR75 0.8670 ARM 0.7620 ARL 0.8640"


def test_what_differs_from_the_authors_measurement_is_said(capsys, smoke_root, tmp_path):
    official_file(path := tmp_path / "pose_hrnet_w32_384x288.pth")
    arguments = ["evaluate", *SMOKE_DATA, str(smoke_root), "--checkpoint", str(path), "--runtime", "torch"]
    assert main([*arguments, "--no-flip", "--tta", "--input", "64x32"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert "input 64x32 (as given)" in printed[0]
    boxes = "boxes COCO_val2017_detections_synthetic_person.json"
    differs = f"no flip test, TTA, synthetic data, {boxes}, 12 images, not 5000, input 64x32"
    assert re.sub(r"\d+ images", "12 images", printed[-1]) == f"measured otherwise: {differs}"
    assert "multiples of 32" in refused(capsys, *arguments, "--input", "100x32")
    torch.save(
        official_file(path).half().state_dict(), tmp_path / "hrnet_w48_coco_384x288-314c8528_20200708.pth"
    )
    assert "SHA-256" in refused(
        capsys, *arguments[:-3], tmp_path / "hrnet_w48_coco_384x288-314c8528_20200708.pth"
    )


def test_evaluation_needs_no_training_data_and_names_what_lacks(capsys, tmp_path):
    official_file(path := tmp_path / "pose_hrnet_w32_384x288.pth")
    said = refused(capsys, "evaluate", "--profile", "coco", "--output", tmp_path, "--checkpoint", path)
    for name in ("person_keypoints_val2017.json", "val2017;", "COCO_val2017_detections_AP_H_56_person.json."):
        assert name in said
    assert not any(word in said for word in ("train2017", "ai_challenger", "hrnet_w48-8ef0771d"))
    assert "download COCO 2017's val and its person detections to these places" in said


def test_check_data_says_whether_table_1_has_the_published_network(capsys, smoke_root, tmp_path, monkeypatch):
    public = replace(SMOKE, data="public")
    monkeypatch.setattr("hrnetpp_lib.__main__.get_profile", lambda _: public)
    shutil.copytree(smoke_root / "data/smoke", coco := tmp_path / "data/coco")
    network = coco / "weights/pose_hrnet_w48_384x288.pth"
    for says in ("would have a row of it, were it there", "has a row of it"):
        assert main(["check-data", "--output", str(tmp_path)]) == 0
        assert capsys.readouterr().out.endswith(f"\npublished network: {network}; Table 1 {says}\n")
        network.parent.mkdir(exist_ok=True)
        network.touch()


def test_export_writes_a_new_file_and_leaves_what_is_there(capsys, tmp_path):
    pytest.importorskip("onnxscript")
    checkpoint, target = tiny_checkpoint(tmp_path / "m.safetensors", COCO17), tmp_path / "m.onnx"
    arguments = ["export", "--checkpoint", str(checkpoint), "--format", "onnx", "--output"]
    assert main([*arguments, str(target)]) == 0
    assert f"written: {target} (onnx, tiny-coco17)" in capsys.readouterr().out
    assert b"left_shoulder" in target.read_bytes()
    assert "is there already" in refused(capsys, *arguments, checkpoint)


def test_train_runs_all_stages_and_finds_them_trained(capsys, smoke_root):
    arguments = ["train", "--profile", "smoke", "--architecture", "hrnet", "--output", str(smoke_root)]
    assert main(arguments) == 0
    first = re.findall(r"^run +(\w+)-", capsys.readouterr().out, flags=re.MULTILINE)
    assert first == ["stage1_ai_challenger", "stage2_coco_heatmap", "stage3_coco_regression"]
    checkpoints = sorted((smoke_root / "runs/smoke").glob("*/model.safetensors"))
    before = {path: path.stat().st_mtime_ns for path in checkpoints}
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("found trained") == len(checkpoints) == 3
    assert {path: path.stat().st_mtime_ns for path in checkpoints} == before


def test_doctor_tells_versions_and_what_is_missing(capsys, tmp_path):
    assert main(["doctor", "--output", str(tmp_path / "not" / "yet")]) == 0
    printed = capsys.readouterr().out
    for word in ("python", "torch", "numpy", "device", "git revision", "free disk"):
        assert re.search(rf"^{word} +\S", printed, flags=re.MULTILINE), word
    assert f"{tmp_path}/not/yet" in printed and not (tmp_path / "not").exists()
    assert "profile smoke     ready (makes its own data)" in printed
    assert re.search(r"profile lspet  .*convert-lspe joints\.mat images/", printed)
    assert f"profile coco      lacks 10 files or folders, first {tmp_path}/not/yet/data/coco/" in printed


def test_convert_lspe_hands_its_options_on(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(layout, "convert_lspe", lambda *given: calls.append(given))
    assert main(["convert-lspe", "j.mat", "im", "--skip-missing-images", "--output", str(tmp_path)]) == 0
    assert calls == [(Path("j.mat"), Path("im"), tmp_path / "data", True)]


# ---------------------------------------------------------------------------------------- processes


def python(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, **options)


def test_a_reader_that_goes_away_ends_it_quietly():
    pipe = f"set -o pipefail; {sys.executable} -m hrnetpp_lib doctor | head -n 0"
    done = subprocess.run(["bash", "-c", pipe], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (141, "")


def test_names_that_are_no_text_can_be_printed(tmp_path):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    done = python("-m", "hrnetpp_lib", "doctor", "--output", folder)
    assert done.returncode == 0 and "\\udcff" in done.stdout


def test_help_is_quick_lists_every_command_and_loads_nothing_heavy():
    code = (
        "import sys, runpy; sys.argv = ['hrnetpp_lib', '--help']\n"
        "try: runpy.run_module('hrnetpp_lib', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end: print(end.code, *sorted(sys.modules))"
    )
    started = time.perf_counter()
    done = python("-c", code, check=True)
    assert time.perf_counter() - started < 1.5  # 0.12 s on a machine with nothing else to do
    for command in ("reproduce", "train", "evaluate", "predict", "explore", "export", "plan", "doctor"):
        assert command in done.stdout
    status, *loaded = done.stdout.splitlines()[-1].split()
    assert status == "0" and "hrnetpp_lib.recipe" in loaded
    assert not HEAVY & {name.split(".")[0] for name in loaded}


HEAVY = {"torch", "numpy", "cv2", "matplotlib", "scipy", "accelerate", "papermill", "IPython"}


@pytest.mark.parametrize(
    "module, light", [("hrnetpp_lib", set()), ("hrnetpp_lib.pose.keypoints", {"numpy", "msgspec"})]
)
def test_importing_loads_nothing_heavy(module, light):
    code = f"import sys, {module}; print({(HEAVY | {'msgspec'}) - light} & set(sys.modules))"
    assert python("-c", code, check=True).stdout == "set()\n"


def test_the_packages_names_are_fetched_on_first_use():
    for name in hrnetpp_lib.__all__:
        assert getattr(hrnetpp_lib, name) is not None
    assert hrnetpp_lib.COCO17 is COCO17
    with pytest.raises(AttributeError, match="has no attribute 'nothing'; it offers .*create_model"):
        _ = hrnetpp_lib.nothing


# -------------------------------------------------------------------------------------------- wheel


@pytest.fixture(scope="module")
def packed(smoke_root, tmp_path_factory) -> Path:
    """The folder weights/ of a project whose network, not a good one, was packed."""
    root = tmp_path_factory.mktemp("packed")
    ws = Workspace(SMOKE, root, layout.data_paths(SMOKE, smoke_root / "data"))
    run = table_runs(SMOKE, 0)["regression"]
    tiny_checkpoint(checkpoint_path(ws.runs, run.name), COCO17)
    card = pack(ws, 0)
    assert (root / "weights" / "README.md").read_text() == card and f"Run `{run.name}`" in card
    return root / "weights"


@pytest.fixture(scope="module")
def wheel(packed, tmp_path_factory) -> Path:
    """The package as it is installed from a wheel, with a packed network: a folder for PYTHONPATH."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(project_root() / name, source)
    (source / "weights").mkdir()
    shutil.copy(packed / "smoke_hrnetpp.safetensors", source / PACKAGED)
    shutil.copy(packed / "README.md", source / "weights")
    # A copy, for setuptools leaves build/ behind, and takes from there what is gone from the sources.
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(project_root() / "hrnetpp_lib", source / "hrnetpp_lib", ignore=ignored)
    code = f"from setuptools.build_meta import build_wheel; print(build_wheel({str(site)!r}))"
    done = python("-c", code, cwd=source, check=True)
    with zipfile.ZipFile(site / done.stdout.splitlines()[-1]) as content:
        content.extractall(site)
    return site


def files_of(folder: Path) -> set[Path]:
    found = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return {path for path in found if "__pycache__" not in path.parts}


def test_what_is_packed_is_half_as_large_and_the_same_network(packed, tmp_path):
    before = tiny_checkpoint(tmp_path / "before.safetensors", COCO17)
    after = packed / "smoke_hrnetpp.safetensors"
    assert after.stat().st_size < 0.7 * before.stat().st_size
    (model, card), (rounded, same) = map(load_checkpoint, (before, after))
    assert card == same
    for one, other in zip(model.parameters(), rounded.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-7)
    model.final_layer.bias.data[3] = 1e5  # more than 16 bits hold
    save_checkpoint(model, card, before)
    round_weights(before, tmp_path / "after.safetensors")
    with pytest.raises(HrnetppError, match="final_layer.bias is not finite"):
        load_checkpoint(tmp_path / "after.safetensors")


def test_only_networks_of_photographs_are_packed(monkeypatch):
    monkeypatch.setattr("sys.argv", ["pack.py", "mini", "0"])
    with pytest.raises(SystemExit, match="error: profile mini: only networks of photographs are packed"):
        pack_command()


def test_a_wheel_holds_every_module_the_packaged_network_and_nothing_else(wheel):
    packaged = {PACKAGED, PACKAGED.with_name("README.md")}
    assert files_of(wheel / "hrnetpp_lib") == files_of(project_root() / "hrnetpp_lib") | packaged
    others = {path.name for path in wheel.iterdir()} - {"hrnetpp_lib"}
    assert all(name.startswith("hrnetpp_lib-") for name in others), others


def from_wheel(wheel: Path, folder: Path, *commands: list[str]) -> subprocess.CompletedProcess:
    """Run commands one after another in one process that has the package from a wheel."""
    code = f"import sys; from hrnetpp_lib.__main__ import main; sys.exit(max(map(main, {list(commands)!r})))"
    return python("-c", code, cwd=folder, env=os.environ | {"PYTHONPATH": str(wheel)})


def test_a_wheel_is_used_where_one_stands(wheel, tmp_path):
    cv2.imwrite(str(tmp_path / "photo.png"), np.zeros((90, 60, 3), np.uint8))
    before, predict = files_of(wheel), ["predict", "photo.png", "--output-dir", "poses", "--runtime", "torch"]
    done = from_wheel(wheel, tmp_path, ["doctor"], predict, ["reproduce", "--profile", "smoke"])
    packaged = wheel / "hrnetpp_lib" / PACKAGED
    assert f"nothing trained, so the packaged network; its limits: {packaged.parent}\n" in done.stdout
    assert f"network {packaged} (tiny-coco17, " in done.stdout
    assert files_of(wheel) == before
    assert re.search(rf"^folder +{re.escape(str(tmp_path))}$", done.stdout, flags=re.MULTILINE)
    assert done.returncode == 2
    said = f"error: {tmp_path}/notebooks: no notebooks there; they are no part of the package, get a checkout"
    assert done.stderr.endswith(said + "\n")  # matplotlib may tell of its font cache before
    poses = {Path("photo.png"), Path("poses/poses.json"), Path("poses/photo_poses.jpg")}
    assert files_of(tmp_path) == poses


@pytest.mark.slow
def test_a_wheel_trains_and_evaluates(wheel, tmp_path):
    done = from_wheel(wheel, tmp_path, ["train", "--profile", "smoke"])
    assert (done.returncode, done.stderr) == (0, "")
    (checkpoint,) = tmp_path.glob("runs/smoke/stage3_*/model.safetensors")
    done = from_wheel(wheel, tmp_path, ["evaluate", "--profile", "smoke", "--checkpoint", str(checkpoint)])
    assert (done.returncode, done.stderr) == (0, "") and "AP50" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"data", "runs"}
