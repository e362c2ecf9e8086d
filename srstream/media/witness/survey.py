"""Scans all packets of a file once: what each stream holds, and when."""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Literal, overload

import numpy as np
import numpy.typing as npt
from av.audio.codeccontext import AudioCodecContext
from av.container import InputContainer
from av.packet import Packet
from av.stream import AttachmentStream, Stream
from av.video.stream import VideoStream

from srstream.errors import MediaError
from srstream.media.errors import libav_errors, sentence
from srstream.media.witness.cues import READERS, Cue, read_cue
from srstream.media.witness.packets import has_times, is_cover, open_plain, packets_of
from srstream.media.witness.webp import BASE, is_animated_webp, webp_facts

Kind = Literal["video", "audio", "subtitle", "data", "attachment", "picture"]

Ticks = npt.NDArray[np.int64]

WRAP = 1 << 33
"""MPEG-TS and -PS count 90 kHz in 33 bits (ISO/IEC 13818-1, 2.4.2)."""

_PICTURE = b"\x00\x00\x01\xb6"
"""The start code of an MPEG-4 picture (ISO/IEC 14496-2, 6.2.5)."""

_MAX_PRIMING = Fraction(1, 10)
_MAX_CUES = 1_000_000
_KINDS: dict[str, Kind] = {
    "video": "video",
    "audio": "audio",
    "subtitle": "subtitle",
    "attachment": "attachment",
}


class Seconds(Sequence[Fraction]):
    """Exact times in seconds, kept as 8 bytes each: those of `ticks`, moved back by `shift`."""

    def __init__(self, ticks: Ticks, base: Fraction, shift: Fraction = Fraction(0)) -> None:
        self.ticks, self._base, self._shift = ticks, base, shift

    def __len__(self) -> int:
        return len(self.ticks)

    @overload
    def __getitem__(self, index: int) -> Fraction: ...
    @overload
    def __getitem__(self, index: slice) -> Seconds: ...
    def __getitem__(self, index: int | slice) -> Fraction | Seconds:
        if isinstance(index, slice):
            return Seconds(self.ticks[index], self._base, self._shift)
        return int(self.ticks[index]) * self._base - self._shift


@dataclass(slots=True)
class StreamFacts:
    """A stream's properties and packets. `starts` and `ends` are in `base`, in file order.

    They continue where the file's clock wraps; `num_jumps` counts where it jumps back.
    """

    index: int
    kind: Kind
    codec: str
    base: Fraction
    language: str
    title: str | None
    disposition: int
    is_described: bool = True
    """Whether libav found its parameters, without which no muxer can take it."""
    content: bytes = b""
    """The content of an attachment."""
    num_packets: int = 0
    num_unstamped: int = 0
    """Packets without a time, such as those just before zero in Matroska."""
    num_bytes: int = 0
    checksum: int = 0
    starts: array[int] = field(default_factory=lambda: array("q"))
    ends: array[int] = field(default_factory=lambda: array("q"))
    cues: list[Cue] = field(default_factory=list)
    keys: array[int] = field(default_factory=lambda: array("q"))
    num_jumps: int = 0
    is_adts: bool = False
    """AAC whose packets begin with ADTS headers, from which MP4 and Matroska make their own."""
    num_damaged: int = 0
    """Packets without such a header, which are unusable; not counted anywhere else."""
    num_unframed: int = 0
    """Damaged packets of MPEG audio or AC-3 without a header: some muxers take them, and readers
    then find other packets in the data that follows."""

    @property
    def first_seconds(self) -> Fraction:
        """Return when the first packet is shown; the stream must have packets."""
        return min(self.starts) * self.base

    def name(self) -> str:
        """Return the stream's name, like `Stream 2 (subtitle, subrip, ger)`."""
        kind = "video" if self.kind == "picture" else self.kind
        language = self.language if self.language != "und" else ""
        parts = [kind, self.codec, language]
        return f"Stream {self.index} ({', '.join(part for part in parts if part)})"


