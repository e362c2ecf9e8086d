"""Translates libav's errors into srstream's; every call of libav goes through `libav_errors`."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av

from srstream.errors import DiskFullError, MediaError, RefusedError, SrstreamError, UsageError

_SHOWN: dict[str, str] = {}


def show_as(path: Path, name: Path) -> None:
    """Make errors about `path`, a descriptor's path, mention `name` from now on."""
    _SHOWN[os.fspath(path)] = os.fspath(name)


def display_name(path: Path | str) -> str:
    """Return the last part of a path, or a URL without its user and password."""
    text = _SHOWN.get(os.fspath(path), os.fspath(path))
    if re.match(r"[a-z][a-z0-9+.-]*:/", text, re.IGNORECASE):
        return re.sub(r"(:/{1,2})[^/@]*@", r"\1", text)
    return Path(text).name or text


def shown_path(path: Path) -> str:
    """Return a whole path as it was given."""
    return _SHOWN.get(os.fspath(path), os.fspath(path))


def ffmpeg_text(error: BaseException) -> str:
    """Return FFmpeg's own text for an error, without number, path or log."""
    text = getattr(error, "strerror", None) or str(error)
    return str(text).strip().rstrip(".") or type(error).__name__


def sentence(
    path: Path | str,
    what: str,
    *,
    at_seconds: float | None = None,
    error: BaseException | None = None,
    advice: str = "",
) -> str:
    """Return `NAME: what at when (FFmpeg: text). What to do.`"""
    when = "" if at_seconds is None else f" at {at_seconds:.3f} s"
    why = "" if error is None else f" (FFmpeg: {ffmpeg_text(error)})"
    return f"{display_name(path)}: {what}{when}{why}.{f' {advice}' if advice else ''}"


def refuse_giant(path: Path, width: int, height: int, max_pixels: int) -> None:
    """Raise `RefusedError` if a picture has more pixels than are allowed."""
    if width * height > max_pixels:
        raise RefusedError(
            sentence(
                path,
                f"its picture measures {width}x{height}, more than the {max_pixels} pixels that "
                "are allowed",
                advice="Raise source.max_pixels if you trust the file.",
            )
        )


@contextmanager
def libav_errors(
    path: Path | str,
    doing: str,
    at_seconds: float | None = None,
    *,
    kind: type[SrstreamError] = MediaError,
    advice: str = "",
) -> Iterator[None]:
    """Re-raise libav's exceptions as `kind` with a one-sentence message; `doing` says what failed.

    A full disk becomes DiskFullError and a missing or forbidden file UsageError, whatever `kind`
    is. srstream's own errors pass through unchanged.

    >>> with libav_errors(path, "it cannot be opened", advice="Is it a video?"): ...
    """
    try:
        yield
    except av.FFmpegError as error:
        number = abs(error.errno or 0)
        if number in (errno.ENOSPC, errno.EDQUOT):
            kind, advice = DiskFullError, "Free some space and run the command again; it resumes."
        elif number == errno.ENOENT:
            kind, advice = UsageError, "Check the path."
        elif number in (errno.EACCES, errno.EPERM):
            kind, advice = UsageError, "Check its permissions."
        text = sentence(path, doing, at_seconds=at_seconds, error=error, advice=advice)
        raise kind(text) from error
    except (MemoryError, UnicodeDecodeError) as error:
        raise kind(
            sentence(path, f"{doing}: {type(error).__name__}", at_seconds=at_seconds, advice=advice)
        ) from error
