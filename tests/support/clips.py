"""Tiny clips, nasty ones too, made with PyAV on the spot. Every function writes one file.

`write_clip` is the general maker; the named functions below it make one nasty kind each and take
the path to write. Pictures are deterministic, so two calls with the same arguments give the same
pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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

CLOCK_WRAP = 1 << 33
"""Where the 90 kHz clock of MPEG starts again at 0."""


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

HDR10_X265 = (
    "hdr10=1:repeat-headers=1:colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc:range=limited"
    ":master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"
    ":max-cll=1000,400:log-level=none"
)


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


def _alpha_picture(index: int, width: int, height: int) -> Rgb:
    y_HW, x_HW = np.mgrid[0:height, 0:width]
    alpha = ((x_HW * 3 + y_HW + 4 * index) % 256).astype(np.uint8)
    return np.dstack([picture(index, width, height), alpha])


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
        sounds = [_add_audio(container, path) for _ in range(int(audio))]
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
            _write_sine(container, sound, 330.0 * (n + 1), max(float(last), 0.1))
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


def _add_audio(container: OutputContainer, path: Path) -> AudioStream:
    codec = {".webm": "libopus", ".avi": "pcm_s16le", ".ts": "mp2"}.get(path.suffix, "aac")
    stream = container.add_stream(codec, rate=48000)
    assert isinstance(stream, AudioStream)
    stream.codec_context.layout = "mono"
    return stream


def _write_sine(
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


# One nasty kind each. All take the path to write and return it.


def cfr(path: Path, frames: int = 12, **kwargs: Any) -> Path:
    """Constant rate, x264 with B frames and several keyframes."""
    return write_clip(path, frames, gop=kwargs.pop("gop", 5), **kwargs)


VFR_PTS = (0, 40, 55, 120, 130, 400, 401, 950, 1000, 1010, 2500, 2533)
"""Times of `vfr`, in milliseconds."""


def vfr(path: Path, **kwargs: Any) -> Path:
    """Variable rate: the times are VFR_PTS, in ms."""
    base = Fraction(1, 1000)
    return write_clip(path, len(VFR_PTS), pts=VFR_PTS, time_base=base, gop=4, **kwargs)


def late_start(path: Path, start_seconds: int = 5, **kwargs: Any) -> Path:
    """The first frame is shown 5 s after zero."""
    return write_clip(path, 12, pts=[start_seconds * 25 + n for n in range(12)], **kwargs)


def wrapped_ts(path: Path, frames: int = 12, **kwargs: Any) -> Path:
    """MPEG-TS whose 33-bit clock wraps after the fifth frame; `path` ends in .ts."""
    pts = [CLOCK_WRAP + (n - 5) * 3600 for n in range(frames)]
    return write_clip(
        path,
        frames,
        pts=pts,
        time_base=Fraction(1, 90000),
        gop=4,
        format="mpegts",
        container_options={"mpegts_copyts": "1"},
        **kwargs,
    )


def concatenated_ts(path: Path, **kwargs: Any) -> Path:
    """Two recordings in one MPEG-TS file: the clock starts again in the middle."""
    first = write_clip(path.with_suffix(".1.ts"), 12, gop=4, format="mpegts", **kwargs)
    path.write_bytes(first.read_bytes() * 2)
    first.unlink()
    return path


def odd_size(path: Path, **kwargs: Any) -> Path:
    """61x47 in 4:2:0 (FFV1, since x264 wants even sizes)."""
    return write_clip(path, 6, width=61, height=47, codec="ffv1", **kwargs)


def sar_and_rotation(path: Path, **kwargs: Any) -> Path:
    """Pixels of 4:3, to be shown turned by 90 degrees."""
    return write_clip(path, 6, sar=Fraction(4, 3), rotation=90, **kwargs)


def hdr10(path: Path, frames: int = 6, **kwargs: Any) -> Path:
    """HEVC Main 10, BT.2020 PQ, with mastering display and light level."""
    return write_clip(
        path,
        frames,
        codec="libx265",
        pix_fmt="yuv420p10le",
        options={"x265-params": HDR10_X265, "preset": "ultrafast"},
        color=BT2020_PQ,
        **kwargs,
    )


def full_range_601(path: Path, **kwargs: Any) -> Path:
    """Full-range BT.601."""
    return write_clip(path, 6, color=BT601_FULL, **kwargs)


def interlaced(path: Path, frames: int = 12, **kwargs: Any) -> Path:
    """x264, top field first, the two fields of a frame from two moments."""
    woven = []
    for n in range(frames):
        image = picture(4 * n)
        image[1::2] = picture(4 * n + 2)[1::2]
        woven.append(image)
    return write_clip(path, woven, options={"x264-params": "tff=1:interlaced=1"}, gop=5, **kwargs)


def size_change(path: Path, frames: int = 6, **kwargs: Any) -> Path:
    """Raw H.264 that goes from 64x48 to 96x64; `path` ends in .h264."""
    parts = []
    for width, height in ((64, 48), (96, 64)):
        part = path.with_suffix(f".{width}.h264")
        write_clip(part, frames, width=width, height=height, options={"bf": "0"}, **kwargs)
        parts.append(part.read_bytes())
        part.unlink()
    path.write_bytes(b"".join(parts))
    return path


def truncated(path: Path, keep: float = 0.6, index_first: bool = True, **kwargs: Any) -> Path:
    """The first part of a file; an MP4 with its index first opens, one without does not."""
    options = {"movflags": "+faststart"} if index_first and path.suffix == ".mp4" else {}
    kwargs = dict[str, Any](frames=75, noise=40, audio=1, gop=10) | kwargs
    write_clip(path, container_options=options, **kwargs)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


def bit_flips(path: Path, packets: Sequence[int] = (7,), damage: int = 400, **kwargs: Any) -> Path:
    """A clip whose packets of the given numbers are overwritten with noise.

    `damage` bytes of each are lost; the container stays whole, so that only the decoder notices.
    """
    kwargs = dict[str, Any](frames=24, noise=60, gop=12, options={"bf": "0"}) | kwargs
    write_clip(path, **kwargs)
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        stored = [bytes(p) for p in container.demux(container.streams.video[0]) if p.size]
    rng = np.random.default_rng(1)
    for number in packets:
        at = data.find(stored[number])
        assert at >= 0, "the packet is stored in one piece"
        size = min(damage, len(stored[number]))
        data[at : at + size] = rng.integers(0, 256, size, dtype=np.uint8).tobytes()
    path.write_bytes(bytes(data))
    return path


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


def alpha_ffv1(path: Path, frames: int = 6, **kwargs: Any) -> Path:
    """FFV1 yuva420p."""
    images = [_alpha_picture(n, 64, 48) for n in range(frames)]
    return write_clip(path, images, codec="ffv1", pix_fmt="yuva420p", **kwargs)


def alpha_webm(path: Path, frames: int = 6, codec: str = "libvpx-vp9", **kwargs: Any) -> Path:
    """VP9 (or VP8) with its alpha in the block additions; `path` ends in .webm."""
    images = [_alpha_picture(n, 64, 48) for n in range(frames)]
    options = {"auto-alt-ref": "0", "deadline": "realtime", "cpu-used": "8"}
    tags = {"alpha_mode": "1"}
    return write_clip(
        path,
        images,
        codec=codec,
        pix_fmt="yuva420p",
        options=options,
        stream_metadata=tags,
        **kwargs,
    )


def open_gop(path: Path, frames: int = 36, **kwargs: Any) -> Path:
    """x264 with open GOPs: B frames before a keyframe refer to the GOP before it."""
    params = "open-gop=1:bframes=3:b-adapt=0:keyint=9:min-keyint=9:scenecut=0"
    return write_clip(path, frames, options={"x264-params": params}, noise=8, **kwargs)


def raw_h264(path: Path, frames: int = 12, **kwargs: Any) -> Path:
    """H.264 without a container: no timestamps; `path` ends in .h264."""
    return write_clip(path, frames, gop=5, **kwargs)


def one_frame(path: Path, **kwargs: Any) -> Path:
    """A clip of one frame."""
    return write_clip(path, 1, **kwargs)


def audio_only(path: Path) -> Path:
    """A file with sound and no picture."""
    with av.open(str(path), "w") as container:
        _write_sine(container, _add_audio(container, path), 440.0, 0.5)
    return path


def empty(path: Path) -> Path:
    """A file of no bytes."""
    path.write_bytes(b"")
    return path


def text_file(path: Path) -> Path:
    """Text under a video's name."""
    path.write_text("This is not a video. " * 40)
    return path


