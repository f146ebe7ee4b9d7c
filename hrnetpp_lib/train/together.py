"""Runs that do not depend on each other, trained side by side: each in a process of one thread.

runs/<profile>/<run>/train.log has what the process of a run says.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import tqdm.auto

from hrnetpp_lib.data.crops import usable_cores
from hrnetpp_lib.data.layout import load_stage_data, prepare_data
from hrnetpp_lib.errors import HrnetppError, Preempted
from hrnetpp_lib.files import write_json
from hrnetpp_lib.recipe import Run
from hrnetpp_lib.train import journal, machine
from hrnetpp_lib.train.loop import checkpoint_path, train_stage

_DEFAULT = machine.EngineOptions()
_LOOK_EVERY_S = 0.2
# CHOICE: one thread each, whatever cores are left: no run's weights depend on what trains beside it.
_ENVIRONMENT = dict.fromkeys(("OMP_NUM_THREADS", "OPENCV_FOR_THREADS_NUM", "HRNETPP_HEADLESS"), "1")
_ENVIRONMENT |= {"OMP_WAIT_POLICY": "PASSIVE", "HRNETPP_BESIDE": "1"} | machine.KEEP_FREED_MEMORY
_GPU_MARGIN = 1.25  # a run's most memory on a GPU, times what it holds after its first steps


@dataclass(eq=False)
class _Training:
    """One of the runs: its process, and what its log has said so far."""

    run: Run
    log: Path
    process: subprocess.Popen | None = None
    begun_at = read_to = 0  # bytes of the log
    says: str = "waits"  # the log's last line

    def begin(self, recipe: Path, root: Path, options: machine.EngineOptions) -> None:
        """Start the process; it ends when this one does, which closes the pipe to its stdin."""
        write_json(recipe, self.run)
        where = ["--recipe", recipe, "--output", root]
        command = [sys.executable, "-m", "hrnetpp_lib", "train", *where, *options.arguments()]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "ab") as log:
            self.begun_at = self.read_to = log.tell()
            self.says = "begins"
            settings = {"stdin": subprocess.PIPE, "stdout": log, "stderr": subprocess.STDOUT}
            # In a session of its own: Ctrl-C is for this process, which tells the others to save and end.
            settings |= {"env": os.environ | _ENVIRONMENT, "start_new_session": True}
            self.process = subprocess.Popen(command, **settings)

    def read_log(self, start: int) -> list[str]:
        """The whole lines of the log from a byte on."""
        with open(self.log, "rb") as log:
            log.seek(start)
            text = log.read()
        text = text[: text.rfind(b"\n") + 1]
        self.read_to = start + len(text)
        lines = [line for line in text.decode(errors="replace").splitlines() if line.strip()]
        self.says = lines[-1] if lines else self.says
        return lines

    def why_it_ended(self) -> str:
        """What keeps it from being trained, and where more is said."""
        errors = [line for line in self.read_log(self.begun_at) if line.startswith("error: ")]
        reason = errors[0].removeprefix("error: ") if errors else self.says
        if (status := self.process.returncode) < 0:
            memory = ", perhaps because memory ran out" * (status == -signal.SIGKILL)
            reason = f"ended by {signal.Signals(-status).name}{memory}"
        return f"{reason} (log: {self.log})"


def train_together(
    runs: Sequence[Run],
    root: Path,
    processes: int | None = None,
    options: machine.EngineOptions = _DEFAULT,
) -> list[Path]:
    """Train runs side by side, or go on with them, or find them trained; returns their checkpoints.

    A run waits for its `previous` if that is among them; the longest chains begin first. `processes` at once;
    without it as many as there are cores, loader processes counted, and of these as many as fit on a GPU.

    Raises: HrnetppError at once if a run is asked for twice or starts from one that is not trained; when all
    others have ended, if runs failed or were killed: it names them and why, and those that wait for them.
    Preempted if SIGTERM came; all have saved, and the same call goes on.
    """
    paths = [checkpoint_path(root / "runs" / run.profile.name, run.name) for run in runs]
    _check(runs, paths, processes)
    waiting = {r.name: _Training(r, p.with_name("train.log")) for r, p in zip(runs, paths, strict=True)}
    most, free = processes or processes_at_once(runs), None if processes else _free_memory()
    side_by_side = _SideBySide(waiting, root, options, most, free)
    with machine.SigtermNotice() as notice, tempfile.TemporaryDirectory() as recipes:
        side_by_side.find_trained()
        lines = _live_lines(side_by_side.waiting)
        try:
            while side_by_side.waiting or side_by_side.running:
                side_by_side.begin(Path(recipes))
                time.sleep(_LOOK_EVERY_S)
                side_by_side.look(lines)
                if notice.received:
                    raise Preempted("SIGTERM; the states are saved, the same command goes on from them")
        finally:
            side_by_side.end()
            for line in lines.values():
                line.close()
    if failed := side_by_side.failed:
        named = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        others = f"{len(runs) - len(failed)} of {len(runs)} runs are trained, these are not: "
        raise HrnetppError(f"{others}{named}. The same command goes on with them")
    return paths


def _check(runs: Sequence[Run], paths: list[Path], processes: int | None) -> None:
    """Refuse what no training can begin from."""
    if processes is not None and (not isinstance(processes, int) or processes < 1):
        raise HrnetppError(f"trainings in {processes!r} processes: give a whole number from 1 on")
    if "WORLD_SIZE" in os.environ:
        raise HrnetppError("several runs train side by side without `accelerate launch`; start one by it")
    names = [run.name for run in runs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise HrnetppError(f"{', '.join(twice)}: asked for twice; name each run once")
    for run, path in zip(runs, paths, strict=True):
        previous = checkpoint_path(path.parents[1], run.previous or run.name)
        if run.previous and run.previous not in names and not (path.is_file() or previous.is_file()):
            raise HrnetppError(f"{previous}: not there; train {run.previous} before {run.name}, or with it")


def processes_at_once(runs: Sequence[Run]) -> int:
    """How many of these runs train at once on the cores, each with its loader processes."""
    return max(1, usable_cores() // (1 + max((run.profile.workers for run in runs), default=0)))


def _free_memory() -> int | None:
    """Free bytes of the GPU; None where there is none."""
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None


@dataclass(eq=False)
class _SideBySide:
    """Which runs wait, train, and have failed for what reason; the rest is trained."""

    waiting: dict[str, _Training]
    root: Path
    options: machine.EngineOptions
    most: int  # processes at once
    free_before: int | None  # bytes of the GPU, if its memory decides, too
    running: dict[str, _Training] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        runs = [training.run for training in self.waiting.values()]

        def order(name: str) -> tuple[int, int]:  # of equals, more of HRNet++'s additions take longer
            run = self.waiting[name].run
            after = [order(other.name)[0] for other in runs if other.previous == name]
            return run.stage.epochs + max(after, default=0), sum(run.architecture.switches.values())

        self.waiting = {name: self.waiting[name] for name in sorted(self.waiting, key=order, reverse=True)}

    def find_trained(self) -> None:
        """Take out what is trained, without a process."""
        for name, training in list(self.waiting.items()):
            run, runs_dir = training.run, training.log.parents[1]
            if not checkpoint_path(runs_dir, name).is_file():
                continue
            del self.waiting[name]
            try:
                paths = prepare_data(run.profile, self.root / "data")
                data = load_stage_data(run.stage.dataset, run.profile, paths)
                train_stage(run, data, runs_dir, paths.root)
            except HrnetppError as error:
                self.failed[name] = str(error)

    def begin(self, recipes: Path) -> None:
        """Start what can be, and strike out what cannot because the run before it failed."""
        for name, training in list(self.waiting.items()):
            previous = training.run.previous
            if previous in self.failed:
                del self.waiting[name]
                self.failed[name] = f"not begun, it starts from {previous}"
            elif not (previous in self.waiting or previous in self.running) and self._has_place():
                del self.waiting[name]
                try:
                    training.begin(recipes / f"{name}.json", self.root, self.options)
                    self.running[name] = training
                except (HrnetppError, OSError) as error:
                    self.failed[name] = f"cannot be begun: {error}"

    def _has_place(self) -> bool:
        """Whether one more may train; on a GPU once those there have made steps, and it has what one took."""
        running = len(self.running)
        if not running or running >= self.most or self.free_before is None:
            return running < self.most
        have_stepped = all("crops" in training.says for training in self.running.values())
        free = _free_memory()
        return have_stepped and free > _GPU_MARGIN * (self.free_before - free) / running

    def look(self, lines: dict[str, tqdm.std.tqdm]) -> None:
        """Show what the processes say, and take out those that ended."""
        for name, training in list(self.running.items()):
            status = training.process.poll()  # before the log is read, so that its end is not missed
            _show(training, training.read_log(training.read_to), lines.get(name))
            if status is not None:
                self.running.pop(name).process.stdin.close()
                self.failed |= {name: training.why_it_ended()} if status else {}

    def end(self) -> None:
        """Tell all that run to save their states and end, and wait until they have."""
        for training in self.running.values():
            training.process.terminate()
        for training in self.running.values():
            training.process.wait()
            training.process.stdin.close()


def _label(run: Run) -> str:
    seed = f"-seed{run.seed}" if run.seed else ""
    return f"{run.stage.name.partition('_')[0]}-{run.architecture.name}{seed}-{run.hash}"


def _live_lines(trainings: dict[str, _Training]) -> dict[str, tqdm.std.tqdm]:
    """One line for each run where somebody watches, else none: then logs grow by what is printed."""
    if not journal.is_watched():
        return {}
    settings = {"bar_format": "{desc}", "leave": True, "dynamic_ncols": True}
    lines = {name: tqdm.auto.tqdm(position=i, **settings) for i, name in enumerate(trainings)}
    for name, line in lines.items():
        line.set_description_str(f"{_label(trainings[name].run)}  waits")
    return lines


def _show(training: _Training, said: list[str], line: tqdm.std.tqdm | None) -> None:
    """What a process said since the last look: on its live line, or the remarks and val's scores in print."""
    run = training.run
    if line is not None:
        says = training.says.removeprefix(f"{run.stage.name} ")
        says = {None: says, 0: "trained"}.get(training.process.returncode, f"FAILED: {says}")
        if (text := f"{_label(run)}  {says}") != line.desc:
            line.set_description_str(text)
        return
    for text in said:
        if text.startswith(f"{run.name}: "):
            print(text, flush=True)
        elif text.startswith("warning: "):
            print(f"{_label(run)}  {text}", flush=True)
        elif text.startswith("epoch ") and text.endswith(")"):
            print(f"{_label(run)}  {text.rpartition(' (')[0]}", flush=True)  # without the boxes' name
