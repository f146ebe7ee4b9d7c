"""How a run uses the machine: devices, processes, precision, compiler. None of it is the recipe's."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import is_tensorboard_available

from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.recipe import Run

# The other processes wait while the first one scores val; NCCL's own limit is ten minutes.
_PATIENCE = timedelta(hours=2)

SLOW_BF16 = (
    "warning: this CPU has no instructions for bf16 and imitates it, many times as slow as fp32. Use another "
    "machine, or set precision='fp32' in the profile (recipe.py)"
)


@dataclass(frozen=True)
class Machine:
    """What the command line may ask of the engine.

    Attributes:
        accumulate: Parts that each process's share of a batch goes through the network in. The loss stays
            that of the whole batch; batch normalisation sees a part at a time.
        compile: Whether to try torch.compile.
        skip_bad_images: Whether an unreadable picture is replaced by another person's.
        tensorboard: Whether to write TensorBoard's event files beside metrics.jsonl.
        save_every_s: Seconds between two saved states; one is saved at each epoch's end, too.
    """

    accumulate: int = 1
    compile: bool = False
    skip_bad_images: bool = False
    tensorboard: bool = False
    save_every_s: float = 600.0


def processes() -> PartialState:
    """This process among those that were launched together; alone, if none were.

    On a GPU where there is one, else on the CPU, as in testing.
    """
    return PartialState(cpu=not torch.cuda.is_available(), timeout=_PATIENCE)


def imitates_bf16(device: torch.device) -> bool:
    """Whether a device computes bf16 by routines for want of instructions, as x86 before AVX512 does."""
    return device.type == "cpu" and torch.backends.cpu.get_cpu_capability() in ("AVX2", "NO AVX")


def leave(status: int) -> NoReturn:
    """End a process that was launched with others, without the interpreter's own clean-up.

    DistributedDataParallel keeps gloo's threads alive, even after `destroy_process_group`. One that lets go
    of its last tensor while the interpreter shuts down aborts the process, and the launcher would report a
    finished run as failed.

    Args:
        status: The exit status.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def make_accelerator(run: Run, machine: Machine, folder: Path) -> Accelerator:
    """Device, precision and processes of one run.

    Raises:
        HrnetppError: If TensorBoard is asked for and not installed.
    """
    if machine.tensorboard and not is_tensorboard_available():
        raise HrnetppError(
            "tensorboard is not installed; install the extra watch, or do without --tensorboard"
        )
    processes()
    torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32: in TF32 heatmaps have ten bits
    # Runs of one process may differ in precision; the state is a singleton that would refuse.
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        mixed_precision="bf16" if run.profile.precision == "bf16" else "no",
        cpu=not torch.cuda.is_available(),
        log_with="tensorboard" if machine.tensorboard else None,
        project_dir=str(folder),
    )
    accelerator.init_trackers("tensorboard")
    if run.profile.precision == "bf16" and imitates_bf16(accelerator.device):
        accelerator.print(SLOW_BF16)
    return accelerator


def compile_step(
    network: torch.nn.Module, batch: dict[str, torch.Tensor], say: Callable[[str], None]
) -> torch.nn.Module:
    """The network compiled, or itself where that fails; tried on a batch, whose traces are removed.

    Args:
        network: Raw batch in, loss out.
        batch: One like those to come.
        say: Told when compiling fails.
    """
    buffers = [buffer.clone() for buffer in network.buffers()]
    try:
        compiled = torch.compile(network)
        compiled(batch).backward()
    except Exception as error:  # a missing C++ compiler, an unsupported Python or GPU: all end here
        reason = (str(error).strip().splitlines() or [""])[0]
        say(f"torch.compile failed ({type(error).__name__}: {reason}); training goes on without it")
        compiled = network
    network.zero_grad(set_to_none=True)
    with torch.no_grad():
        for buffer, before in zip(network.buffers(), buffers, strict=True):
            buffer.copy_(before)
    return compiled
