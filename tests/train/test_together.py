"""Trainings side by side: order, kills, failures, signals, and weights that are a single run's to the bit."""

import hashlib
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from hrnetpp_lib.__main__ import build_parser, main
from hrnetpp_lib.data.layout import load_coco, prepare_data
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.files import write_json
from hrnetpp_lib.recipe import HRNET, HRNETPP, SMOKE, STAGE2, STAGE3, Run, resolve
from hrnetpp_lib.train import journal, together
from hrnetpp_lib.train.loop import checkpoint_path, train_stage
from hrnetpp_lib.train.machine import EngineOptions
from hrnetpp_lib.train.together import train_together

LIMIT_S = 120
PROFILE = replace(SMOKE, synthetic_persons=(32, 8, 4), holdout_persons=2, eval_every=2)
BF16 = replace(PROFILE, precision="bf16")
OFTEN = EngineOptions(save_every_s=0.0)
RUNS = (resolve(STAGE2, PROFILE, HRNET, epochs=3), resolve(STAGE2, BF16, HRNETPP, epochs=3))

# So long that both are found at work together, on a fast machine, too.
LONGER = (resolve(STAGE2, PROFILE, HRNET, epochs=15), resolve(STAGE2, BF16, HRNETPP, epochs=15))


@pytest.fixture(autouse=True)
def headless(monkeypatch):
    """Plain lines, whatever other tests have imported."""
    monkeypatch.setenv("HRNETPP_HEADLESS", "1")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    prepare_data(PROFILE, root / "data")
    return root / "data"


def new_root(data: Path, path: Path) -> Path:
    path.mkdir()
    (path / "data").symlink_to(data)
    return path


def weights(root: Path, run: Run) -> Path:
    return checkpoint_path(root / "runs" / "smoke", run.name)


def digest(root: Path, run: Run) -> str:
    return hashlib.sha256(weights(root, run).read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory) -> dict[Run, str]:
    """The weights of each run, trained in this process."""
    root = new_root(data, tmp_path_factory.mktemp("alone") / "root")
    paths = prepare_data(PROFILE, root / "data")
    for run in (*RUNS, *LONGER):
        train_stage(run, load_coco(PROFILE, paths), root / "runs" / "smoke", paths.root)
    return {run: digest(root, run) for run in (*RUNS, *LONGER)}


def process_of(run: Run) -> psutil.Process | None:
    """The child, or another one, that trains a run."""
    for process in psutil.process_iter():
        try:
            if any(Path(part).stem == run.name for part in process.cmdline()):
                return process
        except psutil.Error:
            continue
    return None


def killer_of(root: Path, run: Run, steps: int) -> threading.Thread:
    """A thread that kills a run's process as soon as so many steps are saved."""

    def wait() -> None:
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            saved = [int(path.name[5:13]) for path in weights(root, run).parent.glob("states/step_*")]
            if saved and max(saved) >= steps:
                process_of(run).kill()
                return
            time.sleep(0.01)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_a_killed_run_is_named_the_other_finishes_and_it_goes_on_to_the_bit(data, alone, tmp_path, capfd):
    root = new_root(data, tmp_path / "root")
    killer = killer_of(root, RUNS[1], 3)
    with pytest.raises(HrnetppError, match="1 of 2 runs are trained") as caught:
        train_together(RUNS, root, 2, OFTEN)
    killer.join()
    log = weights(root, RUNS[1]).with_name("train.log")
    reason = f"ended by SIGKILL, perhaps because memory ran out (log: {log})"
    assert f"{RUNS[1].name}: {reason}" in str(caught.value)
    assert digest(root, RUNS[0]) == alone[RUNS[0]] and not weights(root, RUNS[1]).exists()
    assert train_together(RUNS, root, 2, OFTEN) == [weights(root, run) for run in RUNS]
    assert digest(root, RUNS[1]) == alone[RUNS[1]]
    shown = capfd.readouterr().out
    assert shown.count("goes on from step") == 1 and "\r" not in shown
    assert shown.count(f"{RUNS[0].name}: found trained") == 1
    assert [f"  epoch   {n}/3  loss" in shown for n in (1, 2, 3)] == [False, True, True]
    # Found by this process alone: nothing of the later calls is in its log.
    assert weights(root, RUNS[0]).with_name("train.log").read_text().count("run          ") == 1


