"""Finds the videos and pictures that a command names: files, folders and patterns, in any mix."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srstream.errors import UsageError
from srstream.media.write.containers import VIDEO_SUFFIXES
from srstream.pictures.inputs import is_animated, is_picture

_MORE_VIDEOS = (
    *("3g2", "3gp", "amv", "divx", "dv", "f4v", "h264", "h265", "hevc", "ivf", "m1v", "m2v", "mj2"),
    *("mjpeg", "mjpg", "mpv", "mxf", "nut", "ogm", "qt", "rm", "rmvb", "y4m", "gif", "apng"),
)
INPUT_SUFFIXES = VIDEO_SUFFIXES | {f".{name}" for name in _MORE_VIDEOS}
"""Names of videos in a folder; a video that is named by itself may be called anything."""

_ENLARGED = re.compile(r"(?P<stem>.+)_(?:\d+(?:\.\d+)?x|(?P<size>\d+[pw]|\d+x\d+))$")
"""The names that `srstream.naming` gives; many films are called `_720p`, few `_4x`."""


@dataclass(frozen=True, slots=True)
class Input:
    """One file to enhance."""

    path: Path
    folder: Path | None = None
    """The folder or pattern's folder through which it was found; None if it was named itself."""
    below: Path = Path()
    """Where in that folder it lies."""

    @property
    def is_still(self) -> bool:
        """Return whether it is a picture that becomes a picture."""
        return is_picture(self.path) and not is_animated(self.path)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file that matches a folder or pattern but is not enhanced."""

    path: Path
    reason: str

    def as_json(self) -> dict[str, Any]:
        """Return an entry of `srstream plan --json`."""
        return {
            "schema": "srstream.picture-plan/1",
            "input": str(self.path),
            "output": None,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True)
class Found:
    """All that a command names."""

    inputs: tuple[Input, ...]
    left_out: tuple[LeftOut, ...]
    is_several: bool
    """Whether more than one file was named, or a folder or pattern, however few it holds."""


def find_inputs(
    sources: Sequence[Path], *, is_recursive: bool = False, output: Path | None = None
) -> Found:
    """Find the files behind names, folders and patterns, each once, in the order given.

    Args:
        is_recursive: look into the folders of a folder too.
        output: the folder of the results; what it holds is no input.

    Raises:
        UsageError: a folder or pattern holds nothing to enhance.
    """
    inputs: dict[Path, Input] = {}
    left_out: dict[Path, LeftOut] = {}
    for source in sources:
        found = [
            entry
            for entry in _behind(source, is_recursive)
            if not _is_result(entry.path, source, output)
        ]
        usable = [entry for entry in found if isinstance(entry, Input)]
        unusable = [entry for entry in found if isinstance(entry, LeftOut)]
        if not usable:
            raise UsageError(_nothing(source, unusable))
        for entry in usable:
            inputs.setdefault(_real(entry.path), entry)
        for unwanted in unusable:
            left_out.setdefault(_real(unwanted.path), unwanted)
    is_several = len(sources) > 1 or any(entry.folder is not None for entry in inputs.values())
    rest = [unwanted for path, unwanted in left_out.items() if path not in inputs]
    return Found(tuple(inputs.values()), tuple(rest), is_several)


def _is_result(path: Path, source: Path, output: Path | None) -> bool:
    """Return whether a file of a folder lies in the folder of the results, further down."""
    if output is None or _real(output) == _real(source) or not source.is_dir():
        return False
    return _real(path).is_relative_to(_real(output))


def _real(path: Path) -> Path:
    """Return where a path leads; a loop of links leads to itself."""
    return Path(os.path.realpath(path))


def _behind(source: Path, is_recursive: bool) -> Iterator[Input | LeftOut]:
    if source.is_dir():
        files = source.rglob("*") if is_recursive else source.iterdir()
        visible = (
            path
            for path in files
            if not any(part.startswith(".") for part in path.relative_to(source).parts)
        )
        for path in sorted(visible):
            if path.is_dir():
                if not is_recursive:
                    yield LeftOut(path, "a folder; --recursive looks into it")
                continue
            reason = _why_left_out(path)
            yield (
                LeftOut(path, reason)
                if reason
                else Input(path, source, path.parent.relative_to(source))
            )
    elif source.exists() or not glob.has_magic(str(source)):
        yield Input(source)
    else:
        for path in sorted(Path(name) for name in glob.glob(str(source), recursive=True)):
            reason = "a folder, which is named by itself" if path.is_dir() else ""
            reason = reason or _why_left_out(path)
            yield LeftOut(path, reason) if reason else Input(path, path.parent)


def _why_left_out(path: Path) -> str:
    """Return why a file of a folder or pattern is not enhanced; empty if it is."""
    if not path.is_file():
        return "no regular file"
    suffix = path.suffix.lower()
    if suffix not in INPUT_SUFFIXES and not is_picture(path):
        return "neither a video nor a picture by its name"
    if _is_own_output(path):
        return "enlarged already; named by itself it is enlarged again"
    return ""


def _is_own_output(path: Path) -> bool:
    """Return whether a name says that srstream made the file."""
    found = _ENLARGED.fullmatch(path.stem)
    if found is None:
        return False
    if found["size"] is None:
        return True
    # Without its source beside it, the size may be part of the film's own name.
    return any(
        other.stem == found["stem"] and other.suffix.lower() in INPUT_SUFFIXES
        for other in path.parent.iterdir()
    )


def _nothing(source: Path, left_out: Sequence[LeftOut]) -> str:
    what = "this folder" if source.is_dir() else "this pattern"
    if not left_out:
        says = "this folder is empty" if source.is_dir() else "no file has such a name"
        return f"{source}: {says}."
    reasons = sorted({f"{entry.path.name}: {entry.reason}" for entry in left_out})
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    return f"{source}: {what} holds nothing to enhance; {reasons[0]}{more}."
