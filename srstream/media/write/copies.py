"""Counts the packets of copied streams, limits them for a trial, and completes durations."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from av.container import InputContainer
from av.packet import Packet
from av.stream import Stream

from srstream.media.read.demux import ReadFault, read_packets


@dataclass(slots=True)
class Taken:
    """Statistics of a source stream's packets that went into the output, with their times there."""

    num_packets: int = 0
    num_bytes: int = 0
    first: Fraction | None = None
    last: Fraction | None = None

    def take(self, moment: Fraction, size: int) -> None:
        """Count a packet of `size` bytes, shown at `moment` seconds."""
        self.num_packets += 1
        self.num_bytes += size
        self.first = moment if self.first is None else min(self.first, moment)
        self.last = moment if self.last is None else max(self.last, moment)


@dataclass(frozen=True, slots=True)
class Head:
    """Limits on how much of a source a trial reads: per stream and in total."""

    num_packets: int = 8
    length: Fraction = Fraction(1, 5)
    """Minimum span of each stream's packets in seconds; those of TrueHD last less than 1 ms."""
    num_packets_in_all: int = 4000
    num_bytes: int = 16 << 20
    seconds: float = 0.5
    """Time limit for reading."""

    def packets(
        self, container: InputContainer, wanted: set[int]
    ) -> Iterator[Packet[Stream] | ReadFault]:
        """Yield the first packets of the streams with these numbers."""
        taken = {index: Taken() for index in wanted}
        num_bytes = num_packets = 0
        deadline = time.monotonic() + self.seconds
        # All streams are read, since libav would otherwise skip the others to the end of the file.
        for packet in read_packets(container, deadline=deadline):
            if not isinstance(packet, ReadFault):
                num_packets += 1
                num_bytes += packet.size
                index = packet.stream_index
                if index in taken and not self._is_enough(taken[index]):
                    taken[index].take(moment(packet), packet.size)
                    yield packet
            is_enough = num_packets >= self.num_packets_in_all or num_bytes >= self.num_bytes
            if is_enough or all(self._is_enough(found) for found in taken.values()):
                return

    def _is_enough(self, found: Taken) -> bool:
        if found.num_packets < self.num_packets or found.first is None:
            return False
        return (found.last or found.first) - found.first >= self.length


class Durations:
    """Gives audio packets durations that their file does not state: the time to the next packet.

    Otherwise MP4 would give the last packet no duration, and a decoder drops such a packet.
    """

    def __init__(self) -> None:
        self._held: Packet[Stream] | None = None
        self._last = 0

    def push(self, packet: Packet[Stream]) -> list[Packet[Stream]]:
        """Take a packet and return those whose durations are now known, in order."""
        ready = []
        if self._held is not None:
            if packet.pts is not None and self._held.pts is not None:
                self._last = max(packet.pts - self._held.pts, 0)
            ready.append(self._with_last())
        if packet.duration:
            return [*ready, packet]
        self._held = packet
        return ready

    def drain(self) -> list[Packet[Stream]]:
        """Return the last packet, which lasts as long as the one before."""
        return [] if self._held is None else [self._with_last()]

    def _with_last(self) -> Packet[Stream]:
        packet, self._held = self._held, None
        assert packet is not None
        packet.duration = self._last
        return packet


def moment(packet: Packet[Any]) -> Fraction:
    stamp = packet.dts if packet.dts is not None else packet.pts or 0
    return stamp * Fraction(packet.time_base)
