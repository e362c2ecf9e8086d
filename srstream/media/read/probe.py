"""Determines what a source is in well under a second: its streams, and its video in detail."""

from __future__ import annotations

import re
import struct
import time
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Stream
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from srstream.config import SourceConfig
from srstream.errors import MediaError, RefusedError
from srstream.frame import ColorSpec
from srstream.media.animations.header import WebpAnimation, num_plays, webp_animation
from srstream.media.color_tags import (
    chroma_location,
    frame_color,
    known_code,
    mastering_display,
)
from srstream.media.errors import refuse_giant, sentence
from srstream.media.layouts import has_transparent_palette, layout_of
from srstream.media.read.cropping import container_crop
from srstream.media.read.demux import (
    ReadFault,
    has_timestamps,
    has_webm_alpha,
    is_picture,
    open_decoder,
    open_source,
    read_packets,
)
from srstream.media.read.opacity import has_transparent_pixels, is_opaque, may_be_opaque
from srstream.media.read.scan import scan_packets as scan_packets
from srstream.media.side_data import side_data_of
from srstream.media.types import (
    AudioForm,
    HdrMetadata,
    SourceInfo,
    StreamInfo,
    StreamType,
    VideoInfo,
)
from srstream.media.write.tags import tags_of_content

NUM_FRAMES_LOOKED_AT = 6
SECONDS_LOOKED_AT = 0.5
NUM_PACKETS_LOOKED_AT = 300
MAX_FRAME_RATE = 1000


def probe(path: Path, config: SourceConfig, *, video_index: int | None = None) -> SourceInfo:
    """Return what is known of a source before its frames are decoded; only a handful are decoded.

    `video_index` selects the stream; without it, `pick_video` chooses.

    Raises:
        UsageError: the path is missing or a directory.
        RefusedError: it is larger or longer than `config` allows, or has more streams.
        MediaError: the file is not media, has no video, is encrypted, or its codec is unsupported.
    """
    with open_source(path, config.max_pixels, max_streams=config.max_streams) as container:
        webp = _webp(path)
        duration = _announced_seconds(container, webp)
        _refuse_long(path, duration, config)
        if video_index is None:
            stream = pick_video(path, container)
        else:
            (stream,) = (s for s in container.streams.video if s.index == video_index)
        context = stream.codec_context
        refuse_giant(path, context.width, context.height, config.max_pixels)
        looked = _look(path, container, stream, config)
        if _is_opaque(path, stream, looked, config):
            looked.has_alpha = False
        video = _video_info(container, stream, looked)
        streams = tuple(_stream_info(s) for s in container.streams)
        if webp is not None:  # libav reads it as an animated PNG
            video = replace(video, codec="webp")
            streams = tuple(replace(s, codec="webp") for s in streams)
        return SourceInfo(
            path=path,
            container=container.format.name if webp is None else "webp",
            size_bytes=path.stat().st_size,
            duration_seconds=duration,
            video=video,
            streams=streams,
            num_chapters=len(container.chapters()),
            warnings=tuple(_warnings(container, stream, video, looked)),
            tags=tuple(sorted(tags_of_content(container))),
            num_plays=num_plays(path),
            is_lossless_webp=webp is not None and webp.is_lossless,
        )


def pick_video(path: Path, container: InputContainer) -> VideoStream:
    """Return the video stream to enhance: libav's best one that is decodable and not a cover.

    Raises:
        MediaError: there is none.
    """
    videos = [s for s in container.streams.video if not is_picture(s)]
    if not videos:
        kinds = sorted({s.type for s in container.streams if not is_picture(s)})
        what = f"holds no video, only {' and '.join(kinds)}" if kinds else "holds no video"
        raise MediaError(sentence(path, what, advice="Give a file with a picture."))
    usable = [s for s in videos if s.codec_context is not None]
    if not usable:
        raise MediaError(
            sentence(
                path,
                "its video codec is not known to this FFmpeg",
                advice="Convert it to H.264 first.",
            )
        )
    best = container.streams.best("video")
    if isinstance(best, VideoStream) and best in usable:
        return best
    return max(usable, key=lambda s: (bool(s.disposition & 1), s.width * s.height))


