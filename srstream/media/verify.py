"""Whether an output holds all that its source held: the fidelity receipt."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TypeVar, cast

from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from srstream.config import SourceConfig
from srstream.errors import MediaError
from srstream.frame import Frame
from srstream.media.containers import CONTAINERS, canonical_codec, plan_streams
from srstream.media.decode import Decoder
from srstream.media.demux import Clock, ReadFault, is_shown, open_source, read_packets
from srstream.media.errors import libav_errors, sentence
from srstream.media.inventory import (
    MAX_PIXELS,
    compare_chapters,
    compare_pictures,
    compare_streams,
    count_packets,
    describe_picture,
    enhanced_index,
    output_container,
    picture_of_source,
)
from srstream.media.layouts import extract_planes
from srstream.media.mux import Placing, placing_of
from srstream.media.pixels import ColorTally
from srstream.media.probe import probe
from srstream.media.receipt import PictureReceipt
from srstream.media.receipt import Receipt as Receipt
from srstream.media.start import earliest, read_starts
from srstream.media.types import OutputPlan, SourceInfo, TimeWindow, VideoInfo

_CONFIG = SourceConfig(max_pixels=MAX_PIXELS, salvage=True)
_OFFSET_TOLERANCE = Fraction(1, 1000)
_Time = TypeVar("_Time", int, Fraction)


def verify(
    source_path: Path,
    output_path: Path,
    *,
    window: TimeWindow | None = None,
    sample: int | None = None,
    plan: OutputPlan | None = None,
) -> Receipt:
    """Compare an output with the source it was made from. Memory does not grow with the length.

    Args:
        window: what was taken of the source.
        plan: what was announced of each stream; None: what the tables say.
        sample: compare the pixels of so many frames, spread evenly; the times of all frames are
            then those of the packets. None decodes both files from end to end.

    Raises:
        MediaError, UsageError: one of the two cannot be read.
    """
    window = window or TimeWindow()
    source = probe(source_path, _CONFIG)
    with open_source(output_path, MAX_PIXELS) as container:
        video_index = enhanced_index(source, container)
    output = probe(output_path, _CONFIG, video_index=video_index)
    found = _Video(output_path, video_index, output_container(source, output).name)
    expected = _times_of_packets(source, window)
    comparison = _compare(source, found, expected, window, sample)
    return _receipt(source, output, found, comparison, window, plan)


@dataclass(slots=True)
class _Comparison:
    """What came out of pairing the frames."""

    placing: Placing
    num_in: int = 0
    num_out: int = 0
    first_in: Fraction = Fraction(0)
    largest_time_error: Fraction = Fraction(0)
    worst_time: Fraction = Fraction(0)
    colors: ColorTally = field(default_factory=ColorTally)

    def pair(self, expected: Fraction, actual: Fraction) -> None:
        """Note the times of a source frame (moved to where it should be) and its partner."""
        error = abs(actual - expected)
        if error > self.largest_time_error:
            self.largest_time_error, self.worst_time = error, expected


class _Video:
    """The enhanced video of an output."""

    def __init__(self, path: Path, index: int, kind: str) -> None:
        self.path, self.index, self.kind = path, index, kind
        with open_source(path, MAX_PIXELS) as container:
            stream = self._stream(container)
            self.time_base = Fraction(stream.time_base or Fraction(1, 1000))
            self.codec = canonical_codec(stream.codec_context.codec.name)
            shown = [
                (packet.pts * self.time_base, packet.is_keyframe)
                for packet in read_packets(container, stream)
                if not isinstance(packet, ReadFault)
                and packet.pts is not None
                and is_shown(packet, self.codec)
            ]
        self.times = sorted(time for time, _ in shown)
        self.key_times = sorted(time for time, is_key in shown if is_key)

    def frames(self) -> Iterator[tuple[Fraction, VideoFrame]]:
        """All frames with their times, in display order."""
        with open_source(self.path, MAX_PIXELS) as container:
            yield from self._decoded(container, self._stream(container))

    def frames_at(self, times: Sequence[Fraction]) -> Iterator[tuple[Fraction, VideoFrame | None]]:
        """The frames of these rising times; None for one that is not found.

        Reached by seeking where a keyframe lies between one and the next, else by decoding on.
        """
        ahead = deque(times)
        with open_source(self.path, MAX_PIXELS) as container:
            stream = self._stream(container)
            pictures: Iterator[tuple[Fraction, VideoFrame]] = iter(())
            found: tuple[Fraction, VideoFrame] | None = None
            while ahead:
                if found is None or num_between(self.key_times, found[0], ahead[0]):
                    place = int(ahead[0] / self.time_base)
                    container.seek(place, stream=stream, backward=True)
                    pictures = self._decoded(container, stream, lambda time: time >= ahead[0])
                    found = None
                if found is None or found[0] < ahead[0]:
                    found = next((f for f in pictures if f[0] >= ahead[0]), None)
                yield ahead[0], None if found is None else found[1]
                ahead.popleft()

    def picture(self) -> PictureReceipt:
        """The description of the first frame.

        Raises:
            MediaError: there is none.
        """
        with open_source(self.path, MAX_PIXELS) as container:
            stream = self._stream(container)
            # Describing listens to libav's log, which needs the interpreter's lock: a decoder
            # thread that logs then, and is waited for when the file is closed, would never end.
            stream.codec_context.thread_count = 1
            for _, frame in self._decoded(container, stream):
                return describe_picture(container, stream, frame)
        raise MediaError(sentence(self.path, "not one frame of its video can be decoded"))

    def _stream(self, container: InputContainer) -> VideoStream:
        return cast(VideoStream, container.streams[self.index])

    def _decoded(
        self,
        container: InputContainer,
        stream: VideoStream,
        is_wanted: Callable[[Fraction], bool] = lambda time: True,
    ) -> Iterator[tuple[Fraction, VideoFrame]]:
        """Frames with their times; of those not wanted only what the others need is decoded."""
        context = stream.codec_context
        if not context.is_open:
            stream.thread_type = "AUTO"
        with libav_errors(self.path, "the output cannot be decoded"):
            for packet in container.demux(stream):
                is_needed = packet.pts is None or is_wanted(packet.pts * self.time_base)
                context.skip_frame = "DEFAULT" if is_needed else "NONREF"
                for frame in packet.decode():
                    if frame.pts is not None:
                        yield frame.pts * self.time_base, frame


@dataclass(frozen=True, slots=True)
class _Times:
    """Of a source's frames, in rising order: when each is shown, and the keyframes among them."""

    shown: list[int]
    keys: list[int]


