"""Scans a source's packets once without decoding: exact times, keyframes, completeness."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from av.container import InputContainer
from av.packet import Packet
from av.stream import Stream

from srstream.media.animations.header import is_animated_webp, webp_animation
from srstream.media.animations.webp_reader import TICK, frame_ticks
from srstream.media.read.demux import (
    MAX_PIXELS,
    Clock,
    ProgressCallback,
    ReadFault,
    has_timestamps,
    is_picture,
    is_shown,
    open_source,
    read_packets,
    strictly_rising,
    top_level_boxes,
)
from srstream.media.read.start import Starts, without_headless_start
from srstream.media.types import PacketIndex, VideoInfo

_HASH_BLOCK_BYTES = 1 << 22
_SHORTFALL_SECONDS = 2.0
_SHORTFALL_SHARE = 0.05


@dataclass(slots=True)
class _Pass:
    """What the scan collects from the packets."""

    shown: list[int] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    num_shown: int = 0
    num_video: int = 0
    has_times: bool = True
    has_fault: bool = False
    last_is_corrupt: bool = False
    video_end_seconds: float = 0.0
    end_seconds: float = 0.0
    longest_seconds: float = 0.0
    starts: dict[int, Fraction] = field(default_factory=dict)


def scan_packets(
    path: Path,
    video: VideoInfo,
    *,
    deadline_seconds: float | None = None,
    on_progress: ProgressCallback | None = None,
) -> PacketIndex:
    """Read every packet once, at the speed of the disk.

    `pts` are those of the packets that hold a visible picture. A decoder may give fewer frames:
    pictures before the first keyframe, or leading pictures of an open first GOP, cannot be decoded.
    `on_progress` gets the bytes done and in total. After `deadline_seconds` the scan ends early and
    `is_complete` is False; the hash is then empty.

    Raises:
        MediaError: the file cannot be opened.
    """
    deadline = None if deadline_seconds is None else time.monotonic() + deadline_seconds
    if is_animated_webp(path):
        return _webp_index(path, deadline)
    with open_source(path, MAX_PIXELS) as container:
        found = _read_all(container, video, path.stat().st_size, deadline, on_progress)
        complete = deadline is None or time.monotonic() < deadline
        truncated_at = _truncated_at(path, container, video, found) if complete else None
    digest = _sha256(path, deadline) if complete else None
    pts: list[int] = []
    for moment in sorted(found.shown):
        pts.append(strictly_rising(pts[-1] if pts else None, moment))
    return PacketIndex(
        pts=tuple(pts) if found.has_times else (),
        key_pts=tuple(sorted(set(found.keys))) if found.has_times else (),
        num_packets=found.num_shown,
        has_timestamps=found.has_times,
        truncated_at_seconds=truncated_at,
        sha256=digest or "",
        is_complete=digest is not None,
        starts=found.starts,
    )


def _webp_index(path: Path, deadline: float | None) -> PacketIndex:
    """Return the index of an animated WebP, whose frames need not be decoded for it."""
    *starts, end = frame_ticks(path)
    with path.open("rb") as file:
        webp = webp_animation(file)
    is_complete = webp is not None and webp.is_complete
    digest = _sha256(path, deadline)
    return PacketIndex(
        pts=tuple(starts),
        key_pts=tuple(starts),
        num_packets=len(starts),
        has_timestamps=True,
        truncated_at_seconds=None if is_complete else float(end * TICK),
        sha256=digest or "",
        is_complete=digest is not None,
    )


def _read_all(
    container: InputContainer,
    video: VideoInfo,
    size_bytes: int,
    deadline: float | None,
    on_progress: ProgressCallback | None,
) -> _Pass:
    found = _Pass(has_times=has_timestamps(container))
    clock = Clock(video.time_base)
    starts = Starts(container.format.name)
    found.starts = starts.seconds
    told = 0
    for packet in _packets(container, video, deadline):
        if isinstance(packet, ReadFault):
            found.has_fault = True
            continue
        found.has_fault = False
        if packet.stream_index == video.index:
            _take_video(found, clock, packet, video)
        if not is_picture(packet.stream):
            found.end_seconds = max(found.end_seconds, _end_seconds(packet))
        if packet.stream_index != video.index:
            starts.take(packet)
        if on_progress is not None and packet.pos and packet.pos > told + size_bytes // 100:
            told = packet.pos
            on_progress(told, size_bytes)
    if on_progress is not None:
        on_progress(size_bytes, size_bytes)
    found.has_times = found.has_times and (bool(found.shown) or not found.num_shown)
    return found


def _packets(
    container: InputContainer, video: VideoInfo, deadline: float | None
) -> Iterator[Packet[Stream] | ReadFault]:
    """Yield all packets, but of the video only those that the decoder gets."""
    others: list[Packet[Stream] | ReadFault] = []

    def of_video() -> Iterator[Packet[Stream] | ReadFault]:
        for packet in read_packets(container, deadline=deadline):
            if isinstance(packet, ReadFault) or packet.stream_index == video.index:
                yield packet
            else:
                others.append(packet)

    for packet in without_headless_start(container, of_video()):
        yield from others
        others.clear()
        yield packet
    yield from others


def _take_video(found: _Pass, clock: Clock, packet: Packet[Stream], video: VideoInfo) -> None:
    found.num_video += 1
    found.last_is_corrupt = packet.is_corrupt
    clock.correct(packet)
    end = _end_seconds(packet)
    if found.num_video > 1:
        found.longest_seconds = max(found.longest_seconds, end - found.video_end_seconds)
    found.video_end_seconds = max(found.video_end_seconds, end)
    if not is_shown(packet, video.codec):
        return
    found.num_shown += 1
    moment = packet.pts if packet.pts is not None else packet.dts
    if moment is None:
        return
    found.shown.append(moment)
    if packet.is_keyframe:
        found.keys.append(moment)


def _end_seconds(packet: Packet[Stream]) -> float:
    moment = packet.pts if packet.pts is not None else packet.dts
    if moment is None or not packet.time_base:
        return 0.0
    return float((moment + (packet.duration or 0)) * Fraction(packet.time_base))


def _truncated_at(
    path: Path, container: InputContainer, video: VideoInfo, found: _Pass
) -> float | None:
    """Return when the picture ends in a file that is shorter than it says; None if it is complete.

    The structure comes first, since it cannot raise a false alarm: the outermost element extends
    beyond the end of the file and packets are missing. Where the container does not state its size,
    a last packet far before the declared end counts.
    """
    if found.has_fault:
        return found.video_end_seconds
    names = container.format.name.split(",")
    overrun = _reaches_beyond_end(path, names)
    if overrun is None and ("flv" in names or "matroska" in names or "mov" in names):
        shortfall = _declared_end(container) - found.end_seconds
        allowed = max(
            _SHORTFALL_SECONDS,
            2 * found.longest_seconds,
            _SHORTFALL_SHARE * _declared_end(container),
        )
        return found.video_end_seconds if shortfall > allowed else None
    if overrun and (found.last_is_corrupt or _misses_packets(container, video, found)):
        return found.video_end_seconds
    return None


def _misses_packets(container: InputContainer, video: VideoInfo, found: _Pass) -> bool:
    num_from_header = container.streams[video.index].frames
    if num_from_header:
        return found.num_video < num_from_header
    return _declared_end(container) - found.end_seconds > 0.02


def _declared_end(container: InputContainer) -> float:
    """Return the end of the file according to its header, in seconds; 0 if it does not say."""
    if not container.duration:
        return 0.0
    return ((container.start_time or 0) + container.duration) / 1_000_000


def _reaches_beyond_end(path: Path, names: list[str]) -> bool | None:
    """Return whether the outermost element is longer than the file; None if it does not say."""
    size = path.stat().st_size
    if "mov" in names:
        return any(
            end > size
            for name, _, end in top_level_boxes(path)
            if name in (b"mdat", b"moof", b"moov")
        )
    with path.open("rb") as file:
        head = file.read(4096)
    if "matroska" in names:
        end = _segment_end(head)
        return None if end is None else end > size
    if "avi" in names and head[:4] == b"RIFF":
        return int.from_bytes(head[4:8], "little") + 8 > size
    return None


def _segment_end(head: bytes) -> int | None:
    """Return where Matroska's Segment ends (RFC 9559, 5.1); None if unknown, as while recording."""
    at = head.find(b"\x18\x53\x80\x67")
    if at < 0 or at + 12 > len(head) or not head[at + 4]:
        return None
    length = 9 - head[at + 4].bit_length()
    mask = (1 << (7 * length)) - 1
    value = int.from_bytes(head[at + 4 : at + 4 + length], "big") & mask
    return None if value == mask else at + 4 + length + value


def _sha256(path: Path, deadline: float | None) -> str | None:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK_BYTES):
            if deadline is not None and time.monotonic() > deadline:
                return None
            digest.update(block)
    return digest.hexdigest()
