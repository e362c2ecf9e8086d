"""Tells pictures from videos by a name and a file's first bytes, without decoding anything.

The daemon's supervisor asks, so nothing here loads OpenCV or libav.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import BinaryIO, cast

from srstream.errors import UsageError
from srstream.media.animations.header import is_animation
from srstream.naming import PICTURE_SUFFIXES

_MAX_CHUNKS = 256
"""Chunks of a PNG at which the supervisor looks, so that no file holds it up."""


def has_picture_name(path: Path) -> bool:
    """Return whether a name is that of a picture; an animation may have such a name too."""
    return path.suffix.lower() in PICTURE_SUFFIXES


def is_still(path: Path, descriptor: int) -> bool:
    """Return whether a file becomes a picture, not a video.

    Args:
        descriptor: the file, opened for reading; its position stays.
    """
    view = cast(BinaryIO, _View(descriptor))
    return has_picture_name(path) and _shows_one_picture(view, _MAX_CHUNKS)


def is_still_file(path: Path) -> bool:
    """Return whether a file whose name is a picture's becomes a picture, not a video."""
    try:
        with path.open("rb") as file:
            return _shows_one_picture(file)
    except OSError:
        return True  # Reading the whole file later reports why it cannot be read.


def _shows_one_picture(file: BinaryIO, max_chunks: int | None = None) -> bool:
    try:
        return not is_animation(file, max_chunks)
    except OSError:
        return True  # As above.


class _View(io.RawIOBase):
    """Reads an open file at a position of its own."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._position = descriptor, 0

    def read(self, size: int = -1, /) -> bytes:
        found = os.pread(self._descriptor, size, self._position)
        self._position += len(found)
        return found

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._position = offset + (self._position if whence == os.SEEK_CUR else 0)
        return self._position


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
