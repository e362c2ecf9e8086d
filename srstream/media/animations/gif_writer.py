"""Writes GIFs with libav: one palette for all frames, and dithering that does not flicker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
from av.filter import Graph
from av.filter.context import FilterContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from srstream.errors import EncodeError
from srstream.media.animations.formats import Slot
from srstream.media.animations.frames import Rgba, opaque_or_clear
from srstream.media.animations.header import FOREVER
from srstream.media.errors import libav_errors

Frames = Iterator[tuple[Slot, Rgba]]

GIF_CLOCK = Fraction(1, 100)
_MAX_REPETITIONS = 65535
_MAX_DELAY = 65535
_DITHERING = {"dither": "bayer", "bayer_scale": "3"}


def write_gif(
    path: Path,
    frames: Callable[[], Frames],
    size: tuple[int, int],
    num_plays: int,
    last_length: int,
) -> None:
    """Write a GIF; the frames are read twice, and one at a time is in memory.

    Args:
        num_plays: 0 is without end.
        last_length: how long the last frame is shown, in hundredths of a second.

    Raises:
        EncodeError: libav failed.
        DiskFullError: no space is left.
    """
    with libav_errors(path, "the GIF cannot be written", kind=EncodeError):
        palette = _palette(frames(), size)
        _write(path, frames(), size, palette, num_plays, last_length)


def _palette(frames: Frames, size: tuple[int, int]) -> VideoFrame:
    """Return the palette that suits all frames: 255 colors, and a clear one.

    The clear one also stands for what did not change since the last frame, which compresses well.
    """
    graph = Graph()
    source = _source(graph, size)
    find = graph.add("palettegen", reserve_transparent="1", stats_mode="full")
    graph.link_nodes(source, find, graph.add("buffersink")).configure()
    for slot, picture_HWC in frames:
        graph.vpush(_frame(picture_HWC, slot))
        with suppress(av.BlockingIOError):
            graph.vpull()  # without being asked, the filter takes no frame, and all wait in memory
    graph.vpush(None)
    return graph.vpull()


def _write(
    path: Path,
    frames: Frames,
    size: tuple[int, int],
    palette: VideoFrame,
    num_plays: int,
    last_length: int,
) -> None:
    options = {"loop": _loop(num_plays), "final_delay": str(min(last_length, _MAX_DELAY))}
    with av.open(str(path), "w", format="gif", container_options=options) as output:
        stream = output.add_stream("gif", rate=100)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = *size, "pal8"
        stream.time_base = stream.codec_context.time_base = GIF_CLOCK
        reduce = _Reducer(size, palette)
        for slot, picture_HWC in frames:
            output.mux(stream.encode(reduce(_frame(picture_HWC, slot))))
        output.mux(stream.encode(None))


def _loop(num_plays: int) -> str:
    """Return libav's number: of the repetitions after the first time, 0 without end, -1 of none."""
    if num_plays == FOREVER:
        return "0"
    return "-1" if num_plays == 1 else str(min(num_plays - 1, _MAX_REPETITIONS))


class _Reducer:
    """Draws pictures with the colors of one palette."""

    def __init__(self, size: tuple[int, int], palette: VideoFrame) -> None:
        self._graph = graph = Graph()
        graph.threads = 1
        self._source, colors = _source(graph, size), _source(graph, (palette.width, palette.height))
        use = graph.add("paletteuse", alpha_threshold="128", **_DITHERING)
        self._sink = graph.add("buffersink")
        self._source.link_to(use, 0, 0)
        colors.link_to(use, 0, 1)
        use.link_to(self._sink)
        graph.configure()
        palette.pts = 0
        colors.push(palette)
        colors.push(None)

    def __call__(self, frame: VideoFrame) -> VideoFrame:
        self._source.push(frame)
        reduced = self._sink.pull()
        assert isinstance(reduced, VideoFrame)
        return reduced


def _source(graph: Graph, size: tuple[int, int]) -> FilterContext:
    return graph.add(
        "buffer", video_size=f"{size[0]}x{size[1]}", pix_fmt="rgba", time_base=str(GIF_CLOCK)
    )


def _frame(picture_HWC: Rgba, slot: Slot) -> VideoFrame:
    frame = VideoFrame.from_ndarray(opaque_or_clear(picture_HWC), format="rgba")
    frame.pts, frame.time_base = slot.start, GIF_CLOCK
    return frame
