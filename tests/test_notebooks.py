"""The notebooks: their form, and all of them executed on the smallest profile."""

import ast
import re
import statistics
from pathlib import Path

import nbformat
import pytest

from hrnetpp_lib.app.plan import notebook_runs
from hrnetpp_lib.app.reproduce import reproduce
from hrnetpp_lib.evaluate.table import METRICS, PAPER_TABLE_1
from hrnetpp_lib.files import project_root, read_json
from hrnetpp_lib.recipe import SMOKE

PROJECT_ROOT = project_root()
NOTEBOOKS = sorted((PROJECT_ROOT / "notebooks").glob("[0-9]*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def lines_of(cell) -> list[str]:
    return [line for line in cell.source.splitlines() if line.strip()]


def is_parameters(cell) -> bool:
    return "parameters" in cell.metadata.get("tags", [])


# ---------------------------------------------------------------------------------------------- form


def test_they_are_numbered_without_gaps():
    assert [int(path.stem[:2]) for path in NOTEBOOKS] == list(range(1, len(NOTEBOOKS) + 1))
    assert len(NOTEBOOKS) >= 8


@each_notebook
def test_first_cell_says_what_it_asks_reads_writes_and_takes(path):
    first = nbformat.read(path, as_version=4).cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith(f"# {int(path.stem[:2])} ")
    assert "**Question.**" in first.source
    rows = re.findall(r"^\| *(\w+) *\|", first.source, flags=re.MULTILINE)
    assert {"report", "reads", "writes", "takes"} <= set(rows)


@each_notebook
def test_parameters_are_literals(path):
    cells = code_cells(nbformat.read(path, as_version=4))
    tagged = [cell for cell in cells if is_parameters(cell)]
    assert tagged == cells[:1]
    values = {}
    for statement in ast.parse(tagged[0].source).body:
        assert isinstance(statement, ast.Assign)
        values[statement.targets[0].id] = ast.literal_eval(statement.value)
    assert values["profile"] == "mini"
    assert values["root"] == ".."


@each_notebook
def test_source_is_stripped(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in code_cells(notebook))
    assert notebook.metadata.kernelspec.name == "python3"
    assert "papermill" not in notebook.metadata


@each_notebook
def test_code_cells_are_short(path):
    lengths = [len(lines_of(cell)) for cell in code_cells(nbformat.read(path, as_version=4))]
    assert max(lengths) <= 20
    assert min(lengths) > 0


def test_median_code_cell_has_six_lines_at_most():
    # The cells with parameters and with imports are what they are; the story's are counted.
    for path in NOTEBOOKS:
        cells = code_cells(nbformat.read(path, as_version=4))
        assert statistics.median(len(lines_of(cell)) for cell in cells) <= 6, path.stem


@each_notebook
def test_no_logic_that_belongs_in_the_library(path):
    for cell in code_cells(nbformat.read(path, as_version=4)):
        nodes = list(ast.walk(ast.parse(cell.source)))
        assert not any(isinstance(node, ast.ClassDef | ast.While | ast.Try | ast.Global) for node in nodes)
        called = {
            node.func.attr for node in nodes if isinstance(node, ast.Call) and hasattr(node.func, "attr")
        }
        assert not called & {"zero_grad", "step"}  # nobody trains outside train.py
        for forbidden in ("pip install", "sys.path", "os.chdir", "torchvision", "get_ipython"):
            assert forbidden not in cell.source


@each_notebook
def test_links_lead_somewhere(path):
    for cell in nbformat.read(path, as_version=4).cells:
        for target in re.findall(r"\]\(([^)#]+\.ipynb)\)", cell.source):
            assert (path.parent / target).is_file(), target


@each_notebook
def test_it_ends_with_a_reading_of_the_results(path):
    assert nbformat.read(path, as_version=4).cells[-1].cell_type == "markdown"


# --------------------------------------------------------------------------- all of them, on `smoke`


@pytest.fixture(scope="session")
def smoke(tmp_path_factory) -> tuple[Path, list[Path]]:
    """Output folder and executed copies of a whole run."""
    output = tmp_path_factory.mktemp("smoke")
    with pytest.MonkeyPatch.context() as patch:
        # What `reproduce` sets for its kernels must not stay for other tests.
        for name in ("HRNETPP_HEADLESS", "HRNETPP_REVISION", "JUPYTER_PREFER_ENV_PATH"):
            patch.setenv(name, "")
        patch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
        patch.setenv("OMP_NUM_THREADS", "1")
        return output, reproduce("smoke", output=output)


def test_every_notebook_was_executed(smoke):
    output, copies = smoke
    assert [copy.name for copy in copies] == [path.name for path in NOTEBOOKS]
    assert all(copy.parent == output / "notebooks" / "executed" / "smoke" for copy in copies)
    for copy in copies:
        cells = code_cells(nbformat.read(copy, as_version=4))
        assert all(cell.execution_count is not None for cell in cells), copy.name


def test_no_copy_holds_an_error_or_a_warning(smoke):
    for copy in smoke[1]:
        for cell in code_cells(nbformat.read(copy, as_version=4)):
            for out in cell.outputs:
                assert out.output_type != "error", f"{copy.name}: {out.get('evalue')}"
                assert out.get("name") != "stderr", f"{copy.name}: {out.get('text')}"


def test_every_figure_is_shown_in_the_copy(smoke):
    for copy in smoke[1]:
        shown = saved = 0
        for cell in code_cells(nbformat.read(copy, as_version=4)):
            saved += cell.source.count("ws.show(")
            shown += sum("image/png" in out.get("data", {}) for out in cell.outputs)
        assert shown == saved > 0, copy.name


def test_every_copy_says_how_it_came_about(smoke):
    for copy in smoke[1]:
        record = nbformat.read(copy, as_version=4).metadata["hrnetpp"]
        assert record["profile"] == "smoke"
        assert {"git_revision", "versions", "device", "seconds"} <= set(record)


def test_no_copy_names_a_folder_of_this_machine(smoke):
    for copy in smoke[1]:
        text = copy.read_text()
        for folder in (PROJECT_ROOT, Path.home(), smoke[0]):
            # A path relative to the notebook may end in the same words; it starts with dots.
            assert not re.search(rf"(?<!\.){re.escape(str(folder))}/", text), copy.name


def test_every_figure_a_notebook_names_is_there(smoke):
    figures = smoke[0] / "figures" / "smoke"
    for path in NOTEBOOKS:
        source = "\n".join(cell.source for cell in code_cells(nbformat.read(path, as_version=4)))
        named = set(re.findall(r'"(fig\d\d_\w+)"', source))
        assert named, path.stem
        assert all(name.startswith(f"fig{path.stem[:2]}_") for name in named)
        for name in named:
            assert (figures / f"{name}.png").stat().st_size > 2000, name


def test_every_notebook_leaves_its_results(smoke):
    for path in NOTEBOOKS:
        results = read_json(smoke[0] / "runs" / "smoke" / "results" / f"{path.stem[:2]}.json", dict)
        assert results["provenance"]["profile"] == "smoke"


def test_they_train_what_the_plan_counts(smoke):
    trained = {path.parent.name for path in smoke[0].glob("runs/smoke/*/model.safetensors")}
    assert trained == {run.name for run in notebook_runs(SMOKE)}


def test_table_1_has_six_measured_rows(smoke):
    figures = smoke[0] / "figures" / "smoke"
    results = read_json(figures / "results.json", dict)
    assert [row["method"] for row in results["rows"]] == list(PAPER_TABLE_1)
    assert results["profile"] == "smoke"
    for row in results["rows"]:
        assert set(METRICS) <= set(row["metrics"])
        assert all(-1 <= value <= 1 for value in row["metrics"].values())
        assert row["boxes"].endswith("_person.json")
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in row["runs"].values())
    assert [row["tta"] for row in results["rows"]] == [False, False, False, True, False, True]
    assert [len(row["runs"]) for row in results["rows"]] == [1, 1, 1, 1, 2, 2]
    table = (figures / "table_1.md").read_text()
    assert table.count("\n| ") == 7  # a heading and six rows
    assert "profile `smoke`" in table


def test_nothing_half_written_is_left(smoke):
    assert not [path for path in smoke[0].rglob("*") if path.suffix == ".part"]
    assert not (smoke[0] / "runs" / "smoke" / "reproduce.json").exists()
