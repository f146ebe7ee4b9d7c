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
from hrnetpp_lib.evaluate.statistics import Verdict, judge
from hrnetpp_lib.files import whole_file, write_json

METRICS = COCO_METRICS[:6]

# The report's Table 1: COCO val2017, 384x288, boxes of person AP 59.6, in percent.
PAPER_TABLE_1 = {
    "Original HRNet-W48": (76.3, 90.8, 82.9, 72.3, 83.4, 81.2),
    "HRNet++ (heatmap)": (76.5, 90.9, 83.0, 72.7, 83.5, 81.4),
    "HRNet++ (regression)": (76.7, 90.9, 82.9, 72.8, 83.8, 81.5),
    "HRNet++ (regression) + TTA": (76.9, 90.6, 82.8, 73.2, 83.8, 81.7),
    "ensemble": (76.7, 90.9, 83.0, 72.8, 83.8, 81.5),
    "ensemble + TTA": (77.0, 90.7, 83.0, 73.4, 83.8, 81.8),
}
# The networks that each row averages over, and whether each of them looks at the five views.
PARTS = {
    "Original HRNet-W48": (("hrnet", False),),
    "HRNet++ (heatmap)": (("heatmap", False),),
    "HRNet++ (regression)": (("regression", False),),
    "HRNet++ (regression) + TTA": (("regression", True),),
    "ensemble": (("heatmap", False), ("regression", False)),
    "ensemble + TTA": (("heatmap", True), ("regression", True)),
}
# The report's steps, each from a row of its table to the one that improves on it.
_STEPS = ((0, 1), (1, 2), (2, 3), (2, 4), (3, 5))


# AP, 0..1, of each row (a key of `PAPER_TABLE_1`) in one training of all its networks, with the official and
# with the exact flip shift.
Training = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class TableRow:
    """One measured row of Table 1.

    Attributes:
        method: A key of `PAPER_TABLE_1`.
        metrics: The ten COCO metrics, 0..1.
        boxes: Where the boxes come from.
        flip: Whether heatmaps are averaged with the mirrored crop's.
        tta: Whether positions are averaged over the five views.
        interval: 95% of AP over samples of the validation images, 0..1: of these networks, not of others.
        exact_shift: AP of the same networks with the exact flip shift, 0..1.
        trainings: The row's AP, 0..1, in each training of the recipe that is known, with either shift.
        difference: In points, the mean over these trainings of AP minus the first row's of the same training,
            and its 95% interval; None in the first row, and of fewer than two trainings.
        runs: Run name -> SHA-256 of its checkpoint.
        seed: Of the runs.
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
    seed: int


@dataclass(frozen=True)
class Claim:
    """A step of the report's from one row of Table 1 to a better one, in points of AP (percent).

    Attributes:
        paper: The report's difference.
        here: The difference of one training's networks.
        differences: Those of all trainings that are known, one each.
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
        known = (
            f"over {of.pairs} trainings {of.mean:+.1f} [{of.low:+.1f}, {of.high:+.1f}]: " if of.mean else ""
        )
        text = f"report {self.paper:+.1f}, these networks {self.here:+.1f}; {known}{of.words}"
        return f"{self.better} - {self.worse}: {text}"


def assemble(
    predictions: Mapping[tuple[str, bool, bool], Predictions],
    hashes: Mapping[str, dict[str, str]],
    data: StageData,
    seed: int,
    trainings: Sequence[Training] = (),
) -> tuple[list[TableRow], list[Claim]]:
    """The report's six rows, measured on val's boxes of COCO data, and its claims from row to row.

    Networks trained once say nothing about another training, so claims are judged by `trainings` alone.

    Args:
        predictions: By network and TTA as in `PARTS`, and by whether the flip shift was exact.
        hashes: By network: run name -> SHA-256 of its checkpoint.
        data: What the predictions are of.
        seed: Of the networks.
        trainings: What is known of trainings of the same recipe.
    """
    ours, exact = (
        {method: average([predictions[*part, shift] for part in parts]) for method, parts in PARTS.items()}
        for shift in (False, True)
    )
    draws, methods, rows = resample(ours, data), list(PARTS), []
    for method, parts in PARTS.items():
        over = _differences(trainings, method, methods[0])
        verdict = judge([over])[0] if method != methods[0] else None
        rows.append(
            TableRow(
                method=method,
                metrics=draws.metrics[method],
                boxes=data.boxes,
                flip=True,
                tta=parts[0][1],
                interval=draws.interval(method),
                exact_shift=score(exact[method], data)["AP"],
                trainings=tuple(training[method] for training in trainings),
                difference=(verdict.mean, verdict.low, verdict.high) if verdict and len(over) > 1 else None,
                runs={name: digest for network, _ in parts for name, digest in hashes[network].items()},
                seed=seed,
            )
        )
    steps = [(methods[better], methods[worse]) for worse, better in _STEPS]
    over = [_differences(trainings, *step) for step in steps]
    claims = []
    for (better, worse), differences, verdict in zip(steps, over, judge(over), strict=True):
        paper = PAPER_TABLE_1[better][0] - PAPER_TABLE_1[worse][0]
        here = 100 * (draws.metrics[better]["AP"] - draws.metrics[worse]["AP"])
        claims.append(Claim(better, worse, paper, here, tuple(differences), verdict))
    return rows, claims


def _differences(trainings: Sequence[Training], better: str, worse: str) -> list[float]:
    """Points of AP, with the official flip shift, that a row is ahead of another in each training."""
    return [100 * (training[better][0] - training[worse][0]) for training in trainings]


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
    number = len(rows[0].trainings)
    lines = [
        f"Each cell: report (COCO val2017, 384x288) / **ours, profile `{profile_name}`** ({data}).",
        "Original HRNet: the report's is the published one; ours is a plain HRNet of the profile's size,",
        "trained and tested on the same data and boxes as the other rows.",
        "In square brackets 95%: of AP over samples of the validation images, which says nothing about",
        f"another training; of differences over trainings. Of {number} trainings: mean ± standard deviation.",
        "",
        f"| method | {' | '.join(METRICS)} | ours: AP | exact flip shift "
        f"| {number} trainings: AP | exact flip shift | minus first row |",
        "|---|" + "---|" * (len(METRICS) + 5),
    ]
    for row in rows:
        ours = [100 * row.metrics[metric] for metric in METRICS]
        pairs = zip(PAPER_TABLE_1[row.method], ours, strict=True)
        cells = [f"{paper:.1f} / " + (f"**{value:.1f}**" if value >= 0 else "-") for paper, value in pairs]
        cells += [percent(row.metrics["AP"], *row.interval), f"{100 * row.exact_shift:.1f}"]
        cells += [*map(spread, zip(*row.trainings, strict=True))] or ["", ""]
        cells += ["{:+.1f} [{:+.1f}, {:+.1f}]".format(*row.difference) if row.difference else ""]
        lines.append(f"| {row.method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation of fractions, in percent, as in '50.0 ± 1.2'; of one, the mean alone."""
    values = 100 * np.array(values)
    return f"{values.mean():.1f}" + (f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else "")


def percent(value: float, low: float, high: float, sign: str = "") -> str:
    """A fraction with its interval, in percent, as in '50.0 [45.0, 55.0]'; sign '+' shows plus signs."""
    return f"{100 * value:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"
