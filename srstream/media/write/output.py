"""Decides what a job writes: path, container, encoder, and what happens to every stream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from srstream.color import is_full_range
from srstream.config import JobConfig, StreamsConfig
from srstream.errors import RefusedError
from srstream.frame import ColorSpec, PlaneLayout
from srstream.media.animations.formats import animation_for
from srstream.media.animations.plan import HINT, plan_animation
from srstream.media.siting import siting_in, siting_note
from srstream.media.types import (
    HdrMetadata,
    OutputPlan,
    OutputVideo,
    SourceInfo,
    StreamPlan,
    Tried,
    VideoInfo,
)
from srstream.media.write.codecs import (
    HDR_KEEPERS,
    check_encoder,
    encoder_options,
)
from srstream.media.write.containers import (
    MKV,
    MP4,
    Container,
    canonical_codec,
    carried_codecs,
    check_carried,
    container_for,
    family_of,
    is_other_video,
    losses_of,
    plan_streams,
)
from srstream.media.write.encoder_choice import EncoderChoice, choose_encoder
from srstream.naming import marked

_MATRIX_OF_RGB, _LEFT = 1, 1
"""BT.709 and the usual place of chroma, for RGB that becomes YUV (ITU-T H.273)."""

TryStreams = Callable[[OutputVideo, Container, tuple[StreamPlan, ...]], Tried]
"""Tries an output with these streams; raises RefusedError if it cannot be made."""


def plan_output(
    source: SourceInfo,
    config: JobConfig,
    output: Path | None,
    output_size: tuple[int, int],
    *,
    on_gpu: bool = False,
    try_streams: TryStreams | None = None,
    unsuffixed: Path | None = None,
) -> OutputPlan:
    """Choose where the result goes and in what form.

    Args:
        output: as the user named it; None puts it next to the source.
        on_gpu: the network runs on a GPU; see `choose_encoder`.
        output_size: (width, height), rounded down to the output's chroma grid if needed.
        unsuffixed: the path without its suffix, if `output` is None.
        try_streams: see `srstream.media.write.trial`; None relies on the codec tables alone.

    Raises:
        RefusedError: the request cannot be fulfilled: no such container or encoder, a codec that
            the container cannot carry, a size that the encoder rejects.
    """
    animation = None if output is None else animation_for(output, source)
    if animation is not None and output is not None:
        return plan_animation(source, config, animation, output, output_size)
    named = None if output is None else container_for(output)
    choice = choose_encoder(source.video, config.encode, named, output_size, on_gpu=on_gpu)
    if named is not None:
        check_carried(choice.codec, named)
    video = _output_video(source, config, choice, output_size)
    check_encoder(video)
    if named is not None and not named.tells_of_itself:
        video = replace(video, display_matrix=None)
    streams_in = _StreamsIn(source, video, config.streams, try_streams)
    container, streams = _container(source, choice, named, streams_in)
    path = output or _default_path(source, config, container, unsuffixed)
    return OutputPlan(
        path=path,
        container=container.name,
        video=video,
        size=(video.width, video.height),
        streams=streams,
        losses=(
            *choice.losses,
            *losses_of(source, streams, container),
            *_untold(source, container),
            *_hdr_losses(source, choice),
        ),
        notes=(
            *choice.notes,
            *_siting_notes(source, video),
            *_notes(source, container, named, streams, streams_in),
        ),
    )


class _StreamsIn:
    """Plans a source's streams for different containers, and tries each container at most once."""

    def __init__(
        self,
        source: SourceInfo,
        video: OutputVideo,
        config: StreamsConfig,
        try_streams: TryStreams | None,
    ) -> None:
        self._source, self._video, self._config = source, video, config
        self._try = try_streams
        self._found: dict[str, tuple[StreamPlan, ...]] = {}

    def __call__(self, container: Container) -> tuple[StreamPlan, ...]:
        """Return the stream plans for `container`; raises RefusedError if the trial fails."""
        if container.name not in self._found:
            streams = plan_streams(self._source, container, self._config)
            if self._try is not None:
                streams = self._try(self._video, container, streams).streams
            self._found[container.name] = streams
        return self._found[container.name]


