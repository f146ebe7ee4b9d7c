"""The ways to install the project agree with one another and with what is installed here."""

import ast
import re
import subprocess
import sys
import sysconfig
import tomllib
from importlib.metadata import distributions, packages_distributions
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())
MAKEFILE = (ROOT / "Makefile").read_text()
PINNED = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
CONDA_NAMES = {"torch": "pytorch", "opencv-python": "py-opencv"}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def bounds(requirements: list[str]) -> dict[str, str]:
    """Package -> lower bound, of lines like 'numpy>=1.26'."""
    split = [requirement.split(">=") for requirement in requirements]
    assert all(len(parts) == 2 for parts in split), "every requirement has a lower bound, and that alone"
    return {canonical(name): bound for name, bound in split}


def as_numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text))


EXTRAS = {name: bounds(packages) for name, packages in PROJECT["optional-dependencies"].items()}
DEPENDENCIES = bounds(PROJECT["dependencies"])
ASKED = DEPENDENCIES | EXTRAS["test"]
INSTALLED = ASKED | EXTRAS["fast"] | EXTRAS["export"]  # by `make`
PINS = {canonical(line.split("==")[0]): line.split("==")[1] for line in PINNED}


def test_conda_and_pip_ask_for_the_same_packages():
    listed = [entry for entry in CONDA["dependencies"] if isinstance(entry, str)]
    conda = bounds([entry for entry in listed if ">=" in entry])
    assert conda == {CONDA_NAMES.get(name, name): bound for name, bound in ASKED.items()}
    assert {entry for entry in listed if ">=" not in entry} == {"python=3.11", "pip"}
    # The project itself, and nothing else, is installed by pip.
    (pip,) = [entry["pip"] for entry in CONDA["dependencies"] if isinstance(entry, dict)]
    assert pip == ["--no-deps --editable ."] and CONDA["channels"][0] == "conda-forge"
    asked = {"torch", "jupyterlab", "matplotlib", "numpy", "opencv-python", "pycocotools"}
    assert asked <= set(DEPENDENCIES)


def test_python_versions_agree():
    assert PROJECT["requires-python"] == ">=3.11" and "PYTHON ?= python3.11" in MAKEFILE
    assert sys.version_info >= (3, 11)


def test_every_dependency_is_pinned_within_its_bound():
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", line) for line in PINNED)
    assert [line.lower() for line in PINNED] == sorted({line.lower() for line in PINNED})
    assert len(PINS) == len(PINNED)
    asked = INSTALLED | EXTRAS["book"]
    assert {name for name, bound in asked.items() if as_numbers(PINS[name]) < as_numbers(bound)} == set()
    assert PINS["torch"] == "2.13.0"


def test_what_is_imported_is_declared():
    """Every library that a file imports is a dependency, an extra, or comes with one."""
    declared = {"nbformat", "nbclient", "traitlets", "ipython", *DEPENDENCIES}.union(*EXTRAS.values())
    distributions, used = packages_distributions(), set()
    for path in (ROOT / "hrnetpp_lib").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                used |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                used.add(node.module.split(".")[0])
    used -= set(sys.stdlib_module_names) | {"hrnetpp_lib"}
    homes = {canonical(distributions.get(name, [name])[0]) for name in used}
    assert homes <= declared
    assert set(DEPENDENCIES) - homes == {"jupyterlab"}, (
        "it runs the notebooks and is imported nowhere; what else is?"
    )


def test_what_make_installed_is_what_is_pinned():
    # Another environment, conda's for one, may have newer versions; `make` leaves a mark in its own.
    if Path(sys.prefix).resolve() != (ROOT / ".venv").resolve():
        pytest.skip("not the environment that make installs")
    # Of the environment's folder alone: setuptools puts versions of its own on the path.
    folder = [sysconfig.get_path("purelib")]
    found = {name: next(iter(distributions(name=name, path=folder)), None) for name in PINS}
    installed = {name: one.version.partition("+")[0] for name, one in found.items() if one}  # 2.13.0+cpu
    assert set(INSTALLED) <= set(installed)
    assert installed == {name: PINS[name] for name in installed}


def test_the_two_commands_of_the_readme_exist():
    for arguments, command in (
        ("reproduce", "-m hrnetpp_lib reproduce --profile mini"),
        ("reproduce PROFILE=smoke", "--profile smoke"),
        ("test", "-m pytest"),
    ):
        assert re.search(rf"^{arguments.split()[0]}: \.venv/ready$", MAKEFILE, flags=re.MULTILINE)
        make = subprocess.run(["make", "-n", *arguments.split()], cwd=ROOT, capture_output=True, text=True)
        assert make.returncode == 0 and command in make.stdout
    assert '-c constraints.txt -e ".[fast,export,test]"' in MAKEFILE


def test_torchvision_is_nowhere():
    for name in ("environment.yml", "pyproject.toml", "constraints.txt", "Makefile"):
        assert "torchvision" not in (ROOT / name).read_text()
    imports = "sys, hrnetpp_lib.app.workspace, hrnetpp_lib.app.photo"
    code = f"import {imports}; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# Our modules again, without what Windows has not; other libraries tell systems apart by themselves.
WITHOUT_POSIX = """
import importlib, os, signal, sys
for module in sys.argv[1:]:
    importlib.import_module(module)
for name in [name for name in sys.modules if name.split(".")[0] == "hrnetpp_lib"]:
    del sys.modules[name]
sys.modules |= dict.fromkeys(("resource", "fcntl", "termios", "pwd", "grp"))
for name in ("fork", "forkpty", "killpg", "setsid", "getuid", "geteuid", "sched_getaffinity", "getloadavg"):
    delattr(os, name)
for name in ("SIGKILL", "SIGHUP", "SIGALRM", "SIGXFSZ", "setitimer", "alarm"):
    delattr(signal, name)
for module in sys.argv[1:]:
    importlib.import_module(module)
"""


def test_nothing_is_imported_that_windows_has_not():
    paths = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / "hrnetpp_lib").rglob("[a-z]*.py")]
    modules = [".".join(path.parts) for path in paths]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_POSIX, *modules], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
