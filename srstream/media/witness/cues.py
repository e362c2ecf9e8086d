"""Compares subtitles as a viewer sees them: which line of text is shown at what times.

Two tracks are equal if each line is on the screen at the same times, however the cues are cut:
MP4's text tracks show one cue at a time, so two that overlap in Matroska become three there.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Cue:
    """Lines that are shown from `start` to `end`, in seconds."""

    start: Fraction
    end: Fraction
    lines: tuple[str, ...]


Shown = dict[str, list[tuple[Fraction, Fraction]]]
"""The times at which each line is shown, as ascending disjoint intervals."""


def _tx3g(data: bytes) -> str:
    """Parse 3GPP TS 26.245, 5.17: two bytes of length, then the text, then style boxes."""
    text = data[2 : 2 + int.from_bytes(data[:2], "big")]
    if text.startswith((b"\xfe\xff", b"\xff\xfe")):
        return text.decode("utf-16", "replace")
    return text.decode("utf-8", "replace")


def _event(data: bytes) -> str:
    """Parse an ASS event as Matroska stores it: the ninth field is the text, without drawings."""
    fields = data.decode("utf-8", "replace").split(",", 8)
    text, is_drawn = "", False
    for part in re.split(r"(\{[^{}]*\})", fields[-1]):
        if part.startswith("{") and (mode := re.findall(r"\\p(\d+)", part)):
            is_drawn = int(mode[-1]) > 0
        text += "" if is_drawn else part
    return re.sub(r"\\[Nn]", "\n", text).replace(r"\h", " ")


def _plain(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _entities(data: bytes) -> str:
    return html.unescape(re.sub(r"<[^<>]*>", "", _plain(data)))


READERS: dict[str, Callable[[bytes], str]] = {
    "mov_text": _tx3g,
    "ass": _event,
    "ssa": _event,
    "subrip": _plain,
    "text": _plain,
    "webvtt": _entities,
}
"""Readers of text subtitles, by canonical codec name."""

_TAGS = re.compile(r"</?[a-zA-Z][^<>]*>")
_CODES = re.compile(r"\{[^{}]*\}")


def read_cue(codec: str, data: bytes) -> tuple[str, ...]:
    """Return the lines of a packet without markup; none if it only ends the last cue."""
    text = READERS[codec](data)
    if codec != "webvtt":  # its text may hold escaped brackets
        text = _TAGS.sub("", text)
    text = _CODES.sub("", text)
    lines = (" ".join(line.split()) for line in text.splitlines())
    return tuple(line for line in lines if line)


def shown_lines(
    cues: Iterable[Cue], shift: Fraction, start: Fraction | None, end: Fraction | None
) -> Shown:
    """Return when each line is shown: cut to [start, end), moved back by `shift`, from zero on."""
    shown: Shown = {}
    for cue in cues:
        first, last = cue.start, cue.end
        if (start is not None and max(last, first + Fraction(1, 10**6)) <= start) or (
            end is not None and first >= end
        ):
            continue
        first = first if start is None else max(first, start)
        last = last if end is None else min(last, end)
        first, last = max(first - shift, Fraction(0)), last - shift
        if last < 0:
            continue
        for line in cue.lines:
            shown.setdefault(line, []).append((first, max(last, first)))
    return {line: _joined(times) for line, times in shown.items()}


def _joined(times: list[tuple[Fraction, Fraction]]) -> list[tuple[Fraction, Fraction]]:
    """Merge intervals that overlap or touch; gaps up to a millisecond count as rounding."""
    joined: list[tuple[Fraction, Fraction]] = []
    for first, last in sorted(times):
        if joined and first - joined[-1][1] <= Fraction(2, 1000):
            joined[-1] = (joined[-1][0], max(joined[-1][1], last))
        else:
            joined.append((first, last))
    return joined


def cue_differences(before: Shown, now: Shown, tolerance: Fraction) -> list[str]:
    """Return what the second track shows differently; at most one sentence of each kind."""
    found = []
    missing = [line for line in before if line not in now]
    added = [line for line in now if line not in before]
    if missing:
        found.append(f"the text {_short(missing[0])}{_more(missing)} is not there")
    if added:
        found.append(f"the text {_short(added[0])}{_more(added)} is not in the source")
    moved = [
        (line, old, new)
        for line, times in before.items()
        if line in now
        for old, new in [_first_change(times, now[line], tolerance)]
        if old != new
    ]
    if moved:
        line, old, new = moved[0]
        found.append(
            f"the text {_short(line)}{_more([m[0] for m in moved])} is shown {_say(new)}, in the "
            f"source {_say(old)}"
        )
    return found


_Interval = tuple[Fraction, Fraction] | None


def _first_change(
    before: list[tuple[Fraction, Fraction]],
    now: list[tuple[Fraction, Fraction]],
    tolerance: Fraction,
) -> tuple[_Interval, _Interval]:
    """Return the first pair of intervals that differ; (None, None) if none do."""
    for n in range(max(len(before), len(now))):
        old = before[n] if n < len(before) else None
        new = now[n] if n < len(now) else None
        if old is None or new is None:
            return old, new
        # A cue without an end stays until the next one; formats disagree on that.
        ends_differ = old[1] > old[0] and abs(old[1] - new[1]) > tolerance
        if abs(old[0] - new[0]) > tolerance or ends_differ:
            return old, new
    return None, None


def _say(interval: _Interval) -> str:
    if interval is None:
        return "not at all"
    return f"from {float(interval[0]):.3f} to {float(interval[1]):.3f} s"


def _short(line: str) -> str:
    return repr(line if len(line) <= 40 else line[:37] + "...")


def _more(lines: list[str]) -> str:
    return f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
