"""The shape of the library: its rooms, docstrings, and what must not be in its files."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("hrnetpp_lib", "tests", "benchmarks", "tools")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
PATHS = [path for path in SOURCES if path.is_relative_to(ROOT / "hrnetpp_lib")]
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in PATHS}

# A room imports from floors below its own, and within itself without going in circles. Of neighbours on one
# floor neither imports the other.
FLOORS = "errors, files, recipe, pose, model data, evaluate, train, draw, explore, app, __main__ __init__"
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS.split(", ")) for room in rooms.split()}
# Names that users and checks outside this project rely on (README; published checkpoints; the report).
PUBLIC_CALLS = {"create_model", "hrnet_w32", "hrnet_w48", "hrnetpp_w32", "hrnetpp_w48", "download", "prepare"}

each_module = pytest.mark.parametrize("name", MODULES)


@cache
def tree_of(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text(), filename=name)


def room_of(name: str) -> str:
    """'hrnetpp_lib.pose.heatmap' -> 'pose'; the package's own __init__ is a room of its own."""
    return name.split(".")[1]


def imported(tree: ast.AST) -> set[str]:
    """Modules that a file imports, at its top or later; of `from a import b`, a.b where b is a module."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                deeper = f"{node.module}.{alias.name}"
                found.add(deeper if deeper in MODULES or f"{deeper}.__init__" in MODULES else node.module)
    return found


def ours(name: str) -> set[str]:
    """The modules of the library that one imports; a room's own name stands for its __init__."""
    found = {entry for entry in imported(tree_of(name)) if entry.split(".")[0] == "hrnetpp_lib"}
    return {entry if entry in MODULES else f"{entry}.__init__" for entry in found}


