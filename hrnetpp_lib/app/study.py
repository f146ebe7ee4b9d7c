"""The study: trains and measures what the experiments ask for.

figures/study/results.jsonl, committed, has a line for every network measured: its recipe, cost, provenance,
and the OKS of each person, from which verdicts.py makes all intervals and verdicts again. It outlives the
weights.
"""

import threading
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import torch
from filelock import FileLock

from hrnetpp_lib.app.experiments import EXPERIMENTS, LONG, PAIR, STUDY, Experiment, all_runs
from hrnetpp_lib.app.plan import training_speed
from hrnetpp_lib.data.annotations import labelled_persons
from hrnetpp_lib.data.layout import DataPaths, StageData, load_coco, prepare_data
from hrnetpp_lib.data.synthetic import write_dataset
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.evaluate.infer import SINGLE_VIEW, TTA_VIEWS, average, open_network, predict_boxes
from hrnetpp_lib.evaluate.measure import Measure, decodings, measure, predict_ways
from hrnetpp_lib.evaluate.table import provenance
from hrnetpp_lib.files import decode_json, read_bytes, whole_file
from hrnetpp_lib.pose.geometry import EXACT_SHIFT
from hrnetpp_lib.recipe import STAGE3, Profile, Run
from hrnetpp_lib.train.journal import read_metrics
from hrnetpp_lib.train.loop import checkpoint_path
from hrnetpp_lib.train.together import processes_at_once, train_together

TEST_PERSONS, _TEST_SEED = 4000, 1  # other people than those of training and dev, whose seed is 0
_LOOK_EVERY_S = 0.2
_ROUNDING = 0.5 / 255  # of a person's OKS, as it is kept
_PHOTOGRAPHS = {"coco": 4000, "ai_challenger": 4900}  # to train on, to tell the cost before they are there


@dataclass(frozen=True)
class Result:
    """A finished run: cost, and figures by set (dev for choices, test for figures) and by decoding."""

    run: str
    recipe: Run
    crops: int
    train_seconds: float
    provenance: dict[str, object]
    sets: dict[str, dict[str, Measure]] = field(default_factory=dict)


def results_path(root: Path) -> Path:
    """The committed results, below the folder of data, runs and figures."""
    return root / "figures" / "study" / "results.jsonl"


def read_results(root: Path) -> dict[str, Result]:
    """Results by the name of the run; one measured twice has figures of both lines, the origin of the last.

    Raises: HrnetppError if a line is damaged, or its parts are not of one another.
    """
    path, found, persons, remedy = results_path(root), {}, {}, "restore it from version control"
    for number, line in enumerate(read_bytes(path, remedy).splitlines() if path.exists() else [], 1):
        result = decode_json(line, Result, f"{path}, line {number}", remedy)
        if wrong := _disagreement(result, persons):
            raise HrnetppError(f"{path}, line {number}: {wrong}; {remedy}")
        for name, ways in found[result.run].sets.items() if result.run in found else ():
            result.sets[name] = ways | result.sets.get(name, {})
        found[result.run] = result
    return found


def _disagreement(result: Result, persons: dict[tuple[str, str], int]) -> str | None:
    """What in a line is of another: its recipe, how many persons it has, or their mean OKS.

    `persons`: by profile and set, how many the lines before have; entered here where there was none.
    """
    if result.run != result.recipe.name:
        return f"its recipe is that of {result.recipe.name}, not of {result.run}"
    measured = [(name, way, one) for name, ways in result.sets.items() for way, one in ways.items()]
    for name, way, found in measured:
        try:
            oks = found.persons
        except zlib.error:
            return f"{way}: oks_of_persons cannot be unpacked"
        if len(oks) != (known := persons.setdefault((result.recipe.profile.name, name), len(oks))):
            return f"{way}: has {len(oks)} persons, other networks {known}"
        if not abs(oks.mean() - found.oks) < _ROUNDING:
            return f"{way}: oks is {found.oks:g}, that of its persons {oks.mean():g}"
        if "AP" not in found.metrics:
            return f"{way}: has no AP"
    return None


