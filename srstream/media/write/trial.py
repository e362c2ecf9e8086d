"""Tries an output before the job starts: real encoder and muxer, a blank video, first packets.

A container's codec table does not settle what its muxer accepts: rates, layouts and header data
matter as well. So the code that makes the whole output makes its beginning, which is compared with
the source like the receipt does. Streams that fail are converted or left out, which is announced;
an output that cannot be made is refused here.
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
from srstream.sqlite import is_disk_full

MAX_PIXELS = 2**31 - 1
"""Pixel limit for srstream's own outputs: the largest that libav accepts."""

_SIDE = 256
"""Larger pictures are tried at this size; the encoder was opened at the real size before."""
_NUM_FRAMES = 3
_OFFSET_TOLERANCE = Fraction(1, 500)
_ASPECT_TOLERANCE = Fraction(1, 500)
_MPEG_LAYERS = {"mp1", "mp2", "mp3"}
"""MPEG audio layers share one number in MP4; only a decoder tells them apart."""

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
    """Make the beginning of an output, and change the streams until that succeeds.

    Args:
        path: where the source is read; `source.path` is what the user calls it.
        streams: what is planned for the source's streams.
        folder: for the scratch files; None uses the system's own.

    Raises:
        RefusedError: the output cannot be made, whatever happens to the streams.
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
    """Yield a temporary folder and remove it afterwards."""
    try:
        made = tempfile.TemporaryDirectory(prefix="trial-", dir=folder)
    except OSError as error:
        where = folder or Path(tempfile.gettempdir())
        kind = DiskFullError if is_disk_full(error) else RefusedError
        raise kind(
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
        """Return what is wrong with an output of these streams; None if nothing is."""
        found = self._fault(streams, Head())
        # A recording may begin with audio that cannot be decoded, followed by audio that can.
        return self._fault(streams, _LONG_HEAD) if found == _SILENT else found

    def _fault(self, streams: Sequence[StreamPlan], head: Head) -> str | None:
        plan = OutputPlan(
            path=self._folder / "trial",
            container=self._container.name,
            video=self._video,
            streams=tuple(streams),
            keeps_start=True,  # The start is only known once the whole file has been read.
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
        """Return the streams, changing those that do not succeed unchanged."""
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
        """Return a stream as planned, or converted, or left out with the reason."""
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
        """Encode a few gray frames at the source's first times with the real encoder.

        Raises:
            RefusedError: the encoder fails.
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
        """Return how the beginning of an output differs from the plan."""
        with open_source(plan.path, MAX_PIXELS) as container:
            index = _enhanced_index(self._source.path, container)
        output = probe(plan.path, _CONFIG, video_index=index)
        found = _seconds_of_first(plan.path)
        if self._container is TS and index in found:
            # It begins later, to give decoders time to fill their buffers.
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
        """Return whether a stream must be in the trial; MP4 omits tracks without a packet."""
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
        if plan.codec.startswith("pcm_"):  # MOV joins adjacent packets of PCM
            is_less = after.num_bytes < before.num_bytes
        if not after.num_packets or (plan.action == "copy" and is_less):
            return [f"it holds {after.num_packets} of {before.num_packets} packets"]
        if plan.action == "copy" and plan.type == "audio":
            assert before.first is not None and after.first is not None
            # Matroska may lack packets before zero.
            starts = before.first, max(before.first, Fraction(0))
            moved = min((after.first - start for start in starts), key=abs)
            if abs(moved) > _OFFSET_TOLERANCE:
                return [f"it is moved by {float(moved) * 1000:.0f} ms"]
        if plan.form is not None and partner.audio is not None:
            is_other = num_channels(partner.audio.layout) != num_channels(plan.form.layout)
            # Opus states 48 kHz whatever it was encoded from.
            if is_other or (now != "opus" and partner.audio.rate != plan.form.rate):
                return [f"it becomes {partner.audio.rate} Hz, {partner.audio.layout}"]
        return []

    def _video_problems(self, now: VideoInfo, wanted: OutputVideo) -> list[str]:
        """Return what the container or the codec does not preserve about the picture."""
        problems = []
        if abs(now.sample_aspect_ratio / wanted.sample_aspect_ratio - 1) > _ASPECT_TOLERANCE:
            problems.append(f"the pixel aspect becomes {now.sample_aspect_ratio}")
        if now.display_matrix is None and wanted.display_matrix is not None:
            problems.append("the rotation is lost")
        return problems


def _enhanced_index(source: Path, output: InputContainer) -> int:
    """Return the number of the enhanced video in the output, where it is the first video."""
    videos = [s for s in output.streams.video if not is_picture(s)]
    if not videos:
        raise MediaError(sentence(source, "the output holds no video"))
    return videos[0].index


def _seconds_of_first(path: Path) -> dict[int, Taken]:
    """Return, by stream, statistics of a small file's packets with the first one's time."""
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
    """Return an error's text without the name of a scratch file in front."""
    return str(error).split(": ", 1)[-1].rstrip(".")
