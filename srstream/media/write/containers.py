"""Defines what each output container carries, and what happens to streams that it cannot."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
from av.codec import Codec

from srstream.config import StreamsConfig
from srstream.media.languages import QUICKTIME_LANGUAGES, spelled_language
from srstream.media.output_checks import check_ending, not_carried
from srstream.media.types import Action, SourceInfo, StreamInfo, StreamPlan
from srstream.media.write.audio import encoder_form, is_deep, num_channels


@dataclass(frozen=True, slots=True)
class Container:
    """An output container.

    `clock` is the unit to which times are rounded, None if any time is exact. The conversion
    targets are None where a stream of that kind is left out rather than converted. `from_zero`
    means that times cannot be negative, `tells_of_itself` that it holds tags, chapters and the
    rotation.
    """

    name: str
    label: str
    muxer: str
    extensions: tuple[str, ...]
    clock: Fraction | None
    audio_target: str | None
    text_target: str | None
    attachments: bool
    from_zero: bool = False
    tells_of_itself: bool = True


MP4 = Container("mp4", "MP4", "mp4", (".mp4", ".m4v"), None, "aac", "mov_text", False)
MOV = Container("mov", "MOV", "mov", (".mov", ".qt"), None, "aac", "mov_text", False)
MKV = Container(
    "mkv", "Matroska", "matroska", (".mkv",), Fraction(1, 1000), "flac", "subrip", True, True
)
WEBM = Container(
    "webm", "WebM", "webm", (".webm",), Fraction(1, 1000), "libopus", "webvtt", False, True
)
TS = Container(
    "ts", "MPEG-TS", "mpegts", (".ts", ".m2t", ".m2ts", ".mts"), Fraction(1, 90000), "aac", None,
    attachments=False, tells_of_itself=False,
)  # fmt: skip
CONTAINERS = {container.name: container for container in (MP4, MOV, MKV, WEBM, TS)}

VIDEO_SUFFIXES = frozenset(
    {
        *(extension for container in CONTAINERS.values() for extension in container.extensions),
        *(".avi", ".flv", ".wmv", ".asf", ".ts", ".m2ts", ".mts", ".mpg", ".mpeg", ".vob", ".ogv"),
        *(".3gp", ".mxf", ".y4m", ".gif", ".apng", ".h264", ".hevc", ".ivf", ".dv", ".rm"),
    }
)
"""File name extensions of video, including those that srstream does not write."""

FAMILIES = {"mov": MP4, "mp4": MP4, "3gp": MP4, "matroska": MKV, "webm": MKV}
"""Default output container by any of libav's names of the input's; MP4 for all others."""

PICTURE_CODECS: dict[str, set[str]] = {
    "mp4": {"mjpeg", "png", "bmp"}, "mov": set(), "webm": set(), "ts": set(),
}  # fmt: skip
"""Codecs of cover pictures; Matroska takes all of them, as attachments."""

_MORE_AUDIO_TARGETS = {
    "mp4": ("alac", "ac3"),
    "mov": ("pcm_s16le", "alac"),
    "mkv": ("pcm_s16le", "libopus"),
    "ts": ("mp2", "ac3"),
}
"""Conversions to try where a container's usual one fails."""

TEXT_CODECS = frozenset({"subrip", "mov_text", "ass", "ssa", "webvtt", "text"})
"""Subtitle formats that `srstream.media.write.convert` can convert into each other."""

# The muxer takes these, but few players do (vorbis, ffv1) or it calls them experimental (truehd).
_NOT_IN_PRACTICE = {
    "mp4": {"vorbis", "truehd", "qcelp", "evrc", "mp4als", "ffv1"},
    "mov": {"truehd"},
}


_NOT_LISTED = {
    "mpegts": frozenset(
        {
            *("mpeg1video", "mpeg2video", "mpeg4", "h264", "hevc", "vvc"),
            *("mp1", "mp2", "mp3", "aac", "aac_latm", "ac3", "eac3", "dts", "opus", "s302m"),
            *("dvb_subtitle", "dvb_teletext", "arib_caption"),
        }
    )
}
"""The codecs of a muxer for which libav lists only the default ones: those that the file can
identify (ISO/IEC 13818-1, ETSI EN 300 468)."""

