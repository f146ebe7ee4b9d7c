"""What a run leaves for its readers: what it is, a line of metrics per epoch, val's heatmaps as they sharpen.

runs/<profile>/<run>/{recipe,data}.json
runs/<profile>/<run>/metrics.jsonl
runs/<profile>/<run>/snapshots/epoch_008.{npz,png}
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from hrnetpp_lib.data.crops import BoxCrops
from hrnetpp_lib.data.persons import PersonTable
from hrnetpp_lib.draw import render_heatmaps, save
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.evaluate.infer import forward
from hrnetpp_lib.files import whole_file, write_json
from hrnetpp_lib.model.hrnet import HRNet
from hrnetpp_lib.model.weights import ModelCard
from hrnetpp_lib.recipe import Run

_PEOPLE = 8


@contextlib.contextmanager
def lock(run_dir: Path, is_main_process: bool) -> Iterator[None]:
    """Keep a second training, or processes that outlived their launcher, out of a run's folder.

    Raises:
        HrnetppError: If somebody is in it.
    """
    if not is_main_process:
        yield
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(run_dir / ".lock", blocking=False):
            yield
    except Timeout as error:
        raise HrnetppError(
            f"{run_dir}: another process trains this run; wait for it, or end it (it may have outlived its "
            "launcher)"
        ) from error


def write_origin(run_dir: Path, run: Run, data: dict[str, int]) -> None:
    """Write recipe.json, and the fingerprint of the training persons as data.json.

    Raises:
        HrnetppError: If they cannot be written.
    """
    write_json(run_dir / "recipe.json", run)
    write_json(run_dir / "data.json", data)


def read_data(run_dir: Path) -> dict[str, int] | None:
    """The fingerprint of the persons that a run was trained on, None where it is not on record.

    Raises:
        HrnetppError: If the file is damaged.
    """
    path = run_dir / "data.json"
    try:
        return json.loads(path.read_text()) if path.is_file() else None
    except (OSError, ValueError) as error:
        raise HrnetppError(
            f"{path}: cannot be read ({error}); delete it, or the run to train anew"
        ) from error


def append_metrics(run_dir: Path, record: dict) -> None:
    """Add one epoch.

    Raises:
        HrnetppError: If it cannot be written.
    """
    try:
        with open(run_dir / "metrics.jsonl", "a") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise HrnetppError(
            f"{run_dir}: cannot be written to ({error}); make room and give the command again"
        ) from error


def cut_metrics(run_dir: Path, epochs: int) -> str:
    """Keep the first epochs only: later ones, or half a line, were written after the state that goes on.

    Returns:
        A remark if lines are missing, else nothing: the run itself does not need them.

    Raises:
        HrnetppError: If the file cannot be written.
    """
    path = run_dir / "metrics.jsonl"
    text = path.read_text(errors="replace") if path.is_file() else ""
    kept = {}
    for line in text.splitlines():
        record = _parse(line)
        if record and record["epoch"] <= epochs:
            kept[record["epoch"]] = line
    whole = "".join(f"{kept[epoch]}\n" for epoch in sorted(kept))
    if text != whole:
        with whole_file(path) as part:
            part.write_text(whole)
    missing = epochs - len(kept)
    return f"warning: {path} lacks {missing} of the {epochs} epochs that are done" if missing > 0 else ""


def _parse(line: str) -> dict | None:
    """One epoch's record, None where the line is damaged."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("epoch"), int) else None


def read_metrics(runs_dir: Path, run: Run) -> list[dict]:
    """The epochs of a run, as written to metrics.jsonl.

    Raises:
        HrnetppError: If the run has not been trained, or a line is damaged.
    """
    path = runs_dir / run.name / "metrics.jsonl"
    if not path.is_file():
        raise HrnetppError(f"{path}: not there; train {run.name} first")
    records = [_parse(line) for line in path.read_text(errors="replace").splitlines()]
    if None in records:
        raise HrnetppError(
            f"{path}: line {records.index(None) + 1} is damaged; delete the line, or the folder to train anew"
        )
    return records


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
    if not len(val):
        return
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


_SECONDS_BETWEEN_LINES = 300


def headless() -> bool:
    """Whether output goes to a file: under `reproduce`, or piped outside Jupyter."""
    in_jupyter = "ipykernel" in sys.modules
    return bool(os.environ.get("HRNETPP_HEADLESS")) or not (in_jupyter or sys.stderr.isatty())


class EpochBar:
    """The progress of one epoch, in crops.

    Args:
        name: What is under way.
        crops: In the whole epoch.
        done: Of them before this process started.
        silent: For all processes but the first.
    """

    def __init__(self, name: str, crops: int, done: int, silent: bool = False):
        self._name, self._crops, self._done, self._silent = name, crops, done, silent
        self._started = self._said = time.perf_counter()
        self._here = 0
        self._bar = tqdm(
            *(),
            desc=name,
            total=crops,
            initial=done,
            unit="crop",
            disable=silent or headless(),
            leave=False,
            dynamic_ncols=True,
        )

    def advance(self, crops: int, loss: float, lr: float) -> None:
        """Count a step."""
        self._here += crops
        self._bar.set_postfix_str(f"loss {loss:.2e}, lr {lr:.1e}", refresh=False)
        self._bar.update(crops)
        now = time.perf_counter()
        if not self._silent and headless() and now - self._said > _SECONDS_BETWEEN_LINES:
            self._said = now
            rate = self._here / (now - self._started)
            done = self._done + self._here
            print(
                f"{self._name}: {done}/{self._crops} crops, {rate:.1f} crops/s, loss {loss:.3e}, "
                f"lr {lr:.1e}, {(self._crops - done) / rate / 60:.0f} min to go",
                flush=True,
            )

    def close(self) -> None:
        """Take the bar off the screen."""
        self._bar.close()
