"""The enhanced segments and everything else of the source, joined into the output file."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, lcm
from pathlib import Path
from typing import Any, cast

import av
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import AttachmentStream, Stream
from av.video.stream import VideoStream

from srstream.errors import EncodeError
from srstream.media.errors import libav_errors
from srstream.media.read.demux import Clock, ReadFault, is_shown, open_source, read_packets
from srstream.media.read.skipped import SkippedPackets
from srstream.media.read.start import start_pts
from srstream.media.types import (
    OutputPlan,
    SegmentFile,
    SourceInfo,
    StreamPlan,
    TimeWindow,
    VideoInfo,
)
from srstream.media.write.codecs import nominal_rate
from srstream.media.write.containers import CONTAINERS, TEXT_CODECS, canonical_codec
from srstream.media.write.convert import Converter, TextConverter, make_converter
from srstream.media.write.cues import Cue, one_at_a_time, with_ends
from srstream.media.write.matroska import ASPECT_TITLE_PAD, write_aspect
from srstream.media.write.segments import SegmentCheck, check_segments, open_segment, video_packets
from srstream.media.write.tags import (
    chapters_in_window,
    container_tags,
    needs_free_tags,
    stream_tags,
)
from srstream.media.write.transport import fill_up

OnProgress = Callable[[int, int | None], None]

_MAX_PIXELS = 2**31 - 1
_MAX_TIMESCALE = 2**31 - 1
_MAX_FASTSTART_BYTES = 8 << 30
_NUM_FIRST_PACKETS = 40
_TS_DELAY_US = 700_000
_TS_TAGS = frozenset({"title", "service_name", "service_provider"})
"""Of which the name of a service in MPEG-TS is made."""
_MAX_TEXT_DISORDER = 5
"""Seconds by which a cue may come in the file after one that is shown later."""


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

    The video has the source's exact times, less its start (`placing_of`); all other streams are
    copied packet by packet in the source's order. Memory does not grow with the length.

    Args:
        destination: the file to write; its name says nothing about the container.
        on_progress: called with the number of video packets written and their total.
        head: ends all streams but the video early, for a trial.

    Returns:
        By the source's stream number, what was taken of each that is neither video nor picture.

    Raises:
        EncodeError: a segment is not what it should be, or the file cannot be written.
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
        open_source(source_path, _MAX_PIXELS) as container,
        libav_errors(destination, "the output cannot be written", kind=EncodeError),
        _open_output(destination, source, plan, container, check, first) as output,
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
class Taken:
    """Packets of a source's stream that went into the output, and the first one's time there."""

    num_packets: int = 0
    num_bytes: int = 0
    first: Fraction | None = None
    last: Fraction | None = None

    def take(self, moment: Fraction, size: int) -> None:
        """Count a packet of `size` bytes, shown at `moment` seconds."""
        self.num_packets += 1
        self.num_bytes += size
        self.first = moment if self.first is None else min(self.first, moment)
        self.last = moment if self.last is None else max(self.last, moment)


@dataclass(frozen=True, slots=True)
class Head:
    """How much is read of a source's streams for a trial: so much of each, or so much in all."""

    num_packets: int = 8
    length: Fraction = Fraction(1, 5)
    """Seconds of each stream that its packets span; those of TrueHD last less than 1 ms."""
    num_packets_in_all: int = 4000
    num_bytes: int = 16 << 20
    seconds: float = 0.5
    """Time that reading may take."""

    def packets(
        self, container: InputContainer, wanted: set[int]
    ) -> Iterator[Packet[Stream] | ReadFault]:
        """The first packets of the streams of these numbers."""
        taken = {index: Taken() for index in wanted}
        num_bytes = num_packets = 0
        deadline = time.monotonic() + self.seconds
        # All streams are read, since libav would pass over the others to the end of the file.
        for packet in read_packets(container, deadline=deadline):
            if not isinstance(packet, ReadFault):
                num_packets += 1
                num_bytes += packet.size
                index = packet.stream_index
                if index in taken and not self._is_enough(taken[index]):
                    taken[index].take(_moment(packet), packet.size)
                    yield packet
            is_enough = num_packets >= self.num_packets_in_all or num_bytes >= self.num_bytes
            if is_enough or all(self._is_enough(found) for found in taken.values()):
                return

    def _is_enough(self, found: Taken) -> bool:
        if found.num_packets < self.num_packets or found.first is None:
            return False
        return (found.last or found.first) - found.first >= self.length


