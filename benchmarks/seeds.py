"""The same recipe with several seeds, how far apart the results are: python benchmarks/seeds.py 0 1 2.

Reads the last AP on val of stages 2 and 3 of profile mini from runs that are finished, plain HRNet's and
HRNet++'s; make them by python -m hrnetpp_lib train --profile mini --architecture hrnet (or hrnetpp) --seed N.
"""

import sys
from pathlib import Path

from hrnetpp_lib.journal import read_metrics
from hrnetpp_lib.recipe import HRNET, HRNETPP, get_profile, three_stages
from hrnetpp_lib.report import provenance, write_json

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Print and keep benchmarks/seeds.json."""
    profile, rows = get_profile("mini"), {}
    for seed in map(int, sys.argv[1:]):
        plain = three_stages(profile, HRNET, seed)[1]
        _, *improved = three_stages(profile, HRNETPP, seed)
        ends = {run: read_metrics(ROOT / "runs" / "mini", run)[-1]["value"] for run in (plain, *improved)}
        rows[seed] = {f"{run.architecture.name} {run.stage.name}": ap for run, ap in ends.items()}
        print(seed, rows[seed])
    write_json(Path(__file__).with_suffix(".json"), {"ap": rows, "provenance": provenance()})


if __name__ == "__main__":
    main()
