"""The command line: exit status, messages for mistakes, and what the commands print and write."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import pytest
import torch

import hrnetpp_lib
from hrnetpp_lib import __main__ as commands
from hrnetpp_lib.__main__ import main
from hrnetpp_lib.model.hrnet import HRNet
from hrnetpp_lib.model.weights import ModelCard, save_checkpoint
from hrnetpp_lib.pose.keypoints import AIC14, COCO17
from hrnetpp_lib.recipe import SMOKE, three_stages

TINY = {"blocks_per_branch": 1, "modules": (1, 1, 1), "stem_channels": 8, "layer1_blocks": 1}


@pytest.fixture(autouse=True)
def one_thread():
    """More threads only get into each other's way with networks this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny_checkpoint(path, skeleton=COCO17):
    torch.manual_seed(0)
    model = HRNet(8, len(skeleton), **TINY)
    for weights in model.parameters():
        if weights.dim() == 4:
            torch.nn.init.kaiming_normal_(weights)  # heatmaps worth decoding; the usual start gives 1e-12
    save_checkpoint(model, ModelCard(skeleton, (64, 64), "soft_argmax", run=f"tiny-{skeleton.name}"), path)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model.safetensors")


@pytest.fixture(scope="module")
def smoke_root(tmp_path_factory):
    """A project folder with the smoke profile's data in it."""
    root = tmp_path_factory.mktemp("root")
    assert main(["check-data", "--profile", "smoke", "--output", str(root)]) == 0
    return root


