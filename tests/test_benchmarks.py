"""The benchmark's arithmetic and what it keeps; nothing here is timed."""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import bench, gpu, measure
from benchmarks.official import Node, Official
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.evaluate import metrics
from hrnetpp_lib.evaluate.table import provenance

ROOT = Path(__file__).resolve().parents[1]


def test_sides_take_turns_and_the_first_round_only_warms():
    calls, cost = [], iter(range(100))

    def side(name):
        return lambda: calls.append(name) or next(cost)

    seconds = measure.alternate({"theirs": side("a"), "ours": side("b")}, budget_s=0.0)
    assert calls == ["a", "b"] * (1 + measure.FEWEST)
    assert seconds == {"theirs": [2, 4, 6], "ours": [3, 5, 7]}


def test_rounds_go_on_while_there_is_time_and_not_for_ever():
    assert len(measure.alternate({"one": lambda: 0.0}, budget_s=60.0, most=7)["one"]) == 7


def test_the_clock_decides_unless_the_work_says_what_it_cost():
    assert measure.seconds_of(lambda: 0.25) == 0.25
    assert measure.seconds_of(lambda: time.sleep(0.01)) >= 0.01


def test_ratios_are_of_pairs_and_costs_per_unit():
    found = measure.compare([8.0, 6.0, 1.0, 12.0, 10.0], [2.0, 2.0, 1.0, 2.0, 2.0], per=4)
    # Ratios 4, 3, 1, 6, 5.
    assert found["ratio"] == 4.0 and found["quartiles"] == [3.0, 5.0] and found["pairs"] == 5
    assert found["reference_ms"] == 2000.0 and found["ours_ms"] == 500.0


def test_a_rerun_replaces_its_own_rows_on_its_own_machine(tmp_path):
    path = tmp_path / "bench.json"
    measure.keep(path, "here", {"nms": {"ratio": 1}, "sample": {"ratio": 2}}, provenance())
    measure.keep(path, "there", {"nms": {"ratio": 3}}, provenance())
    measure.keep(path, "here", {"nms": {"ratio": 4}}, provenance())
    kept = json.loads(path.read_text())
    ratios = {(name, row): r["ratio"] for name, each in kept.items() for row, r in each["rows"].items()}
    assert ratios == {("here", "nms"): 4, ("here", "sample"): 2, ("there", "nms"): 3}
    assert all("git_revision" in row for row in kept["here"]["rows"].values())
    assert {"versions", "device", "OMP_WAIT_POLICY"} == set(kept["here"]["provenance"])


def test_machines_differ_by_their_threads():
    assert measure.machine(2).endswith("2 threads") and measure.machine(1) != measure.machine(2)


def official_nms(persons, threshold):
    """What the row compares with, by our own suppression of one image."""
    poses, areas, scores = (
        np.array([person[k] for person in persons]) for k in ("keypoints", "area", "score")
    )
    return metrics.oks_nms(poses, areas, scores, threshold).tolist()


@pytest.mark.parametrize("wrong", [False, True])
def test_a_row_compares_before_it_is_timed(tmp_path, wrong):
    def suppress(persons, threshold):
        return official_nms(persons, threshold)[: -1 if wrong else None]

    fake = SimpleNamespace(nms=SimpleNamespace(oks_nms=suppress), commit="0" * 40)
    rows = bench.run_row(bench.nms, bench.Setting(fake, True, tmp_path))
    if wrong:
        with pytest.raises(HrnetppError, match="differ"):
            next(rows)
    else:
        (name, row), (growth, cost) = rows
        assert (name, growth) == ("nms", "scoring_scaling") and list(cost["ms_per_1000"]) == ["1000"]
        assert row["official"] == "0" * 12 and row["pairs"] == measure.FEWEST and row["threads"] == 1


def test_figures_are_compared_to_the_bit(tmp_path, monkeypatch):
    setting, truly = bench.Setting(None, True, tmp_path), metrics.coco_metrics
    (comparison,) = bench.figures(setting)
    assert "equal to the bit" in comparison.sides[0].equality

    def nearly(matches):
        found = truly(matches)
        return found | {"AR": np.nextafter(found["AR"], 2)}

    monkeypatch.setattr(metrics, "coco_metrics", nearly)
    with pytest.raises(HrnetppError, match="differ"):
        next(bench.figures(setting))


