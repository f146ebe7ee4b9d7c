"""What a run leaves for its readers: what it is, a line of metrics per epoch, val's heatmaps as they sharpen.

runs/<profile>/<run>/{recipe,data}.json
runs/<profile>/<run>/metrics.jsonl
runs/<profile>/<run>/snapshots/epoch_008.npz
"""

import contextlib
import io
import os
import re
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NotRequired, TypedDict

import msgspec
import numpy as np
import torch
from filelock import FileLock, Timeout
from msgspec import Meta
from tqdm.auto import tqdm

from hrnetpp_lib.data.crops import BoxCrops
from hrnetpp_lib.data.persons import PersonTable
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.evaluate.infer import forward
from hrnetpp_lib.files import decode_json, read_bytes, read_json, whole_file, write_json
from hrnetpp_lib.model.hrnet import HRNet
from hrnetpp_lib.model.weights import ModelCard
from hrnetpp_lib.recipe import Run

_PEOPLE = 8
_MOST_BYTES = 2**28  # of metrics, or of one snapshot's arrays
_REMEDY = "delete the line, or the folder to train anew"
_SNAPSHOT = re.compile(r"epoch_(\d{3,9})\.npz")

Count = Annotated[int, Meta(ge=0, le=2**53)]
Amount = Annotated[float, Meta(ge=0, le=3.5e38)]


class Epoch(TypedDict):
    """One line of metrics.jsonl; the last three where val was scored."""

    epoch: Annotated[int, Meta(ge=1, le=2**53)]
    step: Count
    loss: Amount
    lr: Amount
    seconds: Amount
    samples_per_s: Amount
    bad_images: Count
    processes: Count
    accumulate: Count
    metric: NotRequired[str]
    value: NotRequired[Annotated[float, Meta(ge=-1, le=1)]]
    boxes: NotRequired[str]


@contextlib.contextmanager
def lock(run_dir: Path, is_main_process: bool) -> Iterator[None]:
    """Keep a second training, or processes that outlived their launcher, out of a run's folder.

    Raises:
        HrnetppError: If somebody is in it, or it cannot be written to.
    """
    if not is_main_process:
        yield
        return
    held = FileLock(run_dir / ".lock")
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        held.acquire(blocking=False)
    except Timeout as error:
        raise HrnetppError(
            f"{run_dir}: another process trains this run; wait for it, or end it (it may have outlived its "
            "launcher)"
        ) from error
    except (OSError, NotImplementedError) as error:  # the second: a file system without locks
        raise HrnetppError(f"{run_dir}: cannot be written to ({error}); give another --output") from error
    try:
        yield
    finally:
        held.release()


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
    return read_json(path, dict[str, int], "delete it, or the run to train anew") if path.exists() else None


def append_metrics(run_dir: Path, record: Epoch) -> None:
    """Add one epoch.

    Raises:
        HrnetppError: If it cannot be written.
    """
    path = run_dir / "metrics.jsonl"
    with whole_file(path) as part:
        part.write_bytes(_read_lines(path) + msgspec.json.encode(record) + b"\n")


def cut_metrics(run_dir: Path, epochs: int) -> str:
    """Keep the first epochs only: later ones, and damaged lines, are none of the state that goes on.

    Returns:
        A remark if lines are missing, else nothing: the run itself does not need them.

    Raises:
        HrnetppError: If the file cannot be read or written.
    """
    path = run_dir / "metrics.jsonl"
    text, kept = _read_lines(path), {}
    for line in text.splitlines():
        with contextlib.suppress(HrnetppError):
            epoch = _parse(line, path, 0)["epoch"]
            if epoch <= epochs:
                kept[epoch] = line
    whole = b"".join(kept[epoch] + b"\n" for epoch in sorted(kept))
    if text != whole:
        with whole_file(path) as part:
            part.write_bytes(whole)
    missing = epochs - len(kept)
    return f"warning: {path} lacks {missing} of the {epochs} epochs that are done" if missing > 0 else ""


def _read_lines(path: Path) -> bytes:
    """The content of metrics.jsonl, nothing where there is none yet."""
    return read_bytes(path, "delete it", _MOST_BYTES) if path.exists() else b""


def _parse(line: bytes, path: Path, number: int) -> Epoch:
    record = decode_json(line, Epoch, f"{path}, line {number}", _REMEDY)
    if len(record.keys() & {"metric", "value", "boxes"}) not in (0, 3):
        raise HrnetppError(f"{path}, line {number}: tells a part of val's score; {_REMEDY}")
    return record


def read_metrics(runs_dir: Path, run: Run) -> list[Epoch]:
    """The epochs of a run, as written to metrics.jsonl, in their order; at least one.

    Raises:
        HrnetppError: If the run has not been trained, or a line is damaged.
    """
    path = runs_dir / run.name / "metrics.jsonl"
    records: list[Epoch] = []
    for number, line in enumerate(read_bytes(path, f"train {run.name} first", _MOST_BYTES).splitlines(), 1):
        records.append(_parse(line, path, number))
        if len(records) > 1 and records[-1]["epoch"] <= records[-2]["epoch"]:
            raise HrnetppError(f"{path}, line {number}: is not of a later epoch; {_REMEDY}")
    if not records:
        raise HrnetppError(f"{path}: holds no epoch yet; train {run.name} first")
    return records


