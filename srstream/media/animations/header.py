"""Reads what the headers of animated pictures state: how many frames, how often they are shown.

GIF89a with Netscape's extension, PNG (third edition, 11.3.6), WebP (RFC 9649).
"""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
FOREVER = 0
"""The number of plays of an animation that never ends."""

_LOOP_EXTENSIONS = (b"NETSCAPE2.0", b"ANIMEXTS1.0")
_MAX_GIF_BLOCKS = 100_000
_ANIMATION_FLAG = 2


@dataclass(frozen=True, slots=True)
class PngAnimation:
    """What a PNG's acTL chunk states."""

    num_frames: int
    num_plays: int


@dataclass(frozen=True, slots=True)
class WebpAnimation:
    """What the chunks of an animated WebP state; no picture is decoded for it."""

    width: int
    height: int
    num_plays: int
    num_frames: int
    duration_seconds: float
    is_complete: bool
    """Whether the file is as long as it says."""
    is_lossless: bool
    num_misplaced: int
    """Frames that are not within the canvas, or hold no picture."""


def num_plays(path: Path) -> int | None:
    """Return how often an animation is shown, `FOREVER` for no end; None if it is none.

    A GIF counts the repetitions after the first time, the others count all.
    """
    try:
        with path.open("rb") as file:
            head = file.read(12)
            file.seek(0)
            if head.startswith((b"GIF87a", b"GIF89a")):
                return _gif_plays(file)
            if head.startswith(PNG_SIGNATURE):
                png = png_animation(file)
                return None if png is None else png.num_plays
            webp = webp_animation(file)
            return None if webp is None else webp.num_plays
    except OSError:
        return None  # Opening it as media says why it cannot be read.


def png_animation(file: BinaryIO, max_chunks: int | None = None) -> PngAnimation | None:
    """Return a PNG's acTL, which precedes the picture; None if it has none.

    Args:
        max_chunks: how many chunks are looked at; None: all before the picture.
    """
    if file.read(len(PNG_SIGNATURE)) != PNG_SIGNATURE:
        return None
    for _ in itertools.count() if max_chunks is None else range(max_chunks):
        head = file.read(16)
        if len(head) < 12 or head[4:8] == b"IDAT":
            return None
        if head[4:8] == b"acTL":
            return PngAnimation(*struct.unpack(">II", head[8:])) if len(head) == 16 else None
        file.seek(int.from_bytes(head[:4], "big") - 4, os.SEEK_CUR)
    return None


def is_animation(file: BinaryIO, max_chunks: int | None = None) -> bool:
    """Return whether a file is an animated WebP by what it says, or a PNG of several frames.

    The file is at its beginning. A few bytes of it are read, and nothing is decoded; see
    `png_animation` for `max_chunks`.
    """
    if _says_animated(file.read(21)):
        return True
    file.seek(0)
    png = png_animation(file, max_chunks)
    return png is not None and png.num_frames > 1


def is_animated_webp(path: Path) -> bool:
    """Return whether a file says that it is an animated WebP."""
    try:
        with path.open("rb") as file:
            return _says_animated(file.read(21))
    except OSError:
        return False


def webp_animation(file: BinaryIO) -> WebpAnimation | None:
    """Return what an animated WebP states; None if the file is none."""
    head = file.read(30)
    if not _says_animated(head) or len(head) < 30:
        return None
    width = 1 + int.from_bytes(head[24:27], "little")
    height = 1 + int.from_bytes(head[27:30], "little")
    size = file.seek(0, os.SEEK_END)
    plays, num_frames, milliseconds, is_lossless, num_misplaced = 1, 0, 0, True, 0
    for kind, at, length in webp_chunks(file):
        if kind == b"ANIM" and length >= 6:
            file.seek(at + 4)
            plays = int.from_bytes(file.read(2), "little")
        elif kind == b"ANMF" and length >= 24:
            file.seek(at)
            frame = file.read(20)
            num_frames += 1
            milliseconds += shown_milliseconds(frame)
            is_lossless &= frame[16:] == b"VP8L"
            num_misplaced += not _is_placed(frame, width, height)
    return WebpAnimation(
        width=width,
        height=height,
        num_plays=plays,
        num_frames=num_frames,
        duration_seconds=milliseconds / 1000,
        is_complete=int.from_bytes(head[4:8], "little") + 8 <= size,
        is_lossless=is_lossless,
        num_misplaced=num_misplaced,
    )


def webp_chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Yield (kind, where its content begins, bytes of content) of the outermost chunks.

    A chunk that the file's end cuts is left out.
    """
    size, at = file.seek(0, os.SEEK_END), 12
    while at + 8 <= size:
        file.seek(at)
        head = file.read(8)
        length = int.from_bytes(head[4:], "little")
        if at + 8 + length > size:
            return
        yield head[:4], at + 8, length
        at += 8 + length + length % 2


def frame_place(frame: bytes) -> tuple[int, int, int, int]:
    """Return (left, top, width, height) of an ANMF chunk's frame."""
    left, top, width, height = (int.from_bytes(frame[n : n + 3], "little") for n in range(0, 12, 3))
    return 2 * left, 2 * top, width + 1, height + 1


def _is_placed(frame: bytes, canvas_width: int, canvas_height: int) -> bool:
    left, top, width, height = frame_place(frame)
    fits = left + width <= canvas_width and top + height <= canvas_height
    return fits and frame[16:20] in (b"VP8L", b"VP8 ", b"ALPH")


def shown_milliseconds(frame: bytes) -> int:
    """Return how long an ANMF chunk's frame is shown; browsers show 0 as a tenth of a second."""
    return int.from_bytes(frame[12:15], "little") or 100


def _says_animated(head: bytes) -> bool:
    is_extended = head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and len(head) >= 21
    return is_extended and bool(head[20] & _ANIMATION_FLAG)


def _gif_plays(file: BinaryIO) -> int:
    """Return the plays that Netscape's extension before the first picture states, else 1."""
    screen = file.read(13)
    if len(screen) == 13 and screen[10] & 0x80:
        file.seek(3 << (screen[10] & 7) + 1, os.SEEK_CUR)
    for _ in range(_MAX_GIF_BLOCKS):
        if file.read(1) != b"!":
            return 1
        label = file.read(1)
        name, *blocks = [*_gif_blocks(file, 2), b""]
        if label == b"\xff" and name in _LOOP_EXTENSIONS and blocks[0][:1] == b"\x01":
            repetitions = int.from_bytes(blocks[0][1:3], "little")
            return repetitions + 1 if repetitions else FOREVER
    return 1


def _gif_blocks(file: BinaryIO, num_kept: int) -> list[bytes]:
    """Read an extension's sub-blocks to their end; return the first ones."""
    kept: list[bytes] = []
    while length := int.from_bytes(file.read(1), "little"):
        block = file.read(length)
        if len(kept) < num_kept:
            kept.append(block)
    return kept