@dataclass(slots=True)
class Survey:
    """A file and its streams. `video` is the index of the stream that is, or will be, enhanced."""

    path: Path
    formats: frozenset[str]
    brand: str
    video: int
    streams: list[StreamFacts]
    tags: dict[str, str]
    chapters: list[tuple[Fraction, Fraction, str]]
    """(start, end, title), in seconds."""
    is_timed: bool
    is_packed: bool = False
    """Whether B frames share packets with other frames (DivX and XviD in AVI), whose times libav
    gives them. Frame n is then shown at the time of packet n."""
    num_faults: int = 0

    def start_seconds(self) -> list[Fraction]:
        """Return when each stream besides the video begins; decoder priming counts as silence."""
        found = []
        for facts in self.streams:
            if facts.starts and facts.index != self.video:
                start = facts.first_seconds
                is_priming = facts.kind == "audio" and -_MAX_PRIMING < start < 0
                found.append(Fraction(0) if is_priming else start)
        return found


def survey(path: Path, *, is_output: bool = False) -> Survey:
    """Read all packets of a file.

    Args:
        is_output: the video is the file's first, as in every output; else the one that a job of
            this source enhances.

    Raises:
        MediaError, UsageError: the file cannot be read, or holds no video.
    """
    if is_animated_webp(path):
        return _webp_survey(path)
    with open_plain(path) as container:
        video = _video_index(path, container, is_output)
        found = Survey(
            path=path,
            formats=frozenset(container.format.name.split(",")),
            brand=_brand(path, container),
            video=video,
            streams=[_facts(stream) for stream in container.streams],
            tags=dict(container.metadata),
            chapters=_chapters(container),
            is_timed=has_times(container),
        )
        clocks = [_Unwrapped(facts) for facts in found.streams]
        with libav_errors(path, "its packets cannot be read"):
            for packet in packets_of(container):
                if packet is None:
                    found.num_faults += 1
                    continue
                facts = found.streams[packet.stream_index]
                if facts.is_adts and not _is_adts(bytes(packet)):
                    facts.num_damaged += 1
                    continue
                facts.num_unframed += not _is_framed(facts.codec, packet)
                facts.num_packets += 1
                if facts.codec == "mpeg4" and facts.index == video and facts.num_packets <= 50:
                    found.is_packed |= bytes(packet).count(_PICTURE) > 1
                facts.num_bytes += packet.size
                if facts.index != video:
                    facts.checksum = zlib.crc32(packet, facts.checksum)
                start = packet.pts if packet.pts is not None else packet.dts
                if start is None:
                    facts.num_unstamped += 1
                    continue
                start = clocks[facts.index].carried_on(start, packet.dts)
                end = start + max(packet.duration or 0, 0)
                facts.starts.append(start)
                facts.ends.append(end)
                if packet.is_keyframe and facts.index == video:
                    facts.keys.append(start)
                if facts.codec in READERS and len(facts.cues) < _MAX_CUES:
                    lines = read_cue(facts.codec, bytes(packet))
                    facts.cues.append(Cue(start * facts.base, end * facts.base, lines))
    return found


def _webp_survey(path: Path) -> Survey:
    found = webp_facts(path)
    facts = StreamFacts(0, "video", "webp", BASE, "und", None, 1, starts=found.starts)
    facts.ends, facts.num_packets = found.ends, len(found.starts)
    facts.keys = found.starts[:1]  # it can only be decoded from its beginning
    return Survey(
        path, frozenset({"webp"}), "webp", 0, [facts], tags={}, chapters=[], is_timed=True
    )


class _Unwrapped:
    """Continues one stream's times where MPEG's 33-bit clock wraps."""

    def __init__(self, facts: StreamFacts) -> None:
        self._facts = facts
        self._wraps = facts.base == Fraction(1, 90000)
        self._offset = 0
        self._last: int | None = None

    def carried_on(self, start: int, dts: int | None) -> int:
        moment = (start if dts is None else dts) + self._offset
        if self._last is not None:
            jump = moment - self._last
            if self._wraps and abs(jump + WRAP) < WRAP // 64:
                self._offset += WRAP
                moment += WRAP
            elif jump * self._facts.base < Fraction(-1, 4 if dts is not None else 1):
                self._facts.num_jumps += 1
        self._last = moment
        return start + self._offset


def num_videos_before(found: Survey) -> int:
    """Return how many videos precede the one that is enhanced."""
    return sum(s.kind == "video" and s.index < found.video for s in found.streams)


