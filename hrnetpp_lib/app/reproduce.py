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
from hrnetpp_lib.recipe import Profile
from hrnetpp_lib.train.machine import KEEP_FREED_MEMORY


def reproduce(
    profile: Profile, output: Path, only: list[str], parameters: dict[str, object], folder: Path | None = None
) -> list[Path]:
    """Execute notebooks, the checkout's or a folder's, and return the copies below output/notebooks/executed.

    After a failure, the next call starts at the notebook that failed; `only` has prefixes, none for all.
    Raises: HrnetppError if a name is unknown, or a notebook fails; the message names notebook and cell.
    """
    output, folder = output.resolve(), (folder or project_root() / "notebooks").resolve()
    accepted = {path: _defaults(path) for path in _chosen_notebooks(only, folder)}
    _check_parameters(parameters, {name: value for cell in accepted.values() for name, value in cell.items()})
    if profile.data != "synthetic":  # which the notebooks make
        prepare_data(profile, output / "data")
    os.environ.update(HRNETPP_HEADLESS="1", JUPYTER_PREFER_ENV_PATH="1", PYDEVD_DISABLE_FILE_VALIDATION="1")
    os.environ.update({"OMP_WAIT_POLICY": "PASSIVE"} | KEEP_FREED_MEMORY | os.environ)
    os.environ["HRNETPP_REVISION"] = git_revision(folder)
    progress_file = output / "runs" / profile.name / "reproduce.json"
    done = read_json(progress_file, dict[str, str], "delete it") if progress_file.is_file() else {}
    # The root is relative, so that the copies do not tell where the project lies on this machine.
    given = parameters | {"profile": profile.name, "root": os.path.relpath(output, folder)}
    started = time.perf_counter()
    copies = [output / "notebooks" / "executed" / profile.name / path.name for path in accepted]
    for (path, defaults), copy in zip(accepted.items(), copies, strict=True):
        mine = {name: value for name, value in given.items() if name in defaults}
        # With `only` in it: who asks for one notebook after a failure gets it run, finished or not.
        fingerprint = hashlib.sha256(path.read_bytes() + json.dumps([mine, only]).encode()).hexdigest()
        if done.get(path.stem) == fingerprint and copy.is_file():
            print(f"{path.stem}: done before the failure of the last run, not run again", flush=True)
        else:
            _execute(path, copy, mine, profile.name)
            write_json(progress_file, done := done | {path.stem: fingerprint})
    progress_file.unlink(missing_ok=True)
    print(f"all {len(copies)} notebooks in {_cost_since(started)}")
    return copies


def _chosen_notebooks(only: list[str], folder: Path) -> list[Path]:
    """The notebooks in their order, or those whose names start with one of `only`."""
    notebooks = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not notebooks:
        raise HrnetppError(f"{folder}: no notebooks there; they are no part of the package, get a checkout")
    names = [path.stem for path in notebooks]
    for wanted in only:
        if not wanted or not any(name.startswith(wanted) for name in names):
            raise HrnetppError(f"no notebook {wanted!r}; there are {', '.join(names)}")
    return [path for path in notebooks if not only or path.stem.startswith(tuple(only))]


def parse_parameters(settings: list[str]) -> dict[str, object]:
    """'name=value' strings as notebook parameters; values are Python literals, else text.

    Raises: HrnetppError if a string has no '=', or characters that are no text.
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


def _defaults(path: Path) -> dict[str, object]:
    """The names and values of a notebook's parameters cell."""
    try:
        cell = papermill.inspect_notebook(str(path))
        return {name: ast.literal_eval(parameter["default"]) for name, parameter in cell.items()}
    except Exception as error:  # papermill's, nbformat's, jsonschema's and ast's have no family in common
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise HrnetppError(f"{path}: no notebook whose parameters are literals ({reason})") from error


def _check_parameters(parameters: dict[str, object], defaults: dict[str, object]) -> None:
    """Each must fit a default in some notebook's parameters cell; papermill only warns."""
    valid = sorted(set(defaults) - {"profile", "root"})
    if unknown := sorted(set(parameters) - set(valid)):
        raise HrnetppError(f"no notebook has a parameter {', '.join(unknown)}; there are {', '.join(valid)}")
    for name, value in parameters.items():
        if type(value) is not (kind := type(defaults[name])):
            example = f"{kind.__name__}, as in {name}={defaults[name]}"
            raise HrnetppError(f"parameter {name} is {value!r:.100}; give {example}")


def _execute(path: Path, copy: Path, parameters: dict[str, object], profile_name: str) -> None:
    """Run one notebook; on failure its partial copy stays, with the error in it."""
    print(f"{path.stem}: running ...", flush=True)
    copy.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    options = {"progress_bar": False, "log_output": False, "kernel_name": "python3", "cwd": str(path.parent)}
    options["extra_arguments"] = ["--log-level=CRITICAL"]  # a warning about transport for each notebook, else
    try:
        papermill.execute_notebook(str(path), str(copy), parameters, **options)
    except (DeadKernelError, PapermillExecutionError) as error:
        reason = f": Python died, perhaps because memory ran out, after {_cost_since(started)}"
        if isinstance(error, PapermillExecutionError):
            reason = f" in cell [{error.exec_count}]: {error.ename}: {error.evalue}"
        again = f"The partial copy is {copy}; the same command begins at this notebook"
        raise HrnetppError(f"{path.name} failed{reason}. {again}") from error
    finally:
        if copy.is_file():
            _record(copy, path, profile_name, time.perf_counter() - started)
    print(f"{path.stem}: {_cost_since(started)}", flush=True)


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


def _cost_since(started: float) -> str:
    """Time since then and, where the system tells, the largest resident set of any process so far."""
    seconds = time.perf_counter() - started
    text = f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"
    try:
        import resource
    except ImportError:  # Windows
        return text
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    gib = peak * (1 if sys.platform == "darwin" else 1024) / 2**30
    return f"{text}; peak memory of one process {gib:.1f} GiB"
