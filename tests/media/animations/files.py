"""Makes and reads animated pictures without srstream: chunk by chunk, or with OpenCV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Bgra = npt.NDArray[np.uint8]

DURATIONS = [70, 130, 40, 200, 90]
"""Milliseconds; no two are equal."""


def ball(number: int, width: int = 61, height: int = 47, *, is_soft: bool = False) -> Bgra:
    """A ball and a box on nothing, (H, W, 4): the ball moves, its hidden surroundings are green."""
    large = np.zeros((4 * height, 4 * width), np.float32)
    cv2.circle(large, (4 * (14 + 6 * number), 4 * (height // 2)), 40, 1.0, -1)
    cv2.rectangle(large, (4 * (width - 14), 8), (4 * (width - 3), 48), 1.0, -1)
    alpha = cv2.resize(large, (width, height), interpolation=cv2.INTER_AREA)
    alpha = alpha if is_soft else (alpha >= 0.5).astype(np.float32)
    picture = np.zeros((height, width, 4), np.uint8)
    picture[..., :3] = np.where(alpha[..., None] > 0, (40, 60, 220), (0, 255, 0))
    picture[..., 3] = np.round(255 * alpha)
    return picture


def opaque(number: int, width: int = 61, height: int = 47) -> Bgra:
    """A smooth picture whose square moves."""
    rows, columns = np.mgrid[:height, :width]
    picture = np.dstack([2 * columns + 60, 3 * rows + 40, rows + columns, 0 * rows + 255])
    picture[10:22, 5 + 7 * number : 17 + 7 * number, :3] = (30, 200, 250)
    return picture.astype(np.uint8)


def write(
    path: Path,
    frames: Sequence[Bgra],
    durations: Sequence[int] = DURATIONS,
    num_plays: int = 0,
    options: Sequence[int] = (),
) -> Path:
    """Write an animation with OpenCV: GIF, PNG or WebP, as the name says."""
    animation = cv2.Animation()
    animation.frames, animation.durations = list(frames), list(durations[: len(frames)])
    animation.loop_count = num_plays
    assert cv2.imwriteanimation(str(path), animation, list(options))
    return path


def read(path: Path) -> tuple[list[Bgra], list[int], int]:
    """Return (frames as BGRA, milliseconds of each, number of plays), as OpenCV reads them."""
    is_read, animation = cv2.imdecodeanimation(np.fromfile(path, np.uint8))
    assert is_read
    frames: Any = animation.frames
    whole = [f if f.shape[2] == 4 else cv2.cvtColor(f, cv2.COLOR_BGR2BGRA) for f in frames]
    return whole, [int(n) for n in animation.durations], int(animation.loop_count)


# WebP by hand (RFC 9649)

LOSSLESS = (cv2.IMWRITE_WEBP_QUALITY, 101)


@dataclass(frozen=True)
class Part:
    """One frame: pixels that are drawn at an even place."""

    pixels: Bgra
    left: int = 0
    top: int = 0
    duration: int = 100
    is_cleared_after: bool = False
    is_blended: bool = True
    quality: int = 101


def write_webp(path: Path, canvas: tuple[int, int], parts: Sequence[Part], plays: int = 0) -> Path:
    """Write an animated WebP whose frames are parts of its canvas (width, height)."""
    body = chunk(b"VP8X", b"\x12\0\0\0" + three(canvas[0] - 1) + three(canvas[1] - 1))
    body += chunk(b"ANIM", b"\0\0\0\0" + plays.to_bytes(2, "little"))
    body += b"".join(map(frame_chunk, parts))
    path.write_bytes(chunk(b"RIFF", b"WEBP" + body))
    return path


def frame_chunk(part: Part) -> bytes:
    """An ANMF chunk."""
    done, still = cv2.imencode(".webp", part.pixels, [cv2.IMWRITE_WEBP_QUALITY, part.quality])
    assert done
    streams = b"".join(
        chunk(kind, data)
        for kind, data in chunks(bytes(still))
        if kind in (b"ALPH", b"VP8 ", b"VP8L")
    )
    flags = part.is_cleared_after + 2 * (not part.is_blended)
    rows, columns = part.pixels.shape[:2]
    head = three(part.left // 2) + three(part.top // 2) + three(columns - 1) + three(rows - 1)
    return chunk(b"ANMF", head + three(part.duration) + bytes([flags]) + streams)


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """The outermost chunks of a WebP: (kind, content)."""
    found, at = [], 12
    while at + 8 <= len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        found.append((data[at : at + 4], data[at + 8 : at + 8 + length]))
        at += 8 + length + length % 2
    return found


def webp_durations(path: Path) -> list[int]:
    """The milliseconds that the ANMF chunks state."""
    frames = [data for kind, data in chunks(path.read_bytes()) if kind == b"ANMF"]
    return [int.from_bytes(data[12:15], "little") for data in frames]


def webp_plays(path: Path) -> int:
    """The number of plays that the ANIM chunk states."""
    (anim,) = (data for kind, data in chunks(path.read_bytes()) if kind == b"ANIM")
    return int.from_bytes(anim[4:6], "little")


def gif_repetitions(path: Path) -> int | None:
    """What Netscape's extension states; None without one."""
    data = path.read_bytes()
    at = data.find(b"NETSCAPE2.0\x03\x01")
    return None if at < 0 else int.from_bytes(data[at + 13 : at + 15], "little")


def apng_control(path: Path) -> tuple[int, int]:
    """(number of frames, number of plays) of acTL."""
    data = path.read_bytes()
    at = data.index(b"acTL") + 4
    return int.from_bytes(data[at : at + 4], "big"), int.from_bytes(data[at + 4 : at + 8], "big")


def apng_delays(path: Path) -> list[tuple[int, int]]:
    """The delays of all fcTL chunks, as fractions of a second."""
    data, found, at = path.read_bytes(), [], 8
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] == b"fcTL":
            part, whole = data[at + 28 : at + 30], data[at + 30 : at + 32]
            found.append((int.from_bytes(part, "big"), int.from_bytes(whole, "big")))
        at += 12 + length
    return found


def chunk(kind: bytes, data: bytes) -> bytes:
    """A RIFF chunk."""
    return kind + len(data).to_bytes(4, "little") + data + b"\0" * (len(data) % 2)


def three(value: int) -> bytes:
    """A 24-bit number."""
    return value.to_bytes(3, "little")
