"""Decodes the source from its first packet, and the output at requested times."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import cast

import av
from av.bitstream import BitStreamFilterContext
from av.codec.context import CodecContext
from av.container import InputContainer
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from srstream.media.errors import libav_errors
from srstream.media.witness.geometry import states_aspect
from srstream.media.witness.packets import MAX_FAULTS, open_plain, packets_of, plain_decoder
from srstream.media.witness.pictures import Label, label_of, relabelled
from srstream.media.witness.survey import WRAP, Survey, num_videos_before
from srstream.media.witness.webp import BASE, webp_facts, webp_frames

_CUT_ANYWHERE = {"mpegts", "mpeg", "mpegvideo", "h264", "hevc", "vvc"}
"""Formats in which a recording may begin between keyframes."""


_STATING_SITING = frozenset({"h264", "hevc", "vvc", "vp9", "av1"})
"""Codecs that may state a new chroma siting at a keyframe."""

_SITING_FRAMES = 10
"""The siting is read at no more than one keyframe in this many frames."""


_RAW = CodecContext.create("rawvideo", "r")
"""Stands for a decoder that states nothing."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A decoded frame and its position on the source's clock.

    `is_labelled_surely` is False for a few frames around a change of the pixel aspect. `time` is
    None in a stream whose packets have no times. `is_join` marks the first frame after the clock
    jumped; the file does not state its distance from earlier frames. `is_headless` marks frames
    before a recording's first keyframe, which refer to missing ones.
    """

    frame: VideoFrame
    label: Label
    is_labelled_surely: bool
    time: Fraction | None
    duration: Fraction
    is_join: bool = False
    is_headless: bool = False


@dataclass(slots=True)
class Watcher:
    """Decodes the source's video with plain settings. The counts grow as `moments` is consumed."""

    survey: Survey
    found_step: Fraction | None = None
    """The most common interval of the output's frames, in seconds."""
    num_lost: int = 0
    """Packets that could not be decoded."""
    broken_at: Fraction | None = None
    """Where `MAX_FAULTS` packets in a row cannot be decoded, which also ends a job."""
    step: Fraction = Fraction(1, 25)
    """Seconds between frames of a stream without times. Of the rates that the stream and its
    demuxer state, it is the one that the output has."""
    context: VideoCodecContext | None = None
    _label: Label | None = None
    _aspects: tuple[Fraction | None, Fraction | None] = (None, None)
    _said_aspect: Fraction | None = None
    _num_unsure: int = 0
    _num_since: int = 0
    _hidden: set[int] = field(default_factory=set)
    _faults: int = 0
    _last_good: Fraction = Fraction(0)
    _num_frames: int = 0

    def moments(self) -> Iterator[Moment]:
        """Yield all frames in display order."""
        survey = self.survey
        if survey.brand == "webp":
            yield from self._moments_of_webp()
            return
        with open_plain(survey.path) as container:
            stream = cast(VideoStream, container.streams[survey.video])
            self.context = plain_decoder(stream)
            base = Fraction(stream.time_base or Fraction(1, 1000))
            first_key = _first_key(survey)
            self._note_stream(stream)
            counted = sorted(survey.streams[survey.video].starts) if survey.is_packed else []
            offset, last = 0, None
            for frame in self._frames(container, stream):
                self._num_frames += 1
                duration = max(frame.duration or 0, 0) * base or self.step
                stamp = frame.pts if frame.pts is not None else frame.dts
                if survey.is_packed and self._num_frames <= len(counted):
                    stamp = counted[self._num_frames - 1]
                label, is_sure = self._labelled(frame)
                if not survey.is_timed or stamp is None:
                    yield Moment(frame, label, is_sure, None, duration)
                    continue
                is_join = False
                if last is not None:
                    jump = stamp + offset - last
                    if base == Fraction(1, 90000) and abs(jump + WRAP) < WRAP // 64:
                        offset += WRAP
                    else:
                        is_leap = base == Fraction(1, 90000) and jump > WRAP // 2
                        is_join = is_leap or jump * base < Fraction(-1, 4)
                last = stamp + offset
                time = last * base
                self._last_good = time
                yield Moment(
                    frame,
                    label,
                    is_sure,
                    time,
                    duration,
                    is_join,
                    is_headless=first_key is not None and stamp < first_key,
                )

    def _moments_of_webp(self) -> Iterator[Moment]:
        label, facts = None, webp_facts(self.survey.path)
        for frame in webp_frames(self.survey.path, facts):
            label = label or label_of(frame, _RAW, None, None)
            self._num_frames += 1
            yield Moment(frame, label, True, (frame.pts or 0) * BASE, (frame.duration or 0) * BASE)
        self.num_lost = len(facts.starts) - self._num_frames

    def _labelled(self, frame: VideoFrame) -> tuple[Label, bool]:
        """Return a frame's label and whether it is certain.

        PyAV exposes the decoder's pixel aspect but not the frame's; after a change, the decoder
        still returns a few earlier frames.
        """
        assert self.context is not None
        said = self.context.sample_aspect_ratio
        if self._label is None:
            self._label = label_of(frame, self.context, *self._aspects)
            self._said_aspect = said
        aspect = self._label.aspect
        if said != self._said_aspect and self._aspects[0] is None:
            self._said_aspect = said
            self._num_unsure = max(self.context.reorder_depth, 0) + 1
        if self._num_unsure:
            self._num_unsure -= 1
            if not self._num_unsure:
                aspect = said or aspect
        self._label = relabelled(self._label, frame, aspect)
        self._num_since += 1
        codec = self.context.codec.canonical_name
        if frame.key_frame and codec in _STATING_SITING and self._num_since > _SITING_FRAMES:
            self._num_since = 0
            siting = label_of(frame, self.context, None, None).siting
            self._label = replace(self._label, siting=siting or self._label.siting)
        return self._label, not self._num_unsure

    def _note_stream(self, stream: VideoStream) -> None:
        context = stream.codec_context
        rates = (context.framerate, stream.average_rate, stream.guessed_rate, stream.base_rate)
        steps = [1 / Fraction(rate) for rate in rates if rate] or [Fraction(1, 25)]
        if not self.survey.is_timed and self.found_step is not None:
            found = self.found_step
            self.step = min(steps, key=lambda step: abs(step - found))
        else:
            self.step = steps[1] if len(steps) > 1 else steps[0]
        aspect = stream.sample_aspect_ratio or None
        survey = self.survey
        is_stated = states_aspect(survey.path, survey.brand, num_videos_before(survey))
        self._aspects = (aspect, aspect) if is_stated else (None, aspect)

    def _frames(self, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
        assert self.context is not None
        unpacking = None
        if self.survey.is_packed:
            unpacking = BitStreamFilterContext("mpeg4_unpack_bframes", stream)
        for packet in packets_of(container, stream):
            if packet is None:
                self._lose()
                continue
            if packet.is_discard and packet.pts is not None:
                self._hidden.add(packet.pts)
            for single in [packet] if unpacking is None else unpacking.filter(packet):
                try:
                    frames = self.context.decode(cast("Packet[VideoStream]", single))
                except av.FFmpegError:
                    self._lose()
                    continue
                self._faults = 0
                yield from self._visible(frames)
        try:
            rest = self.context.decode(None)
        except av.FFmpegError:
            rest = []
        yield from self._visible(rest)

    def _visible(self, frames: Sequence[VideoFrame]) -> Iterator[VideoFrame]:
        """Yield the frames that no edit list hides."""
        for frame in frames:
            if frame.pts is None or frame.pts not in self._hidden:
                yield frame

    def _lose(self) -> None:
        if not self._num_frames:
            return  # before the first frame, packets may refer to missing pictures
        self.num_lost += 1
        self._faults += 1
        if self._faults >= MAX_FAULTS and self.broken_at is None:
            self.broken_at = self._last_good


def _first_key(survey: Survey) -> int | None:
    """Return the pts of the first keyframe of a recording that may have been cut anywhere."""
    keys = survey.streams[survey.video].keys
    if not keys or not _CUT_ANYWHERE & survey.formats:
        return None
    return keys[0]


class Screen:
    """The enhanced video of an output, with access to the frame at a given time.

    Decoding starts from the preceding keyframe, which the survey found; every GOP is closed.
    """

    def __init__(self, survey: Survey) -> None:
        self._survey = survey
        facts = survey.streams[survey.video]
        self.base = facts.base
        self.times = sorted(facts.starts)
        """The times of all frames, in `base`."""
        self._keys = sorted(facts.keys)
        self._container: InputContainer | None = None
        self._frames: Iterator[VideoFrame] = iter(())
        self._shown: VideoFrame | None = None
        self._at: int | None = None
        self._wanted = 0

    def frame_at(self, time: int) -> VideoFrame | None:
        """Return the frame of this time, or None; `time` is one of `times`, in rising order."""
        self._wanted = time
        if self._at is None or time < self._at or self._num_keys(self._at, time) > 0:
            self._seek(time)
            if not self._reach(time):
                # In a container without an index, seeking may land after the requested time.
                self.close()
                self._seek(None)
        return self._shown if self._reach(time) else None

    def _reach(self, time: int) -> bool:
        """Decode up to a time; return whether there is a frame at that time."""
        while self._at is None or self._at < time:
            self._shown = next(self._frames, None)
            if self._shown is None:
                return False
            self._at = self._shown.pts
        return self._at == time

    def label(self) -> Label | None:
        """Return the first frame's label; None if there is no frame."""
        survey = self._survey
        if survey.brand == "webp":
            first = next(webp_frames(survey.path, webp_facts(survey.path)), None)
            return None if first is None else label_of(first, _RAW, None, None)
        with open_plain(survey.path) as container:
            stream = cast(VideoStream, container.streams[survey.video])
            # Labels are read from libav's log, which is unsafe while decoder threads run.
            stream.codec_context.thread_count = 1
            for packet in packets_of(container, stream):
                if packet is None:
                    continue
                with libav_errors(survey.path, "the output cannot be decoded"):
                    frames = cast("Packet[VideoStream]", packet).decode()
                if frames:
                    return _labelled(frames[0], stream)
            rest = stream.codec_context.decode(None)
            return _labelled(rest[0], stream) if rest else None

    def close(self) -> None:
        """Close the file."""
        if self._container is not None:
            self._container.close()
            self._container = None

    def _seek(self, time: int | None) -> None:
        """Go to the keyframe before a time, or to the file's beginning."""
        if self._survey.brand == "webp":
            self._frames = webp_frames(self._survey.path, webp_facts(self._survey.path))
            self._at = None
            return
        if self._container is None:
            self._container = open_plain(self._survey.path)
            cast(VideoStream, self._container.streams[self._survey.video]).thread_type = "AUTO"
        stream = cast(VideoStream, self._container.streams[self._survey.video])
        if time is not None:
            place = bisect_right(self._keys, time)
            key = self._keys[place - 1] if place else self.times[0]
            self._container.seek(key, stream=stream, backward=True)
        self._frames = self._decoded(self._container, stream)
        self._at = None

    def _decoded(self, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
        """Yield frames; before the wanted one, non-reference frames are skipped."""
        context = stream.codec_context
        with libav_errors(self._survey.path, "the output cannot be decoded"):
            for packet in container.demux(stream):
                early = packet.pts is not None and packet.pts < self._wanted
                context.skip_frame = "NONREF" if early else "DEFAULT"
                for frame in packet.decode():
                    if frame.pts is not None:
                        yield frame

    def _num_keys(self, after: int, until: int) -> int:
        return bisect_right(self._keys, until) - bisect_right(self._keys, after)


def _labelled(frame: VideoFrame, stream: VideoStream) -> Label:
    aspect = stream.sample_aspect_ratio or None
    return label_of(frame, stream.codec_context, aspect, None)
