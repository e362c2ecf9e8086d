"""Cuts and joins subtitle cues for tracks that can show only one cue at a time.

Times are integers in the time base of the stream that the cues come from.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Cue:
    """A text shown in [start, end); `end` is None if the source does not state it."""

    start: int
    end: int | None
    text: str


def with_ends(cues: Iterable[Cue], last: int) -> list[Cue]:
    """Return the cues sorted by start; one without an end is shown until the next one begins.

    RFC 9559 specifies this for Matroska. If none follows, the cue ends at `last`, the video's end.
    """
    ordered = sorted(cues, key=lambda cue: cue.start)
    starts = [cue.start for cue in ordered]
    result = []
    for cue in ordered:
        end = cue.end
        if end is None:
            following = bisect_right(starts, cue.start)
            end = starts[following] if following < len(starts) else max(last, cue.start + 1)
        result.append(replace(cue, end=end))
    return result


def one_at_a_time(cues: Sequence[Cue]) -> Iterator[Cue]:
    """Yield the same lines at the same times, in cues that do not overlap.

    A new cue begins at each moment at which an input cue begins or ends. It has the texts of all
    cues shown then: those that began earlier first, equal ones once. All input cues must have ends;
    those without duration or text are left out.
    """
    shown = [(cue.start, number, cue) for number, cue in enumerate(cues) if _length(cue) > 0]
    shown.sort(key=lambda item: item[:2], reverse=True)
    moments = sorted({time for start, _, cue in shown for time in (start, cue.end or 0)})
    active: list[tuple[int, int, Cue]] = []
    for moment, following in pairwise(moments):
        active = [item for item in active if (item[2].end or 0) > moment]
        while shown and shown[-1][0] == moment:
            insort(active, shown.pop(), key=lambda item: item[:2])
        texts = dict.fromkeys(cue.text for _, _, cue in active if cue.text)
        if texts:
            yield Cue(moment, following, "\n".join(texts))


def _length(cue: Cue) -> int:
    assert cue.end is not None
    return cue.end - cue.start
