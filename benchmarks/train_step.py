"""One training step of a profile's network, several ways: python benchmarks/train_step.py [profile].

A step is what `train.Training` does with a batch once it is loaded: normalise, network, targets, loss,
backward, Adam. Each round measures every variant anew, with the C library's allocator as it is and told to
keep freed memory (as `reproduce` tells it; only a new process can be told). What counts on a noisy machine
are the ratios to the first variant of the same round.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from hrnetpp_lib.app.plan import random_batch
from hrnetpp_lib.app.reproduce import KEEP_FREED_MEMORY
from hrnetpp_lib.evaluate.table import provenance
from hrnetpp_lib.files import read_json, write_json
from hrnetpp_lib.recipe import STAGE2, Run, get_profile, resolve
from hrnetpp_lib.train.loop import TrainStep, build_model

KEYPOINTS, ROUNDS, STEPS, LONGEST_S = 17, 3, 25, 8


@dataclass
class Variant:
    """A way to make a step."""

    name: str
    fast: bool  # channels_last and fused Adam
    bf16: bool
    compiled: bool = False


VARIANTS = (
    Variant("fp32, contiguous", False, False),
    Variant("fp32, channels_last, fused Adam", True, False),
    Variant("bf16, channels_last, fused Adam", True, True),
    Variant("fp32, channels_last, fused Adam, compiled", True, False, True),
    Variant("bf16, channels_last, fused Adam, compiled", True, True, True),
)


def measure(run: Run, variant: Variant) -> float:
    """Crops per second, after three steps in which caches fill and the compiler does its work."""
    layout = torch.channels_last if variant.fast else torch.contiguous_format
    model = build_model(run, KEYPOINTS).to(memory_format=layout).train()
    torch.manual_seed(0)
    step, batch = TrainStep(model, run), random_batch(run.profile, run.profile.batch_size)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=variant.fast, foreach=False)
    if variant.compiled:
        step = torch.compile(step)
    started = time.perf_counter()
    for i in range(STEPS + 3):
        if i == 3:
            started = time.perf_counter()
        elif i > 3 and time.perf_counter() - started > LONGEST_S:  # a CPU that imitates bf16
            break
        with torch.autocast("cpu", torch.bfloat16, enabled=variant.bf16):
            loss = step(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        done = i - 2
    return done * run.profile.batch_size / (time.perf_counter() - started)


def measure_in_child(profile: str, environment: dict[str, str]) -> dict[str, float]:
    """Crops per second of every variant, in a new process."""
    command = [sys.executable, __file__, profile, "--child"]
    child = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    return json.loads(child.stdout.splitlines()[-1])


def main() -> None:
    """Measure, print, and put into benchmarks/train_step.json by device and number of threads."""
    name = sys.argv[1] if len(sys.argv) > 1 else "mini"
    run = resolve(STAGE2, replace(get_profile(name), precision="fp32"))
    if sys.argv[-1] == "--child":
        print(json.dumps({variant.name: measure(run, variant) for variant in VARIANTS}))
        return
    allocators = {"": {}, ", freed memory kept": KEEP_FREED_MEMORY}
    rounds = []
    for _ in range(ROUNDS):
        found = {suffix: measure_in_child(name, environment) for suffix, environment in allocators.items()}
        rounds.append({way + suffix: v for suffix, ways in found.items() for way, v in ways.items()})
    rows = {}
    for way in rounds[0]:
        speed = statistics.median(r[way] for r in rounds)
        ratio = statistics.median(r[way] / r[VARIANTS[0].name] for r in rounds)
        rows[way] = {"crops_per_s": round(speed, 1), "times_plain": round(ratio, 2)}
        print(f"{way:54s} {speed:7.1f} crops/s   {ratio:5.2f} x")
    origin = provenance()
    content = {"profile": name, "batch": run.profile.batch_size, "rounds": ROUNDS, "steps": rows}
    kept = Path(__file__).with_suffix(".json")
    write_json(kept, read_json(kept, dict) | {origin["device"]: content | {"provenance": origin}})


if __name__ == "__main__":
    main()
