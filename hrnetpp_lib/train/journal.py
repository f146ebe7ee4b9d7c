"""What a run leaves for its readers: a line of metrics per epoch, val's heatmaps as they sharpen.

runs/<profile>/<run>/{recipe,data}.json, metrics.jsonl, snapshots/epoch_008.npz
"""

import contextlib
import io
import os
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NotRequired, TypedDict

import msgspec
import numpy as np
import torch
import tqdm.auto
from filelock import FileLock, Timeout

from hrnetpp_lib.data.crops import BoxCrops
from hrnetpp_lib.data.persons import PersonTable
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.evaluate.infer import forward
from hrnetpp_lib.files import decode_json, read_bytes, whole_file
from hrnetpp_lib.model.hrnet import HRNet
from hrnetpp_lib.model.weights import ModelCard
from hrnetpp_lib.recipe import Run

_PEOPLE = 8
_MOST_BYTES = 2**28  # of metrics, or of one snapshot's arrays
_REMEDY = "delete the line, or the folder to train anew"
_SNAPSHOT = re.compile(r"epoch_(\d{3,9})\.npz")
_SECONDS_BETWEEN_LINES, _BESIDE_OTHERS = 300.0, 10.0  # the second where `together` shows the last one

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Amount = Annotated[float, msgspec.Meta(ge=0, le=3.5e38)]


class Epoch(TypedDict):
    """One line of metrics.jsonl; the last four where val was scored.

    loss is the mean over the epoch's augmented crops, val_loss the same loss on val's persons without
    augmentation, on their true boxes.
    """

    epoch: Annotated[int, msgspec.Meta(ge=1, le=2**53)]
    step: Count
    loss: Amount
    lr: Amount
    seconds: Amount
    samples_per_s: Amount
    bad_images: Count
    processes: Count
    accumulate: Count
    metric: NotRequired[str]
    value: NotRequired[Annotated[float, msgspec.Meta(ge=-1, le=1)]]
    boxes: NotRequired[str]
    val_loss: NotRequired[Amount]


@contextlib.contextmanager
def lock(run_dir: Path) -> Iterator[None]:
    """Keep a second training out. Raises: HrnetppError if one is in the folder, or nothing can be written."""
    with contextlib.ExitStack() as held:
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            held.enter_context(FileLock(run_dir / ".lock", blocking=False))
        except Timeout as error:
            remedy = "wait for it, or end it (it may have outlived its launcher)"
            raise HrnetppError(f"{run_dir}: another process trains this run; {remedy}") from error
        except (OSError, NotImplementedError) as error:  # the second: a file system without locks
            raise HrnetppError(f"{run_dir}: cannot be written to ({error}); give another --output") from error
        yield


def append_metrics(run_dir: Path, record: Epoch) -> None:
    """Add one epoch to metrics.jsonl, whole or not at all."""
    path = run_dir / "metrics.jsonl"
    with whole_file(path) as part:
        part.write_bytes(_read_lines(path) + msgspec.json.encode(record) + b"\n")


def cut_metrics(run_dir: Path, epochs: int) -> str:
    """Keep the first epochs only: later ones, and damaged lines, are none of the state that goes on.

    Gives a remark if lines are missing, else nothing: the run itself does not need them.
    """
    path = run_dir / "metrics.jsonl"
    text, kept = _read_lines(path), {}
    for line in text.splitlines():
        with contextlib.suppress(HrnetppError):
            kept[_parse(line, path, 0)["epoch"]] = line
    whole = b"".join(kept[epoch] + b"\n" for epoch in sorted(kept) if epoch <= epochs)
    if text != whole:
        with whole_file(path) as part:
            part.write_bytes(whole)
    missing = epochs - whole.count(b"\n")
    return f"warning: {path} lacks {missing} of the {epochs} epochs that are done" if missing else ""


def _read_lines(path: Path) -> bytes:
    """The content of metrics.jsonl, nothing where there is none yet."""
    if not path.exists() or (path.is_file() and not path.stat().st_size):
        return b""
    return read_bytes(path, "delete it", _MOST_BYTES)