def _container(
    source: SourceInfo, choice: EncoderChoice, named: Container | None, streams_in: _StreamsIn
) -> tuple[Container, tuple[StreamPlan, ...]]:
    """Return the named container, or the source's family unless Matroska loses less."""
    if named is not None:
        return named, streams_in(named)
    first = family_of(source)
    here = _streams_if_taken(first, choice, streams_in)
    if here is not None and (first is MKV or _badness(here) == (0, 0)):
        return first, here
    if first is not MP4:
        there = _streams_if_taken(MP4, choice, streams_in)
        if there is not None and _badness(there) == (0, 0):
            return MP4, there
    check_carried(choice.codec, MKV)
    if here is None:
        return MKV, streams_in(MKV)
    try:
        there = streams_in(MKV)
    except RefusedError:
        return first, here
    return (MKV, there) if _badness(there) < _badness(here) else (first, here)


def _streams_if_taken(
    container: Container, choice: EncoderChoice, streams_in: _StreamsIn
) -> tuple[StreamPlan, ...] | None:
    """Return the stream plans for a container; None if it does not take the video."""
    if not _carries_video(choice, container):
        return None
    try:
        return streams_in(container)
    except RefusedError:
        return None


def _carries_video(choice: EncoderChoice, container: Container) -> bool:
    return canonical_codec(choice.codec) in carried_codecs(container)


def _badness(streams: tuple[StreamPlan, ...]) -> tuple[int, int]:
    """Return (streams left out, streams re-encoded); less is better."""
    dropped = sum(stream.action == "drop" for stream in streams)
    converted = sum(stream.action == "convert" and stream.type != "data" for stream in streams)
    return dropped, converted


def _output_video(
    source: SourceInfo, config: JobConfig, choice: EncoderChoice, size: tuple[int, int]
) -> OutputVideo:
    video = source.video
    hdr = video.hdr if choice.codec in HDR_KEEPERS else HdrMetadata()
    width, height = _on_chroma_grid(size, choice.layout, choice.pix_fmt)
    return OutputVideo(
        codec=choice.codec,
        pix_fmt=choice.pix_fmt,
        layout=choice.layout,
        width=width,
        height=height,
        color=_output_color(video, choice),
        time_base=video.time_base,
        frame_rate=video.frame_rate,
        sample_aspect_ratio=_output_aspect(source, (width, height)),
        options=encoder_options(choice.codec, choice.layout, config.encode, hdr),
        hdr=hdr,
        display_matrix=video.display_matrix,
    )


def _on_chroma_grid(size: tuple[int, int], layout: PlaneLayout, pix_fmt: str) -> tuple[int, int]:
    """Round `size` down to a multiple of the chroma subsampling, which encoders require."""
    step_w, step_h = 1 << layout.log2_chroma_w, 1 << layout.log2_chroma_h
    if layout.kind == "gray" and pix_fmt.startswith("yuv420"):
        step_w = step_h = 2
    width, height = size[0] // step_w * step_w, size[1] // step_h * step_h
    if width < 1 or height < 1:
        raise RefusedError(
            f"An output of {size[0]}x{size[1]} is too small for {pix_fmt}; use a larger --scale."
        )
    return width, height


def _output_color(video: VideoInfo, choice: EncoderChoice) -> ColorSpec:
    color, layout = video.color, choice.layout
    if layout.kind == "rgb":
        return ColorSpec(color.primaries, color.transfer, 0, True, 0)
    if video.layout.kind == "rgb" and layout.kind == "yuv":
        color = replace(color, matrix=_MATRIX_OF_RGB, full_range=False, chroma_location=_LEFT)
    codec, full_range = canonical_codec(choice.codec), is_full_range(color, video.layout)
    location = siting_in(codec, layout, color.chroma_location, full_range=full_range)
    return replace(color, chroma_location=location)


