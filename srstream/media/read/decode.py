"""Decodes a file to frames in display order, without Python threads or sockets.

The frames pass through a chain of generators: `_packets` reads and skips, `_decoded` decodes and
counts failures, `_deinterlaced` deinterlaces where needed, `_placed` makes `Frame`s with rising
times and fills in lost ones, `frames` drops those before the start.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from srstream.config import SourceConfig
from srstream.errors import DecodeError, MediaError
from srstream.frame import Frame, Plane, PlaneLayout
from srstream.media.animations.hidden_colors import spread_colors
from srstream.media.color_tags import chroma_location, frame_color
from srstream.media.errors import ffmpeg_text, libav_errors, sentence
from srstream.media.layouts import extract_planes, has_transparent_palette
from srstream.media.read.cropping import cropped_planes
from srstream.media.read.decode_report import MAX_NOTES, DecodeReport
from srstream.media.read.deinterlace import Deinterlacer
from srstream.media.read.demux import (
    MAX_FAULTS_IN_A_ROW,
    Clock,
    ReadFault,
    has_timestamps,
    has_webm_alpha,
    is_shown,
    open_decoder,
    open_source,
    read_packets,
    states_aspect,
    strictly_rising,
)
from srstream.media.read.format_changes import Descriptions, PictureAspects
from srstream.media.read.opacity import ANIMATIONS
from srstream.media.read.skipped import SkippedPackets
from srstream.media.read.start import without_headless_start
from srstream.media.types import VideoInfo

NUM_PACKETS_BEFORE_START = 8
"""Minimum number of packets decoded before a resume point, so that filters have their context."""
_STATES_SITING = frozenset({"h264", "hevc", "vvc", "vp9", "av1"})
"""Codecs that can state a different chroma siting at a keyframe."""

_NO_RESTART = frozenset({"smc"})
"""Codecs that cannot restart at a keyframe: libav's smc refers to colors used earlier."""


class _FaultBeforeStart(Exception):
    """A fault occurred between the packet that a resumed decode began at and its first frame."""


class _Stopped(Exception):
    """Eight failures in a row ended a decode with `salvage`."""


