"""Running notebooks headless, tried on notebooks made up here: order, names, failures, what is recorded."""

import os
import re
import sys
from pathlib import Path

import nbformat
import pytest

from hrnetpp_lib.app.reproduce import _cost_since, parse_parameters, reproduce
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.files import project_root, read_json
from hrnetpp_lib.recipe import COCO, SMOKE

LOG = "with open(f'{root}/log.txt', 'a') as log:\n    print(NAME, profile, seed, file=log)"
PARAMETERS = 'profile = "mini"\nroot = ".."\nseed = 0'


def write_notebook(project: Path, name: str, *sources: str, parameters: str = PARAMETERS):
    notebook = nbformat.v4.new_notebook()
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    first = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    cells = [LOG.replace("NAME", repr(name)), *sources]
    notebook.cells = [first, *(nbformat.v4.new_code_cell(source) for source in cells)]
    for i, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{i}"
    (project / "notebooks").mkdir(exist_ok=True)
    nbformat.write(notebook, project / "notebooks" / f"{name}.ipynb")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """`reproduce` sets variables for its kernels; monkeypatch takes them back."""
    for name in ("HRNETPP_HEADLESS", "HRNETPP_REVISION", "JUPYTER_PREFER_ENV_PATH", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")


@pytest.fixture
def project(tmp_path) -> Path:
    """A folder with two notebooks, a draft and a text file."""
    for name in ("02_second", "01_first", "draft"):
        write_notebook(tmp_path, name, "print('output')")
    (tmp_path / "notebooks" / "03_notes.txt").write_text("no notebook")
    return tmp_path


def run(project: Path, only=(), output=None, **parameters) -> list[Path]:
    return reproduce(SMOKE, output or project, list(only), parameters, project / "notebooks")


def log_of(project: Path) -> list[str]:
    return (project / "log.txt").read_text().splitlines() if (project / "log.txt").exists() else []


def refuses(project: Path, message: str, only=(), **parameters) -> None:
    """It says so before the first notebook."""
    with pytest.raises(HrnetppError, match=message):
        run(project, only, **parameters)
    assert log_of(project) == []


def test_unknown_notebooks_and_parameters_are_refused_with_the_known_ones(project, tmp_path_factory):
    refuses(tmp_path_factory.mktemp("empty"), "no notebooks there")
    for unknown in ("07", ""):
        refuses(project, f"no notebook '{unknown}'; there are 01_first, 02_second", only=["01", unknown])
    write_notebook(project, "04_fourth", parameters=f"{PARAMETERS}\ndraws = 5")
    refuses(project, "no notebook has a parameter lr; there are draws, seed", lr=1, seed=2)
    for name in ("profile", "root"):
        refuses(project, f"no notebook has a parameter {name}", **{name: "elsewhere"})
    for value in ("abc", 1.5, None, True):  # of another type than the default
        refuses(project, f"parameter seed is {value!r}; give int, as in seed=0", seed=value)


def test_settings_become_python_values():
    values = {"seed": 3, "sizes": (64, 48), "flag": True}
    assert parse_parameters([f"{name}={value}" for name, value in values.items()]) == values
    assert parse_parameters(["lr=1e-3", "text='a=b'"]) == {"lr": 0.001, "text": "a=b"}
    texts = {"name": "mini", "empty": "", "odd": "{[]: 1}", "deep": "(" * 300, "long": "9" * 5000}
    texts["minus"] = "-" * 100_000 + "1"
    assert parse_parameters([f"{name}={text}" for name, text in texts.items()]) == texts


@pytest.mark.parametrize("setting", ["seed", "=3", "", "name=\udcff"])
def test_a_setting_without_name_or_equals_or_that_is_no_text_is_refused(setting):
    with pytest.raises(HrnetppError, match="no notebook can hold" if "name" in setting else "as name=value"):
        parse_parameters([setting])


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"cells": 3}', b"\xff", b"[" * 100_000, None])
def test_a_notebook_that_is_none_or_whose_parameters_are_no_literals_is_named(project, content):
    write_notebook(project, "02_second", parameters="seed = max(1, 2)")
    if content is not None:
        (project / "notebooks" / "02_second.ipynb").write_bytes(content)
    refuses(project, "02_second.ipynb: no notebook whose parameters are literals")


def test_notebooks_run_in_order_with_their_parameters(project, capsys, monkeypatch):
    write_notebook(project, "03_without", parameters='profile = "mini"\nroot = ".."\nseed = 7')
    sources = {path: path.read_bytes() for path in (project / "notebooks").iterdir()}
    monkeypatch.chdir(project)  # a relative folder is relative to where one stands
    (project / "out").mkdir()
    copies = run(project, output=Path("out"), seed=5)
    assert log_of(project / "out") == ["01_first smoke 5", "02_second smoke 5", "03_without smoke 5"]
    folder = project / "out/notebooks/executed/smoke"
    assert copies == [folder / f"{name}.ipynb" for name in ("01_first", "02_second", "03_without")]
    printed = capsys.readouterr().out
    assert "all 3 notebooks in" in printed and "peak memory" in printed
    notebook = nbformat.read(copies[1], as_version=4)
    nbformat.validate(notebook)
    assert notebook.cells[-1].outputs[0].text == "output\n"
    record = notebook.metadata["hrnetpp"]
    assert record["profile"] == "smoke" and record["seconds"] > 0
    assert {"git_revision", "versions", "device"} <= set(record)
    assert notebook.metadata.papermill["input_path"] == "02_second.ipynb"
    for copy in copies:
        assert str(project) not in copy.read_text() and str(project_root()) not in copy.read_text()
    assert not (project / "out" / "runs" / "smoke" / "reproduce.json").exists()
    assert {path: path.read_bytes() for path in (project / "notebooks").iterdir()} == sources