def refused(capsys, *arguments: object) -> str:
    """Runs a command that must fail with status 2 and one line on stderr, and returns that line."""
    assert main([str(argument) for argument in arguments]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1
    return message


# ----------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize("command", ["reproduce", "train", "check-data"])
def test_an_unknown_profile_is_refused_with_the_known_ones(capsys, tmp_path, command):
    message = refused(capsys, command, "--profile", "big", "--output", tmp_path)
    assert "unknown profile 'big'" in message and "smoke, mini, lspet_cpu, lspet, coco" in message
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_architecture_is_refused_before_data_are_made(capsys, tmp_path):
    message = refused(capsys, "train", "--profile", "smoke", "--architecture", "resnet", "--output", tmp_path)
    assert "unknown architecture 'resnet'" in message and "hrnet+se" in message
    assert list(tmp_path.iterdir()) == []


def test_missing_data_are_named_with_the_way_out(capsys, tmp_path):
    message = refused(capsys, "check-data", "--profile", "coco", "--output", tmp_path)
    assert str(tmp_path / "data/coco/coco/annotations/person_keypoints_train2017.json") in message
    assert "--profile mini" in message


def test_unknown_notebook_and_parameter(capsys, tmp_path):
    common = ("reproduce", "--profile", "smoke", "--output", tmp_path)
    assert "no notebook '99'; there are 01_data_exploration" in refused(capsys, *common, "--only", "99")
    assert "no notebook has a parameter lr" in refused(capsys, *common, "--set", "lr=1")
    assert "write it as name=value" in refused(capsys, *common, "--set", "lr")
    assert list(tmp_path.iterdir()) == []


def test_evaluate_refuses_a_checkpoint_of_other_keypoints(capsys, tmp_path, smoke_root):
    path = tiny_checkpoint(tmp_path / "stage1.safetensors", AIC14)
    message = refused(capsys, "evaluate", "--profile", "smoke", "--output", smoke_root, "--checkpoint", path)
    assert "14 keypoints (aic14)" in message and "stage 2 or 3" in message


@pytest.mark.parametrize("arguments", [[], ["fly"], ["predict"], ["evaluate"], ["train", "--seed", "x"]])
def test_argparse_refuses_with_status_2(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [["train", "--accumulate", "0"], ["train", "--seed", "-1"], ["train", "--save-every", "nan"]]
    + [["train", "--save-every", "inf"], ["plan", "--gpus", "0"]],
)
def test_numbers_out_of_range_are_refused(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert f"argument {arguments[1]}: {arguments[2]}: must be at least" in capsys.readouterr().err


def test_a_file_in_the_place_of_a_folder_is_named(capsys, tmp_path):
    (tmp_path / "file").touch()
    assert str(tmp_path / "file") in refused(
        capsys, "check-data", "--profile", "smoke", "--output", tmp_path / "file"
    )


# ------------------------------------------------------------------------------------ other commands


def test_check_data_counts_what_is_there(capsys, smoke_root):
    assert main(["check-data", "--profile", "smoke", "--output", str(smoke_root)]) == 0
    printed = capsys.readouterr().out
    assert "coco17 train: 32 boxes" in printed
    assert "aic14 train:" in printed and "aic14 val:" in printed
    assert "val boxes: COCO_val2017_detections_synthetic_person.json" in printed
    assert "val boxes: ground-truth boxes" in printed


def test_check_data_misses_a_deleted_picture(capsys, smoke_root):
    picture = sorted((smoke_root / "data/smoke/coco/train2017").iterdir())[0]
    content = picture.read_bytes()
    picture.unlink()
    try:
        message = refused(capsys, "check-data", "--profile", "smoke", "--output", smoke_root)
    finally:
        picture.write_bytes(content)
    assert picture.name in message and "1 of" in message


def test_check_data_finds_a_torn_picture(capsys, smoke_root):
    picture = sorted((smoke_root / "data/smoke/coco/train2017").iterdir())[2]
    content = picture.read_bytes()
    picture.write_bytes(content[:700])
    try:
        message = refused(capsys, "check-data", "--profile", "smoke", "--output", smoke_root)
    finally:
        picture.write_bytes(content)
    assert f"{picture}: the image is truncated" in message and "1 of" in message


def test_a_recipe_says_it_all(capsys, tmp_path):
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(asdict(three_stages(SMOKE)[0]) | {"seed": -3}))
    assert "seed -3" in refused(capsys, "train", "--recipe", recipe, "--output", tmp_path)
    for option in (["--seed", "0"], ["--profile", "smoke"], ["--architecture", "hrnet"]):
        message = refused(capsys, "train", "--recipe", recipe, *option)
        assert f"--recipe {recipe} says it all; leave out {option[0]}" in message
    assert list(tmp_path.iterdir()) == [recipe]


def test_sigterm_before_a_stage_begins_leaves_the_mark(capsys, tmp_path, monkeypatch):
    def scheduler_sends(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        raise AssertionError

    monkeypatch.setattr("hrnetpp_lib.data.layout.prepare_data", scheduler_sends)
    assert main(["train", "--profile", "smoke", "--output", str(tmp_path)]) == 75
    assert "the same command goes on" in capsys.readouterr().err
    assert (tmp_path / "runs/smoke/PREEMPTED").exists()


def test_evaluate_prints_the_figures_and_what_they_were_measured_on(capsys, smoke_root, checkpoint):
    arguments = [
        "evaluate",
        "--profile",
        "smoke",
        "--output",
        str(smoke_root),
        "--checkpoint",
        str(checkpoint),
    ]
    assert main([*arguments, "--no-flip"]) == 0
    printed = capsys.readouterr().out
    assert "boxes COCO_val2017_detections_synthetic_person.json, flip False, TTA False" in printed
    assert "decoder soft_argmax" in printed
    for name in ("AP ", "AP50 ", "AP75 ", "APM ", "APL ", "AR "):
        assert name in printed


def test_train_runs_all_stages_and_finds_them_trained(capsys, smoke_root):
    arguments = ["train", "--profile", "smoke", "--architecture", "hrnet", "--output", str(smoke_root)]
    assert main(arguments) == 0
    first = capsys.readouterr().out
    assert [line.split("-")[0] for line in first.splitlines() if line.startswith("run ")] == [
        "run          stage1_ai_challenger",
        "run          stage2_coco_heatmap",
        "run          stage3_coco_regression",
    ]
    checkpoints = sorted((smoke_root / "runs/smoke").glob("*/model.safetensors"))
    before = {path: path.stat().st_mtime_ns for path in checkpoints}
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("found trained") == len(checkpoints) == 3
    assert {path: path.stat().st_mtime_ns for path in checkpoints} == before


def test_doctor_tells_versions_and_what_is_missing(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(commands, "PROJECT_ROOT", tmp_path)
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    for word in ("python", "torch", "numpy", "device", "git revision", "free disk"):
        assert any(line.startswith(word) for line in printed.splitlines()), word
    assert "profile smoke     ready (makes its own data)" in printed
    (lspet,) = [line for line in printed.splitlines() if line.startswith("profile lspet ")]
    assert "convert-lspe joints.mat images/" in lspet
    (coco,) = [line for line in printed.splitlines() if line.startswith("profile coco")]
    assert "lacks 10 files or folders, first" in coco and "person_keypoints_train2017.json" in coco


# -------------------------------------------------------------------------------------------- speed


def test_help_is_quick_and_lists_every_command():
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "hrnetpp_lib", "--help"], capture_output=True, text=True)
    assert time.perf_counter() - started < 1.5
    assert done.returncode == 0
    for command in ("reproduce", "train", "evaluate", "predict", "check-data", "doctor"):
        assert command in done.stdout


@pytest.mark.parametrize("module", ["hrnetpp_lib", "hrnetpp_lib.__main__"])
def test_importing_the_package_is_quick_and_loads_nothing_heavy(module):
    code = f"import sys, {module}; print(*({{'torch', 'cv2', 'matplotlib'}} & set(sys.modules)))"
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.perf_counter() - started < 1.5
    assert done.stdout == "\n"


def test_the_packages_names_are_fetched_on_first_use():
    for name in hrnetpp_lib.__all__:
        assert getattr(hrnetpp_lib, name) is not None
    assert hrnetpp_lib.COCO17 is COCO17
    with pytest.raises(AttributeError, match="has no attribute 'nothing'; it offers .*create_model"):
        _ = hrnetpp_lib.nothing
