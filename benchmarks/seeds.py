"""How far apart equal recipes end: python benchmarks/seeds.py FOLDER 0 1 2, for seeds 0 to 2.

Seeds differ in weights, order and augmentation; the same seed on another CPU, or in another number of
threads, in nothing but rounding. Reads the last AP on val of stages 2 and 3 of profile mini from FOLDER/runs,
plain HRNet's and HRNet++'s; make them, with OMP_NUM_THREADS as here, by
python -m hrnetpp_lib train --profile mini --architecture hrnet (or hrnetpp) --seed N --output FOLDER.
"""

import sys
from pathlib import Path

from hrnetpp_lib.evaluate.table import provenance
from hrnetpp_lib.files import read_json, write_json
from hrnetpp_lib.recipe import HRNET, HRNETPP, get_profile, three_stages
from hrnetpp_lib.train.journal import read_metrics


def main() -> None:
    """Print the figures, and put them into benchmarks/seeds.json by device and number of threads."""
    runs, profile, rows = Path(sys.argv[1]) / "runs" / "mini", get_profile("mini"), {}
    for seed in map(int, sys.argv[2:]):
        plain = three_stages(profile, HRNET, seed)[1]
        _, *improved = three_stages(profile, HRNETPP, seed)
        ends = {run: read_metrics(runs, run)[-1]["value"] for run in (plain, *improved)}
        rows[seed] = {f"{run.architecture.name} {run.stage.name}": ap for run, ap in ends.items()}
        print(seed, rows[seed])
    kept = Path(__file__).with_suffix(".json")
    origin = provenance()
    write_json(kept, read_json(kept, dict) | {origin["device"]: {"ap": rows, "provenance": origin}})


if __name__ == "__main__":
    main()