def _is_opaque(path: Path, stream: VideoStream, looked: _Looked, config: SourceConfig) -> bool:
    """Return whether the alpha of an animation or a palette is present but never used."""
    if not looked.has_alpha or looked.is_transparent:
        return False
    if not may_be_opaque(looked.frame, stream.codec_context.codec.canonical_name):
        return False
    return is_opaque(path, stream.index, config.max_pixels)


@dataclass(slots=True)
class _Looked:
    """What the first decoded frames state."""

    frame: VideoFrame
    is_interlaced: bool = False
    hdr: HdrMetadata = field(default_factory=HdrMetadata)
    display_matrix: tuple[int, ...] | None = None
    rotation_degrees: int = 0
    chroma_location: int = 0
    has_alpha: bool = False
    is_transparent: bool = False
    """Whether a pixel is not opaque."""
    dynamic_hdr: set[str] = field(default_factory=set)


def _look(
    path: Path, container: InputContainer, stream: VideoStream, config: SourceConfig
) -> _Looked:
    """Decode the first few frames.

    Raises:
        MediaError: none of the first packets gave a frame.
    """
    context = open_decoder(stream, config.max_pixels)
    looked: _Looked | None = None
    num_frames = num_packets = 0
    fault: av.FFmpegError | None = None
    is_encrypted = context.codec_tag in ("encv", "drmi")
    # A file whose start is damaged gets more packets than one that already gave a frame.
    start = time.monotonic()
    for packet in read_packets(container, stream, deadline=start + 4 * SECONDS_LOOKED_AT):
        if isinstance(packet, ReadFault):
            fault = packet.error
            continue
        num_packets += 1
        if packet.has_sidedata("encryption_info"):
            # Encrypted bytes occasionally decode by chance, to a meaningless picture.
            raise MediaError(_undecodable(path, context, num_packets, fault, is_encrypted=True))
        try:
            frames = context.decode(packet)
        except av.FFmpegError as error:
            fault, frames = error, []
        for frame in frames:
            looked = looked or _first_look(frame)
            _look_at(looked, frame)
            num_frames += 1
        late = time.monotonic() - start > SECONDS_LOOKED_AT
        if num_frames >= NUM_FRAMES_LOOKED_AT or (looked is not None and late):
            break
        if num_packets >= NUM_PACKETS_LOOKED_AT:
            break
    if looked is None:
        looked = _flush_look(context)
    if looked is None:
        width, height = _announced_size(path, config)
        refuse_giant(path, width, height, config.max_pixels)
        raise MediaError(_undecodable(path, context, num_packets, fault, is_encrypted))
    refuse_giant(path, looked.frame.width, looked.frame.height, config.max_pixels)
    return looked


def _flush_look(context: VideoCodecContext) -> _Looked | None:
    """Return what a decoder still holds of a very short clip."""
    looked = None
    try:
        for frame in context.decode(None):
            looked = looked or _first_look(frame)
            _look_at(looked, frame)
    except av.FFmpegError:
        return looked
    return looked


def _announced_size(path: Path, config: SourceConfig) -> tuple[int, int]:
    """Return the size that libav found too large; (0, 0) if that was not the fault.

    libav only logs it, so the file is opened once more and the log is read.
    """
    level, skips_repeated = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)  # The last file may have been as large as this one.
    try:
        with av.logging.Capture() as logs, open_source(path, config.max_pixels) as container:
            stream = pick_video(path, container)
            context = open_decoder(stream, config.max_pixels)
            for packet in container.demux(stream):
                context.decode(packet)
                break
    except av.FFmpegError:
        pass
    finally:
        av.logging.set_level(level)
        av.logging.set_skip_repeated(skips_repeated)
    found = re.search(r"Picture size (\d+)x(\d+)", "".join(text for _, _, text in logs))
    return (int(found.group(1)), int(found.group(2))) if found else (0, 0)


