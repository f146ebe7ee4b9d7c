"""The report's Table 1 beside ours: its rows and claims, results.json, and where the numbers come from."""

import contextlib
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from hrnetpp_lib.data.layout import StageData
from hrnetpp_lib.evaluate.infer import Predictions, average
from hrnetpp_lib.evaluate.metrics import COCO_METRICS
from hrnetpp_lib.evaluate.score import resample, score
from hrnetpp_lib.evaluate.statistics import Verdict, judge, paired_interval
from hrnetpp_lib.files import whole_file, write_json
from hrnetpp_lib.model import published
from hrnetpp_lib.model.weights import ModelCard
from hrnetpp_lib.recipe import get_profile

METRICS = COCO_METRICS[:6]

# The report's Table 1: COCO val2017, 384x288, boxes of person AP 59.6, in percent. Its first row is called
# "Original HRNet-W48" there, which ours is not.
PAPER_TABLE_1 = {
    "HRNet": (76.3, 90.8, 82.9, 72.3, 83.4, 81.2),
    "HRNet++ (heatmap)": (76.5, 90.9, 83.0, 72.7, 83.5, 81.4),
    "HRNet++ (regression)": (76.7, 90.9, 82.9, 72.8, 83.8, 81.5),
    "HRNet++ (regression) + TTA": (76.9, 90.6, 82.8, 73.2, 83.8, 81.7),
    "ensemble": (76.7, 90.9, 83.0, 72.8, 83.8, 81.5),
    "ensemble + TTA": (77.0, 90.7, 83.0, 73.4, 83.8, 81.8),
}
# The networks that each row averages over, and whether each of them looks at the five views.
PARTS = {
    "HRNet": (("hrnet", False),),
    "HRNet++ (heatmap)": (("heatmap", False),),
    "HRNet++ (regression)": (("regression", False),),
    "HRNet++ (regression) + TTA": (("regression", True),),
    "ensemble": (("heatmap", False), ("regression", False)),
    "ensemble + TTA": (("heatmap", True), ("regression", True)),
}
# A row after the first, where the file of others is at hand; its network takes the name "published".
PUBLISHED = "published HRNet-W48"
_PUBLISHED_FIGURES = tuple(published.FILES["pose_hrnet_w48_384x288.pth"].figures[name] for name in METRICS)
# The report's steps, each from a row of its table to the one that improves on it.
_STEPS = ((0, 1), (1, 2), (2, 3), (2, 4), (3, 5))


@dataclass(frozen=True)
class Training:
    """One training of all networks of the table.

    Attributes:
        seed: Two trainings of a seed differ in rounding alone, and are one when steps are judged.
        aps: Key of `PAPER_TABLE_1` -> AP, 0..1, with the official and with the exact flip shift.
    """

    seed: int
    aps: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class TableRow:
    """One measured row of Table 1.

    Attributes:
        method: A key of `PAPER_TABLE_1`, or `PUBLISHED`.
        metrics: The ten COCO metrics, 0..1.
        boxes: Where the boxes come from.
        flip: Whether heatmaps are averaged with the mirrored crop's.
        tta: Whether positions are averaged over the five views.
        interval: 95% of AP over samples of the validation images, 0..1: of these networks, not of others.
        exact_shift: AP of the same networks with the exact flip shift, 0..1.
        trainings: The row's AP, 0..1, in each training of the recipe that is known, with either shift.
        difference: In points, the mean over their seeds of AP minus the first row's of the same training, and
            its 95% interval; None in the first row, and of fewer than two seeds.
        runs: Run name -> SHA-256 of its checkpoint.
        seed: Of the runs; None of others' networks.
    """

    method: str
    metrics: dict[str, float]
    boxes: str
    flip: bool
    tta: bool
    interval: tuple[float, float]
    exact_shift: float
    trainings: tuple[tuple[float, float], ...]
    difference: tuple[float, float, float] | None
    runs: dict[str, str]
    seed: int | None