@dataclass(frozen=True, slots=True)
class Placing:
    """Where the source's times go: those in [start, end) seconds, moved back by `shift` seconds."""

    shift: Fraction
    start: Fraction | None
    end: Fraction | None

    def cue(self, cue: Cue, base: Fraction) -> Cue | None:
        """A cue with an end, in ticks of `base` seconds, as the output shows it; None if not.

        One that is on the screen when the excerpt begins or ends is cut there.
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
    """How an output lies against its source, whose first frame taken is shown at `first_pts`.

    The earliest of its streams begins at zero, to less than a tick of the video's clock; all are
    moved alike, and by whole ticks of it. An excerpt begins at zero with its video.

    Args:
        earliest_other: when the first of the streams beside the video begins, in seconds.
        keep: the output begins when the source does, an excerpt too. No container that srstream
            writes can begin before zero: where the source does, its video begins at zero.
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
    """Display time of the source's first frame, in the video's time base; 0 if it has no times."""
    clock = Clock(video.time_base)
    found: list[int] = []
    with open_source(source_path, _MAX_PIXELS) as container:
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


@dataclass(slots=True)
class _Copied:
    """A source stream's way into the output. One of `stream` and `converter` is set."""

    stream: Stream | None
    converter: Converter | None
    clock: Clock
    skipped: SkippedPackets
    durations: Durations | None
    """Of packets that do not tell it; None where packets need none."""
    is_text: bool
    """Cues need not come in order; no container of theirs has a clock that jumps."""
    last_dts: int | None = None


