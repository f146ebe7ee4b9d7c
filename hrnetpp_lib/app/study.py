"""The study: what each of the report's claims is worth, by trainings that differ in their seed.

figures/study/results.jsonl, committed, has a line for every network measured: its recipe, cost, provenance,
and the OKS of each person, from which all intervals and verdicts are made again. It outlives the weights.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np
import torch
from filelock import FileLock
from torch.utils.benchmark import Timer

from hrnetpp_lib.app.plan import random_batch
from hrnetpp_lib.data.annotations import labelled_persons
from hrnetpp_lib.data.layout import DataPaths, StageData, load_coco, prepare_data
from hrnetpp_lib.data.synthetic import write_dataset
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.evaluate.infer import TTA_VIEWS, Predictions, average, predict_boxes
from hrnetpp_lib.evaluate.measure import Measure, decodings, measure, predict_ways
from hrnetpp_lib.evaluate.statistics import judge, paired_interval, two_level_interval
from hrnetpp_lib.evaluate.table import provenance
from hrnetpp_lib.files import decode_json, read_bytes, whole_file, write_json
from hrnetpp_lib.model.weights import load_checkpoint
from hrnetpp_lib.pose.keypoints import COCO17
from hrnetpp_lib.recipe import (
    HRNET,
    HRNETPP,
    LSPET_CPU,
    STAGE1,
    STAGE2,
    STAGE3,
    SYNTHETIC_BOXES,
    Architecture,
    NetworkSize,
    Profile,
    Run,
    TrainStage,
    get_architecture,
    resolve,
)
from hrnetpp_lib.train.journal import read_metrics
from hrnetpp_lib.train.loop import TrainStep, build_model, checkpoint_path
from hrnetpp_lib.train.together import processes_at_once, train_together

# CHOICE: as deep as the report's in proportion: the four changes add or take the same shares of it.
_SIZE = NetworkSize(16, blocks_per_branch=4, modules=(1, 2, 2), stem_channels=32, layer1_blocks=1)
# fmt: off
STUDY = Profile(
    name="study", data="synthetic", synthetic_persons=(12000, 8000, 1000), holdout_persons=500,
    boxes=SYNTHETIC_BOXES, network=_SIZE, input_hw=(128, 96), heatmap_sigma=1.5, batch_size=16,
    epochs=(4, 3, 2), lr_scales=(2.0, 2.0, 20.0), ablation_epochs=3, eval_every=1000, precision="bf16",
)
PHOTOGRAPHS = replace(
    LSPET_CPU, name="study_photographs", network=replace(_SIZE, base_channels=32), batch_size=16,
    epochs=(4, 9, 4), lr_scales=(2.0, 2.0, 20.0), eval_every=1000, precision="bf16",
)
# fmt: on
TEST_PERSONS, _TEST_SEED, _LONG = 4000, 1, 5  # people, and epochs of E1's trainings
# What stages 1 and 2 multiply the report's learning rates by, for either network.
RATES = {"hrnet": 2.0, "hrnetpp": 2.0}
_PAIR = (HRNET, HRNETPP)
_LEFT_OUT = tuple(get_architecture(f"hrnetpp-{word}") for word in ("se", "avgpool", "skips", "head"))
_CONV3X3 = get_architecture("hrnetpp+conv3x3")
# CHOICE: in a first, small training HRNet++ left stage 1 with 1.49 times plain HRNet's weights.
_SHRUNK = replace(STAGE2, shrink_start=1.5)
_CONTROL = replace(STAGE3, loss="heatmap_mse")


@dataclass(frozen=True)
class Experiment:
    """A question, and the trainings that answer it, seed by seed."""

    name: str
    question: str
    seeds: int  # so many at least
    runs: Callable[[int], tuple[Run, ...]]  # of a seed, in the order of training
    views: bool = False  # whether regression is also measured with TTA and the ensemble


def _run(
    architecture: Architecture,
    seed: int,
    stage: TrainStage = STAGE2,
    previous: Run | None = None,
    profile: Profile | None = None,
    **settings: float,
) -> Run:
    """A run of the study at the network's rate, or at `rate`; `epochs` instead of the profile's."""
    rate = settings.pop("rate", RATES["hrnetpp" if architecture.skips or architecture.se else "hrnet"])
    profile = profile or STUDY
    budget = replace(profile, lr_scales=(rate, rate, profile.lr_scales[2]))
    return resolve(stage, budget, architecture, seed, previous, **settings)


def _long(architecture: Architecture, seed: int) -> Run:
    return _run(architecture, seed, epochs=_LONG)


def _handed_over(architecture: Architecture, seed: int) -> tuple[Run, ...]:
    """From scratch, stage 1, and stage 2 from it, as it is and shrunk."""
    first = _run(architecture, seed, STAGE1)
    return (
        _run(architecture, seed),
        first,
        *(_run(architecture, seed, stage, first) for stage in (STAGE2, _SHRUNK)),
    )


def _refined(seed: int) -> tuple[Run, ...]:
    """Stage 3 and its control from HRNet++'s long run."""
    start = _long(HRNETPP, seed)
    return tuple(_run(HRNETPP, seed, stage, start) for stage in (STAGE3, _CONTROL))