@dataclass(frozen=True)
class Claim:
    """A step of the report's from one row of Table 1 to a better one, in points of AP (percent).

    Attributes:
        paper: The report's difference.
        here: The difference of one training's networks.
        differences: Those of all trainings that are known, one a seed.
        verdict: What these say.
    """

    better: str
    worse: str
    paper: float
    here: float
    differences: tuple[float, ...]
    verdict: Verdict

    def __str__(self) -> str:
        of = self.verdict
        known = ""
        if of.mean is not None:
            known = f"over {of.pairs} seeds {of.mean:+.1f} [{of.low:+.1f}, {of.high:+.1f}]: "
        text = f"report {self.paper:+.1f}, these networks {points(self.here)}; {known}{of.words}"
        return f"{self.better} - {self.worse}: {text}"


def assemble(
    predictions: Mapping[tuple[str, bool, bool], Predictions],
    hashes: Mapping[str, dict[str, str]],
    data: StageData,
    seed: int,
    trainings: Sequence[Training] = (),
) -> tuple[list[TableRow], list[Claim]]:
    """The report's six rows, measured on val's boxes of COCO data, and its claims from row to row.

    After the first comes one of the published network, if there are predictions of it.

    Networks trained once say nothing about another training, so claims are judged by `trainings` alone.

    Args:
        predictions: By network ("published" is others') and TTA as in `PARTS`, and by whether the flip shift
            was exact.
        hashes: By network: run name -> SHA-256 of its checkpoint.
        data: What the predictions are of.
        seed: Of the networks.
        trainings: What is known of trainings of the same recipe.
    """
    methods, of_rows = list(PARTS), dict(PARTS)
    if ("published", False, False) in predictions:
        of_rows = {methods[0]: PARTS[methods[0]], PUBLISHED: (("published", False),)} | PARTS
    ours, exact = (
        {method: average([predictions[*part, shift] for part in parts]) for method, parts in of_rows.items()}
        for shift in (False, True)
    )
    draws, rows = resample(ours, data), []
    for method, parts in of_rows.items():
        known = trainings if method in PARTS else ()
        over = _differences(known, method, methods[0]) if method != methods[0] else []
        rows.append(
            TableRow(
                method=method,
                metrics=draws.metrics[method],
                boxes=data.boxes,
                flip=True,
                tta=parts[0][1],
                interval=draws.interval(method),
                exact_shift=score(exact[method], data)["AP"],
                trainings=tuple(training.aps[method] for training in known),
                difference=(
                    (float(np.mean(over)), *map(float, paired_interval(over))) if len(over) > 1 else None
                ),
                runs={name: digest for network, _ in parts for name, digest in hashes[network].items()},
                seed=seed if method in PARTS else None,
            )
        )
    return rows, _claims({method: found["AP"] for method, found in draws.metrics.items()}, trainings)


def say_rows(rows: Sequence[TableRow]) -> str:
    """Which of our rows is highest and which lowest, trained once, and which place the first has."""
    aps = {row.method: in_percent(row.metrics["AP"]) for row in rows if row.method in PARTS}
    order = sorted(aps, key=lambda method: -aps[method])
    first = next(iter(aps))
    return (
        f"In this run the highest row is {order[0]}, AP {aps[order[0]]:.1f}, the lowest {order[-1]}, "
        f"{aps[order[-1]]:.1f}; {first}, the report's lowest, has place {order.index(first) + 1} of "
        f"{len(aps)}."
    )


def say_claims(claims: Sequence[Claim]) -> str:
    """How many of the report's steps these networks take too, and what is decided over trainings."""
    alike = sum(round(claim.here, 1) > 0 for claim in claims if claim.paper > 0.05)
    steps, seeds = sum(claim.paper > 0.05 for claim in claims), claims[0].verdict.pairs
    known = f"By trainings of {seeds} seed{'s' * (seeds != 1)}"
    decided = [f"{c.better} - {c.worse} {c.verdict.words}" for c in claims if c.verdict.more_pairs == 0]
    return (
        f"In this run {alike} of the {steps} steps that go up in the report go up in these networks, too. "
        f"{known} {len(decided)} of {len(claims)} steps are decided"
        + (f": {'; '.join(decided)}." if decided else ".")
    )


