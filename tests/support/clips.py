"""Tiny clips, made with PyAV on the spot. Every function writes one file.

`write_clip` is the general maker; the nasty kinds are in `nasty_clips`. Pictures are
deterministic, so two calls with the same arguments give the same pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.video.stream import VideoStream

Rgb = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Color:
    """Colour description to encode with, as H.273 code points; range 1 is limited, 2 full."""

    primaries: int = 1
    transfer: int = 1
    matrix: int = 1
    range: int = 1


BT709 = Color()
BT601_FULL = Color(primaries=6, transfer=6, matrix=6, range=2)
BT2020_PQ = Color(primaries=9, transfer=16, matrix=9, range=1)


def picture(index: int, width: int = 64, height: int = 48, noise: int = 0) -> Rgb:
    """RGB picture number `index`, (H, W, 3): a gradient, a moving square, optional noise."""
    y_HW, x_HW = np.mgrid[0:height, 0:width]
    red = (x_HW * 200 // max(width - 1, 1) + 20 + 3 * index) % 256
    green = (y_HW * 200 // max(height - 1, 1) + 30) % 256
    blue = ((x_HW + y_HW) * 2 + 5 * index) % 256
    rgb = np.stack([red, green, blue], axis=-1).astype(np.uint8)
    side = max(min(width, height) // 4, 1)
    left = (index * 3) % max(width - side, 1)
    rgb[height // 3 : height // 3 + side, left : left + side] = (240, 240, 30)
    if noise:
        grain = np.random.default_rng(index).integers(-noise, noise + 1, rgb.shape)
        rgb = np.clip(rgb.astype(np.int16) + grain, 0, 255).astype(np.uint8)
    return rgb


def to_frame(image: Rgb | av.VideoFrame, pix_fmt: str, color: Color | None) -> av.VideoFrame:
    """`image` (RGB or RGBA, or a finished frame) as a frame of `pix_fmt` with `color` marked."""
    if isinstance(image, av.VideoFrame):
        frame = image
    else:
        rgb_name = "rgba" if image.shape[2] == 4 else "rgb24"
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format=rgb_name)
        arguments: dict[str, Any] = {}
        if color is not None and color.range:
            arguments["dst_color_range"] = color.range
        # With its threads swscale 8.1 gives now and then a wrong row of some formats.
        frame = frame.reformat(format=pix_fmt, threads=1, **arguments)
    if color is not None:
        frame.color_primaries = color.primaries
        frame.color_trc = color.transfer
        frame.colorspace = color.matrix
        frame.color_range = color.range
    return frame


def write_clip(
    path: Path,
    frames: int | Iterable[Rgb | av.VideoFrame] = 12,
    *,
    width: int = 64,
    height: int = 48,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    rate: int | Fraction = 25,
    pts: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    options: dict[str, str] | None = None,
    color: Color | None = None,
    sar: Fraction | None = None,
    rotation: float | None = None,
    gop: int | None = None,
    noise: int = 0,
    audio: int | bool = 0,
    subtitles: Sequence[str] = (),
    chapters: Sequence[str] = (),
    attachments: Sequence[tuple[str, str, bytes]] = (),
    metadata: dict[str, str] | None = None,
    stream_metadata: dict[str, str] | None = None,
    format: str | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Encode a clip and return its path.

    `frames` is a number of `picture`s or the pictures themselves (RGB(A) arrays or av frames).
    `pts` are in `time_base` (1/rate unless given). `audio` is the number of sine streams,
    `subtitles` one language per stream, `chapters` one title per chapter of one second.
    """
    container = av.open(str(path), "w", format=format, container_options=container_options or {})
    with container:
        container.metadata.update(metadata or {})
        video = _add_video(
            container, codec, rate, width, height, pix_fmt, time_base, options, color, sar, gop
        )
        video.metadata.update(stream_metadata or {})
        if rotation is not None:
            video.set_display_rotation(rotation)
        sounds = [add_audio(container, path) for _ in range(int(audio))]
        texts = [_add_subtitles(container, path, language) for language in subtitles]
        for name, mimetype, data in attachments:
            container.add_attachment(name, mimetype, data)
        if chapters:
            container.set_chapters(
                [
                    {
                        "id": n,
                        "start": n * 1000,
                        "end": (n + 1) * 1000,
                        "time_base": Fraction(1, 1000),
                        "metadata": {"title": title},
                    }
                    for n, title in enumerate(chapters)
                ]
            )
        if isinstance(frames, int):
            frames = [picture(n, width, height, noise) for n in range(frames)]
        base = time_base or 1 / Fraction(rate)
        last = Fraction(0)
        for n, image in enumerate(frames):
            frame = to_frame(image, pix_fmt, color)
            frame.pts = pts[n] if pts is not None else n
            frame.time_base = base
            last = frame.pts * base
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        for n, sound in enumerate(sounds):
            write_sine(container, sound, 330.0 * (n + 1), max(float(last), 0.1))
        for n, text in enumerate(texts):
            _write_subtitle(container, text, path, f"line {n}")
    return path