class Durations:
    """Gives audio packets the duration that their file does not tell: the time to the next.

    MP4 would else end the last one where it begins, and a decoder drops what lies there.
    """

    def __init__(self) -> None:
        self._held: Packet[Stream] | None = None
        self._last = 0

    def push(self, packet: Packet[Stream]) -> list[Packet[Stream]]:
        """The packets whose durations are known now, in order."""
        ready = []
        if self._held is not None:
            if packet.pts is not None and self._held.pts is not None:
                self._last = max(packet.pts - self._held.pts, 0)
            ready.append(self._with_last())
        if packet.duration:
            return [*ready, packet]
        self._held = packet
        return ready

    def drain(self) -> list[Packet[Stream]]:
        """The last packet, which lasts as long as the one before."""
        return [] if self._held is None else [self._with_last()]

    def _with_last(self) -> Packet[Stream]:
        packet, self._held = self._held, None
        assert packet is not None
        packet.duration = self._last
        return packet


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
        """Make the output's streams, in the source's order, with tags and dispositions."""
        with libav_errors(self._source.path, "its cover pictures cannot be read"):
            covers = self._read_covers()
        for stream_plan in self._plan.streams:
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
            context.codec_tag = "hvc1"  # Apple's players take no hev1.
        if video.display_matrix is not None:
            self._video.set_display_matrix(video.display_matrix)
        self._describe(self._video, template, is_enhanced=True)
        if self._container.name in ("mkv", "webm") and video.sample_aspect_ratio != 1:
            title = self._video.metadata.get("title", "")
            self._video.metadata["title"] = title + ASPECT_TITLE_PAD

    def _add_cover(self, template: Stream, data: Packet[Stream]) -> None:
        """Cover pictures are packets in MP4 and attachments in Matroska."""
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
        stream.disposition = template.disposition
        tags = stream_tags(template, self._source, self._container, is_enhanced=is_enhanced)
        stream.metadata.clear()
        stream.metadata.update(tags)

    def _read_covers(self) -> dict[int, Packet[Stream]]:
        indices = {s.index for s in self._source.streams if s.is_attached_picture}
        covers: dict[int, Packet[Stream]] = {}
        if indices:
            with open_source(self._source.path, _MAX_PIXELS) as container:
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
        """Write all packets, in the order of their decode times."""
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
                # A damaged packet of sound, of which the muxer cannot make what it writes. It may
                # have waited in the muxer, this one does now; a lost frame the receipt would find.
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
            yield _moment(packet), packet

    def _copies(self) -> Iterator[tuple[Fraction, Packet[Any]]]:
        """Packets of the other streams, with the output's times, as the file has them."""
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
                yield from ((_moment(p), p) for p in copied.converter.drain())

    def _read(
        self, container: InputContainer, *streams: Stream
    ) -> Iterator[Packet[Stream] | ReadFault]:
        """The packets of these streams, or the first of them for a trial."""
        if self._head is None:
            return read_packets(container, *streams)
        return self._head.packets(container, {stream.index for stream in streams})

    def _carried(
        self, packet: Packet[Stream], copied: _Copied
    ) -> Iterator[tuple[Fraction, Packet[Any]]]:
        """What the output gets for a packet of the source, with the output's times."""
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
        yield from ((_moment(p), p) for p in made)

    def _in_order(self, packets: Iterator[Packet[Stream] | ReadFault]) -> Iterator[Packet[Stream]]:
        """The packets, those of text by their times, as muxers want them.

        What comes more than `_MAX_TEXT_DISORDER` late stays late.
        """
        held: list[tuple[Fraction, int, Packet[Stream]]] = []
        newest = Fraction(0)
        for number, packet in enumerate(packets):
            if isinstance(packet, ReadFault):
                continue
            newest = max(newest, _moment(packet))
            if self._copied[packet.stream_index].is_text:
                heapq.heappush(held, (_moment(packet), number, packet))
            else:
                yield packet
            while held and held[0][0] <= newest - _MAX_TEXT_DISORDER:
                yield heapq.heappop(held)[2]
        while held:
            yield heapq.heappop(held)[2]

    def _cues(self) -> list[Iterator[tuple[Fraction, Packet[Any]]]]:
        """Packets of each text stream whose cues must not overlap, with the output's times.

        Where one is cut depends on all, so all are read before.
        """
        found: dict[int, list[Cue]] = {index: [] for index in self._texts}
        if not found:
            return []
        with open_source(self._source.path, _MAX_PIXELS) as container:
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
            yield _moment(packet), packet

    def _place(self, packet: Packet[Stream], copied: _Copied) -> bool:
        """Move a packet to the output's time; False if it is not wanted there."""
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
            # A subtitle that is on the screen when the excerpt begins stays on it.
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
            # The first frame taken may be shown a little after the start that was asked for.
            packet.duration = max((packet.duration or 0) + (packet.pts or 0), 1)
            packet.pts = packet.dts = 0
        return self._fits_clock(packet, copied)

    def _fits_clock(self, packet: Packet[Stream], copied: _Copied) -> bool:
        """Give a packet the rising dts that a muxer wants, where the source left it open.

        Matroska knows no time before zero, so of what lies there (the priming of an encoder) the
        last packet alone is kept, which the decoder needs.
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


def _moment(packet: Packet[Any]) -> Fraction:
    stamp = packet.dts if packet.dts is not None else packet.pts or 0
    return stamp * Fraction(packet.time_base)


def _open_output(
    destination: Path,
    source: SourceInfo,
    plan: OutputPlan,
    container: InputContainer,
    check: SegmentCheck,
    first_pts: int,
) -> OutputContainer:
    """The output with its options, tags and chapters, without streams."""
    kind = CONTAINERS[plan.container]
    options = {"fflags": "+bitexact"}
    tags = container_tags(container, kind)
    if kind.name == "ts":
        return _open_ts(destination, plan, tags, first_pts * plan.video.time_base)
    if kind.name in ("mp4", "mov"):
        flags = []
        if check.size_bytes <= _MAX_FASTSTART_BYTES:
            flags.append("faststart")
        if needs_free_tags(tags):
            flags.append("use_metadata_tags")
        if flags:
            options["movflags"] = "+" + "+".join(flags)
        options |= _timescales(plan, container)
    else:
        # Times stay what they are; Matroska stores no decode times, which alone may be negative.
        options |= {"avoid_negative_ts": "disabled", "write_crc32": "0"}
        options["default_mode"] = "passthrough"
    output = av.open(str(destination), "w", format=kind.muxer, container_options=options)
    output.metadata.update(tags)
    return output


def _open_ts(
    destination: Path, plan: OutputPlan, tags: dict[str, str], begins: Fraction
) -> OutputContainer:
    """MPEG-TS, whose every packet M2TS (for discs and cameras) prefixes with a time of arrival.

    A decoder is given 0.7 s to fill its buffers before it shows something, so everything is moved
    by twice that; but for a clock that is kept, and leaves room for it.
    """
    begins = min(begins, begins if plan.earliest_other is None else plan.earliest_other)
    is_kept = plan.keeps_start and begins * 1_000_000 >= 4 * _TS_DELAY_US
    options = {
        "max_delay": str(_TS_DELAY_US),
        "mpegts_copyts": str(int(is_kept)),
        "mpegts_m2ts_mode": str(int(plan.path.suffix.lower() in (".m2ts", ".mts"))),
    }
    output = av.open(str(destination), "w", format="mpegts", container_options=options)
    output.metadata.update({k: v for k, v in tags.items() if k.lower() in _TS_TAGS})
    return output


def _timescales(plan: OutputPlan, container: InputContainer) -> dict[str, str]:
    """Clocks for MP4 in which a late start of any stream is exact (it is kept in the movie's)."""
    wanted = [plan.video.time_base.denominator]
    if wanted[0] > _MAX_TIMESCALE:
        return {}
    options = {"video_track_timescale": str(wanted[0])}
    wanted += [s.codec_context.sample_rate for s in container.streams.audio if s.codec_context]
    movie = 1
    for scale in wanted:
        if scale and lcm(movie, scale) <= _MAX_TIMESCALE:
            movie = lcm(movie, scale)
    # The clock's own thousandths are kept if there is room, for the streams that count in them.
    if lcm(movie, 1000) <= _MAX_TIMESCALE:
        movie = lcm(movie, 1000)
    return options | {"movie_timescale": str(movie)}


def set_chapters(output: OutputContainer, container: InputContainer, placing: Placing) -> None:
    """Write the source's chapters, cut to the window and moved with it."""
    chapters = chapters_in_window(container, placing.shift, placing.start, placing.end)
    if chapters:
        output.set_chapters(chapters)
