"""Text on a terminal: whatever a name, a tag or an error holds is shown, and does nothing.

Everything that a command prints goes through here. Names, tags and error texts are not ours: they
may hold Rich's markup (`[red]`), its emoji (`:smile:`), or control characters that move the cursor,
change colors or begin a line that looks like one of ours.
"""

from __future__ import annotations

import re
import sys
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text

_BEYOND_ASCII = (
    "\x7f-\x9f"  # delete, and the second set of controls, of which some open a sequence
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"  # other lines, other directions
    "\ud800-\udfff"  # bytes of a name that are no UTF-8
)
_ACTIVE = re.compile(f"[\x00-\x1f{_BEYOND_ASCII}]")
_ACTIVE_IN_JSON = re.compile(f"[{_BEYOND_ASCII}]")
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def visible(text: str) -> str:
    r"""One line in which every character that would do something is spelled, as `\x1b` is."""
    return _ACTIVE.sub(_spelled, text)


def _spelled(found: re.Match[str]) -> str:
    code = ord(found.group())
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00  # Python's stand-in for a byte
    return _SHORT.get(found.group()) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")


def show(*lines: str) -> None:
    """Lines on standard output."""
    print(*map(visible, lines), sep="\n", flush=True)


def tell(*lines: str) -> None:
    """Lines on standard error."""
    print(*map(visible, lines), sep="\n", file=sys.stderr, flush=True)


def show_json(text: str) -> None:
    """A JSON document on standard output: data, which may all the same end up on a terminal."""
    print(_ACTIVE_IN_JSON.sub(lambda c: f"\\u{ord(c.group()):04x}", text), flush=True)


def run_app(app: typer.Typer) -> NoReturn:
    """Run a command line up to its exit code; what the parser quotes of it may be a file's name."""
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except _ParseError as error:
        from typer.rich_utils import rich_format_error

        error.message = visible(error.message)
        rich_format_error(error)
        sys.exit(error.exit_code)


_ParseError: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
"""Of the parser that Typer brings along, or of Click."""


class _PlainConsole(Console):
    """Takes every string, those in the cells of a table too, as what it is: one line."""

    def render_str(self, text: str, **how: Any) -> Text:
        kept = {name: how[name] for name in ("justify", "overflow") if how.get(name) is not None}
        return Text(visible(text), style=how.get("style") or "", **kept)


def plain_console(*, stderr: bool = False, width: int | None = None) -> Console:
    """A console for bars and tables; each string that it prints is one line."""
    return _PlainConsole(
        stderr=stderr,
        width=width,
        markup=False,
        emoji=False,
        highlight=False,
        soft_wrap=width is None,
    )