def _on_photographs(seed: int) -> tuple[Run, ...]:
    scratch, first = (
        [_run(a, seed, stage, profile=PHOTOGRAPHS) for a in _PAIR] for stage in (STAGE2, STAGE1)
    )
    second = [_run(one.architecture, seed, STAGE2, one, PHOTOGRAPHS) for one in first]
    third = [_run(HRNETPP, seed, stage, second[1], PHOTOGRAPHS) for stage in (STAGE3, _CONTROL)]
    return (*scratch, *first, *second, *third)


def _side_by_side(*arms: tuple[Run, ...]) -> tuple[Run, ...]:
    return tuple(run for step in zip(*arms, strict=True) for run in step)


# fmt: off
EXPERIMENTS = {one.name: one for one in (
    Experiment("E3", "is one of the networks mis-tuned? (chosen on the dev set)", 2, lambda seed: tuple(
        _run(a, seed, rate=rate) for rate in (1.0, 2.0, 4.0) for a in _PAIR)),
    Experiment("E1", "heatmaps: HRNet++ over HRNet", 8, lambda seed: tuple(_long(a, seed) for a in _PAIR)),
    Experiment("E5", "regression: soft-argmax with L1, and its control", 8, lambda seed: (
        _long(HRNETPP, seed), *_refined(seed))),
    Experiment("E6", "test-time augmentation, ensemble, flip shift", 8, lambda seed: (
        *(_long(a, seed) for a in _PAIR), *_refined(seed)), views=True),
    Experiment("E4", "which of the four changes?", 4, lambda seed: tuple(
        _run(a, seed) for a in (*_PAIR, *_LEFT_OUT, _CONV3X3))),
    Experiment("E2", "the handover from stage 1", 4, lambda seed: _side_by_side(
        *(_handed_over(a, seed) for a in _PAIR))),
    Experiment("E7", "photographs, from scratch and by stages", 2, _on_photographs),
)}
# fmt: on


def all_runs(experiments: Iterable[Experiment], seeds: int = 0) -> tuple[Run, ...]:
    """The trainings of some experiments, each once: an experiment after the other, seed by seed.

    With `seeds`, an experiment has that many at least; what a run starts from comes before it.
    """
    listed = (r for one in experiments for seed in range(max(seeds, one.seeds)) for r in one.runs(seed))
    return tuple({run.name: run for run in listed}.values())


# ------------------------------------------------------------------------------------------- results


@dataclass(frozen=True)
class Result:
    """A finished run: its cost, and its figures by set (dev for choices, test for figures) and by decoding."""

    run: str
    recipe: Run
    crops: int
    train_seconds: float
    provenance: dict[str, object]
    sets: dict[str, dict[str, Measure]] = field(default_factory=dict)


def results_path(root: Path) -> Path:
    return root / "figures" / "study" / "results.jsonl"


def read_results(root: Path) -> dict[str, Result]:
    """The committed results by the name of the run; of a run measured twice, the figures of both lines.

    Raises: HrnetppError if a line is damaged.
    """
    path, found = results_path(root), {}
    remedy = "restore it from version control"
    for number, line in enumerate(read_bytes(path, remedy).splitlines() if path.exists() else [], 1):
        result = decode_json(line, Result, f"{path}, line {number}", remedy)
        for name, ways in found[result.run].sets.items() if result.run in found else ():
            result.sets[name] = ways | result.sets.get(name, {})
        found[result.run] = result
    return found


