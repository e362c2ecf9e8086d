"""Reads an animated WebP as a video, since libav's decoder knows still ones only.

The file is presented to libav as an animated PNG that is made while it is read: the frames of the
WebP, put together, losslessly and with their own times. Nothing of it is stored, so a frame at a
time is in memory. A frame that cannot be decoded becomes one that libav cannot decode either, and
is counted and replaced like any other damaged packet.

Shape legend: H, W are rows and columns, C red, green, blue and alpha.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, cast

import cv2
import numpy as np
import numpy.typing as npt

from srstream.errors import MediaError
from srstream.media.animations.header import (
    PNG_SIGNATURE,
    WebpAnimation,
    frame_place,
    shown_milliseconds,
    webp_animation,
    webp_chunks,
)
from srstream.media.errors import sentence

Canvas = npt.NDArray[np.uint8]
"""(H, W, C), not premultiplied."""

_HEAD_BYTES = 16
_BACKGROUND, _NO_BLENDING = 1, 2
_MAX_DELAY = 0xFFFF
TICK = Fraction(1, 100_000)
"""The unit of libav's times of animated PNGs, in seconds."""
_FAR = 1 << 40
_NUM_PIECES_KEPT = 3
"""libav steps back by a few bytes behind a chunk."""


class WebpAsPng:
    """An animated WebP as the file of an animated PNG, for `av.open`.

    Raises:
        MediaError: the file holds no animation.
    """

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("rb")
        found = webp_animation(self._file)
        if found is None or not found.num_frames or found.num_misplaced:
            self._file.close()
            what = "this animated WebP holds no frame"
            if found is not None and found.num_frames:
                what = f"{found.num_misplaced} of its {found.num_frames} frames have no place"
            advice = "It is damaged or cut off; copy it again."
            raise MediaError(sentence(path, what, advice=advice))
        self.animation: WebpAnimation = found
        self._at = self._start = 0
        self._pieces: list[bytes] = []
        self._source = _png(self._file, found)

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes; none at the end."""
        while self._at >= self._start + sum(map(len, self._pieces)):
            piece = next(self._source, None)
            if piece is None:
                return b""
            self._pieces.append(piece)
            if len(self._pieces) > _NUM_PIECES_KEPT:
                self._start += len(self._pieces.pop(0))
        at = self._start
        for piece in self._pieces:
            if self._at < at + len(piece):
                part = piece[self._at - at : self._at - at + size]
                self._at += len(part)
                return bytes(part)
            at += len(piece)
        raise AssertionError

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place; what lies far behind is made again from the beginning.

        Returns:
            The place. The end, which is not known, is said to be far behind: libav only asks for
            it to learn the size, and then returns to where it was.
        """
        if whence not in (0, 1):
            return _FAR
        target = offset + (self._at if whence == 1 else 0)
        if target < self._start:
            self._rewind()
        while self._at < target:
            part = self.read(target - self._at)
            if not part:
                break
        self._at = min(self._at, target)
        return self._at

    def tell(self) -> int:
        """Return the place."""
        return self._at

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _rewind(self) -> None:
        self._at = self._start = 0
        self._pieces.clear()
        self._source = _png(self._file, self.animation)


def composed(file: BinaryIO, animation: WebpAnimation) -> Iterator[tuple[int, Canvas | None]]:
    """Yield (milliseconds, what is shown) of each frame; None where it cannot be decoded.

    The canvas is reused for the next frame.
    """
    canvas_HWC: Canvas = np.zeros((animation.height, animation.width, 4), np.uint8)
    cleared: tuple[slice, slice] | None = None
    for kind, at, length in webp_chunks(file):
        if kind != b"ANMF" or length < 24:
            continue
        file.seek(at)
        head = file.read(_HEAD_BYTES)
        if cleared is not None:
            canvas_HWC[cleared] = 0
        left, top, width, height = frame_place(head)
        place = slice(top, top + height), slice(left, left + width)
        cleared = place if head[15] & _BACKGROUND else None
        part_HWC = _decoded(file.read(length - _HEAD_BYTES), width, height)
        if part_HWC is not None:
            _draw(canvas_HWC[place], part_HWC, is_blended=not head[15] & _NO_BLENDING)
        yield shown_milliseconds(head), None if part_HWC is None else canvas_HWC


