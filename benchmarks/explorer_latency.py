"""How long the explorer takes to answer: python benchmarks/explorer_latency.py.

Sets each control to several values and measures until all its pictures are drawn and encoded; needs the
finished runs of profile mini. What the browser adds (sending and showing the PNGs) is not in it.
"""

import statistics
import time
from pathlib import Path

from hrnetpp_lib.app.workspace import open_workspace
from hrnetpp_lib.evaluate.table import provenance
from hrnetpp_lib.explore.heatmap_explorer import HeatmapExplorer
from hrnetpp_lib.files import write_json
from hrnetpp_lib.recipe import HRNET, three_stages

ROOT = Path(__file__).resolve().parents[1]
VALUES = {  # control: values to be set one after the other
    "alpha": [10.0, 20.0, 40.0, 80.0, 160.0, 5.0, 60.0],
    "blend": [0.1, 0.3, 0.5, 0.7, 0.9, 0.2, 0.6],
    "keypoint": [3, 7, 9, 10, 13, 16, 5],
    "flip": [False, True] * 3,
    "shape": ["3-D", "contour"] * 3,
    "network": ["heatmap", "plain HRNet", "regression"] * 2,
    "padding": [1.0, 1.4, 1.6, 1.8, 2.0, 1.1, 1.25],
    "shift_x": [0.05, 0.1, 0.15, 0.2, -0.1, -0.2, 0.0],
    "tta": [True, False] * 3,
    "picture": [1, 2, 3, 4, 5, 6],
}
NEW_FORWARD = ("network", "padding", "shift_x", "tta", "picture")


def main() -> None:
    """Measure, print and keep benchmarks/explorer_latency.json."""
    workspace = open_workspace("mini", ROOT)
    _, heatmap, regression = three_stages(workspace.profile)
    plain = three_stages(workspace.profile, HRNET)[1]
    runs = {"regression": regression, "heatmap": heatmap, "plain HRNet": plain}
    explorer = HeatmapExplorer(workspace.networks(runs), workspace.stage_data("coco").truth)
    rows = {}
    for name, values in VALUES.items():
        control, seconds = getattr(explorer, name), []
        for value in values:
            started = time.perf_counter()
            control.value = value
            seconds.append(time.perf_counter() - started)
        rows[name] = {
            "median_ms": round(1000 * statistics.median(seconds), 1),
            "worst_ms": round(1000 * max(seconds), 1),
            "new_forward": name in NEW_FORWARD,
        }
        print(name, *(f"{key} {value}" for key, value in rows[name].items()))
    write_json(Path(__file__).with_suffix(".json"), {"controls": rows, "provenance": provenance()})


if __name__ == "__main__":
    main()
