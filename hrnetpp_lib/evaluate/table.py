"""Results that say where they come from: provenance, results.json and the report's Table 1 beside ours."""

import os
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.files import write_json

METRICS = ("AP", "AP50", "AP75", "APM", "APL", "AR")

# The report's Table 1: COCO val2017, 384x288, boxes of person AP 59.6, in percent.
PAPER_TABLE_1 = {
    "Original HRNet-W48": (76.3, 90.8, 82.9, 72.3, 83.4, 81.2),
    "HRNet++ (heatmap)": (76.5, 90.9, 83.0, 72.7, 83.5, 81.4),
    "HRNet++ (regression)": (76.7, 90.9, 82.9, 72.8, 83.8, 81.5),
    "HRNet++ (regression) + TTA": (76.9, 90.6, 82.8, 73.2, 83.8, 81.7),
    "ensemble": (76.7, 90.9, 83.0, 72.8, 83.8, 81.5),
    "ensemble + TTA": (77.0, 90.7, 83.0, 73.4, 83.8, 81.8),
}


@dataclass(frozen=True)
class Row:
    """One measured row of Table 1.

    Attributes:
        method: A key of `PAPER_TABLE_1`.
        metrics: The ten COCO figures, 0..1.
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
    runs: dict[str, str] = field(default_factory=dict)
    seed: int = 0


def git_revision(folder: Path) -> str:
    """Commit of the checkout, with '-dirty' behind it if tracked files differ; 'unknown' outside git."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def provenance() -> dict[str, object]:
    """What a number depends on beside the recipe: code, versions, device."""
    import torch

    packages = ("torch", "numpy", "opencv-python", "pycocotools", "papermill")
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # conda's opencv may come under another name
            versions[package] = "unknown"
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    instructions = torch.backends.cpu.get_cpu_capability()  # sums round differently with AVX2 and AVX512
    return {
        # Set once by `reproduce`: the notebooks it writes would make the tree look changed.
        "git_revision": os.environ.get("HRNETPP_REVISION") or git_revision(Path(__file__).parent),
        "versions": versions,
        "device": gpu or f"CPU ({platform.machine()} {instructions}, {torch.get_num_threads()} threads)",
    }


def write_results(folder: Path, profile_name: str, data: str, rows: list[Row], runs: list[dict]) -> Path:
    """Write results.json and table_1.md.

    Args:
        folder: figures/<profile>.
        profile_name: Printed in the table's heading.
        data: What the numbers were measured on, in words.
        rows: In the report's order.
        runs: For each training run its name, command, recipe and seconds.
    """
    content = {
        "profile": profile_name,
        "data": data,
        "provenance": provenance(),
        "rows": [asdict(row) for row in rows],
        "runs": runs,
    }
    write_json(folder / "results.json", content)
    (folder / "table_1.md").write_text(table_1(profile_name, data, rows))
    return folder / "results.json"


def table_1(profile_name: str, data: str, rows: list[Row]) -> str:
    """The report's table in markdown, its figures (percent) beside ours.

    Ours are never on the report's scale unless the profile is the report's own; the heading says so.

    Raises:
        HrnetppError: If a row is not one of the report's methods.
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
        if row.method not in PAPER_TABLE_1:
            raise HrnetppError(f"{row.method!r} is not a row of Table 1; it has {', '.join(PAPER_TABLE_1)}")
        cells = [
            f"{paper:.1f} / **{100 * row.metrics[metric]:.1f}**"
            if row.metrics[metric] >= 0
            else f"{paper:.1f} / -"
            for metric, paper in zip(METRICS, PAPER_TABLE_1[row.method], strict=True)
        ]
        cells += [percent(row.metrics["AP"], *row.interval)]
        cells += [percent(*row.difference, sign="+") if row.difference else ""]
        lines.append(f"| {row.method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def percent(value: float, low: float, high: float, sign: str = "") -> str:
    """A fraction with its interval, in percent, as in '50.0 [45.0, 55.0]'; sign '+' shows plus signs."""
    return f"{100 * value:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"
