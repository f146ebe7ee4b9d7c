"""The training loop: it learns, it is repeatable, stages hand over, and nothing half-done looks finished."""

import itertools
import json
import math
import os
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from hrnetpp_lib.data.layout import GROUND_TRUTH_BOXES, convert_lspe, load_stage_data, prepare_data
from hrnetpp_lib.errors import HrnetppError, Preempted
from hrnetpp_lib.model.hrnet import HRNet
from hrnetpp_lib.model.weights import load_checkpoint
from hrnetpp_lib.recipe import HRNET, LSPET_CPU, SMOKE, STAGE2, STAGE3, Augmentation, resolve, three_stages
from hrnetpp_lib.train import resume
from hrnetpp_lib.train.journal import read_metrics, read_snapshots
from hrnetpp_lib.train.loop import build_model, checkpoint_path, initialise, train_stage
from hrnetpp_lib.train.machine import Machine

PROFILE = replace(SMOKE, synthetic_persons=(16, 12, 4), holdout_persons=2)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return prepare_data(PROFILE, tmp_path_factory.mktemp("data"))


def train(run, paths, runs):
    return train_stage(run, load_stage_data(run.stage.dataset, run.profile, paths), runs, paths.root)


def test_it_learns_a_handful_of_people(paths, tmp_path):
    still = replace(STAGE2, augmentation=Augmentation(0, 0, 0, 0, 0, 0))
    run = resolve(still, replace(PROFILE, eval_every=50, lr_scales=(3.0, 3.0, 3.0)), epochs=40)
    train(run, paths, tmp_path)
    epochs = read_metrics(tmp_path, run)
    assert len(epochs) == 40 and [e["epoch"] for e in epochs] == list(range(1, 41))
    assert epochs[-1]["loss"] < 0.5 * epochs[0]["loss"]
    assert epochs[-1]["metric"] == "COCO AP" and 0 <= epochs[-1]["value"] <= 1 and epochs[-1]["boxes"]


def test_three_stages_on_photographs(lspe_source, tmp_path):
    """From joints.mat and JPEGs to the regression model, on keypoints of which some are never labelled."""
    convert_lspe(
        lspe_source / "joints.mat", lspe_source / "images", tmp_path / "data", skip_missing_images=True
    )
    profile = replace(
        LSPET_CPU,
        network=PROFILE.network,
        batch_size=4,
        epochs=(1, 1, 1),
        holdout_persons=5,
        precision="fp32",
    )
    paths = prepare_data(profile, tmp_path / "data")
    chain = three_stages(profile)
    for run in chain:
        path = train(run, paths, tmp_path / "runs")
        (record,) = read_metrics(tmp_path / "runs", run)
        assert math.isfinite(record["loss"]) and record["loss"] > 0 and record["boxes"] == GROUND_TRUTH_BOXES
    faces, rest = load_checkpoint(path)[0].final_layer.weight.detach().split((5, 12))
    start = load_checkpoint(checkpoint_path(tmp_path / "runs", chain[1].name))[0].final_layer.weight.detach()
    assert torch.equal(faces, start[:5]) and not torch.equal(rest, start[5:])


