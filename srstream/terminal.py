"""Safe text on a terminal: names, tags and errors are shown literally and have no effect.

Everything that a command prints goes through this module. Names, tags and error texts come from
elsewhere. They may contain Rich's markup (`[red]`), its emoji (`:smile:`), or control characters
that move the cursor, change colors or start a line that looks like srstream's own.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from typing import Any, NoReturn, TextIO

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

_BEYOND_ASCII = (
    "\x7f-\x9f"  # delete, and the second set of controls, some of which open a sequence
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"  # line separators, changes of direction
    "\ud800-\udfff"  # bytes of a name that are not UTF-8
)
_ACTIVE = re.compile(f"[\x00-\x1f{_BEYOND_ASCII}]")
_ACTIVE_IN_JSON = re.compile(f"[{_BEYOND_ASCII}]")
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def visible(text: str) -> str:
    r"""Make one line of a text, escaping characters that have an effect, such as `\x1b`."""
    return _ACTIVE.sub(_spelled, text)


def _spelled(found: re.Match[str]) -> str:
    code = ord(found.group())
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00  # Python's stand-in for a byte
    return _SHORT.get(found.group()) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")


def show(*lines: str) -> None:
    """Print lines on standard output."""
    _print(lines, sys.stdout)


def tell(*lines: str) -> None:
    """Print lines on standard error."""
    _print(lines, sys.stderr)


def _print(lines: tuple[str, ...], stream: TextIO) -> None:
    width = _columns(stream)
    whole = [visible(line) for line in lines]
    shown = whole if not width else [part for line in whole for part in wrapped(line, width)]
    print(*shown, sep="\n", file=stream, flush=True)


def _columns(stream: TextIO) -> int:
    """Return the columns of a terminal; 0 if the stream is none, or has no size."""
    try:
        return os.get_terminal_size(stream.fileno()).columns if stream.isatty() else 0
    except OSError:
        return 0


def wrapped(line: str, width: int) -> list[str]:
    """Break a line between words, so that a terminal does not break it within one.

    What follows the first part is indented, so that no part passes for a line of its own. A word
    that is longer than `width` stays whole.
    """
    indent = " " * (len(line) - len(line.lstrip(" ")) + 2)
    parts, part = [], ""
    for word in re.findall(" *[^ ]+| +$", line):
        if part.strip() and cell_len(part + word.rstrip()) > width:
            parts.append(part)
            part = indent + word.lstrip()
        else:
            part += word
    return [*parts, part]


def show_json(text: str) -> None:
    """Print a JSON document on standard output, safe for a terminal and still the same data."""
    print(_ACTIVE_IN_JSON.sub(lambda c: f"\\u{ord(c.group()):04x}", text), flush=True)


def format_seconds(seconds: float | None) -> str:
    """1:02:03 or 2:03; a dash while unknown."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def count(number: int, noun: str) -> str:
    """Return `1 segment`, `2 segments`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def format_bytes(num_bytes: float) -> str:
    """Return `12 MB`, `1.4 GB`; small sizes in KB, so that nothing is about 0 MB."""
    if num_bytes < 1e6:
        return f"{max(round(num_bytes / 1e3), 1)} KB"
    return f"{num_bytes / 1e6:.0f} MB" if num_bytes < 1e9 else f"{num_bytes / 1e9:.1f} GB"


def rendered(*objects: Any, width: int) -> str:
    """Return what a plain console of this width, or the terminal's if that is less, prints."""
    console = plain_console(width=min(width, shutil.get_terminal_size((width, 24)).columns))
    with console.capture() as capture:
        for each in objects:
            console.print(each)
    return "\n".join(line.rstrip() for line in capture.get().rstrip().split("\n"))


def run_app(app: typer.Typer) -> NoReturn:
    """Run a command line and exit with its code.

    The parser's errors quote arguments, which may be file names, so they are made visible too.
    """
    try:
        command = typer.main.get_command(app)
        _tidy_help(command)
        sys.exit(command(standalone_mode=False) or 0)
    except _ParseError as error:
        from typer.rich_utils import rich_format_error

        error.message = _plainly(visible(error.message))
        rich_format_error(error)
        sys.exit(error.exit_code)


def _plainly(message: str) -> str:
    """Say what to write instead of what the parser could not do."""
    for kind, number in {"integer": "a whole number", "number": "a number"}.items():
        message = re.sub(f"Input should be a valid {kind}.*", f"write {number}.", message)
    return message


def _tidy_help(command: Any) -> None:
    """Let `-h` ask for help too, show no type behind the names of flags, and unwrap paragraphs."""
    command.context_settings = {"help_option_names": ["-h", "--help"], **command.context_settings}
    find_help_option = command.get_help_option
    command.get_help_option = lambda context: _without_type(find_help_option(context))
    for parameter in command.params:
        if getattr(parameter, "is_flag", False):
            _without_type(parameter)
    if command.help:
        paragraphs = command.help.split("\n\n")
        command.help = "\n\n".join(" ".join(each.split()) for each in paragraphs)
    for child in getattr(command, "commands", {}).values():
        _tidy_help(child)


def _without_type(flag: Any) -> Any:
    """Return the option of a flag, or None as it is, with nothing behind its names."""
    if flag is not None and flag.metavar is None:
        flag.metavar = " "
    return flag


_ParseError: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
"""The base of the parser's errors, in the parser bundled with Typer or in Click."""


class _PlainConsole(Console):
    """A console that prints every string, even in table cells, as one plain line.

    On a terminal, a string that is longer than a row is broken between words.
    """

    def print(self, *objects: Any, **how: Any) -> None:
        if (
            len(objects) == 1
            and isinstance(objects[0], str)
            and self.soft_wrap
            and self.is_terminal
        ):
            for part in wrapped(visible(objects[0]), self.width):
                super().print(part, **how)
        else:
            super().print(*objects, **how)

    def render_str(self, text: str, **how: Any) -> Text:
        kept = {name: how[name] for name in ("justify", "overflow") if how.get(name) is not None}
        return Text(visible(text), style=how.get("style") or "", **kept)


def plain_console(*, stderr: bool = False, width: int | None = None) -> Console:
    """Make a console for progress bars and tables, on which every string is one line."""
    return _PlainConsole(
        stderr=stderr,
        width=width,
        markup=False,
        emoji=False,
        highlight=False,
        soft_wrap=width is None,
        force_terminal=None if width is None else False,
    )