def append_result(root: Path, result: Result) -> None:
    """A line more, whole or not at all; several programs may add lines.

    Raises: HrnetppError if a figure is no number, as of a training that diverged: none could read the line.
    """
    path = results_path(root)
    line = msgspec.json.encode(result)
    decode_json(line, Result, f"figures of {result.run}", "its training diverged, and is not kept")
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(root / "runs" / ".study.lock"), whole_file(path) as part:
        before = path.read_bytes() if path.exists() else b""
        part.write_bytes(before + line + b"\n")


def open_sets(profile: Profile, root: Path) -> dict[str, StageData]:
    """What a profile's networks are measured on.

    Rendered once. Of the study its val as "dev" and other people as "test"; of any other profile its val as
    "test".
    """
    data = load_coco(profile, prepare_data(profile, root / "data"))
    if profile.name != STUDY.name:
        return {"test": data}
    paths = DataPaths(root / "data" / f"{profile.name}-test")
    counts = (1, 2, TEST_PERSONS)  # a dataset is whole: some to train on, too
    write_dataset(paths.root, lambda folder: DataPaths(folder).sets(), *counts, seed=_TEST_SEED, processes=2)
    return {"dev": data, "test": replace(load_coco(profile, paths), train=data.train)}


def measure_run(run: Run, root: Path, what: str) -> Result:
    """A finished run's figures on "dev", on "test", or on test by "views", with either flip shift by "table".

    Networks that E5 and E12 compare are decoded in every way on test, others in their own. Runs of stage 1,
    which predict other keypoints, have no figures. Raises: HrnetppError if it is not finished.
    """
    runs = root / "runs" / run.profile.name
    epochs, found = read_metrics(runs, run), {}
    if run.stage.dataset == "coco":
        name = "dev" if what == "dev" else "test"
        data = open_sets(run.profile, root)[name]
        if what in ("views", "table"):
            found[name] = _measure_views(run, runs, data, shifts=1 + (what == "table"))
        else:
            compared = name == "test" and (run.stage.name == STAGE3.name or run.stage.epochs == LONG)
            found[name] = _measure_ways(run, runs, data, compared)
    crops, seconds = epochs[-1]["step"] * run.profile.batch_size, sum(epoch["seconds"] for epoch in epochs)
    return Result(run.name, run, crops, seconds, provenance(), found)


def _is_mse(run: Run) -> bool:
    return run.stage.loss == "heatmap_mse"


def _measure_ways(run: Run, runs: Path, data: StageData, every: bool) -> dict[str, Measure]:
    model, card = open_network(checkpoint_path(runs, run.name), "torch")
    cards, sigma = decodings(card, run.profile.heatmap_sigma), run.profile.heatmap_sigma
    if not every:
        own = "quarter" if _is_mse(run) else "soft"
        cards = {way: cards[way] for way in (own, f"{own}_exact")}
    tables = labelled_persons(data.truth), data.val
    (true, loss), (found, _) = (predict_ways(model, cards, table, sigma) for table in tables)
    return {way: measure(true[way], found[way], data, loss) for way in cards}


def _measure_views(run: Run, runs: Path, data: StageData, shifts: int) -> dict[str, Measure]:
    """Regression with TTA, and its ensemble with the network that it starts from, plain and with TTA.

    `shifts`: 1 with the official flip shift, 2 with the exact one, too.
    """
    tables, ways = (labelled_persons(data.truth), data.val), {}
    pair = [open_network(checkpoint_path(runs, name), "torch") for name in (run.previous, run.name)]
    for suffix, coordinates in list({"": None, "_exact": EXACT_SHIFT}.items())[:shifts]:
        plain, tta = (
            [
                [
                    predict_boxes(
                        model, replace(card, coordinates=coordinates or card.coordinates), table, views=views
                    )
                    for model, card in pair
                ]
                for table in tables
            ]
            for views in (SINGLE_VIEW, TTA_VIEWS)
        )
        ways[f"tta{suffix}"] = [both[1] for both in tta]
        ways[f"ensemble{suffix}"], ways[f"ensemble_tta{suffix}"] = map(average, plain), map(average, tta)
    return {name: measure(*predictions, data) for name, predictions in ways.items()}