def _add_video(
    container: OutputContainer,
    codec: str,
    rate: int | Fraction,
    width: int,
    height: int,
    pix_fmt: str,
    time_base: Fraction | None,
    options: dict[str, str] | None,
    color: Color | None,
    sar: Fraction | None,
    gop: int | None,
) -> VideoStream:
    stream = container.add_stream(codec, rate=rate, options=dict(options or {}))
    assert isinstance(stream, VideoStream)
    context = stream.codec_context
    context.width, context.height, context.pix_fmt = width, height, pix_fmt
    context.thread_count = 1
    if time_base is not None:
        context.time_base = time_base
    if gop is not None:
        context.gop_size = gop
    if sar is not None:
        context.sample_aspect_ratio = sar
    if color is not None:
        context.color_primaries = color.primaries
        context.color_trc = color.transfer
        context.colorspace = color.matrix
        context.color_range = color.range
    return stream


def add_audio(container: OutputContainer, path: Path) -> AudioStream:
    codec = {".webm": "libopus", ".avi": "pcm_s16le", ".ts": "mp2"}.get(path.suffix, "aac")
    stream = container.add_stream(codec, rate=48000)
    assert isinstance(stream, AudioStream)
    stream.codec_context.layout = "mono"
    return stream


def write_sine(
    container: OutputContainer, stream: AudioStream, hertz: float, seconds: float
) -> None:
    is_planar_float = stream.codec_context.format.name.startswith("flt")
    samples = np.sin(2 * np.pi * hertz * np.arange(int(48000 * seconds)) / 48000) * 0.3
    size = stream.codec_context.frame_size or 1024
    for start in range(0, len(samples), size):
        block = samples[start : start + size]
        array: npt.NDArray[Any]
        if is_planar_float:
            array = block.astype(np.float32)[None]
        else:
            array = (block * 32767).astype(np.int16)[None]
        name = stream.codec_context.format.name if is_planar_float else "s16"
        frame = av.AudioFrame.from_ndarray(array, format=name, layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48000, start, Fraction(1, 48000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def _add_subtitles(container: OutputContainer, path: Path, language: str) -> Any:
    codec = {".mp4": "mov_text", ".mov": "mov_text", ".webm": "webvtt"}.get(path.suffix, "subrip")
    stream = container.add_mux_stream(codec)
    stream.time_base = Fraction(1, 1000)
    stream.metadata["language"] = language
    return stream


def _write_subtitle(container: OutputContainer, stream: Any, path: Path, text: str) -> None:
    data = text.encode()
    if path.suffix in (".mp4", ".mov"):
        data = len(data).to_bytes(2, "big") + data
    packet = av.Packet(data)
    packet.stream = stream
    packet.time_base = Fraction(1, 1000)
    packet.pts = packet.dts = 0
    packet.duration = 400
    packet.is_keyframe = True
    container.mux(packet)


def cfr(path: Path, frames: int = 12, **kwargs: Any) -> Path:
    """Constant rate, x264 with B frames and several keyframes."""
    return write_clip(path, frames, gop=kwargs.pop("gop", 5), **kwargs)


def many_streams(path: Path, **kwargs: Any) -> Path:
    """Matroska or MP4 with two audio and two subtitle streams, chapters and, in MKV, a font."""
    if path.suffix == ".mkv":
        kwargs.setdefault("attachments", [("font.ttf", "font/ttf", b"not really a font")])
    return write_clip(
        path,
        50,
        audio=2,
        subtitles=("eng", "deu"),
        chapters=("One", "Two"),
        metadata={"title": "Many streams"},
        stream_metadata={"language": "fra"},
        **kwargs,
    )
