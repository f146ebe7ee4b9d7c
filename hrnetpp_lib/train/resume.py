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
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.files import check_file, decode_json, replace_durably, sha256
from hrnetpp_lib.model.hrnet import HRNet

_KEPT = 2
_NAME = re.compile(r"step_(\d{8})_([0-9a-f]{16})\.safetensors")
_KEY = "progress"  # of the file's header
_MOMENTS = ("exp_avg", "exp_avg_sq")  # Adam's own names
_MOST_BYTES_BESIDES = 2**27  # header and the losses of one epoch

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Loss = Annotated[float, msgspec.Meta(ge=0, le=3.5e38)]  # it was an fp32


@dataclass
class Progress:
    """How far a run is; with weights and Adam's moments it decides everything that follows.

    Order and augmentation depend on (seed, epoch, person) alone, so no random state is needed.
    """

    run: str  # its name
    data: dict[str, int]  # fingerprint of the training persons
    processes: Count = 1  # that train
    accumulate: Count = 1  # parts that each of them cuts its share of a batch into
    epoch: Count = 0  # epochs finished, evaluated and logged
    step: Count = 0  # steps done
    losses: list[Loss] = field(default_factory=list)  # of the steps since the end of the last of these epochs
    seconds: Annotated[float, msgspec.Meta(ge=0, le=1e9)] = 0.0  # spent in the epoch under way
    bad_images: Count = 0  # persons replaced in the epoch under way
    typical_loss: Loss | None = None  # mean of the last finished epoch
    best: Annotated[float, msgspec.Meta(ge=-1, le=1)] | None = None  # value of the metric on val


def save_state(folder: Path, model: HRNet, optimizer: torch.optim.Adam, progress: Progress) -> Path:
    """Write a state, whole or not at all, and keep the two newest. Raises: HrnetppError if it cannot be."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in _tensors(model, optimizer).items()}
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
            f"{folder}: the state at step {progress.step} cannot be written ({error}); earlier ones are "
            "intact: make room and give the same command again"
        ) from error
    return path


def _tensors(model: HRNet, optimizer: torch.optim.Adam) -> dict[str, torch.Tensor]:
    """The tensors that a state holds, by their names in its file; Adam's are made where it made none yet."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        if not (state := optimizer.state[parameter]):
            # As Adam makes them. Its fused kernels walk over memory: moments must lie like their parameter.
            state |= {moment: torch.zeros_like(parameter, requires_grad=False) for moment in _MOMENTS}
            state["step"] = torch.zeros((), device=parameter.device)
        tensors |= {f"{moment}.{name}": state[moment] for moment in _MOMENTS}
    return tensors


def list_states(folder: Path) -> list[Path]:
    """What is called like a state of a run, newest first, damaged or not; nothing is opened."""
    found = [path for path in folder.glob("step_*") if path.suffix != ".damaged"]
    return sorted(found, key=lambda path: (path.name[:13], path.lstat().st_mtime_ns), reverse=True)


def load_state(
    folder: Path, model: HRNet, optimizer: torch.optim.Adam, fresh: Progress, steps: int, epochs: int
) -> tuple[Progress, list[str], list[Path]]:
    """Go on from the newest state that is right in every part, or start afresh if there is none.

    `fresh` is the progress of a run that starts, with the data, processes and parts as they are now; `steps`
    are an epoch's. Gives the progress, remarks for people, and the states that are wrong.
    """
    remarks, wrong, expected = [], [], _tensors(model, optimizer)
    for path in list_states(folder):
        try:
            progress, tensors = _read(path, expected, fresh, steps, epochs)
        except HrnetppError as error:
            remarks.append(f"warning: {error}")
            wrong.append(path)
            continue
        check_data(progress.data, fresh.data, folder.parent)
        for name, tensor in expected.items():
            tensor.copy_(tensors[name])
        for state in optimizer.state.values():
            state["step"].fill_(progress.step)
        remarks.append(f"goes on from step {progress.step} ({path.name})")
        now = {name: getattr(fresh, name) for name in ("processes", "accumulate")}
        remarks += [
            f"warning: {name} was {getattr(progress, name)} and is {number} now: the result will not equal "
            "an undisturbed run's to the bit"
            for name, number in now.items()
            if getattr(progress, name) != number
        ]
        return replace(progress, **now), remarks, wrong
    if remarks:
        remarks.append("warning: no undamaged state is left, the run starts anew")
    return fresh, remarks, wrong


def _read(
    path: Path, expected: dict[str, torch.Tensor], fresh: Progress, steps: int, epochs: int
) -> tuple[Progress, dict[str, torch.Tensor]]:
    """A state's content, all of it checked but for the training data, on which the steps depend."""
    left_out = "it is left out"
    check_file(path, left_out, sum(tensor.nbytes for tensor in expected.values()) + _MOST_BYTES_BESIDES)
    named = _NAME.fullmatch(path.name)
    try:
        if named is None or sha256(path)[:16] != named[2]:
            raise HrnetppError(f"{path}: is damaged, or no state of this version; {left_out}")
        with safe_open(path, framework="pt") as file:
            progress = decode_json((file.metadata() or {}).get(_KEY, ""), Progress, path, left_out)
            if (progress.step, progress.run) != (int(named[1]), fresh.run) or not progress.step:
                raise HrnetppError(f"{path}: is of step {progress.step} of {progress.run}; {left_out}")
            rest = progress.step - progress.epoch * steps
            fits = rest == len(progress.losses) <= steps and progress.epoch <= epochs
            if progress.data == fresh.data and not fits:
                raise HrnetppError(f"{path}: its steps are not those of this run; {left_out}")
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


def set_aside(states: list[Path]) -> None:
    """Rename wrong states: they are none of the two that are kept. Raises: HrnetppError if it cannot."""
    for path in states:
        try:
            path.rename(path.with_suffix(".damaged"))
        except OSError as error:
            raise HrnetppError(f"{path}: is damaged and cannot be renamed ({error}); delete it") from error


def remove_states(folder: Path) -> None:
    """Delete the states of a run that is finished; where that cannot be, they stay."""
    with contextlib.suppress(OSError):
        for path in [*folder.glob("step_*"), folder / "state.part"]:
            with contextlib.suppress(OSError):
                path.unlink()
        folder.rmdir()


def check_data(before: dict[str, int], now: dict[str, int], run_dir: Path) -> None:
    """Compare fingerprints of the training persons. Raises: HrnetppError if they differ; tells in what."""
    if changed := [name for name in before | now if before.get(name) != now.get(name)]:
        numbers = [f"{n} {before.get(n)} -> {now.get(n)}" for n in ("persons", "images") if n in changed]
        columns = [name for name in changed if name not in ("persons", "images")]
        raise HrnetppError(
            f"{run_dir}: the training data changed since this run began: "
            f"{', '.join(numbers) or 'same numbers'}; different columns: {', '.join(columns)}. Bring the old "
            "data back, or delete the folder to train anew"
        )
