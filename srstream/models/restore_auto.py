"""The rules of `--restore auto`, which choose a position of the knob for a source.

Two signals decide: how hard the source was compressed, and how soft its pictures are. The rules
are fitted to and judged on different clips (docs/evaluation.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

LEAST_SLOPE = 0.25
"""Levels added to a slope, so that a flat picture counts as soft instead of as 0 / 0."""


@dataclass(frozen=True, slots=True)
class Detail:
    """The detail of a few frames as root mean squares along rows and columns, in levels of 255."""

    slope: float
    """The difference between the previous and the next sample, to which all detail contributes."""
    curvature: float
    """The second difference: the finest detail, which blur and hard compression remove."""

    @property
    def sharpness(self) -> float:
        """Return curvature over slope: near 0 for ramps and blur, 1 for steps, 1.7 for noise."""
        return self.curvature / (self.slope + LEAST_SLOPE)

    def octaves_over(self, quantizer: float) -> float:
        """Return the ratio of the curvature to the step of a quantizer on x264's scale, as log2.

        H.264's step is 0.625 at 0 and doubles with every 6.
        """
        return math.log2((self.curvature + 0.1) / 0.625) - quantizer / 6.0


Line = tuple[tuple[float, float], ...]
"""Points (x, y) with rising x, joined by straight lines; level beyond the ends."""


@dataclass(frozen=True)
class RestoreRule:
    """The rule of `--restore auto` for one model, fitted by `benchmarks/restore_auto.py`."""

    knob_by_quantizer: Line
    """The knob by x264's quantizer: the harder the compression, the more there is to restore."""
    knob_by_sharpness: Line
    """The knob by `Detail.sharpness`: what faithful weights add to a soft source is wrong. The
    larger of both values is used."""
    sharper_per_quantizer: float
    """An addition to the sharpness for each step of the quantizer above `MIDDLE_QUANTIZER`, only in
    `knob_by_sharpness`."""
    strength_by_sharpness: Line
    """The strength by `Detail.sharpness`."""
    strength_by_octaves: Line
    """The strength by `Detail.octaves_over` the quantizer, which is the detail that it left. The
    smaller of both values is used."""


MIDDLE_QUANTIZER, MOST_BESIDE = 25.0, 10.0
"""The middle of the quantizers, and the largest distance from it at which the sharpness is
adjusted."""

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
"""The rules by model. Those of `fast` and `balanced` lie between two fits: one to the footage
unchanged or slightly blurred, and one with more of it blurred. On soft sources `fast` has a lower
strength than in either. The rule of `srgan` is the first fit."""


@dataclass(frozen=True)
class Restoration:
    """A position of the knob and the strength of the network."""

    restore: float
    strength: float
    """The share of the network's addition to bicubic."""


def restoration_for(quantizer: float, detail: Detail, model: str) -> Restoration:
    """Choose from the quantizer, on x264's scale, and the remaining detail.

    A model without a rule of its own is treated like `fast`.
    """
    return restoration_by(RESTORE_RULES.get(model, RESTORE_RULES["fast"]), quantizer, detail)


def restoration_by(rule: RestoreRule, quantizer: float, detail: Detail) -> Restoration:
    """Apply a rule; both values come in steps of 0.05."""
    sharpness, octaves = detail.sharpness, detail.octaves_over(quantizer)
    harder = float(np.clip(quantizer - MIDDLE_QUANTIZER, -MOST_BESIDE, MOST_BESIDE))
    seen = sharpness + rule.sharper_per_quantizer * harder
    restore = max(at(rule.knob_by_quantizer, quantizer), at(rule.knob_by_sharpness, seen))
    strength = min(at(rule.strength_by_sharpness, sharpness), at(rule.strength_by_octaves, octaves))
    return Restoration(_in_steps(restore), _in_steps(strength))


def at(line: Line, x: float) -> float:
    """Return the line's y at x."""
    xs, ys = zip(*line, strict=True)
    return float(np.interp(x, xs, ys))


def _in_steps(value: float) -> float:
    return round(20.0 * value) / 20.0
