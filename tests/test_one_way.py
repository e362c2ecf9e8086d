"""Each job is done in one place: nobody writes a second atomic write, lock, child or codec."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.paths import REPOSITORY

SOURCES = sorted(
    path
    for part in ("srstream", "trainer", "research")
    for path in (REPOSITORY / part).rglob("*.py")
)
BENCHMARKS = sorted((REPOSITORY / "benchmarks").rglob("*.py"))
TESTS = sorted((REPOSITORY / "tests").rglob("*.py"))
MAX_LINES = 450
MAX_FUNCTION_LINES = 60
MAX_MODULES = 15

# What only one file may do: a call by its dotted name, or by the name of its method.
ONLY_IN: dict[str, tuple[set[str], set[str]]] = {
    "write atomically": (
        {"os.replace", "os.rename", "os.link", "os.renames", "*.rename", "*.hardlink_to"},
        {"srstream/files.py"},
    ),
    "lock a file": ({"fcntl.flock", "fcntl.lockf", "os.lockf"}, {"srstream/files.py"}),
    "start a process": (
        {
            *(
                f"subprocess.{name}"
                for name in ("Popen", "run", "call", "check_call", "check_output")
            ),
            "asyncio.create_subprocess_exec",
            "asyncio.create_subprocess_shell",
            "os.fork",
            "os.system",
            "multiprocessing.Process",
        },
        # `srstream bench` times the command that a user types.
        {"srstream/sandbox/child.py", "srstream/cli/bench.py"},
    ),
    "look an error up by its name": ({"globals"}, {"srstream/errors.py"}),
}


def name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def calls(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


def is_one_of(call: str, wanted: set[str]) -> bool:
    return call in wanted or (f"*.{call.rpartition('.')[2]}" in wanted and "." in call)


@pytest.mark.parametrize("job", ONLY_IN)
def test_one_file_does_it(job: str) -> None:
    wanted, places = ONLY_IN[job]
    found = {name(path) for path in SOURCES for call in calls(path) if is_one_of(call, wanted)}
    assert found <= places, f"to {job}, call {' or '.join(sorted(places))}"
    assert found & places, "this test looks for what nobody does"


def test_engines_keep_what_they_compile_in_one_cache() -> None:
    """Each other writer would need its own checksums, its own limit, its own full disk."""
    writes = {"write_whole", "open", "os.open", "*.write_bytes", "*.write_text"}
    files = [path for path in SOURCES if name(path).startswith("srstream/engines/")]
    found = {name(path) for path in files for call in calls(path) if is_one_of(call, writes)}
    # ncnn reads a network from files alone; these are gone once it has.
    assert found == {"srstream/engines/cache.py", "srstream/engines/ncnn/engine.py"}


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_errors_cross_processes_by_one_codec(path: Path) -> None:
    """`kind=type(error).__name__` is what `error_to_wire` is for."""
    if name(path) == "srstream/errors.py":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        pairs: list[tuple[str | None, ast.expr]] = []
        if isinstance(node, ast.Call):
            pairs = [(keyword.arg, keyword.value) for keyword in node.keywords]
        elif isinstance(node, ast.Dict):
            keys = (key.value if isinstance(key, ast.Constant) else None for key in node.keys)
            pairs = [(str(key), value) for key, value in zip(keys, node.values, strict=True)]
        for key, value in pairs:
            is_class = ast.unparse(value).startswith("type(") and "__name__" in ast.unparse(value)
            assert not (key == "kind" and is_class), ast.unparse(value)


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_outputs_are_marked_by_one_rule(path: Path) -> None:
    """`f"{path.stem}_4x{suffix}"` is what `srstream/naming.py` is for."""
    if name(path) == "srstream/naming.py":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.JoinedStr):
            continue
        for before, after in pairwise(node.values):
            is_stem = isinstance(before, ast.FormattedValue) and ".stem" in ast.unparse(before)
            is_mark = isinstance(after, ast.Constant) and str(after.value).startswith("_")
            assert not (is_stem and is_mark and "mark_of" not in ast.unparse(node)), ast.unparse(
                node
            )


@pytest.mark.parametrize("path", [*SOURCES, *BENCHMARKS], ids=name)
def test_files_and_functions_can_be_read_at_once(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= MAX_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            num_lines = (node.end_lineno or node.lineno) - node.lineno + 1
            is_training = name(path) == "trainer/loop/train.py" and node.name == "train"
            assert num_lines <= MAX_FUNCTION_LINES or is_training, node.name


def test_files_of_tests_can_be_read_at_once() -> None:
    """Their functions may be longer than others: a script for systemd is checked in one piece."""
    assert [name(path) for path in TESTS if path.read_text().count("\n") > MAX_LINES] == []


def test_folders_can_be_seen_at_once() -> None:
    tests = (REPOSITORY / "tests").rglob("*.py")
    for folder in {path.parent for path in (*SOURCES, *tests)}:
        modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(modules) <= MAX_MODULES, folder


def module_of(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path, modules: set[str]) -> set[str]:
    """The modules that a file imports when it is imported itself, or for its types."""
    found = set()
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names} & modules
            found |= names or {node.module} & modules
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & modules
        waiting += [
            child for child in ast.iter_child_nodes(node) if not isinstance(child, functions)
        ]
    return found - {module_of(path)}


def test_no_module_imports_itself_through_others() -> None:
    modules = {module_of(path): path for path in SOURCES}
    graph = {module: imported(path, set(modules)) for module, path in modules.items()}
    # A module without imports is in no circle; without it, others may have none.
    while leaves := {module for module, names in graph.items() if not names}:
        graph = {module: names - leaves for module, names in graph.items() if module not in leaves}
    assert not graph, f"a circle among {sorted(graph)}"
