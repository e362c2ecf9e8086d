"""Writes the pixel aspect into Matroska; libavformat's field for it is not exposed by PyAV.

The muxer gets a longer track name than wanted. Afterwards the surplus is replaced by the display
size in the same track entry, so nothing else in the file moves. Element layouts follow RFC 9559
(Matroska) and RFC 8794 (EBML).
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from srstream.errors import EncodeError
from srstream.media.types import OutputVideo

ASPECT_TITLE_PAD = "<room for the display size>  "
"""Padding appended to the track's name; longer than everything that replaces it."""

_HEAD_BYTES = 1 << 20
_EBML, _SEGMENT, _TRACKS, _TRACK_ENTRY = 0x1A45DFA3, 0x18538067, 0x1654AE6B, 0xAE
_NAME, _VIDEO, _VOID = 0x536E, 0xE0, 0xEC
_DISPLAY_WIDTH, _DISPLAY_HEIGHT, _DISPLAY_UNIT = 0x54B0, 0x54BA, 0x54B2
_ASPECT_UNIT = 3


def write_aspect(path: Path, video: OutputVideo, *, in_pixels: bool = False) -> None:
    """Write the display size of the track whose name ends in `ASPECT_TITLE_PAD`, in place.

    Args:
        in_pixels: write it in pixels, as WebM does, which has no other unit.

    Raises:
        EncodeError: there is no such track in the file's first megabyte.
    """
    with path.open("r+b") as file:
        head = file.read(_HEAD_BYTES)
        for start, end in _track_entries(head):
            entry = _with_aspect(head[start:end], video, in_pixels)
            if entry is not None:
                file.seek(start)
                file.write(entry)
                return
    raise EncodeError(f"{path.name}: the pixel aspect could not be written.")


def display_size(video: OutputVideo, in_pixels: bool = False) -> tuple[int, int, int]:
    """Return (width, height, unit): in pixels if that is exact, else as an aspect ratio (unit 3).

    If only pixels are allowed, the ratio is exact and the size close to the picture's.
    """
    aspect = video.sample_aspect_ratio
    width = video.width * aspect
    if width.denominator == 1:
        return int(width), video.height, 0
    height = video.height / aspect
    if height.denominator == 1:
        return video.width, int(height), 0
    ratio = width / video.height
    if in_pixels:
        times = max(round(Fraction(video.height, ratio.denominator)), 1)
        return ratio.numerator * times, ratio.denominator * times, 0
    return ratio.numerator, ratio.denominator, _ASPECT_UNIT


def _with_aspect(payload: bytes, video: OutputVideo, in_pixels: bool) -> bytes | None:
    """Return a track entry's payload, of unchanged length; None if it is another track's."""
    pad = ASPECT_TITLE_PAD.encode()
    children = [(kind, payload[a:b]) for kind, a, b in _elements(payload, 0, len(payload))]
    name = next((data for kind, data in children if kind == _NAME), b"")
    if not name.endswith(pad):
        return None
    rebuilt = b""
    for kind, data in children:
        if kind == _NAME:
            data = data.removesuffix(pad)
            if not data:
                continue
        if kind == _VIDEO:
            data = _video_with_aspect(data, display_size(video, in_pixels))
        rebuilt += _element(kind, data)
    room = len(payload) - len(rebuilt)
    if room < 2:
        return None
    return rebuilt + b"\xec" + bytes([0x80 | (room - 2)]) + bytes(room - 2)


def _video_with_aspect(payload: bytes, size: tuple[int, int, int]) -> bytes:
    replaced = (_DISPLAY_WIDTH, _DISPLAY_HEIGHT, _DISPLAY_UNIT)
    kept = b"".join(
        _element(kind, payload[a:b])
        for kind, a, b in _elements(payload, 0, len(payload))
        if kind not in replaced
    )
    width, height, unit = size
    added = _element(_DISPLAY_WIDTH, _uint(width)) + _element(_DISPLAY_HEIGHT, _uint(height))
    return kept + added + (_element(_DISPLAY_UNIT, _uint(unit)) if unit else b"")


def _track_entries(head: bytes) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of the payloads of all track entries."""
    for kind, start, end in _elements(head, 0, len(head)):
        if kind != _SEGMENT:
            continue
        for inner, a, b in _elements(head, start, min(end, len(head))):
            if inner == _TRACKS:
                yield from (
                    (x, y) for entry, x, y in _elements(head, a, b) if entry == _TRACK_ENTRY
                )
                return


def _elements(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield (id, start, end) of the payloads of the elements in data[start:end]."""
    at = start
    while at < end:
        first = data[at]
        if not first:
            return
        length = 9 - first.bit_length()
        kind = int.from_bytes(data[at : at + length], "big")
        at += length
        if at >= len(data) or not data[at]:
            return
        width = 9 - data[at].bit_length()
        mask = (1 << (7 * width)) - 1
        size = int.from_bytes(data[at : at + width], "big") & mask
        at += width
        last = end if size == mask else at + size
        yield kind, at, last
        at = last


def _element(kind: int, payload: bytes) -> bytes:
    name = kind.to_bytes((kind.bit_length() + 7) // 8, "big")
    width = next(n for n in range(1, 9) if len(payload) < (1 << (7 * n)) - 1)
    size = (len(payload) | 1 << (7 * width)).to_bytes(width, "big")
    return name + size + payload


def _uint(value: int) -> bytes:
    return value.to_bytes(max((value.bit_length() + 7) // 8, 1), "big")
