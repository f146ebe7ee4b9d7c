"""The study asks for pairs that differ in one thing, trains none twice, and keeps every measure in a line."""

import threading
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from test_verdicts import made_up

from hrnetpp_lib.__main__ import main
from hrnetpp_lib.app import experiments, study
from hrnetpp_lib.app.experiments import CLAIMS, EXPERIMENTS, all_runs
from hrnetpp_lib.app.study import append_result, read_results
from hrnetpp_lib.data.layout import load_stage_data, prepare_data
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.files import project_root
from hrnetpp_lib.model.hrnet import HRNet
from hrnetpp_lib.recipe import SMOKE
from hrnetpp_lib.train.loop import train_stage

TINY = replace(
    SMOKE, name="study", synthetic_persons=(8, 12, 4), holdout_persons=2, epochs=(1, 1, 1), input_hw=(64, 32)
)


def differing(a: dict, b: dict, at: str = "") -> set[str]:
    """Where two recipes differ."""
    parts = {name for name in a if isinstance(a[name], dict)}
    changed = {f"{at}{name}" for name in {*a} - parts if a[name] != b[name]}
    return changed.union(*(differing(a[name], b[name], f"{at}{name}.") for name in parts))


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.text)
def test_the_two_sides_of_a_claim_differ_in_what_it_names_alone(claim):
    for seed in (0, 3):
        (better, way), (worse, other) = claim.arms(seed)
        assert better.seed == worse.seed == seed and better.profile.input_hw == worse.profile.input_hw
        changed = differing(asdict(better), asdict(worse))
        assert bool(changed) != (way != other and "L1 -" not in claim.text)
        if claim.experiment in ("E1", "E4"):
            rates = {"profile.lr_scales", "stage.lr_start", "stage.lr_end"}
            assert {name.split(".")[0] for name in changed - rates} == {"architecture"}
            assert "at the report's" not in claim.text or not changed & rates
        asked = {run.name for run in EXPERIMENTS[claim.experiment].runs(seed)}
        assert {better.name, worse.name} <= asked


def test_one_change_a_time_and_every_start_before_what_starts_from_it():
    runs = all_runs(EXPERIMENTS.values())
    assert len({run.name for run in runs}) == len(runs)
    done = set()
    for run in runs:
        assert run.previous is None or run.previous in done
        done.add(run.name)
    for architecture in {run.architecture for run in runs}:
        with torch.device("meta"):
            HRNet(8, blocks_per_branch=1, modules=(1, 2, 2), **architecture.arguments)
    switches = [run.architecture.switches for run in EXPERIMENTS["E4"].runs(0)[2:]]
    off = [[name for name, on in one.items() if not on] for one in switches]
    assert off == [["se"], ["avgpool_down"], ["skips"], ["subpixel_head"], []]
    l1, control = EXPERIMENTS["E5"].runs(1)[1:]
    assert differing(asdict(l1), asdict(control)) == {"stage.loss"}
    assert l1.previous == EXPERIMENTS["E1"].runs(1)[1].name
    shrunk, as_it_is = EXPERIMENTS["E2"].runs(2)[-2:], EXPERIMENTS["E2"].runs(2)[-4:-2]
    for a, b in zip(shrunk, as_it_is, strict=True):
        assert differing(asdict(a), asdict(b)) == {"stage.start_scale"} and a.previous is not None
    assert len(all_runs([EXPERIMENTS["E1"]], seeds=9)) == 18 and len(all_runs([EXPERIMENTS["E1"]])) == 16


def test_the_cost_of_a_study():
    crops = {name: sum(map(study._crops, one.runs(0))) for name, one in EXPERIMENTS.items()}
    stage_1, short = 2 * 7500, 24_000
    assert crops["E1"] == 2 * 60_000 and crops["E5"] == 60_000 + 2 * 12_000
    assert crops["E2"] == 2 * (3 * short + stage_1) and crops["E3"] == 12 * short
    assert crops["E7"] == 2 * 15 * 4900 + (2 * 60 + 2 * 8) * 4000


def test_rates_are_tried_about_the_profiles(monkeypatch):
    runs = EXPERIMENTS["E3"].runs(0)
    rates = {one.name: [r.stage.lr_start for r in runs if r.architecture == one] for one in experiments.PAIR}
    assert rates == {
        "hrnet": [3.125e-5, 6.25e-5, 1.25e-4, 2.5e-4, 5e-4, 1e-3],
        "hrnetpp": [1.25e-4, 2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3],
    }
    monkeypatch.setitem(experiments.RATES, "hrnetpp", 4.0)
    plain, plus_plus = EXPERIMENTS["E1"].runs(0)
    assert (plain.stage.lr_start, plus_plus.stage.lr_start) == (6.25e-5, 4e-3)
    used = [run.stage.lr_start for run in EXPERIMENTS["E4"].runs(0)]
    assert used == [1e-3] * 7 and EXPERIMENTS["E3"].runs(0) == runs
    assert [run.stage.lr_start for run in EXPERIMENTS["E10"].runs(0)] == [1e-3, 2e-3]
    assert EXPERIMENTS["E3"].measured == EXPERIMENTS["E10"].measured == "dev"
    assert [run.stage.lr_start for run in EXPERIMENTS["E11"].runs(0)] == [6.25e-5, 1e-3]
    reported, grown = EXPERIMENTS["E11"].runs(0)[1], EXPERIMENTS["E12"].runs(0)[3]
    assert differing(asdict(reported), asdict(grown)) == {"stage.start_scale", "profile.start_scale"}
    assert grown.stage.start_scale == 16 and EXPERIMENTS["E2"].runs(0)[3].stage.start_scale == 16


