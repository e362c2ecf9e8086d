"""Every command of the pages runs as it is written, or its block says why it cannot.

The comment `<!-- run: REASON -->` stands above a fenced block that does not run by default:
`skip WHY` for commands that need root, a GPU, a network, a daemon, or hours, `long` for slow ones,
`data` for slow ones that need the evaluation sets and PyTorch.
Where WHY names a test, that test runs them in surroundings of its own.
Of skipped blocks, the commands and the names of their options are checked.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.paths import REPOSITORY
from tests.support.training_data import data_folder

PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
SHELLS = {"bash", "sh", "console"}
BLOCK = re.compile(
    r"(?:^[ ]*<!-- run: (?P<mark>[^\n]*?) -->\n\s*)?^(?P<indent>[ ]*)```(?P<language>[^\n]*)\n"
    r"(?P<text>.*?)^[ ]*```[ ]*$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block of shell commands."""

    page: str
    line: int
    mark: str
    text: str

    @property
    def commands(self) -> list[list[str]]:
        """The words of every command, without comments."""
        joined = self.text.replace("\\\n", " ").replace(" && ", "\n")
        lines = (
            shlex.split(line.removeprefix("sudo -u srstream "), comments=True)
            for line in joined.splitlines()
        )
        return [words for words in lines if words]


def fenced(page: Path) -> Iterator[tuple[str, Block]]:
    """The language and the content of every fenced block of a page."""
    text = page.read_text()
    for found in BLOCK.finditer(text):
        line = text.count("\n", 0, found.start("language")) + 1
        content = "\n".join(
            part.removeprefix(found["indent"]) for part in found["text"].splitlines()
        )
        yield found["language"], Block(page.name, line, found["mark"] or "", content)


BLOCKS = [b for page in PAGES for language, b in fenced(page) if language in SHELLS]


def blocks(*, mark: str) -> list[object]:
    """The blocks whose mark begins so, as parameters of a test."""
    chosen = [b for b in BLOCKS if b.mark.split(" ")[0] == mark]
    return [pytest.param(b, id=f"{b.page}:{b.line}") for b in chosen]


def run_block(block: Block, folder: Path) -> None:
    """Run a block in a scratch folder that has what the pages assume: a clip and a picture."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, folder)
    shutil.copytree(REPOSITORY / "samples", folder / "samples")
    shutil.copy(REPOSITORY / "tests" / "docs" / "photo.png", folder)
    clip = REPOSITORY / "samples" / "nasa_13013.mp4"
    for name in ("input.mp4", "other.mp4", "film.mp4"):
        shutil.copy(clip, folder / name)
    weights = REPOSITORY / "srstream" / "models" / "weights" / "fast.safetensors"
    shutil.copy(weights, folder / "cam1.safetensors")
    # The commands of this tree, whatever is installed.
    programs = folder / ".bin"
    programs.mkdir()
    for name, module in (("srstream", "srstream"), ("srtrain", "trainer.cli")):
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n')
        program.chmod(0o755)
    done = subprocess.run(
        # bash would become its last command, which then finds no shell above it.
        ["bash", "-euo", "pipefail", "-c", f"{block.text}\ntrue"],
        cwd=folder,
        env={
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
            "HOME": str(folder),
            "SRSTREAM_MODELS": str(folder / "models"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{block.text}\n{done.stdout}{done.stderr}"


def test_every_block_names_its_language_and_a_known_mark() -> None:
    for page in PAGES:
        for language, block in fenced(page):
            assert language, f"{block.page}:{block.line}: name the block's language"
            kind, _, why = block.mark.partition(" ")
            assert kind in {"", "data", "long", "skip"}, block
            assert kind != "skip" or why, f"{block.page}:{block.line}: say why it is skipped"
            for test in re.findall(r"tests/\S+\.py", why):
                assert (REPOSITORY / test).is_file(), f"{block.page}:{block.line}: no {test}"
            assert not block.mark or language in SHELLS, block


@pytest.mark.parametrize("block", blocks(mark=""))
def test_a_command_runs_as_written(block: Block, tmp_path: Path) -> None:
    run_block(block, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("block", blocks(mark="long"))
def test_a_slow_command_runs_as_written(block: Block, tmp_path: Path) -> None:
    run_block(block, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("block", blocks(mark="data"))
def test_a_command_on_the_data_sets_runs_as_written(block: Block, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    for name in ("Set5", "Set14", "BSD100"):
        (tmp_path / name).symlink_to(data_folder(f"test/{name}"))
    run_block(block, tmp_path)


@functools.cache
def help_of(*words: str) -> str:
    """What a command says of its options."""
    program = "trainer.cli" if words[0] == "srtrain" else "srstream"
    done = subprocess.run(
        [sys.executable, "-m", program, *words[1:], "--help"],
        env={**os.environ, "COLUMNS": "300", "TERM": "dumb", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{shlex.join(words)}: {done.stderr}"
    return done.stdout


@pytest.mark.parametrize("block", blocks(mark="skip"))
def test_what_a_skipped_block_names_is_there(block: Block) -> None:
    """Commands of srstream and srtrain know their options, make its targets, pytest its files."""
    for words in block.commands:
        name = os.path.basename(words[0])
        if name == "make":
            target = words[1]
            assert re.search(rf"^{re.escape(target)}:", (REPOSITORY / "Makefile").read_text(), re.M)
        elif name in {"srstream", "srtrain"}:
            check_options(name, words[1:])
        for word in words:
            if word.startswith(("tests/", "benchmarks/", "configs/")):
                assert (REPOSITORY / word).exists(), f"{block.page}:{block.line}: {word}"


def check_options(program: str, words: list[str]) -> None:
    """The command exists and its help names every option that the page gives it."""
    if not words or words[0].startswith("-"):
        commands: list[str] = []
    else:
        is_group = program == "srstream" and words[0] in {"models", "keys"}
        commands = words[: 2 if is_group else 1]
    text = help_of(program, *commands)
    for word in words:
        if re.fullmatch(r"--?[a-z][a-z-]*", word) and word != "--version":
            assert re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text), (commands, word)
