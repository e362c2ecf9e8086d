"""What packets that are left out would have told the decoder about all that follow.

A palette, new extradata and headers inside the stream are sent once and hold until they are sent
again. A decode that begins in mid-file is given the last ones together with its first packet.
"""

from __future__ import annotations

import av
from av.bitstream import BitStreamFilterContext
from av.packet import Packet, PacketSideData, PktSideDataT
from av.stream import Stream
from av.video.stream import VideoStream

LASTING_SIDE_DATA: tuple[PktSideDataT, ...] = ("palette", "new_extradata", "param_change")
"""Side data of a packet that is meant for those behind it as well."""

_WITH_HEADERS = frozenset(
    {"h264", "hevc", "vvc", "mpeg1video", "mpeg2video", "mpeg4", "vc1", "cavs"}
)
"""Codecs that may have their headers (parameter sets, sequence headers) in front of any picture,
each after a start code, so that they can be put in front of another packet."""


class SkippedPackets:
    """Remembers what skipped packets of one stream said; told in file order."""

    def __init__(self, stream: Stream) -> None:
        self._said: dict[PktSideDataT, PacketSideData] = {}
        self._headers = b""
        self._stream = stream
        self._filter = self._new_filter()

    def skip(self, packet: Packet[Stream]) -> None:
        """Take note of a packet that nobody else will see; it may be empty afterwards."""
        for kind in LASTING_SIDE_DATA:
            if packet.has_sidedata(kind):
                self._said[kind] = packet.get_sidedata(kind)
        self._headers = self._headers_in(packet) or self._headers

    def give(self, packet: Packet[Stream]) -> Packet[Stream]:
        """The first packet that is not skipped, with all that was said before and still holds."""
        headers, self._headers = self._headers, b""
        if headers and not self._headers_in(_copied(packet)):
            packet = _copied(packet, headers)
        for kind, data in self._said.items():
            if not packet.has_sidedata(kind):
                packet.set_sidedata(data)
        self._said.clear()
        return packet

    def _new_filter(self) -> BitStreamFilterContext | None:
        stream = self._stream
        if not isinstance(stream, VideoStream) or stream.codec_context is None:
            return None
        if stream.codec_context.codec.canonical_name not in _WITH_HEADERS:
            return None
        try:
            return BitStreamFilterContext("extract_extradata", stream)
        except (av.FFmpegError, ValueError):
            return None

    def _headers_in(self, packet: Packet[Stream]) -> bytes:
        """The headers that a packet brings, b"" for none; the packet is used up."""
        if self._filter is None:
            return b""
        try:
            found = self._filter.filter(packet)
        except av.FFmpegError:
            # No start codes: as in MP4 and Matroska, which keep the headers outside of packets.
            self._filter = None
            return b""
        for filtered in found:
            if filtered.has_sidedata("new_extradata"):
                return bytes(filtered.get_sidedata("new_extradata"))
        return b""


def _copied(packet: Packet[Stream], before: bytes = b"") -> Packet[Stream]:
    """A packet of the same time and side data, with bytes put before its own."""
    copy: Packet[Stream] = av.Packet(before + bytes(packet))
    copy.stream = packet.stream
    copy.time_base = packet.time_base
    copy.pts, copy.dts, copy.duration = packet.pts, packet.dts, packet.duration
    copy.is_keyframe, copy.is_corrupt = packet.is_keyframe, packet.is_corrupt
    for data in packet.iter_sidedata():
        copy.set_sidedata(data)
    return copy
