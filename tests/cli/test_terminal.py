"""Names, tags and errors are not ours: what they hold is shown on a terminal, and does nothing."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.table import Table

from srstream.cli.bench import Report, as_text
from srstream.terminal import plain_console, visible, wrapped
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


def on_terminal(*arguments: str | Path, columns: int) -> tuple[subprocess.Popen[bytes], int]:
    """Start a command on a terminal of its own; return it and the terminal's other end."""
    parent, child = pty.openpty()
    termios.tcsetwinsize(child, (24, columns))
    process = subprocess.Popen(
        command(*arguments),
        stdin=subprocess.DEVNULL,
        stdout=child,
        stderr=child,
        env=dict(os.environ, PYTHONPATH=str(REPOSITORY), TERM="xterm-256color"),
    )
    os.close(child)
    return process, parent


def read_all(parent: int) -> Iterator[bytes]:
    """Yield what appears on a terminal until its last program has ended."""
    while True:
        try:
            yield os.read(parent, 4096)
        except OSError:
            os.close(parent)
            return


@pytest.mark.parametrize(
    ("line", "width", "parts"),
    [
        ("a bb ccc", 8, ["a bb ccc"]),
        ("a bb ccc", 7, ["a bb", "  ccc"]),
        ("  a bb cc", 7, ["  a bb", "    cc"]),
        ("averylongpath/x y", 5, ["averylongpath/x", "  y"]),
        ("視頻 視頻", 8, ["視頻", "  視頻"]),
        ("", 5, [""]),
    ],
)
def test_lines_are_broken_between_words(line: str, width: int, parts: list[str]) -> None:
    assert wrapped(line, width) == parts


def test_a_terminal_breaks_no_word_of_an_error() -> None:
    process, parent = on_terminal("plan", "my own videos/no such film.mp4", columns=30)
    lines = b"".join(read_all(parent)).decode().split("\r\n")
    assert process.wait(60) == 2
    assert lines[:-1] == [
        "srstream: my own videos/no",
        "  such film.mp4: there is no",
        "  such file. Check the path.",
    ]


@pytest.mark.parametrize("arguments", [["models", "list"], ["models", "show", "srgan"]])
def test_tables_fit_a_terminal(arguments: list[str]) -> None:
    process, parent = on_terminal(*arguments, columns=80)
    screen = b"".join(read_all(parent)).decode()
    assert process.wait(60) == 0
    lines = screen.split("\r\n")[:-1]
    assert "x1b" not in screen and "\x1b" not in screen
    assert all(0 < len(line) <= 80 for line in lines)


def test_ctrl_c_ends_a_picture_in_the_midst_of_the_network(tmp_path: Path) -> None:
    source = tmp_path / "a.png"
    cv2.imwrite(str(source), np.random.default_rng(1).integers(0, 255, (400, 400, 3), np.uint8))
    process, parent = on_terminal("enhance", source, "--model", "srgan", columns=80)
    blocks = read_all(parent)
    while b"enhancing" not in next(blocks):
        pass
    time.sleep(2.5)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    screen = b"".join(blocks)
    assert process.wait(60) == 130
    assert time.monotonic() - began < 4, "two seconds, and as much again for a busy machine"
    assert b"stopping" in screen and b"Run the same command again" in screen
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["enhance", "a.mp4", "--height", "1080p"], "'--height': write a whole number."),
        (["enhance", "a.mp4", "--scale", "2x"], "'--scale': write a number."),
    ],
)
def test_a_wrong_number_is_told_by_what_to_write(arguments: list[str], said: str) -> None:
    refused = run(*arguments)
    assert refused.returncode == 2 and said in refused.stderr


def test_a_file_without_a_command_is_told_the_command(tmp_path: Path) -> None:
    (tmp_path / "a b.mp4").touch()
    refused = run(tmp_path / "a b.mp4")
    assert refused.returncode == 2
    assert f"srstream enhance '{tmp_path}/a b.mp4'" in refused.stderr


def test_help_names_no_type_behind_flags() -> None:
    assert "bool" not in run("enhance", "-h").stdout


def test_verify_of_an_excerpt_asks_for_its_times(tmp_path: Path) -> None:
    source = clips.cfr(tmp_path / "a.mkv", frames=10)
    output = tmp_path / "b.mkv"
    assert run("enhance", source, "-o", output, "--end", "0.2").returncode == 0
    verified = run("verify", source, output)
    assert verified.returncode == 1 and not json.loads(verified.stdout)["ok"]
    assert "--start and --end" in verified.stderr
    assert run("verify", source, output, "--end", "0.2").stderr == ""


def test_a_terminal_is_steered_by_the_bar_alone(tmp_path: Path) -> None:
    """Rich writes sequences of its own there; those of a name are none of them."""
    source = clips.cfr(tmp_path / "[red]\x1b]0;owned\x07\x1b[2J.mp4", frames=4)
    process, parent = on_terminal("enhance", source, columns=300)
    screen = b"".join(read_all(parent))
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