def _append(root: Path, result: Result) -> None:
    """A line more, whole or not at all; several programs may add lines."""
    path = results_path(root)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(root / "runs" / ".study.lock"):
        lines = path.read_bytes() if path.exists() else b""
        with whole_file(path) as part:
            part.write_bytes(lines + msgspec.json.encode(result) + b"\n")


# ----------------------------------------------------------------------------------------- measuring


def open_sets(profile: Profile, root: Path) -> dict[str, StageData]:
    """The sets that a profile's networks are measured on, rendered once; photographs have test alone."""
    data = load_coco(profile, prepare_data(profile, root / "data"))
    if profile.data != "synthetic":
        return {"test": data}
    folder = root / "data" / f"{profile.name}-test"
    places = lambda below: DataPaths(below).sets()  # noqa: E731
    write_dataset(folder, places, 1, 2, TEST_PERSONS, seed=_TEST_SEED, processes=2)
    return {"dev": data, "test": replace(load_coco(profile, DataPaths(folder)), train=data.train)}


def measure_run(run: Run, root: Path, sets: dict[str, StageData], views: bool = False) -> Result:
    """Figures of a finished run in its own decoding, on test in all that E5 and E6 compare; or by views."""
    runs, found = root / "runs" / run.profile.name, {}
    if run.stage.dataset == "coco" and not views:
        model, card = load_checkpoint(checkpoint_path(runs, run.name))
        cards = decodings(card, run.profile.heatmap_sigma)
        own = {_own(run): cards[_own(run)]}
        compared = run.stage.name == STAGE3.name or run.stage.epochs == _LONG
        for name, data in sets.items():
            ways = cards if name == "test" and compared else own
            found[name] = _measure_ways(model, ways, data, run.profile.heatmap_sigma)
    elif views:
        found["test"] = _measure_views(run, runs, sets["test"])
    epochs = read_metrics(runs, run)
    crops = epochs[-1]["step"] * run.profile.batch_size
    return Result(run.name, run, crops, sum(epoch["seconds"] for epoch in epochs), provenance(), found)


def _own(run: Run) -> str:
    """The decoding that a run trains for."""
    return "soft" if run.stage.decoder == "soft_argmax" else "quarter"


def _tables(data: StageData) -> tuple:
    return labelled_persons(data.truth), data.val


def _measure_ways(model, cards: dict, data: StageData, sigma: float) -> dict[str, Measure]:
    (true, loss), (found, _) = (predict_ways(model, cards, table, sigma) for table in _tables(data))
    return {name: measure(true[name], found[name], data, loss) for name in cards}


def _measure_views(run: Run, runs: Path, data: StageData) -> dict[str, Measure]:
    """Regression with TTA, and its ensemble with the network that it starts from, plain and with TTA."""
    poses: dict[str, list[list[Predictions]]] = {}
    for name in (run.previous, run.name):
        model, card = load_checkpoint(checkpoint_path(runs, name))
        for views in ("plain", "tta"):
            options = {"views": TTA_VIEWS} if views == "tta" else {}
            poses.setdefault(views, []).append(
                [predict_boxes(model, card, t, **options) for t in _tables(data)]
            )
    both = {name: [average(list(pair)) for pair in zip(*poses[name], strict=True)] for name in poses}
    ways = {"tta": poses["tta"][1], "ensemble": both["plain"], "ensemble_tta": both["tta"]}
    return {name: measure(*predictions, data) for name, predictions in ways.items()}


# ------------------------------------------------------------------------------------------- running

# Training persons of a set, which tell a run's cost before its data are there; Leeds Sports Pose Extended's
# are its images.
_PERSONS = {
    "synthetic": {"coco": 12000, "ai_challenger": 7500},
    "lspet": {"coco": 4000, "ai_challenger": 4900},
}


def _cost(run: Run) -> int:
    """Crops that a run trains on."""
    return run.stage.epochs * _PERSONS[run.profile.data][run.stage.dataset]


