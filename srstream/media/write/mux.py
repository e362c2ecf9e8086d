"""Joins the enhanced segments and the source's other streams into the output file."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any, cast

import av
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import AttachmentStream, Disposition, Stream
from av.video.stream import VideoStream

from srstream.errors import EncodeError
from srstream.media.errors import libav_errors
from srstream.media.read.demux import (
    MAX_PIXELS_OF_LIBAV,
    Clock,
    ReadFault,
    open_source,
    read_packets,
)
from srstream.media.read.skipped import SkippedPackets
from srstream.media.subtitle_cues import Cue, one_at_a_time, with_ends
from srstream.media.types import OutputPlan, SegmentFile, SourceInfo, StreamPlan, TimeWindow
from srstream.media.write.codecs import nominal_rate
from srstream.media.write.container_file import fill_up, open_output, set_chapters
from srstream.media.write.containers import (
    CONTAINERS,
    TEXT_CODECS,
    canonical_codec,
    is_other_video,
)
from srstream.media.write.convert import Converter, TextConverter, make_converter
from srstream.media.write.copies import Durations, Head, Taken, moment
from srstream.media.write.matroska import ASPECT_TITLE_PAD, write_aspect
from srstream.media.write.segments import SegmentCheck, check_segments, open_segment, video_packets
from srstream.media.write.tags import stream_tags
from srstream.media.write.timeline import Placing, placing_of

OnProgress = Callable[[int, int | None], None]

_MAX_TEXT_DISORDER = 5
"""Maximum seconds by which a cue may follow a later one in the file."""


def assemble(
    source_path: Path,
    source: SourceInfo,
    plan: OutputPlan,
    segments: Sequence[SegmentFile],
    destination: Path,
    window: TimeWindow | None = None,
    on_progress: OnProgress | None = None,
    head: Head | None = None,
) -> dict[int, Taken]:
    """Write the output file; the caller fsyncs and renames it.

    The video has the source's exact times, minus its start (`placing_of`); all other streams are
    copied packet by packet in the source's order. Memory use does not grow with the length.

    Args:
        destination: the file to write; its name says nothing about the container.
        on_progress: called with the number of video packets written and their total.
        head: ends all streams but the video early, for a trial.

    Returns:
        Statistics of what was taken of each stream, by source number, except video and pictures.

    Raises:
        EncodeError: a segment is invalid, or the file cannot be written.
        MediaError: the source cannot be read again.
        DiskFullError: no space is left.
    """
    window = window or TimeWindow()
    check = check_segments(segments)
    first = segments[0].pts[0]
    placing = placing_of(
        source_path, source.video, first, window, plan.earliest_other, keep=plan.keeps_start
    )
    with (
        open_source(source_path, MAX_PIXELS_OF_LIBAV) as container,
        libav_errors(destination, "the output cannot be written", kind=EncodeError),
        open_output(destination, source, plan, container, check, first) as output,
    ):
        assembly = _Assembly(source, plan, container, output, placing, head)
        assembly.add_streams(segments[0])
        if CONTAINERS[plan.container].tells_of_itself:
            set_chapters(output, container, placing)
        assembly.write(segments, check, on_progress)
    if plan.container == "ts":
        fill_up(destination)
    if plan.container in ("mkv", "webm") and plan.video.sample_aspect_ratio != 1:
        write_aspect(destination, plan.video, in_pixels=plan.container == "webm")
    return assembly.taken


@dataclass(slots=True)
class _Copied:
    """How a source stream reaches the output. One of `stream` and `converter` is set."""

    stream: Stream | None
    converter: Converter | None
    clock: Clock
    skipped: SkippedPackets
    durations: Durations | None
    """Supplies durations of packets that state none; None where packets need none."""
    is_text: bool
    """Text cues may be out of order; no container that holds them has a clock that jumps."""
    last_dts: int | None = None


class _Assembly:
    """One run of `assemble`."""

    def __init__(
        self,
        source: SourceInfo,
        plan: OutputPlan,
        container: InputContainer,
        output: OutputContainer,
        placing: Placing,
        head: Head | None = None,
    ) -> None:
        self.taken: dict[int, Taken] = {}
        self._head = head
        self._source, self._plan = source, plan
        self._input, self._output = container, output
        self._container = CONTAINERS[plan.container]
        self._placing = placing
        self._copied: dict[int, _Copied] = {}
        self._texts: dict[int, TextConverter] = {}
        self._pictures: list[Packet[Stream]] = []

    # Streams

    def add_streams(self, first: SegmentFile) -> None:
        """Make the output's streams with tags and dispositions: the enhanced video before others.

        Players that heed no disposition show the first video.
        """
        with libav_errors(self._source.path, "its cover pictures cannot be read"):
            covers = self._read_covers()
        for stream_plan in _enhanced_before_others(self._plan.streams):
            template = self._input.streams[stream_plan.index]
            if stream_plan.action == "enhance":
                self._add_video(template, first)
            elif stream_plan.type == "attachment" and stream_plan.action == "copy":
                assert isinstance(template, AttachmentStream)
                self._output.add_attachment(
                    template.name or f"attachment{template.index}",
                    template.mimetype or "application/octet-stream",
                    template.data,
                )
            elif stream_plan.index in covers and stream_plan.action == "copy":
                self._add_cover(template, covers[stream_plan.index])
            elif stream_plan.action == "copy" or (
                stream_plan.action == "convert" and stream_plan.type != "data"
            ):
                self._add_copied(template, stream_plan)

    def _add_video(self, template: Stream, first: SegmentFile) -> None:
        video = self._plan.video
        segment, stream = open_segment(first)
        with segment:
            self._video = self._output.add_stream_from_template(stream, opaque=True)
        self._video.time_base = video.time_base
        context = self._video.codec_context
        context.framerate = nominal_rate(video.frame_rate)
        context.sample_aspect_ratio = video.sample_aspect_ratio
        context.color_primaries = video.color.primaries
        context.color_trc = video.color.transfer
        context.colorspace = 0 if video.layout.kind == "rgb" else video.color.matrix
        context.color_range = {None: 0, False: 1, True: 2}[video.color.full_range]
        if canonical_codec(video.codec) == "hevc" and self._container.name in ("mp4", "mov"):
            context.codec_tag = "hvc1"  # Apple's players do not accept hev1.
        if video.display_matrix is not None:
            self._video.set_display_matrix(video.display_matrix)
        self._describe(self._video, template, is_enhanced=True)
        if self._container.name in ("mkv", "webm") and video.sample_aspect_ratio != 1:
            title = self._video.metadata.get("title", "")
            self._video.metadata["title"] = title + ASPECT_TITLE_PAD

    def _add_cover(self, template: Stream, data: Packet[Stream]) -> None:
        """Add a cover picture, which is a packet in MP4 and an attachment in Matroska."""
        if self._container.attachments:
            tags = {key.lower(): value for key, value in template.metadata.items()}
            kind = canonical_codec(template.codec_context.codec.name)
            mime = {"mjpeg": "image/jpeg", "png": "image/png", "bmp": "image/bmp"}.get(kind)
            ending = {"mjpeg": "jpg"}.get(kind, kind)
            self._output.add_attachment(
                tags.get("filename", f"cover.{ending}"),
                tags.get("mimetype") or mime or "application/octet-stream",
                bytes(data),
            )
            return
        stream = self._output.add_stream_from_template(template, opaque=True)
        self._describe(stream, template)
        data.stream = stream
        data.pts = data.dts = 0
        self._pictures.append(data)

    def _add_copied(self, template: Stream, stream_plan: StreamPlan) -> None:
        clock = Clock(template.time_base or Fraction(1, 1000))
        converter: Converter | None = None
        stream: Stream | None = None
        if stream_plan.action == "convert":
            converter = make_converter(self._output, template, stream_plan)
        else:
            stream = self._output.add_stream_from_template(template, opaque=True)
        added = stream or cast(Converter, converter).stream
        if not isinstance(template, AudioStream) or converter is None:
            added.time_base = template.time_base
        self._describe(added, template)
        if isinstance(converter, TextConverter) and not converter.overlaps:
            self._texts[template.index] = converter
            return
        skipped = SkippedPackets(template)
        is_text = stream_plan.codec in TEXT_CODECS
        durations = Durations() if isinstance(template, AudioStream) else None
        copied = _Copied(stream, converter, clock, skipped, durations, is_text)
        self._copied[template.index] = copied

    def _describe(self, stream: Stream, template: Stream, is_enhanced: bool = False) -> None:
        stream.disposition = self._disposition(template, is_enhanced)
        tags = stream_tags(template, self._source, self._container, is_enhanced=is_enhanced)
        stream.metadata.clear()
        stream.metadata.update(tags)

    def _disposition(self, template: Stream, is_enhanced: bool) -> Disposition:
        """Return the source's disposition, but with the enhanced one as the only default video."""
        others = [s for s in self._source.streams if is_other_video(self._source, s)]
        default = Disposition.default
        if is_enhanced and others:
            return template.disposition | default
        if template.index in {s.index for s in others}:
            return template.disposition & ~default
        return template.disposition

    def _read_covers(self) -> dict[int, Packet[Stream]]:
        indices = {s.index for s in self._source.streams if s.is_attached_picture}
        covers: dict[int, Packet[Stream]] = {}
        if indices:
            with open_source(self._source.path, MAX_PIXELS_OF_LIBAV) as container:
                streams = [container.streams[n] for n in sorted(indices)]
                for packet in read_packets(container, *streams):
                    if isinstance(packet, ReadFault):
                        break
                    covers.setdefault(packet.stream_index, packet)
                    if len(covers) == len(indices):
                        break
        return covers

    # Packets

    def write(
        self,
        segments: Sequence[SegmentFile],
        check: SegmentCheck,
        on_progress: OnProgress | None,
    ) -> None:
        """Write all packets in the order of their decode times."""
        base = self._plan.video.time_base
        total = sum(len(segment.pts) for segment in segments)
        shift = int(self._placing.shift / base)
        self._output.start_encoding()
        self._output.mux(self._pictures)
        done = 0
        video = self._timed(video_packets(segments, check, base, shift))
        others = self._copies(), *self._cues()
        for _, packet in heapq.merge(video, *others, key=lambda item: item[0]):
            is_video = packet.stream_index == self._video.index
            try:
                self._output.mux_one(packet)
            except (av.error.InvalidDataError, av.error.PatchWelcomeError, av.error.ArgumentError):
                # The muxer rejects a damaged audio packet. It may be an earlier one that the muxer
                # had queued; this one is queued now. The receipt would find a lost video frame.
                if not self._copied:
                    raise
            if is_video:
                done += 1
                if on_progress is not None:
                    on_progress(done, total)

    def _timed(
        self, packets: Iterator[Packet[VideoStream]]
    ) -> Iterator[tuple[Fraction, Packet[Any]]]:
        for packet in packets:
            packet.stream = self._video
            yield moment(packet), packet

    def _copies(self) -> Iterator[tuple[Fraction, Packet[Any]]]:
        """Yield the packets of the other streams in file order, with the output's times."""
        streams = [self._input.streams[n] for n in self._copied]
        if not streams:
            return
        for packet in self._in_order(self._read(self._input, *streams)):
            copied = self._copied[packet.stream_index]
            if not copied.is_text:
                copied.clock.correct(packet)
            known = [packet] if copied.durations is None else copied.durations.push(packet)
            for whole in known:
                yield from self._carried(whole, copied)
        for copied in self._copied.values():
            for whole in copied.durations.drain() if copied.durations is not None else ():
                yield from self._carried(whole, copied)
            if copied.converter is not None:
                yield from ((moment(p), p) for p in copied.converter.drain())

    def _read(
        self, container: InputContainer, *streams: Stream
    ) -> Iterator[Packet[Stream] | ReadFault]:
        """Yield the packets of these streams, or only the first of them for a trial."""
        if self._head is None:
            return read_packets(container, *streams)
        return self._head.packets(container, {stream.index for stream in streams})

    def _carried(
        self, packet: Packet[Stream], copied: _Copied
    ) -> Iterator[tuple[Fraction, Packet[Any]]]:
        """Yield what the output gets for a source packet, with the output's times."""
        index = packet.stream_index
        if not self._place(packet, copied):
            copied.skipped.skip(packet)
            return
        packet = copied.skipped.give(packet)
        stamp = packet.pts if packet.pts is not None else packet.dts or 0
        self.taken.setdefault(index, Taken())
        self.taken[index].take(stamp * Fraction(packet.time_base), packet.size)
        if copied.converter is not None:
            made = copied.converter.push(packet)
        else:
            assert copied.stream is not None
            packet.stream = copied.stream
            made = [packet]
        yield from ((moment(p), p) for p in made)

    def _in_order(self, packets: Iterator[Packet[Stream] | ReadFault]) -> Iterator[Packet[Stream]]:
        """Yield the packets, those of text sorted by time, as muxers require.

        Packets that come more than `_MAX_TEXT_DISORDER` late stay late.
        """
        held: list[tuple[Fraction, int, Packet[Stream]]] = []
        newest = Fraction(0)
        for number, packet in enumerate(packets):
            if isinstance(packet, ReadFault):
                continue
            newest = max(newest, moment(packet))
            if self._copied[packet.stream_index].is_text:
                heapq.heappush(held, (moment(packet), number, packet))
            else:
                yield packet
            while held and held[0][0] <= newest - _MAX_TEXT_DISORDER:
                yield heapq.heappop(held)[2]
        while held:
            yield heapq.heappop(held)[2]

    def _cues(self) -> list[Iterator[tuple[Fraction, Packet[Any]]]]:
        """Return iterators of packets, one per text stream whose cues must not overlap.

        Packets have the output's times. Where a cue is cut depends on all, so all are read first.
        """
        found: dict[int, list[Cue]] = {index: [] for index in self._texts}
        if not found:
            return []
        with open_source(self._source.path, MAX_PIXELS_OF_LIBAV) as container:
            for packet in self._read(container, *(container.streams[n] for n in found)):
                if isinstance(packet, ReadFault):
                    continue
                cue = self._texts[packet.stream_index].cue(packet)
                if cue is not None:
                    found[packet.stream_index].append(cue)
        return [self._swept(self._texts[index], cues, index) for index, cues in found.items()]

    def _swept(
        self, converter: TextConverter, cues: list[Cue], index: int
    ) -> Iterator[tuple[Fraction, Packet[Any]]]:
        base = self._input.streams[index].time_base or Fraction(1, 1000)
        last = int(Fraction(self._source.duration_seconds or 0) / base)
        placed = [self._placing.cue(cue, base) for cue in with_ends(cues, last)]
        for cue in one_at_a_time([cue for cue in placed if cue is not None]):
            packet = converter.packet(cue, base)
            self.taken.setdefault(index, Taken()).take(cue.start * base, packet.size)
            yield moment(packet), packet

    def _place(self, packet: Packet[Stream], copied: _Copied) -> bool:
        """Move a packet to the output's time; False if it does not belong there."""
        base = Fraction(packet.time_base)
        stamp = packet.pts if packet.pts is not None else packet.dts
        if stamp is None:
            return False
        start, end = self._placing.start, self._placing.end
        moment, length = stamp * base, (packet.duration or 0) * base
        if end is not None and moment >= end:
            return False
        if start is not None and moment < start:
            if packet.stream.type != "subtitle" or moment + length <= start:
                return False
            # A subtitle that is visible when the excerpt begins stays visible.
            cut = int((start - moment) / base)
            packet.pts = packet.dts = stamp + cut
            packet.duration = max((packet.duration or 0) - cut, 1)
        if packet.stream.type == "subtitle" and end is not None and moment + length > end:
            stamp = packet.pts if packet.pts is not None else stamp
            packet.duration = max(ceil(end / base) - stamp, 1)
        shift = round(self._placing.shift / base)
        packet.pts = None if packet.pts is None else packet.pts - shift
        packet.dts = None if packet.dts is None else packet.dts - shift
        if packet.stream.type == "subtitle" and start is not None and (packet.pts or 0) < 0:
            # The first frame may be shown a little after the requested start.
            packet.duration = max((packet.duration or 0) + (packet.pts or 0), 1)
            packet.pts = packet.dts = 0
        return self._fits_clock(packet, copied)

    def _fits_clock(self, packet: Packet[Stream], copied: _Copied) -> bool:
        """Give a packet the rising dts that muxers require; False if it is to be left out.

        Matroska has no negative times, so of the packets before zero (encoder priming) only the
        last is kept, which the decoder needs.
        """
        if packet.pts is None:
            packet.pts = packet.dts
        assert packet.pts is not None
        length = packet.duration or 0
        if self._container.from_zero and packet.pts + length < 0:
            return False
        if packet.dts is None:
            packet.dts = packet.pts
        if copied.last_dts is not None and packet.dts <= copied.last_dts:
            packet.dts = copied.last_dts + (not self._container.from_zero)
            if packet.pts < packet.dts:
                packet.pts = packet.dts
        copied.last_dts = packet.dts
        return True


def _enhanced_before_others(streams: tuple[StreamPlan, ...]) -> list[StreamPlan]:
    """Return the streams in the source's order, but the enhanced one before every other video."""
    enhanced = next(s for s in streams if s.action == "enhance")
    ordered = [s for s in streams if s is not enhanced]
    first = next((n for n, s in enumerate(ordered) if s.type == "video"), len(ordered))
    place = min(first, streams.index(enhanced))
    return [*ordered[:place], enhanced, *ordered[place:]]
