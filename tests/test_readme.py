"""README says what the code and the committed results say."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hrnetpp_lib.__main__ import build_parser
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.files import write_json
from hrnetpp_lib.recipe import PROFILES
from tools.readme import list_choices, render_readme, table_of_profiles

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_generated_parts_are_up_to_date():
    assert render_readme(README, ROOT) == README, "something changed: python tools/readme.py writes them anew"


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
        for path in (ROOT / "hrnetpp_lib").rglob("*.py")
    )
    assert len(list_choices(ROOT / "hrnetpp_lib")) == marks > 5


def test_a_mark_names_its_room_and_may_go_on_over_lines(tmp_path):
    (tmp_path / "room").mkdir()
    text = "x = 1\n    # CHOICE: first line,\n    # second line.\n# DEVIATION: another.\ny = 2  # not this\n"
    (tmp_path / "room" / "a.py").write_text(text)
    assert list_choices(tmp_path) == [
        "* choice, `room/a.py`: first line, second line.",
        "* deviation, `room/a.py`: another.",
    ]


def test_missing_marker_is_named():
    with pytest.raises(HrnetppError, match="choices"):
        render_readme(README.replace("<!-- end of choices -->", ""), ROOT)


def test_it_runs_as_a_file(tmp_path):
    (tmp_path / "README.md").write_text(README)
    shutil.copytree(ROOT / "figures", tmp_path / "figures", ignore=shutil.ignore_patterns("*.png"))
    for name in ("hrnetpp_lib", "tools"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "pyproject.toml").touch()
    command, paths = [sys.executable, "tools/readme.py"], {"PYTHONPATH": str(tmp_path)}
    (tmp_path / "hrnetpp_lib" / "new.py").write_text("# CHOICE: this one is new here.\n")
    subprocess.run(command, cwd=tmp_path, env=os.environ | paths, check=True)
    assert "\n* choice, `new.py`: this one is new here.\n" in (tmp_path / "README.md").read_text()


def test_links_lead_to_files():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_every_module_is_in_the_tree_in_its_room():
    (tree,) = [block for block in README.split("```") if block.startswith("\nhrnetpp_lib/\n")]
    # A room's line starts with two spaces, its name and a slash; lines that go on are indented deeper.
    lines = tree.split("hrnetpp_lib/\n")[1].splitlines()
    rooms: dict[str, str] = {}
    for line in lines:
        if start := re.match(r"  (\w+)/", line):
            rooms[current := start[1]] = ""
        elif re.match(r"  \w", line):
            current = ""
        if line.startswith("  "):
            rooms[current] = f"{rooms.get(current, '')} {line}"
    for path in (ROOT / "hrnetpp_lib").rglob("[a-z]*.py"):
        room, *inside = path.relative_to(ROOT / "hrnetpp_lib").parts
        room = room if inside else ""
        assert re.search(rf"\b{path.stem}\b", rooms.get(room, "")), f"{room}/{path.name}"


def commands_of(text: str) -> list[str]:
    """Lines of README's shell blocks and of its code spans that call the package."""
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`(python -m hrnetpp_lib[^`]*)`", text)
    return [line.partition("  #")[0] for line in lines if "-m hrnetpp_lib " in line]


def test_every_command_is_understood():
    commands = commands_of(README)
    assert len(commands) > 6
    for command in commands:
        arguments = shlex.split(command.split("-m hrnetpp_lib ", 1)[1])
        assert build_parser().parse_args(arguments), command


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