class _Speed(dict):
    """Crops/s of one process of one thread by (profile, network), measured when they are first asked for."""

    def of(self, run: Run) -> float:
        key = run.profile.name, run.architecture.skips or run.architecture.se
        if key not in self:
            model = build_model(run, len(COCO17)).to(memory_format=torch.channels_last)
            step, batch = TrainStep(model.train(), run), random_batch(run.profile, run.profile.batch_size)

            def make_step() -> None:
                with torch.autocast("cpu", torch.bfloat16, enabled=run.profile.precision == "bf16"):
                    loss = step(batch)
                loss.backward()

            timer = Timer("make_step()", globals={"make_step": make_step}, num_threads=1)
            self[key] = run.profile.batch_size / timer.blocked_autorange(min_run_time=2).median
        return self[key]

    def hours(self, runs: Iterable[Run]) -> float:
        """Of one process; the crops are read besides."""
        return sum(_cost(run) / self.of(run) for run in runs) / 3600


def _missing(experiment: Experiment, seeds: int, results: dict[str, Result]) -> list[tuple[Run, bool]]:
    """Runs that are not measured yet, in one pass or, where it is True, by the experiment's views."""
    missing = []
    for run in all_runs([experiment], seeds):
        sets = results[run.name].sets if run.name in results else {}
        missing += [] if run.name in results else [(run, False)]
        if (
            experiment.views
            and run.stage == _run(HRNETPP, 0, STAGE3).stage
            and "tta" not in sets.get("test", {})
        ):
            missing.append((run, True))
    return missing


def describe_study(root: Path, seeds: int = 0) -> Iterator[str]:
    """A line for each experiment: its question, what is done, what the rest costs on this machine."""
    results, speed, cores = read_results(root), _Speed(), processes_at_once([])
    for one in EXPERIMENTS.values():
        runs, missing = all_runs([one], seeds), _missing(one, seeds, results)
        train = [run for run, views in missing if not views]
        crops, hours = sum(map(_cost, train)), speed.hours(train) / cores
        done = f"{len(runs) - len(train)} of {len(runs)} runs measured"
        cost = (
            f"{crops:,} crops to train, about {hours:.1f} hours in {cores} processes"
            if train
            else "all trained"
        )
        yield f"{one.name}  {one.question}: {done}; {cost}"
    rates = ", ".join(f"{profile} {rate:.0f}" for (profile, _), rate in speed.items())
    yield f"crops/s of a process, without reading them, {_PAIR[0].name} and {_PAIR[1].name}: {rates or 'not measured'}"


def run_study(names: Iterable[str], root: Path, hours: float, seeds: int = 0) -> None:
    """Train what some experiments lack, as many runs side by side as there are cores; measure each at once.

    Nothing begins that would not end within the hours. Networks trained before are found, and measured.

    Raises: HrnetppError that names the runs that failed, after all others.
    """
    results, speed, begun = read_results(root), _Speed(), time.monotonic()
    todo = list(dict.fromkeys(task for name in names for task in _missing(EXPERIMENTS[name], seeds, results)))
    sets, failed, cores = {}, {}, processes_at_once([])
    while todo:
        group, todo = todo[:cores], todo[cores:]
        group = [task for task in group if task[0].previous not in failed]
        train = _untrained([run for run, _ in group], root)
        left = hours - (time.monotonic() - begun) / 3600
        if left <= 0 or (train and max(speed.hours([run]) for run in train) > left):
            print(f"{hours:g} hours are used, {len(group) + len(todo)} runs are left", flush=True)
            break
        try:
            train_together(train, root)
        except HrnetppError as error:  # it names them; what is trained can be measured
            print(f"error: {error}", flush=True)
        for run, views in group:
            try:
                if run.profile.name not in sets:
                    sets[run.profile.name] = open_sets(run.profile, root)
                _append(root, measure_run(run, root, sets[run.profile.name], views))
                print(f"{run.name}, seed {run.seed}: measured", flush=True)
            except HrnetppError as error:
                failed[run.name] = str(error)
    if failed:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        raise HrnetppError(f"{len(failed)} runs failed, the others went on: {reasons}")


