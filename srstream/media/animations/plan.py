"""Plans an animated picture: its size, its frames, and what it cannot hold."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from srstream.color import is_full_range
from srstream.config import EncodeConfig, JobConfig
from srstream.frame import ColorSpec
from srstream.media.animations.formats import ANIMATIONS, AnimationFormat, check_side, slots
from srstream.media.animations.frames import turn_of
from srstream.media.output_checks import no_choice
from srstream.media.types import OutputPlan, OutputVideo, SourceInfo, StreamPlan, VideoInfo
from srstream.media.write.codecs import HDR_TRANSFERS, encoder_options
from srstream.media.write.containers import MKV, canonical_codec, losses_of
from srstream.media.write.encoder_choice import choose_encoder

HINT = "To keep it an animation, name an output that ends in .gif, .webp or .apng (-o)."

_LOSSLESS = EncodeConfig(codec="ffv1", chroma="keep")
"""How the segments are stored until all are done."""


def plan_animation(
    source: SourceInfo,
    config: JobConfig,
    form: AnimationFormat,
    path: Path,
    output_size: tuple[int, int],
) -> OutputPlan:
    """Plan an output that is an animated picture.

    Raises:
        RefusedError: its format cannot hold such a picture, or an option does not apply to it.
    """
    _check_options(config, form)
    video = source.video
    width, height = square_size(output_size, video)
    check_side(form, width, height)
    choice = choose_encoder(video, _LOSSLESS, MKV, output_size)
    streams = tuple(_stream_plan(source, stream.index, form) for stream in source.streams)
    output = OutputVideo(
        codec=choice.codec,
        pix_fmt=choice.pix_fmt,
        layout=choice.layout,
        width=width,
        height=height,
        color=_color(video),
        time_base=video.time_base,
        frame_rate=video.frame_rate,
        sample_aspect_ratio=Fraction(1),
        options=encoder_options(choice.codec, choice.layout, _LOSSLESS, video.hdr),
        display_matrix=video.display_matrix,
    )
    return OutputPlan(
        path=path,
        container=form.name,
        video=output,
        is_animation=True,
        size=(height, width) if turn_of(video.display_matrix)[0] == 0 else (width, height),
        streams=streams,
        losses=(*losses_of(source, streams, MKV), *_losses(source, form)),
        notes=_notes(source, form),
    )


def _color(video: VideoInfo) -> ColorSpec:
    color = video.color
    if video.layout.kind == "rgb":
        return ColorSpec(color.primaries, color.transfer, 0, True, 0)
    return replace(color, full_range=is_full_range(color, video.layout))


def with_thinning(plan: OutputPlan, pts: tuple[int, ...]) -> OutputPlan:
    """Return the plan of an animation that says how many of these frames come too fast for it."""
    form = ANIMATIONS.get(plan.container)
    if form is None or not pts:
        return plan
    num_kept = len(slots(form, pts, 0, plan.video.time_base))
    if num_kept == len(pts):
        return plan
    rate = f"{float(1 / (form.shortest * (form.clock or 1))):g}"
    loss = (
        f"{len(pts) - num_kept} of {len(pts)} frames are left out: {form.label} shows at most "
        f"{rate} in a second; the others keep their times."
    )
    return replace(plan, losses=(*plan.losses, loss))


def square_size(size: tuple[int, int], video: VideoInfo) -> tuple[int, int]:
    """Return the (width, height) that shows pixels of the video's shape as squares."""
    width, height = size
    aspect = video.sample_aspect_ratio
    if aspect > 1:
        return max(round(width * aspect), 1), height
    return (width, max(round(height / aspect), 1)) if 0 < aspect < 1 else size


def _check_options(config: JobConfig, form: AnimationFormat) -> None:
    for name, default in (("codec", "auto"), ("crf", None), ("preset", None)):
        if getattr(config.encode, name) != default:
            raise no_choice(name, form.label)


def _stream_plan(source: SourceInfo, index: int, form: AnimationFormat) -> StreamPlan:
    stream = source.streams[index]
    codec = canonical_codec(stream.codec)
    if index == source.video.index:
        why = "this is the video that is enhanced"
        return StreamPlan(index, stream.type, codec, "enhance", None, why)
    what = "has no sound" if stream.type == "audio" else "holds nothing but one video's pictures"
    return StreamPlan(index, stream.type, codec, "drop", None, f"{form.label} {what}")


def _losses(source: SourceInfo, form: AnimationFormat) -> list[str]:
    video = source.video
    losses = []
    if source.num_chapters:
        losses.append(f"The {source.num_chapters} chapters are left out: {form.label} has none.")
    if source.tags:
        losses.append(f"The file's tags ({', '.join(source.tags)}) are left out.")
    if video.layout.bits > 8:
        losses.append(f"{video.layout.bits} bits become 8: {form.label} is written with no more.")
    if video.color.transfer in HDR_TRANSFERS:
        losses.append("The picture will look pale: HDR is not converted, and nothing says it is.")
    if form.name == "gif":
        losses.append("Colors are reduced to 256 for all frames together, with dithering.")
        if video.layout.has_alpha and video.codec != "gif":
            losses.append("Half transparent pixels become opaque or clear.")
    return losses


def _notes(source: SourceInfo, form: AnimationFormat) -> tuple[str, ...]:
    notes = []
    video = source.video
    if form.clock is not None and (video.time_base / form.clock).denominator != 1:
        unit = "hundredths of a second" if form.clock == Fraction(1, 100) else "milliseconds"
        notes.append(
            f"{form.label} counts in {unit}: each time is rounded by itself, so that they do not "
            "drift."
        )
    if video.sample_aspect_ratio not in (0, 1):
        notes.append(f"Pixels become square: {form.label} knows no others.")
    if turn_of(video.display_matrix) != (1, 0, 0, 1):
        notes.append(f"The picture is turned upright: {form.label} cannot say that it is not.")
    if source.num_plays is None:
        notes.append("It repeats without end.")
    return tuple(notes)