# The muxer lists these but then refuses to write their header.
_ON_PAPER = {"mov": {"av1", "flac", "opus", "vp8", "vp9"}, "matroska": {"rv10", "rv20"}}


def container_for(path: Path) -> Container:
    """Return the container that an output's extension names.

    Raises:
        RefusedError: srstream writes no such container.
    """
    by_extension = {
        extension: container
        for container in CONTAINERS.values()
        for extension in container.extensions
    }
    check_ending(path, by_extension)
    return by_extension[path.suffix.lower()]


def family_of(source: SourceInfo) -> Container:
    """Return the container nearest to the input's own that srstream writes."""
    names = source.container.split(",")
    if "mov" in names and source.path.suffix.lower() in MOV.extensions:
        return MOV
    return next((FAMILIES[name] for name in names if name in FAMILIES), MP4)


@lru_cache(maxsize=1024)
def canonical_codec(name: str) -> str:
    """Return the codec's own name for that of an encoder or decoder (libx264 is h264)."""
    for mode in ("r", "w"):
        try:
            return Codec(name, mode).canonical_name
        except ValueError:
            continue
    return name


@lru_cache(maxsize=8)
def carried_codecs(container: Container) -> frozenset[str]:
    """Return canonical names of what the muxer takes, except what players would not play."""
    return muxed_codecs(container.muxer) - _NOT_IN_PRACTICE.get(container.name, set())


@lru_cache(maxsize=8)
def muxed_codecs(muxer: str) -> frozenset[str]:
    """Return canonical names of everything that one of libav's muxers takes."""
    if muxer in _NOT_LISTED:
        return _NOT_LISTED[muxer]
    # Nothing is written before the header is, so no file is created.
    container = av.open(os.devnull, "w", format=muxer)
    listed = frozenset(canonical_codec(name) for name in container.supported_codecs)
    return listed - _ON_PAPER.get(muxer, set())


def plan_streams(
    source: SourceInfo, container: Container, config: StreamsConfig
) -> tuple[StreamPlan, ...]:
    """Plan what becomes of each stream of the source in `container`, in the source's order."""
    return tuple(
        StreamPlan(stream.index, "video", canonical_codec(stream.codec), "drop", None, _UNWANTED)
        if config.other_video == "drop" and is_other_video(source, stream)
        else _plan_stream(source, stream, container)
        for stream in source.streams
    )


def is_other_video(source: SourceInfo, stream: StreamInfo) -> bool:
    """Return whether a stream is a video beside the enhanced one, and no cover picture."""
    is_video = stream.type == "video" and not stream.is_attached_picture
    return is_video and stream.index != source.video.index


_UNWANTED = "--other-video drop was given"


def targets_of(kind: str, codec: str, container: Container) -> tuple[str, ...]:
    """Return the encoders that a stream may be converted with, the preferred one first."""
    if kind == "audio":
        first = (container.audio_target,) if container.audio_target else ()
        return (*first, *_MORE_AUDIO_TARGETS.get(container.name, ()))
    if kind == "subtitle" and codec in TEXT_CODECS and container.text_target:
        return (container.text_target,)
    return ()


def losses_of(source: SourceInfo, plans: Iterable[StreamPlan], container: Container) -> list[str]:
    """Return one sentence for each stream that is left out or loses something."""
    infos = {stream.index: stream for stream in source.streams}
    return [
        f"{describe(infos[plan.index])} is left out: {plan.reason}."
        if plan.action == "drop"
        else f"{describe(infos[plan.index])} becomes {plan.output_codec}: {plan.reason}."
        for plan in plans
        if plan.action == "drop" or _is_lossy(plan)
    ] + [
        f"{describe(infos[plan.index])}: MOV cannot store its language."
        for plan in plans
        if container is MOV and plan.action != "drop" and not _mov_says(infos[plan.index])
    ]


def describe(stream: StreamInfo) -> str:
    """Return a stream's name, like `Stream 2 (subtitle, subrip, ger)`."""
    parts = [stream.type, stream.codec, stream.language]
    return f"Stream {stream.index} ({', '.join(part for part in parts if part)})"


