"""Adds what rounded photographs lack: dark and bright scenes, values beyond the nominal range, and
the roundings of full range and of 10 bits.

Planes are float32 code values of 255 in the networks' own form: luma at 16 to 235, chroma at 128 +-
112, RGB at 0 to 255. Their mapping is linear, like that of a camera's exposure or a wrong range,
so low resolution remains the low resolution of the original, however it was made.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from srstream.models.table import ColorFormName
from trainer.config import AugmentationSection
from trainer.data.planes import Values

BLACK, WHITE, GREY = 16.0, 235.0, 128.0

TONES = {
    "dark": ((1.0, 24.0), (32.0, 120.0)),
    "bright": ((120.0, 208.0), (225.0, 254.0)),
    "wide": ((1.0, 16.0), (235.0, 254.0)),
}
"""The range of luma codes for black and white. BT.601 reserves 0 and 255 for signaling."""

MAX_CHROMA_GAIN = 126 / 112
"""The cap on the chroma gain; chroma then spans 2 to 254."""


class Line(NamedTuple):
    """A linear map of code values."""

    gain: float
    offset: float

    def __call__(self, values: Values) -> Values:
        return np.asarray(self.gain * values + self.offset, np.float32)


class Tone(NamedTuple):
    """The maps applied to luma and to chroma, or to R, G and B alike."""

    luma: Line
    chroma: Line

    @classmethod
    def between(cls, black: float, white: float, color: ColorFormName) -> Tone:
        """Map black and white to these luma codes; in RGB, as far as the range allows."""
        gain = (white - black) / (WHITE - BLACK)
        if color == "rgb":
            low, high = (255 * (c - BLACK) / (WHITE - BLACK) for c in (black, white))
            low, high = max(low, 0.0), min(high, 255.0)
            line = Line((high - low) / 255, low)
            return cls(line, line)
        chroma_gain = min(gain, MAX_CHROMA_GAIN)
        return cls(Line(gain, black - gain * BLACK), Line(chroma_gain, GREY - chroma_gain * GREY))


class Change(NamedTuple):
    """What is done to one patch; None where that is nothing."""

    tone: Tone | None
    step: tuple[float, float] | None
    """Between two codes of luma and of chroma, to which low resolution is rounded."""


class Augmentation:
    """Draws a tone for each patch and a rounding for its low resolution, by their shares."""

    def __init__(self, section: AugmentationSection, color: ColorFormName) -> None:
        self.section, self.color = section, color
        self._tones = np.cumsum([section.dark_share, section.bright_share, section.wide_share])
        self._roundings = np.cumsum(
            [section.unrounded_share, section.full_range_share, section.ten_bit_share]
        )

    def draw(self, random: np.random.Generator) -> Change:
        """What is to be done to the next patch."""
        return Change(self._tone(random), self._step(random))

    def apply(
        self, lr: Values, hr: tuple[Values, ...], change: Change
    ) -> tuple[Values, tuple[Values, ...]]:
        """Change a patch's planes at both resolutions alike; round only `lr`."""
        tone, step = change
        if tone is not None:
            lr = self._by_plane(lr, tone)
            if self.color == "yuv420":
                hr = (tone.luma(hr[0]), tone.chroma(hr[1]))
            else:
                hr = tuple(tone.luma(planes) for planes in hr)
        return (self._rounded(lr, *step) if step else lr), hr

    def _tone(self, random: np.random.Generator) -> Tone | None:
        """Draw a tone; None leaves the patch unchanged."""
        drawn = _drawn(self._tones, random)
        black, white = (random.uniform(*end) for end in list(TONES.values())[drawn or 0])
        return None if drawn is None else Tone.between(black, white, self.color)

    def _step(self, random: np.random.Generator) -> tuple[float, float] | None:
        """Draw the steps between codes of luma and of chroma; None does not round."""
        drawn = _drawn(self._roundings, random)
        if drawn == 0:
            return None
        if self.color == "rgb":
            return (255 / 1023,) * 2 if drawn == 2 else (1.0, 1.0)
        return {1: (219 / 255, 224 / 255), 2: (0.25, 0.25), None: (1.0, 1.0)}[drawn]

    def _by_plane(self, lr: Values, tone: Tone) -> Values:
        return np.concatenate([tone.luma(lr[:1]), tone.chroma(lr[1:])])

    def _rounded(self, lr: Values, luma_step: float, chroma_step: float) -> Values:
        if self.color == "rgb":
            return _to_steps(lr, luma_step, 0.0)
        return np.concatenate(
            [_to_steps(lr[:1], luma_step, BLACK), _to_steps(lr[1:], chroma_step, GREY)]
        )


def _to_steps(values: Values, step: float, origin: float) -> Values:
    """Round half up to whole steps from `origin`."""
    steps = np.floor((values - origin) / step + 0.5)
    return np.asarray(origin + step * steps, np.float32)


def _drawn(cumulative: NDArray[np.float64], random: np.random.Generator) -> int | None:
    """Draw the index of one of the shares, or None for the remainder."""
    index = int(np.searchsorted(cumulative, random.random(), side="right"))
    return index if index < len(cumulative) else None
