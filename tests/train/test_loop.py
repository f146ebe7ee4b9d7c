"""The loss by hand; training learns, is repeatable, stages hand over, nothing half-done looks finished."""

import contextlib
import itertools
import json
import math
import shutil
import signal
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from filelock import FileLock

from hrnetpp_lib.__main__ import main
from hrnetpp_lib.data.annotations import labelled_persons
from hrnetpp_lib.data.crops import Sample
from hrnetpp_lib.data.layout import GROUND_TRUTH_BOXES, convert_lspe, load_stage_data, prepare_data
from hrnetpp_lib.errors import HrnetppError, Preempted
from hrnetpp_lib.evaluate.measure import predict_ways
from hrnetpp_lib.files import write_json
from hrnetpp_lib.model.hrnet import HRNet
from hrnetpp_lib.model.weights import load_checkpoint
from hrnetpp_lib.pose.heatmap import encode, locate
from hrnetpp_lib.recipe import (
    HRNET,
    LSPET_CPU,
    SMOKE,
    STAGE1,
    STAGE2,
    STAGE3,
    Augmentation,
    resolve,
    three_stages,
)
from hrnetpp_lib.train import loop, resume
from hrnetpp_lib.train.journal import read_metrics, read_snapshots
from hrnetpp_lib.train.loop import TrainStep, build_model, checkpoint_path, train_stage
from hrnetpp_lib.train.machine import EngineOptions

PROFILE = replace(SMOKE, synthetic_persons=(16, 12, 4), holdout_persons=2)

# A file may be open for a moment outside its `with`; Python closes it, and remarks on it.
broken_off = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield prepare_data(PROFILE, tmp_path_factory.mktemp("data"))
    torch.set_num_threads(threads)


def train(run, paths, runs, **options):
    data = load_stage_data(run.stage.dataset, run.profile, paths)
    return train_stage(run, data, runs, paths.root, EngineOptions(**options))


def batch_of(peaks: torch.Tensor, weights: torch.Tensor, image: torch.Tensor | None = None) -> Sample:
    """A collated batch of (B, K, 2) cells; for the L1, one keypoint at (2, 2) counts."""
    keypoints, counts = torch.full(peaks.shape, 2.0), torch.zeros(weights.shape)
    counts[0, 0] = 1
    return Sample(image, peaks, weights, keypoints, counts, torch.arange(len(peaks)), -torch.ones(len(peaks)))


def test_learning_rate_is_a_cosine_between_its_ends():
    for step, lr in ((0, 1e-3), (5, (1e-3 + 5e-5) / 2), (10, 5e-5)):
        assert loop.learning_rate(STAGE2, step, 10) == pytest.approx(lr)
    assert loop.learning_rate(replace(STAGE2, lr_end=1e-3), 7, 10) == pytest.approx(1e-3)


