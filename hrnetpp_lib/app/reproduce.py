"""Run the notebooks in order, headless, and keep what they show."""

import ast
import contextlib
import hashlib
import json
import os
import sys
import time
from pathlib import Path

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from hrnetpp_lib.data.layout import prepare_data
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.evaluate.table import git_revision, provenance
from hrnetpp_lib.files import project_root, read_json, write_json
from hrnetpp_lib.recipe import get_profile

# glibc returns freed memory to the system, and every training step pays for getting it back.
KEEP_FREED_MEMORY = {"MALLOC_TRIM_THRESHOLD_": "4000000000", "MALLOC_MMAP_THRESHOLD_": "4000000000"}


def list_notebooks(only: list[str] | None, folder: Path) -> list[Path]:
    """The notebooks in their order, or those whose names start with one of `only`.

    Raises:
        HrnetppError: If there are none, or an entry of `only` fits none; the message lists them.
    """
    notebooks = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not notebooks:
        raise HrnetppError(f"{folder}: no notebooks there; they are no part of the package, get a checkout")
    for wanted in only or []:
        if not wanted or not any(path.stem.startswith(wanted) for path in notebooks):
            names = ", ".join(path.stem for path in notebooks)
            raise HrnetppError(f"no notebook {wanted!r}; there are {names}")
    return [path for path in notebooks if not only or path.stem.startswith(tuple(only))]


def parse_parameters(settings: list[str]) -> dict[str, object]:
    """'name=value' strings as notebook parameters; values are Python literals, else text.

    Raises:
        HrnetppError: If a string has no '=', or characters that are no text.
    """
    parameters: dict[str, object] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise HrnetppError(f"--set {setting}: write it as name=value")
        if not setting.isprintable():
            raise HrnetppError(f"--set {setting!r}: has characters that no notebook can hold")
        parameters[name] = value
        # An unhashable key is a TypeError, deep nesting one of the last two.
        with contextlib.suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            parameters[name] = ast.literal_eval(value)
    return parameters


def reproduce(
    profile_name: str,
    only: list[str] | None = None,
    parameters: dict[str, object] | None = None,
    output: Path | None = None,
    notebook_folder: Path | None = None,
) -> list[Path]:
    """Execute the notebooks; after a failure, the next call starts at the notebook that failed.

    Args:
        profile_name: Name of a profile.
        only: Prefixes of the notebooks to run; all by default.
        parameters: Values for their parameters cells.
        output: Gets notebooks/executed/<profile>, figures/<profile>, runs/, data/; by default the checkout.
        notebook_folder: Where the sources lie; by default the checkout's.

    Returns:
        The executed copies.

    Raises:
        HrnetppError: If a name is unknown, or a notebook fails; the message names notebook and cell.
    """
    output = (output or project_root()).resolve()
    notebook_folder = (notebook_folder or project_root() / "notebooks").resolve()
    profile = get_profile(profile_name)
    notebooks = list_notebooks(only, notebook_folder)
    accepted = {path: _defaults(path) for path in notebooks}
    parameters = _check_parameters(parameters or {}, accepted)
    if profile.data != "synthetic":  # which the notebooks make
        prepare_data(profile, output / "data")
    _set_environment(notebook_folder)
    progress_file = output / "runs" / profile_name / "reproduce.json"
    done = read_json(progress_file, dict[str, str], "delete it") if progress_file.is_file() else {}
    executed, started = [], time.perf_counter()
    for path in notebooks:
        # The root is relative, so that the copies do not tell where the project lies on this machine.
        mine = parameters | {"profile": profile_name, "root": os.path.relpath(output, notebook_folder)}
        mine = {name: value for name, value in mine.items() if name in accepted[path]}
        copy = output / "notebooks" / "executed" / profile_name / path.name
        # With `only` in it: who asks for one notebook after a failure gets it run, finished or not.
        fingerprint = hashlib.sha256(path.read_bytes() + json.dumps([mine, only]).encode()).hexdigest()
        if done.get(path.stem) == fingerprint and copy.is_file():
            print(f"{path.stem}: done before the failure of the last run, not run again", flush=True)
        else:
            _execute(path, copy, mine, profile_name)
            write_json(progress_file, done := done | {path.stem: fingerprint})
        executed.append(copy)
    progress_file.unlink(missing_ok=True)
    print(f"all {len(executed)} notebooks in {_minutes(time.perf_counter() - started)}{_peak_memory()}")
    return executed


