"""Estimates the shift between two planes by least squares over all frames."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt

from srstream.media.witness.pictures import FloatPlane

_TRUSTED_GRADIENT = 1.0
_EDGE = 3


@dataclass(slots=True)
class Motion:
    """Accumulates a least-squares estimate of the shift between planes (Lucas and Kanade)."""

    normal: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros((2, 2)))
    right: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))
    residual: float = 0.0
    num_samples: int = 0

    def add(
        self, before: FloatPlane, now: FloatPlane, expected: tuple[float, float] = (0.0, 0.0)
    ) -> None:
        """Add two planes, the second of which should be shifted by `expected` (x, y)."""
        if min(before.shape) < 2 * _EDGE + 4:
            return
        first, second = (cv2.GaussianBlur(plane, (0, 0), 1.0) for plane in (before, now))
        gradients = []
        for axis in (1, 0):
            both = (np.gradient(first, axis=axis) + np.gradient(second, axis=axis)) / 2
            gradients.append(both[_EDGE:-_EDGE, _EDGE:-_EDGE].ravel())
        change = (second - first)[_EDGE:-_EDGE, _EDGE:-_EDGE].ravel()
        change = change - change.mean()
        slopes = np.stack(gradients).astype(np.float64)
        change = change + np.asarray(expected) @ slopes
        self.normal += slopes @ slopes.T
        self.right += slopes @ change
        self.residual += float(change @ change)
        self.num_samples += change.size

    def found(self) -> tuple[float, float] | None:
        """Return the unexpected shift (x, y) of the second planes, right and down.

        It is None if the planes are too flat to show it.
        """
        if self.num_samples == 0:
            return None
        if np.linalg.eigvalsh(self.normal)[0] / self.num_samples < _TRUSTED_GRADIENT:
            return None
        x, y = np.linalg.solve(self.normal, self.right)
        return -float(x), -float(y)

    def doubt(self) -> float:
        """Return a bound of the estimate's error.

        It is 16 times that for independent samples, since neighbors are correlated.
        """
        if self.found() is None:
            return 0.0
        move = np.linalg.solve(self.normal, self.right)
        rest = max(self.residual - float(move @ self.right), 0.0) / self.num_samples
        return 16 * float(np.sqrt(rest / np.linalg.eigvalsh(self.normal)[0]))
