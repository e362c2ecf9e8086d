"""Encodes frames to one segment on disk, without Python threads or sockets.

Shape legend: H, W are rows and columns, C the interleaved samples of a packed pixel.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import numpy.typing as npt
from av.container import OutputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.plane import VideoPlane
from av.video.stream import VideoStream

from srstream.errors import EncodeError
from srstream.frame import Frame, Plane
from srstream.media.errors import libav_errors
from srstream.media.thread_priority import same_scheduling
from srstream.media.types import OutputVideo, SegmentFile
from srstream.media.write.codecs import configure, nominal_rate
from srstream.media.write.containers import canonical_codec, muxed_codecs
from srstream.media.write.output import plan_output as plan_output

_MAX_TIMESCALE = 2**31 - 1


_REORDERING = frozenset({"h264", "hevc", "vvc", "mpeg4", "mpeg1video", "mpeg2video"})
_MAX_REORDER = 16
"""Frames that any of these codecs can hold back (the picture buffer size of H.264 and HEVC)."""


class SegmentEncoder:
    """Encodes the frames of one segment into one file, with times relative to the first frame.

    The file is MP4 if that can hold the codec, else MOV or NUT, with the video's own time base as
    its clock, so times are always exact. With `deterministic`, the same frames and settings give
    the same bytes (one thread, nothing about time or machine in the file).
    """

    def __init__(
        self, path: Path, video: OutputVideo, threads: int = 0, deterministic: bool = False
    ) -> None:
        """Open the file and the encoder.

        Args:
            threads: number for the encoder; 0 lets it choose.

        Raises:
            EncodeError: the encoder or the file cannot be opened.
        """
        self._path = path
        self._video = video
        self._pts: list[int] = []
        self._last_duration = 0
        self._num_packets = 0
        self._reorder_depth = _MAX_REORDER if canonical_codec(video.codec) in _REORDERING else 0
        self._is_closed = False
        self._fill = _filler(video.pix_fmt)
        with (
            libav_errors(path, f"{video.codec} cannot be opened", kind=EncodeError),
            same_scheduling(),
        ):
            self._container = _open_segment(path, video)
            stream = self._container.add_stream(
                video.codec, rate=nominal_rate(video.frame_rate), time_base=video.time_base
            )
            assert isinstance(stream, VideoStream)
            self._stream = stream
            configure(stream.codec_context, video, threads=threads, deterministic=deterministic)
            self._container.start_encoding()

    def push(self, frame: Frame) -> None:
        """Encode one frame, which must have the output's size and layout.

        Raises:
            EncodeError: the frame does not fit the output, its time does not rise, or the
                encoder failed.
            DiskFullError: no space is left.
        """
        self._check(frame)
        picture = VideoFrame(self._video.width, self._video.height, self._video.pix_fmt)
        self._fill(picture, frame.planes)
        self._pts.append(frame.pts)
        self._last_duration = frame.duration
        picture.pts = frame.pts - self._pts[0]
        picture.time_base = self._video.time_base
        with libav_errors(
            self._path, f"{self._video.codec} failed", frame.pts_seconds, kind=EncodeError
        ):
            self._mux(self._stream.encode(picture))

    def close(self) -> SegmentFile:
        """Flush the encoder and finish the file; the caller fsyncs it.

        Raises:
            EncodeError: there was no frame, or the encoder failed.
            DiskFullError: no space is left.
        """
        if not self._pts:
            self.abandon()
            raise EncodeError(f"{self._path.name}: a segment without a frame cannot be encoded.")
        self._is_closed = True
        try:
            with libav_errors(self._path, "the segment cannot be finished", kind=EncodeError):
                self._mux(self._stream.encode(None))
                self._container.close()
        except BaseException:
            self._path.unlink(missing_ok=True)  # on a full disk it would keep others from ending
            raise
        return SegmentFile(self._path, tuple(self._pts), self._duration_of_last())

    def abandon(self) -> None:
        """Stop and delete the unfinished file; does nothing after `close`."""
        if self._is_closed:
            return
        self._is_closed = True
        with suppress(av.FFmpegError):  # The file is deleted anyway.
            self._container.close()
        self._path.unlink(missing_ok=True)

    def _mux(self, packets: list[Packet[VideoStream]]) -> None:
        """Write packets with decode times that replace the encoder's.

        x265 leaves its own uninitialized in a segment of fewer frames than it reorders. The new
        ones are the times of the frames in order, delayed by the largest reorder depth; only their
        order matters here, since `mux` computes the final ones.
        """
        for packet in packets:
            place = self._num_packets - self._reorder_depth
            packet.dts = self._pts[place] - self._pts[0] if place >= 0 else place
            self._num_packets += 1
            self._container.mux_one(packet)

    def _check(self, frame: Frame) -> None:
        video = self._video
        if (frame.width, frame.height, frame.layout) != (video.width, video.height, video.layout):
            raise EncodeError(
                f"{self._path.name}: a frame of {frame.width}x{frame.height} ({frame.layout}) came "
                f"at {frame.pts_seconds:.3f} s, the output is {video.width}x{video.height} "
                f"({video.layout})."
            )
        if frame.time_base != video.time_base:
            raise EncodeError(
                f"{self._path.name}: a frame counts in {frame.time_base} s, the output in "
                f"{video.time_base} s."
            )
        if self._pts and frame.pts <= self._pts[-1]:
            raise EncodeError(
                f"{self._path.name}: a frame at {frame.pts} came after one at {self._pts[-1]} "
                f"({frame.pts_seconds:.3f} s)."
            )

    def _duration_of_last(self) -> int:
        """Return, in ticks, the frame's duration, else the gap before it, else the nominal one."""
        if self._last_duration > 0:
            return self._last_duration
        if len(self._pts) > 1:
            return self._pts[-1] - self._pts[-2]
        ticks = 1 / (nominal_rate(self._video.frame_rate) * self._video.time_base)
        return max(round(ticks), 1)


