"""A small training run in a process of its own, to be killed: python engine_run.py ROOT [options]."""

import argparse
import itertools
import os
import signal
from dataclasses import replace
from pathlib import Path

import torch

from hrnetpp_lib.data.layout import load_coco, prepare_data
from hrnetpp_lib.errors import Preempted
from hrnetpp_lib.recipe import SMOKE, STAGE2, Run, resolve
from hrnetpp_lib.train import resume
from hrnetpp_lib.train.loop import train_stage
from hrnetpp_lib.train.machine import EngineOptions, leave, processes

PROFILE = replace(SMOKE, synthetic_persons=(36, 8, 4), holdout_persons=2, eval_every=2)


def small_run() -> Run:
    """Five epochs of four steps, of eight crops each."""
    return resolve(STAGE2, PROFILE, epochs=5)


def die_in_save(moment: str) -> None:
    """Arrange for SIGKILL in the midst of the fifth save."""
    calls, save, replace_durably = itertools.count(1), resume.save_file, resume.replace_durably

    def half(tensors: dict, path: Path, header: dict) -> None:
        save(tensors, path, header)
        if next(calls) == 5:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def before_pruning(part: Path, path: Path) -> None:
        replace_durably(part, path)
        if next(calls) == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    name, replacement = (
        ("save_file", half) if moment == "half written" else ("replace_durably", before_pruning)
    )
    setattr(resume, name, replacement)


def main() -> None:
    """Train it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("--frozen-bn", action="store_true")
    parser.add_argument("--save-every", type=float, default=0.0)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--die-in-save", choices=["half written", "not yet pruned"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    (options.root / "pids").mkdir(exist_ok=True)
    (options.root / "pids" / str(os.getpid())).touch()
    if options.frozen_bn:  # a step does not depend on how many crops a process holds
        torch.nn.BatchNorm2d.train = lambda self, mode=True: torch.nn.Module.train(self, False)
    if options.die_in_save:
        die_in_save(options.die_in_save)
    with processes().main_process_first():
        paths = prepare_data(PROFILE, options.root / "data")
        data = load_coco(PROFILE, paths)
    engine = EngineOptions(options.accumulate, save_every_s=options.save_every)
    train_stage(small_run(), data, options.root / "runs", paths.root, engine)
    processes().destroy_process_group()


if __name__ == "__main__":
    try:
        main()
    except Preempted as notice:
        print(notice)
        leave(Preempted.EXIT_CODE)
    leave(0)
