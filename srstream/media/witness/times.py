"""Finds which packets of the source an output shows, and when: the course of its times."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

import numpy as np

from srstream.media.witness.decode import Moment, Watcher
from srstream.media.witness.survey import Survey

_MAX_TS_DELAY = 10
"""Seconds at which an MPEG-TS may begin, wherever its source does."""
_MAX_JOIN = Fraction(1, 2)
"""Seconds by which frames may lie apart where the source's clock jumps back."""


class Course:
    """The way of the source's times into the output's.

    `shift` is by how much all times were moved back. What a file's clock starts with is taken off,
    as an excerpt's start is, or kept; the earliest of the streams begins at zero then, which need
    not be the video. Of the shifts that this allows, the one that was made is found by where the
    output begins; that all streams were moved alike is found by their own times.
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
        """All that was taken has been placed."""
        self.shift = Fraction(0)

    def place(self, moment: Moment, watcher: Watcher) -> Fraction | None:
        """When the output is to show a frame; None if it was not taken of the source."""
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
            time = self._last + self._tick  # the same time twice: the next tick
        self._last = time
        self.is_over = self._end is not None and time >= self._end
        if self.is_over or (self._start is not None and time < self._start):
            return None
        if not self._is_placed:
            self._is_placed = True
            self.shift = self._shift(time, self._first, moment.duration)
        return time - self.shift

    def settle(self, late: Fraction) -> Fraction:
        """Take it as the truth that the first frame of a run is so late; gives what was taken."""
        if abs(late) > _MAX_JOIN or self._last is None:
            return Fraction(0)
        self._run += late
        self._last += late
        return late

    def is_of_packet(self, time: Fraction) -> bool:
        """Return whether a packet of the source is to be shown at this time of the output."""
        if not self._source.is_timed:
            return True
        stamp = (time + self.shift - self._run) / self._tick
        place = int(np.searchsorted(self._packets, ceil(stamp - 1)))
        return place < len(self._packets) and int(self._packets[place]) <= stamp + 1

    def _shift(self, taken: Fraction, first: Fraction, duration: Fraction) -> Fraction:
        """Seconds by which a source is moved whose video begins at `first`, of which what is shown
        from `taken` on was taken."""
        begins = [Fraction(0), max(first, Fraction(0))]
        if self._start is None:
            begins += [
                first - start // self._tick * self._tick
                for start in self._source.start_seconds()
                if start < first
            ]
        found = self._first_found
        if self._brand == "mpegts" and found is not None and found < _MAX_TS_DELAY:
            begins.append(found)  # its muxer gives decoders time
        if self._source.brand == "avi":
            # Its packets are counted as they are decoded, ahead of when they are shown.
            begins += [max(first + n * duration, Fraction(0)) for n in (-2, -1, 1)]
        shifts = [taken - begin for begin in begins]
        if found is None:
            return shifts[0]
        return min(shifts, key=lambda shift: abs(taken - shift - found))
