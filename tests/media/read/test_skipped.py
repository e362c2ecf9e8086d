"""Excerpts of files that say something once: every frame is that of Debian's ffmpeg from the start.

Palettes come with the first packet or with the one that changes them, and parameter sets with the
first packet of a part; the decode of an excerpt skips those packets.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
import pytest
from av.packet import Packet
from av.stream import Stream
from av.video.codeccontext import VideoCodecContext

from srstream.config import SourceConfig
from srstream.media.read.decode import Decoder
from srstream.media.read.probe import probe
from tests.support.clips import picture, to_frame

SOURCE = SourceConfig()
RATE = Fraction(1, 25)
NUM_FRAMES = 50
LATE = 46
"""Number of the frame that excerpts begin with."""


def _palette(seed: int) -> np.ndarray:
    """256 random opaque colors, as PyAV takes them: A, R, G, B."""
    colors = np.random.default_rng(seed).integers(0, 256, (256, 4)).astype(np.uint8)
    colors[:, 0] = 255
    return colors


def _indexed(index: int, palette: np.ndarray) -> av.VideoFrame:
    codes = (picture(index, 64, 48).sum(axis=2) // 5 % 256).astype(np.uint8)
    return av.VideoFrame.from_ndarray((codes, palette), format="pal8")


def _write_palettes(path: Path, codec: str, changes_at: int | None = None) -> Path:
    """Frames of colors from a palette, another one from frame `changes_at` on."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "pal8"
        stream.codec_context.gop_size = 5
        for n in range(NUM_FRAMES):
            is_second = changes_at is not None and n >= changes_at
            frame = _indexed(n, _palette(2 if is_second else 1))
            frame.pts, frame.time_base = n, RATE
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def _frames_of_ffmpeg(path: Path, pix_fmt: str) -> bytes:
    command = [
        "ffmpeg",
        "-v",
        "error",
        "-i",
        str(path),
        "-map",
        "0:v:0",
        "-fps_mode",
        "passthrough",
    ]
    command += ["-f", "rawvideo", "-pix_fmt", pix_fmt, "-"]
    return subprocess.run(command, capture_output=True, check=True).stdout


def _late_frames(path: Path) -> tuple[bytes, int]:
    """Samples of the frames from `LATE` on as an excerpt gives them, and the first packet used."""
    info = probe(path, SOURCE)
    whole = Decoder(path, info.video, SOURCE)
    pts = [frame.pts for frame in whole.frames()]
    whole.close()
    assert len(pts) == NUM_FRAMES
    decoder = Decoder(path, info.video, SOURCE, start_pts=pts[LATE])
    first = decoder._first_packet()
    frames = list(decoder.frames())
    decoder.close()
    assert [frame.pts for frame in frames] == pts[LATE:]
    if info.video.layout.kind == "rgb":  # planes are G, B, R
        pictures = [np.dstack([f.planes[2], f.planes[0], f.planes[1]]) for f in frames]
        return b"".join(picture.tobytes() for picture in pictures), first
    return b"".join(plane.tobytes() for f in frames for plane in f.planes), first


@pytest.mark.parametrize(
    ("name", "codec", "changes_at"),
    [
        ("raw.avi", "rawvideo", None),
        ("changing.avi", "rawvideo", 20),
        ("raw.mov", "rawvideo", None),
        ("smc.mov", "smc", None),
        ("png.mov", "png", 20),
        ("gif.gif", "gif", None),
    ],
)
def test_an_excerpt_has_the_palette_that_holds(
    tmp_path: Path, name: str, codec: str, changes_at: int | None
) -> None:
    path = _write_palettes(tmp_path / name, codec, changes_at)
    expected = _frames_of_ffmpeg(path, "rgb24")
    late, first = _late_frames(path)
    size = 64 * 48 * 3
    assert len(expected) == NUM_FRAMES * size
    assert late == expected[LATE * size :]
    if codec not in ("gif", "smc"):  # whose pictures refer to the first
        assert first > (changes_at or 0)  # the packet with the palette was left out


def _without_tables(data: bytes) -> bytes:
    """A JPEG picture without its DQT and DHT segments (ITU-T T.81, B.1.1.4)."""
    kept, at = data[:2], 2
    while data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] not in (0xDB, 0xC4):
            kept += data[at:end]
        at = end
    return kept + data[at:]


def test_an_excerpt_has_the_tables_that_hold(tmp_path: Path) -> None:
    """JPEG pictures that leave out what the first one said."""
    path = tmp_path / "in.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25, options={"huffman": "default"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        stream.codec_context.qmin = stream.codec_context.qmax = 3
        for n in range(NUM_FRAMES):
            frame = to_frame(picture(n, 64, 48), "yuvj420p", None)
            frame.pts, frame.time_base = n, RATE
            for packet in stream.encode(frame):
                bare: Packet[Stream] = av.Packet(_without_tables(bytes(packet)))
                bare.pts, bare.dts, bare.time_base = packet.pts, packet.dts, packet.time_base
                bare.stream, bare.is_keyframe = stream, True
                container.mux(bare if n else packet)
    expected = _frames_of_ffmpeg(path, "yuvj420p")
    late, first = _late_frames(path)
    size = 64 * 48 * 3 // 2
    assert len(expected) == NUM_FRAMES * size
    assert late == expected[LATE * size :]
    assert first > 0