def _parse(line: bytes, path: Path, number: int) -> Epoch:
    record = decode_json(line, Epoch, f"{path}, line {number}", _REMEDY)
    if len(record.keys() & {"metric", "value", "boxes"}) not in (0, 3):
        raise HrnetppError(f"{path}, line {number}: tells a part of val's score; {_REMEDY}")
    return record


def read_metrics(runs_dir: Path, run: Run) -> list[Epoch]:
    """A run's epochs in their order, at least one. Raises: HrnetppError if a line is damaged or missing."""
    path = runs_dir / run.name / "metrics.jsonl"
    if not path.exists():
        raise HrnetppError(f"{path}: there is no such file; train {run.name} first")
    records: list[Epoch] = []
    for number, line in enumerate(_read_lines(path).splitlines(), 1):
        records.append(_parse(line, path, number))
        if len(records) > 1 and records[-1]["epoch"] <= records[-2]["epoch"]:
            raise HrnetppError(f"{path}, line {number}: is not of a later epoch; {_REMEDY}")
    if not records:
        raise HrnetppError(f"{path}: holds no epoch yet; train {run.name} first")
    return records


def describe(record: Epoch, epochs: int) -> str:
    """One epoch in one line, for notebooks and logs."""
    line = "epoch {epoch:3d}/{epochs}  loss {loss:.3e}  lr {lr:.1e}  {samples_per_s:.0f} crops/s"
    line += "  {bad_images} unreadable pictures replaced" if record["bad_images"] else ""
    line += "  val loss {val_loss:.3e}" if "val_loss" in record else ""
    line += "  {metric} {value:.3f} ({boxes})" if "metric" in record else ""
    return line.format(epochs=epochs, **record)


def save_snapshot(run_dir: Path, epoch: int, model: HRNet, card: ModelCard, val: PersonTable) -> None:
    """Keep the crops and heatmaps of val's eight most confident boxes, if it has any; epochs count from 1."""
    if not len(val):
        return
    model.eval()
    dataset = BoxCrops(val, card.input_hw, coordinates=card.coordinates)
    people = kept_people(val)
    crops = np.stack([dataset[i][0][0] for i in people])
    heatmaps = forward(model, torch.from_numpy(crops), card).cpu().numpy()
    with whole_file(run_dir / "snapshots" / f"epoch_{epoch:03d}.npz") as part:
        np.savez_compressed(part, crops=crops, heatmaps=heatmaps.astype(np.float16))


def kept_people(val: PersonTable) -> np.ndarray:
    """(8,) rows of val's most confident boxes, whose heatmaps are kept; fewer where val has fewer."""
    return np.argsort(-val.bbox_scores, kind="stable")[:_PEOPLE]


def read_snapshots(runs_dir: Path, run: Run) -> list[dict]:
    """What val's eight most confident boxes looked like to the network as it learnt.

    Returns:
        Per evaluated epoch, at least one: epoch, crops (8, h, w, 3) uint8 RGB and heatmaps (8, K, H, W) fp16;
        fewer than eight where val has fewer.

    Raises: HrnetppError if there is none, or one is damaged.
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


def is_watched() -> bool:
    """Whether people see the output as it comes: in Jupyter or a terminal, and not under `reproduce`."""
    return not os.environ.get("HRNETPP_HEADLESS") and ("ipykernel" in sys.modules or sys.stderr.isatty())


def progress_bar(name: str, crops: int, done: int, silent: bool) -> tqdm.std.tqdm:
    """The progress of one epoch's crops, some of them done before: a bar for people, lines for logs."""
    shared = {
        "desc": name,
        "total": crops,
        "initial": done,
        "unit": "crop",
        "disable": silent,
        "leave": False,
    }
    if is_watched():
        return tqdm.auto.tqdm(**shared, dynamic_ncols=True)
    pause = _BESIDE_OTHERS if "HRNETPP_BESIDE" in os.environ else _SECONDS_BETWEEN_LINES
    seldom = dict.fromkeys(("mininterval", "maxinterval", "delay"), pause)
    line = "{desc}: {n}/{total} crops, {rate_fmt}{postfix}, {remaining} to go\n"
    return tqdm.std.tqdm(**shared, **seldom, bar_format=line, file=sys.stdout)
