"""Reads animated WebP: times from its chunks (RFC 9649), pictures from OpenCV, for libav has none.

OpenCV puts the frames together with the format's own library, and returns whole pictures.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame

from srstream.errors import MediaError
from srstream.media.errors import sentence

BASE = Fraction(1, 1000)
_BATCH_BYTES = 64 << 20
_UNSTATED_MS = 100
"""How long browsers show a frame that states no duration."""


@dataclass(slots=True)
class WebpFacts:
    """The canvas, the times of the frames in milliseconds, and how often all is shown (0: ever)."""

    width: int
    height: int
    num_plays: int = 1
    starts: array[int] = field(default_factory=lambda: array("q"))
    ends: array[int] = field(default_factory=lambda: array("q"))


def is_animated_webp(path: Path) -> bool:
    """Return whether a file is a WebP whose header says that it is animated."""
    try:
        with path.open("rb") as file:
            head = file.read(21)
    except OSError:
        return False
    is_webp = head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X"
    return is_webp and len(head) == 21 and bool(head[20] & 2)


def webp_facts(path: Path) -> WebpFacts:
    """Read the chunks of the file.

    Raises:
        MediaError: there is no frame.
    """
    data = _content(path)
    width, height = (int.from_bytes(bytes(data[n : n + 3]), "little") + 1 for n in (24, 27))
    facts = WebpFacts(width, height)
    for kind, at, _ in _chunks(data):
        if kind == b"ANIM":
            facts.num_plays = int.from_bytes(bytes(data[at + 4 : at + 6]), "little")
        elif kind == b"ANMF":
            start = facts.ends[-1] if facts.ends else 0
            length = int.from_bytes(bytes(data[at + 12 : at + 15]), "little")
            facts.starts.append(start)
            facts.ends.append(start + (length or _UNSTATED_MS))
    if not facts.starts:
        raise MediaError(sentence(path, "this animated WebP holds no frame"))
    return facts


def webp_frames(path: Path, facts: WebpFacts) -> Iterator[VideoFrame]:
    """Yield the pictures with their times, up to one that cannot be decoded."""
    data = _content(path)
    count = max(_BATCH_BYTES // (4 * facts.width * facts.height), 1)
    for first in range(0, len(facts.starts), count):
        wanted = min(count, len(facts.starts) - first)
        pictures = _decoded(data, first, wanted)
        for number, picture_HWC in enumerate(pictures[:wanted], first):
            if picture_HWC.shape[2] == 3:
                picture_HWC = cv2.cvtColor(picture_HWC, cv2.COLOR_BGR2BGRA)
            frame = VideoFrame.from_ndarray(picture_HWC, format="bgra")
            frame.time_base, frame.pts = BASE, facts.starts[number]
            frame.duration = facts.ends[number] - facts.starts[number]
            yield frame
        if len(pictures) < wanted:
            return


def _decoded(data: npt.NDArray[np.uint8], first: int, count: int) -> Sequence[Any]:
    """Return frames as (H, W, 3) BGR or (H, W, 4) BGRA: fewer where one cannot be decoded."""
    level = cv2.utils.logging.setLogLevel(0)  # it would report to standard error
    try:
        _, found = cv2.imdecodeanimation(data, start=first, count=count)
    except cv2.error:
        return ()
    finally:
        cv2.utils.logging.setLogLevel(level)
    return found.frames


def _content(path: Path) -> npt.NDArray[np.uint8]:
    """Return the file, of a cut-off one its whole chunks, with a header that says so."""
    data: npt.NDArray[np.uint8] = np.memmap(path, np.uint8, "r")
    if int.from_bytes(bytes(data[4:8]), "little") + 8 <= len(data):
        return data
    end = max((at + length + length % 2 for _, at, length in _chunks(data)), default=12)
    data = np.array(data[:end])
    data[4:8] = np.frombuffer((end - 8).to_bytes(4, "little"), np.uint8)
    return data


def _chunks(data: npt.NDArray[np.uint8]) -> Iterator[tuple[bytes, int, int]]:
    """Yield (kind, where the content begins, its length) of the outermost whole chunks."""
    at = 12
    while at + 8 <= len(data):
        head = bytes(data[at : at + 8])
        length = int.from_bytes(head[4:], "little")
        if at + 8 + length > len(data):
            return
        yield head[:4], at + 8, length
        at += 8 + length + length % 2