def _output_aspect(source: SourceInfo, size: tuple[int, int]) -> Fraction:
    """Return the source's pixel aspect; grid rounding changes a side by less than a pixel."""
    aspect = source.video.sample_aspect_ratio
    return aspect if aspect > 0 else Fraction(1)


def _default_path(
    source: SourceInfo, config: JobConfig, container: Container, unsuffixed: Path | None
) -> Path:
    """Return `input_4x.mp4` next to `input.mp4`; `_720p` if a height was requested."""
    suffix = source.path.suffix.lower()
    if suffix not in container.extensions:
        suffix = container.extensions[0]
    if unsuffixed is not None:
        return unsuffixed.with_name(unsuffixed.name + suffix)
    return marked(source.path, config.scaling, suffix)


def _untold(source: SourceInfo, container: Container) -> list[str]:
    """Return a sentence for each kind of file metadata that a container cannot store."""
    if container.tells_of_itself:
        return []
    losses = []
    if source.num_chapters:
        losses.append(
            f"The {source.num_chapters} chapters are left out: {container.label} has none."
        )
    if source.tags:
        names = ", ".join(source.tags)
        losses.append(f"The file's tags ({names}) are left out: {container.label} has none.")
    if source.video.display_matrix is not None:
        losses.append(
            f"The rotation by {source.video.rotation_degrees} degrees is left out: "
            f"{container.label} cannot store it."
        )
    return losses


def _hdr_losses(source: SourceInfo, choice: EncoderChoice) -> list[str]:
    video = source.video
    has_static = bool(video.hdr.mastering_display or video.hdr.content_light_level)
    if has_static and choice.codec not in HDR_KEEPERS:
        return [
            f"HDR mastering metadata is left out: {choice.codec} does not support it; libx265 does."
        ]
    return []


def _siting_notes(source: SourceInfo, video: OutputVideo) -> list[str]:
    if source.video.layout.kind != "yuv":
        return []
    before, now = source.video.color.chroma_location, video.color.chroma_location
    note = siting_note(canonical_codec(video.codec), video.layout, before, now)
    return [] if note is None else [note]


def _notes(
    source: SourceInfo,
    container: Container,
    named: Container | None,
    streams: tuple[StreamPlan, ...],
    streams_in: _StreamsIn,
) -> list[str]:
    notes = []
    family = family_of(source)
    if named is None and container is not family:
        try:
            here = streams_in(family)
        except RefusedError:
            here = ()
        missing = sorted({s.codec for s in here if s.action in ("drop", "convert")})
        what = ", ".join(missing) or "this video codec"
        notes.append(f"Written as {container.label} because {family.label} cannot carry {what}.")
    elif named is None and source.path.suffix.lower() not in container.extensions:
        what = source.path.suffix or "a raw stream"
        notes.append(f"Written as {container.label} instead of {what}.")
    unit = container.clock
    if unit is not None and (source.video.time_base / unit).denominator != 1:
        counts = "in milliseconds" if unit == Fraction(1, 1000) else f"in {unit} s"
        rounded = "1 ms" if unit == Fraction(1, 1000) else "that"
        notes.append(
            f"{container.label} counts {counts}: times are rounded to {rounded}; those of the "
            f"source are exact to {source.video.time_base} s."
        )
    if source.num_plays is not None:
        notes.append(HINT)
    notes += _other_videos(source, streams)
    for stream in streams:
        if stream.action == "convert" and stream.type == "subtitle":
            notes.append(f"Stream {stream.index} is converted to {stream.output_codec}.")
    return notes


def _other_videos(source: SourceInfo, streams: tuple[StreamPlan, ...]) -> list[str]:
    infos = {stream.index: stream for stream in source.streams}
    kept = [
        str(plan.index)
        for plan in streams
        if plan.action != "drop" and is_other_video(source, infos[plan.index])
    ]
    if not kept:
        return []
    what = f"Stream {kept[0]} is" if len(kept) == 1 else f"Streams {', '.join(kept)} are"
    video = "another video" if len(kept) == 1 else "other videos"
    note = f"{what} {video}, kept behind the enhanced one and not played by default"
    return [f"{note} (--other-video drop leaves such streams out)."]
