"""Cues of text subtitles: cut and joined for tracks in which only one can be shown at a time.

Times are integers of one clock, as in the stream that the cues come from.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Cue:
    """A text that is shown in [start, end); `end` is None where the source does not say it."""

    start: int
    end: int | None
    text: str


def with_ends(cues: Iterable[Cue], last: int) -> list[Cue]:
    """The cues by their starts; one without an end is shown until the next one begins.

    So RFC 9559 has it for Matroska. Where none follows, it is shown until `last`, the film's end.
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
    """The same lines at the same times, in cues that do not overlap.

    At each moment at which a cue begins or ends a new one begins, with the texts of all that are
    shown then: those that began earlier first, equal ones once. All cues have ends; those that
    last no time or hold no text are left out.
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