def _untrained(runs: list[Run], root: Path) -> list[Run]:
    """Those whose networks are not there, and what they start from, if that is not there either."""
    known = {
        run.name: run
        for run in all_runs(EXPERIMENTS.values(), 1 + max((run.seed for run in runs), default=0))
    }
    chain = [known[run.previous] for run in runs if run.previous]
    starts = _untrained(chain, root) if chain else []
    missing = [r for r in runs if not checkpoint_path(root / "runs" / r.profile.name, r.name).is_file()]
    missing = [run for run in missing if run not in starts]
    return [*(starts if any(run.previous for run in missing) else []), *missing]


# ------------------------------------------------------------------------------------------ verdicts

Arm = tuple[Run, str]  # and the decoding


@dataclass(frozen=True)
class Claim:
    """A comparison: for each seed, two networks (or two decodings of one)."""

    experiment: str
    text: str  # better - worse, if the claim is right
    report: float | None  # what the report says, points of AP
    arms: Callable[[int], tuple[Arm, Arm]]


def _e2(architecture: Architecture, better: int, worse: int) -> Callable[[int], tuple[Arm, Arm]]:
    return lambda seed: tuple((_handed_over(architecture, seed)[i], "quarter") for i in (better, worse))


def _nets(better: Architecture, worse: Architecture, make=_run) -> Callable[[int], tuple[Arm, Arm]]:
    return lambda seed: tuple((make(architecture, seed), "quarter") for architecture in (better, worse))


def _ways(better: str, worse: str, control: bool = False) -> Callable[[int], tuple[Arm, Arm]]:
    return lambda seed: tuple((_refined(seed)[control], way) for way in (better, worse))


# fmt: off
CLAIMS = (
    Claim("E1", "HRNet++ - HRNet, heatmaps", 0.2, _nets(HRNETPP, HRNET, _long)),
    Claim("E4", "HRNet++ - HRNet, three epochs", 0.2, _nets(HRNETPP, HRNET)),
    *(Claim("E4", f"HRNet++ - the same without {one.name.split('-')[1]}", None, _nets(HRNETPP, one))
      for one in _LEFT_OUT),
    Claim("E4", "HRNet++, 1x1 convs after pooling - 3x3", None, _nets(HRNETPP, _CONV3X3)),
    *(Claim("E2", f"{one.name}: from stage 1 - from scratch", None, _e2(one, 2, 0)) for one in _PAIR),
    *(Claim("E2", f"{one.name}: from stage 1, shrunk - as it is", None, _e2(one, 3, 2)) for one in _PAIR),
    *(Claim("E2", f"HRNet++ - HRNet, from stage 1{how}", 0.2, lambda seed, i=i: tuple(
        (_handed_over(one, seed)[i], "quarter") for one in (HRNETPP, HRNET)))
      for i, how in ((2, ""), (3, ", both shrunk"))),
    Claim("E5", "stage 3: L1 - MSE of equal rate and steps", 0.2, lambda seed: (
        (_refined(seed)[0], "soft"), (_refined(seed)[1], "quarter"))),
    Claim("E5", "stage 3: L1 - the heatmap network before it", 0.2, lambda seed: (
        (_refined(seed)[0], "soft"), (_long(HRNETPP, seed), "quarter"))),
    Claim("E5", "L1 network: soft-argmax - quarter offset", None, _ways("soft", "quarter")),
    Claim("E5", "MSE network: soft-argmax - quarter offset", None, _ways("soft", "quarter", control=True)),
    Claim("E5", "L1 network: alpha 60 - alpha scaled", None, _ways("soft", "soft_scaled")),
    Claim("E6", "regression: TTA - a single view", 0.2, _ways("tta", "soft")),
    Claim("E6", "ensemble - regression", 0.0, _ways("ensemble", "soft")),
    Claim("E6", "ensemble + TTA - regression + TTA", 0.1, _ways("ensemble_tta", "tta")),
    Claim("E6", "regression: exact - official flip shift", None, _ways("soft_exact", "soft")),
    Claim("E6", "heatmaps: exact - official flip shift", None, lambda seed: (
        (_long(HRNETPP, seed), "quarter_exact"), (_long(HRNETPP, seed), "quarter"))),
)
FIGURES = {  # of a Measure, as they are compared
    "OKS": lambda m: 100 * m.oks, "AP": lambda m: 100 * m.metrics["AP"],
    "PCK 0.5": lambda m: 100 * m.pck[0], "PCK 4": lambda m: 100 * m.pck[1],
    "near error": lambda m: m.near_error_cells, "missed": lambda m: 100 * m.miss_share,
    "loss": lambda m: m.loss and 1e3 * m.loss,
}
# fmt: on


