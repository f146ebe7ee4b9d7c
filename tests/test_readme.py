"""README and the guide say what the code and the committed results say."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from hrnetpp_lib.__main__ import build_parser
from hrnetpp_lib.app.experiments import EXPERIMENTS, STUDY
from hrnetpp_lib.app.study import read_results
from hrnetpp_lib.app.verdicts import find_inversions, trainings, verdicts
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.evaluate.statistics import judge
from hrnetpp_lib.evaluate.table import PAPER_TABLE_1
from hrnetpp_lib.files import write_json
from hrnetpp_lib.recipe import MINI, PROFILES, STAGE2, table_runs
from tools.readme import PAGES, list_choices, render_page, table_of_benchmarks, table_of_profiles

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
GUIDE = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES)
def test_generated_parts_are_up_to_date(page):
    text = (ROOT / page).read_text()
    assert render_page(page, text, ROOT) == text, "something changed: python tools/readme.py writes it anew"


def test_the_table_has_a_column_per_profile_with_results(tmp_path):
    row = {"metrics": {"AP": 0.5}, "interval": [0.4, 0.6], "difference": None}
    old = [row | {"method": method} for method in PAPER_TABLE_1]
    for name in ("smoke", "lspet"):
        write_json(tmp_path / name / "results.json", {"data": f"{name} data", "rows": old})
    first = row | {"trainings": [[0.4, 0.5], [0.4, 0.5]]}
    other = row | {"trainings": [[0.5, 0.6], [0.52, 0.66]], "difference": [11.0, 0.04, 20.0]}
    new = [of | {"method": method} for of, method in zip([first, *[other] * 5], PAPER_TABLE_1, strict=True)]
    new.insert(1, row | {"method": "published HRNet-W48"})  # which is in table_1.md alone
    write_json(tmp_path / "mini" / "results.json", {"data": "mini data", "rows": new})
    lines = table_of_profiles(tmp_path)
    assert lines[:3] == ["* `mini`: mini data", "* `lspet`: lspet data", ""]
    ours = "[`mini`](figures/mini/table_1.md): AP | 2 trainings | exact shift | minus first row"
    assert lines[3] == f"| method | report: AP | {ours} | [`lspet`](figures/lspet/table_1.md): AP |"
    assert lines[4] == f"| {' | '.join(['---'] * 7)} |"
    cells = "50.0 [40.0, 60.0] | 40.0 ± 0.0 | 50.0 ± 0.0 |  | 50.0 [40.0, 60.0]"
    assert lines[5] == f"| HRNet | 76.3 | {cells} |"
    cells = "50.0 [40.0, 60.0] | 51.0 ± 1.4 | 63.0 ± 4.2 | +11.0 [+0.0, +20.0] | 50.0 [40.0, 60.0]"
    assert lines[6] == f"| HRNet++ (heatmap) | 76.5 | {cells} |"
    assert len(lines) == 11


def test_the_benchmark_has_a_column_per_machine(tmp_path):
    assert table_of_benchmarks(tmp_path / "bench.json") == []
    row = {"what": "a step", "unit": "step", "threads": 2, "official": "0123456789ab", "git_revision": "abc"}
    row |= {"reference_ms": 1200.4, "ours_ms": 400.2, "ratio": 2.98, "quartiles": [2.91, 3.07]}
    growth = {"what": "scoring", "ms_per_1000": {"1000": 5.5, "10000": 5.4}, "git_revision": "abc"}
    first = {"rows": {"step": row, "growth": growth}}
    second = {"rows": {"nms": row | {"what": "NMS", "threads": 1, "official": None}, "step": row}}
    write_json(tmp_path / "bench.json", {"one CPU": first, "another": second})
    cell = "**3.0** [2.9, 3.1]: 1200 / 400.2 ms a step"
    assert table_of_benchmarks(tmp_path / "bench.json") == [
        "* A: one CPU; against official HRNet at 0123456; ours at abc",
        "* B: another; against official HRNet at 0123456; ours at abc",
        "",
        "| work | A: times as fast | B: times as fast |",
        "| --- | --- | --- |",
        f"| a step, 2 threads | {cell} | {cell} |",
        f"| NMS, 1 thread |  | {cell} |",
        "",
        "* A, a thousand boxes, scoring: 5.5 ms at 1,000, 5.4 ms at 10,000 boxes",
    ]


def test_every_mark_in_the_code_is_listed():
    texts = [path.read_text() for path in (ROOT / "hrnetpp_lib").rglob("*.py")]
    marks = sum(len(re.findall(r"# (?:CHOICE|DEVIATION):", text)) for text in texts)
    assert len(list_choices(ROOT / "hrnetpp_lib")) == marks > 5


def test_a_mark_names_its_room_and_may_go_on_over_lines(tmp_path):
    (tmp_path / "room").mkdir()
    text = "x = 1\n    # CHOICE: first line,\n    # second line.\n# DEVIATION: another.\ny = 2  # not this\n"
    (tmp_path / "room" / "a.py").write_text(text)
    choice, deviation = list_choices(tmp_path)
    assert choice == "* choice, `room/a.py`: first line, second line."
    assert deviation == "* deviation, `room/a.py`: another."


def test_missing_marker_is_named():
    with pytest.raises(HrnetppError, match="choices"):
        render_page("docs/choices.md", "<!-- choices -->\n* one", ROOT)


def test_it_runs_as_a_file(tmp_path):
    for name in ("hrnetpp_lib", "tools", "figures", "docs"):
        ignored = shutil.ignore_patterns("__pycache__", "*.png")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "hrnetpp_lib" / "new.py").write_text("# CHOICE: this one is new here.\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "tools/readme.py"], cwd=tmp_path, env=environment, check=True)
    assert "\n* choice, `new.py`: this one is new here.\n" in (tmp_path / "docs" / "choices.md").read_text()


@pytest.mark.parametrize("page", [ROOT / "README.md", *GUIDE], ids=lambda path: path.name)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_every_command_is_understood():
    """In shell blocks and code spans of README and the guide."""
    text = README + "".join(page.read_text() for page in GUIDE)
    lines = "\n".join(re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)).splitlines()
    lines += re.findall(r"`(python -m hrnetpp_lib[^`]*)`", text)
    commands = [line.partition("  #")[0] for line in lines if "-m hrnetpp_lib " in line]
    assert len(commands) > 6
    for command in commands:
        arguments = shlex.split(command.split("-m hrnetpp_lib ", 1)[1])
        assert build_parser().parse_args(arguments), command


def test_every_profile_is_on_the_ladder_and_readme_is_short():
    assert all(f"| `{name}` |" in README for name in PROFILES)
    by_hand = re.sub(r"<!-- (.*?) -->.*?<!-- end of \1 -->", "", README, flags=re.DOTALL)
    assert len(by_hand.splitlines()) <= 150


def test_what_is_said_on_minis_trainings_was_measured():
    found = trainings(read_results(ROOT), MINI)
    known = [{row: 100 * ap for row, (ap, _) in of.aps.items()} for of in found]
    heatmap, regression = "HRNet++ (heatmap)", "HRNet++ (regression)"
    worst, *others = sorted(known, key=lambda of: of[heatmap])
    from_to = "{:.1f} to {:.1f}".format
    before, after = (
        from_to(*np.quantile([of[row] for of in others], (0, 1))) for row in (heatmap, regression)
    )
    text = " ".join(README.split("`mini` is **drawn people")[1].split("\n## ")[0].split())
    assert (
        f"Seven of its eight HRNet++ end stage 2 at {before}, one, its ankles not told apart, at "
        f"{worst[heatmap]:.1f}; after stage 3 it has {worst[regression]:.1f}, the others {after}." in text
    )
    rest = [*(of["HRNet"] for of in known), *(of[heatmap] for of in others)]
    said = f"one of sixteen, its ankles not told apart, ended at {worst[heatmap]:.1f}, the others at"
    assert f"{said} {from_to(min(rest), max(rest))}." in (ROOT / "docs" / "choices.md").read_text()
    steps = [(heatmap, "HRNet"), (regression, heatmap), (f"{regression} + TTA", regression)]
    steps += [("ensemble", regression), ("ensemble + TTA", f"{regression} + TTA")]
    assert [of.seed for of in found] == [0, 0, 1, 1, 2, 2, 3, 3]
    ahead = np.array([[of[a] - of[b] for of in known] for a, b in steps]).reshape(5, 4, 2).mean(axis=2)
    words = [one.words for one in judge(ahead, "AP")]
    assert words.pop(2) == "larger" and all("not decided" in one for one in words)


def test_of_minis_heatmap_networks_one_does_not_tell_the_ankles_apart():
    results, ankles = read_results(ROOT), []
    for precision, seed in product(("fp32", "bf16"), range(4)):
        runs = table_runs(replace(MINI, precision=precision), seed)
        found = (results[runs[name].name].sets["test"]["quarter"] for name in ("hrnet", "heatmap"))
        ankles += [min(measured.inversions[15:]) for measured in found]
    assert sum(share > 0.4 for share in ankles) == 1 and sorted(ankles)[-2] < 0.16


def test_what_is_said_on_minis_former_recipes_was_measured():
    """Of one block a branch: HRNet, tuned or not, and HRNet++, whose heatmaps were below."""

    def pairs(start_scale: float, batch_size: int, **rates: float) -> np.ndarray:
        """AP of HRNet and of HRNet++'s heatmaps, training by training."""
        found = {}
        for result in read_results(ROOT).values():
            run, profile = result.recipe, result.recipe.profile
            wanted = 1, start_scale, batch_size, rates.get(run.architecture.name), STAGE2.name
            kind = profile.network.blocks_per_branch, profile.start_scale, profile.batch_size
            same = (*kind, run.stage.lr_start, run.stage.name) == wanted
            if same and run.previous and profile.name == MINI.name:
                training = found.setdefault((run.seed, profile.precision), {})
                training[run.architecture.name] = 100 * result.sets["test"]["quarter"].metrics["AP"]
        return np.array([[of["hrnet"], of["hrnetpp"]] for of in found.values() if len(of) == 2])

    tuned = {"hrnet": 2.5e-4, "hrnetpp": 2e-3}
    kinds = [pairs(1.0, 32, **tuned), pairs(1.0, 16, **tuned), pairs(16.0, 16, hrnet=1e-3, hrnetpp=1e-3)]
    assert [len(of) for of in kinds] == [6, 8, 4]
    below = [-np.diff(of).mean() for of in kinds]
    said = (
        "each at a rate of its own by {:.1f} points in six pairs with batches of 32, by {:.1f} in eight with "
        "16; from a larger start by {:.1f} in four."
    )
    assert said.format(*below) in " ".join(README.split())
    aps = np.sort(kinds[2], axis=None)
    said = "two of eight networks ended stage 2 at {:.1f} and {:.1f} AP, ".format(*aps)
    text = (ROOT / "docs" / "choices.md").read_text()
    assert said in text and f"; the others at {aps[2]:.1f} to {aps[-1]:.1f}." in text


