"""The shape of the library: layers, sizes, docstrings, and what must not be in its files."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "hrnetpp_lib"
MODULES = sorted(PACKAGE.glob("*.py"))
SOURCES = MODULES + sorted((ROOT / "tests").glob("*.py"))

# A module imports modules of lower layers only, or of its own layer without going in circles.
LAYERS = {
    0: ["__init__", "errors", "keypoints", "recipe", "recipe_file", "progress"],
    1: ["durable", "coordinates", "geometry", "heatmap", "softargmax", "images", "records"],
    2: ["blocks", "hrnet", "weights", "losses", "augment", "mannequin", "painter", "scene", "synthetic"]
    + ["memory", "preemption", "machine", "resume"],
    3: ["persons", "lspe", "annotations", "datasets", "data", "loader", "step", "detector", "checkpoint"]
    + ["plots", "cache"],
    4: ["infer", "evaluate", "bootstrap", "diagnose", "validate", "journal", "train", "realdata", "anatomy"]
    + ["exploration"],
    5: ["report", "charts", "plan", "launch", "workspace", "photo", "readme"]
    + ["views", "gallery", "picture", "explorer", "data_explorer"],
    6: ["reproduce", "commands", "__main__"],
}
LAYER_OF = {name: layer for layer, names in LAYERS.items() for name in names}
each_module = pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def imports_of(path: Path) -> set[str]:
    """Modules of the package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {
                alias.name.split(".")[1] for alias in node.names if alias.name.startswith("hrnetpp_lib.")
            }
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute"
            if node.module == "hrnetpp_lib":
                found |= {alias.name for alias in node.names}
            elif (node.module or "").startswith("hrnetpp_lib."):
                found.add(node.module.split(".")[1])
    return found


def test_every_module_has_a_layer():
    assert {path.stem for path in MODULES} == set(LAYER_OF)


@each_module
def test_imports_go_down(path):
    for name in imports_of(path):
        assert LAYER_OF[name] <= LAYER_OF[path.stem], f"{path.stem} imports {name} of a higher layer"


def test_no_circles():
    graph = {path.stem: imports_of(path) for path in MODULES}
    while graph:
        leaves = {name for name, imported in graph.items() if not imported & set(graph)}
        assert leaves, f"modules import one another in a circle: {sorted(graph)}"
        graph = {name: imported for name, imported in graph.items() if name not in leaves}


@pytest.mark.parametrize(
    "name",
    [
        "recipe",
        "keypoints",
        "errors",
        "recipe_file",
        "report",
        "geometry",
        "commands",
        "__main__",
        "__init__",
    ],
)
def test_light_modules_load_no_torch(name):
    top = [
        node for node in tree_of(PACKAGE / f"{name}.py").body if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    names = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in top if isinstance(node, ast.ImportFrom)}
    assert not {entry for entry in names if entry.split(".")[0] in ("torch", "cv2", "matplotlib")}


@each_module
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) <= 350


@each_module
def test_functions_are_short(path):
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 50, f"{path.name}: {node.name} has {length} lines"


def public_definitions(tree: ast.Module):
    """Public functions, classes and methods; not what nn.Module and dataclasses prescribe."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                for member in node.body:
                    if isinstance(member, ast.FunctionDef) and not member.name.startswith("_"):
                        yield f"{node.name}.{member.name}", member


def is_trivial(name: str, node: ast.AST) -> bool:
    """A network's forward, and one-line accessors whose name and types say it all."""
    return name.endswith(".forward") or (isinstance(node, ast.FunctionDef) and len(node.body) == 1)


@each_module
def test_everything_public_has_a_docstring(path):
    tree = tree_of(path)
    assert ast.get_docstring(tree), f"{path.name} does not say what it is"
    for name, node in public_definitions(tree):
        text = ast.get_docstring(node)
        assert text or is_trivial(name, node), f"{path.name}: {name} has no docstring"
        assert not text or text.split("\n")[0].endswith((".", ":")), f"{path.name}: {name}"


@each_module
def test_raises_sections_are_kept(path):
    for name, node in public_definitions(tree_of(path)):
        if isinstance(node, ast.FunctionDef) and "." not in name:  # a class may say it once for its methods
            raised = {
                inner.exc.func.id
                for inner in ast.walk(node)
                if isinstance(inner, ast.Raise)
                and isinstance(inner.exc, ast.Call)
                and hasattr(inner.exc.func, "id")
            }
            text = ast.get_docstring(node) or ""
            # Commands print what they raise.
            if raised & {"HrnetppError", "ValueError"} and path.stem != "commands":
                assert "Raises:" in text, f"{path.name}: {name} raises {raised}"


@each_module
def test_no_state_and_no_grab_bags(path):
    assert path.stem not in ("utils", "misc", "core", "helpers", "common")
    assert not [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Global)]


@each_module
def test_nothing_prints_but_what_reports_to_people(path):
    calls = [n for n in ast.walk(tree_of(path)) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    if any(call.func.id == "print" for call in calls):
        reporters = {"commands", "__main__", "reproduce", "train", "progress", "launch"}
        assert path.stem in reporters | {"synthetic", "datasets", "cache", "photo"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_no_file_of_this_machine_and_no_torchvision(path):
    if path == Path(__file__).resolve() or path.name in ("test_environment.py", "test_notebooks.py"):
        return  # they look for it
    text = path.read_text()
    assert "torchvision" not in text
    assert not re.search(r"[\"'( ](/home/|/root/|/work/|/Users/|/tmp/|[A-Z]:\\\\)", text)


def test_departures_are_marked_with_a_reason():
    marks = [
        (path.name, line.split(":", 1)[1])
        for path in MODULES
        for line in path.read_text().splitlines()
        if re.match(r"\s*# (CHOICE|DEVIATION):", line)
    ]
    assert marks
    assert all(len(reason.split()) >= 4 for _, reason in marks), marks