def test_the_same_recipe_gives_the_same_weights_and_is_not_trained_twice(paths, tmp_path):
    run = resolve(STAGE2, PROFILE)
    first, second = train(run, paths, tmp_path / "a"), train(run, paths, tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()
    stamp = first.stat().st_mtime_ns
    assert train(run, paths, tmp_path / "a") == first and first.stat().st_mtime_ns == stamp
    other = train(replace(run, seed=1), paths, tmp_path / "a")
    assert other != first and other.read_bytes() != first.read_bytes()


def test_three_stages_hand_their_weights_on(paths, tmp_path):
    chain = three_stages(PROFILE)
    with pytest.raises(HrnetppError, match=f"train {chain[0].name} before"):
        train(chain[1], paths, tmp_path)
    cards = []
    for run in chain:
        model = build_model(run, 14 if run.stage.dataset == "ai_challenger" else 17)
        fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        initialise(model, run, tmp_path, paths.root)
        if run.previous:
            before = load_checkpoint(checkpoint_path(tmp_path, run.previous))[0].state_dict()
            changed = [n for n, t in model.state_dict().items() if not torch.equal(t, fresh[n])]
            new_head = run is chain[1]  # 14 keypoints become 17
            assert all(n.startswith("final_layer") != new_head or not new_head for n in changed)
            for name, tensor in model.state_dict().items():
                if not (new_head and name.startswith("final_layer")):
                    assert torch.equal(tensor, before[name]), name
        cards.append(load_checkpoint(train(run, paths, tmp_path))[1])
    assert [card.decoder for card in cards] == ["quarter_offset", "quarter_offset", "soft_argmax"]
    assert [len(card.skeleton) for card in cards] == [14, 17, 17]
    assert [card.run for card in cards] == [run.name for run in chain]
    recipe = json.loads((tmp_path / chain[2].name / "recipe.json").read_text())
    assert recipe["previous"] == chain[1].name and recipe["stage"]["alpha"] == 60
    snapshots = read_snapshots(tmp_path, chain[2])
    assert snapshots[-1]["heatmaps"].shape[1:] == (17, 16, 16) and snapshots[-1]["epoch"] == 1


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_no_checkpoint(paths, tmp_path, monkeypatch):
    import hrnetpp_lib.train.loop as module

    monkeypatch.setattr(module, "heatmap_mse", lambda pred, *_: pred.sum() * math.nan)
    run = resolve(STAGE2, PROFILE, HRNET)
    with pytest.raises(HrnetppError, match=r"loss is nan at step 1, epoch 1 .*on persons \d+, .*lower"):
        train(run, paths, tmp_path)
    assert not checkpoint_path(tmp_path, run.name).exists()


def test_an_exploding_loss_stops_the_run_and_names_step_and_persons(paths, tmp_path, monkeypatch):
    import hrnetpp_lib.train.loop as module

    calls, mse = itertools.count(1), module.heatmap_mse
    monkeypatch.setattr(module, "heatmap_mse", lambda *a: mse(*a) * (1e4 if next(calls) == 4 else 1))
    run = resolve(STAGE2, PROFILE, epochs=3)  # two steps an epoch
    with pytest.raises(HrnetppError, match=r"at step 4, epoch 2 \(typical: .*\), on persons \d+, \d+.*good"):
        train(run, paths, tmp_path)
    monkeypatch.undo()
    train(run, paths, tmp_path / "whole")
    path = train(run, paths, tmp_path)  # goes on from the end of epoch 1
    assert path.read_bytes() == checkpoint_path(tmp_path / "whole", run.name).read_bytes()
    assert [e["epoch"] for e in read_metrics(tmp_path, run)] == [1, 2, 3]


def test_spoilt_weights_are_not_saved(paths, tmp_path, monkeypatch):
    calls, step = itertools.count(1), torch.optim.Adam.step

    def spoil(self, *arguments):
        step(self, *arguments)
        if next(calls) == 3:  # the loss before it was fine
            self.param_groups[0]["params"][5].data[0] = math.nan

    monkeypatch.setattr(torch.optim.Adam, "step", spoil)
    run = resolve(STAGE2, PROFILE, epochs=3)
    data = load_stage_data("coco", PROFILE, paths)
    with pytest.raises(HrnetppError, match="weights are not finite after step 3"):
        train_stage(run, data, tmp_path, paths.root, Machine(save_every_s=0))
    (folder,) = tmp_path.glob("*/states")
    assert sorted(path.name[:13] for path in folder.iterdir()) == ["step_00000002", "step_00000002"]


def test_a_disk_that_is_full_ends_the_run_and_loses_nothing_saved(paths, tmp_path):
    """Files may not grow beyond what the first states take; then there is room again."""
    resource = pytest.importorskip("resource")
    run = resolve(STAGE2, replace(PROFILE, eval_every=9), epochs=3)
    data = load_stage_data("coco", run.profile, paths)
    whole = train_stage(run, data, tmp_path / "whole", paths.root).read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    calls, save = itertools.count(1), resume.save_state

    def save_on_a_small_disk(*arguments):
        full = next(calls) == 3
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000 if full else soft, hard))
        try:
            return save(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resume, "save_state", save_on_a_small_disk)
        with pytest.raises(HrnetppError, match="state at step 6 cannot be written .*make room"):
            train_stage(run, data, tmp_path, paths.root)
    (folder,) = tmp_path.glob("stage2*/states")
    assert sorted(path.name[:13] for path in folder.iterdir()) == ["step_00000002", "step_00000004"]
    assert train_stage(run, data, tmp_path, paths.root).read_bytes() == whole


def test_memory_that_runs_out_ends_in_advice(paths, tmp_path, monkeypatch):
    def hungry(self, images, forward=HRNet.forward):
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return forward(self, images)

    monkeypatch.setattr(HRNet, "forward", hungry)
    run = resolve(STAGE2, replace(PROFILE, eval_every=9))
    with pytest.raises(HrnetppError, match=r"ran out with 8 crops at once .* about 7 would likely fit"):
        train(run, paths, tmp_path)
    data = load_stage_data("coco", run.profile, paths)
    monkeypatch.setattr("hrnetpp_lib.train.validate", lambda *_: {"value": 0.5})
    monkeypatch.setattr("hrnetpp_lib.train.journal.save_snapshot", lambda *_: None)
    train_stage(run, data, tmp_path, paths.root, Machine(accumulate=4))
    assert read_metrics(tmp_path, run)[0]["accumulate"] == 4


def with_torn_picture(table, person, folder):
    """The table with a copy of its pictures, of which one cannot be read."""
    shutil.copytree(table.image_dir, folder)
    table = replace(table, image_dir=folder)
    table.image_path(person).write_bytes(b"torn")
    return table