def test_a_failure_names_notebook_cell_and_error_and_keeps_the_partial_copy(project):
    widget = "from hrnetpp_lib.explore.panels import ClickableImage\n"
    widget += "ClickableImage(png=bytes(5000), alt='photograph')"
    write_notebook(project, "02_second", "print('before')", widget, "1 / 0", "print('after')")
    write_notebook(project, "03_third")
    with pytest.raises(HrnetppError, match=r"02_second\.ipynb failed in cell \[6\]: ZeroDivision") as caught:
        run(project, ["02", "03"])
    copy = project / "notebooks/executed/smoke/02_second.ipynb"
    assert str(copy) in str(caught.value)
    notebook = nbformat.read(copy, as_version=4)
    outputs = [out for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]
    assert outputs[0].text == "before\n"
    assert outputs[-1].output_type == "error" and outputs[-1].ename == "ZeroDivisionError"
    failed = [cell for cell in notebook.cells if cell.get("execution_count") == 6]  # after the injected ones
    assert len(failed) == 1 and "1 / 0" in failed[0].source
    assert log_of(project) == ["02_second smoke 0"]  # the third did not run
    # Neither widgets nor paths of this machine are in it.
    assert "AAAA" not in copy.read_text() and "widget-view" not in copy.read_text()
    assert "widgets" not in notebook.metadata and str(project) not in str(notebook.metadata)


@pytest.fixture
def without_kernels(project, monkeypatch) -> Path:
    """Three notebooks of which the second failed; what is executed is logged, and nothing else done."""

    def execute(path, copy, parameters, profile_name):
        with open(project / "log.txt", "a") as log:
            print(path.stem, file=log)
        if path.stem == "02_second" and not (project / "repaired").exists():
            raise HrnetppError("not yet")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.touch()

    write_notebook(project, "03_third")
    monkeypatch.setattr("hrnetpp_lib.app.reproduce._execute", execute)
    with pytest.raises(HrnetppError, match="not yet"):
        run(project)
    assert log_of(project) == ["01_first", "02_second"]
    (project / "repaired").touch()
    return project


def test_the_next_call_starts_at_the_notebook_that_failed(without_kernels, capsys):
    assert len(run(without_kernels)) == 3
    assert log_of(without_kernels)[2:] == ["02_second", "03_third"]
    assert "01_first: done before the failure of the last run" in capsys.readouterr().out
    run(without_kernels)  # after a success everything runs again
    assert log_of(without_kernels)[4:] == ["01_first", "02_second", "03_third"]


@pytest.mark.parametrize("change", ["notebook", "parameter", "copy", "asked for by name", "nothing"])
def test_what_changed_runs_again_after_a_failure(without_kernels, change):
    assert len(read_json(without_kernels / "runs/smoke/reproduce.json", dict)) == 1
    if change == "notebook":
        write_notebook(without_kernels, "01_first", "print('changed')")
    if change == "copy":
        (without_kernels / "notebooks/executed/smoke/01_first.ipynb").unlink()
    only = ["02", "01_f"] if change == "asked for by name" else []
    run(without_kernels, only, **({"seed": 9} if change == "parameter" else {}))
    again = [] if change == "nothing" else ["01_first"]
    assert log_of(without_kernels)[2:] == [*again, "02_second", *([] if only else ["03_third"])]


def test_a_record_of_progress_that_is_none_is_named(project):
    (project / "runs" / "smoke").mkdir(parents=True)
    (project / "runs" / "smoke" / "reproduce.json").write_text("[1]")
    refuses(project, r"reproduce\.json: .*; delete it")


def test_without_peak_memory_it_says_nothing_of_it(monkeypatch):
    assert re.fullmatch(r"\d+\.\d min; peak memory of one process \d+\.\d GiB", _cost_since(-99.0))
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert re.fullmatch(r"\d+\.\d min", _cost_since(-99.0))


def test_a_kernel_that_dies_is_an_error_of_ours(project):
    write_notebook(project, "02_second", "import os\nos._exit(1)")
    with pytest.raises(HrnetppError, match=r"02_second\.ipynb failed: Python died"):
        run(project, only=["02"])


def test_missing_data_are_named_before_the_first_notebook(tmp_path):
    with pytest.raises(HrnetppError, match="person_keypoints_train2017.json"):
        reproduce(COCO, tmp_path, [], {})
    assert not list(tmp_path.rglob("*.ipynb"))
