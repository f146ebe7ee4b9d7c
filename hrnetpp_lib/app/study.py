"""The study: trains and measures what the experiments ask for, and words what each claim is worth.

figures/study/results.jsonl, committed, has a line for every network measured: its recipe, cost, provenance,
and the OKS of each person, from which all intervals and verdicts are made again. It outlives the weights.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np
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


def measure_run(run: Run, root: Path, sets: dict[str, StageData], views: bool = False) -> Result:
    """Figures of a finished run in its own decoding, on test in all that E5 and E6 compare; or by views.

    Runs of stage 1, which predict other keypoints, have none. Raises: HrnetppError if it is not finished.
    """
    runs, found = root / "runs" / run.profile.name, {}
    epochs = read_metrics(runs, run)
    if views:
        found["test"] = _measure_views(run, runs, sets["test"])
    elif run.stage.dataset == "coco":
        model, card = load_checkpoint(checkpoint_path(runs, run.name))
        cards = decodings(card, run.profile.heatmap_sigma)
        own = {name: c for name, c in cards.items() if name == ("quarter" if _is_mse(run) else "soft")}
        for name, data in sets.items():
            compared = name == "test" and (run.stage.name == STAGE3.name or run.stage.epochs == LONG)
            found[name] = _measure_ways(model, cards if compared else own, data, run.profile.heatmap_sigma)
    crops, seconds = epochs[-1]["step"] * run.profile.batch_size, sum(epoch["seconds"] for epoch in epochs)
    return Result(run.name, run, crops, seconds, provenance(), found)


def _is_mse(run: Run) -> bool:
    return run.stage.loss == "heatmap_mse"


def _measure_ways(model, cards: dict, data: StageData, sigma: float) -> dict[str, Measure]:
    tables = labelled_persons(data.truth), data.val
    (true, loss), (found, _) = (predict_ways(model, cards, table, sigma) for table in tables)
    return {name: measure(true[name], found[name], data, loss) for name in cards}


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


def _missing(experiment: Experiment, seeds: int, results: dict[str, Result]) -> list[tuple[Run, bool]]:
    """Runs that are not measured yet, in one pass or (True) by the experiment's views."""
    missing = []
    for run in all_runs([experiment], seeds):
        on_test = results[run.name].sets.get("test", {}) if run.name in results else {}
        missing += [] if run.name in results else [(run, False)]
        missing += [(run, True)] if experiment.views and not _is_mse(run) and "tta" not in on_test else []
    return missing


def describe_study(root: Path, seeds: int = 0) -> Iterator[str]:
    """A line for each experiment: its question, what is done, what the rest costs on this machine."""
    results, speed, cores = read_results(root), _Speed(), processes_at_once([])
    for one in EXPERIMENTS.values():
        runs, train = all_runs([one], seeds), [r for r, views in _missing(one, seeds, results) if not views]
        hours = f"about {speed.hours(train) / cores:.1f} hours in {cores} processes"
        left = f"{sum(map(_crops, train)):,} crops to train, {hours}" if train else "all trained"
        yield f"{one.name}  {one.question}: {len(runs) - len(train)} of {len(runs)} runs measured; {left}"
    for (profile, network), rate in speed.items():
        yield f"{rate:.0f} crops/s of a process, without reading them: {profile}, {network}"


def run_study(names: Iterable[str], root: Path, hours: float, seeds: int = 0) -> None:
    """Train what experiments lack, as many runs side by side as there are cores, and measure each at once.

    Nothing begins that would not end within the hours. Networks trained before are found, and measured.

    Raises: HrnetppError that names the runs that failed, after all others.
    """
    results, speed, begun = read_results(root), _Speed(), time.monotonic()
    todo = list(dict.fromkeys(task for name in names for task in _missing(EXPERIMENTS[name], seeds, results)))
    sets, failed, cores = {}, {}, processes_at_once([])
    while todo:
        group, todo = todo[:cores], todo[cores:]
        train = _untrained([run for run, _ in group if run.previous not in failed], root)
        left = hours - (time.monotonic() - begun) / 3600
        if left <= 0 or speed.hours(train) / min(cores, len(train) or 1) > left:
            print(f"{hours:g} hours are used; {len(group) + len(todo)} tasks are left", flush=True)
            break
        try:
            train_together(train, root)
        except HrnetppError as error:  # it names them; the others are trained, and are measured
            print(f"error: {error}", flush=True)
        for run, views in group:
            try:
                sets[run.profile.name] = sets.get(run.profile.name) or open_sets(run.profile, root)
                append_result(root, measure_run(run, root, sets[run.profile.name], views))
                print(f"{run.name}, seed {run.seed}: measured", flush=True)
            except HrnetppError as error:
                failed[run.name] = str(error)
    if failed:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        raise HrnetppError(f"{len(failed)} runs failed, the others went on: {reasons}")


def _untrained(runs: list[Run], root: Path) -> list[Run]:
    """Those whose networks are not there, after what they start from where that is not there either."""
    missing = [r for r in runs if not checkpoint_path(root / "runs" / r.profile.name, r.name).is_file()]
    if not missing:
        return []
    known = {run.name: run for run in all_runs(EXPERIMENTS.values(), 1 + max(run.seed for run in missing))}
    starts = _untrained([known[run.previous] for run in missing if run.previous], root)
    return list({run.name: run for run in (*starts, *missing)}.values())


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
