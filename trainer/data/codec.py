"""Real codecs as a degradation: clips are encoded and decoded in memory.

Frames are (Y, U, V), 4:2:0, 8 bits, limited range, uint8 planes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType, VideoFrame

from srstream.errors import EncodeError
from srstream.media.layouts import extract_planes
from trainer.data.planes import Yuv

FRAME_RATE = 25

MIN_SIDE = {"libx265": 96}
"""x265 4.1 writes out of bounds with pictures of 40x40 and 48x48, and with 64x64 it reads
uninitialized memory: no two runs give the same result."""

PRESETS = {
    "libx264": ("ultrafast", "veryfast", "fast", "medium"),
    "libx265": ("ultrafast", "superfast", "veryfast"),
    "mpeg2video": ("",),
    "libvpx-vp9": ("5", "7", "8"),
}
"""The presets of each codec, from fast to slow; for VP9 these are `cpu-used` values."""

CONTAINERS = {"libx264": "mp4", "libx265": "mp4", "mpeg2video": "matroska", "libvpx-vp9": "webm"}


@dataclass(frozen=True)
class CodecSettings:
    """The settings of an encoder."""

    codec: str
    crf: float
    """CRF on x264's scale, 0 to 51; other codecs are set to be about as harsh."""
    preset: str
    gop: int
    """Maximum number of frames from one keyframe to the next."""
    b_frames: int

    def __str__(self) -> str:
        named = f" {self.preset}" if self.preset else ""
        return f"{self.codec}{named} crf{self.crf:g} gop{self.gop} b{self.b_frames}"

    def options(self) -> dict[str, str]:
        """Return the encoder's own options."""
        gop = {"g": str(self.gop)}
        if self.codec == "libx264":
            return gop | {
                "crf": f"{self.crf:g}", "preset": self.preset, "bf": str(self.b_frames),
                "threads": "1",
            }  # fmt: skip
        if self.codec == "libx265":
            quiet = f"log-level=error:pools=1:frame-threads=1:bframes={self.b_frames}"
            # x265 at one CRF looks like x264 a little below it.
            return gop | {
                "crf": f"{self.crf + 2:g}", "preset": self.preset, "x265-params": quiet
            }  # fmt: skip
        if self.codec == "mpeg2video":
            qscale = max(1, min(31, round(0.85 * 2 ** ((self.crf - 12) / 6) / 2)))
            return gop | {
                "qmin": str(qscale), "qmax": str(qscale), "bf": str(min(self.b_frames, 2))
            }  # fmt: skip
        quality = max(4, min(63, round(1.35 * self.crf)))
        return gop | {
            "crf": str(quality), "b": "0", "cpu-used": self.preset, "deadline": "realtime",
            "threads": "1",
        }  # fmt: skip


@dataclass(frozen=True)
class DecodedFrame:
    """One decoded frame."""

    planes: Yuv
    picture_type: str
    """`I`, `P` or `B`."""


def random_settings(
    random: np.random.Generator, codecs: Sequence[str], min_crf: float, max_crf: float
) -> CodecSettings:
    """Draw settings uniformly from those common in video in the wild."""
    codec = str(random.choice(list(codecs)))
    return CodecSettings(
        codec,
        crf=round(float(random.uniform(min_crf, max_crf)), 1),
        preset=str(random.choice(list(PRESETS[codec]))),
        gop=int(random.choice([4, 8, 12, 50, 250])),
        b_frames=int(random.choice([0, 0, 2, 3])),
    )


def x264_at(crf: float) -> CodecSettings:
    """Return the settings that most video in the wild was made with."""
    return CodecSettings("libx264", crf, preset="medium", gop=250, b_frames=3)


def encode_decode(frames: Sequence[Yuv], settings: CodecSettings) -> list[DecodedFrame]:
    """Return the same frames after the codec, in order; raise as `encode` and `decode` do."""
    return decode(encode(frames, settings), len(frames), settings)


def encode(frames: Sequence[Yuv], settings: CodecSettings) -> bytes:
    """Encode these frames as a file, at 25 frames per second.

    Raises:
        EncodeError: the codec is missing or refused its settings or the pictures' size.
    """
    height, width = frames[0][0].shape
    needed = MIN_SIDE.get(settings.codec, 2)
    if min(height, width) < needed:
        raise EncodeError(
            f"{settings}: needs pictures of at least {needed}, these have {min(height, width)}"
        )
    buffer = io.BytesIO()
    try:
        with av.open(buffer, "w", format=CONTAINERS[settings.codec]) as container:
            stream: Any = container.add_stream(
                settings.codec, rate=FRAME_RATE, options=settings.options()
            )
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.time_base = Fraction(1, FRAME_RATE)
            for number, planes in enumerate(frames):
                container.mux(stream.encode(_picture(planes, number)))
            container.mux(stream.encode())
    except (av.error.FFmpegError, ValueError) as error:
        raise EncodeError(f"{settings}: encoding a training clip failed ({error})") from error
    return buffer.getvalue()


def decode(content: bytes, num_frames: int, settings: CodecSettings) -> list[DecodedFrame]:
    """Decode a file that `encode` made of `num_frames` frames.

    Raises:
        EncodeError: it cannot be decoded, or frames were lost, added or reordered. A clip is never
            passed on clean instead.
    """
    try:
        decoded = _decode(io.BytesIO(content))
    except (av.error.FFmpegError, ValueError) as error:
        raise EncodeError(f"{settings}: decoding a training clip failed ({error})") from error
    times = [-1 if frame.pts is None else frame.pts for frame in decoded]
    if len(decoded) != num_frames or times != sorted(set(times)):
        raise EncodeError(
            f"{settings}: {num_frames} frames went in, {len(decoded)} came out, at {times}"
        )
    made = []
    for frame in decoded:
        y, u, v = (np.array(plane, np.uint8) for plane in extract_planes(frame)[1])
        made.append(DecodedFrame((y, u, v), PictureType(frame.pict_type).name))
    return made


def _picture(planes: Yuv, number: int) -> VideoFrame:
    height, width = planes[0].shape
    picture = VideoFrame(width, height, "yuv420p")
    picture.pts, picture.time_base = number, Fraction(1, FRAME_RATE)
    for target, plane in zip(picture.planes, planes, strict=True):
        buffer: Any = target
        rows = np.frombuffer(buffer, np.uint8).reshape(-1, target.line_size)
        rows[: plane.shape[0], : plane.shape[1]] = plane
    return picture


def _decode(buffer: io.BytesIO) -> list[VideoFrame]:
    with av.open(buffer, "r") as container:
        stream = container.streams.video[0]
        context: VideoCodecContext = stream.codec_context
        context.thread_count = 1
        return list(container.decode(stream))
