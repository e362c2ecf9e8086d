"""Finds when a file begins, and with which picture: a recorder's clock need not start at zero."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from math import floor

from av.container import InputContainer
from av.packet import Packet
from av.stream import Stream

from srstream.media.read.demux import Clock, ReadFault, is_picture
from srstream.media.types import StreamPlan

_PRIMED = frozenset({"mov", "matroska", "ogg"})
"""Formats whose audio begins before zero with encoder priming that nobody hears."""
_PRIMING_SECONDS = Fraction(1, 10)

_CUT_ANYWHERE = {"mpegts", "mpeg", "mpegvideo", "h264", "hevc", "vvc"}
_MAX_HEADLESS = 300


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


def without_headless_start(
    container: InputContainer, packets: Iterator[Packet[Stream] | ReadFault]
) -> Iterator[Packet[Stream] | ReadFault]:
    """Skip what precedes the first keyframe of a recording that was cut in the middle.

    Such packets refer to missing pictures. This applies only to MPEG streams, where the parser and
    not the file marks the keyframes; if none comes within 300 packets, all are kept.
    """
    if not _CUT_ANYWHERE.intersection(container.format.name.split(",")):
        yield from packets
        return
    waiting: list[Packet[Stream] | ReadFault] = []
    for packet in packets:
        is_key = not isinstance(packet, ReadFault) and packet.is_keyframe
        waiting.append(packet)
        if is_key or len(waiting) > _MAX_HEADLESS:
            yield from waiting[-1:] if is_key else waiting
            break
    else:
        yield from waiting
    yield from packets
