"""Keeps what skipped packets would have told the decoder about all later ones.

A palette, new extradata and in-stream headers (a JPEG's tables too) are sent once and apply until
they are sent again. A decode that begins in the middle of a file gets the latest ones with its
first packet.
"""

from __future__ import annotations

import av
from av.bitstream import BitStreamFilterContext
from av.packet import Packet, PacketSideData, PktSideDataT
from av.stream import Stream
from av.video.stream import VideoStream

LASTING_SIDE_DATA: tuple[PktSideDataT, ...] = ("palette", "new_extradata", "param_change")
"""Kinds of packet side data that also apply to later packets."""

_WITH_HEADERS = frozenset(
    {"h264", "hevc", "vvc", "mpeg1video", "mpeg2video", "mpeg4", "vc1", "cavs"}
)
"""Codecs that may repeat their headers (parameter sets, sequence headers) before any picture, each
after a start code, so that they can be put in front of another packet."""


_DQT, _DHT, _DRI, _SOS = 0xDB, 0xC4, 0xDD, 0xDA
"""Markers of ITU-T T.81, table B.1. A picture may omit tables that an earlier one had."""

_PARAMETER_SETS = {"h264": range(7, 9), "hevc": range(32, 35)}
"""NAL unit types that apply to later pictures: table 7-1 of ITU-T H.264 and of H.265."""

_MAX_PARAMETER_SETS = 64


class SkippedPackets:
    """Remembers what the skipped packets of one stream state; takes them in file order."""

    def __init__(self, stream: Stream) -> None:
        self._said: dict[PktSideDataT, PacketSideData] = {}
        self._headers: Headers = _headers_of(stream)

    def skip(self, packet: Packet[Stream]) -> None:
        """Note a packet that will not be decoded; it may be empty afterwards."""
        for kind in LASTING_SIDE_DATA:
            if packet.has_sidedata(kind):
                self._said[kind] = packet.get_sidedata(kind)
        self._headers.skip(packet)

    def give(self, packet: Packet[Stream]) -> Packet[Stream]:
        """Return the first packet not skipped, with everything that still applies to it."""
        packet = self._headers.give(packet)
        for kind, side_data in self._said.items():
            if not packet.has_sidedata(kind):
                packet.set_sidedata(side_data)
        self._said.clear()
        return packet


class Headers:
    """Collects the headers inside a stream's packets; this base class serves codecs without any."""

    def skip(self, packet: Packet[Stream]) -> None:
        """Note the headers of a packet, which is consumed."""

    def give(self, packet: Packet[Stream]) -> Packet[Stream]:
        """Return a packet with the headers that it lacks."""
        return packet


class StartCodes(Headers):
    """Headers after start codes, as in MPEG-TS and AVI."""

    def __init__(self, stream: VideoStream) -> None:
        self._filter = BitStreamFilterContext("extract_extradata", stream)
        self._last = b""

    def skip(self, packet: Packet[Stream]) -> None:
        self._last = self._in(packet) or self._last

    def give(self, packet: Packet[Stream]) -> Packet[Stream]:
        last, self._last = self._last, b""
        if not last or self._in(_copied(packet)):
            return packet
        return _copied(packet, last)

    def _in(self, packet: Packet[Stream]) -> bytes:
        try:
            found = self._filter.filter(packet)
        except av.FFmpegError:
            return b""
        for filtered in found:
            if filtered.has_sidedata("new_extradata"):
                return bytes(filtered.get_sidedata("new_extradata"))
        return b""


class Lengths(Headers):
    """Headers after length fields, as in MP4 and Matroska, which store more headers elsewhere."""

    def __init__(self, codec: str, extradata: bytes) -> None:
        self._types = _PARAMETER_SETS[codec]
        self._is_h264 = codec == "h264"
        at = 4 if self._is_h264 else 21  # ISO/IEC 14496-15, 5.3.3.1 and 8.3.3.1
        self._width = (extradata[at] & 3) + 1
        self._units: dict[bytes, None] = {}

    def skip(self, packet: Packet[Stream]) -> None:
        data, at = bytes(packet), 0
        while at + self._width < len(data):
            end = at + self._width + int.from_bytes(data[at : at + self._width], "big")
            head = data[at + self._width]
            if (head & 31 if self._is_h264 else head >> 1 & 63) in self._types:
                self._units.pop(data[at:end], None)
                self._units[data[at:end]] = None
            at = end
        while len(self._units) > _MAX_PARAMETER_SETS:
            del self._units[next(iter(self._units))]

    def give(self, packet: Packet[Stream]) -> Packet[Stream]:
        if not self._units:
            return packet
        # They keep their order; those in the packet itself come later and take precedence.
        units = b"".join(self._units)
        self._units.clear()
        return _copied(packet, units)


class JpegTables(Headers):
    """The tables of JPEG pictures, each of which applies until one with the same number comes."""

    def __init__(self) -> None:
        self._tables: dict[tuple[int, int], bytes] = {}

    def skip(self, packet: Packet[Stream]) -> None:
        self._tables |= jpeg_tables(bytes(packet))

    def give(self, packet: Packet[Stream]) -> Packet[Stream]:
        if not self._tables:
            return packet
        tables = b"".join(self._tables.values())
        self._tables.clear()
        return _copied(packet, tables, at=2)


def _headers_of(stream: Stream) -> Headers:
    if not isinstance(stream, VideoStream) or stream.codec_context is None:
        return Headers()
    codec, extradata = stream.codec_context.codec.canonical_name, stream.codec_context.extradata
    if codec == "mjpeg":
        return JpegTables()
    if codec in _PARAMETER_SETS and extradata and extradata[0] == 1 and len(extradata) > 21:
        return Lengths(codec, extradata)
    try:
        return StartCodes(stream) if codec in _WITH_HEADERS else Headers()
    except (av.FFmpegError, ValueError):
        return Headers()


def jpeg_tables(data: bytes) -> dict[tuple[int, int], bytes]:
    """Return the tables before a JPEG picture's first scan, one segment each, by marker and number.

    See ITU-T T.81, B.2.4.1 and B.2.4.2. Reading stops at the first byte that begins no segment.
    """
    tables: dict[tuple[int, int], bytes] = {}
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != _SOS:
        marker, end = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        content = data[at + 4 : end]
        while content and marker in (_DQT, _DHT, _DRI):
            size = _table_bytes(marker, content)
            if size > len(content):
                break
            number = 0 if marker == _DRI else content[0]
            head = bytes([0xFF, marker]) + (size + 2).to_bytes(2, "big")
            tables[marker, number] = head + content[:size]
            content = content[size:]
        at = end
    return tables


def _table_bytes(marker: int, content: bytes) -> int:
    if marker == _DQT:
        return 1 + 64 * (1 + (content[0] >> 4 != 0))
    return 17 + sum(content[1:17]) if marker == _DHT else len(content)


def _copied(packet: Packet[Stream], added: bytes = b"", at: int = 0) -> Packet[Stream]:
    """Return a packet with the same times and side data, with bytes added to its own."""
    data = bytes(packet)
    copy: Packet[Stream] = av.Packet(data[:at] + added + data[at:])
    copy.stream = packet.stream
    copy.time_base = packet.time_base
    copy.pts, copy.dts, copy.duration = packet.pts, packet.dts, packet.duration
    copy.is_keyframe, copy.is_corrupt = packet.is_keyframe, packet.is_corrupt
    for side_data in packet.iter_sidedata():
        copy.set_sidedata(side_data)
    return copy