def _is_lossy(plan: StreamPlan) -> bool:
    """Return whether a conversion loses more than insignificant text markup."""
    if plan.action != "convert":
        return False
    return plan.type == "audio" or plan.codec in ("ass", "ssa")


def _plan_stream(source: SourceInfo, stream: StreamInfo, container: Container) -> StreamPlan:
    codec = canonical_codec(stream.codec)
    action, target, reason = _decide(source, stream, codec, container)
    plan = StreamPlan(stream.index, stream.type, codec, action, target, reason)
    return in_form(plan, stream) if action == "convert" and stream.audio else plan


def in_form(plan: StreamPlan, stream: StreamInfo) -> StreamPlan:
    """Return the plan of an audio stream to convert, with the format that its encoder takes.

    The stream is left out if the encoder takes no format at all, or this FFmpeg cannot decode it.
    """
    audio = stream.audio
    assert audio is not None and plan.output_codec is not None
    deep = is_deep(plan.codec, audio.sample_format)
    form = encoder_form(plan.output_codec, audio.rate, audio.layout, deep)
    if form is None or not _can_decode(stream.codec):
        reason = f"{plan.reason}, and it cannot be converted to {plan.output_codec}"
        return replace(plan, action="drop", output_codec=None, reason=reason)
    changes = []
    if form.rate != audio.rate:
        changes.append(f"{audio.rate} Hz become {form.rate} Hz")
    if num_channels(form.layout) != num_channels(audio.layout):
        changes.append(f"{audio.layout} is mixed to {form.layout}")
    return replace(plan, form=form, reason="; ".join([plan.reason, *changes]))


@lru_cache(maxsize=256)
def _can_decode(codec: str) -> bool:
    try:
        Codec(codec, "r")
    except ValueError:
        return False
    return True


def _decide(
    source: SourceInfo, stream: StreamInfo, codec: str, container: Container
) -> tuple[Action, str | None, str]:
    """Return the action, the output codec and the reason."""
    label = container.label
    if stream.index == source.video.index:
        return "enhance", None, "this is the video that is enhanced"
    if stream.type == "attachment":
        if container.attachments:
            return "copy", codec, ""
        return "drop", None, f"{label} has no attachments, Matroska has"
    if stream.type == "data":
        if codec in ("bin_data", "unknown", "text") and source.num_chapters and _is_mov(source):
            return "convert", None, "it holds the chapters' titles and is regenerated from them"
        return "drop", None, f"{label} cannot carry this kind of data"
    if stream.is_attached_picture:
        if codec in PICTURE_CODECS.get(container.name, {codec}):
            return "copy", codec, ""
        return "drop", None, f"{label} has no cover pictures of this kind"
    if codec.startswith("pcm_") and container.name == "mp4" and not _is_mov(source):
        # The MP4 muxer needs a channel layout, which PCM in other containers does not have.
        return "convert", container.audio_target, "MP4 cannot carry PCM of this source; MOV can"
    if codec in carried_codecs(container):
        return "copy", codec, ""
    if codec == "unknown":
        return "drop", None, "this FFmpeg does not know its codec"
    if stream.type == "audio" and container.audio_target:
        why = f"{label} cannot carry {codec}"
        return "convert", container.audio_target, why
    if stream.type == "subtitle" and codec in TEXT_CODECS and container.text_target:
        lost = ", and the styling is lost" if codec in ("ass", "ssa") else ""
        return "convert", container.text_target, f"{label} cannot carry {codec}{lost}"
    where = "; Matroska can" if codec in carried_codecs(MKV) else ""
    return "drop", None, f"{label} cannot carry {codec}{where}"


def _mov_says(stream: StreamInfo) -> bool:
    language = spelled_language(stream.language)
    return language == "und" or language in QUICKTIME_LANGUAGES


def _is_mov(source: SourceInfo) -> bool:
    return "mov" in source.container.split(",")


def check_carried(codec: str, container: Container) -> None:
    """Check that `container` takes the encoder's codec.

    Raises:
        RefusedError: it does not.
    """
    if canonical_codec(codec) not in carried_codecs(container):
        fits_matroska = canonical_codec(codec) in carried_codecs(MKV)
        raise not_carried(container.label, canonical_codec(codec), fits_matroska=fits_matroska)