def describe(record: Epoch, epochs: int) -> str:
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
    """Keep the crops and heatmaps of val's eight most confident boxes.

    Args:
        run_dir: Of the run.
        epoch: Counted from 1.
        model: Put into eval mode.
        card: How to use it.
        val: Boxes; the same eight are chosen each time, and with none nothing is written.

    Raises:
        HrnetppError: If it cannot be written.
    """
    if not len(val):
        return
    model.eval()
    dataset = BoxCrops(val, card.input_hw, coordinates=card.coordinates)
    people = np.argsort(-val.bbox_scores, kind="stable")[:_PEOPLE]
    crops = np.stack([dataset[i][0][0] for i in people])
    heatmaps = forward(model, torch.from_numpy(crops), card).cpu().numpy()
    with whole_file(run_dir / "snapshots" / f"epoch_{epoch:03d}.npz") as part:
        np.savez_compressed(part, crops=crops, heatmaps=heatmaps.astype(np.float16))


def read_snapshots(runs_dir: Path, run: Run) -> list[dict]:
    """What val's eight most confident boxes looked like to the network as it learnt.

    Returns:
        Per evaluated epoch, at least one: epoch, crops (8, h, w, 3) uint8 RGB and heatmaps (8, K, H, W) fp16;
        fewer than eight where val has fewer.

    Raises:
        HrnetppError: If there is none, or one is damaged.
    """
    folder = runs_dir / run.name / "snapshots"
    found = {int(m[1]): path for path in folder.glob("epoch_*.npz") if (m := _SNAPSHOT.fullmatch(path.name))}
    if not found:
        raise HrnetppError(f"{folder}: holds no snapshot; train {run.name} first")
    return [{"epoch": epoch} | _read_snapshot(found[epoch], run) for epoch in sorted(found)]


def _read_snapshot(path: Path, run: Run) -> dict[str, np.ndarray]:
    remedy = "delete it, or the folder to train anew"
    content = io.BytesIO(read_bytes(path, remedy, _MOST_BYTES))
    try:
        with zipfile.ZipFile(content) as archive:  # numpy would unpack whatever size it claims
            if sum(info.file_size for info in archive.infolist()) > _MOST_BYTES:
                raise HrnetppError("its arrays are too large")
        with np.load(content) as arrays:
            crops, heatmaps = arrays["crops"], arrays["heatmaps"]
    except Exception as error:  # a damaged archive raises nearly anything
        raise HrnetppError(f"{path}: no snapshot can be read from it ({error!r:.200}); {remedy}") from error
    people = min(crops.shape[0], _PEOPLE) if crops.ndim else 0
    expected = ((people, *run.profile.input_hw, 3), np.uint8, (people, *run.profile.heatmap_hw), np.float16)
    found = (crops.shape, crops.dtype, heatmaps.shape[:1] + heatmaps.shape[2:], heatmaps.dtype)
    if found != expected or not people * heatmaps.size or not np.isfinite(heatmaps).all():
        raise HrnetppError(
            f"{path}: arrays of shapes {crops.shape}, {heatmaps.shape} are none of this run's; {remedy}"
        )
    return {"crops": crops, "heatmaps": heatmaps}


_SECONDS_BETWEEN_LINES = 300


def headless() -> bool:
    """Whether output goes to a file: under `reproduce`, or piped outside Jupyter."""
    in_jupyter = "ipykernel" in sys.modules
    return bool(os.environ.get("HRNETPP_HEADLESS")) or not (in_jupyter or sys.stderr.isatty())


class EpochBar:
    """The progress of one epoch, in crops: a bar for people, lines for logs.

    Args:
        name: What is under way.
        crops: In the whole epoch.
        done: Of them before this process started.
        silent: For all processes but the first.
    """

    def __init__(self, name: str, crops: int, done: int, silent: bool = False):
        self._silent = silent
        self._started = self._said = time.perf_counter()
        self._bar = tqdm(
            desc=name,
            total=crops,
            initial=done,
            unit="crop",
            disable=silent or headless(),
            leave=False,
            dynamic_ncols=True,
        )
        self._name, self._crops, self._before, self._done = name, crops, done, done

    def advance(self, crops: int, loss: float, lr: float) -> None:
        """Count a step."""
        self._done += crops
        self._bar.set_postfix_str(f"loss {loss:.2e}, lr {lr:.1e}", refresh=False)
        self._bar.update(crops)
        now = time.perf_counter()
        if not self._silent and headless() and now - self._said > _SECONDS_BETWEEN_LINES:
            self._said = now
            rate = (self._done - self._before) / (now - self._started)
            print(
                f"{self._name}: {self._done}/{self._crops} crops, {rate:.1f} crops/s, loss {loss:.3e}, "
                f"lr {lr:.1e}, {(self._crops - self._done) / rate / 60:.0f} min to go",
                flush=True,
            )

    def close(self) -> None:
        """Take the bar off the screen."""
        self._bar.close()
