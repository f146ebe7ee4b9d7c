"""Two sides in turns, and the record that is kept of them: ratios, quartiles, machines."""

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from hrnetpp_lib.files import read_json, write_json

FLAGS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")  # what decides how fast a CPU multiplies
FEWEST = 3  # pairs, however long they take

Cost = Callable[[], float | None]  # does the work; may say what it cost itself, in seconds


def seconds_of(work: Cost) -> float:
    """What a call says that it cost, else the time it took."""
    started = time.perf_counter()
    told = work()
    return time.perf_counter() - started if told is None else told


def alternate(
    sides: dict[str, Cost], budget_s: float, most: int = 101, warm: bool = False
) -> dict[str, list[float]]:
    """Seconds of each side, round by round, each in its turn, until the budget is spent.

    A first round warms, unless they are `warm` already or start anew each time.
    Neighbours in time share whatever else the machine does, so that their ratio means something.
    """
    started, rounds = time.perf_counter(), []
    for work in () if warm else sides.values():
        work()
    while len(rounds) < most and (len(rounds) < FEWEST or time.perf_counter() - started < budget_s):
        rounds.append({name: seconds_of(work) for name, work in sides.items()})
    return {name: [each[name] for each in rounds] for name in sides}


def compare(reference: list[float], ours: list[float], per: float = 1.0) -> dict[str, object]:
    """Medians of both in ms per unit, where a call has `per` units; median and quartiles of paired ratios."""
    ratios = [theirs / mine for theirs, mine in zip(reference, ours, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    medians = (1000 * statistics.median(side) / per for side in (reference, ours))
    figures = dict(zip(("reference_ms", "ours_ms"), medians, strict=True)) | {"ratio": middle}
    rounded = {name: float(f"{value:.4g}") for name, value in figures.items()}
    return rounded | {"quartiles": [round(low, 3), round(high, 3)], "pairs": len(ratios)}


def machine(threads: int) -> str:
    """The name of this machine's CPU, what it multiplies with, and the threads used."""
    name, flags, kernel = platform.processor() or platform.machine(), set(), Path("/proc/cpuinfo")
    if kernel.is_file():
        pairs = (line.partition(":") for line in kernel.read_text().splitlines())
        facts = {key.strip(): value.strip() for key, _, value in pairs}
        name, flags = facts.get("model name", name), set(facts.get("flags", "").split())
        name += f" (family {facts.get('cpu family', '?')}, model {facts.get('model', '?')})"
    return f"{name}, {'+'.join(flag for flag in FLAGS if flag in flags) or 'no AVX2'}, {threads} threads"


def keep(path: Path, machine_name: str, rows: dict[str, dict], origin: dict[str, object]) -> None:
    """Put rows and their provenance into the file, beside those of other machines and of other rows."""
    kept, wait = read_json(path, dict) if path.is_file() else {}, os.environ.get("OMP_WAIT_POLICY", "")
    revision = {"git_revision": origin["git_revision"]}
    origin = {name: fact for name, fact in origin.items() if name != "git_revision"}
    before = kept.get(machine_name, {}).get("rows", {})
    rows = before | {name: row | revision for name, row in rows.items()}
    kept[machine_name] = {"provenance": origin | {"OMP_WAIT_POLICY": wait}, "rows": rows}
    write_json(path, kept)
