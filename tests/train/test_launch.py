"""Training in several processes from one call, with its log followed live."""

import json
from dataclasses import replace

import pytest

from hrnetpp_lib.errors import HrnetppError, Preempted
from hrnetpp_lib.model.weights import load_checkpoint
from hrnetpp_lib.recipe import SMOKE, STAGE2, read_recipe, resolve
from hrnetpp_lib.train import machine as launch
from hrnetpp_lib.train.loop import checkpoint_path
from hrnetpp_lib.train.machine import train_in_processes

RUN = resolve(STAGE2, replace(SMOKE, synthetic_persons=(16, 8, 4), holdout_persons=2), seed=3)


def test_two_processes_train_the_very_recipe(tmp_path, capfd):
    train_in_processes(RUN, tmp_path, 2)
    path = checkpoint_path(tmp_path / "runs" / "smoke", RUN.name)
    assert load_checkpoint(path)[1].run == RUN.name
    assert read_recipe(path.parent / "recipe.json") == RUN
    metrics = json.loads((path.parent / "metrics.jsonl").read_text())
    assert metrics["processes"] == 2 and metrics["metric"] == "COCO AP"
    shown = capfd.readouterr().out
    assert shown.count("epoch   1/1") == 1 and "seed         3" in shown
    stamp = path.stat().st_mtime_ns
    train_in_processes(RUN, tmp_path, 2)
    assert "found trained" in capfd.readouterr().out and path.stat().st_mtime_ns == stamp


def test_a_failure_ends_with_the_last_lines(tmp_path):
    with pytest.raises(HrnetppError, match="cannot be divided into 3 equal parts"):
        train_in_processes(RUN, tmp_path, 3)


def test_preemption_is_told_from_failure(tmp_path, monkeypatch):
    notice = "SIGTERM at step 3; the same command goes on from it"
    script = f"print({notice!r}); print(40 * 'traceback of the launcher\\n'); raise SystemExit(1)"
    monkeypatch.setattr(launch, "launch_command", lambda *_: [launch.sys.executable, "-c", script])
    with pytest.raises(Preempted):
        train_in_processes(RUN, tmp_path, 2)
