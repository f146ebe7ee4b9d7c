"""Verdicts are made from the results alone; so are Table 1's rows over trainings."""

import json
import zlib
from dataclasses import asdict, replace

import numpy as np
import pytest

from hrnetpp_lib.__main__ import main
from hrnetpp_lib.app.experiments import CLAIMS, EXPERIMENTS
from hrnetpp_lib.app.study import Result, append_result, read_results
from hrnetpp_lib.app.verdicts import (
    claims_in_words,
    find_inversions,
    planned_seeds,
    trainings,
    verdicts,
    write_verdicts,
)
from hrnetpp_lib.evaluate.measure import Measure
from hrnetpp_lib.evaluate.table import PARTS
from hrnetpp_lib.files import project_root
from hrnetpp_lib.recipe import LSPET_CPU, MINI, SMOKE, table_runs


def made_up(run, oks: np.ndarray, ap: float, way: str = "quarter") -> Result:
    packed = zlib.compress(np.round(255 * oks).astype(np.uint8).tobytes())
    figures = Measure(float(oks.mean()), packed, {"AP": ap}, (0.4, 0.9), 0.6, 0.1, 1e-3)
    return Result(run.name, run, 1, 1.0, {}, {"dev": {way: figures}, "test": {way: figures}})


def test_verdicts_are_made_from_the_lines_alone(tmp_path, capsys):
    random, oks = np.random.default_rng(0), np.random.default_rng(1).uniform(0.3, 0.7, 40)
    for seed in range(8):
        plain, plus_plus = EXPERIMENTS["E1"].runs(seed)
        luck = random.normal(0, 0.002)
        append_result(tmp_path, made_up(plain, oks, 0.5))
        append_result(tmp_path, made_up(plus_plus, oks + 0.2 + luck, 0.5 + luck / 10))
    assert main(["study", "--verdicts", "--output", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "figures" / "study" / "verdicts.json").read_text())
    first = rows[0]
    assert (first["experiment"], first["seeds"], first["report"]) == ("E1", [*range(8)], 0.2)
    oks, ap = first["verdicts"]["OKS"], first["verdicts"]["AP"]
    assert oks["words"] == "larger" and ap["words"] == "equal within 1 AP"
    assert oks["mean"] == pytest.approx(np.mean(first["differences"]["OKS"])) == pytest.approx(20, abs=0.4)
    assert first["intervals"]["OKS"] == [oks["low"], oks["high"]] and oks["low"] < oks["mean"] < oks["high"]
    low, high = first["two_level"]
    assert low < oks["mean"] < high and first["differences"]["missed"] == [0] * 8
    assert all(row["verdicts"]["OKS"]["words"] == "not decided; no two pairs yet" for row in rows[1:])
    drawn = [tmp_path / "figures" / "study" / f"{name}.png" for name in ("verdicts", "inversions")]
    assert all(path.stat().st_size > 10_000 for path in drawn)
    table = (tmp_path / "figures" / "study" / "verdicts.md").read_text()
    assert table in capsys.readouterr().out
    assert "| E1 | HRNet++ - HRNet, heatmaps | +0.2 | 8 of 8 | +20." in table
    judged = verdicts(read_results(tmp_path))
    reported = sum(claim.report is not None for claim in CLAIMS)
    assert (
        f"Of {len(CLAIMS)} claims 1 are decided, and {len(CLAIMS) - 1} have no pair of trainings yet. "
        f"{reported} claims try a step of the report's, each in a way of its own: 1 came out larger, 0 "
        "smaller, 0 equal." in table
    )
    (line,) = claims_in_words(judged)
    assert line.startswith("HRNet++ - HRNet, heatmaps: **larger**, OKS +20.") and line.endswith("; 8 pairs")
    assert "], AP +0.0" in line and "] (report +0.2); 8" in line
    assert (
        "| larger |" in table
        and "| equal within 1 AP |" in table
        and sum(line[:3] == "| E" for line in table.splitlines()) == len(CLAIMS) + 1
    )
    assert (  # of equal networks but for luck in OKS
        "| E1 | HRNet++ - HRNet, heatmaps | +0.00 [+0.00, +0.00] | +0.00 [+0.00, +0.00] "
        "| +0.00 [+0.00, +0.00] | +0.000 [+0.000, +0.000] | +0.000 [+0.000, +0.000] |\n" in table
    )
    assert "Of 16 networks measured 0 are of recipes and experiments that were given up." in table


def test_there_is_no_verdict_before_the_planned_seeds_and_next_to_nothing_is_called_so(tmp_path):
    random, oks = np.random.default_rng(0), np.random.default_rng(1).uniform(0.3, 0.7, 4000)
    for seed in range(8):
        for run in EXPERIMENTS["E1"].runs(seed):
            better = 0.004 * run.architecture.skips + random.normal(0, 0.0003)
            append_result(tmp_path, made_up(run, oks + better, 0.5))
        first = verdicts(read_results(tmp_path))[0].verdicts["OKS"]
        if 3 <= seed < 7:
            assert first.words == f"not decided; larger so far, {7 - seed} more are planned"
            assert first.more_pairs == 7 - seed and first.p_different < 0.05
    assert first.words == "larger" and first.more_pairs == 0
    table = write_verdicts(tmp_path)
    assert table.count("| larger, by less than a point |") == 1
    (line,) = claims_in_words(verdicts(read_results(tmp_path)))
    assert "**larger, by less than a point**" in line
    for seed in range(2):  # told before it is decided
        for run in EXPERIMENTS["E12"].runs(seed)[2:4]:
            append_result(tmp_path, made_up(run, oks + random.normal(0, 0.0003), 0.5))
    _, grown, *_ = claims_in_words(verdicts(read_results(tmp_path)))
    assert grown.startswith("larger start: HRNet++ - HRNet, heatmaps: **not decided; 6 more are planned**")


