"""One training stage, from a recipe to a checkpoint.

The loop below is the whole engine: crops in, heatmaps out, one of two losses, Adam, a cosine.
"""

import json
import math
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from hrnetpp_lib.checkpoint import ModelCard, save_checkpoint
from hrnetpp_lib.data import BoxCrops, TrainCrops, normalise
from hrnetpp_lib.datasets import StageData
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.hrnet import HRNet
from hrnetpp_lib.infer import forward, pick_device
from hrnetpp_lib.losses import heatmap_mse, keypoint_l1
from hrnetpp_lib.progress import progress_bar
from hrnetpp_lib.recipe import Run, TrainStage
from hrnetpp_lib.softargmax import soft_argmax
from hrnetpp_lib.validate import validate
from hrnetpp_lib.weights import load_stage1, load_weights


def build_model(run: Run, num_keypoints: int) -> HRNet:
    """The run's network with random weights, drawn from the run's seed."""
    torch.manual_seed(run.seed)
    return HRNet(num_keypoints=num_keypoints, **asdict(run.profile.network), **run.architecture.switches)


def initialise(model: HRNet, run: Run, runs_dir: Path, data_dir: Path) -> str:
    """Load what the run starts from, and return a report of it.

    Raises:
        HrnetppError: If the previous run is not finished, or a weight file does not fit.
    """
    if run.previous:
        previous = checkpoint_path(runs_dir, run.previous)
        if not previous.is_file():
            raise HrnetppError(f"{previous}: not there; train {run.previous} before {run.name}")
        return f"{load_weights(model, previous)}\n(from {run.previous})"
    if run.profile.imagenet_weights:
        path = data_dir / run.profile.imagenet_weights
        return f"{load_stage1(model, path)}\n(from {path})"
    return "random weights, N(0, 0.001)"


def checkpoint_path(runs_dir: Path, run_name: str) -> Path:
    """Where a finished run keeps its network."""
    return runs_dir / run_name / "model.safetensors"


def learning_rate(stage: TrainStage, step: int, steps: int) -> float:
    """Cosine from lr_start at step 0 to lr_end at the end (report, training)."""
    return stage.lr_end + (stage.lr_start - stage.lr_end) / 2 * (1 + math.cos(math.pi * step / steps))