def test_heatmap_stages_take_half_the_squared_error_to_the_gaussians():
    run = resolve(STAGE2, replace(SMOKE, heatmap_sigma=1.0))
    cells = torch.tensor([1, 2, 0, 0, 3, 4, 2, 2, 0, 3, 1, 1]).view(2, 3, 2)
    batch = batch_of(cells, torch.tensor([[1.0, 0, 1], [1, 1, 0]]))
    heatmaps = torch.rand(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    total = 0.0
    for b, k, y, x in itertools.product(range(2), range(3), range(5), range(4)):
        x0, y0 = batch.peaks[b, k].tolist()
        near = abs(x - x0) <= 3 and abs(y - y0) <= 3
        target = np.exp(-((x - x0) ** 2 + (y - y0) ** 2) / 2) if near else 0.0
        total += 0.5 * (batch.target_weight[b, k].item() * (heatmaps[b, k, y, x].item() - target)) ** 2
    assert loop.batch_loss(run, heatmaps, batch).item() == pytest.approx(total / (2 * 3 * 5 * 4), rel=1e-5)


def test_targets_of_a_batch_are_those_of_encode_to_the_last_digit():
    run = resolve(STAGE2, replace(SMOKE, input_hw=(96, 64), heatmap_sigma=2.5))
    rng = np.random.default_rng(3)
    points, labelled = rng.uniform(-30, 120, (7, 5, 2)), rng.random((7, 5)) < 0.8
    sizes, sigma = (run.profile.input_hw, run.profile.heatmap_hw), run.profile.heatmap_sigma
    located = [locate(p / 4, v, sizes[1], sigma) for p, v in zip(points, labelled, strict=True)]
    batch = batch_of(*(torch.from_numpy(np.stack(column)) for column in zip(*located, strict=True)))
    target = np.stack([encode(p, v, *sizes, sigma)[0] for p, v in zip(points, labelled, strict=True)])
    assert loop.batch_loss(run, torch.from_numpy(target), batch).item() == 0
    assert target.any(axis=(2, 3)).any() and not target.any(axis=(2, 3)).all()


def test_the_regression_stage_takes_the_distance_of_the_centre_of_mass():
    batch = batch_of(torch.zeros(2, 3, 2, dtype=torch.int64), torch.ones(2, 3))
    flat = loop.batch_loss(resolve(STAGE3, SMOKE), torch.zeros(2, 3, 5, 4), batch)
    assert flat.item() == pytest.approx((abs(1.5 - 2) + abs(2 - 2)) / 12)  # centre (1.5, 2) against (2, 2)


def test_raw_crops_in_and_a_gradient_for_every_weight():
    run = resolve(STAGE2, SMOKE)
    model = HRNet(num_keypoints=5, **asdict(SMOKE.network))
    image = torch.randint(0, 255, (2, 96, 64, 3), dtype=torch.uint8)
    batch = batch_of(torch.full((2, 5, 2), 7), torch.ones(2, 5), image)
    TrainStep(model, run)(batch).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_it_learns_a_handful_of_people(paths, tmp_path):
    still = replace(STAGE2, augmentation=Augmentation(0, 0, 0, 0, 0, 0))
    run = resolve(still, replace(PROFILE, eval_every=50, lr_scales=(3.0, 3.0, 3.0)), epochs=40)
    train(run, paths, tmp_path)
    epochs = read_metrics(tmp_path, run)
    assert [e["epoch"] for e in epochs] == list(range(1, 41))
    assert epochs[-1]["loss"] < 0.5 * epochs[0]["loss"]
    assert epochs[-1]["metric"] == "COCO AP" and 0 <= epochs[-1]["value"] <= 1 and epochs[-1]["boxes"]
    model, card = load_checkpoint(checkpoint_path(tmp_path, run.name))
    truth = labelled_persons(load_stage_data("coco", run.profile, paths).truth)
    loss = predict_ways(model, {"its own": card}, truth, run.profile.heatmap_sigma)[1]
    assert epochs[-1]["val_loss"] == pytest.approx(loss, rel=1e-5)


def test_three_stages_on_photographs(lspe_source, tmp_path):
    """From joints.mat and JPEGs to the regression model, on keypoints of which some are never labelled."""
    convert_lspe(lspe_source / "joints.mat", lspe_source / "images", tmp_path / "data", True)
    small = {"network": PROFILE.network, "batch_size": 4, "epochs": (1, 1, 1), "holdout_persons": 5}
    profile = replace(LSPET_CPU, precision="fp32", **small)
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
    first.with_name(".lock").unlink()  # as where nothing can be written: nothing is tried
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")}
    assert train(run, paths, tmp_path / "a") == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")} == stamps
    other = train(replace(run, seed=1), paths, tmp_path / "a")
    assert other != first and other.read_bytes() != first.read_bytes()


def test_a_start_is_scaled_as_the_recipe_says(paths, tmp_path):
    first = resolve(STAGE1, PROFILE)
    train(first, paths, tmp_path)
    larger = replace(PROFILE, start_scale=16.0)
    for previous in (first, None):
        found = []
        for scale, profile in ((1.0, PROFILE), (0.5, PROFILE), (1.0, larger), (0.5, larger)):
            run = resolve(replace(STAGE2, start_scale=scale), profile, previous=previous)
            found.append(build_model(run, 17))
            report = loop.initialise(found[-1], run, tmp_path, paths.root)
            times = scale * (16 if previous is None and profile is larger else 1)
            assert run.stage.start_scale == times
            assert (f", times {times:g} before a BN" in report) == (times != 1)
            weights = [model.layer1[0].conv2.weight for model in found]
            assert torch.equal(weights[-1], times * weights[0])
            assert torch.equal(found[-1].final_layer.weight, found[0].final_layer.weight)


def test_three_stages_hand_their_weights_on(paths, tmp_path):
    chain = three_stages(PROFILE)
    with pytest.raises(HrnetppError, match=f"train {chain[0].name} before"):
        train(chain[1], paths, tmp_path)
    with pytest.raises(HrnetppError, match="hrnet_w48-8ef0771d.pth"):
        train(resolve(STAGE2, replace(PROFILE, imagenet_weights="hrnet_w48-8ef0771d.pth")), paths, tmp_path)
    cards = []
    for run in chain:
        model = build_model(run, 14 if run.stage.dataset == "ai_challenger" else 17)
        fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        loop.initialise(model, run, tmp_path, paths.root)
        if run.previous:
            before = load_checkpoint(checkpoint_path(tmp_path, run.previous))[0].state_dict()
            for name, tensor in model.state_dict().items():
                new = run is chain[1] and name.startswith("final_layer")  # 14 keypoints become 17
                assert torch.equal(tensor, (fresh if new else before)[name]), name
        cards.append(load_checkpoint(train(run, paths, tmp_path))[1])
    assert [card.decoder for card in cards] == ["quarter_offset", "quarter_offset", "soft_argmax"]
    assert [len(card.skeleton) for card in cards] == [14, 17, 17]
    assert [card.run for card in cards] == [run.name for run in chain]
    recipe = json.loads((tmp_path / chain[2].name / "recipe.json").read_text())
    assert recipe["previous"] == chain[1].name and recipe["stage"]["alpha"] == 60
    snapshots = read_snapshots(tmp_path, chain[2])
    assert snapshots[-1]["heatmaps"].shape[1:] == (17, 16, 16) and snapshots[-1]["epoch"] == 1


def test_a_loss_that_is_not_finite_or_explodes_stops_the_run_and_is_told(paths, tmp_path, monkeypatch):
    calls, mse = itertools.count(1), loop.heatmap_mse
    monkeypatch.setattr(loop, "heatmap_mse", lambda pred, *_: pred.sum() * math.nan)
    run = resolve(STAGE2, PROFILE, HRNET)
    with pytest.raises(HrnetppError, match=r"loss is nan at step 1, epoch 1 .*on persons \d+, .*lower"):
        train(run, paths, tmp_path)
    assert not checkpoint_path(tmp_path, run.name).exists()
    factor = lambda: 1e4 if torch.is_grad_enabled() and next(calls) == 4 else 1  # noqa: E731
    monkeypatch.setattr(loop, "heatmap_mse", lambda *a: mse(*a) * factor())
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
    with pytest.raises(HrnetppError, match="weights are not finite after step 3"):
        train(run, paths, tmp_path, save_every_s=0)
    (folder,) = tmp_path.glob("*/states")
    assert sorted(path.name[:13] for path in folder.iterdir()) == ["step_00000002", "step_00000002"]


WRITERS = {"save_state": (resume, 3, "state at step 6"), "save_checkpoint": (loop, 2, "model.safetensors:")}
WRITERS["append_metrics"] = (loop.journal, 3, "metrics.jsonl:")


@pytest.mark.parametrize("writer", WRITERS)
def test_a_disk_that_is_full_ends_the_run_and_loses_nothing_saved(paths, tmp_path, writer, full_disk):
    """Files may not grow in one of the last writes; then there is room again."""
    run = resolve(STAGE2, replace(PROFILE, eval_every=9), epochs=3)
    whole = train(run, paths, tmp_path / "whole").read_bytes()
    module, call, named = WRITERS[writer]
    calls, save = itertools.count(1), getattr(module, writer)

    def save_on_a_small_disk(*arguments):
        with full_disk(300) if next(calls) == call else contextlib.nullcontext():
            return save(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, writer, save_on_a_small_disk)
        with pytest.raises(HrnetppError, match=f"{named}[^\n]*cannot be written [^\n]*make room"):
            train(run, paths, tmp_path)
    (folder,) = tmp_path.glob("stage2*/states")
    assert len(list(folder.iterdir())) == 2 and not list(tmp_path.rglob("*part*"))
    assert train(run, paths, tmp_path).read_bytes() == whole


def test_memory_that_runs_out_ends_in_advice(paths, tmp_path, monkeypatch):
    def hungry(self, images, forward=HRNet.forward):
        if len(images) > 2 and self.training:
            torch.empty(2**60)
        return forward(self, images)

    monkeypatch.setattr(HRNet, "forward", hungry)
    run = resolve(STAGE2, PROFILE)
    for accumulate, crops in ((1, 8), (2, 4)):
        advice = f"memory ran out with {crops} crops at once; .*--accumulate {2 * accumulate} or more"
        with pytest.raises(HrnetppError, match=advice):
            train(run, paths, tmp_path, accumulate=accumulate)
    train(run, paths, tmp_path, accumulate=4)
    assert read_metrics(tmp_path, run)[0]["accumulate"] == 4


def test_unreadable_pictures_are_named_counted_and_replaced_but_for_those_of_val(paths, tmp_path, capsys):
    run = resolve(STAGE2, PROFILE)
    data = load_stage_data("coco", PROFILE, paths)
    torn = {}
    for role, person in (("train", 3), ("val", 0)):
        table = getattr(data, role)
        shutil.copytree(table.image_dir, tmp_path / role)
        torn[role] = replace(table, image_dir=tmp_path / role)
        torn[role].image_path(person).write_bytes(b"torn")
    bad, skip = torn["train"].image_path(3), EngineOptions(skip_bad_images=True)
    first = f"1 of . images of .* cannot be read, the first: {torn['val'].image_path(0)}"
    with pytest.raises(HrnetppError, match=first):  # before the first step
        train_stage(run, replace(data, val=torn["val"]), tmp_path, paths.root, skip)
    assert not list(tmp_path.glob("stage2*/states"))
    data = replace(data, train=torn["train"])
    with pytest.raises(HrnetppError, match=bad.name):
        train_stage(run, data, tmp_path, paths.root)
    train_stage(run, data, tmp_path, paths.root, skip)
    hit = sum(data.train.image_path(p) == bad for p in range(len(data.train)))
    warned = capsys.readouterr().out.count(f"its picture cannot be read: {bad}")
    assert warned == read_metrics(tmp_path, run)[0]["bad_images"] == hit


@broken_off
def test_sigterm_while_val_is_scored_ends_at_once_and_costs_no_step(paths, tmp_path, capsys, sigterm_inside):
    run = resolve(STAGE2, PROFILE, epochs=2)
    whole = train(run, paths, tmp_path / "whole").read_bytes()
    with sigterm_inside("evaluate/"), pytest.raises(Preempted, match="the same command goes on"):
        train(run, paths, tmp_path)
    assert not (tmp_path / run.name / "metrics.jsonl").exists()
    assert train(run, paths, tmp_path).read_bytes() == whole
    assert "goes on from step 2" in capsys.readouterr().out


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A root with the data of smoke."""
    root = tmp_path_factory.mktemp("prepared")
    prepare_data(SMOKE, root / "data")
    return root


@pytest.mark.parametrize("nth", [2, 9])
@pytest.mark.parametrize("place", ["data/layout", "data/annotations", "data/persons", "train/loop"])
@broken_off
def test_sigterm_while_data_are_read_or_made_ready_ends_in_75(prepared, sigterm_inside, place, nth, capsys):
    """Where a signal that counted as bad input was taken for a broken file, or for no signal at all."""
    run = resolve(STAGE2, SMOKE, HRNET)
    write_json(prepared / "recipe.json", run)
    mark = prepared / "runs" / "smoke" / "PREEMPTED"
    mark.unlink(missing_ok=True)
    before = signal.getsignal(signal.SIGTERM)
    with sigterm_inside(place, nth=nth):
        status = main(["train", "--recipe", str(prepared / "recipe.json"), "--output", str(prepared)])
    assert status == 75 and signal.getsignal(signal.SIGTERM) is before
    said = capsys.readouterr()
    assert said.err.count("the same command goes on") == 1 and said.err.count("\n") == 1
    assert mark.read_text().splitlines() == [run.name]
    assert not list(prepared.glob("runs/smoke/*/metrics.jsonl"))


@broken_off
def test_sigterm_while_synthetic_data_are_waited_for_or_made(tmp_path, sigterm_inside):
    (tmp_path / "data").mkdir()
    command = ["train", "--profile", "smoke", "--output", str(tmp_path)]
    with FileLock(tmp_path / "data" / ".smoke.lock"), sigterm_inside("synthetic", "filelock"):
        assert main(command) == 75
    assert (tmp_path / "runs/smoke/PREEMPTED").is_file()
    assert not (tmp_path / "data" / "smoke").exists()


def test_data_that_changed_under_an_interrupted_run_are_refused(paths, tmp_path, monkeypatch):
    run = resolve(STAGE2, PROFILE, epochs=2)
    data = load_stage_data("coco", PROFILE, paths)
    monkeypatch.setattr(loop.journal, "save_snapshot", lambda *_: 1 / 0)
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
    record = tmp_path / run.name / "data.json"
    for damaged in ("[1]", '{"persons": 1.5}', '{"persons": 1', "[" * 100_000):
        record.write_text(damaged)
        with pytest.raises(HrnetppError, match=r"data.json: [^\n]*; delete it, or the run to train anew$"):
            train_stage(run, data, tmp_path, paths.root)
    record.unlink()  # as where somebody was given the network alone
    assert train_stage(run, moved, tmp_path, paths.root).is_file()


def test_what_a_finished_run_leaves(paths, tmp_path):
    run = resolve(STAGE2, replace(PROFILE, eval_every=1), epochs=2)
    path = train(run, paths, tmp_path, tensorboard=True)
    left = {entry.name for entry in path.parent.iterdir()}
    assert {"model.safetensors", "best.safetensors", "metrics.jsonl", "recipe.json", "data.json"} <= left
    assert "states" not in left
    assert list((path.parent / "tensorboard").rglob("events.out.tfevents.*"))
    assert load_checkpoint(path.with_name("best.safetensors"))[1].run == run.name
    assert sorted(p.name for p in (path.parent / "snapshots").iterdir()) == ["epoch_001.npz", "epoch_002.npz"]


def test_bf16_trains_and_keeps_fp32_weights(paths, tmp_path):
    run = resolve(STAGE3, replace(PROFILE, precision="bf16"))
    model, _ = load_checkpoint(train(run, paths, tmp_path))
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert np.isfinite(read_metrics(tmp_path, run)[0]["loss"])
