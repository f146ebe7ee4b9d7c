"""README says what the code and the committed results say."""

import json
import re
from pathlib import Path

import pytest

from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.files import write_json
from hrnetpp_lib.recipe import PROFILES
from tools.readme import list_choices, render_readme, table_of_profiles

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_generated_parts_are_up_to_date():
    assert render_readme(README) == README, "results changed: python -m tools.readme writes them anew"


def test_the_table_has_a_column_per_profile_with_results(tmp_path):
    figures = [
        {"metrics": {"AP": 0.5}, "interval": [0.4, 0.6], "difference": d}
        for d in [None] + [[0.1, 0, 0.2]] * 5
    ]
    for name in ("smoke", "lspet", "mini"):
        write_json(tmp_path / name / "results.json", {"data": f"{name} data", "rows": figures})
    lines = table_of_profiles(tmp_path)
    assert lines[:3] == ["* `mini`: mini data", "* `lspet`: lspet data", ""]
    assert lines[3].startswith(
        "| method | report: AP | [`mini`](figures/mini/table_1.md): AP | minus first row | [`lspet`]"
    )
    assert lines[5] == "| Original HRNet-W48 | 76.3 | 50.0 [40.0, 60.0] |  | 50.0 [40.0, 60.0] |  |"
    assert lines[6].startswith("| HRNet++ (heatmap) | 76.5 | 50.0 [40.0, 60.0] | +10.0 [+0.0, +20.0] | 50.0")
    assert len(lines) == 11


def test_every_mark_in_the_code_is_listed():
    marks = sum(
        len(re.findall(r"# (?:CHOICE|DEVIATION):", path.read_text()))
        for path in (ROOT / "hrnetpp_lib").glob("*.py")
        if path.name != "readme.py"
    )
    assert len(list_choices()) == marks > 5


def test_a_mark_may_go_on_over_lines(tmp_path):
    (tmp_path / "a.py").write_text(
        "x = 1\n    # CHOICE: first line,\n    # second line.\ny = 2  # not this\n"
    )
    assert list_choices(tmp_path) == ["* choice, `a.py`: first line, second line."]


def test_missing_marker_is_named():
    with pytest.raises(HrnetppError, match="choices"):
        render_readme(README.replace("<!-- end of choices -->", ""))


def test_links_lead_to_files():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_every_module_is_in_the_tree():
    (tree,) = [block for block in README.split("```") if block.startswith("\nhrnetpp_lib/\n")]
    for path in (ROOT / "hrnetpp_lib").glob("[a-z]*.py"):
        assert re.search(rf"\b{path.stem}\b", tree), path.name


def test_every_profile_is_on_the_ladder_and_readme_is_short():
    assert all(f"| `{name}` |" in README for name in PROFILES)
    assert len(README.splitlines()) <= 220


def test_what_is_said_on_photographs_was_measured():
    section = README.split("## On photographs")[1].split("\n## ")[0]
    said = re.findall(r"[-+]\d+\.\d \[[-+.\d, ]+\]", section)
    executed = (ROOT / "notebooks" / "executed" / "lspet_cpu").glob("*.ipynb")
    cells = [cell for path in executed for cell in json.loads(path.read_text())["cells"]]
    printed = "".join(str(output.get("text")) for cell in cells for output in cell.get("outputs", []))
    assert len(said) > 10 and not [figure for figure in said if figure not in printed]


def test_committed_results_are_of_one_clean_commit():
    for path in set((ROOT / "figures").glob("*/results.json")) - {ROOT / "figures/smoke/results.json"}:
        content = json.loads(path.read_text())
        assert re.fullmatch(r"[0-9a-f]{7,40}", content["provenance"]["git_revision"])
        assert all(
            re.fullmatch("[0-9a-f]{64}", digest) for row in content["rows"] for digest in row["runs"].values()
        )
