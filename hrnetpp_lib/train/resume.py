"""What an interrupted run needs to go on to the bit: one self-checking file per saved state.

states/step_00001200_<first digits of the content's SHA-256>.pt
"""

import hashlib
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.files import replace_durably
from hrnetpp_lib.model.hrnet import HRNet

_KEPT = 2
_NAME = re.compile(r"step_(\d{8})_([0-9a-f]{16})\.pt")


@dataclass
class Progress:
    """How far a run is; with weights and optimizer it decides everything that follows.

    Order and augmentation depend on (seed, epoch, person) alone, so no random state is needed.

    Attributes:
        data: Fingerprint of the training persons.
        processes: How many processes train.
        epoch: Epochs finished, evaluated and logged.
        step: Steps done.
        losses: Of the steps of the epoch under way.
        seconds: Spent in the epoch under way.
        bad_images: Persons replaced in the epoch under way.
        typical_loss: Mean of the last finished epoch.
        best: Best value of the metric on val.
    """

    data: dict[str, int]
    processes: int
    epoch: int = 0
    step: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    bad_images: int = 0
    typical_loss: float | None = None
    best: float | None = None


def save_state(folder: Path, model: HRNet, optimizer: torch.optim.Optimizer, progress: Progress) -> Path:
    """Write a state, whole or not at all, and keep the two newest.

    Raises:
        HrnetppError: If it cannot be written; the states before are untouched.
    """
    content = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "progress": asdict(progress),
    }
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / "state.part"
    try:
        torch.save(content, part)
        path = folder / f"step_{progress.step:08d}_{_digest(part)}.pt"
        replace_durably(part, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        part.unlink(missing_ok=True)
        raise HrnetppError(
            f"{folder}: the state at step {progress.step} cannot be written ({error}); is the disk full? "
            "Earlier states are intact; make room and give the same command again"
        ) from error
    for old in [state for state in list_states(folder) if state != path][_KEPT - 1 :]:
        old.unlink()
    return path


def list_states(folder: Path) -> list[Path]:
    """The states of a run, newest first, damaged or not."""
    found = [path for path in folder.glob("step_*.pt") if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: (int(_NAME.fullmatch(path.name)[1]), path.stat().st_mtime_ns))[::-1]


def load_state(
    folder: Path, model: HRNet, optimizer: torch.optim.Optimizer, fresh: Progress
) -> tuple[Progress, list[str]]:
    """Go on from the newest undamaged state, or start afresh if there is none.

    Args:
        folder: Of the states.
        model: Gets the weights.
        optimizer: Gets its moments.
        fresh: The progress of a run that starts, with the data as they are now.

    Returns:
        The progress, and remarks for people: what was damaged, what changed.

    Raises:
        HrnetppError: If the training data are not those of the state; tells the difference.
    """
    remarks = []
    for path in list_states(folder):
        if not _is_whole(path):
            remarks.append(f"warning: {path} is damaged and left out")
            continue
        content = torch.load(path, map_location="cpu", weights_only=True)
        progress = Progress(**content["progress"])
        check_data(progress.data, fresh.data, folder.parent)
        model.load_state_dict(content["model"])
        optimizer.load_state_dict(content["optimizer"])
        remarks.append(f"goes on from step {progress.step} ({path.name})")
        if progress.processes != fresh.processes:
            remarks.append(
                f"warning: {progress.processes} processes before, {fresh.processes} now: the result will not "
                "equal an undisturbed run's to the bit"
            )
            progress.processes = fresh.processes
        return progress, remarks
    if remarks:
        remarks.append("warning: no undamaged state is left, the run starts anew")
    return fresh, remarks


def remove_states(folder: Path) -> None:
    """Delete the states of a run that is finished."""
    for path in [*list_states(folder), *folder.glob("step_*.damaged"), folder / "state.part"]:
        path.unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def set_damaged_aside(folder: Path) -> None:
    """Rename damaged states, so that they no longer count among the two that are kept."""
    for path in list_states(folder):
        if not _is_whole(path):
            path.rename(path.with_suffix(".damaged"))


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _is_whole(path: Path) -> bool:
    return _digest(path) == _NAME.fullmatch(path.name)[2]


def check_data(before: dict[str, int], now: dict[str, int], run_dir: Path) -> None:
    """Refuse to go on with other training data.

    Args:
        before: Fingerprint of the persons that the run was begun on.
        now: Fingerprint of the persons at hand.
        run_dir: The run's folder.

    Raises:
        HrnetppError: If they differ; tells the difference.
    """
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        numbers = [f"{n} {before.get(n)} -> {now[n]}" for n in ("persons", "images") if n in changed]
        columns = [name for name in changed if name not in ("persons", "images")]
        raise HrnetppError(
            f"{run_dir}: the training data changed since this run began: "
            f"{', '.join(numbers) or 'same numbers'}; different columns: {', '.join(columns)}. Bring the old "
            "data back, or delete the folder to train anew"
        )