def _set_environment(notebook_folder: Path) -> None:
    """Variables that the kernels inherit."""
    os.environ.update(HRNETPP_HEADLESS="1", JUPYTER_PREFER_ENV_PATH="1", PYDEVD_DISABLE_FILE_VALIDATION="1")
    for name, value in ({"OMP_WAIT_POLICY": "PASSIVE"} | KEEP_FREED_MEMORY).items():
        os.environ.setdefault(name, value)
    os.environ["HRNETPP_REVISION"] = git_revision(notebook_folder)


def _defaults(path: Path) -> dict[str, object]:
    """The names and values of a notebook's parameters cell."""
    try:
        cell = papermill.inspect_notebook(str(path))
        return {name: ast.literal_eval(parameter["default"]) for name, parameter in cell.items()}
    except Exception as error:  # papermill's, nbformat's, jsonschema's and ast's have no family in common
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise HrnetppError(f"{path}: no notebook whose parameters are literals ({reason})") from error


def _check_parameters(
    parameters: dict[str, object], accepted: dict[Path, dict[str, object]]
) -> dict[str, object]:
    """The parameters, if each fits a default in some notebook's parameters cell; papermill only warns."""
    defaults = {name: value for cell in accepted.values() for name, value in cell.items()}
    valid = sorted(set(defaults) - {"profile", "root"})
    if unknown := sorted(set(parameters) - set(valid)):
        raise HrnetppError(f"no notebook has a parameter {', '.join(unknown)}; there are {', '.join(valid)}")
    for name, value in parameters.items():
        kind = type(defaults[name])
        if type(value) is not kind:
            raise HrnetppError(
                f"parameter {name} is {value!r:.100}; give {kind.__name__}, as in {name}={defaults[name]}"
            )
    return parameters


def _execute(path: Path, copy: Path, parameters: dict[str, object], profile_name: str) -> None:
    """Run one notebook; on failure its partial copy stays, with the error in it."""
    print(f"{path.stem}: running ...", flush=True)
    copy.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    try:
        papermill.execute_notebook(
            str(path),
            str(copy),
            parameters,
            kernel_name="python3",
            cwd=str(path.parent),
            progress_bar=False,
            log_output=False,
            extra_arguments=["--log-level=CRITICAL"],  # a warning about transport for each notebook, else
        )
    except (DeadKernelError, PapermillExecutionError) as error:
        reason = f"failed: Python died, perhaps because memory ran out{_peak_memory()}"
        if isinstance(error, PapermillExecutionError):
            reason = f"failed in cell [{error.exec_count}]: {error.ename}: {error.evalue}"
        raise HrnetppError(
            f"{path.name} {reason}. The partial copy is {copy}; the same command begins at this notebook"
        ) from error
    finally:
        seconds = time.perf_counter() - started
        if copy.is_file():
            _record(copy, path, profile_name, seconds)
    print(f"{path.stem}: {_minutes(seconds)}{_peak_memory()}", flush=True)


def _record(copy: Path, source: Path, profile_name: str, seconds: float) -> None:
    """Write the provenance into the copy, finished or not; take machine's paths and widgets' pictures out."""
    notebook = nbformat.read(copy, as_version=4)
    notebook.metadata["hrnetpp"] = provenance() | {"profile": profile_name, "seconds": round(seconds, 1)}
    notebook.metadata["papermill"] |= {"input_path": source.name, "output_path": copy.name}
    # A widget without its kernel shows nothing, and its saved state is megabytes; figures stand before it.
    notebook.metadata.pop("widgets", None)
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    nbformat.write(notebook, copy)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"


def _peak_memory() -> str:
    """Largest resident set of any process so far, where the operating system tells."""
    try:
        import resource
    except ImportError:  # Windows
        return ""
    scale = 1 if sys.platform == "darwin" else 1024
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return f"; peak memory of one process {peak * scale / 2**30:.1f} GiB"
