"""The report's Table 1 beside ours: its rows and claims, results.json, and where the numbers come from."""

import contextlib
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hrnetpp_lib.data.layout import StageData
from hrnetpp_lib.evaluate.infer import Predictions, average
from hrnetpp_lib.evaluate.metrics import COCO_METRICS
from hrnetpp_lib.evaluate.score import Claim, resample
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


@dataclass(frozen=True)
class TableRow:
    """One measured row of Table 1.

    Attributes:
        method: A key of `PAPER_TABLE_1`.
        metrics: The ten COCO metrics, 0..1.
        boxes: Where the boxes come from.
        flip: Whether heatmaps are averaged with the mirrored crop's.
        tta: Whether positions are averaged over the five views.
        interval: 95% of AP over samples of the validation images, 0..1.
        difference: AP minus the first row's, and its 95% interval over the same samples; None in the first.
        runs: Run name -> SHA-256 of its checkpoint.
        seed: Of the runs.
    """

    method: str
    metrics: dict[str, float]
    boxes: str
    flip: bool
    tta: bool
    interval: tuple[float, float]
    difference: tuple[float, float, float] | None
    runs: dict[str, str]
    seed: int


def assemble(
    predictions: Mapping[tuple[str, bool], Predictions],
    hashes: Mapping[str, dict[str, str]],
    data: StageData,
    seed: int,
) -> tuple[list[TableRow], list[Claim]]:
    """The report's six rows, measured on val's boxes of COCO data, and its claims from row to row.

    `predictions` are by (network, TTA) as in `PARTS`, made with the flip test; `hashes` by network, and in it
    the SHA-256 of each run's checkpoint.
    """
    found = {method: average([predictions[part] for part in parts]) for method, parts in PARTS.items()}
    draws, methods, rows, claims = resample(found, data), list(PARTS), [], []
    for method, parts in PARTS.items():
        flip, tta, interval = True, parts[0][1], draws.interval(method)
        difference = draws.difference(method, methods[0]) if rows else None
        runs = {name: digest for network, _ in parts for name, digest in hashes[network].items()}
        fields = method, draws.metrics[method], data.boxes, flip, tta, interval, difference, runs, seed
        rows.append(TableRow(*fields))
    for worse, better in ([methods[row] for row in step] for step in _STEPS):
        paper = PAPER_TABLE_1[better][0] - PAPER_TABLE_1[worse][0]
        claims.append(Claim(better, worse, paper, *(100 * ap for ap in draws.difference(better, worse))))
    return rows, claims


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
    lines = [
        f"Each cell: report (COCO val2017, 384x288) / **ours, profile `{profile_name}`** ({data}).",
        "Original HRNet: the report's is the published one; ours is a plain HRNet of the profile's size,",
        "trained and tested on the same data and boxes as the other rows.",
        "In square brackets 95% of a bootstrap over the validation images; differences are paired.",
        "",
        "| method | " + " | ".join(METRICS) + " | ours: AP | ours: AP minus first row |",
        "|---|" + "---|" * (len(METRICS) + 2),
    ]
    for row in rows:
        ours = [100 * row.metrics[metric] for metric in METRICS]
        pairs = zip(PAPER_TABLE_1[row.method], ours, strict=True)
        cells = [f"{paper:.1f} / " + (f"**{value:.1f}**" if value >= 0 else "-") for paper, value in pairs]
        cells += [percent(row.metrics["AP"], *row.interval)]
        cells += [percent(*row.difference, sign="+") if row.difference else ""]
        lines.append(f"| {row.method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def percent(value: float, low: float, high: float, sign: str = "") -> str:
    """A fraction with its interval, in percent, as in '50.0 [45.0, 55.0]'; sign '+' shows plus signs."""
    return f"{100 * value:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"
