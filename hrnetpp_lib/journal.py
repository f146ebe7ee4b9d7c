"""What a run leaves for its readers: a line of metrics per epoch, and val's heatmaps as they sharpen.

runs/<profile>/<run>/metrics.jsonl
runs/<profile>/<run>/snapshots/epoch_008.{npz,png}
"""

import json
from pathlib import Path

import numpy as np
import torch

from hrnetpp_lib.checkpoint import ModelCard
from hrnetpp_lib.data import BoxCrops
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.hrnet import HRNet
from hrnetpp_lib.infer import forward
from hrnetpp_lib.persons import PersonTable
from hrnetpp_lib.plots import render_heatmaps, save
from hrnetpp_lib.recipe import Run

_PEOPLE = 8


def append_metrics(run_dir: Path, record: dict) -> None:
    """Add one epoch.

    Raises:
        HrnetppError: If it cannot be written.
    """
    try:
        with open(run_dir / "metrics.jsonl", "a") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        raise HrnetppError(
            f"{run_dir}: cannot be written to ({error}); make room and give the command again"
        ) from error


def cut_metrics(run_dir: Path, epochs: int) -> None:
    """Keep the first epochs only: later ones, or half a line, were written after the state that goes on.

    Raises:
        HrnetppError: If there are fewer.
    """
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)[:epochs] if path.is_file() else []
    if len(lines) < epochs:
        raise HrnetppError(
            f"{path}: has {len(lines)} of the {epochs} epochs that are done; bring it back, or delete "
            f"{run_dir} to train anew"
        )
    path.write_text("".join(lines))


def read_metrics(runs_dir: Path, run: Run) -> list[dict]:
    """The epochs of a run, as written to metrics.jsonl.

    Raises:
        HrnetppError: If the run has not been trained.
    """
    path = runs_dir / run.name / "metrics.jsonl"
    if not path.is_file():
        raise HrnetppError(f"{path}: not there; train {run.name} first")
    return [json.loads(line) for line in path.read_text().splitlines()]


def describe(record: dict, epochs: int) -> str:
    """One epoch in one line, for notebooks and logs."""
    line = (
        f"epoch {record['epoch']:3d}/{epochs}  loss {record['loss']:.3e}  lr {record['lr']:.1e}  "
        f"{record['samples_per_s']:.0f} crops/s"
    )
    if record["bad_images"]:
        line += f"  {record['bad_images']} unreadable pictures replaced"
    if "metric" in record:
        line += f"  {record['metric']} {record['value']:.3f} ({record['boxes']})"
    return line


def save_snapshot(run_dir: Path, epoch: int, model: HRNet, card: ModelCard, val: PersonTable) -> None:
    """Keep the heatmaps of val's eight most confident boxes, as arrays and as a picture.

    Args:
        run_dir: Of the run.
        epoch: Counted from 1.
        model: Put into eval mode.
        card: How to use it.
        val: Boxes; the same eight are chosen each time.
    """
    model.eval()
    dataset = BoxCrops(val, card.input_hw, coordinates=card.coordinates)
    people = np.argsort(-val.bbox_scores, kind="stable")[:_PEOPLE]
    crops = np.stack([dataset[i][0][0] for i in people])
    heatmaps = forward(model, torch.from_numpy(crops), card).cpu().numpy()
    path = run_dir / "snapshots" / f"epoch_{epoch:03d}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, crops=crops, heatmaps=heatmaps.astype(np.float16))
    brightest = heatmaps.max(axis=1)
    peaks = heatmaps.max(axis=(2, 3)).mean(axis=1)
    titles = [f"box {person}, mean peak {peak:.2f}" for person, peak in zip(people, peaks, strict=True)]
    save(render_heatmaps(crops, brightest, titles, columns=4), path.with_suffix(".png"))


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
