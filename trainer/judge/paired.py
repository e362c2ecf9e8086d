"""Paired statistics: whether two methods differ on the same frames by more than noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student_t

CONFIDENCE = 0.95

MIN_MOMENTS = 3
"""Fewer moments say nothing about how moments differ, so frames are taken as they are."""


@dataclass(frozen=True)
class PairedGain:
    """By how much a method is better than another, frame by frame."""

    mean: float
    """Over all frames."""
    noise: float
    """Half the width of the mean's 95 % confidence interval; infinite for a single frame."""
    num_frames: int
    num_moments: int

    @property
    def exceeds_noise(self) -> bool:
        """Whether the gain is above zero beyond its noise."""
        return self.mean > self.noise


def paired_gain(before: Sequence[Sequence[float]], after: Sequence[Sequence[float]]) -> PairedGain:
    """Return the gain of `after` over `before`: a figure for each frame of each moment.

    Frames of one moment are alike, so the noise is that of the moments' means (Student's t); with
    fewer than three moments it is that of the frames, which is too small rather than too large.
    """
    differences = [np.subtract(a, b) for b, a in zip(before, after, strict=True)]
    frames = np.concatenate(differences)
    means = np.array([moment.mean() for moment in differences])
    units = means if len(means) >= MIN_MOMENTS else frames
    noise = float("inf")
    if len(units) > 1:
        deviation = units.std(ddof=1) / np.sqrt(len(units))
        noise = float(student_t.ppf((1 + CONFIDENCE) / 2, len(units) - 1) * deviation)
    return PairedGain(float(frames.mean()), noise, len(frames), len(means))
