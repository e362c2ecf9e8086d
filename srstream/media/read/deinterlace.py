"""Deinterlaces frames with libavfilter's bwdif; their number and times stay the same."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import av
from av.filter import Graph
from av.video.frame import VideoFrame


class Deinterlacer:
    """Turns interlaced frames into progressive ones of the same number.

    Frames that are not marked interlaced pass unchanged. Each result is a pair (picture, source);
    `source` is the input frame, whose time, color and side data apply.
    """

    def __init__(self) -> None:
        self._graph: Graph | None = None
        self._shape: tuple[object, ...] | None = None
        self._waiting: deque[VideoFrame] = deque()

    def push(self, frame: VideoFrame) -> Iterator[tuple[VideoFrame, VideoFrame]]:
        """Take a frame and yield what is ready; the filter lags one frame behind."""
        shape = _shape(frame)
        if self._graph is None or shape != self._shape:
            yield from self.drain()
            self._graph, self._shape = self._build(frame), shape
        self._waiting.append(frame)
        self._graph.vpush(frame)
        yield from self._pull()

    def drain(self) -> Iterator[tuple[VideoFrame, VideoFrame]]:
        """Yield what the filter still holds; more frames can be pushed afterwards."""
        if self._graph is not None:
            self._graph.vpush(None)
            yield from self._pull()
        self._graph = None
        self._waiting.clear()

    def _pull(self) -> Iterator[tuple[VideoFrame, VideoFrame]]:
        assert self._graph is not None
        while self._waiting:
            try:
                picture = self._graph.vpull()
            except (av.BlockingIOError, av.EOFError):
                return
            yield picture, self._waiting.popleft()

    def _build(self, frame: VideoFrame) -> Graph:
        graph = Graph()
        graph.threads = 1
        source = graph.add(
            "buffer",
            video_size=f"{frame.width}x{frame.height}",
            pix_fmt=frame.format.name,
            time_base=str(frame.time_base),
            colorspace=str(int(frame.colorspace)),
            range=str(int(frame.color_range)),
        )
        bwdif = graph.add("bwdif", "mode=send_frame:parity=auto:deint=interlaced")
        graph.link_nodes(source, bwdif, graph.add("buffersink")).configure()
        return graph


def _shape(frame: VideoFrame) -> tuple[object, ...]:
    """Return the properties that a filter graph is built for."""
    colors = int(frame.colorspace), int(frame.color_range)
    return frame.width, frame.height, frame.format.name, *colors