def test_e1s_trainings_tell_how_often_they_take_left_for_right():
    plain, plus_plus = EXPERIMENTS["E1"].runs(3)
    results = {run.name: made_up(run, np.full(4, 0.5), 0.6) for run in (plus_plus, plain)}
    assert find_inversions(results) == []  # measured before this was
    measures = results[plus_plus.name].sets["test"]
    measures["quarter"] = replace(measures["quarter"], inversions=(0.25,) * 17)
    (one,) = find_inversions(results)
    assert (one.network, one.seed, one.ap, one.of_keypoints) == ("heatmap", 3, 60.0, (25.0,) * 17)
    for run, way in zip(EXPERIMENTS["E5"].runs(3)[1:], ("soft", "quarter"), strict=True):
        results[run.name] = made_up(run, np.full(4, 0.5), 0.7, way)
        measures = results[run.name].sets["test"]
        measures[way] = replace(measures[way], inversions=(0.0625,) * 17)
    assert [one.network for one in find_inversions(results)] == ["heatmap", "regression", "control"]
    for name, number in (("E11", 1), ("E12", 2), ("E12", 3)):
        run = EXPERIMENTS[name].runs(3)[number]
        results[run.name] = replace(results[plus_plus.name], recipe=run)
    found = [one.network for one in find_inversions(results)]
    assert found == ["heatmap", "reported", "grown_hrnet", "grown", "regression", "control"]


def test_the_rate_is_looked_for_on_dev(tmp_path):
    runs = EXPERIMENTS["E3"].runs(1)
    for number, run in enumerate(runs):
        append_result(tmp_path, made_up(run, np.full(3, number / 20), 0.5))
    append_result(tmp_path, made_up(EXPERIMENTS["E10"].runs(1)[0], np.full(3, 0.6), 0.5))
    table = write_verdicts(tmp_path)
    assert (
        "- E3, hrnet: 0.03125: 0.00; 0.0625: 5.00; 0.125: 10.00; 0.25: 15.00; 0.5: 20.00; 1: 25.00; in"
        in table
    )
    assert "- E3, hrnetpp: 0.125: 30.00; 0.25: 35.00; 0.5: 40.00; 1: 45.00; 2: 50.00; 4: 55.00" in table
    assert "- E10, E1's length, hrnetpp: 1: 60.00; 2: -; in use: 2\n" in table and "Over E1's" not in table
    assert f"Of {len(CLAIMS)} claims 0 are decided, and {len(CLAIMS)} have no pair of trainings yet." in table
    assert "0 equal.\n\nOf" in table
    assert "Of the learning rates tried over two epochs HRNet is best at 1 times" in table
    append_result(tmp_path, made_up(EXPERIMENTS["E10"].runs(1)[1], np.full(3, 0.5), 0.5))
    known = (
        "Over E1's 5 epochs HRNet++ has 60.0 at 1 times (1 seed) and 50.0 at 2 times (1 seed); E1 keeps the 2"
    )
    assert f"{known} that was chosen before, E11 takes 1. HRNet was not tried again." in write_verdicts(
        tmp_path
    )
    said = (
        "HRNet++ is best at 4 times the report's: mean OKS 55.0 on the dev set (1 seed), 45.0 at the report's"
    )
    assert f"{said} (1 seed)." in table


def test_the_trainings_of_a_profile_are_those_with_every_row(tmp_path):
    oks = np.full(3, 0.5)

    def keep(run, **ways: float) -> None:
        for way, ap in ways.items():
            append_result(tmp_path, made_up(run, oks, ap, way))
            append_result(tmp_path, made_up(run, oks, ap + 0.01, f"{way}_exact"))

    for seed, precision in ((0, "bf16"), (1, "fp32"), (2, "fp32")):
        runs = table_runs(replace(MINI, precision=precision), seed)
        keep(runs["hrnet"], quarter=0.1)
        keep(runs["heatmap"], quarter=0.2)
        keep(runs["regression"], soft=0.3 + seed / 10, tta=0.4, ensemble=0.5)
        if seed < 2:
            keep(runs["regression"], ensemble_tta=0.6)
    found = trainings(read_results(tmp_path), MINI)
    aps = np.array([list(of.aps.values()) for of in found])
    rest = [0.4, 0.5, 0.6]
    np.testing.assert_allclose(aps[:, :, 0], [[0.1, 0.2, 0.3, *rest], [0.1, 0.2, 0.4, *rest]])
    np.testing.assert_allclose(aps[:, :, 1] - aps[:, :, 0], 0.01)
    assert [one.seed for one in found] == [0, 1]
    assert list(found[0].aps) == list(PARTS) and trainings({}, MINI) == []
    assert [planned_seeds(profile) for profile in (MINI, LSPET_CPU, SMOKE)] == [4, 2, 0]


def test_the_committed_verdicts_are_those_of_the_committed_results():
    found = verdicts(read_results(project_root()))
    assert len(found) == len(CLAIMS)
    kept = json.loads((project_root() / "figures" / "study" / "verdicts.json").read_text())
    assert kept == json.loads(json.dumps([asdict(one) for one in found]))
