"""Writes animated PNGs with libav: lossless, with exact times."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from srstream.errors import EncodeError
from srstream.media.animations.formats import Slot
from srstream.media.animations.frames import Rgba
from srstream.media.errors import libav_errors

_MAX_PLAYS = 65535
_MAX_PART = 65535


def write_apng(
    path: Path,
    frames: Iterator[tuple[Slot, Rgba]],
    size: tuple[int, int],
    num_plays: int,
    last_length: int,
    time_base: Fraction,
    *,
    has_alpha: bool,
) -> None:
    """Write an animated PNG; a frame or two at a time are in memory.

    Args:
        num_plays: 0 is without end.
        last_length: how long the last frame is shown, in units of `time_base`.

    Raises:
        EncodeError: libav failed.
        DiskFullError: no space is left.
    """
    last = (last_length * time_base).limit_denominator(_MAX_PART)
    options = {
        "plays": str(min(num_plays, _MAX_PLAYS)),
        "final_delay": f"{last.numerator}/{last.denominator}",
    }
    with (
        libav_errors(path, "the animated PNG cannot be written", kind=EncodeError),
        av.open(str(path), "w", format="apng", container_options=options) as output,
    ):
        stream = output.add_stream("apng", rate=100, options={"pred": "mixed"})
        assert isinstance(stream, VideoStream)
        stream.width, stream.height = size
        stream.pix_fmt = "rgba" if has_alpha else "rgb24"
        stream.time_base = stream.codec_context.time_base = time_base
        for slot, picture_HWC in frames:
            colors = picture_HWC if has_alpha else picture_HWC[..., :3].copy()
            frame = VideoFrame.from_ndarray(colors, format=stream.pix_fmt)
            frame.pts, frame.time_base = slot.start, time_base
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
