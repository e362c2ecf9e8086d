"""Tiny nasty clips: each function makes one kind, at the path that it takes and returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from tests.support.clips import (
    BT601_FULL,
    BT2020_PQ,
    Rgb,
    add_audio,
    cfr,
    many_streams,
    picture,
    write_clip,
    write_sine,
)

CLOCK_WRAP = 1 << 33
"""Where the 90 kHz clock of MPEG starts again at 0."""

HDR10_X265 = (
    "hdr10=1:repeat-headers=1:colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc:range=limited"
    ":master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"
    ":max-cll=1000,400:log-level=none"
)


def alpha_picture(index: int, width: int, height: int) -> Rgb:
    y_HW, x_HW = np.mgrid[0:height, 0:width]
    alpha = ((x_HW * 3 + y_HW + 4 * index) % 256).astype(np.uint8)
    return np.dstack([picture(index, width, height), alpha])


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


def alpha_ffv1(path: Path, frames: int = 6, **kwargs: Any) -> Path:
    """FFV1 yuva420p."""
    images = [alpha_picture(n, 64, 48) for n in range(frames)]
    return write_clip(path, images, codec="ffv1", pix_fmt="yuva420p", **kwargs)


def alpha_webm(path: Path, frames: int = 6, codec: str = "libvpx-vp9", **kwargs: Any) -> Path:
    """VP9 (or VP8) with its alpha in the block additions; `path` ends in .webm."""
    images = [alpha_picture(n, 64, 48) for n in range(frames)]
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
        write_sine(container, add_audio(container, path), 440.0, 0.5)
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
