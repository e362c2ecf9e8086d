"""The rule for output names: `INPUT_4x` next to the input, `INPUT_720p` for a height."""

from __future__ import annotations

import os
from pathlib import Path

from srstream.config import ScaleConfig
from srstream.errors import UsageError

NATIVE_SCALE = 4

KEPT_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm"})
"""Suffixes that an output keeps if it is named before the input has been opened."""

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
"""Suffixes of still pictures; each is kept. A few files of such names are animations."""

_MAX_NAME_BYTES = 255


def check_length(path: Path) -> None:
    """Check that a file system takes an output's name.

    Raises:
        UsageError: it is too long.
    """
    if len(os.fsencode(path.name)) > _MAX_NAME_BYTES:
        raise UsageError(f"{path.name[:40]}...: this name is too long; give another with -o.")


def mark_of(scaling: ScaleConfig) -> str:
    """Return what marks an output of this size: `4x`, `2.5x`, `720p`, `1280w`, `1920x1080`."""
    if scaling.height is not None:
        return f"{scaling.height}p"
    if scaling.width is not None:
        return f"{scaling.width}w"
    if scaling.fit is not None:
        return scaling.fit
    return f"{round(scaling.scale or NATIVE_SCALE, 2):g}x"


def marked(path: Path, scaling: ScaleConfig, suffix: str | None = None) -> Path:
    """Return the name of an output next to `path`; `suffix` replaces that of the input."""
    ending = path.suffix if suffix is None else suffix
    return path.with_name(f"{path.stem}_{mark_of(scaling)}{ending}")


def unopened_output(source: Path, scaling: ScaleConfig, *, is_still: bool = False) -> Path:
    """Return an output's name from the input's name alone: `.mkv` unless the suffix is kept.

    Args:
        is_still: whether the input is a picture that becomes a picture.
    """
    is_kept = is_still or source.suffix.lower() in KEPT_SUFFIXES
    suffix = source.suffix if is_kept else ".mkv"
    return marked(source, scaling, suffix)


def distinct_stem(source: Path, scaling: ScaleConfig) -> str:
    """Return `INPUT_avi_4x`, for when another input (`INPUT.mp4`) has taken `INPUT_4x`."""
    return f"{source.stem}_{source.suffix.removeprefix('.')}_{mark_of(scaling)}"
