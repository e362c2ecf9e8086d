"""The animated pictures that can be written, and what each can hold."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from srstream.errors import RefusedError
from srstream.media.types import SourceInfo


@dataclass(frozen=True, slots=True)
class AnimationFormat:
    """A format of animated pictures."""

    name: str
    label: str
    extensions: tuple[str, ...]
    max_side: int
    clock: Fraction | None
    """The unit of times in seconds; None: that of the source."""
    shortest: int = 1
    """The least units from one frame to the next."""


GIF = AnimationFormat("gif", "GIF", (".gif",), 65535, Fraction(1, 100), shortest=2)
"""Players show a frame of less than 2/100 s for 10/100 s."""
APNG = AnimationFormat("apng", "animated PNG", (".apng", ".png"), (1 << 24) - 1, None)
WEBP = AnimationFormat("webp", "animated WebP", (".webp",), 16383, Fraction(1, 1000))
ANIMATIONS = {form.name: form for form in (GIF, APNG, WEBP)}


def animation_for(path: Path, source: SourceInfo) -> AnimationFormat | None:
    """Return the animated picture that an output's ending names; None if it names none.

    `.png` names one for a source that is an animation itself.
    """
    suffix = path.suffix.lower()
    if suffix == ".png" and source.num_plays is None:
        return None
    return next((form for form in ANIMATIONS.values() if suffix in form.extensions), None)


def check_side(form: AnimationFormat, width: int, height: int) -> None:
    """Raise `RefusedError` if a format cannot hold such a picture."""
    if max(width, height) > form.max_side:
        raise RefusedError(
            f"{form.label} holds at most {form.max_side} pixels a side, the output would be "
            f"{width}x{height}; use --scale or --height for a smaller one."
        )


@dataclass(frozen=True, slots=True)
class Slot:
    """When a frame is shown, in units of the animation's clock."""

    number: int
    """The frame's place among all frames of the job."""
    start: int
    length: int


def slots(
    form: AnimationFormat, pts: tuple[int, ...], last_duration: int, time_base: Fraction
) -> list[Slot]:
    """Place frames on the clock of an animation that starts with the first of them.

    Each time is rounded by itself, so that errors do not add up. A frame that follows the one
    before sooner than the format can say is left out.

    Args:
        pts, last_duration: rising times and the last frame's duration, in `time_base`.
    """
    unit = form.clock or time_base
    kept: list[tuple[int, int]] = []
    for number, moment in enumerate(pts):
        tick = round((moment - pts[0]) * time_base / unit)
        if not kept or tick - kept[-1][1] >= form.shortest:
            kept.append((number, tick))
    end = round((pts[-1] + last_duration - pts[0]) * time_base / unit) if pts else 0
    starts = [tick for _, tick in kept]
    ends = [*starts[1:], max(end, starts[-1] + form.shortest)] if kept else []
    return [
        Slot(number, start, end - start) for (number, start), end in zip(kept, ends, strict=True)
    ]