def test_what_the_first_screen_says_in_words():
    claims = {(one.experiment, one.claim): one for one in verdicts(read_results(ROOT))}
    ahead = claims["E1", "HRNet++ - HRNet, heatmaps"]
    assert ahead.verdicts["OKS"].words == "smaller"
    gained = claims["E5", "stage 3: L1 - MSE of equal rate and steps"].differences["AP"]
    ankles = [of.share((15, 16)) for of in find_inversions(read_results(ROOT)) if of.network == "heatmap"]
    mended = [gain for gain, share in zip(gained, ankles, strict=True) if share > 25]
    others = [gain for gain, share in zip(gained, ankles, strict=True) if share <= 25]
    assert len(mended) == 6 and min(mended) > 2 and np.abs(others).max() < 0.1
    grown = claims["E12", "larger start: HRNet++ - HRNet, heatmaps"].differences["AP"]
    assert len(grown) == 2 and min(grown) > 0
    assert (
        "HRNet++ ended below an HRNet whose learning rate was tuned, mostly with left and right ankles not "
        "told apart; from larger starting weights, in two pairs, above it. Stage 3, the regression, mends "
        "ankles; where they were right, as long a training on heatmaps gains as much."
    ) in " ".join(README.split())


def test_what_is_said_on_rounding_was_measured():
    results, run = read_results(ROOT), EXPERIMENTS["E1"].runs(1)[1]
    exact = next(r.recipe for r in results.values() if r.recipe.profile == replace(STUDY, precision="fp32"))
    assert replace(exact, profile=run.profile) == run
    aps = [100 * results[name].sets["test"]["quarter"].metrics["AP"] for name in (run.name, exact.name)]
    said = "E1's HRNet++ of seed 1 has {:.1f} AP, and {:.1f} if trained in fp32".format(*aps)
    assert said in " ".join(README.split())


def test_what_is_said_on_photographs_was_measured():
    section = README.split("## On photographs")[1].split("\n## ")[0]
    said = re.search(r"\(AP\s(\S+),\sheatmaps\s(\S+),\sregression\s(\S+);[^)]*\s(\S+)\)", section).groups()
    rows = json.loads((ROOT / "figures" / "lspet_cpu" / "results.json").read_text())["rows"]
    assert list(said[:3]) == [f"{100 * row['metrics']['AP']:.1f}" for row in rows[:3]]
    control = read_results(ROOT)[EXPERIMENTS["E7"].runs(0)[-1].name].sets["test"]["quarter"]
    assert said[3] == f"{100 * control.metrics['AP']:.1f}"


def test_committed_results_are_of_one_clean_commit():
    for path in set((ROOT / "figures").glob("*/results.json")) - {ROOT / "figures/smoke/results.json"}:
        content = json.loads(path.read_text())
        assert re.fullmatch(r"[0-9a-f]{7,40}", content["provenance"]["git_revision"])
        digests = [digest for row in content["rows"] for digest in row["runs"].values()]
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)