class _Speed(dict):
    """Crops/s of a process of one thread by (profile, precision, network), measured when first asked for."""

    def hours(self, runs: Iterable[Run]) -> float:
        """Of one process, but for reading the crops."""
        return sum(_crops(run) / self._of(run) for run in runs) / 3600

    def _of(self, run: Run) -> float:
        network = PAIR[run.architecture.skips or run.architecture.se].name
        key = run.profile.name, run.profile.precision, network
        if key not in self:
            self[key] = training_speed(run, run.profile.batch_size)
        return self[key]


def _crops(run: Run) -> int:
    """Crops that a run trains on."""
    profile, (coco, ai_challenger, _) = run.profile, run.profile.synthetic_persons
    synthetic = {"coco": coco, "ai_challenger": ai_challenger - profile.holdout_persons}
    return run.stage.epochs * (synthetic if profile.data == "synthetic" else _PHOTOGRAPHS)[run.stage.dataset]


@dataclass(frozen=True)
class Task:
    """A run to train, if its network is not there, and then to measure: on a set, by views, or not at all."""

    run: Run
    what: str | None


def _missing(experiment: Experiment, seeds: int, results: dict[str, Result]) -> list[Task]:
    """What is not measured yet, seed by seed."""
    missing = []
    for run in all_runs([experiment], seeds):
        found, more = results[run.name].sets if run.name in results else {}, experiment.measured
        known = {"test": "test" in found, "dev": "dev" in found}
        known |= {"views": "tta" in found.get("test", {}), "table": "tta_exact" in found.get("test", {})}
        if run.stage.dataset != "coco":  # no figures; trained for what starts from it
            wanted = [] if run.name in results else ["test"]
        elif more in ("views", "table"):
            wanted = ["test"] if _is_mse(run) else ["test", more]
        else:
            wanted = [more]
        missing += [Task(run, what) for what in wanted if not known[what]]
    return missing


def describe_study(root: Path, seeds: int = 0) -> Iterator[str]:
    """A line for each experiment: its question, what is done, what the rest costs on this machine."""
    results, speed, cores = read_results(root), _Speed(), processes_at_once([])
    for one in EXPERIMENTS.values():
        runs = all_runs([one], seeds)
        train = [run for run in runs if run.name not in results]
        left = len({task.run.name for task in _missing(one, seeds, results)})
        cost = f"{sum(map(_crops, train)):,} crops to train, about {speed.hours(train) / cores:.1f} hours"
        cost = f"{cost} in {cores} processes" if train else "all trained"
        yield f"{one.name}  {one.question}: {len(runs) - left} of {len(runs)} runs measured; {cost}"
    for key, rate in speed.items():
        yield f"{rate:.0f} crops/s of a process, without reading them: {', '.join(key)}"


def run_study(names: Iterable[str], root: Path, hours: float, seeds: int = 0) -> None:
    """Train and measure what experiments lack, all of one seed before the next, a run on each core.

    Nothing begins that would not end within the hours. Networks trained before are found, and measured; one
    that is lost is trained again where another starts from it. Whatever ends the program, its trainings save.

    Raises: HrnetppError that names the runs that failed, after all others.
    """
    results = read_results(root)
    asked = dict.fromkeys(task for name in names for task in _missing(EXPERIMENTS[name], seeds, results))
    asked = sorted(asked, key=lambda task: task.run.seed)  # wherever the hours end, whole pairs are there
    work = _Work(_with_starts(asked, root), root, time.monotonic() + 3600 * hours)
    for profile in {task.run.profile.name: task.run.profile for task in work.todo}.values():
        open_sets(profile, root)  # rendered before several want it
    # Daemons: what ends this thread ends the process, and so its trainings, which save their states.
    threads = [threading.Thread(target=work.do_all, daemon=True) for _ in range(processes_at_once([]))]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(_LOOK_EVERY_S)
    if work.todo:
        print(f"{hours:g} hours are used; {len(work.todo)} tasks are left", flush=True)
    if work.failed:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in work.failed.items())
        raise HrnetppError(f"{len(work.failed)} runs failed, the others went on: {reasons}")


