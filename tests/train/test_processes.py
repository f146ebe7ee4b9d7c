"""Whole runs in processes of their own: two that share a batch, and any number that are killed."""

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from engine_run import PROFILE, small_run
from safetensors.torch import load_file

from hrnetpp_lib.data.layout import prepare_data
from hrnetpp_lib.errors import HrnetppError, Preempted
from hrnetpp_lib.model.weights import load_checkpoint
from hrnetpp_lib.recipe import SMOKE, STAGE2, read_recipe, resolve
from hrnetpp_lib.train.loop import build_model, checkpoint_path
from hrnetpp_lib.train.machine import train_in_processes

SCRIPT = Path(__file__).with_name("engine_run.py")
LAUNCH = "-m accelerate.commands.launch --multi_gpu --num_machines 1 --mixed_precision no --dynamo_backend no"
TWO = f"{LAUNCH} --num_cpu_threads_per_process 1 --num_processes 2 --main_process_port 0".split()
STATES = "runs/*/states/step_*.safetensors"
LIMIT_S = 120
STARTED: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def nothing_left_running():
    """A test that fails half way must not leave its processes, and their warnings, to the next one."""
    yield
    for process in STARTED:
        if not process.stdout.closed:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    STARTED.clear()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """The data, made once and linked into each run's root."""
    root = tmp_path_factory.mktemp("engine")
    prepare_data(PROFILE, root / "data")
    return root / "data"


def new_root(data: Path, root: Path) -> Path:
    root.mkdir()
    (root / "data").symlink_to(data)
    return root


def start(root: Path, *options: str, processes: int = 1) -> subprocess.Popen:
    """Start a run in a process group of its own."""
    command = [sys.executable, *(TWO if processes == 2 else []), str(SCRIPT), str(root), *options]
    streams = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "text": True,
        "start_new_session": True,
    }
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parents[2])}
    STARTED.append(subprocess.Popen(command, env=environment, **streams))
    return STARTED[-1]


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, output
    return output


def weights(root: Path) -> Path:
    return root / "runs" / small_run().name / "model.safetensors"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory) -> dict[int, Path]:
    """The weights of a run that nobody killed, on one and on two processes."""
    roots = {n: new_root(data, tmp_path_factory.mktemp("whole") / str(n)) for n in (1, 2)}
    for processes, root in roots.items():
        finish(start(root, processes=processes))
    return {processes: weights(root) for processes, root in roots.items()}


def test_two_processes_with_half_the_batch_give_the_weights_of_one(data, tmp_path):
    """20 steps in fp32. Batch normalisation uses fixed statistics here: in training each process takes its
    own crops' statistics, as torch's DistributedDataParallel does, and two halves differ from the whole."""
    found = {}
    for name, processes, options in (("one", 1, []), ("two", 2, []), ("parts", 1, ["--accumulate", "4"])):
        root = new_root(data, tmp_path / name)
        finish(start(root, "--frozen-bn", *options, processes=processes))
        found[name] = load_file(weights(root))
    found["start"] = build_model(small_run(), 17).state_dict()
    moved = {name: max((t - found["one"][n]).abs().max() for n, t in w.items()) for name, w in found.items()}
    assert moved["start"] > 1e-3 and moved["two"] <= 1e-5 and moved["parts"] <= 1e-5, moved


def kill_and_go_on(root: Path, kills: int, seed: int, processes: int) -> int:
    """Kill a run at random moments of its time, then let it finish; how many kills it took alive."""
    rng, hit = random.Random(seed), 0
    for _ in range(kills):
        process = start(root, processes=processes)
        try:
            # A state is saved after each of the twenty steps, so many a kill falls into a save.
            wait_for_states(root, process, rng.randint(1, 6))
            time.sleep(rng.uniform(0, 0.05))
            hit += process.poll() is None and not weights(root).is_file()
        finally:
            kill_all(root, process)
        if weights(root).is_file():
            break
    finish(start(root, processes=processes))
    return hit


def wait_for_states(root: Path, process: subprocess.Popen, number: int) -> None:
    """Wait until the run has read its state, if there is one, and written some of its own."""
    found, written, limit = set(root.glob(STATES)), set(), time.monotonic() + LIMIT_S
    while len(written) < number and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.005)
        written |= set(root.glob(STATES)) - found


def kill_all(root: Path, process: subprocess.Popen) -> None:
    """SIGKILL for the workers, which torch starts in sessions of their own, and for their launcher."""
    for path in (root / "pids").glob("*"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(path.name), signal.SIGKILL)
        path.unlink()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize(("processes", "kills"), [(1, 2), (2, 1)])
