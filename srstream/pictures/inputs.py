"""Finds the files of a picture job: one file, a folder's, or those that match a pattern."""

from __future__ import annotations

import glob
from pathlib import Path

from srstream.errors import UsageError
from srstream.pictures.files import SUFFIXES
from srstream.pictures.stills import is_still_file

ANIMATED_SUFFIXES = frozenset({".gif", ".apng"})
"""Suffixes of animations that are never taken for a still picture."""


def is_picture(path: Path) -> bool:
    """Return whether the name is that of a picture."""
    return path.suffix.lower() in SUFFIXES


def is_picture_input(source: Path) -> bool:
    """Return whether an input means pictures: a file, a folder, or a pattern such as `*.png`.

    A single animated picture is a video; in a folder or a pattern it may be among pictures.
    """
    if source.is_dir():
        return True
    if source.exists() or not glob.has_magic(str(source)):
        return is_picture(source) and not is_animated(source)
    return is_picture(source) or any(map(_is_wanted, _matches(source)))


def is_animated(path: Path) -> bool:
    """Return whether a file is an animation to enhance as a video: a GIF, an animated PNG or WebP.

    An animated PNG of one frame is a picture; a WebP that says it is animated is none.
    """
    return path.suffix.lower() in ANIMATED_SUFFIXES or (
        is_picture(path) and not is_still_file(path)
    )


def expand_inputs(source: Path) -> list[Path]:
    """Return the pictures that an input means, animated ones too, sorted by name.

    Raises:
        UsageError: there is none.
    """
    if source.is_dir():
        found = [path for path in source.iterdir() if _is_wanted(path)]
        if not found:
            raise UsageError(
                f"{source}: this folder holds no picture (PNG, JPEG, WebP, BMP, TIFF, GIF). "
                "Videos are named one by one."
            )
        return sorted(found)
    if source.exists() or not glob.has_magic(str(source)):
        if not source.exists():
            raise UsageError(f"{source}: there is no such file.")
        return [source]
    found = [path for path in _matches(source) if _is_wanted(path)]
    if not found:
        raise UsageError(f"{source}: no picture has such a name.")
    return sorted(found)


def _is_wanted(path: Path) -> bool:
    return path.is_file() and (is_picture(path) or path.suffix.lower() in ANIMATED_SUFFIXES)


def _matches(pattern: Path) -> list[Path]:
    return [Path(name) for name in glob.glob(str(pattern), recursive=True)]
