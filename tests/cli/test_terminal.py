"""Names, tags and errors are not ours: what they hold is shown on a terminal, and does nothing."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.table import Table

from srstream.cli.bench import Report, as_text
from srstream.terminal import plain_console, visible
from tests.support import clips
from tests.support.jobs import command, run
from tests.support.paths import REPOSITORY

NAMES = {
    "[red]x[/red]": "[red]x[/red]",
    "[bold]": "[bold]",
    "[]": "[]",
    "[link=file:a]b": "[link=file:a]b",
    "\\[x]": "\\[x]",
    ":smile: :warning:": ":smile: :warning:",
    "{x} %s {{": "{x} %s {{",
    "a\x1b[31mred\x1b[2J": "a\\x1b[31mred\\x1b[2J",
    "two\nsrstream: lines": "two\\nsrstream: lines",
    "back\rwards\x08\x07": "back\\rwards\\x08\\x07",
    "c1 \x9b31m": "c1 \\x9b31m",
    "bidi \u202egnp": "bidi \\u202egnp",
    "line\u2028line": "line\\u2028line",
    os.fsdecode(b"latin \xe9"): "latin \\xe9",
    "Ünï 視頻 é": "Ünï 視頻 é",
}
"""What may stand in a name, and how it is shown."""

FILES = {name: shown for name, shown in NAMES.items() if "/" not in name}

DOES_SOMETHING = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]")


@pytest.mark.parametrize(("text", "shown"), NAMES.items(), ids=ascii)
def test_only_what_would_do_something_is_spelled(text: str, shown: str) -> None:
    assert visible(text) == shown
    assert visible(shown) == shown


@pytest.mark.parametrize(("text", "shown"), NAMES.items(), ids=ascii)
def test_consoles_and_tables_take_text_as_it_is(text: str, shown: str) -> None:
    console = plain_console(width=200)
    table = Table(text, box=None, title=text)
    table.add_row(text)
    console.file = io.StringIO()
    console.print(text)
    console.print(table)
    assert [line.strip() for line in console.file.getvalue().splitlines()] == [shown] * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture by each of the names."""
    folder = tmp_path_factory.mktemp("pictures")
    _, data = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))
    for name in FILES:
        (folder / f"{name}.png").write_bytes(bytes(data))
    return folder


def test_pictures_are_listed_by_their_names_one_a_line(folder: Path) -> None:
    planned = run("plan", folder)
    assert planned.returncode == 0, planned.stderr
    lines = planned.stdout.splitlines()
    expected = {f"{folder}/{shown}.png: 8x8 to" for shown in FILES.values()}
    assert {line[: line.index(" to") + 3] for line in lines} == expected
    assert len(lines) == len(FILES) and not DOES_SOMETHING.search(planned.stdout)


def test_json_holds_the_names_and_nothing_that_acts(folder: Path) -> None:
    planned = run("plan", folder, "--json")
    assert planned.returncode == 0, planned.stderr
    inputs = {os.path.basename(entry["input"]) for entry in json.loads(planned.stdout)}
    assert inputs == {f"{name}.png" for name in FILES}
    assert not DOES_SOMETHING.search(planned.stdout)


def test_enhanced_pictures_are_told_by_their_names(folder: Path, tmp_path: Path) -> None:
    done = run("enhance", folder, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    *lines, summary = done.stderr.splitlines()
    assert summary == f"srstream: {len(FILES)} done"
    assert {line.split(" -> ")[0] for line in lines} == {
        f"{folder}/{shown}.png" for shown in FILES.values()
    }
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"{n}.png" for n in FILES}


def test_errors_quote_names_in_one_line(tmp_path: Path) -> None:
    name = "".join(NAMES)
    shown = "".join(NAMES.values())
    failed = run("enhance", tmp_path / f"{name}.png")
    assert failed.returncode == 2
    assert failed.stderr.count("\n") == 1 and shown in failed.stderr


@pytest.mark.parametrize(
    "arguments", [["verify", "a.mp4", "b.mp4", *NAMES], ["[red]\x1b[31m[/]:smile:"]]
)
def test_the_parser_quotes_names_as_they_are(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    failed = run(*arguments)
    assert failed.returncode == 2 and failed.stdout == ""
    quoted = visible(" ".join(arguments[3:] or arguments))
    assert quoted in failed.stderr.replace(r"\x0a", r"\n").replace(r"\x0d", r"\r")
    assert not DOES_SOMETHING.search(failed.stderr)


def test_tags_of_a_video_are_shown_as_they_are(tmp_path: Path) -> None:
    name = "[red]a:smile:\x1b[31m\nb[]"
    source = clips.cfr(tmp_path / f"{name}.mkv", frames=4, audio=1)
    planned = run("plan", source)
    assert planned.returncode == 0, planned.stderr
    assert planned.stdout.splitlines()[0].startswith(f"{tmp_path}/{visible(name)}.mkv: 4 frames")
    assert not DOES_SOMETHING.search(planned.stdout)


def test_a_terminal_is_steered_by_the_bar_alone(tmp_path: Path) -> None:
    """Rich writes sequences of its own there; those of a name are none of them."""
    source = clips.cfr(tmp_path / "[red]\x1b]0;owned\x07\x1b[2J.mp4", frames=4)
    parent, child = pty.openpty()
    process = subprocess.Popen(
        command("enhance", source),
        stdin=subprocess.DEVNULL,
        stdout=child,
        stderr=child,
        env=dict(os.environ, PYTHONPATH=str(REPOSITORY), TERM="xterm-256color", COLUMNS="300"),
    )
    os.close(child)
    screen = b""
    while True:
        try:
            block = os.read(parent, 4096)
        except OSError:
            break
        screen += block
    assert process.wait(60) == 0
    assert rb"[red]\x1b]0;owned\x07\x1b[2J.mp4" in screen
    assert b"\x1b]0;" not in screen and b"\x1b[2J" not in screen


def test_advice_of_bench_keeps_its_brackets() -> None:
    install = "python -m pip install './checkout[ncnn]'"
    report = Report(
        clip="[red]clip.mp4", model="fast", cores=2, gemm_gflops=1.0, stages={}, networks=[],
        fps_if_all_cores_were_always_busy=1.0, slowest_stage="encode", command_fps=None,
        command_memory_mib=None, advice=[install],
    )  # fmt: skip
    text = as_text(report)
    assert text.startswith("[red]clip.mp4, model fast") and install in text