def test_replayed_heatmaps_serve_both_ways_to_ask():
    import torch

    maps = torch.arange(4.0).reshape(4, 1, 1, 1)
    replay, two, four = bench.Replay(maps), torch.zeros(2, 3, 4, 4), torch.zeros(4, 3, 4, 4)
    assert [replay(two).flatten().tolist() for _ in range(3)] == [[0, 1], [2, 3], [0, 1]]
    replay(two)
    assert replay(four).flatten().tolist() == [0, 1, 2, 3]


def test_a_folder_that_is_no_official_checkout_is_refused(tmp_path):
    with pytest.raises(HrnetppError, match="pose_hrnet.py is not there"):
        Official(tmp_path)


def test_another_commit_is_warned_of(tmp_path):
    modules = "config core/inference core/loss dataset models/pose_hrnet nms/nms utils/transforms"
    for module in modules.split():
        path = tmp_path / "lib" / f"{module}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            "import numpy as np\nfrom yacs.config import CfgNode\ncfg = CfgNode({'F': np.float(1)})\n"
        )
        (path.parent / "__init__.py").touch()
    (tmp_path / "experiments" / "coco" / "hrnet").mkdir(parents=True)
    (tmp_path / "experiments" / "coco" / "hrnet" / "w_adam_lr1e-3.yaml").write_text("A: {B: 1, C: 2}")
    # In a process of its own: it changes numpy, sys.path and sys.modules.
    code = "import sys, pathlib; from benchmarks.official import Official; "
    code += "print(Official(pathlib.Path(sys.argv[1])).config('w', A={'B': 3}))"
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    warning, config = done.stdout.splitlines()
    assert warning.startswith("warning: ") and warning.endswith("not 6f69e4676ad8")
    assert config == "{'F': 1.0, 'A': {'B': 3, 'C': 2}}"


def test_configurations_nest():
    node = Node({"MODEL": {"SIZE": [1, 2]}})
    node.TEST = Node()
    node.merge({"MODEL": {"NAME": "x"}, "TEST": {"FLIP": True}, "NEW": {"A": {"B": 1}}})
    assert node.MODEL.SIZE == [1, 2] and node["MODEL"]["NAME"] == "x" and node.TEST.FLIP and node.NEW.A.B == 1
    assert getattr(node, "MISSING", None) is None


def test_parts_are_kept_whatever_becomes_of_the_next():
    kept = []

    def good(_):
        return {"crops_per_s": 1.0}

    def bad(_):
        raise RuntimeError("no luck")

    small = gpu.Bench(gpu.SMOKE, (4,), 0.0, Path("."), None)
    found = gpu.measure_parts(small, 60, lambda found: kept.append(len(found["parts"])), (good, bad))
    assert kept == [1, 2, 2] and found["parts"]["good"]["crops_per_s"] == 1.0
    assert found["parts"]["bad"]["error"] == "RuntimeError: no luck" and {"versions"} <= set(
        found["provenance"]
    )


def test_time_that_runs_out_ends_a_part_and_leaves_out_the_rest():
    # In a process of its own, as the program is: what other tests loaded may not bear its alarm.
    code = """
import json, time
from pathlib import Path
from benchmarks import gpu

def endless(_):
    time.sleep(600)

def never(_):
    raise AssertionError

small = gpu.Bench(gpu.SMOKE, (4,), 0.0, Path("."), None)
print(json.dumps(gpu.measure_parts(small, 0.05, lambda found: None, (endless, never))["parts"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    parts = json.loads(done.stdout.splitlines()[-1])
    assert "TimeoutError" in parts["endless"]["error"] and parts["never"]["error"] == "no time was left"


@pytest.mark.slow
def test_the_gpu_program_is_rehearsed(tmp_path):
    output = tmp_path / "gpu.json"
    assert gpu.main(["--rehearse", "--output", str(output)]) == 0
    parts = json.loads(output.read_text())["parts"]
    assert set(parts) == {part.__name__ for part in gpu.PARTS}
    assert parts["resume"]["weights_differ_by"] == 0.0 and 11 <= parts["resume"]["killed_after_step"] < 24