def _undecodable(
    path: Path,
    context: VideoCodecContext,
    num_packets: int,
    fault: av.FFmpegError | None,
    is_encrypted: bool,
) -> str:
    if is_encrypted:
        return sentence(
            path, "its video is encrypted (DRM)", advice="srstream needs an unprotected file."
        )
    if not num_packets:
        return sentence(
            path,
            "holds no video data behind its header",
            error=fault,
            advice="Copy or record it again.",
        )
    return sentence(
        path,
        f"none of its first {num_packets} {context.codec.canonical_name} packets can be decoded",
        error=fault,
        advice="The file is damaged or encrypted; play it elsewhere to be sure.",
    )


def _first_look(frame: VideoFrame) -> _Looked:
    has_alpha = layout_of(frame.format.name).has_alpha
    return _Looked(frame=frame, chroma_location=chroma_location(frame), has_alpha=has_alpha)


def _look_at(looked: _Looked, frame: VideoFrame) -> None:
    looked.is_interlaced |= frame.interlaced_frame
    looked.has_alpha |= has_transparent_palette(frame)
    looked.is_transparent = looked.is_transparent or has_transparent_pixels(frame)
    for data in side_data_of(frame):
        kind = data.type
        if kind == SideDataType.DISPLAYMATRIX and looked.display_matrix is None:
            _take_matrix(looked, bytes(data), frame.rotation)
        elif kind == SideDataType.MASTERING_DISPLAY_METADATA:
            text = mastering_display(bytes(data))
            looked.hdr = HdrMetadata(text, looked.hdr.content_light_level)
        elif kind == SideDataType.CONTENT_LIGHT_LEVEL:
            light = struct.unpack_from("=2I", bytes(data))
            looked.hdr = HdrMetadata(looked.hdr.mastering_display, (light[0], light[1]))
        elif kind in (SideDataType.DOVI_RPU_BUFFER, SideDataType.DOVI_METADATA):
            looked.dynamic_hdr.add("Dolby Vision")
        elif kind == SideDataType.DYNAMIC_HDR_PLUS:
            looked.dynamic_hdr.add("HDR10+")


