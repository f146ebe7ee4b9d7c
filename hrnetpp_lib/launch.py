"""Training in several processes from a notebook: the command line in a subprocess, its log followed live."""

import json
import subprocess
import sys
from collections import deque
from dataclasses import asdict
from pathlib import Path

import torch

from hrnetpp_lib.errors import HrnetppError, Preempted
from hrnetpp_lib.recipe import Run


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
