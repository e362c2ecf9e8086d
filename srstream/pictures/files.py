"""Picture files: their headers, their pixels, and their metadata.

OpenCV decodes and encodes. It doesn't keep all metadata (it loses a PNG's XMP, text and resolution,
a JPEG's comment and IPTC), so if a picture keeps its format, the metadata chunks are copied byte
for byte. Pixels are never rotated: the EXIF orientation is kept.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np

from srstream.errors import EncodeError, MediaError, RefusedError
from srstream.media.animations.header import PNG_SIGNATURE, is_animation
from srstream.pictures.tiff import is_tiff, read_tiff_header

Format = Literal["png", "jpeg", "webp", "bmp", "tiff"]

SUFFIXES: dict[str, Format] = {
    ".png": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".webp": "webp",
    ".bmp": "bmp",
    ".tif": "tiff",
    ".tiff": "tiff",
}
MAX_SIDE: dict[Format, int] = {
    "png": 2**31 - 1,
    "jpeg": 65500,
    "webp": 16383,
    "bmp": 32767,
    "tiff": 2**31 - 1,
}
MAX_BITS: dict[Format, int] = {"png": 16, "jpeg": 8, "webp": 8, "bmp": 8, "tiff": 16}
HOLDS_ALPHA: dict[Format, bool] = {
    "png": True,
    "jpeg": False,
    "webp": True,
    "bmp": False,
    "tiff": True,
}

ENCODE_OPTIONS: dict[Format, list[int]] = {
    "png": [],
    "jpeg": [
        cv2.IMWRITE_JPEG_QUALITY,
        95,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    ],
    "webp": [cv2.IMWRITE_WEBP_QUALITY, 95],
    "bmp": [],
    "tiff": [cv2.IMWRITE_TIFF_COMPRESSION, cv2.IMWRITE_TIFF_COMPRESSION_ADOBE_DEFLATE],
}
LOSSLESS_WEBP = [cv2.IMWRITE_WEBP_QUALITY, 101]

PNG_KEPT = {b"cHRM", b"gAMA", b"iCCP", b"sRGB", b"cICP", b"mDCV", b"cLLI"}
PNG_KEPT |= {b"eXIf", b"iTXt", b"tEXt", b"zTXt", b"pHYs", b"tIME"}
"""Chunks that describe the picture independently of its size and palette."""

PNG_GREY_ALPHA = 4


@dataclass(frozen=True, slots=True)
class Header:
    """The properties of a picture that are known before it is decoded."""

    format: Format
    width: int
    height: int
    is_grey: bool = False
    is_lossless: bool = True
    refusal: str = ""
    """Why it can't be enhanced; empty if it can."""


class Samples(NamedTuple):
    """A decoded picture: (H, W) gray, (H, W, 3) BGR or (H, W, 4) BGRA, uint8 or uint16."""

    pixels: Any
    metadata_types: Any
    metadata: Any


def read_header(path: Path, content: bytes) -> Header:
    """Read format and size from the first bytes; the name does not matter.

    Raises:
        MediaError: the picture is of an unknown kind, damaged or truncated.
    """
    try:
        header = _header(content)
    except (struct.error, IndexError) as error:
        raise MediaError(f"{path}: the picture's header is damaged or cut off.") from error
    if header is None:
        raise MediaError(f"{path}: is no PNG, JPEG, WebP, BMP or TIFF picture.")
    if header.width < 1 or header.height < 1:
        raise MediaError(f"{path}: its header says {header.width}x{header.height} pixels.")
    if _is_cut_off(content, header.format):
        raise MediaError(f"{path}: the picture is cut off; its end is missing.")
    return header


def _header(content: bytes) -> Header | None:
    if content.startswith(PNG_SIGNATURE):
        width, height = struct.unpack_from(">II", content, 16)
        refusal = _refusal_of_animation(content, "PNG")
        return Header("png", width, height, content[25] in (0, PNG_GREY_ALPHA), refusal=refusal)
    if content.startswith(b"\xff\xd8\xff"):
        return _jpeg_header(content)
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return _webp_header(content)
    if is_tiff(content):
        tiff = read_tiff_header(content)
        return Header("tiff", tiff.width, tiff.height, tiff.is_gray, refusal=tiff.refusal)
    if content.startswith(b"BM"):
        width, height = struct.unpack_from("<ii", content, 18)
        return Header("bmp", width, abs(height))
    return None


def _refusal_of_animation(content: bytes, name: str) -> str:
    if not is_animation(io.BytesIO(content)):
        return ""
    return f"is an animated {name}, which becomes a video or an animation, not a picture"


def _jpeg_header(content: bytes) -> Header:
    for marker, segment in _jpeg_segments(content):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            _, height, width, num_components = struct.unpack_from(">BHHB", segment, 4)
            refusal = "is a CMYK picture; convert it to RGB first" if num_components == 4 else ""
            is_grey = num_components == 1
            return Header("jpeg", width, height, is_grey, is_lossless=False, refusal=refusal)
    raise IndexError