def _take_matrix(looked: _Looked, data: bytes, rotation: int) -> None:
    matrix = struct.unpack_from("=9i", data)
    identity = (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    a, b, c, d = matrix[0], matrix[1], matrix[3], matrix[4]
    if matrix != identity and a * d - b * c:
        looked.display_matrix = matrix
        looked.rotation_degrees = rotation


def _video_info(container: InputContainer, stream: VideoStream, looked: _Looked) -> VideoInfo:
    context, frame = stream.codec_context, looked.frame
    range_code = {1: False, 2: True}.get(int(context.color_range))
    header = ColorSpec(
        primaries=known_code(int(context.color_primaries), 2),
        transfer=known_code(int(context.color_trc), 2),
        matrix=2 if int(context.colorspace) == 3 else int(context.colorspace),
        full_range=range_code,
        chroma_location=looked.chroma_location,
    )
    rate = stream.average_rate or stream.guessed_rate or stream.base_rate
    if not has_timestamps(container) and 0 < (context.framerate or 0) <= MAX_FRAME_RATE:
        rate = context.framerate  # the stream's own rate; a raw demuxer assumes 25
    sar = stream.sample_aspect_ratio
    crop = container_crop(container, stream, frame.width, frame.height)
    width, height = crop.size_of(frame.width, frame.height)
    return VideoInfo(
        index=stream.index,
        codec=context.codec.canonical_name,
        pix_fmt=frame.format.name,
        width=width,
        height=height,
        layout=replace(layout_of(frame.format.name, with_alpha=True), has_alpha=looked.has_alpha),
        color=frame_color(frame, header),
        time_base=stream.time_base or Fraction(1, 90000),
        frame_rate=rate or None,
        sample_aspect_ratio=sar if sar else Fraction(1),
        rotation_degrees=looked.rotation_degrees,
        display_matrix=looked.display_matrix,
        is_interlaced=looked.is_interlaced,
        hdr=looked.hdr,
        bit_rate=context.bit_rate or None,
        crop=crop,
    )


def _webp(path: Path) -> WebpAnimation | None:
    with path.open("rb") as file:
        return webp_animation(file)


def _announced_seconds(container: InputContainer, webp: WebpAnimation | None) -> float | None:
    if webp is not None:
        return webp.duration_seconds
    return container.duration / av.time_base if container.duration else None


def _refuse_long(path: Path, duration_seconds: float | None, config: SourceConfig) -> None:
    limit, seconds = config.max_duration_seconds, duration_seconds or 0
    if limit is not None and seconds > limit:
        raise RefusedError(
            sentence(
                path,
                f"says that it lasts {seconds:.0f} s, more than the {limit:g} s that are allowed",
                advice="Raise source.max_duration_seconds, or cut it.",
            )
        )


def _stream_info(stream: Stream) -> StreamInfo:
    context = stream.codec_context
    kinds: dict[str, StreamType] = {
        "video": "video",
        "audio": "audio",
        "subtitle": "subtitle",
        "attachment": "attachment",
    }
    tags = {key.lower(): value for key, value in stream.metadata.items()}
    return StreamInfo(
        index=stream.index,
        type=kinds.get(stream.type, "data"),
        codec=context.codec.canonical_name if context is not None else "unknown",
        language=tags.get("language"),
        title=tags.get("title") or tags.get("filename"),
        is_attached_picture=is_picture(stream),
        detail=_detail(stream),
        audio=_audio_form(stream),
    )


def _audio_form(stream: Stream) -> AudioForm | None:
    if not isinstance(stream, AudioStream) or stream.codec_context is None:
        return None
    context = stream.codec_context
    if not context.sample_rate or not context.layout.nb_channels:
        return None
    sample_format = context.format.name if context.format is not None else ""
    return AudioForm(context.sample_rate, context.layout.name, sample_format)


def _detail(stream: Stream) -> str:
    if isinstance(stream, VideoStream) and stream.codec_context is not None:
        rate = stream.average_rate
        shown = f", {float(rate):.4g} fps" if rate else ""
        return f"{stream.width}x{stream.height}, {stream.pix_fmt or 'unknown format'}{shown}"
    if isinstance(stream, AudioStream) and stream.codec_context is not None:
        return f"{stream.codec_context.sample_rate} Hz, {stream.codec_context.layout.name}"
    return ""


def _warnings(
    container: InputContainer, stream: VideoStream, video: VideoInfo, looked: _Looked
) -> list[str]:
    found = []
    others = [s.index for s in container.streams.video if s.index != stream.index]
    others = [n for n in others if not is_picture(container.streams[n])]
    if others:
        found.append(
            f"The file has {len(others) + 1} video streams; number {stream.index} is enhanced."
        )
    if video.crop:
        frame = looked.frame
        found.append(
            f"The file shows {video.width}x{video.height} of its {frame.width}x{frame.height} "
            "pixels; what it hides is left out."
        )
    if video.is_interlaced:
        found.append("The video is interlaced; it is deinterlaced (bwdif) before it is enhanced.")
    for name in sorted(looked.dynamic_hdr):
        found.append(f"The video carries {name} metadata, which describes the small picture only.")
    if has_webm_alpha(stream) and not video.layout.has_alpha:
        found.append("The video's alpha cannot be decoded by this FFmpeg (it lacks libvpx).")
    return found
