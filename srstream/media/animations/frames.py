"""Reads the enhanced segments back as the pictures of an animation.

Shape legend: H, W are rows and columns, C red, green, blue and alpha.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame

from srstream.color import is_full_range
from srstream.errors import EncodeError
from srstream.media.animations.formats import Slot
from srstream.media.errors import libav_errors
from srstream.media.types import OutputVideo, SegmentFile
from srstream.media.write.segments import open_segment

Rgba = npt.NDArray[np.uint8]
"""(H, W, C), not premultiplied."""

_MATRICES = {1: "bt709", 4: "fcc", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}
_OTHER_MATRIX = "bt601"


def shown_frames(
    segments: Sequence[SegmentFile], video: OutputVideo, slots: Sequence[Slot]
) -> Iterator[tuple[Slot, Rgba]]:
    """Yield the frames of the segments that have a slot, upright, one at a time.

    Raises:
        EncodeError: a segment cannot be read, or lacks frames.
    """
    turn = turn_of(video.display_matrix)
    to_rgba = _Converter(video)
    wanted = iter(slots)
    slot = next(wanted, None)
    number = 0
    for segment in segments:
        container, stream = open_segment(segment)
        with container, libav_errors(segment.path, "the segment cannot be read", kind=EncodeError):
            for frame in container.decode(stream):
                if slot is not None and number == slot.number:
                    yield slot, turned(to_rgba(frame), turn)
                    slot = next(wanted, None)
                number += 1
    if slot is not None:
        raise EncodeError(
            f"{segments[-1].path.name}: the segments hold {number} frames, more were encoded. "
            "Run the job again with --restart."
        )


def turn_of(display_matrix: tuple[int, ...] | None) -> tuple[int, int, int, int]:
    """Return (a, b, c, d) of a display matrix, each -1, 0 or 1; upright if it is a skewed one."""
    if display_matrix is None:
        return (1, 0, 0, 1)
    a, b, _, c, d = display_matrix[:5]
    largest = max(abs(value) for value in (a, b, c, d)) or 1
    a, b, c, d = (round(value / largest) for value in (a, b, c, d))
    return (a, b, c, d) if abs(a * d - b * c) == 1 and (a == 0) == (d == 0) else (1, 0, 0, 1)


def turned(picture_HWC: Rgba, turn: tuple[int, int, int, int]) -> Rgba:
    """Turn and mirror a picture: x' = a x + c y, y' = b x + d y (ISO/IEC 14496-12, 6.2.2)."""
    a, b, c, d = turn
    if not a:
        picture_HWC = picture_HWC.swapaxes(0, 1)
        a, d = c, b
    return np.ascontiguousarray(picture_HWC[::d, ::a])


def opaque_or_clear(picture_HWC: Rgba) -> Rgba:
    """Return a picture without half transparent pixels, whose clear ones are black."""
    made_HWC = picture_HWC.copy()
    clear_HW = picture_HWC[..., 3] < 128
    made_HWC[clear_HW] = 0
    made_HWC[~clear_HW, 3] = 255
    return made_HWC


class _Converter:
    """Converts decoded frames to RGBA, those of YUV with full chroma resolution."""

    def __init__(self, video: OutputVideo) -> None:
        self._video = video
        self._graph: av.filter.Graph | None = None

    def __call__(self, frame: VideoFrame) -> Rgba:
        if self._video.layout.kind == "rgb" and self._video.layout.bits == 8:
            return _array(frame.reformat(format="rgba", threads=1))
        if self._graph is None:
            self._graph = self._built(frame)
        self._graph.vpush(frame)
        return _array(self._graph.vpull())

    def _built(self, frame: VideoFrame) -> av.filter.Graph:
        graph = av.filter.Graph()
        graph.threads = 1
        source = graph.add(
            "buffer",
            video_size=f"{frame.width}x{frame.height}",
            pix_fmt=frame.format.name,
            time_base=str(frame.time_base),
        )
        scale = graph.add("scale", flags="bicubic+accurate_rnd+full_chroma_int", **self._color())
        form = graph.add("format", pix_fmts="rgba")
        graph.link_nodes(source, scale, form, graph.add("buffersink")).configure()
        return graph

    def _color(self) -> dict[str, str]:
        video = self._video
        if video.layout.kind != "yuv":
            return {}
        is_full = is_full_range(video.color, video.layout)
        matrix = _MATRICES.get(video.color.matrix, _OTHER_MATRIX)
        return {"in_color_matrix": matrix, "in_range": "pc" if is_full else "tv"}


def _array(frame: VideoFrame) -> Rgba:
    made: Any = frame.to_ndarray()
    return np.asarray(made, np.uint8)
