"""Determines which source frames an output shows, and when."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

import numpy as np

from srstream.media.witness.decode import Moment, Watcher
from srstream.media.witness.survey import Survey

_MAX_TS_DELAY = 10
"""The latest time in seconds at which an MPEG-TS may begin, wherever its source does."""
_MAX_JOIN = Fraction(1, 2)
"""Maximum deviation in seconds between frames where the source's clock jumps back."""


class Course:
    """Maps the source's times to the output's.

    All times are moved back by `shift`. It removes the clock's start or an excerpt's start, or is
    zero; otherwise the earliest stream, not necessarily the video, begins at zero. Several shifts
    are allowed; the start of the output shows which one was used. The streams' own times show
    whether all were shifted alike.
    """

    def __init__(
        self,
        source: Survey,
        brand: str,
        first_found: Fraction | None,
        start: Fraction | None,
        end: Fraction | None,
    ) -> None:
        facts = source.streams[source.video]
        self._source, self._first_found = source, first_found
        self._brand = brand
        self._start, self._end = start, end
        self._tick = facts.base
        self._packets = np.sort(np.array(facts.starts, np.int64))
        self._first: Fraction | None = None
        self._last: Fraction | None = None
        self._run = Fraction(0)
        self._number = 0
        self._is_placed = False
        self.is_over = False
        """Whether everything in the processed part has been placed."""
        self.shift = Fraction(0)

    def place(self, moment: Moment, watcher: Watcher) -> Fraction | None:
        """Return when the output should show a frame; None if it is outside the processed part."""
        time = moment.time
        if time is None:
            time = (self._number + watcher.num_lost) * watcher.step
        self._number += 1
        if self._first is None:
            self._first = time
        if moment.is_join and self._last is not None:
            self._run = self._last + moment.duration - time
        time += self._run
        if self._last is not None and time <= self._last:
            time = self._last + self._tick  # a repeated time: the next tick
        self._last = time
        self.is_over = self._end is not None and time >= self._end
        if self.is_over or (self._start is not None and time < self._start):
            return None
        if not self._is_placed:
            self._is_placed = True
            self.shift = self._shift(time, self._first, moment.duration)
        return time - self.shift

    def settle(self, late: Fraction) -> Fraction:
        """Accept that the first frame of a run is this late; return the accepted delay."""
        if abs(late) > _MAX_JOIN or self._last is None:
            return Fraction(0)
        self._run += late
        self._last += late
        return late

    def is_of_packet(self, time: Fraction) -> bool:
        """Return whether a source packet should be shown at this time of the output."""
        if not self._source.is_timed:
            return True
        stamp = (time + self.shift - self._run) / self._tick
        place = int(np.searchsorted(self._packets, ceil(stamp - 1)))
        return place < len(self._packets) and int(self._packets[place]) <= stamp + 1

    def _shift(self, taken: Fraction, first: Fraction, duration: Fraction) -> Fraction:
        """Return the seconds by which a source is shifted.

        `first` is when its video begins, `taken` when the processed part does.
        """
        begins = [Fraction(0), max(first, Fraction(0))]
        if self._start is None:
            begins += [
                first - start // self._tick * self._tick
                for start in self._source.start_seconds()
                if start < first
            ]
        found = self._first_found
        if self._brand == "mpegts" and found is not None and found < _MAX_TS_DELAY:
            begins.append(found)  # the muxer gives decoders time
        if self._source.brand == "avi":
            # Packets are counted in decoding order, ahead of their display.
            begins += [max(first + n * duration, Fraction(0)) for n in (-2, -1, 1)]
        shifts = [taken - begin for begin in begins]
        if found is None:
            return shifts[0]
        return min(shifts, key=lambda shift: abs(taken - shift - found))