def public_definitions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef | ast.ClassDef]]:
    """Public functions, classes and methods."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, node
            for member in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(member, ast.FunctionDef) and not member.name.startswith("_"):
                    yield f"{node.name}.{member.name}", member


def test_every_module_has_its_room():
    assert {room_of(name) for name in MODULES} == set(FLOOR_OF)


@each_module
def test_imports_exist_and_go_down(name):
    mine = room_of(name)
    for other in ours(name):
        assert other in MODULES, f"{name} imports {other}, which is not there"
        theirs = room_of(other)
        assert theirs == mine or FLOOR_OF[theirs] < FLOOR_OF[mine], f"{name} imports {other} of a room above"


def test_no_circles():
    graph = {name: ours(name) for name in MODULES}
    while graph:
        leaves = {name for name, below in graph.items() if not below & set(graph)}
        assert leaves, f"modules import one another in a circle: {sorted(graph)}"
        graph = {name: below for name, below in graph.items() if name not in leaves}


def test_training_draws_nothing():
    below = [name for name in MODULES if FLOOR_OF[room_of(name)] <= FLOOR_OF["train"]]
    libraries = {entry.split(".")[0] for name in below for entry in imported(tree_of(name))}
    assert not libraries & {"matplotlib", "IPython"}


@pytest.mark.parametrize("name", [name for name in MODULES if name.count(".") == 2 and "__init__" in name])
def test_a_room_says_what_it_is_for_and_hands_nothing_on(name):
    docstring = ast.get_docstring(tree_of(name))
    assert docstring and docstring.endswith(".")
    # Two rooms have a public list at their door.
    if name not in ("hrnetpp_lib.evaluate.__init__", "hrnetpp_lib.draw.__init__"):
        assert len(tree_of(name).body) == 1 and "\n" not in docstring


def test_no_room_or_module_is_called_like_a_public_function_elsewhere_or_like_a_grab_bag():
    functions = {
        public: name
        for name in sorted(set(MODULES) - {"hrnetpp_lib.__main__"})  # whose functions are the commands
        for public, _ in public_definitions(tree_of(name))
    }
    assert not set(FLOOR_OF) & set(functions), "a room and a function of one name"
    # A module may hold the one function that it is named after.
    assert not {name for name in MODULES if functions.get(name.split(".")[-1], name) != name}
    names = {part for name in MODULES for part in name.split(".")}
    assert not names & {"utils", "util", "misc", "core", "helpers", "common"}


@each_module
def test_functions_are_short(name):
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 50, f"{name}: {node.name} has {length} lines"


@each_module
def test_everything_public_has_a_docstring(name):
    assert ast.get_docstring(tree_of(name)), f"{name} does not say what it is"
    for public, node in public_definitions(tree_of(name)):
        text = ast.get_docstring(node)
        # A network's forward, and one-line accessors: name and types say it all.
        clear = public.endswith(".forward") or (isinstance(node, ast.FunctionDef) and len(node.body) == 1)
        assert text or clear, f"{name}: {public} has no docstring"
        assert not text or text.split("\n")[0].endswith((".", ":")), f"{name}: {public}"


@each_module
def test_public_functions_say_what_they_raise(name):
    for public, node in public_definitions(tree_of(name)):
        if isinstance(node, ast.FunctionDef) and "." not in public:  # a class may say it once for its methods
            calls = [inner.exc for inner in ast.walk(node) if isinstance(inner, ast.Raise)]
            raised = {getattr(getattr(call, "func", None), "id", None) for call in calls}
            # Commands print what they raise.
            if raised & {"HrnetppError", "ValueError"} and name != "hrnetpp_lib.__main__":
                assert "Raises:" in (ast.get_docstring(node) or ""), f"{name}: {public} raises {raised}"


@each_module
def test_no_hidden_state(name):
    assert not [node for node in ast.walk(tree_of(name)) if isinstance(node, ast.Global)]


@each_module
def test_nothing_prints_but_what_reports_to_people(name):
    calls = [node.func for node in ast.walk(tree_of(name)) if isinstance(node, ast.Call)]
    if any(isinstance(call, ast.Name) and call.id == "print" for call in calls):
        reports = room_of(name) in ("train", "app", "__main__")
        slow = ("hrnetpp_lib.data.layout", "hrnetpp_lib.data.synthetic", "hrnetpp_lib.evaluate.runtime")
        guesses = "hrnetpp_lib.model.weights"  # what a file without a card is
        assert reports or name.startswith((*slow, guesses))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: "/".join(path.relative_to(ROOT).parts))
def test_no_path_of_this_machine_and_no_torchvision(path):
    if path == Path(__file__).resolve() or path.name in ("test_environment.py", "test_notebooks.py"):
        return  # they look for it
    text = path.read_text()
    assert "torchvision" not in text
    assert not re.search(r"[\"'( ](/home/|/root/|/work/|/Users/|/tmp/|[A-Z]:\\\\)", text)


def test_departures_are_marked_with_a_reason():
    lines = [line for path in MODULES.values() for line in path.read_text().splitlines()]
    reasons = [line.split(":", 1)[1] for line in lines if re.match(r"\s*# (CHOICE|DEVIATION):", line)]
    assert len(reasons) > 5 and all(len(reason.split()) >= 4 for reason in reasons), reasons


def test_what_only_tests_use_is_not_in_the_library():
    """A public name is used in its own module, or elsewhere in the library, or by notebooks and tools."""
    outside = [ROOT / "README.md", *(ROOT / "notebooks").glob("*.ipynb")]
    outside += [*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "tools").glob("*.py")]
    used = {word for path in outside for word in re.findall(r"\w+", path.read_text())} | PUBLIC_CALLS
    for node in (node for name in MODULES for node in ast.walk(tree_of(name))):
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
            used.add(node.id if isinstance(node, ast.Name) else node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            used.add(node.value)  # forward references, and the package's lazy names
    for name in MODULES:
        tops = {node.name for public, node in public_definitions(tree_of(name)) if "." not in public}
        assert tops <= used, f"{name}: used by tests alone, or by nobody: {sorted(tops - used)}"
