"""How a run uses the machine: devices, processes, precision, compiler, signals; nothing of its recipe."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import is_tensorboard_available
from accelerate.utils.memory import should_reduce_batch_size

from hrnetpp_lib.data.crops import Sample
from hrnetpp_lib.errors import HrnetppError, Preempted
from hrnetpp_lib.evaluate.runtime import imitates_bf16
from hrnetpp_lib.files import write_json
from hrnetpp_lib.recipe import Run

# The other processes wait while the first one scores val; NCCL's own limit is ten minutes.
_PATIENCE = timedelta(hours=2)

# glibc returns freed memory to the system, and every training step pays for getting it back.
KEEP_FREED_MEMORY = {"MALLOC_TRIM_THRESHOLD_": "4000000000", "MALLOC_MMAP_THRESHOLD_": "4000000000"}

SLOW_BF16 = (
    "warning: this CPU has no instructions for bf16 and imitates it, many times as slow as fp32. Use another "
    "machine, or set precision='fp32' in the profile (recipe.py)"
)


@dataclass(frozen=True)
class EngineOptions:
    """What the command line may ask of the engine; HrnetppError if a number makes no sense."""

    # Parts of a process's share of a batch: the loss stays the whole's, batch normalisation sees a part.
    accumulate: int = 1
    compile: bool = False  # whether to try torch.compile
    skip_bad_images: bool = False  # whether an unreadable picture is replaced by another person's
    tensorboard: bool = False  # whether to write TensorBoard's event files beside metrics.jsonl
    save_every_s: float = 600.0  # between two saved states; one is saved at each epoch's end, too

    def __post_init__(self) -> None:
        if not isinstance(self.accumulate, int) or self.accumulate < 1:
            raise HrnetppError(f"accumulate is {self.accumulate!r}; give a whole number from 1 on")
        if not 0 <= self.save_every_s < float("inf"):
            raise HrnetppError(f"save_every_s is {self.save_every_s}; give seconds from 0 on")

    def arguments(self) -> list[str]:
        """The same as options of the command `train`."""
        flags = {name: getattr(self, name) for name in ("compile", "skip_bad_images", "tensorboard")}
        given = [f"--{name.replace('_', '-')}" for name, is_on in flags.items() if is_on]
        return ["--accumulate", str(self.accumulate), "--save-every", str(self.save_every_s), *given]


def processes() -> PartialState:
    """This process among those launched together, or alone; on a GPU where there is one, else on the CPU."""
    return PartialState(cpu=not torch.cuda.is_available(), timeout=_PATIENCE)


def end_with_parent() -> None:
    """In a process that `together` began: SIGTERM to itself once the other one is gone, however it ended."""

    def wait() -> None:
        os.read(0, 1)  # nothing is ever written to the pipe; it closes when its writer ends
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def leave(status: int) -> NoReturn:
    """End a process that was launched with others, without the interpreter's own clean-up."""
    # DistributedDataParallel keeps gloo's threads alive, even after `destroy_process_group`. One that lets go
    # of its last tensor while the interpreter shuts down aborts the process, and the launcher would report a
    # finished run as failed.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def make_accelerator(run: Run, options: EngineOptions, folder: Path) -> Accelerator:
    """Device, precision and processes of a run. Raises: HrnetppError if there is no TensorBoard to write."""
    if options.tensorboard and not is_tensorboard_available():
        raise HrnetppError(
            "tensorboard is not installed; install the extra watch, or leave --tensorboard out"
        )
    processes()
    torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32: in TF32 heatmaps have ten bits
    # Runs of one process may differ in precision; the state is a singleton that would refuse.
    AcceleratorState._reset_state()
    precision = "bf16" if run.profile.precision == "bf16" else "no"
    cpu, trackers = not torch.cuda.is_available(), "tensorboard" if options.tensorboard else None
    accelerator = Accelerator(cpu=cpu, mixed_precision=precision, log_with=trackers, project_dir=str(folder))
    if precision == "bf16" and imitates_bf16(accelerator.device):
        accelerator.print(SLOW_BF16)
    return accelerator


