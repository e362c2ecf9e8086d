"""Estimates how hard a source was compressed, on the scale of x264's quantizer (0 to 51).

Where libav exports what the decoder read (`AVVideoEncParams`: H.264, MPEG-1, -2 and -4, VP9), the
estimate is the mean over the blocks of a few dozen frames. For other codecs it is derived from the
bits per pixel, which also depend on the content. Sharpness is measured on some of the same frames.
"""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import Type
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from srstream.config import SourceConfig
from srstream.errors import MediaError
from srstream.media.layouts import extract_planes
from srstream.media.read.demux import open_decoder, open_source
from srstream.media.read.sharpness import detail_of, mean_detail
from srstream.media.side_data import side_data_of
from srstream.media.types import VideoInfo
from srstream.models.restore_auto import Detail

NUM_PLACES = 3
FRAMES_PER_PLACE = 8
MAX_PACKETS_PER_PLACE = 60
FRAMES_PER_LOOK = 4
"""Detail is measured in one of every `FRAMES_PER_LOOK` frames."""

# libavutil/video_enc_params.h: nb_blocks, blocks_offset, block_size, type, qp; a block is x, y, w,
# h and its qp delta.
_HEADER = struct.Struct("<IxxxxQQii")
_VP9, _H264, _MPEG2 = 0, 1, 2

BITS_PER_PIXEL_AT_23 = 0.12
"""Bits per pixel of H.264 at quantizer 23, halved for every 6 more. Busy and static footage differ
by a factor of 4."""

EFFICIENCY = {"hevc": 0.6, "av1": 0.45, "vvc": 0.4, "vp8": 1.1, "vp9": 0.6, "mpeg2video": 2.0}
"""Bits that a codec needs where H.264 needs 1, roughly; intra-only codecs need `INTRA`."""

INTRA = 6.0
INTRA_CODECS = frozenset({"mjpeg", "prores", "dnxhd", "dvvideo", "jpeg2000", "ffv1", "huffyuv"})
LOSSLESS_CODECS = frozenset({"ffv1", "huffyuv", "ffvhuff", "utvideo", "rawvideo", "png", "qtrle"})


@dataclass(frozen=True, slots=True)
class Compression:
    """The result: the quantizer, what it is based on, and the detail."""

    quantizer: float
    """On x264's scale: 18 is near transparent, 23 its default, 36 visibly broken."""
    num_frames: int
    """Frames whose quantizers were read; 0 where it is estimated from the bits."""
    bits_per_pixel: float
    detail: Detail


@dataclass(slots=True)
class _Findings:
    """Totals of the packets and frames read so far."""

    quantizers: list[float] = field(default_factory=list)
    details: list[Detail] = field(default_factory=list)
    """The detail of one frame in every `FRAMES_PER_LOOK`."""
    num_bits: int = 0
    num_packets: int = 0


def measure_compression(
    path: Path, video: VideoInfo, key_pts: Sequence[int], config: SourceConfig
) -> Compression | None:
    """Read a few frames at a few keyframes; None if nothing could be decoded.

    Raises:
        MediaError: the file cannot be opened.
    """
    found = _Findings()
    with open_source(path, config.max_pixels) as container:
        stream = container.streams[video.index]
        assert isinstance(stream, VideoStream)
        context = open_decoder(stream, config.max_pixels, export_quantizers=True)
        for pts in _places(key_pts):
            if pts is not None:
                container.seek(pts, stream=stream)
                context.flush_buffers()
            _read_place(container, stream, context, found)
    if not found.details:
        return None
    bits_per_pixel = found.num_bits / found.num_packets / (video.width * video.height)
    quantizer = estimated_quantizer(video.codec, bits_per_pixel)
    if found.quantizers:
        quantizer = float(np.mean(found.quantizers))
    detail = mean_detail(found.details)
    return Compression(quantizer, len(found.quantizers), bits_per_pixel, detail)


def estimated_quantizer(codec: str, bits_per_pixel: float) -> float:
    """Estimate the quantizer from the bits per pixel of an average frame.

    x264's rate halves with every 6 of its quantizer.

    The result is 0 for a lossless codec.
    """
    if codec in LOSSLESS_CODECS:
        return 0.0
    needed = EFFICIENCY.get(codec, INTRA if codec in INTRA_CODECS else 1.0)
    as_h264 = max(bits_per_pixel / needed, 1e-6)
    quantizer = 23.0 + 6.0 * math.log2(BITS_PER_PIXEL_AT_23 / as_h264)
    return min(max(quantizer, 0.0), 51.0)


def frame_quantizer(frame: VideoFrame) -> float | None:
    """Return the mean over a frame's blocks, on x264's scale; None if libav exports nothing."""
    exported = side_data_of(frame)
    side_data = exported.get(Type.VIDEO_ENC_PARAMS)
    return None if side_data is None else _mean_quantizer(bytes(side_data))


def _places(key_pts: Sequence[int]) -> list[int | None]:
    """Return keyframes spread over the file; only its start if there are none."""
    if not key_pts:
        return [None]
    positions = {len(key_pts) * (2 * n + 1) // (2 * NUM_PLACES) for n in range(NUM_PLACES)}
    return [key_pts[min(position, len(key_pts) - 1)] for position in sorted(positions)]


def _read_place(
    container: InputContainer, stream: VideoStream, context: VideoCodecContext, found: _Findings
) -> None:
    """Add the packets and frames from here on to the findings."""
    num_packets = num_frames = 0
    with contextlib.suppress(av.error.FFmpegError, ValueError, MediaError):
        # A damaged place contributes less.
        for packet in container.demux(stream):
            if packet.size:
                found.num_bits += 8 * packet.size
                num_packets += 1
                found.num_packets += 1
            for frame in context.decode(packet):
                quantizer = frame_quantizer(frame)
                if quantizer is not None:
                    found.quantizers.append(quantizer)
                if num_frames % FRAMES_PER_LOOK == 0:
                    layout, planes = extract_planes(frame)
                    woven = frame.interlaced_frame
                    found.details.append(detail_of(planes[0], layout.bits, is_interlaced=woven))
                num_frames += 1
            if num_frames >= FRAMES_PER_PLACE or num_packets >= MAX_PACKETS_PER_PLACE:
                break


def _mean_quantizer(content: bytes) -> float:
    num_blocks, offset, size, kind, base = _HEADER.unpack_from(content)
    mean = float(base)
    if num_blocks:
        blocks = np.frombuffer(content, np.uint8, num_blocks * size, offset)
        deltas = np.ascontiguousarray(blocks.reshape(num_blocks, size)[:, 16:20]).view(np.int32)
        mean += float(deltas.mean())
    if kind == _MPEG2:
        # The exported step is twice the qscale; x264: qscale = 0.85 * 2 ** ((qp - 12) / 6).
        return 12.0 + 6.0 * math.log2(max(mean / 2.0, 1.0) / 0.85)
    if kind == _VP9:
        return mean * 51.0 / 255.0
    return mean
