"""The ways to install the project agree with one another and with what is installed here."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, version
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


def pins() -> dict[str, str]:
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", line) for line in PINNED)
    return {canonical(name): number for name, number in (line.split("==") for line in PINNED)}


def as_numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text))


DEPENDENCIES = bounds(PROJECT["dependencies"])
TEST_EXTRA = bounds(PROJECT["optional-dependencies"]["test"])


def test_conda_and_pip_ask_for_the_same_packages():
    listed = [entry for entry in CONDA["dependencies"] if isinstance(entry, str)]
    conda = bounds([entry for entry in listed if ">=" in entry])
    assert conda == {
        CONDA_NAMES.get(name, name): bound for name, bound in (DEPENDENCIES | TEST_EXTRA).items()
    }
    assert set(listed) - {entry for entry in listed if ">=" in entry} == {"python=3.11", "pip"}


def test_conda_installs_the_project_itself_and_nothing_else_by_pip():
    (pip,) = [entry["pip"] for entry in CONDA["dependencies"] if isinstance(entry, dict)]
    assert pip == ["--no-deps --editable ."]
    assert CONDA["channels"][0] == "conda-forge"


def test_the_promised_packages_are_all_there():
    asked = {"torch", "jupyterlab", "matplotlib", "numpy", "opencv-python", "pycocotools"}
    assert asked <= set(DEPENDENCIES)


def test_python_versions_agree():
    assert PROJECT["requires-python"] == ">=3.11"
    assert "python=3.11" in CONDA["dependencies"]
    assert "PYTHON ?= python3.11" in MAKEFILE
    assert sys.version_info >= (3, 11)


def test_every_dependency_is_pinned_within_its_bound():
    pinned = pins()
    for name, bound in (DEPENDENCIES | TEST_EXTRA).items():
        assert name in pinned, name
        assert as_numbers(pinned[name]) >= as_numbers(bound), name
    assert pinned["torch"] == "2.13.0"


def test_pins_are_sorted_and_unique():
    assert [line.lower() for line in PINNED] == sorted({line.lower() for line in PINNED})
    assert len(pins()) == len(PINNED)


def test_what_is_imported_is_declared():
    """Every library that a file imports is a dependency, an extra, or comes with one."""
    declared = DEPENDENCIES | TEST_EXTRA | {"nbformat": "", "nbclient": "", "traitlets": "", "ipython": ""}
    for names in PROJECT["optional-dependencies"].values():
        declared |= bounds(names)
    distributions = packages_distributions()
    used = set()
    for path in (ROOT / "hrnetpp_lib").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                used |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                used.add(node.module.split(".")[0])
    used -= set(sys.stdlib_module_names) | {"hrnetpp_lib"}
    distribution_of = {name: canonical(distributions.get(name, [name])[0]) for name in used}
    assert not {name for name, home in distribution_of.items() if home not in declared}
    unused = set(DEPENDENCIES) - set(distribution_of.values())
    assert unused == {"jupyterlab"}, "it runs the notebooks and is imported nowhere; what else is?"


def test_what_make_installed_is_what_is_pinned():
    # Another environment, conda's for one, may have newer versions; `make` leaves a mark in its own.
    if Path(sys.prefix).resolve() != (ROOT / ".venv").resolve():
        pytest.skip("not the environment that make installs")
    installed = {}
    for name in pins():
        try:
            installed[name] = version(name).partition("+")[0]  # torch 2.13.0+cpu is 2.13.0
        except PackageNotFoundError:
            continue
    assert set(DEPENDENCIES) | set(TEST_EXTRA) <= set(installed)
    assert installed == {name: pins()[name] for name in installed}


def test_the_two_commands_of_the_readme_exist():
    for target in ("reproduce", "test"):
        assert re.search(rf"^{target}: \.venv/ready$", MAKEFILE, flags=re.MULTILINE)
        planned = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True)
        assert {"reproduce": "-m hrnetpp_lib reproduce --profile mini", "test": "-m pytest"}[
            target
        ] in planned.stdout
    assert "-c constraints.txt" in MAKEFILE


def test_make_passes_the_profile_on():
    planned = subprocess.run(
        ["make", "-n", "reproduce", "PROFILE=smoke"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--profile smoke" in planned.stdout


@pytest.mark.parametrize("name", ["environment.yml", "pyproject.toml", "constraints.txt", "Makefile"])
def test_torchvision_is_nowhere(name):
    assert "torchvision" not in (ROOT / name).read_text()


def test_torchvision_is_not_loaded():
    code = (
        "import sys, hrnetpp_lib.app.workspace, hrnetpp_lib.app.photo; sys.exit('torchvision' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