def _claims(aps: Mapping[str, float], trainings: Sequence[Training]) -> list[Claim]:
    """The report's steps, with the AP of each row here, 0..1."""
    methods = list(PARTS)
    steps = [(methods[better], methods[worse]) for worse, better in _STEPS]
    over = [_differences(trainings, *step) for step in steps]
    claims = []
    for (better, worse), differences, verdict in zip(steps, over, judge(over), strict=True):
        paper = PAPER_TABLE_1[better][0] - PAPER_TABLE_1[worse][0]
        here = in_percent(aps[better]) - in_percent(aps[worse])  # of what the table prints
        claims.append(Claim(better, worse, paper, here, tuple(differences), verdict))
    return claims


def _differences(trainings: Sequence[Training], better: str, worse: str) -> list[float]:
    """Points of AP, with the official flip shift, that a row is ahead of another: the mean of each seed."""
    of_seeds = {}
    for one in trainings:
        ahead = 100 * (one.aps[better][0] - one.aps[worse][0])
        of_seeds.setdefault(one.seed, []).append(ahead)
    return [float(np.mean(ahead)) for ahead in of_seeds.values()]


def git_revision(folder: Path) -> str:
    """Commit of this package's checkout, '-dirty' behind it if tracked files differ; 'unknown' elsewhere."""

    def git(*arguments: str) -> str:
        command = ("git", *arguments)
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()

    try:  # an installed package may lie inside the checkout of something else
        project = Path(git("rev-parse", "--show-toplevel"), "pyproject.toml").read_text(errors="replace")
        ours = 'name = "hrnetpp-lib"' in project.splitlines()
        return git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*") if ours else "unknown"
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def provenance() -> dict[str, object]:
    """What a number depends on beside the recipe: code, versions, device."""
    import torch

    versions = {"python": platform.python_version()}
    for package in ("openvino", "onnxruntime", "hotcoco", "simplejpeg"):
        with contextlib.suppress(PackageNotFoundError):  # of the extra `fast`
            versions[package] = version(package)
    for package in ("torch", "numpy", "opencv-python", "pycocotools", "papermill"):
        versions[package] = "unknown"
        with contextlib.suppress(PackageNotFoundError):  # conda's opencv may come under another name
            versions[package] = version(package)
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    instructions = torch.backends.cpu.get_cpu_capability()  # sums round differently with AVX2 and AVX512
    return {
        # Set once by `reproduce`: the notebooks it writes would make the tree look changed.
        "git_revision": os.environ.get("HRNETPP_REVISION") or git_revision(Path(__file__).parent),
        "versions": versions,
        "device": gpu or f"CPU ({platform.machine()} {instructions}, {torch.get_num_threads()} threads)",
    }


def write_results(folder: Path, profile_name: str, data: str, rows: list[TableRow], runs: list[dict]) -> None:
    """Write results.json and table_1.md to a folder: the rows, what they were measured on, and each run."""
    content = {"profile": profile_name, "data": data, "provenance": provenance(), "rows": rows, "runs": runs}
    write_json(folder / "results.json", content)
    with whole_file(folder / "table_1.md") as part:
        part.write_text(in_markdown(profile_name, data, rows))