def _times_of_packets(source: SourceInfo, window: TimeWindow) -> _Times | None:
    """Display times within the window, by the packets; None where these cannot tell."""
    video = source.video
    if video.is_interlaced:
        return None
    clock = Clock(video.time_base)
    found: list[int] = []
    keys: list[int] = []
    with open_source(source.path, MAX_PIXELS) as container:
        for packet in read_packets(container, container.streams[video.index]):
            if isinstance(packet, ReadFault) or packet.is_corrupt:
                return None
            clock.correct(packet)
            if not is_shown(packet, video.codec):
                continue
            if packet.pts is None:
                return None
            found.append(packet.pts)
            if packet.is_keyframe:
                keys.append(packet.pts)
    times = sorted(found)
    if len(set(times)) != len(times):
        return None
    return _Times([pts for pts in times if _within(pts, window)], sorted(keys))


def _within(pts: int, window: TimeWindow) -> bool:
    after = window.start_pts is None or pts >= window.start_pts
    return after and (window.end_pts is None or pts < window.end_pts)


def _compare(
    source: SourceInfo,
    found: _Video,
    expected: _Times | None,
    window: TimeWindow,
    sample: int | None,
) -> _Comparison:
    if sample is not None and expected and 0 < len(expected.shown) == len(found.times):
        comparison = _compare_packets(source, found, expected, window, sample)
        if comparison.largest_time_error <= _tolerance(found):
            return comparison
    # Packets tell nothing certain of damaged, raw or reordered sources: only decoding does.
    num_expected = None if expected is None else len(expected.shown)
    return _compare_frames(source, found, num_expected, window, sample)