def test_unreadable_pictures_are_named_counted_and_replaced(paths, tmp_path, capsys):
    run = resolve(STAGE2, PROFILE)
    data = load_stage_data("coco", PROFILE, paths)
    data = replace(data, train=with_torn_picture(data.train, 3, tmp_path / "images"))
    torn, bad = data.train.image_dir, data.train.image_path(3).name
    with pytest.raises(HrnetppError, match=bad):
        train_stage(run, data, tmp_path, paths.root)
    train_stage(run, data, tmp_path, paths.root, Machine(skip_bad_images=True))
    hit = sum(data.train.image_path(p).name == bad for p in range(len(data.train)))
    warned = capsys.readouterr().out.count(f"its picture cannot be read: {torn / bad}")
    assert warned == read_metrics(tmp_path, run)[0]["bad_images"] == hit


def test_a_torn_picture_of_val_is_named_before_the_first_step(paths, tmp_path):
    run = resolve(STAGE2, PROFILE)
    data = load_stage_data("coco", PROFILE, paths)
    data = replace(data, val=with_torn_picture(data.val, 0, tmp_path / "images"))
    bad = data.val.image_path(0)
    with pytest.raises(HrnetppError, match=f"1 of . images of .* cannot be read, the first: {bad}"):
        train_stage(run, data, tmp_path, paths.root, Machine(skip_bad_images=True))
    assert not list(tmp_path.glob("stage2*/states"))


def test_sigterm_while_val_is_scored_ends_at_once_and_costs_no_step(paths, tmp_path, monkeypatch):
    run = resolve(STAGE2, PROFILE, epochs=2)
    data = load_stage_data("coco", PROFILE, paths)
    whole = train_stage(run, data, tmp_path / "whole", paths.root).read_bytes()
    monkeypatch.setattr("hrnetpp_lib.train.validate", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Preempted, match="the same command goes on"):
        train_stage(run, data, tmp_path, paths.root)
    monkeypatch.undo()
    assert train_stage(run, data, tmp_path, paths.root).read_bytes() == whole


def test_data_that_changed_under_an_interrupted_run_are_refused(paths, tmp_path, monkeypatch):
    run = resolve(STAGE2, PROFILE, epochs=2)
    data = load_stage_data("coco", PROFILE, paths)
    monkeypatch.setattr("hrnetpp_lib.train.journal.save_snapshot", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train_stage(run, data, tmp_path, paths.root)
    monkeypatch.undo()
    fewer = replace(data, train=data.train.select(np.arange(len(data.train) - 1)))
    with pytest.raises(HrnetppError, match=f"persons {len(data.train)} -> {len(data.train) - 1}"):
        train_stage(run, fewer, tmp_path, paths.root)
    moved = replace(data, train=data.train.select(np.arange(len(data.train))))
    moved.train.keypoints[0, 0, 0] += 1
    with pytest.raises(HrnetppError, match="same numbers; different columns: keypoints"):
        train_stage(run, moved, tmp_path, paths.root)
    train_stage(run, data, tmp_path, paths.root)
    with pytest.raises(HrnetppError, match="same numbers; different columns: keypoints"):  # finished now
        train_stage(run, moved, tmp_path, paths.root)
    (tmp_path / run.name / "data.json").unlink()  # as where somebody was given the network alone
    assert train_stage(run, moved, tmp_path, paths.root).is_file()


def test_what_a_finished_run_leaves(paths, tmp_path):
    run = resolve(STAGE2, replace(PROFILE, eval_every=1), epochs=2)
    data = load_stage_data("coco", PROFILE, paths)
    path = train_stage(run, data, tmp_path, paths.root, Machine(tensorboard=True))
    left = {entry.name for entry in path.parent.iterdir()}
    assert left >= {"model.safetensors", "best.safetensors", "metrics.jsonl", "recipe.json", "data.json"}
    assert "states" not in left
    assert list((path.parent / "tensorboard").rglob("events.out.tfevents.*"))
    assert load_checkpoint(path.with_name("best.safetensors"))[1].run == run.name
    assert sorted(p.name for p in (path.parent / "snapshots").iterdir()) == [
        *("epoch_001.npz", "epoch_001.png", "epoch_002.npz", "epoch_002.png")
    ]


def test_bf16_trains_and_keeps_fp32_weights(paths, tmp_path):
    run = resolve(STAGE3, replace(PROFILE, precision="bf16"))
    model, _ = load_checkpoint(train(run, paths, tmp_path))
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert np.isfinite(read_metrics(tmp_path, run)[0]["loss"])


def test_nobody_to_train_on_and_metrics_of_an_untrained_run(paths, tmp_path):
    run = resolve(STAGE2, PROFILE)
    data = load_stage_data("coco", PROFILE, paths)
    with pytest.raises(HrnetppError, match="no person to train on"):
        train_stage(run, replace(data, train=data.train.select(slice(0, 0))), tmp_path, paths.root)
    with pytest.raises(HrnetppError, match="train .* first"):
        read_metrics(tmp_path, run)


def test_missing_imagenet_weights_are_named(tmp_path):
    run = resolve(STAGE2, replace(PROFILE, imagenet_weights="weights/hrnet_w48-8ef0771d.pth"))
    with pytest.raises(HrnetppError, match="hrnet_w48-8ef0771d.pth"):
        initialise(build_model(run, 17), run, tmp_path, tmp_path)
