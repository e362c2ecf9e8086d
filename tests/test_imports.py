"""Imports point one way only, the base install needs no PyTorch, and nothing unpickles."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import srstream
from tests.support.paths import REPOSITORY

FILES = sorted(
    path
    for part in ("srstream", "trainer", "research")
    for path in (REPOSITORY / part).rglob("*.py")
)

# A part may import any of a lower number, and itself. `api` is `srstream/__init__.py`.
RANKS = {
    "errors": 0,
    "config": 1,
    "files": 1,
    "terminal": 1,
    "sqlite": 1,
    "installing": 1,
    "memory": 1,
    "naming": 2,
    "frame": 2,
    "resampling": 3,
    "color": 4,
    "protocol": 3,
    "quality": 5,
    "models": 6,
    "engines": 7,
    "media": 7,
    "enhancer": 8,
    "sandbox": 8,
    "jobs": 9,
    "pictures": 10,
    "batch": 11,
    "client": 12,
    "daemon": 13,
    "api": 14,
    "cli": 15,
    "__main__": 16,
}
TRAINER_MAY_IMPORT = {name for name, rank in RANKS.items() if rank < RANKS["enhancer"]}
PICKLE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "joblib", "marshal"}


def module_name(path: Path) -> str:
    parts = list(path.relative_to(REPOSITORY).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[str]:
    """Dotted names of all that a file imports, at any depth, `if TYPE_CHECKING` included."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def part_of(name: str) -> str:
    """`srstream.media.read.probe.probe` belongs to `media`, `srstream.enhance` to `api`."""
    parts = name.split(".")
    if parts[0] != "srstream":
        return parts[0]
    part = parts[1] if len(parts) > 1 else "api"
    is_module = (REPOSITORY / "srstream" / part).is_dir() or (
        REPOSITORY / "srstream" / f"{part}.py"
    ).is_file()
    return part if is_module else "api"


def test_every_part_has_its_place() -> None:
    parts = {
        part_of(module_name(path)) for path in FILES if path.is_relative_to(REPOSITORY / "srstream")
    }
    assert parts <= RANKS.keys()


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_point_one_way(path: Path) -> None:
    here = part_of(module_name(path))
    wrong = []
    for name in imports_of(path):
        there = part_of(name)
        if there == here or there not in {*RANKS, "trainer", "research"}:
            continue
        if here == "research":
            allowed = there == "trainer" or there in TRAINER_MAY_IMPORT
        elif here == "trainer":
            allowed = there in TRAINER_MAY_IMPORT
        else:
            allowed = there in RANKS and RANKS[there] < RANKS[here]
        if not allowed:
            wrong.append(name)
    assert not wrong, f"{here} must not import {', '.join(wrong)}"


# A part of the trainer may import any of a lower number, and itself.
TRAINER_RANKS = {
    "config": 0,
    "console": 0,
    "memory": 0,
    "parts": 0,
    "state": 0,
    "research": 0,
    "networks": 1,
    "data": 2,
    "judge": 3,
    "loop": 4,
    "ship": 5,
    "run": 6,
    "finetune": 6,
    "coco": 7,
    "cli": 8,
}


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if path.relative_to(REPOSITORY).parts[0] == "trainer"],
    ids=module_name,
)
def test_imports_of_the_trainer_point_one_way(path: Path) -> None:
    parts = module_name(path).split(".")
    if len(parts) == 1:  # the console script, which imports the commands
        return
    for name in imports_of(path):
        there = name.split(".")
        assert there[0] != "research", "only trainer/research.py finds it, by name"
        if there[0] == "trainer" and there[1] in TRAINER_RANKS and there[1] != parts[1]:
            assert TRAINER_RANKS[there[1]] < TRAINER_RANKS[parts[1]], name


WITNESS = "srstream.media.witness"
WITNESS_MAY_IMPORT = {
    "srstream.errors",
    "srstream.media.errors",  # libav's errors in sentences
    "srstream.media.refused_formats",  # names of formats
    "srstream.media.languages",  # names of languages
    "srstream.media.tag_values",  # text in, text out
    "srstream.media.receipt",  # plain data
    "srstream.media.side_data",  # names of kinds that PyAV lacks
}


def modules_imported(path: Path) -> set[str]:
    """The modules of srstream that a file imports, without the names taken from them."""
    names = {name for name in imports_of(path) if part_of(name) in RANKS}
    modules = {module_name(file) for file in FILES}
    return {name if name in modules else name.rpartition(".")[0] for name in names}


def test_the_witness_reads_with_its_own_eyes() -> None:
    """Nothing that it imports, or that those import, decodes, demuxes, muxes or plans."""
    files = {module_name(file): file for file in FILES}
    waiting = [name for name in files if name.startswith(WITNESS)]
    assert len(waiting) > 5
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        waiting += [module for module in modules_imported(files[name]) if module in files]
    packages = {"srstream", "srstream.media"}
    wrong = {name for name in seen if not name.startswith(WITNESS)}
    assert wrong - WITNESS_MAY_IMPORT - packages == set()


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_nothing_is_unpickled(path: Path) -> None:
    assert not PICKLE_MODULES & {name.split(".")[0] for name in imports_of(path)}
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        call = ast.unparse(node.func)
        assert node.func.attr not in {"recv_pyobj", "send_pyobj"}, call  # pyzmq's way to pickle
        assert call not in {"torch.hub.load", "torch.jit.load"}, ast.unparse(node)
        if call == "torch.load":  # published VGG weights; this unpickler makes tensors only
            assert "weights_only=True" in ast.unparse(node)
            assert path.relative_to(REPOSITORY).parts[0] == "trainer"
        for keyword in node.keywords:
            assert keyword.arg != "allow_pickle" or ast.unparse(keyword.value) == "False"


@pytest.mark.parametrize(
    "module", ["srstream", "srstream.cli.main", "srstream.cli.console", "srstream.jobs.job"]
)
def test_no_engine_is_imported_before_it_is_used(module: str) -> None:
    heavy = "{'torch', 'openvino', 'onnx', 'safetensors'}"
    code = f"import sys, {module}; print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_no_folder_hides_what_the_package_offers() -> None:
    """An imported `srstream.enhance` package would take the place of `srstream.enhance()`."""
    folders = {path.name for path in (REPOSITORY / "srstream").iterdir() if path.is_dir()}
    assert not folders & set(srstream.__all__)