def batch_loss(stage: TrainStage, heatmaps: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The stage's loss of one batch.

    Args:
        stage: Names the loss.
        heatmaps: (B, K, H, W) network output.
        batch: A collated batch of `data.TrainCrops`, on the same device.
    """
    if stage.loss == "heatmap_mse":
        return heatmap_mse(heatmaps.float(), batch["heatmaps"], batch["target_weight"])
    keypoints = soft_argmax(heatmaps, stage.alpha)
    return keypoint_l1(keypoints, batch["keypoints_heatmap"], batch["keypoint_weight"])


def train_stage(run: Run, data: StageData, runs_dir: Path, data_dir: Path) -> Path:
    """Train one stage, or find it trained.

    Args:
        run: The resolved recipe.
        data: Training and validation persons.
        runs_dir: Gets a folder named after the run: recipe.json, metrics.jsonl, snapshots/ and, once
            finished, model.safetensors.
        data_dir: Where weight files for initialisation lie.

    Returns:
        Path of the checkpoint.

    Raises:
        HrnetppError: If the loss is not finite, there is nothing to train on, or the start is missing.

    Reference: HRNet++ report, training.
    """
    path = checkpoint_path(runs_dir, run.name)
    if path.is_file():
        print(f"{run.name}: found trained, {path}")
        return path
    if len(data.train) == 0:
        raise HrnetppError(f"{data.train.name}: no person to train on")
    device = pick_device()
    card = ModelCard.of_run(run, data.train.skeleton)
    model = build_model(run, len(card.skeleton))
    print(f"{run.name}, initial weights:\n{initialise(model, run, runs_dir, data_dir)}")
    model.to(device, memory_format=torch.channels_last)
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / "recipe.json").write_text(json.dumps(asdict(run), indent=2))
    with open(path.parent / "metrics.jsonl", "w") as log:
        _train(model, card, run, data, device, log)
    save_checkpoint(model, card, path)
    return path


def _train(model: HRNet, card: ModelCard, run: Run, data: StageData, device: torch.device, log) -> None:
    """The loop over epochs; writes one line of metrics per epoch."""
    stage, profile = run.stage, run.profile
    dataset = TrainCrops(data.train, run)
    # CHOICE: no weight decay: the report is silent, and the official recipe's never reaches Adam.
    optimizer = torch.optim.Adam(model.parameters(), lr=stage.lr_start, fused=True)
    order = torch.Generator().manual_seed(run.seed)
    loader = torch.utils.data.DataLoader(
        dataset, profile.batch_size, shuffle=True, generator=order, num_workers=profile.workers
    )
    steps, step = stage.epochs * len(loader), 0
    for epoch in range(stage.epochs):
        dataset.set_epoch(epoch)
        model.train()
        losses, started = [], time.perf_counter()
        for batch in progress_bar(loader, f"{stage.name} epoch {epoch + 1}/{stage.epochs}"):
            batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
            lr = learning_rate(stage, step, steps)
            optimizer.param_groups[0]["lr"] = lr
            with torch.autocast(device.type, torch.bfloat16, enabled=profile.precision == "bf16"):
                heatmaps = model(normalise(batch["image"]))
            loss = batch_loss(stage, heatmaps, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            step += 1
            if not math.isfinite(losses[-1]):
                raise HrnetppError(
                    f"{run.name}: loss is {losses[-1]} at step {step}, epoch {epoch + 1}; lower lr {lr:g}"
                )
        seconds = time.perf_counter() - started
        record = {
            "epoch": epoch + 1,
            "step": step,
            "loss": float(np.mean(losses)),
            "lr": lr,
            "seconds": seconds,
            "samples_per_s": len(dataset) / seconds,
        }
        if (epoch + 1) % profile.eval_every == 0 or epoch + 1 == stage.epochs:
            record |= validate(model, card, data)
            _save_snapshot(
                model, card, data, Path(log.name).parent / "snapshots" / f"epoch_{epoch + 1:03d}.npz"
            )
        log.write(json.dumps(record) + "\n")
        log.flush()
        print(_line(stage, record), flush=True)


def _line(stage: TrainStage, record: dict) -> str:
    """One epoch in one line, for notebooks and logs."""
    line = (
        f"epoch {record['epoch']:3d}/{stage.epochs}  loss {record['loss']:.3e}  lr {record['lr']:.1e}  "
        f"{record['samples_per_s']:.0f} crops/s"
    )
    return line + (
        f"  {record['metric']} {record['value']:.3f} ({record['boxes']})" if "metric" in record else ""
    )


def _save_snapshot(model: HRNet, card: ModelCard, data: StageData, path: Path) -> None:
    """Keep the heatmaps of val's eight most confident boxes, to watch them sharpen."""
    model.eval()
    dataset = BoxCrops(data.val, card.input_hw, coordinates=card.coordinates)
    people = np.argsort(-data.val.bbox_scores, kind="stable")[:8]
    crops = np.stack([dataset[i][0][0] for i in people])
    heatmaps = forward(model, torch.from_numpy(crops), card).cpu().numpy()
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, crops=crops, heatmaps=heatmaps.astype(np.float16))


def read_metrics(runs_dir: Path, run: Run) -> list[dict]:
    """The epochs of a run, as written to metrics.jsonl.

    Raises:
        HrnetppError: If the run has not been trained.
    """
    path = runs_dir / run.name / "metrics.jsonl"
    if not path.is_file():
        raise HrnetppError(f"{path}: not there; train {run.name} first")
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_snapshots(runs_dir: Path, run: Run) -> list[dict]:
    """What val's eight most confident boxes looked like to the network as it learnt.

    Returns:
        Per evaluated epoch: epoch, crops (8, h, w, 3) uint8 RGB and heatmaps (8, K, H, W) fp16.
    """
    snapshots = []
    for path in sorted((runs_dir / run.name / "snapshots").glob("epoch_*.npz")):
        with np.load(path) as arrays:
            snapshots.append({"epoch": int(path.stem[6:]), **arrays})
    return snapshots
