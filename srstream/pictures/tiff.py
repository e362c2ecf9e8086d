"""Reads the header of a TIFF picture: size, kind, and whether all of its samples are there.

TIFF 6.0 (Adobe, 1992), sections 2 and 8; BigTIFF has the same fields with wider numbers.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

_SIZES = {1: "B", 2: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}
"""Format of a value by the number of its type; the types that the fields below have."""

_MAX_VALUES = 1 << 20
_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC = 256, 257, 258, 262
_STRIPS, _STRIP_BYTES, _TILES, _TILE_BYTES = 273, 279, 324, 325
_SAMPLE_FORMAT, _ORIENTATION = 339, 274
_CMYK = 5


@dataclass(frozen=True, slots=True)
class TiffHeader:
    """The first picture of a file."""

    width: int
    height: int
    is_gray: bool
    is_complete: bool
    refusal: str = ""
    """Why it cannot be enhanced; empty if it can."""


def is_tiff(content: bytes) -> bool:
    """Return whether a file begins as a TIFF or BigTIFF does."""
    return content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_tiff_header(content: bytes) -> TiffHeader:
    """Read the first directory of a TIFF file.

    Raises:
        struct.error, IndexError: it is damaged or cut off.
    """
    order = "<" if content[:2] == b"II" else ">"
    is_big = content[2:4] in (b"+\0", b"\0+")
    (start,) = struct.unpack_from(order + ("Q" if is_big else "I"), content, 8 if is_big else 4)
    fields, following = _directory(content, order, start, is_big)
    width, height = fields[_WIDTH][0], fields[_HEIGHT][0]
    if fields.get(_ORIENTATION, (1,))[0] >= 5:  # OpenCV turns the picture upright.
        width, height = height, width
    photometric = fields.get(_PHOTOMETRIC, (1,))[0]
    offsets = fields.get(_STRIPS) or fields[_TILES]
    lengths = fields.get(_STRIP_BYTES) or fields[_TILE_BYTES]
    ends = (offset + length for offset, length in zip(offsets, lengths, strict=False))
    return TiffHeader(
        width,
        height,
        is_gray=photometric in (0, 1),
        is_complete=max(ends, default=0) <= len(content),
        refusal=_refusal(fields, photometric, following),
    )


def _refusal(fields: dict[int, tuple[int, ...]], photometric: int, following: int) -> str:
    if following:
        return "is a TIFF of several pages; split it into one file for each page"
    if photometric == _CMYK:
        return "is a CMYK picture; convert it to RGB first"
    if set(fields.get(_SAMPLE_FORMAT, (1,))) != {1}:
        return "holds signed or floating-point samples; convert it to 8 or 16 bits first"
    if set(fields.get(_BITS, (1,))) - {1, 2, 4, 8, 16}:
        return "has samples of an unusual depth; convert it to 8 or 16 bits first"
    return ""


def _directory(
    content: bytes, order: str, start: int, is_big: bool
) -> tuple[dict[int, tuple[int, ...]], int]:
    """Return the fields with whole numbers, by tag, and where the next directory lies, or 0."""
    count_format, entry_bytes, inline_bytes = ("Q", 20, 8) if is_big else ("H", 12, 4)
    (num_entries,) = struct.unpack_from(order + count_format, content, start)
    position = start + struct.calcsize(order + count_format)
    fields: dict[int, tuple[int, ...]] = {}
    for _ in range(num_entries):
        head = order + ("HHQ" if is_big else "HHI")
        tag, kind, count = struct.unpack_from(head, content, position)
        value_at = position + struct.calcsize(head)
        if kind in _SIZES and 0 < count <= _MAX_VALUES:
            form = f"{order}{count}{_SIZES[kind]}"
            if struct.calcsize(form) > inline_bytes:
                (value_at,) = struct.unpack_from(
                    order + ("Q" if is_big else "I"), content, value_at
                )
            fields[tag] = struct.unpack_from(form, content, value_at)
        position += entry_bytes
    (following,) = struct.unpack_from(order + ("Q" if is_big else "I"), content, position)
    return fields, following
