"""What an interrupted run needs to go on to the bit: one self-checking file per saved state.

states/step_00001200_<first digits of the content's SHA-256>.safetensors
"""

import contextlib
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import msgspec
import torch
from msgspec import Meta
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.files import check_file, decode_json, replace_durably, sha256
from hrnetpp_lib.model.hrnet import HRNet

_KEPT = 2
_NAME = re.compile(r"step_(\d{8})_([0-9a-f]{16})\.safetensors")
_KEY = "progress"  # of the file's header
_MOMENTS = ("exp_avg", "exp_avg_sq")  # Adam's own names
_MOST_BYTES_BESIDES = 2**27  # header and the losses of one epoch

Count = Annotated[int, Meta(ge=0, le=2**53)]
Loss = Annotated[float, Meta(ge=0, le=3.5e38)]  # it was an fp32


@dataclass
class Progress:
    """How far a run is; with weights and Adam's moments it decides everything that follows.

    Order and augmentation depend on (seed, epoch, person) alone, so no random state is needed.

    Attributes:
        run: Name of the run.
        data: Fingerprint of the training persons.
        processes: How many processes train.
        accumulate: Parts that each of them cuts its share of a batch into.
        epoch: Epochs finished, evaluated and logged.
        step: Steps done.
        losses: Of the steps since the end of the last of these epochs.
        seconds: Spent in the epoch under way.
        bad_images: Persons replaced in the epoch under way.
        typical_loss: Mean of the last finished epoch.
        best: Best value of the metric on val.
    """

    run: str
    data: dict[str, int]
    processes: Count = 1
    accumulate: Count = 1
    epoch: Count = 0
    step: Count = 0
    losses: list[Loss] = field(default_factory=list)
    seconds: Annotated[float, Meta(ge=0, le=1e9)] = 0.0
    bad_images: Count = 0
    typical_loss: Loss | None = None
    best: Annotated[float, Meta(ge=-1, le=1)] | None = None


