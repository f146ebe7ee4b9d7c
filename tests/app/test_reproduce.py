"""Running notebooks headless, tried on notebooks made up here: order, names, failures, what is recorded."""

import os
import re
import sys
from pathlib import Path

import nbformat
import pytest

from hrnetpp_lib.app.reproduce import _peak_memory, list_notebooks, parse_parameters, reproduce
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.files import project_root, read_json

LOG = "with open(f'{root}/log.txt', 'a') as log:\n    print(NAME, profile, seed, file=log)"


def write_notebook(
    folder: Path, name: str, *sources: str, parameters: str = 'profile = "mini"\nroot = ".."\nseed = 0'
):
    notebook = nbformat.v4.new_notebook()
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    first = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    cells = [LOG.replace("NAME", repr(name)), *sources]
    notebook.cells = [first, *(nbformat.v4.new_code_cell(source) for source in cells)]
    for i, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{i}"
    folder.mkdir(exist_ok=True)
    nbformat.write(notebook, folder / f"{name}.ipynb")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """`reproduce` sets variables for its kernels; monkeypatch takes them back."""
    for name in ("HRNETPP_HEADLESS", "HRNETPP_REVISION", "JUPYTER_PREFER_ENV_PATH", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")


@pytest.fixture
def project(tmp_path) -> Path:
    """A folder with two notebooks, a draft and a text file."""
    folder = tmp_path / "notebooks"
    write_notebook(folder, "02_second", "print('two')")
    write_notebook(folder, "01_first", "print('one')")
    write_notebook(folder, "draft")
    (folder / "03_notes.txt").write_text("no notebook")
    return tmp_path


def run(project: Path, **options) -> list[Path]:
    return reproduce("smoke", output=project, notebook_folder=project / "notebooks", **options)


def log_of(project: Path) -> list[str]:
    return (project / "log.txt").read_text().splitlines() if (project / "log.txt").exists() else []


# -------------------------------------------------------------------------------------------- names


def test_notebooks_are_listed_in_order(project):
    folder = project / "notebooks"
    assert [path.stem for path in list_notebooks(None, folder)] == ["01_first", "02_second"]
    assert [path.stem for path in list_notebooks(["02"], folder)] == ["02_second"]
    assert [path.stem for path in list_notebooks(["02", "01_first"], folder)] == ["01_first", "02_second"]


def test_an_unknown_notebook_is_refused_with_the_known_ones(project):
    with pytest.raises(HrnetppError, match="no notebook '07'; there are 01_first, 02_second"):
        run(project, only=["01", "07"])
    with pytest.raises(HrnetppError, match="no notebook ''; there are"):
        run(project, only=[""])
    assert log_of(project) == []


def test_a_folder_without_notebooks_is_named(tmp_path):
    with pytest.raises(HrnetppError, match="no notebooks there"):
        list_notebooks(None, tmp_path)


def test_an_unknown_profile_is_refused_with_the_known_ones(project):
    with pytest.raises(HrnetppError, match="unknown profile 'huge'.*smoke, mini, lspet_cpu, lspet, coco"):
        reproduce("huge", output=project, notebook_folder=project / "notebooks")


def test_an_unknown_parameter_is_refused_with_the_known_ones(project):
    write_notebook(
        project / "notebooks", "04_fourth", parameters='profile = "mini"\nroot = ".."\nseed = 0\ndraws = 5'
    )
    with pytest.raises(HrnetppError, match="no notebook has a parameter lr; there are draws, seed"):
        run(project, parameters={"lr": 1, "seed": 2})
    assert log_of(project) == []


@pytest.mark.parametrize("value", ["abc", 1.5, None, True])
def test_parameters_of_another_type_than_the_default_are_refused(value, project):
    with pytest.raises(HrnetppError, match=f"parameter seed is {value!r}; give int, as in seed=0"):
        run(project, parameters={"seed": value})
    assert log_of(project) == []


@pytest.mark.parametrize("name", ["profile", "root"])
def test_profile_and_root_are_not_set_as_parameters(project, name):
    with pytest.raises(HrnetppError, match=f"no notebook has a parameter {name}"):
        run(project, parameters={name: "elsewhere"})


def test_settings_become_python_values():
    settings = ["seed=3", "lr=1e-3", "name=mini", "sizes=(64, 48)", "text='a=b'", "flag=True", "empty="]
    settings += ["odd={[]: 1}", f"deep={'(' * 300}", f"minus={'-' * 100_000}1", f"long={'9' * 5000}"]
    assert parse_parameters(settings) == {
        "seed": 3,
        "lr": 0.001,
        "name": "mini",
        "sizes": (64, 48),
        "text": "a=b",
        "flag": True,
        "empty": "",
        "odd": "{[]: 1}",
        "deep": "(" * 300,
        "minus": "-" * 100_000 + "1",
        "long": "9" * 5000,
    }


@pytest.mark.parametrize("setting", ["seed", "=3", ""])
def test_a_setting_without_name_or_equals_is_refused(setting):
    with pytest.raises(HrnetppError, match="write it as name=value"):
        parse_parameters([setting])


def test_a_setting_that_is_no_text_is_refused():
    with pytest.raises(HrnetppError, match="characters that no notebook can hold"):
        parse_parameters(["name=\udcff"])


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"cells": 3}', b"\xff", b"[" * 100_000])
def test_a_notebook_that_is_none_is_named(project, content):
    (project / "notebooks" / "02_second.ipynb").write_bytes(content)
    with pytest.raises(HrnetppError, match="02_second.ipynb: no notebook whose parameters are literals"):
        run(project)
    assert log_of(project) == []