def _open_segment(path: Path, video: OutputVideo) -> OutputContainer:
    codec = canonical_codec(video.codec)
    muxer = next((name for name in ("mp4", "mov") if codec in muxed_codecs(name)), "nut")
    options = {"fflags": "+bitexact"}
    timescale = video.time_base.denominator
    if muxer != "nut" and timescale <= _MAX_TIMESCALE:
        options |= {"video_track_timescale": str(timescale), "movie_timescale": str(timescale)}
    return av.open(str(path), "w", format=muxer, container_options=options)


# Filling libav's frames

Fill = Callable[[VideoFrame, tuple[Plane, ...]], None]


def _filler(pix_fmt: str) -> Fill:
    packed = {"rgb24": "rgb", "bgr0": "bgr0", "bgra": "bgra", "ya8": "ya"}.get(pix_fmt)
    if packed is not None:
        return lambda picture, planes: _fill_packed(picture, planes, packed)
    return _fill_planar


def _fill_planar(picture: VideoFrame, planes: tuple[Plane, ...]) -> None:
    for target, plane in zip(picture.planes, planes, strict=False):
        _samples(target, plane.dtype)[: plane.shape[0], : plane.shape[1]] = plane
    if len(picture.planes) > len(planes):  # Gray in a format that has chroma.
        for target in picture.planes[len(planes) :]:
            bits = picture.format.components[0].bits
            _samples(target, planes[0].dtype)[:] = 1 << (bits - 1)


def _fill_packed(picture: VideoFrame, planes: tuple[Plane, ...], order: str) -> None:
    names = "gbra" if len(planes) >= 3 else "ya"
    rows, columns = planes[0].shape
    target_HWC = _samples(picture.planes[0], np.dtype(np.uint8))[:, : columns * len(order)]
    target_HWC = target_HWC.reshape(rows, columns, len(order))
    for position, name in enumerate(order):
        target_HWC[:, :, position] = 0 if name == "0" else planes[names.index(name)]


def _samples(target: VideoPlane, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return one of libav's planes as an array view, (rows, samples of a whole line)."""
    lines = np.frombuffer(cast(Any, target), dtype=dtype)
    return lines.reshape(target.height, target.line_size // dtype.itemsize)
