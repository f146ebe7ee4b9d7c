"""The notebooks: their form, and all of them executed on the smallest profile."""

import ast
import re
import statistics
from pathlib import Path

import nbformat
import pytest

from hrnetpp_lib.app.plan import notebook_runs
from hrnetpp_lib.app.reproduce import reproduce
from hrnetpp_lib.evaluate import ablation, hills, mistakes, views
from hrnetpp_lib.evaluate.table import METRICS, PAPER_TABLE_1
from hrnetpp_lib.files import project_root, read_json
from hrnetpp_lib.recipe import SMOKE

NOTEBOOKS = sorted((project_root() / "notebooks").glob("[0-9]*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


# ---------------------------------------------------------------------------------------------- form


def test_they_are_numbered_without_gaps():
    assert [int(path.stem[:2]) for path in NOTEBOOKS] == list(range(1, len(NOTEBOOKS) + 1))
    assert len(NOTEBOOKS) >= 8


@each_notebook
def test_first_cell_says_what_it_asks_reads_writes_and_takes_and_the_last_reads_the_results(path):
    first, *_, last = read(path).cells
    assert first.cell_type == last.cell_type == "markdown"
    assert first.source.startswith(f"# {int(path.stem[:2])} ")
    assert "**Question.**" in first.source
    rows = re.findall(r"^\| *(\w+) *\|", first.source, flags=re.MULTILINE)
    assert {"report", "reads", "writes", "takes"} <= set(rows)


@each_notebook
def test_parameters_are_literals(path):
    cells = code_cells(path)
    tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    assert tagged == cells[:1]
    statements = ast.parse(tagged[0].source).body
    assert all(isinstance(statement, ast.Assign) for statement in statements)
    values = {each.targets[0].id: ast.literal_eval(each.value) for each in statements}
    assert values["profile"] == "mini" and values["root"] == ".."


@each_notebook
def test_source_is_stripped(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in code_cells(path))
    assert notebook.metadata.kernelspec.name == "python3"
    assert "papermill" not in notebook.metadata


@each_notebook
def test_code_cells_are_short(path):
    lengths = [sum(bool(line.strip()) for line in cell.source.splitlines()) for cell in code_cells(path)]
    assert min(lengths) > 0 and max(lengths) <= 20 and statistics.median(lengths) <= 6


@each_notebook
def test_no_logic_that_belongs_in_the_library(path):
    for cell in code_cells(path):
        nodes = list(ast.walk(ast.parse(cell.source)))
        assert not any(isinstance(node, ast.ClassDef | ast.While | ast.Try | ast.Global) for node in nodes)
        called = {getattr(node.func, "attr", None) for node in nodes if isinstance(node, ast.Call)}
        assert not called & {"zero_grad", "step"}  # nobody trains outside train.py
        for forbidden in ("pip install", "sys.path", "os.chdir", "torchvision", "get_ipython"):
            assert forbidden not in cell.source


@each_notebook
def test_a_cell_imports_four_names_at_most(path):
    for cell in code_cells(path):
        imports = [
            node for node in ast.parse(cell.source).body if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        assert sum(len(node.names) for node in imports) <= 4


@each_notebook
def test_two_exercises_are_asked_first_answered_folded_and_checked(path):
    cells = read(path).cells
    asked = [i for i, cell in enumerate(cells) if "**Predict first:**" in cell.source]
    assert len(asked) == 2
    for i in asked:
        question, answer = cells[i].source.split("<details><summary>Answer</summary>\n\n")
        assert "?" in question and answer.endswith("</details>")
        assert cells[i + 1].cell_type == "code" and "assert " in cells[i + 1].source


@each_notebook
def test_links_lead_somewhere(path):
    for cell in read(path).cells:
        for target in re.findall(r"\]\(([^)#]+\.ipynb)\)", cell.source):
            assert (path.parent / target).is_file(), target


def test_committed_figures_are_those_of_the_present_notebooks():
    named = {
        name
        for path in NOTEBOOKS
        for name in re.findall(r'"(fig\d\d_\w+)"', path.read_text("utf8").replace("\\", ""))
    }
    for folder in ("mini", "lspet_cpu"):
        assert {path.stem for path in (project_root() / "figures" / folder).glob("*.png")} == named


# --------------------------------------------------------------------------- all of them, on `smoke`


@pytest.fixture(scope="session")
def smoke(tmp_path_factory) -> Path:
    """Output folder of a whole run."""
    output = tmp_path_factory.mktemp("smoke")
    with pytest.MonkeyPatch.context() as patch:
        # What `reproduce` sets for its kernels must not stay for other tests.
        for name in ("HRNETPP_HEADLESS", "HRNETPP_REVISION", "JUPYTER_PREFER_ENV_PATH"):
            patch.setenv(name, "")
        patch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
        patch.setenv("OMP_NUM_THREADS", "1")
        copies = reproduce(SMOKE, output, [], {})
    assert copies == [output / "notebooks/executed/smoke" / path.name for path in NOTEBOOKS]
    return output


@each_notebook
def test_a_copy_is_executed_shows_every_figure_and_holds_no_error_or_warning(smoke, path):
    cells = code_cells(smoke / "notebooks/executed/smoke" / path.name)
    assert all(cell.execution_count is not None for cell in cells)
    outputs = [out for cell in cells for out in cell.outputs]
    bad = [out for out in outputs if out.output_type == "error" or out.get("name") == "stderr"]
    assert not bad
    shown = sum("image/png" in out.get("data", {}) for out in outputs)
    assert shown == sum(cell.source.count("ws.show(") for cell in cells) > 0


@each_notebook
def test_figures_have_an_alternative_text_and_a_caption(smoke, path):
    outputs = [cell.outputs for cell in code_cells(smoke / "notebooks/executed/smoke" / path.name)]
    figures = [found for found in outputs if any("image/png" in out.get("data", {}) for out in found)]
    for picture, caption in (found[-2:] for found in figures):
        assert picture.metadata["image/png"]["alt"].endswith(".")
        assert re.fullmatch(r"\*Figure: .+\.\*", caption.data["text/markdown"])


def captions(copy: Path) -> str:
    """All that a copy says of its figures and in its generated texts."""
    outputs = [out for cell in code_cells(copy) for out in cell.outputs]
    return "\n".join(out.get("data", {}).get("text/markdown", "") for out in outputs)


def test_what_the_stages_say_of_their_trainings_agrees_with_their_results(smoke):
    for number, stage in (("03", "AI Challenger AP"), ("04", "COCO AP")):
        (copy,) = smoke.glob(f"notebooks/executed/smoke/{number}_*.ipynb")
        said, results = captions(copy), read_json(smoke / f"runs/smoke/results/{number}.json", dict)
        ours, plain = re.search(rf"HRNet\+\+ ends at {stage} ([\d.]+), HRNet at ([\d.]+), on", said).groups()
        if number == "03":
            ends = {name: epoch["value"] for name, epoch in results["last_epoch"].items()}
        else:
            ends = {name: values["AP"] for name, values in results["metrics"].items()}
            assert f"HRNet++ scores AP {ours} and HRNet {plain}" in said
            assert f"| HRNet++ | {ours} |" in said and f"| HRNet | {plain} |" in said
        assert (ours, plain) == tuple(f"{100 * ends[name]:.1f}" for name in ("HRNet++", "HRNet"))
        lead = float(ours) - float(plain)
        words = f"{'HRNet++' if lead > 0 else 'HRNet'} is ahead by {abs(lead):.1f} points"
        assert (words if lead else "the two are level") in said


SAID = {  # notebook -> what its captions must say of the numbers in its results
    "06": lambda of: [
        ablation.say_switches({name: metrics["AP"] for name, metrics in of["metrics"].items()}),
        ablation.say_alphas({float(alpha): metrics["AP"] for alpha, metrics in of["alpha"].items()}),
    ],
    "08": lambda of: [
        *(f"* {claim}" for claim in of["claims"]),
        "In this run {} of the 4 steps".format(
            sum(bool(re.search(r"report \+0\.[1-9], these networks \+(?!0\.0)", one)) for one in of["claims"])
        ),
    ],
    "07": lambda of: [say(of[key]) for say, key in SAY_OF_VIEWS],
    "09": lambda of: [
        mistakes.say_kinds(of["shares"]["heatmap"], "heatmap"),
        mistakes.say_change(of["shares"]["heatmap"], of["shares"]["regression"]),
    ],
    "10": lambda of: [
        hills.say_alphas(*({float(a): error for a, error in one.items()} for one in of["alphas"]), 60.0)
    ],
}
SAY_OF_VIEWS = [(views.say_flips, "flips"), (views.say_tta, "steps"), (views.say_ensemble, "steps")]


@pytest.mark.parametrize("number", SAID)
def test_captions_agree_with_the_results_and_sources_say_nothing_of_a_run(smoke, number):
    (path,) = (path for path in NOTEBOOKS if path.stem.startswith(number))
    cells = code_cells(smoke / "notebooks/executed/smoke" / path.name)
    shown = "".join(out.get("data", {}).get("text/markdown", "") for cell in cells for out in cell.outputs)
    for sentence in SAID[number](read_json(smoke / "runs" / "smoke" / "results" / f"{number}.json", dict)):
        assert sentence in shown
    assert not any("In this run" in cell.source for cell in read(path).cells)


@each_notebook
def test_a_copy_says_how_it_came_about_and_names_no_folder_of_this_machine(smoke, path):
    copy = smoke / "notebooks/executed/smoke" / path.name
    record = read(copy).metadata["hrnetpp"]
    assert record["profile"] == "smoke"
    assert {"git_revision", "versions", "device", "seconds"} <= set(record)
    for folder in (project_root(), Path.home(), smoke):
        # A path relative to the notebook may end in the same words; it starts with dots.
        assert not re.search(rf"(?<!\.){re.escape(str(folder))}/", copy.read_text())


@each_notebook
def test_every_figure_a_notebook_names_is_there_and_its_results(smoke, path):
    named = set(re.findall(r'"(fig\d\d_\w+)"', "\n".join(cell.source for cell in code_cells(path))))
    assert named and all(name.startswith(f"fig{path.stem[:2]}_") for name in named)
    for name in named:
        assert (smoke / "figures" / "smoke" / f"{name}.png").stat().st_size > 2000, name
    results = read_json(smoke / "runs" / "smoke" / "results" / f"{path.stem[:2]}.json", dict)
    assert results["provenance"]["profile"] == "smoke"


def test_they_train_what_the_plan_counts(smoke):
    trained = {path.parent.name for path in smoke.glob("runs/smoke/*/model.safetensors")}
    assert trained == {run.name for run in notebook_runs(SMOKE)}


def test_table_1_has_six_measured_rows(smoke):
    results = read_json(smoke / "figures" / "smoke" / "results.json", dict)
    assert [row["method"] for row in results["rows"]] == list(PAPER_TABLE_1)
    assert results["profile"] == "smoke"
    for row in results["rows"]:
        assert set(METRICS) <= set(row["metrics"])
        assert all(-1 <= value <= 1 for value in row["metrics"].values())
        assert row["boxes"].endswith("_person.json")
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in row["runs"].values())
    assert [row["tta"] for row in results["rows"]] == [False, False, False, True, False, True]
    assert [len(row["runs"]) for row in results["rows"]] == [1, 1, 1, 1, 2, 2]
    table = (smoke / "figures" / "smoke" / "table_1.md").read_text()
    assert table.count("\n| ") == 7  # a heading and six rows
    assert "profile `smoke`" in table


def test_nothing_half_written_is_left(smoke):
    assert not list(smoke.rglob("*.part"))
    assert not (smoke / "runs" / "smoke" / "reproduce.json").exists()
