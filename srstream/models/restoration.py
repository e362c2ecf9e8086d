"""`--restore auto`: from what a source looks like to a position of the knob.

Two signals decide: how hard the source was compressed and how soft its pictures are. The rules were
fitted on other clips than they are judged on (docs/evaluation.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

LEAST_SLOPE = 0.25
"""In levels; added to slopes so that a flat picture counts as soft, not as 0 / 0."""


@dataclass(frozen=True, slots=True)
class Detail:
    """Root mean squares over a few frames, along rows and columns, in levels of 255."""

    slope: float
    """Of the difference between the samples before and behind: all there is to see."""
    curvature: float
    """Of the second difference: the finest of it, which blur and hard compression take away."""

    @property
    def sharpness(self) -> float:
        """Curvature beside slope: near 0 for ramps and blur, 1 for steps, 1.7 for noise."""
        return self.curvature / (self.slope + LEAST_SLOPE)

    def octaves_over(self, quantizer: float) -> float:
        """How far the curvature stands over the step of a quantizer on x264's scale, log2.

        H.264's step is 0.625 at 0 and doubles with every 6.
        """
        return math.log2((self.curvature + 0.1) / 0.625) - quantizer / 6.0


Line = tuple[tuple[float, float], ...]
"""Points (x, y) with rising x; straight lines between them, level beyond the ends."""


@dataclass(frozen=True)
class RestoreRule:
    """What `--restore auto` makes of a source, fitted by `benchmarks/restore_auto.py`."""

    knob_by_quantizer: Line
    """x264's quantizer: the harder the compression, the more there is to mend."""
    knob_by_sharpness: Line
    """`Detail.sharpness`: what the faithful weights add to a soft source is wrong. The larger of
    both is taken."""
    sharper_per_quantizer: float
    """Added to the sharpness for each quantizer above `MIDDLE_QUANTIZER`, for that line only."""
    strength_by_sharpness: Line
    strength_by_octaves: Line
    """`Detail.octaves_over` the quantizer: what it left. The smaller of both is taken."""


MIDDLE_QUANTIZER, MOST_BESIDE = 25.0, 10.0
"""Beyond so many beside the middle the sharpness counts as there."""

RESTORE_RULES: dict[str, RestoreRule] = {
    "fast": RestoreRule(
        knob_by_quantizer=(
            (5.0, 0.0), (14.0, 0.08), (19.0, 0.17), (23.0, 0.27), (28.0, 0.88), (33.0, 1.0),
        ),
        knob_by_sharpness=((0.61, 1.0), (0.79, 0.0)),
        sharper_per_quantizer=0.011,
        strength_by_sharpness=((0.38, 0.12), (0.62, 0.38), (0.74, 0.72), (0.92, 1.0)),
        strength_by_octaves=((-6.0, 1.0),),
    ),
    "balanced": RestoreRule(
        knob_by_quantizer=(
            (5.0, 0.0), (14.0, 0.3), (19.0, 0.38), (23.0, 0.41), (28.0, 0.82), (33.0, 1.0),
        ),
        knob_by_sharpness=((0.55, 1.0), (0.82, 0.0)),
        sharper_per_quantizer=0.009,
        strength_by_sharpness=((0.33, 0.13), (0.92, 1.0)),
        strength_by_octaves=((-6.0, 1.0),),
    ),
    "srgan": RestoreRule(
        knob_by_quantizer=(
            (5.0, 0.0), (14.0, 0.36), (19.0, 0.49), (23.0, 0.49), (28.0, 0.85), (33.0, 1.0),
        ),
        knob_by_sharpness=((0.33, 1.0), (0.6, 0.0)),
        sharper_per_quantizer=0.019,
        strength_by_sharpness=((0.42, 0.37), (0.91, 1.0)),
        strength_by_octaves=((-3.65, 0.24), (-2.1, 1.0)),
    ),
}  # fmt: skip
"""Of `fast` and `balanced` between two fits: one to the footage as it is and a little blurred, one
with more of it blurred; `fast` takes less of what is soft than both. `srgan`'s is the first fit."""


@dataclass(frozen=True)
class Restoration:
    """A position of the knob, and how much of the network is taken there."""

    restore: float
    strength: float
    """The share of what the network adds to bicubic."""


def restoration_for(quantizer: float, detail: Detail, model: str) -> Restoration:
    """For a quantizer on x264's scale and the detail that is left.

    A model that nobody has measured yet is taken to be like `fast`.
    """
    return restoration_by(RESTORE_RULES.get(model, RESTORE_RULES["fast"]), quantizer, detail)


def restoration_by(rule: RestoreRule, quantizer: float, detail: Detail) -> Restoration:
    """What a rule says, both in steps of 0.05."""
    sharpness, octaves = detail.sharpness, detail.octaves_over(quantizer)
    harder = float(np.clip(quantizer - MIDDLE_QUANTIZER, -MOST_BESIDE, MOST_BESIDE))
    seen = sharpness + rule.sharper_per_quantizer * harder
    restore = max(at(rule.knob_by_quantizer, quantizer), at(rule.knob_by_sharpness, seen))
    strength = min(at(rule.strength_by_sharpness, sharpness), at(rule.strength_by_octaves, octaves))
    return Restoration(_in_steps(restore), _in_steps(strength))


def at(line: Line, x: float) -> float:
    """The line's y at x."""
    xs, ys = zip(*line, strict=True)
    return float(np.interp(x, xs, ys))


def _in_steps(value: float) -> float:
    return round(20.0 * value) / 20.0