def _compare_packets(
    source: SourceInfo, found: _Video, expected: _Times, window: TimeWindow, sample: int
) -> _Comparison:
    """Times by packets, pixels of some frames."""
    base = source.video.time_base
    shown = expected.shown
    comparison = _Comparison(_placing(source, found, shown[0], window))
    shift = comparison.placing.shift
    comparison.num_in = comparison.num_out = len(shown)
    comparison.first_in = shown[0] * base - shift
    for pts, time in zip(shown, found.times, strict=True):
        comparison.pair(pts * base - shift, time)
    chosen = spread(len(shown), sample)
    frames = _source_frames(source, [shown[n] for n in chosen], expected.keys)
    pictures = found.frames_at([found.times[n] for n in chosen])
    for frame, (_, picture) in zip(frames, pictures, strict=True):
        if frame is not None and picture is not None:
            _compare_pixels(comparison, source.video, frame, picture)
    return comparison


def _placing(source: SourceInfo, found: _Video, first_pts: int, window: TimeWindow) -> Placing:
    """How the output lies against its source: at zero or where the source begins, as it shows."""
    plans = plan_streams(source, CONTAINERS[found.kind])
    other = earliest(read_starts(source.path, source.video.index), plans)
    first = first_pts * source.video.time_base
    placings = [
        placing_of(source.path, source.video, first_pts, window, other, keep=keep)
        for keep in (False, True)
    ]
    begins = found.times[0] if found.times else Fraction(0)
    return min(placings, key=lambda placing: abs(first - placing.shift - begins))