def _decoded(content: bytes, width: int, height: int) -> Canvas | None:
    """Decode the chunks of one frame, whose own header must state this size."""
    found: dict[bytes, bytes] = {}
    at = 0
    while at + 8 <= len(content):
        length = int.from_bytes(content[at + 4 : at + 8], "little")
        found.setdefault(content[at : at + 4], content[at + 8 : at + 8 + length])
        at += 8 + length + length % 2
    for kind in (b"VP8L", b"VP8 "):
        if kind in found and _size(kind, found[kind]) == (width, height):
            break
    else:
        return None
    chunks = _chunk(kind, found[kind])
    if kind == b"VP8 " and b"ALPH" in found:
        sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        chunks = _chunk(b"VP8X", b"\x10\0\0\0" + sides) + _chunk(b"ALPH", found[b"ALPH"]) + chunks
    still = _chunk(b"RIFF", b"WEBP" + chunks)
    level = cv2.utils.logging.setLogLevel(0)  # it would report to standard error
    try:
        pixels = cv2.imdecode(np.frombuffer(still, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    finally:
        cv2.utils.logging.setLogLevel(level)
    if pixels is None or pixels.shape[:2] != (height, width) or pixels.ndim != 3:
        return None
    code = cv2.COLOR_BGRA2RGBA if pixels.shape[2] == 4 else cv2.COLOR_BGR2RGBA
    return cast(Canvas, cv2.cvtColor(pixels, code))


def _size(kind: bytes, data: bytes) -> tuple[int, int] | None:
    """Return what a bit stream's own header states (RFC 6386, 9.1; RFC 9649, 3.4)."""
    if kind == b"VP8L" and len(data) >= 5 and data[0] == 0x2F:
        bits = int.from_bytes(data[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and data[3:6] == b"\x9d\x01\x2a" and len(data) >= 10:
        width, height = struct.unpack_from("<HH", data, 6)
        return width & 0x3FFF, height & 0x3FFF
    return None


def _chunk(kind: bytes, data: bytes) -> bytes:
    return kind + len(data).to_bytes(4, "little") + data + b"\0" * (len(data) % 2)


def _draw(canvas_HWC: Any, part_HWC: Canvas, *, is_blended: bool) -> None:
    """Draw a frame over what is there (RFC 9649, 2.7.1.1), in the integers of libwebp."""
    if not is_blended:
        canvas_HWC[:] = part_HWC
        return
    seen_HW = part_HWC[..., 3] > 0
    alone_HW = seen_HW & ((part_HWC[..., 3] == 255) | (canvas_HWC[..., 3] == 0))
    between_HW = seen_HW & ~alone_HW
    if between_HW.any():
        over, under = (pixels[between_HW].astype(np.uint32) for pixels in (part_HWC, canvas_HWC))
        rest = under[:, 3:] * (256 - over[:, 3:]) >> 8
        alpha = over[:, 3:] + rest
        color = (over[:, :3] * over[:, 3:] + under[:, :3] * rest) * ((1 << 24) // alpha) >> 24
        canvas_HWC[between_HW] = np.hstack([color, alpha]).astype(np.uint8)
    canvas_HWC[alone_HW] = part_HWC[alone_HW]


# The animated PNG


def frame_ticks(path: Path) -> list[int]:
    """Return when each frame begins, and last when all ends, in the `TICK` of libav's reader.

    No picture is decoded for it.
    """
    ticks = [0]
    with path.open("rb") as file:
        for kind, at, length in webp_chunks(file):
            if kind == b"ANMF" and length >= 24:
                file.seek(at)
                part, whole = _delay(shown_milliseconds(file.read(_HEAD_BYTES)))
                ticks.append(ticks[-1] + int(Fraction(part, whole) / TICK))
    return ticks


def _png(file: BinaryIO, animation: WebpAnimation) -> Iterator[bytes]:
    """Yield the file of an animated PNG in pieces, one for each frame."""
    width, height = animation.width, animation.height
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    control = struct.pack(">II", animation.num_frames, animation.num_plays)
    yield PNG_SIGNATURE + _png_chunk(b"IHDR", header) + _png_chunk(b"acTL", control)
    number = 0
    for milliseconds, canvas_HWC in composed(file, animation):
        delay = _delay(milliseconds)
        order = struct.pack(">IIIIIHHBB", number, width, height, 0, 0, *delay, 0, 0)
        data = b"damaged" if canvas_HWC is None else _stored(canvas_HWC)
        if number:
            data = struct.pack(">I", number + 1) + data
        kind = b"fdAT" if number else b"IDAT"
        yield _png_chunk(b"fcTL", order) + _png_chunk(kind, data)
        number += 2 if number else 1
    yield _png_chunk(b"IEND", b"")


def _delay(milliseconds: int) -> tuple[int, int]:
    """Return a delay as the 16-bit fraction that PNG has: exact up to 65 s, then to 1/10 s."""
    for unit in (1000, 100, 10):
        ticks = round(milliseconds * unit / 1000)
        if ticks <= _MAX_DELAY:
            return ticks, unit
    return min(round(milliseconds / 1000), _MAX_DELAY), 1


def _stored(canvas_HWC: Canvas) -> bytes:
    """Return rows that are neither filtered nor compressed."""
    rows = np.zeros((canvas_HWC.shape[0], 1 + 4 * canvas_HWC.shape[1]), np.uint8)
    rows[:, 1:] = canvas_HWC.reshape(len(rows), -1)
    return zlib.compress(rows.data, 0)


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