def _video_index(path: Path, container: InputContainer, is_output: bool) -> int:
    videos = [s for s in container.streams.video if not is_cover(s)]
    if not videos:
        raise MediaError(sentence(path, "holds no video"))
    if is_output:
        return videos[0].index
    known = [s for s in videos if s.codec_context is not None]
    best = container.streams.best("video")
    if isinstance(best, VideoStream) and best in known:
        return best.index
    if not known:
        raise MediaError(sentence(path, "its video codec is not known to this FFmpeg"))
    return max(known, key=lambda s: (bool(s.disposition & 1), s.width * s.height)).index


def _chapters(container: InputContainer) -> list[tuple[Fraction, Fraction, str]]:
    found = []
    for chapter in container.chapters():
        base = _base(chapter["time_base"])
        title = chapter["metadata"].get("title", "")
        found.append((chapter["start"] * base, chapter["end"] * base, title))
    return found


def _facts(stream: Stream) -> StreamFacts:
    tags = {key.lower(): value for key, value in stream.metadata.items()}
    context = stream.codec_context
    kind: Kind = "picture" if is_cover(stream) else _KINDS.get(stream.type, "data")
    codec = context.codec.canonical_name if context is not None else "unknown"
    rate = context.sample_rate if isinstance(context, AudioCodecContext) else 1
    is_adts = codec == "aac" and context is not None and not context.extradata
    return StreamFacts(
        index=stream.index,
        kind=kind,
        codec=codec,
        base=_base(stream.time_base),
        language=tags.get("language", "und").lower() or "und",
        title=tags.get("title") or tags.get("filename"),
        disposition=int(stream.disposition),
        is_described=context is not None and bool(rate),
        is_adts=is_adts,
        content=bytes(stream.data or b"") if isinstance(stream, AttachmentStream) else b"",
    )


def _is_framed(codec: str, packet: Packet[Stream]) -> bool:
    """Return whether audio begins with its header: ISO/IEC 11172-3, 2.4.2.3, or ATSC A/52, 5.3."""
    if codec in ("mp1", "mp2", "mp3"):
        data = bytes(packet)[:4]
        if len(data) < 4 or data[0] != 0xFF or data[1] & 0xE0 != 0xE0:
            return False
        version, layer = data[1] >> 3 & 3, data[1] >> 1 & 3
        return version != 1 and layer != 0 and data[2] >> 4 != 15 and data[2] >> 2 & 3 != 3
    if codec == "ac3":
        data = bytes(packet)[:5]
        if len(data) < 5 or data[:2] != b"\x0b\x77":
            return data[:2] == b"\x77\x0b"
        rate, code = data[4] >> 6, data[4] & 63
        return rate < 3 and code < 38 and packet.size == _ac3_bytes(rate, code)
    if codec == "eac3":
        return bytes(packet)[:2] in (b"\x0b\x77", b"\x77\x0b")
    return True


def _ac3_bytes(rate: int, code: int) -> int:
    """Return the length of a frame: ATSC A/52, table 5.18."""
    kbits = (*range(32, 64, 8), *range(64, 128, 16), *range(128, 256, 32), *range(256, 641, 64))
    bits = kbits[code // 2] * 1000
    words = bits * 1536 // ((48_000, 44_100, 32_000)[rate] * 16)
    return 2 * (words + (code & 1 if rate == 1 else 0))


def _is_adts(data: bytes) -> bool:
    """Return whether data begins with ADTS: ISO/IEC 13818-7, 6.2, with valid rate and length.

    With a checksum there must be one data block: libav cannot extract several.
    """
    if len(data) < 7 or data[0] != 0xFF or data[1] & 0xF0 != 0xF0:
        return False
    length = (data[3] & 3) << 11 | data[4] << 3 | data[5] >> 5
    has_checksum, num_blocks = not data[1] & 1, (data[6] & 3) + 1
    is_taken_apart = not (has_checksum and num_blocks > 1)
    return (data[2] >> 2 & 15) < 13 and length >= 7 and is_taken_apart


def _base(base: Fraction | None) -> Fraction:
    return Fraction(base) if base else Fraction(1, 1000)


def _brand(path: Path, container: InputContainer) -> str:
    """Return mp4, mov, mkv, webm or libav's first name: the family whose rules apply."""
    names = container.format.name.split(",")
    if "matroska" in names:
        with path.open("rb") as file:
            return "webm" if b"webm" in file.read(64) else "mkv"
    if "mov" in names:
        major = container.metadata.get("major_brand", "")
        return "mov" if major.startswith("qt") else "mp4"
    return names[0]
