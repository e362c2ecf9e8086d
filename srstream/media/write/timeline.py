"""Maps the source's times to the output's: which are included, and by how much they shift."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import cast

from av.video.stream import VideoStream

from srstream.media.read.demux import (
    MAX_PIXELS_OF_LIBAV,
    Clock,
    ReadFault,
    is_shown,
    open_source,
    read_packets,
)
from srstream.media.read.start import start_pts
from srstream.media.subtitle_cues import Cue
from srstream.media.types import TimeWindow, VideoInfo

_NUM_FIRST_PACKETS = 40


@dataclass(frozen=True, slots=True)
class Placing:
    """A mapping of the source's times: those in [start, end) seconds, moved back by `shift`."""

    shift: Fraction
    start: Fraction | None
    end: Fraction | None

    def cue(self, cue: Cue, base: Fraction) -> Cue | None:
        """Map a cue with an end, in ticks of `base` seconds; None if the output does not show it.

        A cue that is visible when the excerpt begins or ends is cut there.
        """
        assert cue.end is not None
        start, end = cue.start * base, cue.end * base
        if self.start is not None:
            start = max(start, self.start)
        if self.end is not None:
            end = min(end, self.end)
        start, end = max(start - self.shift, Fraction(0)), end - self.shift
        if end <= start:
            return None
        first = round(start / base)
        return Cue(first, max(round(end / base), first + 1), cue.text)


def placing_of(
    source_path: Path,
    video: VideoInfo,
    first_pts: int,
    window: TimeWindow,
    earliest_other: Fraction | None,
    *,
    keep: bool = False,
) -> Placing:
    """Return the mapping of a source's times to an output that begins with frame `first_pts`.

    The earliest stream begins at zero, to within a tick of the video's clock; all streams shift by
    the same whole number of its ticks. An excerpt begins at zero with its video.

    Args:
        earliest_other: when the earliest of the other streams begins, in seconds.
        keep: keep the source's start time, in an excerpt too. No container that srstream writes can
            begin before zero: if the source does, its video begins at zero.
    """
    base = video.time_base
    if keep:
        begins = first_pts
        if window.start_pts is not None:
            begins = first_video_pts(source_path, video)
        shift = first_pts - max(begins, 0)
    elif window.start_pts is not None:
        shift = first_pts
    else:
        shift = start_pts(first_pts, base, earliest_other)
    return Placing(
        shift=shift * base,
        start=None if window.start_pts is None else window.start_pts * base,
        end=None if window.end_pts is None else window.end_pts * base,
    )


def first_video_pts(source_path: Path, video: VideoInfo) -> int:
    """Return the pts of the source's first frame in the video's time base; 0 if it has no times."""
    clock = Clock(video.time_base)
    found: list[int] = []
    with open_source(source_path, MAX_PIXELS_OF_LIBAV) as container:
        stream = cast(VideoStream, container.streams[video.index])
        for packet in read_packets(container, stream):
            if isinstance(packet, ReadFault):
                continue
            clock.correct(packet)
            if packet.pts is not None and is_shown(packet, video.codec):
                found.append(packet.pts)
            if len(found) >= _NUM_FIRST_PACKETS:
                break
    return min(found, default=0)