def test_a_killed_run_ends_with_the_same_weights(data, undisturbed, tmp_path, processes, kills):
    root = new_root(data, tmp_path / "killed")
    assert kill_and_go_on(root, kills, seed=processes, processes=processes) > 0
    assert digest(weights(root)) == digest(undisturbed[processes])
    metrics = weights(root).with_name("metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in metrics] == [1, 2, 3, 4, 5]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_twenty_kills(data, undisturbed, tmp_path, processes):
    """Twenty kills that found the run alive, over as many runs as that takes."""
    hit = attempt = 0
    while hit < 20:
        root = new_root(data, tmp_path / str(attempt))
        hit += kill_and_go_on(root, 5, seed=100 * processes + attempt, processes=processes)
        assert digest(weights(root)) == digest(undisturbed[processes]), f"attempt {attempt}"
        shutil.rmtree(root)
        attempt += 1


@pytest.mark.parametrize("moment", ["half written", "not yet pruned"])
def test_a_kill_inside_a_save(data, undisturbed, tmp_path, moment):
    root = new_root(data, tmp_path / "torn")
    process = start(root, "--die-in-save", moment)
    process.communicate(timeout=LIMIT_S)
    assert process.returncode == -signal.SIGKILL
    (states,) = root.glob("runs/*/states")
    assert (states / "state.part").exists() == (moment == "half written")
    assert len(list(states.glob("step_*.safetensors"))) == (2 if moment == "half written" else 3)
    finish(start(root))
    assert digest(weights(root)) == digest(undisturbed[1]) and not states.exists()


@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_saves_once_exits_with_its_own_code_and_all_go_on(data, undisturbed, tmp_path, processes):
    root = new_root(data, tmp_path / "preempted")
    process = start(root, "--save-every", "1000", processes=processes)
    while not any(p.stat().st_size for p in root.glob("runs/*/metrics.jsonl")) and process.poll() is None:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGTERM)  # as a scheduler does: to all processes
    output, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 75 or (processes == 2 and process.returncode), output
    assert "the state is saved" in output, output
    assert "goes on from step" in finish(start(root, "--save-every", "1000", processes=processes))
    assert digest(weights(root)) == digest(undisturbed[processes])


def test_the_command_exits_with_75_and_says_so_once(tmp_path):
    """The signal comes while the data are made, to the process as the shell sees it."""
    command = [sys.executable, "-m", "hrnetpp_lib", "train", "--profile", "smoke", "--output", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline().startswith("run ")
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, said.count("the same command goes on"), said.count("\n")) == (75, 1, 1)
    assert (tmp_path / "runs" / "smoke" / "PREEMPTED").is_file()
    assert not list(tmp_path.glob("data/smoke")) and not list(tmp_path.glob("runs/smoke/*/*"))


def test_a_notebook_trains_the_very_recipe_in_two_processes_and_is_told_of_preemption(tmp_path, capfd):
    run = resolve(STAGE2, replace(SMOKE, synthetic_persons=(16, 8, 4), holdout_persons=2), seed=3)
    path = checkpoint_path(tmp_path / "runs" / "smoke", run.name)
    ended = threading.Event()

    def scheduler() -> None:  # tells the launcher and its workers, as soon as a state is saved
        while not ended.wait(0.005):
            if list(path.parent.glob("states/step_*")):
                for process in psutil.Process().children(recursive=True):
                    process.terminate()
                return

    thread = threading.Thread(target=scheduler)
    thread.start()
    with pytest.raises(Preempted, match="run this again"):
        train_in_processes(run, tmp_path, 2)
    ended.set()
    thread.join()
    shown = capfd.readouterr().out
    assert shown.count("goes on after it") + shown.count("goes on from it") == 1 and "seed         3" in shown
    train_in_processes(run, tmp_path, 2)
    assert load_checkpoint(path)[1].run == run.name and read_recipe(path.with_name("recipe.json")) == run
    metrics = json.loads(path.with_name("metrics.jsonl").read_text())
    assert metrics["processes"] == 2 and metrics["metric"] == "COCO AP"
    with pytest.raises(HrnetppError, match="cannot be divided into 3 equal parts"):
        train_in_processes(replace(run, seed=4), tmp_path, 3)
    assert len(list(tmp_path.glob("runs/smoke/*/recipe.json"))) == 1  # written under the lock, not before


def test_a_second_training_of_a_run_is_kept_out(data, tmp_path):
    root = new_root(data, tmp_path / "twice")
    first = start(root)
    wait_for_states(root, first, 1)
    first.send_signal(signal.SIGSTOP)  # or it might be through before the second one has begun
    output, _ = start(root).communicate(timeout=LIMIT_S)
    first.send_signal(signal.SIGCONT)
    assert "another process trains this run" in output
    finish(first)


def test_the_slurm_script_requeues_what_was_preempted_and_nothing_else(tmp_path):
    """Run with stand-ins for srun and scontrol: what it starts, and when it asks to be queued again."""
    srun = 'echo "$@" >> calls; [ -n "$MARK" ] && touch "$MARK"; exit $FAIL'
    for name, body in {"srun": srun, "scontrol": 'echo "scontrol $@" >> calls'}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "7"}
    slurm |= {"SLURM_CPUS_PER_TASK": "32", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    script, mark = SCRIPT.parents[2] / "examples" / "train.sbatch", tmp_path / "runs/coco/PREEMPTED"
    mark.parent.mkdir(parents=True)

    def submit(fail: int, mark: str = "") -> tuple[int, str]:
        (tmp_path / "calls").unlink(missing_ok=True)
        told = os.environ | slurm | {"FAIL": str(fail), "MARK": mark}
        status = subprocess.run(["bash", script], cwd=tmp_path, env=told).returncode
        return status, (tmp_path / "calls").read_text()

    status, calls = submit(0)
    assert status == 0 and "--num_machines 2 --num_processes 8" in calls and "-m hrnetpp_lib train" in calls
    assert "--main_process_port 20007" in calls and "requeue" not in calls
    status, calls = submit(1, str(mark))
    assert status == 1 and "scontrol requeue 7" in calls
    assert mark.exists()  # and the job that fails now, before it has begun, is not queued again for its sake
    assert "requeue" not in submit(1)[1]
