"""How a run uses the machine: devices, processes, precision, compiler. None of it is the recipe's."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn

import psutil
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import is_tensorboard_available

from hrnetpp_lib.data.crops import Sample
from hrnetpp_lib.errors import HrnetppError, Preempted
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


def compile_step(network: torch.nn.Module, batch: Sample, say: Callable[[str], None]) -> torch.nn.Module:
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


# The allocator cannot use the last tenth: fragments, convolution workspaces, the display.
_USABLE = 0.9
# Weights, their gradients and Adam's two moments.
_COPIES_OF_WEIGHTS = 4
_PHRASES = (
    "can't allocate memory",
    "not enough memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def kept_for_backward(step: torch.nn.Module, batch: Sample) -> int:
    """Bytes of activations that one forward keeps for its backward.

    Args:
        step: Raw batch in, loss out.
        batch: On the step's device.
    """
    storages: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = step(batch)
    weights = {parameter.untyped_storage().data_ptr() for parameter in step.parameters()}
    del loss
    return sum(size for address, size in storages.items() if address not in weights)


def free_bytes(device: torch.device) -> int:
    """Memory that this process could use on a device, beyond what it has in use."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + unused
    return psutil.virtual_memory().available


def fitting_crops(per_crop: int, weights: int, available: int) -> int:
    """How many crops a step can take at once.

    Args:
        per_crop: Bytes of activations a crop keeps.
        weights: Bytes of the network's weights.
        available: Bytes free before any of it is there.
    """
    return max(0, int((_USABLE * available - _COPIES_OF_WEIGHTS * weights) // max(per_crop, 1)))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out; only CUDA's allocator has one of its own for that."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in _PHRASES)
    )


def bytes_per_crop(
    step: torch.nn.Module,
    batch: Sample,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> int:
    """What one crop more adds to `kept_for_backward`; weights that autocast copies are counted by no crop.

    Args:
        step: Raw batch in, loss out.
        batch: At least two crops, on the step's device.
        autocast: The precision that the step is run in.
    """
    with autocast():
        one, two = (
            kept_for_backward(step, Sample(*(tensor[:n].clone() for tensor in batch))) for n in (1, 2)
        )
    return two - one if len(batch.image) > 1 else one


def out_of_memory(
    step: torch.nn.Module,
    batch: Sample,
    available: int,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> HrnetppError:
    """The message for a step that did not fit; measures what one crop takes.

    Args:
        step: Raw batch in, loss out.
        batch: The one that did not fit.
        available: `free_bytes` before the first step.
        autocast: The precision that the step was run in.
    """
    crops = len(batch.image)
    step.zero_grad(set_to_none=True)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        per_crop = bytes_per_crop(step, batch, autocast)
    except (RuntimeError, MemoryError):
        return HrnetppError(f"memory ran out with {crops} crops at once, and two alone do not fit either")
    weights = sum(p.numel() * p.element_size() for p in step.parameters())
    fitting = min(fitting_crops(per_crop, weights, available), crops - 1)
    parts = -(-crops // max(fitting, 1))
    return HrnetppError(
        f"memory ran out with {crops} crops at once ({per_crop / 2**20:.0f} MiB each, "
        f"{available / 2**30:.1f} GiB were free): about {max(fitting, 1)} would likely fit. Cut each "
        f"batch into parts (train --accumulate {parts} or more), or use more processes or smaller batches"
    )


class SigtermNotice:
    """While entered, SIGTERM does not end the process: it sets `received`, and may raise `Preempted`.

    Python delivers signals to the main thread only; elsewhere this does nothing.

    Args:
        at_once: Whether to raise, too: where nothing can be lost that is not made again.
    """

    def __init__(self, at_once: bool = False) -> None:
        self.received = False
        self._at_once = at_once
        self._before = None

    def __enter__(self) -> "SigtermNotice":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Around work that may be broken off anywhere.

        Raises:
            Preempted: If SIGTERM came before, or comes now.
        """
        before, self._at_once = self._at_once, True
        try:
            if self.received:
                self._leave()
            yield
        finally:
            self._at_once = before

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        if self._at_once:
            self._leave()

    def _leave(self) -> None:
        raise Preempted("SIGTERM; what is saved is whole, the same command goes on from it")


def launch_command(recipe: Path, root: Path, processes: int) -> list[str]:
    """The command that trains a recipe.json in several processes on this machine, one per GPU if it has any.

    Args:
        recipe: The file.
        root: Folder of data/ and runs/.
        processes: How many.
    """
    # On a machine without GPUs, too: --cpu would start one process, whatever number is asked for.
    device = ["--multi_gpu"]
    # Everything said that the launcher would otherwise guess, and warn about.
    machine = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    machine += ["--main_process_port", "0"]  # any free one: two runs may train on one machine
    threads = ["--num_cpu_threads_per_process", str(max(1, torch.get_num_threads() // processes))]
    return [
        *(sys.executable, "-m", "accelerate.commands.launch", *device, "--num_processes", str(processes)),
        *(*machine, *threads, "-m", "hrnetpp_lib"),
        *("train", "--recipe", str(recipe), "--output", str(root)),
    ]


def train_in_processes(run: Run, root: Path, processes: int) -> None:
    """Train a run, or go on with it, and print what it says as it says it.

    Args:
        run: The resolved recipe.
        root: Folder of data/ and runs/.
        processes: How many share each batch.

    Raises:
        HrnetppError: If it fails; with its own error, else with the last lines of its log.
        Preempted: If SIGTERM ended it.
    """
    recipe = root / "runs" / run.profile.name / run.name / "recipe.json"
    recipe.parent.mkdir(parents=True, exist_ok=True)
    recipe.write_text(json.dumps(asdict(run), indent=2))
    command = launch_command(recipe, root, processes)
    last, errors, preempted = deque(maxlen=15), [], False
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            for line in process.stdout:
                last.append(line.rstrip())
                preempted |= "SIGTERM" in line and "goes on" in line
                errors += [line.removeprefix("error: ").rstrip()] * line.startswith("error: ")
                print(line, end="", flush=True)
        except KeyboardInterrupt:  # stopping a notebook's cell stops the training
            process.terminate()
            raise
    if process.returncode == 0:
        return
    if preempted:
        raise Preempted(f"{run.name}: SIGTERM; run this again to go on")
    reason = errors[0] if errors else "\n".join(last)
    raise HrnetppError(f"{run.name}: training in {processes} processes failed: {reason}")