OPTIONS = {
    "libx264": ("qp=24:chroma-qp-offset=-8", "qp=24:chroma-qp-offset=8"),
    "libx265": ("qp=24:cbqpoffs=-8:crqpoffs=-8", "qp=24:cbqpoffs=8:crqpoffs=8"),
}
"""Of two parts whose parameter sets differ in a number that no decoder finds wrong."""


def _encoded(codec: str, options: str, first: int) -> list[Packet[Stream]]:
    context = cast(VideoCodecContext, av.CodecContext.create(codec, "w"))
    context.width, context.height, context.pix_fmt = 64, 48, "yuv420p"
    context.time_base, context.framerate = RATE, Fraction(25)
    context.gop_size, context.thread_count = 5, 1
    context.options = {f"{codec[3:]}-params": f"{options}:keyint=5:open-gop=0:log-level=none"}
    packets = []
    for n in range(NUM_FRAMES // 2):
        frame = to_frame(picture(first + n), "yuv420p", None)
        frame.pts, frame.time_base = first + n, RATE
        packets += context.encode(frame)
    return packets + context.encode(None)


def _said_once(
    packets: list[Packet[Stream]], is_header: Callable[[bytes], bool]
) -> Iterator[Packet[Stream]]:
    """The packets without the parameter sets of all but the first."""
    for n, packet in enumerate(packets):
        units = [unit for unit in re.split(b"\0\0\0?\1", bytes(packet)) if unit]
        kept = [unit for unit in units if n == 0 or not is_header(unit)]
        bare: Packet[Stream] = av.Packet(b"".join(b"\0\0\0\1" + unit for unit in kept))
        bare.pts, bare.dts, bare.time_base = packet.pts, packet.dts, packet.time_base
        bare.is_keyframe = packet.is_keyframe
        yield bare


CODECS = pytest.mark.parametrize(
    ("codec", "is_header"),
    [
        ("libx264", lambda unit: unit[0] & 31 in (7, 8)),  # ITU-T H.264, table 7-1
        ("libx265", lambda unit: unit[0] >> 1 & 63 in (32, 33, 34)),  # ITU-T H.265, table 7-1
    ],
)


@CODECS
def test_an_excerpt_has_the_parameter_sets_that_hold(
    tmp_path: Path, codec: str, is_header: Callable[[bytes], bool]
) -> None:
    path = tmp_path / "parts.ts"
    with av.open(str(path), "w", format="mpegts") as container:
        stream = container.add_mux_stream({"libx264": "h264", "libx265": "hevc"}[codec])
        stream.time_base = RATE
        for first, options in zip((0, NUM_FRAMES // 2), OPTIONS[codec], strict=True):
            for packet in _said_once(_encoded(codec, options, first), is_header):
                packet.stream = stream
                container.mux(packet)
    expected = _frames_of_ffmpeg(path, "yuv420p")
    late, first = _late_frames(path)
    size = 64 * 48 * 3 // 2
    assert len(expected) == NUM_FRAMES * size
    assert late == expected[LATE * size :]
    assert first > NUM_FRAMES // 2  # the packet with the second part's headers was left out


@CODECS
def test_an_excerpt_has_the_parameter_sets_of_an_mp4_that_hold(
    tmp_path: Path, codec: str, is_header: Callable[[bytes], bool]
) -> None:
    """Those of the second part lie in its first packet alone, behind their lengths."""
    first = tmp_path / "first.mp4"
    with av.open(str(first), "w") as container:
        options = {f"{codec[3:]}-params": f"{OPTIONS[codec][0]}:keyint=5:open-gop=0:log-level=none"}
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for n in range(NUM_FRAMES // 2):
            frame = to_frame(picture(n), "yuv420p", None)
            frame.pts, frame.time_base = n, RATE
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    path = tmp_path / "parts.mp4"
    with av.open(str(first)) as source, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                container.mux(packet)
        second = _encoded(codec, OPTIONS[codec][1], NUM_FRAMES // 2)
        for packet in _said_once(second, is_header):
            units = bytes(packet).split(b"\0\0\0\1")[1:]
            data = b"".join(len(unit).to_bytes(4, "big") + unit for unit in units)
            prefixed: Packet[Stream] = av.Packet(data)
            prefixed.pts, prefixed.dts, prefixed.time_base = packet.pts, packet.dts, RATE
            prefixed.stream, prefixed.is_keyframe = stream, packet.is_keyframe
            container.mux(prefixed)
    expected = _frames_of_ffmpeg(path, "yuv420p")
    late, first_packet = _late_frames(path)
    size = 64 * 48 * 3 // 2
    assert len(expected) == NUM_FRAMES * size
    assert late == expected[LATE * size :]
    assert first_packet > NUM_FRAMES // 2