def save_state(folder: Path, model: HRNet, optimizer: torch.optim.Adam, progress: Progress) -> Path:
    """Write a state, whole or not at all, and keep the two newest.

    Args:
        folder: Of the states; made if need be.
        model: On any device.
        optimizer: Adam over all its parameters, after `progress.step` steps.
        progress: What the file's name and header tell.

    Raises:
        HrnetppError: If it cannot be written; the states before are untouched.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _tensors(model, optimizer)}
    part = folder / "state.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, part, {_KEY: msgspec.json.encode(progress).decode()})
        path = folder / f"step_{progress.step:08d}_{sha256(part)[:16]}.safetensors"
        replace_durably(part, path)
        for old in [state for state in list_states(folder) if state != path][_KEPT - 1 :]:
            old.unlink()
    except (OSError, SafetensorError) as error:  # safetensors has its own error for a full disk
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise HrnetppError(
            f"{folder}: the state at step {progress.step} cannot be written ({error}); is the disk full? "
            "Earlier states are intact; make room and give the same command again"
        ) from error
    return path


def _tensors(model: HRNet, optimizer: torch.optim.Adam) -> list[tuple[str, Tensor]]:
    """All tensors of a state by the names that they have in the file."""
    named = [(f"model.{name}", tensor) for name, tensor in model.state_dict().items()]
    return named + [
        (f"{moment}.{name}", optimizer.state[parameter][moment])
        for moment in _MOMENTS
        for name, parameter in model.named_parameters()
    ]


def list_states(folder: Path) -> list[Path]:
    """What is called like a state of a run, newest first, damaged or not; nothing is opened."""
    found = [path for path in folder.glob("step_*") if path.suffix != ".damaged"]
    return sorted(found, key=lambda path: (path.name[:13], path.lstat().st_mtime_ns), reverse=True)


def load_state(
    folder: Path, model: HRNet, optimizer: torch.optim.Adam, fresh: Progress, steps: int, epochs: int
) -> tuple[Progress, list[str], list[Path]]:
    """Go on from the newest state that is right in every part, or start afresh if there is none.

    Args:
        folder: Of the states.
        model: Gets the weights, once everything is checked.
        optimizer: Adam over the model's parameters; gets its moments.
        fresh: The progress of a run that starts, with the data, processes and parts as they are now.
        steps: Of an epoch.
        epochs: Of the run.

    Returns:
        The progress, remarks for people (what was damaged, what changed), and the states that are wrong.

    Raises:
        HrnetppError: If the training data are not those of the state; tells the difference.
    """
    remarks, wrong = [], []
    for path in list_states(folder):
        try:
            progress, tensors = _read(path, model, fresh.run)
        except HrnetppError as error:
            remarks.append(f"warning: {error}")
            wrong.append(path)
            continue
        check_data(progress.data, fresh.data, folder.parent)
        done = progress.epoch * steps + len(progress.losses)
        if progress.step != done or len(progress.losses) > steps or progress.epoch > epochs:
            remarks.append(f"warning: {path} is left out: its steps are not those of this run")
            wrong.append(path)
            continue
        _put(tensors, progress.step, model, optimizer)
        remarks.append(f"goes on from step {progress.step} ({path.name})")
        for what in ("processes", "accumulate"):
            before, now = getattr(progress, what), getattr(fresh, what)
            if before != now:
                remarks.append(
                    f"warning: {what} was {before} and is {now} now: the result will not equal an "
                    "undisturbed run's to the bit"
                )
        return (replace(progress, processes=fresh.processes, accumulate=fresh.accumulate), remarks, wrong)
    if remarks:
        remarks.append("warning: no undamaged state is left, the run starts anew")
    return fresh, remarks, wrong


def _read(path: Path, model: HRNet, run: str) -> tuple[Progress, dict[str, Tensor]]:
    """A state's content, all of it checked but for what the run's data and length decide."""
    expected = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        expected |= {f"{moment}.{name}": parameter for moment in _MOMENTS}
    most = sum(tensor.nbytes for tensor in expected.values()) + _MOST_BYTES_BESIDES
    left_out = "it is left out"
    check_file(path, left_out, most)
    named = _NAME.fullmatch(path.name)
    try:
        if named is None or sha256(path)[:16] != named[2]:
            raise HrnetppError(f"{path}: is damaged, or no state of this version; {left_out}")
        with safe_open(path, framework="pt") as file:
            progress = decode_json((file.metadata() or {}).get(_KEY, ""), Progress, path, left_out)
            if (progress.step, progress.run) != (int(named[1]), run) or not progress.step:
                raise HrnetppError(f"{path}: is of step {progress.step} of {progress.run}; {left_out}")
            if set(file.keys()) != expected.keys():
                raise HrnetppError(f"{path}: holds tensors of other names than the network; {left_out}")
            tensors = {name: file.get_tensor(name) for name in expected}
    except (OSError, SafetensorError) as error:
        raise HrnetppError(f"{path}: cannot be read ({error}); {left_out}") from error
    for name, tensor in tensors.items():
        if (tensor.shape, tensor.dtype) != (expected[name].shape, expected[name].dtype):
            raise HrnetppError(f"{path}: {name} is of another shape or type; {left_out}")
        if not tensor.isfinite().all() or (name.startswith("exp_avg_sq.") and (tensor < 0).any()):
            raise HrnetppError(f"{path}: {name} holds impossible numbers; {left_out}")
    return progress, tensors


def _put(tensors: dict[str, Tensor], step: int, model: HRNet, optimizer: torch.optim.Adam) -> None:
    """Copy checked tensors into a network and its Adam."""
    model.load_state_dict({name: tensors[f"model.{name}"] for name in model.state_dict()})
    for name, parameter in model.named_parameters():
        # As Adam makes them. Its fused kernels walk over memory: moments must lie like their parameter.
        optimizer.state[parameter] = {"step": torch.tensor(float(step), device=parameter.device)} | {
            moment: torch.empty_like(parameter, requires_grad=False).copy_(tensors[f"{moment}.{name}"])
            for moment in _MOMENTS
        }


def set_aside(states: list[Path]) -> None:
    """Rename states that are wrong, so that they no longer count among the two that are kept.

    Raises:
        HrnetppError: If the folder cannot be written to.
    """
    for path in states:
        try:
            path.rename(path.with_suffix(".damaged"))
        except OSError as error:
            raise HrnetppError(f"{path}: is damaged and cannot be renamed ({error}); delete it") from error


def remove_states(folder: Path) -> None:
    """Delete the states of a run that is finished; where that cannot be, they stay."""
    for path in [*folder.glob("step_*"), folder / "state.part"]:
        with contextlib.suppress(OSError):
            path.unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()


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