def test_sigterm_and_the_death_of_the_parent_leave_no_process_and_all_goes_on(data, alone, tmp_path):
    root = new_root(data, tmp_path / "root")
    recipes = [tmp_path / f"{n}.json" for n in range(2)]
    for path, run in zip(recipes, LONGER, strict=True):
        write_json(path, run)
    command = [sys.executable, "-m", "hrnetpp_lib", "train", "--output", root, "--save-every", "0"]
    command += [argument for path in recipes for argument in ("--recipe", path)]
    for number, status in ((signal.SIGTERM, 75), (signal.SIGKILL, -9)):
        parent = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        children = []
        for _ in range(LIMIT_S * 5):
            children = [process for run in LONGER if (process := process_of(run))]
            logs = [weights(root, run).with_name("train.log") for run in LONGER]
            if len(children) == 2 and all(
                log.exists() and "initial weights" in log.read_text() for log in logs
            ):
                break
            time.sleep(0.2)
        parent.send_signal(number)
        said = parent.communicate(timeout=LIMIT_S)[1]
        assert parent.returncode == status and ("the same command goes on" in said) == (status == 75)
        assert len(psutil.wait_procs(children, timeout=LIMIT_S)[0]) == 2
        assert (root / "runs" / "smoke" / "PREEMPTED").exists()
    train_together(LONGER, root, 2)
    assert all(digest(root, run) == alone[run] for run in LONGER)


def test_of_a_chain_that_fails_the_rest_is_not_begun_and_others_are_trained(data, tmp_path, capfd):
    root = new_root(data, tmp_path / "root")
    bad = replace(PROFILE, name="bad", batch_size=64)  # more than there are persons
    first = resolve(STAGE2, bad, HRNET)
    second = resolve(STAGE3, bad, HRNET, previous=first)
    third = resolve(STAGE3, bad, HRNET, previous=second)
    good = resolve(STAGE2, PROFILE, HRNET, epochs=1)
    after = resolve(STAGE3, PROFILE, HRNET, previous=good)
    with pytest.raises(HrnetppError, match="^2 of 5 runs are trained, these are not: ") as caught:
        train_together([after, good, third, second, first], root)
    assert f"{first.name}: " in str(caught.value) and "a batch has 64" in str(caught.value)
    assert f"{second.name}: not begun, it starts from {first.name}" in str(caught.value)
    assert f"{third.name}: not begun, it starts from {second.name}" in str(caught.value)
    assert "\n" not in str(caught.value) and weights(root, after).is_file()
    assert f"(from {good.name})" in weights(root, after).with_name("train.log").read_text()


def test_what_trains_elsewhere_or_cannot_be_written_is_said(data, tmp_path):
    root = new_root(data, tmp_path / "root")
    runs = [resolve(STAGE2, PROFILE, HRNET, seed, epochs=1) for seed in range(2)]
    weights(root, runs[1]).parent.parent.mkdir(parents=True)
    weights(root, runs[1]).parent.touch()  # a file in the folder's place
    with journal.lock(weights(root, runs[0]).parent), pytest.raises(HrnetppError) as caught:
        train_together(runs, root)
    folder = weights(root, runs[0]).parent
    assert f"{runs[0].name}: {folder}: another process trains this run" in str(caught.value)
    assert f"{runs[1].name}: cannot be begun: [Errno 17]" in str(caught.value)


def test_what_cannot_be_begun_is_refused_at_once(tmp_path, monkeypatch, capsys):
    first = resolve(STAGE2, PROFILE)
    second = resolve(STAGE3, PROFILE, previous=first)
    for number in (0, -1, 1.5):
        with pytest.raises(HrnetppError, match="whole number from 1 on"):
            train_together([first], tmp_path, number)
    with pytest.raises(HrnetppError, match=f"^{first.name}: asked for twice; name each run once$"):
        train_together([first, second, first], tmp_path)
    with pytest.raises(HrnetppError, match=f"not there; train {first.name} before {second.name}, or with it"):
        train_together([second], tmp_path)
    assert main(["train", "--seed", "1", "--seed", "1", "--profile", "smoke", "--output", str(tmp_path)]) == 2
    assert "asked for twice" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(HrnetppError, match="without `accelerate launch`"):
        train_together([first], tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.name != "PREEMPTED" and path.is_file()]
    monkeypatch.delenv("WORLD_SIZE")
    assert train_together([], tmp_path) == []


