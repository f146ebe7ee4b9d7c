"""The study: trains and measures what the experiments ask for, and words what each claim is worth.

figures/study/results.jsonl, committed, has a line for every network measured: its recipe, cost, provenance,
and the OKS of each person, from which all intervals and verdicts are made again. It outlives the weights.
"""

import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np
import torch
from filelock import FileLock

from hrnetpp_lib.app.experiments import (
    CLAIMS,
    EXPERIMENTS,
    LONG,
    PAIR,
    RATES,
    TRIED_RATES,
    Experiment,
    all_runs,
    heatmap_run,
)
from hrnetpp_lib.app.plan import training_speed
from hrnetpp_lib.data.annotations import labelled_persons
from hrnetpp_lib.data.layout import DataPaths, StageData, load_coco, prepare_data
from hrnetpp_lib.data.synthetic import write_dataset
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.evaluate.infer import TTA_VIEWS, average, predict_boxes
from hrnetpp_lib.evaluate.measure import Measure, decodings, measure, predict_ways
from hrnetpp_lib.evaluate.statistics import judge, paired_interval, two_level_interval
from hrnetpp_lib.evaluate.table import provenance
from hrnetpp_lib.files import decode_json, read_bytes, whole_file, write_json
from hrnetpp_lib.model.weights import load_checkpoint
from hrnetpp_lib.recipe import STAGE3, Architecture, Profile, Run
from hrnetpp_lib.train.journal import read_metrics
from hrnetpp_lib.train.loop import checkpoint_path
from hrnetpp_lib.train.together import processes_at_once, train_together

TEST_PERSONS, _TEST_SEED = 4000, 1  # other people than those of training and dev, whose seed is 0
_LOOK_EVERY_S = 0.2
_PHOTOGRAPHS = {"coco": 4000, "ai_challenger": 4900}  # to train on, to tell the cost before they are there
FIGURES = {  # of a `Measure`, as they are compared
    "OKS": lambda m: 100 * m.oks,
    "AP": lambda m: 100 * m.metrics["AP"],
    "PCK 0.5": lambda m: 100 * m.pck[0],
    "PCK 4": lambda m: 100 * m.pck[1],
    "near error": lambda m: m.near_error_cells,
    "missed": lambda m: 100 * m.miss_share,
    "loss": lambda m: None if m.loss is None else 1e3 * m.loss,
}


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
    """Results by the name of the run; of a run measured twice, the figures of both lines.

    Raises: HrnetppError if a line is damaged.
    """
    path, found, remedy = results_path(root), {}, "restore it from version control"
    for number, line in enumerate(read_bytes(path, remedy).splitlines() if path.exists() else [], 1):
        result = decode_json(line, Result, f"{path}, line {number}", remedy)
        for name, ways in found[result.run].sets.items() if result.run in found else ():
            result.sets[name] = ways | result.sets.get(name, {})
        found[result.run] = result
    return found


def append_result(root: Path, result: Result) -> None:
    """A line more, whole or not at all; several programs may add lines."""
    path = results_path(root)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(root / "runs" / ".study.lock"), whole_file(path) as part:
        before = path.read_bytes() if path.exists() else b""
        part.write_bytes(before + msgspec.json.encode(result) + b"\n")


def open_sets(profile: Profile, root: Path) -> dict[str, StageData]:
    """The sets that a profile's networks are measured on, rendered once; photographs have test alone."""
    data = load_coco(profile, prepare_data(profile, root / "data"))
    if profile.data != "synthetic":
        return {"test": data}
    paths = DataPaths(root / "data" / f"{profile.name}-test")
    counts = (1, 2, TEST_PERSONS)  # a dataset is whole: some to train on, too
    write_dataset(paths.root, lambda folder: DataPaths(folder).sets(), *counts, seed=_TEST_SEED, processes=2)
    return {"dev": data, "test": replace(load_coco(profile, paths), train=data.train)}