@pytest.fixture
def small_study(tmp_path, monkeypatch):
    """A study of tiny networks in a folder, whose trainings are counted; runs in `.fails` fail."""
    for module in (study, experiments):
        monkeypatch.setattr(module, "LONG", 2)
    monkeypatch.setattr(experiments, "STUDY", TINY)
    monkeypatch.setattr(study, "TEST_PERSONS", 5)
    known = lambda self, run: self.setdefault(("study", "fp32", "hrnet"), 50.0)  # noqa: E731
    monkeypatch.setattr(study._Speed, "_of", known)
    monkeypatch.setattr(study, "processes_at_once", lambda runs: 2)
    for name in EXPERIMENTS:
        monkeypatch.setitem(EXPERIMENTS, name, replace(EXPERIMENTS[name], seeds=1))
    trained, fails, lock = [], set(), threading.Lock()  # one random state for all threads of a process

    def train_together(runs, root, processes):
        (run,) = runs
        if run.name in fails:
            raise HrnetppError(f"not trained: {run.name}")
        paths = prepare_data(run.profile, root / "data")
        data = load_stage_data(run.stage.dataset, run.profile, paths)
        with lock:
            train_stage(run, data, root / "runs" / run.profile.name, paths.root)
        trained.append(run.name)

    monkeypatch.setattr(study, "train_together", train_together)
    return tmp_path, trained, fails


def test_a_study_goes_on_where_it_stopped_and_trains_nothing_twice(small_study, capsys):
    root, trained, _ = small_study
    assert main(["study", "--run", "E1", "--hours", "0", "--output", str(root)]) == 0
    assert not trained and "0 hours are used; 2 tasks are left" in capsys.readouterr().out
    assert main(["study", "--run", "E1", "--output", str(root)]) == 0
    pair = [run.name for run in EXPERIMENTS["E1"].runs(0)]
    assert sorted(trained) == sorted(pair) == sorted(read_results(root))
    assert main(["study", "--run", "E12", "--run", "E6", "--output", str(root)]) == 0
    assert sorted(trained[2:]) == sorted(run.name for run in EXPERIMENTS["E12"].runs(0)[2:])
    assert main(["study", "--run", "E1", "--seeds", "2", "--output", str(root)]) == 0
    assert len(trained) == len({*trained}) == 8
    found, (l1, control) = read_results(root), EXPERIMENTS["E12"].runs(0)[4:]
    assert {"soft", "quarter_exact", "soft_scaled"} < set(found[pair[1]].sets["test"])
    assert {"soft", "tta", "ensemble", "ensemble_tta"} < set(found[l1.name].sets["test"])
    assert "quarter" in found[control.name].sets["test"] and "tta" not in found[control.name].sets["test"]
    assert set(found[pair[0]].sets) == {"test"} and len(found[pair[0]].sets["test"]["quarter"].persons) == 5
    assert found[l1.name].crops == 8 and found[l1.name].recipe == l1 and found[l1.name].train_seconds > 0
    dev, test = study.open_sets(TINY, root).values()
    assert (len(dev.truth), len(test.truth)) == (4, 5) and len(test.train) == 8
    assert not np.array_equal(dev.truth.keypoints, test.truth.keypoints[:4])  # other people
    capsys.readouterr()
    assert main(["study", "--output", str(root)]) == 0
    printed = capsys.readouterr().out
    assert "E1  heatmaps: HRNet++ over HRNet: 2 of 2 runs measured; all trained" in printed
    assert "(on the dev set): 0 of 12 runs measured; 96 crops to train, about 0.0 hours in 2 pr" in printed
    assert "50 crops/s of a process, without reading them: study, fp32, hrnet" in printed


def test_the_speed_is_measured_once_for_each_network(monkeypatch):
    monkeypatch.setattr(experiments, "STUDY", TINY)
    runs, speed = [run for seed in (0, 1) for run in EXPERIMENTS["E1"].runs(seed)], study._Speed()
    hours = speed.hours(runs)
    assert (
        set(speed) == {("study", "fp32", "hrnet"), ("study", "fp32", "hrnetpp")} and min(speed.values()) > 1
    )
    assert hours == pytest.approx(2 * sum(5 * 8 / rate for rate in speed.values()) / 3600)


