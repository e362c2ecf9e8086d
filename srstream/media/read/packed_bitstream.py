"""Unpacks DivX and XviD packed bitstreams, where a packet also carries the next B picture.

They were made for players that output one picture per packet. libav decodes them but assigns the
pictures the times of the wrong packets. Here each picture gets its own packet (by libav's bitstream
filter) and the time that it would have in a file that was never packed.
"""

from __future__ import annotations

from av.bitstream import BitStreamFilterContext
from av.packet import Packet
from av.stream import Stream

_VOP = b"\x00\x00\x01\xb6"
"""The start code of a picture (ISO/IEC 14496-2, 6.2.5); the next two bits are its type."""

_INTRA, _BIDIRECTIONAL = 0, 2
_NUM_LOOKED_AT = 50


def may_be_packed(stream: Stream) -> bool:
    """Return whether a stream is of the only codec that has packed bitstreams."""
    context = stream.codec_context
    return stream.type == "video" and context is not None and context.name == "mpeg4"


class Unpacker:
    """Unpacks one stream if its first packets show that it is packed, else passes it on unchanged.

    Packets go in and come out in file order, with a delay of a few packets.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._filter: BitStreamFilterContext | None = None
        self._is_decided = False
        self._held: list[Packet[Stream]] = []
        """Packets held until the stream is known to be packed or not; later a reference picture and
        the B pictures that are shown before it."""
        self._last_slot: int | None = None
        self._step = 1

    def push(self, packet: Packet[Stream]) -> list[Packet[Stream]]:
        """Take a packet and return those that are ready."""
        if self._filter is not None:
            return self._unpack(packet)
        if self._is_decided:
            return [packet]
        self._held.append(packet)
        pictures = _pictures(packet)
        if len(pictures) > 1:
            self._filter = BitStreamFilterContext("mpeg4_unpack_bframes", self._stream)
        elif pictures != [_BIDIRECTIONAL] and len(self._held) < _NUM_LOOKED_AT:
            return []
        self._is_decided = True
        held, self._held = self._held, []
        return held if self._filter is None else [q for p in held for q in self._unpack(p)]

    def drain(self) -> list[Packet[Stream]]:
        """Return the remaining packets at the end."""
        held, self._held = self._held, []
        if self._filter is not None and held:
            assert self._last_slot is not None
            held[0].pts = self._last_slot + self._step
        return held

    def _unpack(self, packet: Packet[Stream]) -> list[Packet[Stream]]:
        assert self._filter is not None
        ready = []
        for single in self._filter.filter(packet):
            single.stream = self._stream
            ready += self._timed(single)
        return ready

    def _timed(self, packet: Packet[Stream]) -> list[Packet[Stream]]:
        """Assign packets their times: they follow each other at a fixed step per picture.

        A B picture is shown when it is decoded, a reference when the next one is.
        """
        slot = packet.dts if packet.dts is not None else packet.pts
        if slot is None:
            return [packet]
        if self._last_slot is not None:
            self._step = packet.duration or max(slot - self._last_slot, 1)
        self._last_slot = slot
        packet.pts = packet.dts = slot
        kinds = _pictures(packet)
        packet.is_keyframe = kinds[:1] == [_INTRA]
        if kinds[:1] == [_BIDIRECTIONAL] and self._held:
            self._held.append(packet)
            return []
        ready, self._held = self._held, [packet]
        if ready:
            ready[0].pts = slot
        return ready


def _pictures(packet: Packet[Stream]) -> list[int]:
    """Return the types of the pictures that begin in a packet."""
    data = bytes(packet)
    found = []
    at = data.find(_VOP)
    while at >= 0 and at + 4 < len(data):
        found.append(data[at + 4] >> 6)
        at = data.find(_VOP, at + 4)
    return found