def measure_run(run: Run, root: Path, what: str) -> Result:
    """A finished run's figures on "dev" or "test" in its own decoding, or those by "views".

    On test, networks that E5 and E6 compare are decoded in every way. Runs of stage 1, which predict other
    keypoints, have no figures. Raises: HrnetppError if it is not finished.
    """
    runs = root / "runs" / run.profile.name
    epochs, found = read_metrics(runs, run), {}
    if run.stage.dataset == "coco":
        name = "dev" if what == "dev" else "test"
        data = open_sets(run.profile, root)[name]
        if what == "views":
            found[name] = _measure_views(run, runs, data)
        else:
            compared = name == "test" and (run.stage.name == STAGE3.name or run.stage.epochs == LONG)
            found[name] = _measure_ways(run, runs, data, compared)
    crops, seconds = epochs[-1]["step"] * run.profile.batch_size, sum(epoch["seconds"] for epoch in epochs)
    return Result(run.name, run, crops, seconds, provenance(), found)


def _is_mse(run: Run) -> bool:
    return run.stage.loss == "heatmap_mse"


def _measure_ways(run: Run, runs: Path, data: StageData, every: bool) -> dict[str, Measure]:
    model, card = load_checkpoint(checkpoint_path(runs, run.name))
    cards, sigma = decodings(card, run.profile.heatmap_sigma), run.profile.heatmap_sigma
    if not every:
        own = "quarter" if _is_mse(run) else "soft"
        cards = {own: cards[own]}
    tables = labelled_persons(data.truth), data.val
    (true, loss), (found, _) = (predict_ways(model, cards, table, sigma) for table in tables)
    return {way: measure(true[way], found[way], data, loss) for way in cards}


def _measure_views(run: Run, runs: Path, data: StageData) -> dict[str, Measure]:
    """Regression with TTA, and its ensemble with the network that it starts from, plain and with TTA."""
    tables, poses = (labelled_persons(data.truth), data.val), {"plain": [], "tta": []}
    for name in (run.previous, run.name):
        model, card = load_checkpoint(checkpoint_path(runs, name))
        poses["plain"].append([predict_boxes(model, card, table) for table in tables])
        poses["tta"].append([predict_boxes(model, card, table, views=TTA_VIEWS) for table in tables])
    plain, tta = ([average(list(pair)) for pair in zip(*both, strict=True)] for both in poses.values())
    ways = {"tta": poses["tta"][1], "ensemble": plain, "ensemble_tta": tta}
    return {name: measure(*predictions, data) for name, predictions in ways.items()}


class _Speed(dict):
    """Crops/s of a process of one thread by (profile, network), measured when first asked for."""

    def hours(self, runs: Iterable[Run]) -> float:
        """Of one process, but for reading the crops."""
        return sum(_crops(run) / self._of(run) for run in runs) / 3600

    def _of(self, run: Run) -> float:
        key = run.profile.name, PAIR[run.architecture.skips or run.architecture.se].name
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
        found = results[run.name].sets if run.name in results else {}
        tests = ["test"] if experiment.measured == "views" else [experiment.measured]
        tests += ["views"] if experiment.measured == "views" and not _is_mse(run) else []
        for what in tests:
            known = "tta" in found.get("test", {}) if what == "views" else what in found
            if run.stage.dataset != "coco":  # trained for what starts from it
                known = run.name in results
            missing += [] if known else [Task(run, what)]
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
    for (profile, network), rate in speed.items():
        yield f"{rate:.0f} crops/s of a process, without reading them: {profile}, {network}"


def run_study(names: Iterable[str], root: Path, hours: float, seeds: int = 0) -> None:
    """Train and measure what experiments lack, a run on each core.

    Nothing begins that would not end within the hours. Networks trained before are found, and measured; one
    that is lost is trained again where another starts from it. Whatever ends the program, its trainings save.

    Raises: HrnetppError that names the runs that failed, after all others.
    """
    results = read_results(root)
    asked = dict.fromkeys(task for name in names for task in _missing(EXPERIMENTS[name], seeds, results))
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
    return bool(task.run.previous) and (task.what == "views" or not _is_trained(task.run, root))


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


