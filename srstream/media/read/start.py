"""Finds when a file begins: its clock is the recorder's and need not start at zero."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from math import floor

from av.packet import Packet
from av.stream import Stream

from srstream.media.read.demux import Clock, is_picture
from srstream.media.types import StreamPlan

_PRIMED = frozenset({"mov", "matroska", "ogg"})
"""Formats whose audio begins before zero with encoder priming that nobody hears."""
_PRIMING_SECONDS = Fraction(1, 10)


class Starts:
    """Collects the earliest time of each stream besides the enhanced video, in seconds."""

    def __init__(self, format_name: str) -> None:
        self.seconds: dict[int, Fraction] = {}
        self._is_primed = bool(_PRIMED.intersection(format_name.split(",")))
        self._clocks: dict[int, Clock] = {}

    def take(self, packet: Packet[Stream]) -> None:
        """Note a packet and unwrap its times. All packets of a stream come in file order."""
        stream = packet.stream
        if stream.index not in self._clocks:
            self._clocks[stream.index] = Clock(Fraction(packet.time_base))
        self._clocks[stream.index].correct(packet)
        stamp = packet.pts if packet.pts is not None else packet.dts
        if stamp is None or packet.is_discard or is_picture(stream):
            return
        moment = stamp * Fraction(packet.time_base)
        if self._is_primed and stream.type == "audio" and -_PRIMING_SECONDS < moment < 0:
            moment = Fraction(0)
        known = self.seconds.get(stream.index)
        self.seconds[stream.index] = moment if known is None else min(known, moment)


def earliest(starts: dict[int, Fraction], plans: Iterable[StreamPlan]) -> Fraction | None:
    """Return the earliest start of an output's streams other than its video; None if none."""
    kept = {p.index for p in plans if p.action in ("copy", "convert") and p.type != "data"}
    return min((starts[n] for n in kept if n in starts), default=None)


def start_pts(first_pts: int, base: Fraction, earliest_other: Fraction | None) -> int:
    """Return when a file begins, in whole ticks of the video's clock.

    `first_pts` is when its video begins.
    """
    return first_pts if earliest_other is None else min(first_pts, floor(earliest_other / base))