def test_rates_are_tried_on_dev_and_the_same_networks_are_measured_on_test_when_others_ask(small_study):
    root, trained, _ = small_study
    study.run_study(["E10", "E11"], root, 1.0)
    found, tried = read_results(root), [run.name for run in EXPERIMENTS["E10"].runs(0)]
    asked = [run.name for run in EXPERIMENTS["E11"].runs(0)]
    assert len(trained) == len({*trained}) == len(found) == 2 + 2 - 1 and asked[1] == tried[0]
    assert {name for name, one in found.items() if "dev" in one.sets} == {*tried}
    assert {name for name, one in found.items() if "test" in one.sets} == {*asked}
    assert len(found[tried[0]].sets["dev"]["quarter"].persons) == 4


def test_lost_networks_are_trained_again_only_where_something_starts_from_them(small_study):
    root, trained, _ = small_study
    study.run_study(["E1"], root, 1.0)
    plain, plus_plus = EXPERIMENTS["E1"].runs(0)
    for run in (plain, plus_plus):
        (root / "runs" / "study" / run.name / "model.safetensors").unlink()
    study.run_study(["E1", "E5"], root, 1.0)
    assert trained.count(plain.name) == 1 and trained.count(plus_plus.name) == 2 and len(trained) == 5


def test_a_seed_is_whole_in_all_experiments_before_the_next_begins(small_study, monkeypatch):
    monkeypatch.setattr(study, "processes_at_once", lambda runs: 1)
    root, trained, _ = small_study
    study.run_study(["E1", "E5"], root, 1.0, seeds=2)
    found = read_results(root)
    assert [found[name].recipe.seed for name in trained] == [0] * 4 + [1] * 4 and len(found) == 8


def test_a_run_that_fails_is_named_and_the_others_go_on(small_study):
    root, trained, fails = small_study
    plain, plus_plus = EXPERIMENTS["E1"].runs(0)
    fails.add(plus_plus.name)
    with pytest.raises(HrnetppError, match=f"3 runs failed, the others went on: {plus_plus.name}"):
        study.run_study(["E1", "E5"], root, 1.0)
    assert trained == [plain.name] == list(read_results(root))
    fails.clear()
    study.run_study(["E1", "E5"], root, 1.0)
    assert len(trained) == 4


def test_two_lines_of_a_run_are_taken_together_and_a_damaged_one_is_named(tmp_path):
    run, oks = EXPERIMENTS["E1"].runs(0)[0], np.full(3, 0.5)
    append_result(tmp_path, made_up(run, oks, 0.5))
    append_result(tmp_path, replace(made_up(run, oks, 0.25, "tta"), crops=2))
    found = read_results(tmp_path)[run.name]
    assert {way: m.metrics["AP"] for way, m in found.sets["test"].items()} == {"quarter": 0.5, "tta": 0.25}
    assert [file.name for file in study.results_path(tmp_path).parent.iterdir()] == ["results.jsonl"]
    with open(study.results_path(tmp_path), "a") as file:
        file.write('{"run": 5}\n')
    with pytest.raises(HrnetppError, match="results.jsonl, line 3: .*restore it from version control"):
        read_results(tmp_path)


def test_a_line_whose_parts_are_not_of_one_another_is_named_and_no_such_line_is_written(tmp_path):
    (run, other), oks = EXPERIMENTS["E1"].runs(0), np.array([0.25, 0.5, 0.5])
    right = made_up(run, oks, 0.5)
    figures = right.sets["test"]["quarter"]

    def changed(**fields) -> study.Result:
        return replace(right, sets={"test": {"quarter": replace(figures, **fields)}})

    assert abs(figures.persons.mean() - figures.oks) > 1e-4  # a byte each
    for wrong, words in (
        (replace(right, recipe=other), f"its recipe is that of {other.name}, not of {run.name}"),
        (changed(oks=41.7), "quarter: oks is 41.7, that of its persons 0.41"),
        (changed(oks_of_persons=b"x"), "quarter: oks_of_persons cannot be unpacked"),
        (made_up(run, oks[:2], 0.5), "quarter: has 2 persons, other networks 3"),
        (changed(metrics={}), "quarter: has no AP"),
    ):
        path = study.results_path(tmp_path)
        path.unlink(missing_ok=True)
        append_result(tmp_path, right)
        append_result(tmp_path, wrong)
        with pytest.raises(HrnetppError, match=f"results.jsonl, line 2: {words}.*; restore it"):
            read_results(tmp_path)
    before = path.read_bytes()
    with pytest.raises(HrnetppError, match=f"figures of {run.name}: .*its training diverged"):
        append_result(tmp_path, changed(metrics={"AP": float("nan")}))
    assert path.read_bytes() == before


def test_an_unknown_experiment_is_refused(capsys):
    assert main(["study", "--run", "E99"]) == 2
    assert "no experiment is called 'E99'; choose one of E3, E1" in capsys.readouterr().err


def test_every_committed_line_is_of_a_run_as_it_is_named_today():
    for name, result in read_results(project_root()).items():
        assert result.recipe.name == name == result.run
        assert all(0 < m.oks < 1 for ways in result.sets.values() for m in ways.values())