def test_parameters_that_are_no_literals_are_named(project):
    write_notebook(project / "notebooks", "02_second", parameters="seed = max(1, 2)")
    with pytest.raises(HrnetppError, match="02_second.ipynb: no notebook whose parameters are literals"):
        run(project)


# ------------------------------------------------------------------------------------------ success


def test_notebooks_run_in_order_with_their_parameters(project, capsys):
    write_notebook(project / "notebooks", "03_without", parameters='profile = "mini"\nroot = ".."\nseed = 7')
    copies = run(project, parameters={"seed": 5})
    assert log_of(project) == ["01_first smoke 5", "02_second smoke 5", "03_without smoke 5"]
    folder = project / "notebooks" / "executed" / "smoke"
    assert copies == [folder / f"{name}.ipynb" for name in ("01_first", "02_second", "03_without")]
    printed = capsys.readouterr().out
    assert "all 3 notebooks in" in printed and "peak memory" in printed
    notebook = nbformat.read(copies[1], as_version=4)
    nbformat.validate(notebook)
    assert notebook.cells[-1].outputs[0].text == "two\n"
    record = notebook.metadata["hrnetpp"]
    assert record["profile"] == "smoke" and record["seconds"] > 0
    assert {"git_revision", "versions", "device"} <= set(record)
    assert notebook.metadata.papermill["input_path"] == "02_second.ipynb"
    for copy in copies:
        assert str(project) not in copy.read_text() and str(project_root()) not in copy.read_text()
    assert not (project / "runs" / "smoke" / "reproduce.json").exists()


def test_the_sources_are_not_touched(project):
    before = {path: path.read_bytes() for path in (project / "notebooks").glob("*.ipynb")}
    run(project, only=["01"])
    assert {path: path.read_bytes() for path in (project / "notebooks").glob("*.ipynb")} == before


def test_a_relative_output_folder_is_relative_to_where_one_stands(project, monkeypatch):
    (project / "elsewhere").mkdir()
    monkeypatch.chdir(project)
    copies = reproduce("smoke", ["01"], output=Path("elsewhere"), notebook_folder=Path("notebooks"))
    assert copies == [project / "elsewhere/notebooks/executed/smoke/01_first.ipynb"]
    assert copies[0].is_file()
    assert log_of(project / "elsewhere") == ["01_first smoke 0"]


# ------------------------------------------------------------------------------------------ failure


@pytest.fixture
def broken(project) -> Path:
    """The second of three notebooks fails in its fourth cell unless a file is there."""
    check = "import os\nif not os.path.exists(f'{root}/repaired'):\n    raise RuntimeError('not yet')"
    write_notebook(project / "notebooks", "02_second", "print('before')", check, "print('after')")
    write_notebook(project / "notebooks", "03_third")
    return project