def spread(length: int, number: int) -> list[int]:
    """At most `number` places of `length`, evenly, with the first and the last among them."""
    if number >= length:
        return list(range(length))
    if number == 1:
        return [length // 2]
    return sorted({round(n * (length - 1) / (number - 1)) for n in range(number)})


def _source_frames(
    source: SourceInfo, times: Sequence[int], keys: Sequence[int]
) -> Iterator[Frame | None]:
    """The frames of these rising times; None for one that is not found.

    A new decoder, which begins a keyframe early, is opened where that is less to decode.
    """
    decoder: Decoder | None = None
    frames: Iterator[Frame] = iter(())
    found: Frame | None = None
    try:
        for wanted in times:
            if found is None or num_between(keys, found.pts, wanted) > 1:
                if decoder is not None:
                    decoder.close()
                decoder = Decoder(source.path, source.video, _CONFIG, start_pts=wanted)
                frames, found = decoder.frames(), None
            if found is None or found.pts < wanted:
                found = next((f for f in frames if f.pts >= wanted), None)
            yield found if found is not None and found.pts == wanted else None
    finally:
        if decoder is not None:
            decoder.close()


def num_between(keys: Sequence[_Time], after: _Time, until: _Time) -> int:
    """How many of the rising `keys` lie behind `after`, up to `until`."""
    return bisect_right(keys, until) - bisect_right(keys, after)


def _compare_frames(
    source: SourceInfo,
    found: _Video,
    num_expected: int | None,
    window: TimeWindow,
    sample: int | None,
) -> _Comparison:
    """Both files decoded side by side.

    Frames pair in order. Where the output lacks some, or has too many, they pair by time, so that
    one missing frame is one problem and not one with each frame behind it.
    """
    if num_expected is None:
        num_expected = _count(source, window)
    by_order = num_expected == len(found.times)
    stride = 1 if sample is None else max(num_expected // max(sample, 1), 1)
    decoder = Decoder(source.path, source.video, _CONFIG)
    pictures = found.frames()
    comparison: _Comparison | None = None
    try:
        held: tuple[Fraction, VideoFrame] | None = None
        for frame in decoder.frames():
            if not _within(frame.pts, window):
                continue
            if comparison is None:
                placing = _placing(source, found, frame.pts, window)
                comparison = _Comparison(placing)
                comparison.first_in = frame.pts * frame.time_base - placing.shift
            comparison.num_in += 1
            wanted = frame.pts * frame.time_base - comparison.placing.shift
            half = max(frame.duration * frame.time_base / 2, _tolerance(found))
            while held is None or (not by_order and held[0] < wanted - half):
                held = next(pictures, None)
                if held is None:
                    break
                comparison.num_out += 1
            if held is None or (not by_order and held[0] > wanted + half):
                continue
            comparison.pair(wanted, held[0])
            if comparison.num_in % stride == 0 or stride == 1:
                _compare_pixels(comparison, source.video, frame, held[1])
            held = None
        if comparison is None:
            raise MediaError(sentence(source.path, "not one frame of its video can be decoded"))
        comparison.num_out += sum(1 for _ in pictures)
    finally:
        decoder.close()
    return comparison


def _count(source: SourceInfo, window: TimeWindow) -> int:
    decoder = Decoder(source.path, source.video, _CONFIG)
    try:
        return sum(_within(frame.pts, window) for frame in decoder.frames())
    finally:
        decoder.close()


def _compare_pixels(
    comparison: _Comparison, video: VideoInfo, frame: Frame, picture: VideoFrame
) -> None:
    """Frames that are described otherwise than the first, which the job fits, are not compared."""
    if (frame.width, frame.height, frame.layout) != (video.width, video.height, video.layout):
        return
    if frame.color != video.color or frame.sample_aspect_ratio is not None:
        return
    layout, planes = extract_planes(picture, with_alpha=video.layout.has_alpha)
    comparison.colors.add(frame, layout, planes)


def _tolerance(found: _Video) -> Fraction:
    """Half a tick of the output's clock: what rounding to it may cost."""
    return found.time_base / 2


def _receipt(
    source: SourceInfo,
    output: SourceInfo,
    found: _Video,
    comparison: _Comparison,
    window: TimeWindow,
    plan: OutputPlan | None,
) -> Receipt:
    kind = output_container(source, output)
    first_out = found.times[0] if found.times else Fraction(0)
    inventory = compare_streams(
        source,
        output,
        (comparison.first_in, first_out),
        count_packets(source.path, source.video.index, comparison.placing),
        count_packets(output.path, found.index, None),
        kind,
        found.index,
        None if plan is None else plan.streams,
    )
    before, now = picture_of_source(source), found.picture()
    description, losses = compare_pictures(before, now, found.codec)
    is_excerpt = window.start_pts is not None or window.end_pts is not None
    with open_source(source.path, MAX_PIXELS) as a, open_source(output.path, MAX_PIXELS) as b:
        chapters_in, chapters_out, chapter_problems = compare_chapters(a, b, is_excerpt)
    if kind.name == "webm":
        chapter_problems = []
    problems = [
        *_frame_problems(comparison, found),
        *inventory.problems,
        *chapter_problems,
        *description,
        *comparison.colors.problems(),
    ]
    clock = kind.clock or Fraction(0)
    if inventory.largest_offset_change > clock + _OFFSET_TOLERANCE:
        change = float(inventory.largest_offset_change) * 1000
        problems.append(f"an audio stream moved by {change:.1f} ms against the video")
    return Receipt(
        source=str(source.path),
        output=str(output.path),
        problems=problems,
        losses=[*inventory.losses, *losses],
        num_frames_in=comparison.num_in,
        num_frames_out=comparison.num_out,
        largest_time_error_seconds=float(comparison.largest_time_error),
        time_tolerance_seconds=float(_tolerance(found)),
        time_shift_seconds=float(comparison.placing.shift),
        largest_offset_change_seconds=float(inventory.largest_offset_change),
        num_chapters_in=chapters_in,
        num_chapters_out=chapters_out,
        streams=inventory.streams,
        video_in=before,
        video_out=now,
        color=comparison.colors.receipt(),
    )


def _frame_problems(comparison: _Comparison, found: _Video) -> list[str]:
    problems = []
    if comparison.num_out != comparison.num_in:
        problems.append(
            f"{comparison.num_out} frames are there, the source has {comparison.num_in}"
        )
    if comparison.largest_time_error > _tolerance(found):
        problems.append(
            f"a frame is shown {float(comparison.largest_time_error) * 1000:.3f} ms off, at "
            f"{float(comparison.worst_time):.3f} s"
        )
    return problems