class Decoder:
    """Decodes one video stream of a file, frame by frame.

    With `start_pts` the frames are those with pts >= start_pts, identical in every pixel and time
    to those of an uninterrupted decode. The file is then read from its beginning, at the speed of
    the disk, but decoded only from a keyframe at least one before the preceding one: unlike
    seeking, this is correct for any container, index and clock.

    `threads` share the work on one picture; their number does not change the output.
    """

    def __init__(
        self,
        path: Path,
        video: VideoInfo,
        config: SourceConfig,
        *,
        start_pts: int | None = None,
        threads: int = 1,
        container: str | None = None,
    ) -> None:
        """Open the file; `container` names its format where it must not be guessed.

        Raises:
            UsageError, MediaError: the file is missing or is no longer the one that was probed.
        """
        self.report = DecodeReport()
        self._path = path
        self._video = video
        self._config = config
        self._start_pts = start_pts
        self._threads = threads
        self._format = container
        self._container = self._open()

    def frames(self) -> Iterator[Frame]:
        """Yield the frames in display order, with strictly rising pts in `video.time_base`.

        Raises:
            DecodeError: eight packets in a row failed (without `salvage`).
            MediaError: the frames are in an unsupported format.
        """
        first_packet = self._first_packet()
        try:
            yield from self._from_start(first_packet)
        except _FaultBeforeStart:
            self._reopen()
            self.report.clear()
            yield from self._from_start(0)

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def _reopen(self) -> None:
        self._container.close()
        self._container = self._open()

    def _open(self) -> InputContainer:
        on_gpu = self._config.decoder == "nvdec"
        container = open_source(
            self._path,
            self._config.max_pixels,
            on_gpu=on_gpu,
            container=self._format,
            max_streams=self._config.max_streams,
        )
        num_streams = len(container.streams)
        stream = container.streams[self._video.index] if self._video.index < num_streams else None
        if not isinstance(stream, VideoStream) or stream.codec_context is None:
            raise MediaError(
                sentence(
                    self._path,
                    f"has no video stream {self._video.index} any more",
                    advice="The file was changed; run the command again.",
                )
            )
        self._stream = stream
        self._context = open_decoder(stream, self._config.max_pixels, self._threads, on_gpu=on_gpu)
        self._aspects: PictureAspects | None = None
        if not states_aspect(self._path, container):
            self._aspects = PictureAspects(self._context, self._video)
        self._is_timed = has_timestamps(container)
        rate = self._video.frame_rate or Fraction(25)
        self._frame_ticks = 1 / (rate * self._video.time_base)
        self._begin(0)
        return container

    def _begin(self, first_packet: int) -> None:
        self._skips_packets = first_packet > 0
        self._has_started = self._start_pts is None
        self._num_decoded = 0
        self._faults_in_a_row = 0
        self._first_fault_seconds: float | None = None
        self._last_seconds = 0.0
        self._saw_key = False
        self._saw_frame = False
        self._hidden: set[int] = set()
        self._lost: deque[int] = deque()
        self._shape: tuple[int, int, str] | None = None
        self._saw_alpha = False
        self._siting = self._video.color.chroma_location
        self._descriptions = Descriptions(self._video)

    def _from_start(self, first_packet: int) -> Iterator[Frame]:
        self._begin(first_packet)
        for frame in self._placed(first_packet):
            if self._start_pts is not None and frame.pts < self._start_pts:
                continue
            self._has_started = True
            for note in self._descriptions.push(frame):
                self._say(note)
            self.report.num_frames += 1
            self.report.num_concealed += frame.concealed
            yield frame

    # Where to begin

    def _first_packet(self) -> int:
        """Return the number of the packet to decode from for exact frames from `start_pts` on.

        It is 0 (the beginning) where packets carry no times, for alpha in WebM, whose keyframes
        differ from those of the picture, and for codecs whose keyframes depend on earlier packets.
        """
        if self._start_pts is None or not self._is_timed or has_webm_alpha(self._stream):
            return 0
        if self._video.codec in _NO_RESTART:
            return 0
        keys: list[int] = []
        for number, packet in self._numbered():
            if packet.pts is None:
                return 0
            if packet.is_keyframe and not packet.is_discard:
                if packet.pts > self._start_pts:
                    break
                keys.append(number)
        self._reopen()
        before = [n for n in keys[:-1] if n <= keys[-1] - NUM_PACKETS_BEFORE_START]
        return before[-1] if before else 0

    def _numbered(self) -> Iterator[tuple[int, Packet[Stream]]]:
        """Yield the stream's packets, numbered, with unwrapped times, up to a failed read."""
        clock = Clock(self._video.time_base)
        for number, packet in enumerate(self._read()):
            if isinstance(packet, ReadFault):
                return
            clock.correct(packet)
            yield number, packet

    # Packets and decoding

    def _read(self) -> Iterator[Packet[Stream] | ReadFault]:
        return without_headless_start(self._container, read_packets(self._container, self._stream))

    def _packets(self, first_packet: int) -> Iterator[Packet[Stream]]:
        clock = Clock(self._video.time_base)
        skipped = SkippedPackets(self._stream)
        number = 0
        for packet in self._read():
            if isinstance(packet, ReadFault):
                self._fault(packet.error, None)
                continue
            clock.correct(packet)
            if number < first_packet:
                skipped.skip(packet)
            else:
                yield skipped.give(packet) if number == first_packet else packet
            number += 1

    def _decoded(self, first_packet: int) -> Iterator[VideoFrame]:
        """Yield frames as libav gives them, each with a pts."""
        try:
            for packet in self._packets(first_packet):
                self._note_packet(packet)
                try:
                    frames = self._context.decode(packet)
                except av.FFmpegError as error:
                    self._fault(error, packet)
                    continue
                finally:
                    if self._aspects is not None:
                        self._aspects.after()
                self._faults_in_a_row = 0
                for frame in frames:
                    yield from self._timed(frame)
        except _Stopped:
            self.report.stopped_at_seconds = self._first_fault_seconds
        try:
            # Without this flush the last frames of a stream with B frames would be lost.
            rest = self._context.decode(None)
        except av.FFmpegError:
            rest = []
        for frame in rest:
            yield from self._timed(frame)

    def _note_packet(self, packet: Packet[Stream]) -> None:
        self._saw_key |= packet.is_keyframe
        if packet.pts is not None:
            self._last_seconds = float(packet.pts * self._video.time_base)
            if packet.is_discard:
                self._hidden.add(packet.pts)
        if self._aspects is not None:
            self._aspects.before(packet)

    def _fault(self, error: av.FFmpegError, packet: Packet[Stream] | None) -> None:
        """Count a packet that failed; the eighth in a row ends the decode.

        Raises:
            DecodeError, _Stopped, _FaultBeforeStart
        """
        if self._skips_packets and not self._has_started:
            raise _FaultBeforeStart
        if not self._saw_key and not self._saw_frame and packet is not None:
            return  # a recording cut in the middle begins with packets that refer to nothing
        self.report.num_corrupt_packets += 1
        self._faults_in_a_row += 1
        if self._faults_in_a_row == 1:
            self._first_fault_seconds = self._last_seconds
        if packet is not None and is_shown(packet, self._video.codec):
            self._lose(packet)
        if self._faults_in_a_row < MAX_FAULTS_IN_A_ROW:
            return
        if self._config.salvage:
            for _ in range(min(MAX_FAULTS_IN_A_ROW, len(self._lost))):
                self._lost.pop()
            raise _Stopped
        good = self.report.num_frames - self.report.num_concealed
        raise DecodeError(
            f"{sentence(self._path, f'{MAX_FAULTS_IN_A_ROW} packets in a row failed')[:-1]} at "
            f"{self._first_fault_seconds or 0:.3f} s, after {good} good frames "
            f"(FFmpeg: {ffmpeg_text(error)}). Use --salvage to keep what decodes."
        )

    def _lose(self, packet: Packet[Stream]) -> None:
        if not self._is_timed:
            # A lost frame takes the time of its position.
            self._lost.append(self._count_pts())
            self._num_decoded += 1
        elif packet.pts is not None:
            self._lost.append(packet.pts)

    def _count_pts(self) -> int:
        return round(self._num_decoded * self._frame_ticks)

    def _timed(self, frame: VideoFrame) -> Iterator[VideoFrame]:
        self._saw_frame = True
        if frame.pts is not None and frame.pts in self._hidden:
            return
        if frame.is_corrupt:
            if self._skips_packets and not self._has_started:
                raise _FaultBeforeStart
            self.report.num_damaged += 1
        if not self._is_timed:
            frame.pts = self._count_pts()
        elif frame.pts is None:
            frame.pts = frame.dts if frame.dts is not None else self._count_pts()
        frame.time_base = self._video.time_base
        self._num_decoded += 1
        yield frame

    # Fields and changes of size

    def _deinterlaced(self, first_packet: int) -> Iterator[tuple[VideoFrame, VideoFrame]]:
        """Yield (picture, source) pairs; `source` has the metadata that the filter drops."""
        deinterlacer = Deinterlacer() if self._video.is_interlaced else None
        for frame in self._decoded(first_packet):
            # yuvj is full-range yuv; the range is set explicitly.
            shape = (frame.width, frame.height, frame.format.name.replace("yuvj", "yuv"))
            if shape != self._shape:
                if deinterlacer is not None:
                    yield from deinterlacer.drain()
                self._note_shape(frame, shape)
            if deinterlacer is None and frame.interlaced_frame:
                deinterlacer = Deinterlacer()
                self._say(
                    f"Interlaced frames begin at {self._seconds(frame):.3f} s; "
                    "from there the video is deinterlaced (bwdif)."
                )
            if deinterlacer is None:
                yield frame, frame
            else:
                yield from deinterlacer.push(frame)
        if deinterlacer is not None:
            yield from deinterlacer.drain()

    def _note_shape(self, frame: VideoFrame, shape: tuple[int, int, str]) -> None:
        if self._shape is not None:
            before = f"{self._shape[0]}x{self._shape[1]} {self._shape[2]}"
            self._say(
                f"The picture changes from {before} to {shape[0]}x{shape[1]} {shape[2]} at "
                f"{self._seconds(frame):.3f} s."
            )
        self._shape = shape

    def _note_alpha(self, layout: PlaneLayout, alpha_HW: Plane, seconds: float) -> None:
        if not self._saw_alpha and int(alpha_HW.min()) < (1 << layout.bits) - 1:
            self._saw_alpha = True
            self._say(
                f"Transparent pixels begin at {seconds:.3f} s, which was not seen beforehand; "
                "they become opaque."
            )

    def _seconds(self, frame: VideoFrame) -> float:
        return float((frame.pts or 0) * self._video.time_base)

    def _say(self, note: str) -> None:
        notes = self.report.notes
        if note in notes or len(notes) > MAX_NOTES:
            return
        is_last = len(notes) == MAX_NOTES
        notes.append("Further changes of the picture are not listed." if is_last else note)

    # Frames in their places

    def _placed(self, first_packet: int) -> Iterator[Frame]:
        last: Frame | None = None
        for picture, source in self._deinterlaced(first_packet):
            frame = self._to_frame(picture, source)
            for filler in self._fillers(last or frame, frame.pts):
                last = self._after(last, filler)
                yield last
            last = self._after(last, frame)
            yield last
        if last is not None and self.report.stopped_at_seconds is None:
            for filler in self._fillers(last, None):
                last = self._after(last, filler)
                yield last

    def _after(self, last: Frame | None, frame: Frame) -> Frame:
        pts = strictly_rising(last.pts if last is not None else None, frame.pts)
        return frame if pts == frame.pts else replace(frame, pts=pts)

    def _fillers(self, shown: Frame, before: int | None) -> Iterator[Frame]:
        """Yield repetitions of `shown` at the lost times before `before` (all if None)."""
        lost = sorted(self._lost)
        if before in lost:
            lost.remove(before)  # its packet failed partly, but the frame came out after all
        due = [pts for pts in lost if before is None or pts < before]
        self._lost = deque(lost[len(due) :])
        for pts in due:
            yield replace(shown, pts=pts, is_key=False, concealed=True)

    def _to_frame(self, picture: VideoFrame, source: VideoFrame) -> Frame:
        video = self._video
        seconds = self._seconds(source)
        with libav_errors(self._path, f"cannot read {picture.format.name} pictures", seconds):
            wanted = video.layout.has_alpha or has_transparent_palette(picture)
            layout, planes = extract_planes(picture, with_alpha=wanted)
        if layout.has_alpha and not video.layout.has_alpha:
            self._note_alpha(layout, planes[-1], seconds)
            layout, planes = replace(layout, has_alpha=False), planes[:-1]
        if layout.has_alpha and video.codec in ANIMATIONS and layout.kind == "rgb":
            planes = spread_colors(planes)
        width, height = picture.width, picture.height
        # Where the size changes, the container's crop no longer applies.
        if video.crop and video.crop.size_of(width, height) == (video.width, video.height):
            planes = cropped_planes(planes, layout, (width, height), video.crop)
            width, height = video.width, video.height
        if source.key_frame and video.codec in _STATES_SITING and layout.kind == "yuv":
            self._siting = chroma_location(source) or video.color.chroma_location
        return Frame(
            planes=planes,
            layout=layout,
            width=width,
            height=height,
            pts=source.pts or 0,
            time_base=video.time_base,
            duration=source.duration or 0,
            color=replace(frame_color(source, video.color), chroma_location=self._siting),
            is_key=bool(source.key_frame),
            sample_aspect_ratio=self._aspects.of(source) if self._aspects is not None else None,
        )
