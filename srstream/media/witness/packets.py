"""Opens a file with plain settings and reads its packets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import av
from av.codec.context import CodecContext
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition, Stream
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from srstream.media.errors import libav_errors
from srstream.media.refused_formats import NAMING_FORMATS

MAX_FAULTS = 8
"""Consecutive failures after which reading ends; a job ends there, too."""

_FORMATS = ",".join(sorted(av.formats_available - NAMING_FORMATS))


def open_plain(path: Path) -> InputContainer:
    """Open a file, and no other file that it may refer to.

    Raises:
        MediaError, UsageError: the file cannot be read.
    """
    with libav_errors(path, "cannot be read as media"):
        return av.open(
            str(path.absolute()),
            metadata_errors="replace",
            options={
                "protocol_whitelist": "file",
                "format_whitelist": _FORMATS,
                "max_streams": "100000",
            },
        )


def packets_of(container: InputContainer, *streams: Stream) -> Iterator[Packet[Stream] | None]:
    """Yield packets in file order, None for a failed read; ends after `MAX_FAULTS` of those."""
    faults = 0
    while faults < MAX_FAULTS:
        try:
            for packet in container.demux(*streams):
                if packet.size:
                    faults = 0
                    yield packet
            return
        except av.FFmpegError as error:
            if not isinstance(error, BlockingIOError):
                faults += 1
                yield None


def plain_decoder(stream: VideoStream) -> VideoCodecContext:
    """Return the stream's decoder, on one thread; only libvpx decodes alpha in WebM."""
    context = stream.codec_context
    name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(context.codec.canonical_name, "")
    tags = {key.lower(): value for key, value in stream.metadata.items()}
    if name in av.codecs_available and tags.get("alpha_mode", "0").strip() not in ("", "0"):
        alpha = cast(VideoCodecContext, CodecContext.create(name, "r"))
        if context.extradata:
            alpha.extradata = context.extradata
        context = alpha
    context.thread_count = 1
    return context


def is_cover(stream: Stream) -> bool:
    """Return whether a video stream is a picture rather than the main video."""
    return bool(stream.disposition & (Disposition.attached_pic | Disposition.timed_thumbnails))


def has_times(container: InputContainer) -> bool:
    """Return whether the packets carry display times.

    Raw streams (AVFMT_NOTIMESTAMPS) do not, nor does AVI with H.264 or HEVC, which counts packets
    in decoding order.
    """
    if container.format.name == "avi":
        names = {s.codec_context.codec.canonical_name for s in container.streams.video}
        return not names & {"h264", "hevc"}
    return not container.format.flags & 0x80