def compile_step(network: torch.nn.Module, batch: Sample, say: Callable[[str], None]) -> torch.nn.Module:
    """The network compiled, or itself where that fails, which it says; tried on a batch, without a trace."""
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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out: by accelerate's test, or in words that it lacks."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or should_reduce_batch_size(error):
        return True
    words = ("not enough memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(each in str(error) for each in words)


class SigtermNotice:
    """While entered in the main thread, SIGTERM ends no process: it is noted; within `at_once` it raises."""

    def __init__(self) -> None:
        self.received = self._raises = False
        self._before = None

    def __enter__(self) -> "SigtermNotice":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
            outer = getattr(self._before, "__self__", None)
            if isinstance(outer, SigtermNotice):  # one that came before and was noted only
                self.received = outer.received
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Around work that may be broken off anywhere: Preempted if SIGTERM came before, or comes now."""
        try:
            self._raises = True
            self._leave_if_received()
            yield
            self._leave_if_received()  # raised within a destructor, where Python drops exceptions
        finally:
            self._raises = False

    def stay(self) -> None:
        """Keep this handler when left: the process ends, and being told so again must not disturb that."""
        self._before = None

    def _note(self, *_: object) -> None:
        again, self.received = self.received, True
        # Launchers and schedulers both send it: the second one must not break off what the first one began.
        if self._raises and not again:
            self._leave_if_received()

    def _leave_if_received(self) -> None:
        if self.received:
            raise Preempted("SIGTERM; what is saved is whole, the same command goes on from it")


def _mark(root: Path, run: Run) -> Path:
    return root / "runs" / run.profile.name / "PREEMPTED"


@contextlib.contextmanager
def preemptible(root: Path, runs: tuple[Run, ...]) -> Iterator[SigtermNotice]:
    """Around training a profile's runs: PREEMPTED in runs/<profile> names them where SIGTERM ended it."""
    # Launchers do not pass our exit status on.
    mark, is_first = _mark(root, runs[0]), int(os.environ.get("RANK", "0")) == 0
    if is_first:
        mark.unlink(missing_ok=True)
    with SigtermNotice() as notice:
        try:
            yield notice
        except Preempted:
            notice.stay()
            with contextlib.suppress(OSError):  # a full disk is no reason to end in another way
                if is_first:
                    mark.parent.mkdir(parents=True, exist_ok=True)
                    mark.write_text("".join(f"{run.name}\n" for run in runs))
            raise


def _launch_command(recipe: Path, root: Path, number: int) -> list[str]:
    """The command that trains a recipe in several processes on this machine, one per GPU if it has any."""
    threads = max(1, torch.get_num_threads() // number)
    # On a machine without GPUs --multi_gpu, too: --cpu would start one process, whatever number is asked for.
    # Port 0 is any free one: two runs may train on one machine. The rest the launcher would guess, and warn.
    options = (
        f"-m accelerate.commands.launch --multi_gpu --num_processes {number} --num_machines 1 "
        "--mixed_precision no --dynamo_backend no --main_process_port 0 "
        f"--num_cpu_threads_per_process {threads} -m hrnetpp_lib train"
    )
    return [sys.executable, *options.split(), "--recipe", str(recipe), "--output", str(root)]


def train_in_processes(run: Run, root: Path, number: int) -> None:
    """Train a run, or go on with it, in processes that share each batch, and print what they say as they do.

    Raises: HrnetppError with training's own error, else the last lines of its log; Preempted after SIGTERM.
    """
    if not isinstance(number, int) or number < 1:
        raise HrnetppError(f"training in {number!r} processes: give a whole number from 1 on")
    mark, last, errors = _mark(root, run), deque(maxlen=15), []
    mark.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder) / "recipe.json", run)
        command = _launch_command(Path(folder) / "recipe.json", root, number)
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
        with subprocess.Popen(command, **streams) as process:
            try:
                for line in process.stdout:
                    last.append(line.rstrip())
                    errors += [line.removeprefix("error: ").rstrip()] * line.startswith("error: ")
                    print(line, end="", flush=True)
            except BaseException:  # stopping a notebook's cell stops the training
                process.terminate()
                raise
    if process.returncode == 0:
        return
    if mark.is_file() and run.name in mark.read_text().splitlines():
        raise Preempted(f"{run.name}: SIGTERM; run this again to go on")
    reason = errors[0] if errors else "\n".join(last)
    raise HrnetppError(f"{run.name}: training in {number} processes failed: {reason}")
