"""Tells pictures from videos by a name and a file's first bytes, without decoding anything.

The daemon's supervisor asks, so nothing here loads OpenCV or libav.
"""

from __future__ import annotations

import os
from pathlib import Path

from srstream.errors import UsageError
from srstream.naming import PICTURE_SUFFIXES

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MAX_CHUNKS = 256
"""Chunks of a PNG that are looked at; those before its picture are few."""


def has_picture_name(path: Path) -> bool:
    """Return whether a name is that of a picture; an animation may have such a name too."""
    return path.suffix.lower() in PICTURE_SUFFIXES


def is_still(path: Path, descriptor: int) -> bool:
    """Return whether a file becomes a picture, not a video.

    Args:
        descriptor: the file, opened for reading; its position stays.
    """
    try:
        return has_picture_name(path) and not (
            _is_animated_png(descriptor) or _is_animated_webp(descriptor)
        )
    except OSError:
        return True  # Reading the whole file later reports why it cannot be read.


def check_still_output(source: Path, output: Path) -> None:
    """Check the name of a still picture's output.

    Raises:
        UsageError: it is no picture's.
    """
    if not has_picture_name(output):
        raise UsageError(
            f"{output}: {source.name} is a picture and becomes one; choose a name that ends in "
            f"{', '.join(sorted(PICTURE_SUFFIXES))}."
        )


def _is_animated_webp(descriptor: int) -> bool:
    """Look at the flags of the extended header (RFC 9649, 2.7)."""
    head = os.pread(descriptor, 21, 0)
    is_extended = head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X"
    return is_extended and len(head) == 21 and bool(head[20] & 2)


def _is_animated_png(descriptor: int) -> bool:
    """Look at the heads of the chunks before the picture (PNG, third edition, 11.3.6.1)."""
    if os.pread(descriptor, len(_PNG_SIGNATURE), 0) != _PNG_SIGNATURE:
        return False
    position = len(_PNG_SIGNATURE)
    for _ in range(_MAX_CHUNKS):
        head = os.pread(descriptor, 12, position)
        if len(head) < 12 or head[4:8] == b"IDAT":
            return False
        if head[4:8] == b"acTL":
            return int.from_bytes(head[8:12], "big") > 1
        position += 12 + int.from_bytes(head[:4], "big")
    return False