def test_a_failure_names_notebook_cell_and_error_and_keeps_the_partial_copy(broken):
    with pytest.raises(
        HrnetppError, match=r"02_second\.ipynb failed in cell \[5\]: RuntimeError: not yet"
    ) as caught:
        run(broken)
    copy = broken / "notebooks/executed/smoke/02_second.ipynb"
    assert str(copy) in str(caught.value)
    cells = nbformat.read(copy, as_version=4).cells
    outputs = [out for cell in cells if cell.cell_type == "code" for out in cell.outputs]
    assert outputs[0].text == "before\n"
    assert outputs[-1].output_type == "error" and outputs[-1].ename == "RuntimeError"
    failed = [cell for cell in cells if cell.get("execution_count") == 5]  # after the injected parameters
    assert len(failed) == 1 and "not yet" in failed[0].source
    assert [line.split()[0] for line in log_of(broken)] == ["01_first", "02_second"]  # the third did not run


def test_a_partial_copy_has_neither_widgets_nor_paths_of_this_machine(project):
    picture = (
        "from hrnetpp_lib.explore.panels import ClickableImage\n"
        "ClickableImage(png=bytes(5000), alt='photograph')"
    )
    write_notebook(project / "notebooks", "02_second", picture, "1 / 0")
    with pytest.raises(HrnetppError, match="ZeroDivisionError"):
        run(project, only=["02"])
    text = (project / "notebooks/executed/smoke/02_second.ipynb").read_text()
    assert "ZeroDivisionError" in text and "AAAA" not in text and "widget-view" not in text
    metadata = nbformat.reads(text, as_version=4).metadata
    assert "widgets" not in metadata and str(project) not in str(metadata)


@pytest.fixture
def without_kernels(broken, monkeypatch) -> Path:
    """Three notebooks of which the second fails; what is executed is logged, and nothing else done."""

    def execute(path, copy, parameters, profile_name):
        with open(broken / "log.txt", "a") as log:
            print(path.stem, file=log)
        if path.stem == "02_second" and not (broken / "repaired").exists():
            raise HrnetppError("not yet")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.touch()

    monkeypatch.setattr("hrnetpp_lib.app.reproduce._execute", execute)
    with pytest.raises(HrnetppError, match="not yet"):
        run(broken)
    assert log_of(broken) == ["01_first", "02_second"]
    (broken / "repaired").touch()
    return broken


def test_the_next_call_starts_at_the_notebook_that_failed(without_kernels, capsys):
    assert len(run(without_kernels)) == 3
    assert log_of(without_kernels)[2:] == ["02_second", "03_third"]
    assert "01_first: done before the failure of the last run" in capsys.readouterr().out
    run(without_kernels)  # after a success everything runs again
    assert log_of(without_kernels)[4:] == ["01_first", "02_second", "03_third"]


@pytest.mark.parametrize("change", ["notebook", "parameter", "copy", "nothing"])
def test_what_changed_runs_again_after_a_failure(without_kernels, change):
    assert len(read_json(without_kernels / "runs/smoke/reproduce.json", dict)) == 1
    if change == "notebook":
        write_notebook(without_kernels / "notebooks", "01_first", "print('changed')")
    if change == "copy":
        (without_kernels / "notebooks/executed/smoke/01_first.ipynb").unlink()
    run(without_kernels, parameters={"seed": 9} if change == "parameter" else None)
    assert log_of(without_kernels).count("01_first") == (1 if change == "nothing" else 2)


def test_a_notebook_asked_for_by_name_runs_though_it_was_finished_before_a_failure(without_kernels):
    run(without_kernels, only=["01"])
    assert log_of(without_kernels).count("01_first") == 2


def test_a_record_of_progress_that_is_none_is_named(project):
    (project / "runs" / "smoke").mkdir(parents=True)
    (project / "runs" / "smoke" / "reproduce.json").write_text("[1]")
    with pytest.raises(HrnetppError, match=r"reproduce\.json: .*; delete it"):
        run(project)
    assert log_of(project) == []


def test_without_peak_memory_it_says_nothing_of_it(monkeypatch):
    assert re.fullmatch(r"; peak memory of one process \d+\.\d GiB", _peak_memory())
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert _peak_memory() == ""


def test_a_kernel_that_dies_is_an_error_of_ours(project):
    write_notebook(project / "notebooks", "02_second", "import os\nos._exit(1)")
    with pytest.raises(HrnetppError, match=r"02_second\.ipynb failed: Python died"):
        run(project, only=["02"])


def test_missing_data_are_named_before_the_first_notebook(tmp_path):
    with pytest.raises(HrnetppError, match="person_keypoints_train2017.json"):
        reproduce("coco", output=tmp_path)
    assert not list(tmp_path.rglob("*.ipynb"))