def verdicts(results: dict[str, Result]) -> list[dict[str, object]]:
    """Every claim with its differences by seed, their intervals, and the verdict on OKS and on AP."""
    seeds, rows = sorted({result.recipe.seed for result in results.values()}), []
    for claim in CLAIMS:
        pairs = {seed: [_measured(results, *arm) for arm in claim.arms(seed)] for seed in seeds}
        pairs = {seed: pair for seed, pair in pairs.items() if None not in pair}
        row = {"experiment": claim.experiment, "claim": claim.text, "report": claim.report}
        row["seeds"] = list(pairs)
        for name, figure in FIGURES.items():
            both = [(figure(better), figure(worse)) for better, worse in pairs.values()]
            row[name] = {"differences": [b - w for b, w in both if None not in (b, w)]}
            if len(row[name]["differences"]) > 1:
                row[name]["mean"] = float(np.mean(row[name]["differences"]))
                row[name]["low"], row[name]["high"] = map(float, paired_interval(row[name]["differences"]))
        if len(pairs) > 1:
            persons = np.array([100 * (better.persons - worse.persons) for better, worse in pairs.values()])
            row["OKS"]["two_level"] = two_level_interval(persons)
        rows.append(row)
    for name, unit in (("OKS", "point of OKS"), ("AP", "AP")):
        for row, verdict in zip(rows, judge([row[name]["differences"] for row in rows], unit), strict=True):
            row[name] |= asdict(verdict)
    return rows


def _measured(results: dict[str, Result], run: Run, way: str) -> Measure | None:
    return results[run.name].sets.get("test", {}).get(way) if run.name in results else None


def in_markdown(rows: list[dict], results: dict[str, Result]) -> str:
    """The verdicts as a table, and what the rates were chosen by."""
    lines = [
        "Differences in points of mean OKS on true boxes, and of AP on detected ones; in brackets 95% over",
        "seeds, for OKS also over seeds and persons. The verdicts hold for all claims together.",
        "",
        "| | claim | report, AP | seeds | OKS | verdict | AP | verdict |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        report = "" if row["report"] is None else f"{row['report']:+.1f}"
        cells = [row["experiment"], row["claim"], report, str(len(row["seeds"]))]
        for name in ("OKS", "AP"):
            cells += [_in_brackets(row[name]), row[name]["words"]]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Mean OKS on the dev set, seed by seed, by the factor on the report's rates (E3):", ""]
    for one in PAIR:
        tried = "; ".join(f"{rate:g}: {_on_dev(one, rate, results)}" for rate in TRIED_RATES)
        lines.append(f"- {one.name}: {tried}; chosen: {RATES[one.name]:g}")
    return "\n".join(lines) + "\n"


def _in_brackets(figures: dict) -> str:
    if figures["mean"] is None:
        return ""
    intervals = [(figures["low"], figures["high"])]
    intervals += [figures["two_level"]] if "two_level" in figures else []
    return " ".join([f"{figures['mean']:+.2f}", *(f"[{low:+.2f}, {high:+.2f}]" for low, high in intervals)])


def _on_dev(architecture: Architecture, rate: float, results: dict[str, Result]) -> str:
    runs = [heatmap_run(architecture, seed, rate=rate) for seed in range(EXPERIMENTS["E3"].seeds)]
    found = [results[run.name].sets["dev"]["quarter"].oks for run in runs if run.name in results]
    return ", ".join(f"{100 * oks:.2f}" for oks in found) or "-"


def write_verdicts(root: Path) -> str:
    """Make verdicts.json and verdicts.md anew from the committed results; gives the table."""
    results, folder = read_results(root), results_path(root).parent
    rows = verdicts(results)
    write_json(folder / "verdicts.json", rows)
    with whole_file(folder / "verdicts.md") as part:
        part.write_text(table := in_markdown(rows, results))
    return table
