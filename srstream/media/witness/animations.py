"""What differs where a picture can be seen through, and where the output is an animated picture.

An animated picture (GIF, PNG, WebP) holds no sound, aspect, rotation, or color description. GIF
counts in hundredths of a second, of which players need two for a frame, and is opaque or clear.
"""

from __future__ import annotations

import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import cast

import cv2
import numpy as np

from srstream.media.witness.likeness import Sight
from srstream.media.witness.pictures import FloatPlane, Label, Picture, resized
from srstream.media.witness.survey import Survey
from srstream.media.witness.webp import is_animated_webp, webp_facts

ANIMATED = frozenset({"gif", "apng", "png_pipe", "webp"})
"""Families of animated pictures; a PNG of one frame is a still one."""

SHORTEST = {"gif": Fraction(2, 100), "webp": Fraction(1, 1000)}
"""The least time in seconds from one frame to the next."""

LEEWAY = {"gif": 2.5}
"""How much farther than in a video colors may be from the source's: a GIF has 256."""

_SEEN = 0.6


def opaque_only(sight: Sight, mask_HW: FloatPlane | None) -> Sight:
    """Return a picture that is black where the mask is 0: nobody sees what color it has there."""
    if mask_HW is None:
        return sight
    picture = sight.picture

    def kept(plane: FloatPlane) -> FloatPlane:
        kept_HW = resized(mask_HW, (plane.shape[0], plane.shape[1])) > 0.99
        return plane * kept_HW

    chroma = picture.chroma
    if chroma is not None:
        chroma = (kept(chroma[0]), kept(chroma[1]))
    return replace(sight, picture=replace(picture, luma=kept(picture.luma), chroma=chroma))


def opaque_mask(picture: Picture) -> FloatPlane | None:
    """Return 1 where a pixel and those around it are seen, 0 elsewhere; None without alpha."""
    if picture.alpha is None:
        return None
    seen_HW = (picture.alpha > _SEEN).astype(np.float32)
    return cast(FloatPlane, cv2.erode(seen_HW, np.ones((3, 3), np.uint8)))


def as_shown(sight: Sight, brand: str) -> Sight:
    """Return a picture of the source as an animated picture can hold it."""
    label = sight.label
    if not label.is_rgb and label.matrix == 2:
        sight = replace(sight, label=replace(label, matrix=6))  # no matrix is stated: BT.601
    return upright(_cut_alpha(sight) if brand == "gif" else sight)


def _cut_alpha(sight: Sight) -> Sight:
    """Return a picture that is opaque or clear, as GIF is."""
    alpha = sight.picture.alpha
    if alpha is None:
        return sight
    cut = (alpha >= 128 / 255).astype(np.float32)
    return replace(sight, picture=replace(sight.picture, alpha=cut))


def upright(sight: Sight) -> Sight:
    """Return a picture as it is shown: turned as its label says."""
    label = sight.label
    if label.turn == (1, 0, 0, 1):
        return sight
    picture = sight.picture
    chroma = picture.chroma
    if chroma is not None:
        chroma = (_turned(chroma[0], label), _turned(chroma[1], label))
    alpha = None if picture.alpha is None else _turned(picture.alpha, label)
    siting, step = (0.0, 0.0), picture.step
    if label.turn[0] == 0:
        step = (step[1], step[0])
    made = Picture(_turned(picture.luma, label), chroma, alpha, step, siting)
    return Sight(made, upright_label(label))


def upright_label(label: Label) -> Label:
    """Return the label of the picture that `upright` makes; its siting is not known."""
    if label.turn == (1, 0, 0, 1):
        return label
    if label.turn[0] == 0:
        label = replace(label, width=label.height, height=label.width, aspect=1 / label.aspect)
    return replace(label, turn=(1, 0, 0, 1), rotation=0, siting=0)


def _turned(plane: FloatPlane, label: Label) -> FloatPlane:
    """Apply a display matrix: x' = a x + c y, y' = b x + d y (ISO/IEC 14496-12, 6.2.2)."""
    a, b, c, d = label.turn
    if a or d:
        turned = plane[:: d or 1, :: a or 1]
    else:
        turned = plane.T[:: b or 1, :: c or 1]
    return cast(FloatPlane, np.ascontiguousarray(turned))


def play_problems(source: Survey, output: Survey) -> list[str]:
    """Return the problem if two animations are not shown equally often."""
    before, now = (_plays(file.path, file.brand) for file in (source, output))
    if before is None or now is None or before == now:
        return []
    return [f"it is shown {now} times (0: without end), the source {before} times"]


def end_problems(
    output: Survey, last: Fraction, wanted: Fraction, tolerance: Fraction
) -> list[str]:
    """Return the problem if the last frame is not shown as long as the source's.

    Args:
        last: when it begins, in seconds.
        wanted: when it should end.
    """
    video = output.streams[output.video]
    ends = last + (video.ends[-1] - video.starts[-1]) * video.base
    if output.brand == "png_pipe" or abs(ends - wanted) <= tolerance:
        return []
    until = f"until {float(ends):.3f} s, the source's until {float(wanted):.3f} s"
    return [f"the last frame is shown {until}"]


def _plays(path: Path, brand: str) -> int | None:
    """Return how often an animation is shown, 0 without end; None if it is none.

    OpenCV reads it: of a GIF, that is a time more than its repetitions.
    """
    if is_animated_webp(path):
        return webp_facts(path).num_plays
    if brand not in ANIMATED or brand == "png_pipe":
        return None
    try:
        found, animation = cv2.imdecodeanimation(np.memmap(path, np.uint8, "r"), start=0, count=1)
    except cv2.error:
        return None
    return int(animation.loop_count) if found else None


def exact_times(path: Path) -> list[Fraction]:
    """Return when an animated PNG shows each frame (PNG, third edition, 11.3.6.2).

    libav rounds each delay down to 1/100000 s, and adds them up.
    """
    times, at = [], Fraction(0)
    with path.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = int.from_bytes(head[:4], "big"), head[4:]
            if kind == b"fcTL" and length == 26:
                data = file.read(26)
                times.append(at)
                part, whole = (int.from_bytes(data[n : n + 2], "big") for n in (20, 22))
                at += Fraction(part, whole or 100)
                length = 0
            file.seek(length + 4, os.SEEK_CUR)
    return times


class Thinning:
    """Tells which frames of a source an animation can show, one after another."""

    def __init__(self, brand: str, base: Fraction) -> None:
        self._shortest = SHORTEST.get(brand)
        self._base = base
        self._last: int | None = None
        self.num_left_out = 0

    def leaves_out(self, wanted: Fraction) -> bool:
        """Return whether a frame comes too soon after the last one; count it then."""
        if self._shortest is None:
            return False
        tick = round(wanted / self._base)
        if self._last is not None and (tick - self._last) * self._base < self._shortest:
            self.num_left_out += 1
            return True
        self._last = tick
        return False