def giant(path: Path, width: int = 60000, height: int = 60000) -> Path:
    """MP4 that announces a picture of 60000x60000 and holds a few bytes."""
    write_clip(path, 3, codec="rawvideo", pix_fmt="rgb24", format="mov")
    data = bytearray(path.read_bytes())
    at = data.find(b"raw ", data.find(b"stsd")) + 28  # ISO/IEC 14496-12, VisualSampleEntry
    assert data[at : at + 4] == (64).to_bytes(2, "big") + (48).to_bytes(2, "big")
    data[at : at + 4] = width.to_bytes(2, "big") + height.to_bytes(2, "big")
    path.write_bytes(bytes(data))
    return path


NASTY: dict[str, Callable[..., Path]] = {
    "cfr.mp4": cfr,
    "vfr.mp4": vfr,
    "vfr.mkv": vfr,
    "late_start.mp4": late_start,
    "late_start.mkv": late_start,
    "wrapped.ts": wrapped_ts,
    "concatenated.ts": concatenated_ts,
    "odd_size.mkv": odd_size,
    "sar_and_rotation.mp4": sar_and_rotation,
    "hdr10.mp4": hdr10,
    "hdr10.mkv": hdr10,
    "full_range_601.mp4": full_range_601,
    "interlaced.mp4": interlaced,
    "size_change.h264": size_change,
    "many_streams.mkv": many_streams,
    "many_streams.mp4": many_streams,
    "alpha.mkv": alpha_ffv1,
    "alpha.webm": alpha_webm,
    "open_gop.mkv": open_gop,
    "open_gop.mp4": open_gop,
    "raw.h264": raw_h264,
    "one_frame.mp4": one_frame,
}
"""Those that must come out whole, by file name."""
