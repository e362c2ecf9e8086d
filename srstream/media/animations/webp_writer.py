"""Writes animated WebP (RFC 9649) frame by frame, so that memory does not grow with the length.

libwebp's own writer holds all frames until the end, and joins equal ones; here each has its own.
Only the rectangle that changed since the last frame is stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np

from srstream.errors import EncodeError
from srstream.media.animations.formats import Slot
from srstream.media.animations.frames import Rgba

QUALITY = 90
_LOSSLESS = 101
_MAX_BYTES = (1 << 32) - 2
_MAX_MS = (1 << 24) - 1
_MAX_PLAYS = 65535
_ANIMATED, _HAS_ALPHA = 0x02, 0x10
_NO_BLENDING = 2
_HEAD_BYTES = 44
"""RIFF's header, VP8X and ANIM."""

Place = tuple[slice, slice]
"""Rows and columns; the first of each is even, as the format demands."""


def write_webp(
    path: Path,
    frames: Iterator[tuple[Slot, Rgba]],
    size: tuple[int, int],
    num_plays: int,
    *,
    has_alpha: bool,
    is_lossless: bool,
) -> None:
    """Write an animated WebP; two frames at a time are in memory.

    Args:
        num_plays: 0 is without end.

    Raises:
        EncodeError: a frame cannot be encoded, or the file would exceed 4 GB.
        OSError: it cannot be written.
    """
    quality = _LOSSLESS if is_lossless else QUALITY
    with path.open("wb") as file:
        file.write(b"\0" * _HEAD_BYTES)
        last_HWC: Rgba | None = None
        for slot, picture_HWC in frames:
            place = _changed(last_HWC, picture_HWC)
            _write_frame(file, path, slot, picture_HWC, place, quality)
            last_HWC = picture_HWC
            if file.tell() > _MAX_BYTES:
                raise EncodeError(
                    f"{path.name}: an animated WebP holds at most 4 GB; make a smaller or shorter "
                    "one, or a video."
                )
        num_bytes = file.tell()
        file.seek(0)
        file.write(_head(size, num_bytes, num_plays, has_alpha=has_alpha))


def _head(size: tuple[int, int], num_bytes: int, num_plays: int, *, has_alpha: bool) -> bytes:
    flags = _ANIMATED | (_HAS_ALPHA if has_alpha else 0)
    canvas = bytes([flags, 0, 0, 0]) + _three(size[0] - 1) + _three(size[1] - 1)
    plays = min(num_plays, _MAX_PLAYS).to_bytes(2, "little")
    chunks = _chunk(b"VP8X", canvas) + _chunk(b"ANIM", b"\0\0\0\0" + plays)
    return b"RIFF" + (num_bytes - 8).to_bytes(4, "little") + b"WEBP" + chunks


def _write_frame(
    file: BinaryIO, path: Path, slot: Slot, picture_HWC: Rgba, place: Place, quality: int
) -> None:
    rows, columns = place
    part_HWC = picture_HWC[place]
    if part_HWC[..., 3].min() == 255:
        code = cv2.COLOR_RGBA2BGR
    else:
        code = cv2.COLOR_RGBA2BGRA
    pixels: Any = cv2.cvtColor(np.ascontiguousarray(part_HWC), code)
    try:
        is_done, encoded = cv2.imencode(".webp", pixels, [cv2.IMWRITE_WEBP_QUALITY, quality])
    except cv2.error as error:
        raise EncodeError(f"{path.name}: a frame cannot be written ({error.err}).") from error
    if not is_done:
        raise EncodeError(f"{path.name}: a frame cannot be written as WebP.")
    head = _three(columns.start // 2) + _three(rows.start // 2)
    head += _three(part_HWC.shape[1] - 1) + _three(part_HWC.shape[0] - 1)
    head += _three(min(slot.length, _MAX_MS)) + bytes([_NO_BLENDING])
    file.write(_chunk(b"ANMF", head + _bit_streams(bytes(encoded))))


def _changed(last_HWC: Rgba | None, picture_HWC: Rgba) -> Place:
    """Return the rectangle in which two pictures differ; of equal ones a single pixel."""
    if last_HWC is None:
        return slice(0, picture_HWC.shape[0]), slice(0, picture_HWC.shape[1])
    same_HW = (last_HWC.view(np.uint32) == picture_HWC.view(np.uint32))[..., 0]
    rows, columns = (np.flatnonzero(~same_HW.all(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return slice(0, 1), slice(0, 1)
    first = int(rows[0]) // 2 * 2, int(columns[0]) // 2 * 2
    return slice(first[0], int(rows[-1]) + 1), slice(first[1], int(columns[-1]) + 1)


def _bit_streams(still: bytes) -> bytes:
    """Return the chunks ALPH, VP8 and VP8L of a still WebP."""
    found, at = [], 12
    while at + 8 <= len(still):
        length = int.from_bytes(still[at + 4 : at + 8], "little")
        end = at + 8 + length + length % 2
        if still[at : at + 4] in (b"ALPH", b"VP8 ", b"VP8L"):
            found.append(still[at:end])
        at = end
    return b"".join(found)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return kind + len(data).to_bytes(4, "little") + data + b"\0" * (len(data) % 2)


def _three(value: int) -> bytes:
    return value.to_bytes(3, "little")
