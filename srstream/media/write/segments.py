"""Reads encoded segments back as one stream of packets with the source's exact times."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from srstream.errors import EncodeError
from srstream.media.errors import libav_errors
from srstream.media.types import SegmentFile

# Only the order of the times in a segment matters, and an edit list could drop some packets.
_OPTIONS = {"ignore_editlist": "1"}


@dataclass(frozen=True, slots=True)
class SegmentCheck:
    """What a check of all segments found.

    `reorder_depth` is the largest number of places by which decoding precedes display. `ranks` has,
    for each segment, the display position of each packet in decode order.
    """

    reorder_depth: int
    size_bytes: int
    ranks: tuple[array[int], ...]


def open_segment(segment: SegmentFile) -> tuple[InputContainer, VideoStream]:
    """Open a segment and return its container and its only stream.

    Raises:
        EncodeError: it cannot be read or holds no video.
    """
    with libav_errors(segment.path, "the segment cannot be read", kind=EncodeError):
        container = av.open(str(segment.path), container_options=dict(_OPTIONS))
    if not container.streams.video:
        raise EncodeError(f"{segment.path.name}: the segment holds no video.")
    return container, container.streams.video[0]


def check_segments(segments: Sequence[SegmentFile]) -> SegmentCheck:
    """Read every segment once and compare it with its list of times.

    Raises:
        EncodeError: a segment lacks packets, was encoded with different settings, or
            the times of the whole do not rise.
    """
    if not segments:
        raise EncodeError("There is no segment to assemble.")
    depth, size_bytes = 0, 0
    all_ranks: list[array[int]] = []
    extradata: bytes | None = None
    last: int | None = None
    for number, segment in enumerate(segments):
        container, stream = open_segment(segment)
        with container, libav_errors(segment.path, "the segment cannot be read", kind=EncodeError):
            ranks = _ranks([p.pts for p in _packets(container, stream)], segment)
            found = stream.codec_context.extradata or b""
        if number == 0:
            extradata = found
        elif found != extradata:
            raise EncodeError(
                f"{segment.path.name}: the segment was encoded with other settings than "
                f"{segments[0].path.name}. Run the job again with --restart."
            )
        if any(b <= a for a, b in zip(segment.pts, segment.pts[1:], strict=False)) or (
            last is not None and segment.pts[0] <= last
        ):
            raise EncodeError(f"{segment.path.name}: the times of the frames do not rise.")
        last = segment.pts[-1]
        all_ranks.append(ranks)
        depth = max([depth, *(n - rank for n, rank in enumerate(ranks))])
        size_bytes += segment.path.stat().st_size
    return SegmentCheck(depth, size_bytes, tuple(all_ranks))


def video_packets(
    segments: Sequence[SegmentFile], check: SegmentCheck, time_base: Fraction, shift: int
) -> Iterator[Packet[VideoStream]]:
    """Yield the packets of all segments in decode order, with final pts, dts and durations.

    pts are the source's minus `shift`. dts are the same times in rising order, delayed by the
    reorder depth, and extrapolated at the beginning with the first interval; so they rise strictly
    and never exceed the pts, even at a variable frame rate.
    """
    times = [pts - shift for segment in segments for pts in segment.pts]
    step = times[1] - times[0] if len(times) > 1 else max(segments[0].last_duration, 1)
    depth = check.reorder_depth
    done = 0
    for segment, ranks in zip(segments, check.ranks, strict=True):
        num_before = done
        container, stream = open_segment(segment)
        with container, libav_errors(segment.path, "the segment cannot be read", kind=EncodeError):
            for rank, packet in zip(ranks, _packets(container, stream), strict=True):
                place = num_before + rank
                packet.time_base = time_base
                packet.pts = times[place]
                packet.dts = (
                    times[done - depth] if done >= depth else times[0] - (depth - done) * step
                )
                is_last = place + 1 == len(times)
                packet.duration = (
                    segment.last_duration if is_last else times[place + 1] - times[place]
                )
                done += 1
                yield packet


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet[VideoStream]]:
    for packet in container.demux(stream):
        if packet.size:
            yield packet


def _ranks(pts: list[int | None], segment: SegmentFile) -> array[int]:
    """Return the display position of each packet in decode order.

    Raises:
        EncodeError: the number of packets differs from that of the segment's times.
    """
    known = sorted(p for p in pts if p is not None)
    if len(pts) != len(segment.pts) or len(known) != len(pts) or len(set(known)) != len(known):
        raise EncodeError(
            f"{segment.path.name}: the segment holds {len(known)} packets with a time, "
            f"{len(segment.pts)} frames were encoded. Run the job again to redo the segment."
        )
    return array("I", (bisect_left(known, p) for p in pts if p is not None))