def _webp_header(content: bytes) -> Header:
    kind = content[12:16]
    if kind == b"VP8X":
        width = 1 + int.from_bytes(content[24:27], "little")
        height = 1 + int.from_bytes(content[27:30], "little")
        refusal = _refusal_of_animation(content, "WebP")
        lossless = b"VP8L" in content[30:] and b"VP8 " not in content[30:]
        return Header("webp", width, height, is_lossless=lossless, refusal=refusal)
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", content, 21)
        return Header("webp", 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
    width, height = struct.unpack_from("<HH", content, 26)
    return Header("webp", width & 0x3FFF, height & 0x3FFF, is_lossless=False)


def read_content(path: Path) -> bytes:
    """Return a file's bytes.

    Raises:
        MediaError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise MediaError(f"{path}: cannot be read ({error.strerror}).") from error


def _is_cut_off(content: bytes, form: Format) -> bool:
    """Return whether the end is missing, which decoders silently fill with gray."""
    if form == "png":
        return b"IEND" not in content[-64:] and b"IEND" not in {k for k, _ in _png_chunks(content)}
    if form == "jpeg":
        return b"\xff\xd9" not in content[content.rfind(b"\xff\xda") :]
    if form == "tiff":
        return not read_tiff_header(content).is_complete
    size = struct.unpack_from("<I", content, 4 if form == "webp" else 2)[0]
    return len(content) < size + (8 if form == "webp" else 0)


def decode(path: Path, content: bytes) -> Samples:
    """Return the pixels as they are stored, not rotated; a palette becomes colors.

    Raises:
        MediaError: OpenCV can't decode it.
    """
    try:
        types_and_more: Any = cv2.imdecodeWithMetadata(
            np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED
        )
    except cv2.error as error:
        raise MediaError(f"{path}: the picture cannot be decoded ({error.err}).") from error
    samples = Samples(*types_and_more)
    if samples.pixels is None or samples.pixels.dtype not in (np.uint8, np.uint16):
        raise MediaError(f"{path}: the picture is damaged or of a kind that isn't supported.")
    return samples


def copies_metadata(form: Format, header: Header) -> bool:
    """Return whether an output's metadata are copied from the source's bytes, not by OpenCV."""
    return form == header.format and form in ("png", "jpeg")


def encode(
    pixels: Any, form: Format, source: bytes, header: Header, samples: Samples | None
) -> bytes:
    """Return a picture file of `pixels` with the metadata of the `source` file.

    Args:
        samples: the decoded source; None if `copies_metadata`.

    Raises:
        RefusedError: the format can't hold a picture of this size or kind.
        EncodeError: OpenCV failed.
    """
    options = ENCODE_OPTIONS[form]
    if form == "webp" and header.is_lossless:
        options = LOSSLESS_WEBP
    try:
        if samples is None or copies_metadata(form, header):
            ok, data = cv2.imencode(f".{form}", pixels, options)
        else:
            ok, data = cv2.imencodeWithMetadata(
                f".{form}", pixels, samples.metadata_types, samples.metadata, options
            )
    except cv2.error as error:
        raise EncodeError(f"the picture cannot be written as {form} ({error.err}).") from error
    if not ok:
        raise EncodeError(f"the picture cannot be written as {form}.")
    encoded = bytes(data)
    if form != header.format:
        return encoded
    if form == "png":
        return _with_png_metadata(encoded, source)
    if form == "jpeg":
        return _with_jpeg_metadata(encoded, source)
    return encoded


def check_holds(form: Format, width: int, height: int, has_alpha: bool) -> None:
    """Raise `RefusedError` if a format can't hold such a picture."""
    if max(width, height) > MAX_SIDE[form]:
        raise RefusedError(
            f"an output of {width}x{height} is too large for {form} (at most {MAX_SIDE[form]} "
            "pixels a side); choose -o with .png or a smaller --scale."
        )
    if has_alpha and not HOLDS_ALPHA[form]:
        raise RefusedError(f"{form} holds no transparency; choose -o with .png or .webp.")


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (kind, whole chunk) of each complete chunk."""
    position = len(PNG_SIGNATURE)
    while position + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, position)
        end = position + 12 + length
        if end > len(content):
            return
        yield content[position + 4 : position + 8], content[position:end]
        position = end


def _with_png_metadata(encoded: bytes, source: bytes) -> bytes:
    """Insert the source's kept chunks after IHDR, except those with a wrong checksum."""
    kept = b"".join(
        chunk
        for kind, chunk in _png_chunks(source)
        if kind in PNG_KEPT and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
    )
    own = [chunk for kind, chunk in _png_chunks(encoded) if kind not in PNG_KEPT]
    return PNG_SIGNATURE + own[0] + kept + b"".join(own[1:])


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (marker, whole segment) of those before the first scan."""
    position = 2
    while position + 4 <= len(content):
        if content[position] != 0xFF:
            raise IndexError
        marker = content[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if marker == 0xDA:
            return
        (length,) = struct.unpack_from(">H", content, position + 2)
        end = position + 2 + length
        yield marker, content[position:end]
        position = end


def _with_jpeg_metadata(encoded: bytes, source: bytes) -> bytes:
    """Copy EXIF, XMP, ICC, IPTC, comments and resolution, but no preview of another size."""
    kept = [segment for marker, segment in _jpeg_segments(source) if _is_metadata(marker, segment)]
    jfif = [s for marker, s in _jpeg_segments(source) if marker == 0xE0 and s[4:9] == b"JFIF\0"]
    start = 2
    for marker, segment in _jpeg_segments(encoded):
        if marker != 0xE0:
            break
        start += len(segment)
    app0 = encoded[2:start]
    if jfif and app0[4:9] == b"JFIF\0":
        app0 = app0[:11] + jfif[0][11:16] + app0[16:]
    return encoded[:2] + app0 + b"".join(kept) + encoded[start:]


def _is_metadata(marker: int, segment: bytes) -> bool:
    is_multi_picture = marker == 0xE2 and segment[4:8] == b"MPF\0"
    return (marker in (0xE1, 0xE2, 0xED, 0xFE)) and not is_multi_picture