def test_the_longest_chain_begins_first_in_as_many_processes_as_cores(tmp_path, monkeypatch):
    begun, alive, most = [], [], []

    class Process:
        def __init__(self, run: Run):
            self.run, self.looks, self.returncode, self.stdin = run, 0, None, self

        def poll(self):
            self.looks += 1
            if self.looks == 2:
                self.returncode = 0
                alive.remove(self.run)
            return self.returncode

        def close(self) -> None:
            pass

    def begin(training, recipe, root, options):
        assert training.run.previous not in [run.name for run in alive]
        training.log.parent.mkdir(parents=True, exist_ok=True)
        training.log.touch()
        begun.append(training.run)
        alive.append(training.run)
        most.append(len(alive))
        training.process = Process(training.run)

    monkeypatch.setattr(together._Training, "begin", begin)
    monkeypatch.setattr(together, "_LOOK_EVERY_S", 0.0)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    monkeypatch.setattr(together, "_free_memory", lambda: None)
    short, wide = (resolve(STAGE2, PROFILE, a, 7, epochs=2) for a in (HRNET, HRNETPP))
    first = resolve(STAGE2, PROFILE, epochs=1)
    last = resolve(STAGE3, PROFILE, previous=first, epochs=5)
    others = [resolve(STAGE2, PROFILE, seed=seed, epochs=1) for seed in (1, 2)]
    runs = [short, *others, last, wide, first]
    assert train_together(runs, tmp_path) == [weights(tmp_path, run) for run in runs]
    assert begun == [first, wide, short, last, *others] and max(most) == 3
    for workers, processes, expected in ((1, None, 1), (0, 2, 2), (8, None, 1)):
        begun.clear(), most.clear()
        profile = replace(PROFILE, workers=workers)
        train_together([replace(run, profile=profile) for run in others], tmp_path, processes)
        assert max(most) == expected and len(begun) == 2


def test_on_a_gpu_another_one_begins_where_it_fits(tmp_path, monkeypatch):
    runs = [resolve(STAGE2, PROFILE, seed=seed, epochs=1) for seed in range(6)]
    waiting = {run.name: together._Training(run, tmp_path / run.name / "train.log") for run in runs}
    free, begun = [80], []
    monkeypatch.setattr(together, "_free_memory", lambda: free[0])
    monkeypatch.setattr(together._Training, "begin", lambda training, *_: begun.append(training))
    side = together._SideBySide(waiting, tmp_path, OFTEN, 3, 80)
    looks = ((80, False, 1), (55, False, 1), (42, True, 1), (55, True, 2), (55, True, 3))
    for now, have_stepped, expected in looks:
        free[0] = now  # one run took 25, or 38; then two took 25
        for training in begun:
            training.says = "epoch 1/1: 8/32 crops, 3.1crop/s" if have_stepped else "run          x"
        side.begin(tmp_path)
        assert len(begun) == expected
        if expected == 2:
            side.begin(tmp_path)
            assert len(begun) == 2  # the second has not shown yet what it takes
    side.most, side.running = 9, dict.fromkeys("abc", begun[0])
    free[0] = 31  # 49 / 3 each: fits with a quarter more
    assert side._has_place() and not side.running.clear() and side._has_place()


def test_the_engines_options_are_handed_on():
    options = EngineOptions(3, True, True, True, 7.5)
    for asked in (options, EngineOptions()):
        read = build_parser().parse_args(["train", *asked.arguments()])
        names = ("accumulate", "compile", "skip_bad_images", "tensorboard", "save_every")
        assert EngineOptions(*(getattr(read, name) for name in names)) == asked


def test_people_see_a_line_for_each_run_and_what_its_log_says_last(tmp_path, monkeypatch, capsys):
    runs = [resolve(STAGE2, PROFILE, seed=seed) for seed in range(2)]
    trainings = {run.name: together._Training(run, tmp_path / f"{run.seed}.log") for run in runs}
    monkeypatch.setattr(journal, "is_watched", lambda: False)
    assert together._live_lines(trainings) == {}
    monkeypatch.setattr(journal, "is_watched", lambda: True)
    lines = together._live_lines(trainings)
    wanted = [
        f"stage2-hrnetpp{seed}-{run.hash}  waits" for seed, run in zip(("", "-seed1"), runs, strict=True)
    ]
    assert [line.desc for line in lines.values()] == wanted
    first, line = trainings[runs[0].name], lines[runs[0].name]
    first.process = SimpleNamespace(returncode=None)
    text = "epoch   1/1  loss 1e-2\nstage2_coco_heatmap epoch 1/4: 8/32 crops, 3.1crop/s\nhalf a li"
    first.log.write_text(text)
    for status, expected in ((None, "epoch 1/4: 8/32 crops, 3.1crop/s"), (0, "trained"), (-9, "FAILED: ")):
        first.process.returncode = status
        together._show(first, first.read_log(first.read_to), line)
        assert line.desc.startswith(f"stage2-hrnetpp-{runs[0].hash}  {expected}")
    first.log.write_text(text + "ne\n")
    assert first.read_log(first.read_to) == ["half a line"]
    for each in lines.values():
        each.close()
    assert capsys.readouterr().out == ""