def verdicts(results: dict[str, Result]) -> list[dict[str, object]]:
    """Every claim with its differences by seed, their intervals, and the verdict on OKS and on AP."""
    seeds, rows, judged = sorted({result.recipe.seed for result in results.values()}), [], {}
    for claim in CLAIMS:
        pairs = {seed: [_figures(results, *arm) for arm in claim.arms(seed)] for seed in seeds}
        pairs = {seed: pair for seed, pair in pairs.items() if all(pair)}
        row = {
            "experiment": claim.experiment,
            "claim": claim.text,
            "report": claim.report,
            "seeds": list(pairs),
        }
        for name, figure in FIGURES.items():
            both = [(figure(better), figure(worse)) for better, worse in pairs.values()]
            differences = [b - w for b, w in both if None not in (b, w)]
            row[name] = {"differences": differences}
            if len(differences) > 1:
                low, high = paired_interval(differences)
                row[name] |= {"mean": float(np.mean(differences)), "low": float(low), "high": float(high)}
        if len(pairs) > 1:
            persons = np.array([100 * (better.persons - worse.persons) for better, worse in pairs.values()])
            row["OKS"]["two_level"] = two_level_interval(persons)
        rows.append(row)
    for name, unit in (("OKS", "point of OKS"), ("AP", "AP")):
        judged = judge([row[name]["differences"] for row in rows], unit)
        for row, verdict in zip(rows, judged, strict=True):
            row[name] |= asdict(verdict)
    return rows


def _figures(results: dict[str, Result], run: Run, way: str) -> Measure | None:
    return results[run.name].sets.get("test", {}).get(way) if run.name in results else None


def in_markdown(rows: list[dict], results: dict[str, Result]) -> str:
    """The verdicts as a table, and what chose the rates on the dev set."""
    lines = [
        "Points of mean OKS on true boxes and of AP on detected ones; in brackets 95% over seeds, then over",
        "seeds and persons. The verdicts hold for all claims together.",
        "",
        "| | claim | report, AP | seeds | OKS | verdict | AP | verdict |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        report = "" if row["report"] is None else f"{row['report']:+.1f}"
        cells = [row["experiment"], row["claim"], report, str(len(row["seeds"]))]
        for name in ("OKS", "AP"):
            cells += [_interval(row[name]), row[name]["words"]]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Mean OKS on the dev set by factor on the report's rates (E3):", ""]
    for architecture in _PAIR:
        found = [f"{rate:g}: {_dev(architecture, rate, results)}" for rate in (1.0, 2.0, 4.0)]
        lines.append(f"- {architecture.name}: {'; '.join(found)}; chosen: {RATES[architecture.name]:g}")
    return "\n".join(lines) + "\n"


def _interval(figures: dict) -> str:
    if figures["mean"] is None:
        return ""
    brackets = [
        (figures["low"], figures["high"]),
        *([figures["two_level"]] if "two_level" in figures else []),
    ]
    return f"{figures['mean']:+.2f} " + " ".join(f"[{low:+.2f}, {high:+.2f}]" for low, high in brackets)


def _dev(architecture: Architecture, rate: float, results: dict[str, Result]) -> str:
    runs = [_run(architecture, seed, rate=rate) for seed in range(EXPERIMENTS["E3"].seeds)]
    found = [results[r.name].sets["dev"]["quarter"].oks for r in runs if r.name in results]
    return ", ".join(f"{100 * oks:.2f}" for oks in found) or "-"


def write_verdicts(root: Path) -> str:
    """Make verdicts.json and verdicts.md anew from the committed results; the table."""
    results, folder = read_results(root), results_path(root).parent
    rows = verdicts(results)
    table = in_markdown(rows, results)
    write_json(folder / "verdicts.json", rows)
    with whole_file(folder / "verdicts.md") as part:
        part.write_text(table)
    return table