def in_markdown(profile_name: str, data: str, rows: list[TableRow]) -> str:
    """The report's table in markdown, its metrics (percent) beside ours.

    Ours are never on the report's scale unless the profile is the report's own; the heading says so.
    """
    reported = PAPER_TABLE_1 | {PUBLISHED: _PUBLISHED_FIGURES}
    number = len(rows[0].trainings) if len(rows[0].trainings) > 1 else 0  # one alone has no spread
    rates = get_profile(profile_name).hrnet_lr_scale
    columns = [*METRICS, "ours: AP", "exact flip shift"]
    columns += [f"{number} trainings: AP", "exact flip shift", "minus first row"] if number else []
    over_trainings = f"; of differences over seeds. Of {number} trainings: mean ± standard deviation."
    lines = [
        f"Each cell: report (COCO val2017, 384x288) / **ours, profile `{profile_name}`** ({data}).",
        "HRNet: the report's is the published \"Original HRNet-W48\"; ours is plain, of the profile's size,",
        "trained and tested on the same data and boxes as the other rows."
        + (f" Its learning rates are {rates:g} times theirs." if rates != 1 else ""),
        *(_PUBLISHED_IN_WORDS if any(row.method == PUBLISHED for row in rows) else ()),
        "In square brackets 95%: of AP over samples of the validation images, which says nothing about",
        "another training" + (over_trainings if number else "."),
        "",
        f"| method | {' | '.join(columns)} |",
        "|---|" + "---|" * len(columns),
    ]
    for row in rows:
        ours = [100 * row.metrics[metric] for metric in METRICS]
        pairs = zip(reported[row.method], ours, strict=True)
        cells = [f"{paper:.1f} / " + (f"**{value:.1f}**" if value >= 0 else "-") for paper, value in pairs]
        cells += [percent(row.metrics["AP"], *row.interval), f"{100 * row.exact_shift:.1f}"]
        if number:
            cells += [*map(spread, zip(*row.trainings, strict=True))] or ["", ""]
            cells += ["{:+.1f} [{:+.1f}, {:+.1f}]".format(*row.difference) if row.difference else ""]
        lines.append(f"| {row.method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


_PUBLISHED_IN_WORDS = (
    f"{PUBLISHED}: the official weights, beside what their authors measured on {published.BOXES};",
    "trained on COCO alone, not on AI Challenger as the other rows.",
)


def beside_published(
    name: str, metrics: Mapping[str, float], data: StageData, card: ModelCard, differs: Sequence[str]
) -> list[str]:
    """The ten figures of a network as lines and, if its file is a known one, its authors' below them.

    Args:
        name: Of the file.
        metrics: The ten COCO metrics, 0..1.
        data: What they were measured on.
        card: Of the network.
        differs: What is known already to have been done in another way than its authors did.
    """
    known = published.FILES.get(name)
    if not (known and known.figures):
        return ["  ".join(f"{metric} {value:.4f}" for metric, value in metrics.items())]
    theirs = {metric: f"{value / 100:.4f}" for metric, value in known.figures.items()}
    images, size = len(data.truth.image_files), published.input_of(Path(name), 0)[0]
    differs = list(differs)
    differs += [f"boxes {data.boxes}"] * (data.boxes != published.BOXES)
    differs += [f"{images} images, not 5000"] * (images != 5000)
    differs += ["input {}x{}".format(*card.input_hw)] * (card.input_hw != size)
    how = f"COCO val2017, boxes {published.BOXES} (person AP 56.4), flip test, flip shift of one cell"
    return [
        "measured   " + "  ".join(f"{metric} {value:.4f}" for metric, value in metrics.items()),
        "published  " + "  ".join(f"{metric} {theirs.get(metric, '-'):6s}" for metric in metrics).rstrip(),
        f"published by {known.by}: {how}, quarter offset, fp32",
        f"measured otherwise: {', '.join(differs)}" if differs else "measured in the same way",
    ]


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation of fractions, in percent, as in '50.0 ± 1.2'; of one, the mean alone."""
    values = 100 * np.array(values)
    return f"{values.mean():.1f}" + (f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else "")


def metrics_in_markdown(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Metrics, 0..1, row by row as a table in percent; a dash where nobody is counted."""
    metrics = list(next(iter(rows.values())))
    lines = [f"| | {' | '.join(metrics)} |", "|---|" + "---|" * len(metrics)]
    for name, values in rows.items():
        cells = (f"{100 * values[metric]:.1f}" if values[metric] >= 0 else "-" for metric in metrics)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def percent(value: float, low: float, high: float, sign: str = "") -> str:
    """A fraction with its interval, in percent, as in '50.0 [45.0, 55.0]'; sign '+' shows plus signs."""
    return f"{100 * value:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


def in_percent(share: float) -> float:
    """A share of 1 in percent, rounded as it is printed."""
    return round(100 * float(share), 1)


def points(difference: float) -> str:
    """A difference of rounded percentages with its sign; 0.0 has none."""
    return f"{difference:+.1f}" if abs(difference) > 0.05 else "0.0"