def _with_starts(tasks: Iterable[Task], root: Path) -> list[Task]:
    """The tasks, and before each the training of networks that it starts from and that are not there."""
    seeds = 1 + max((task.run.seed for task in tasks), default=0)
    known, found = {run.name: run for run in all_runs(EXPERIMENTS.values(), seeds)}, {}
    for task in tasks:
        before = [task]
        while _needs_start(before[0], root) and not _is_trained(start := known[before[0].run.previous], root):
            before.insert(0, Task(start, None))
        named = {known_task.run for known_task in found}
        found |= dict.fromkeys(one for one in before if one.what or one.run not in named)
    return list(found)


def _is_trained(run: Run, root: Path, name: str = "") -> bool:
    """Whether the network of a run is there, or that of another by its name."""
    return checkpoint_path(root / "runs" / run.profile.name, name or run.name).is_file()


def _needs_start(task: Task, root: Path) -> bool:
    return bool(task.run.previous) and (task.what in ("views", "table") or not _is_trained(task.run, root))


@dataclass
class _Work:
    """What is to do, what the threads are at, and why runs failed."""

    todo: list[Task]
    root: Path
    ends_at: float  # of time.monotonic
    failed: dict[str, str] = field(default_factory=dict)
    at_work: set[Run] = field(default_factory=set)
    speed: _Speed = field(default_factory=_Speed)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def do_all(self) -> None:
        """A thread's work: one task after another."""
        torch.set_num_threads(1)
        while task := self._take():
            try:
                print(self._train_and_measure(task), flush=True)
            except HrnetppError as error:
                self._fail(task.run, str(error))
            except Exception as error:  # a thread's own end would be overlooked
                self._fail(task.run, repr(error))
            with self.changed:
                self.at_work.remove(task.run)
                self.changed.notify_all()

    def _take(self) -> Task | None:
        """The next task whose start is there, once there is one; None if the rest must be left."""
        with self.changed:
            while True:
                ready = [task for task in self.todo if self._can_begin(task)]
                if ready and self._ends_in_time(ready[0].run):
                    self.todo.remove(ready[0])
                    self.at_work.add(ready[0].run)
                    return ready[0]
                if ready or not self.at_work:
                    return None
                self.changed.wait()

    def _can_begin(self, task: Task) -> bool:
        run, waits = task.run, _needs_start(task, self.root)
        return run not in self.at_work and not (waits and not _is_trained(run, self.root, run.previous))

    def _ends_in_time(self, run: Run) -> bool:
        left = (self.ends_at - time.monotonic()) / 3600
        return left > (0 if _is_trained(run, self.root) else self.speed.hours([run]))

    def _train_and_measure(self, task: Task) -> str:
        run = task.run
        if not _is_trained(run, self.root):
            train_together([run], self.root, processes=1)
        if task.what is None:
            return f"{run.name}, seed {run.seed}: trained"
        append_result(self.root, measure_run(run, self.root, task.what))
        return f"{run.name}, seed {run.seed}: measured ({task.what})"

    def _fail(self, run: Run, reason: str) -> None:
        """Strike out what waits for a run that failed, too."""
        with self.changed:
            self.failed[run.name] = reason
            for task in list(self.todo):  # what starts from another comes after it
                if task.run.name in self.failed or task.run.previous in self.failed:
                    self.todo.remove(task)
                    self.failed.setdefault(task.run.name, f"not begun, it starts from {task.run.previous}")
