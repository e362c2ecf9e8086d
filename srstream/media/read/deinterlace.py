"""Fields to frames: libavfilter's bwdif, with the number and times of the frames unchanged."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import av
from av.filter import Graph
from av.video.frame import VideoFrame


class Deinterlacer:
    """Turns interlaced frames into progressive ones of the same number.

    Frames that are not marked interlaced pass unchanged. Each result comes as (picture, source),
    where `source` is the frame that went in: its time, color and side data are those to use.
    """

    def __init__(self) -> None:
        self._graph: Graph | None = None
        self._shape: tuple[object, ...] | None = None
        self._waiting: deque[VideoFrame] = deque()

    def push(self, frame: VideoFrame) -> Iterator[tuple[VideoFrame, VideoFrame]]:
        """Take a frame; the filter gives results one frame late."""
        shape = _shape(frame)
        if self._graph is None or shape != self._shape:
            yield from self.drain()
            self._graph, self._shape = self._build(frame), shape
        self._waiting.append(frame)
        self._graph.vpush(frame)
        yield from self._pull()

    def drain(self) -> Iterator[tuple[VideoFrame, VideoFrame]]:
        """What the filter still holds; it can be pushed to again."""
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
    """What a graph is built for."""
    colors = int(frame.colorspace), int(frame.color_range)
    return frame.width, frame.height, frame.format.name, *colors
