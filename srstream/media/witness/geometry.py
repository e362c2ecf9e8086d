"""Reads the crop and the presence of a pixel aspect from container headers.

The crop is PixelCrop in Matroska and `clap` in MP4 and MOV. libav passes neither to the frames, so
the headers are parsed here, following RFC 9559 (Matroska), RFC 8794 (EBML) and ISO/IEC 14496-12,
12.1.4.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from srstream.media.witness.likeness import Crop

_HEAD_BYTES = 4 << 20
_SEGMENT, _TRACKS, _TRACK_ENTRY = 0x18538067, 0x1654AE6B, 0xAE
_TRACK_TYPE, _VIDEO = 0x83, 0xE0
_BOTTOM, _TOP, _LEFT, _RIGHT = 0x54AA, 0x54BB, 0x54CC, 0x54DD
_MAX_MOOV_BYTES = 256 << 20


def crop_of(path: Path, brand: str, number: int, size: tuple[int, int]) -> Crop:
    """Return the crop of the container's video track `number`, whose frames measure `size`.

    The crop is empty if none is stored, if it is invalid, and in any other container.
    """
    try:
        if brand in ("mkv", "webm"):
            with path.open("rb") as file:
                crops = list(_matroska(file.read(_HEAD_BYTES)))
        elif brand in ("mp4", "mov"):
            crops = list(_apertures(_moov(path), size))
        else:
            return Crop()
    except (OSError, IndexError):
        return Crop()
    crop = crops[number] if number < len(crops) else Crop()
    fits = crop.left + crop.right < size[0] and crop.top + crop.bottom < size[1]
    return crop if fits and min(crop.left, crop.top, crop.right, crop.bottom) >= 0 else Crop()


def states_aspect(path: Path, brand: str, number: int) -> bool:
    """Return whether a container states the pixel aspect of video track `number`."""
    try:
        if brand in ("mp4", "mov"):
            entries = list(_entries(_moov(path)))
            return number < len(entries) and b"pasp" in dict(_boxes(entries[number][78:]))
        if brand == "avi":
            with path.open("rb") as file:
                return b"vprp" in file.read(_HEAD_BYTES >> 6)
    except OSError:
        return False
    return brand in ("mkv", "webm")


def _matroska(head: bytes) -> Iterator[Crop]:
    """Yield one entry for each video track, in order."""
    for entry in _within(head, (_SEGMENT, _TRACKS, _TRACK_ENTRY)):
        fields = dict(_elements(entry))
        if int.from_bytes(fields.get(_TRACK_TYPE, b""), "big") == 1:
            video = {k: int.from_bytes(v, "big") for k, v in _elements(fields.get(_VIDEO, b""))}
            yield Crop(*(video.get(side, 0) for side in (_LEFT, _TOP, _RIGHT, _BOTTOM)))


def _within(data: bytes, path: tuple[int, ...]) -> Iterator[bytes]:
    """Yield the payloads of the elements at a path of identifiers."""
    for kind, payload in _elements(data):
        if kind == path[0]:
            if len(path) == 1:
                yield payload
            else:
                yield from _within(payload, path[1:])


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (identifier, payload) of adjacent EBML elements; the last may be cut off."""
    at = 0
    while at < len(data) and data[at]:
        length = 9 - data[at].bit_length()
        kind = int.from_bytes(data[at : at + length], "big")
        at += length
        if at >= len(data) or not data[at]:
            return
        width = 9 - data[at].bit_length()
        mask = (1 << 7 * width) - 1
        size = int.from_bytes(data[at : at + width], "big") & mask
        at += width
        end = len(data) if size == mask else at + size
        yield kind, data[at:end]
        at = end


def _moov(path: Path) -> bytes:
    with path.open("rb") as file:
        for _ in range(1000):
            head = file.read(8)
            if len(head) < 8:
                break
            size, header = int.from_bytes(head[:4], "big"), 8
            if size == 1:
                size, header = int.from_bytes(file.read(8), "big"), 16
            if head[4:] == b"moov":
                return file.read(min(size - header, _MAX_MOOV_BYTES))
            if size < header:
                break
            file.seek(size - header, 1)
    return b""


def _apertures(moov: bytes, size: tuple[int, int]) -> Iterator[Crop]:
    """Yield one entry for each video track, in order."""
    for entry in _entries(moov):
        yield _aperture(dict(_boxes(entry[78:])).get(b"clap", b""), size)


def _entries(moov: bytes) -> Iterator[bytes]:
    """Yield the first sample entry of each video track, in order."""
    for kind, track in _boxes(moov):
        if kind != b"trak":
            continue
        media = dict(_boxes(dict(_boxes(track)).get(b"mdia", b"")))
        if media.get(b"hdlr", b"")[8:12] != b"vide":
            continue
        table = dict(_boxes(dict(_boxes(media.get(b"minf", b""))).get(b"stbl", b"")))
        yield table.get(b"stsd", b"")[8 + 8 :]


def _aperture(clap: bytes, size: tuple[int, int]) -> Crop:
    numbers = [int.from_bytes(clap[n : n + 4], "big", signed=n >= 16) for n in range(0, 32, 4)]
    if len(clap) < 32 or not all(numbers[1::2]):
        return Crop()
    width, height, x, y = (Fraction(numbers[n], numbers[n + 1]) for n in range(0, 8, 2))
    left, top = (size[0] - width) / 2 + x, (size[1] - height) / 2 + y
    right, bottom = size[0] - width - left, size[1] - height - top
    return Crop(round(left), round(top), round(right), round(bottom))


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        size = size if size >= 8 else len(data) - at
        yield data[at + 4 : at + 8], data[at + 8 : at + size]
        at += size
