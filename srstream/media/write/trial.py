"""An output tried before the work: the real encoders, muxer and first packets, on a blank video.

What a container's table of codecs says and what its muxer does are two things: rates, layouts and
header data decide as well. So the beginning of the output is made for real, by the code that makes
the whole, and compared with the source as the receipt will do it. Streams that do not get through
are converted, or left out, which is said; what cannot be is refused here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
from av.container import InputContainer

from srstream.config import SourceConfig
from srstream.errors import DiskFullError, EncodeError, MediaError, RefusedError, SrstreamError
from srstream.frame import Frame
from srstream.media.errors import display_name, ffmpeg_text, sentence
from srstream.media.read.demux import ReadFault, is_picture, open_source, read_packets
from srstream.media.read.probe import probe
from srstream.media.types import (
    OutputPlan,
    OutputVideo,
    SegmentFile,
    SourceInfo,
    StreamInfo,
    StreamPlan,
    Tried,
    VideoInfo,
)
from srstream.media.write.audio import num_channels
from srstream.media.write.containers import MKV, TS, Container, canonical_codec, in_form, targets_of
from srstream.media.write.copies import Head, Taken
from srstream.media.write.encode import SegmentEncoder
from srstream.media.write.mux import assemble
from srstream.media.write.timeline import first_video_pts

MAX_PIXELS = 2**31 - 1
"""Outputs of our own may be as large as libav takes them."""

_SIDE = 256
"""Larger pictures are tried in this size: the encoder itself is opened in the real one before."""
_NUM_FRAMES = 3
_OFFSET_TOLERANCE = Fraction(1, 500)
_ASPECT_TOLERANCE = Fraction(1, 500)
_MPEG_LAYERS = {"mp1", "mp2", "mp3"}
"""MP4 has one number for them; only a decoder tells them apart."""

_LONG_HEAD = Head(2000, Fraction(10), num_packets_in_all=20_000, num_bytes=64 << 20, seconds=1.0)
_SILENT = "none of its first packets can be decoded"

_CONFIG = SourceConfig(max_pixels=MAX_PIXELS, salvage=True)


def try_output(
    path: Path,
    source: SourceInfo,
    video: OutputVideo,
    container: Container,
    streams: tuple[StreamPlan, ...],
    folder: Path | None = None,
) -> Tried:
    """Make the beginning of an output, and what must be changed until it can be made.

    Args:
        path: where the source is read; `source.path` is what the user calls it.
        streams: what is to become of the source's streams.
        folder: for the scratch files; None: the system's own.

    Raises:
        RefusedError: it cannot be made, whatever becomes of the streams.
        MediaError: the source cannot be read.
    """
    with _scratch(folder) as scratch:
        trial = _Trial(path, source, video, container, scratch)
        fault = trial.fault(streams)
        if fault is None:
            return Tried(streams)
        return trial.mended(streams, fault)


@contextmanager
def _scratch(folder: Path | None) -> Iterator[Path]:
    """A folder that is gone afterwards."""
    try:
        made = tempfile.TemporaryDirectory(prefix="trial-", dir=folder)
    except OSError as error:
        where = folder or Path(tempfile.gettempdir())
        raise RefusedError(
            f"{where}: no output can be tried there ({error.strerror}); make room, or set TMPDIR."
        ) from error
    with made as name:
        yield Path(name)


class _Trial:
    def __init__(
        self,
        path: Path,
        source: SourceInfo,
        video: OutputVideo,
        container: Container,
        folder: Path,
    ) -> None:
        self._path, self._source = path, replace(source, path=path)
        self._name = display_name(source.path)
        self._container, self._folder = container, folder
        self._video = replace(video, width=min(video.width, _SIDE), height=min(video.height, _SIDE))
        self._infos = {stream.index: stream for stream in source.streams}
        self._segment = self._blank_segment()

    def fault(self, streams: Sequence[StreamPlan]) -> str | None:
        """What is wrong with an output of these streams; None if nothing is."""
        found = self._fault(streams, Head())
        # A recording may begin with sound that cannot be decoded, and go on with more.
        return self._fault(streams, _LONG_HEAD) if found == _SILENT else found

    def _fault(self, streams: Sequence[StreamPlan], head: Head) -> str | None:
        plan = OutputPlan(
            path=self._folder / "trial",
            container=self._container.name,
            video=self._video,
            streams=tuple(streams),
            keeps_start=True,  # When the file begins is known when all of it has been read.
        )
        try:
            taken = assemble(self._path, self._source, plan, [self._segment], plan.path, head=head)
            problems = self._problems(plan, taken)
        except DiskFullError:
            raise
        except EncodeError as error:
            cause = error.__cause__
            return f"FFmpeg: {ffmpeg_text(cause)}" if cause is not None else _without_file(error)
        return problems[0] if problems else None

    def mended(self, streams: tuple[StreamPlan, ...], fault: str) -> Tried:
        """The streams with those changed that do not get through by themselves."""
        alone = [plan for plan in streams if plan.action == "enhance"]
        video_fault = self.fault(alone)
        if video_fault is not None:
            raise RefusedError(
                f"{self._name}: {self._container.label} does not take this video from "
                f"{self._video.codec} ({video_fault}); {self._advice()}."
            )
        kept, changed = [], []
        for plan in streams:
            found = plan
            if plan.action in ("copy", "convert") and plan.type != "data":
                found = self._first_that_works(alone, plan)
            kept.append(found)
            if found != plan:
                changed.append(plan.index)
        last = self.fault(kept)
        if last is not None:
            raise RefusedError(
                f"{self._name}: {self._container.label} does not take its streams together "
                f"({last}); {self._advice()}."
            )
        return Tried(tuple(kept), tuple(changed))

    def _first_that_works(self, video: list[StreamPlan], plan: StreamPlan) -> StreamPlan:
        """A stream as planned, or converted, or left out with the reason."""
        fault = self.fault([*video, plan])
        if fault is None:
            return plan
        reason = plan.reason or f"{self._container.label} does not take it as it is ({fault})"
        for other in self._conversions(plan, reason):
            if self.fault([*video, other]) is None:
                return other
        where = "" if self._container is MKV else "; Matroska may"
        reason = f"{self._container.label} does not take it ({fault}){where}"
        return replace(plan, action="drop", output_codec=None, form=None, reason=reason)

    def _conversions(self, plan: StreamPlan, reason: str) -> Iterator[StreamPlan]:
        info = self._infos[plan.index]
        for target in targets_of(plan.type, plan.codec, self._container):
            if target == plan.output_codec and plan.action == "convert":
                continue
            made = replace(plan, action="convert", output_codec=target, reason=reason, form=None)
            if info.audio is not None:
                made = in_form(made, info)
            if made.action == "convert":
                yield made

    def _advice(self) -> str:
        if self._container is MKV:
            return "choose another --codec, or another container with -o"
        return "name an output that ends in .mkv, or choose another --codec"

    def _blank_segment(self) -> SegmentFile:
        """A few gray frames at the source's first times, from the real encoder.

        Raises:
            RefusedError: it does not encode them.
        """
        video = self._video
        planes = tuple(
            np.full(
                video.layout.plane_shape(index, video.width, video.height),
                1 << (video.layout.bits - 1),
                video.layout.dtype,
            )
            for index in range(video.layout.num_planes)
        )
        first = first_video_pts(self._path, self._source.video)
        step = max(round(1 / ((video.frame_rate or 25) * video.time_base)), 1)
        encoder = None
        try:
            encoder = SegmentEncoder(self._folder / "trial.part", video, 1, True)
            for number in range(_NUM_FRAMES):
                moment = first + number * step
                encoder.push(
                    Frame(planes, video.layout, video.width, video.height, moment, video.time_base)
                )
            return encoder.close()
        except EncodeError as error:
            cause = error.__cause__
            why = f"FFmpeg: {ffmpeg_text(cause)}" if cause is not None else _without_file(error)
            raise RefusedError(
                f"{self._name}: {video.codec} does not encode this video ({why}); choose another "
                "--codec."
            ) from error

    def _problems(self, plan: OutputPlan, taken: dict[int, Taken]) -> list[str]:
        """What is not in the beginning of an output as it was planned."""
        with open_source(plan.path, MAX_PIXELS) as container:
            index = _enhanced_index(self._source, container)
        output = probe(plan.path, _CONFIG, video_index=index)
        found = _seconds_of_first(plan.path)
        if self._container is TS and index in found:
            # It begins later, to give decoders time.
            begins = self._segment.pts[0] * self._video.time_base
            delay = (found[index].first or Fraction(0)) - max(begins, Fraction(0))
            found = {
                n: replace(t, first=(t.first or Fraction(0)) - delay) for n, t in found.items()
            }
        problems = self._video_problems(output.video, plan.video)
        for kind in ("video", "audio", "subtitle"):
            wanted = [s for s in plan.streams if self._is_expected(s, kind, taken)]
            there = [
                s
                for s in output.streams
                if s.type == kind and s.index != index and not s.is_attached_picture
            ]
            if len(there) < len(wanted) and any(s.action == "convert" for s in wanted):
                problems.append(_SILENT)
                continue
            if len(there) != len(wanted):
                problems.append(f"{len(there)} of {len(wanted)} {kind} streams are written")
                continue
            for stream, partner in zip(wanted, there, strict=True):
                problems += self._stream_problems(stream, partner, taken, found)
        return problems

    def _is_expected(self, plan: StreamPlan, kind: str, taken: dict[int, Taken]) -> bool:
        """Return whether a stream must be in the trial; MP4 leaves out tracks without a packet."""
        info = self._infos[plan.index]
        if plan.type != kind or plan.action not in ("copy", "convert") or info.is_attached_picture:
            return False
        return plan.index in taken or self._container.clock is not None

    def _stream_problems(
        self,
        plan: StreamPlan,
        partner: StreamInfo,
        taken: dict[int, Taken],
        found: dict[int, Taken],
    ) -> list[str]:
        wanted = canonical_codec(plan.output_codec or plan.codec)
        now = canonical_codec(partner.codec)
        if wanted != now and not {wanted, now} <= _MPEG_LAYERS:
            return [f"it becomes {now}"]
        before, after = taken.get(plan.index, Taken()), found.get(partner.index, Taken())
        if not before.num_packets:
            return []
        if not after.num_packets and plan.action == "convert":
            return [_SILENT]
        is_less = after.num_packets < before.num_packets - self._container.from_zero
        if plan.codec.startswith("pcm_"):  # MOV joins packets of PCM that lie side by side
            is_less = after.num_bytes < before.num_bytes
        if not after.num_packets or (plan.action == "copy" and is_less):
            return [f"it holds {after.num_packets} of {before.num_packets} packets"]
        if plan.action == "copy" and plan.type == "audio":
            assert before.first is not None and after.first is not None
            # Matroska may lack what lies before zero.
            starts = before.first, max(before.first, Fraction(0))
            moved = min((after.first - start for start in starts), key=abs)
            if abs(moved) > _OFFSET_TOLERANCE:
                return [f"it is moved by {float(moved) * 1000:.0f} ms"]
        if plan.form is not None and partner.audio is not None:
            is_other = num_channels(partner.audio.layout) != num_channels(plan.form.layout)
            # Opus says 48 kHz whatever it was encoded from.
            if is_other or (now != "opus" and partner.audio.rate != plan.form.rate):
                return [f"it becomes {partner.audio.rate} Hz, {partner.audio.layout}"]
        return []

    def _video_problems(self, now: VideoInfo, wanted: OutputVideo) -> list[str]:
        """What the container or the codec does not say of the picture."""
        problems = []
        if abs(now.sample_aspect_ratio / wanted.sample_aspect_ratio - 1) > _ASPECT_TOLERANCE:
            problems.append(f"the pixel aspect becomes {now.sample_aspect_ratio}")
        if now.display_matrix is None and wanted.display_matrix is not None:
            problems.append("the rotation is lost")
        return problems


def _enhanced_index(source: SourceInfo, output: InputContainer) -> int:
    """The number of the enhanced video in the output: as many videos lie before it."""
    before = [
        s
        for s in source.streams
        if s.type == "video" and not s.is_attached_picture and s.index < source.video.index
    ]
    videos = [s for s in output.streams.video if not is_picture(s)]
    if not videos:
        raise MediaError(sentence(source.path, "the output holds no video"))
    # A video before it may not be carried by the output's container.
    return videos[min(len(before), len(videos) - 1)].index


def _seconds_of_first(path: Path) -> dict[int, Taken]:
    """By stream, the number of packets in a small file, and the first one's time."""
    found: dict[int, Taken] = {}
    with open_source(path, MAX_PIXELS) as container:
        for packet in read_packets(container):
            if isinstance(packet, ReadFault):
                continue
            stamp = packet.pts if packet.pts is not None else packet.dts or 0
            taken = found.setdefault(packet.stream_index, Taken())
            taken.take(stamp * Fraction(packet.time_base), packet.size)
    return found


def _without_file(error: SrstreamError) -> str:
    """An error's text without the name of a scratch file in front."""
    return str(error).split(": ", 1)[-1].rstrip(".")
