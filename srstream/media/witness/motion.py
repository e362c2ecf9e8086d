"""Finds by how much one plane is moved against another: least squares over all frames."""

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
    """Least squares for the shift between planes (Lucas and Kanade), over all frames."""

    normal: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros((2, 2)))
    right: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))
    residual: float = 0.0
    num_samples: int = 0

    def add(
        self, before: FloatPlane, now: FloatPlane, expected: tuple[float, float] = (0.0, 0.0)
    ) -> None:
        """Note two planes, of which the second is to lie by `expected` (x, y) beside the first."""
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
        """(x, y) by which the second planes lie right of and below where they are expected; None if
        the planes do not show it."""
        if self.num_samples == 0:
            return None
        if np.linalg.eigvalsh(self.normal)[0] / self.num_samples < _TRUSTED_GRADIENT:
            return None
        x, y = np.linalg.solve(self.normal, self.right)
        return -float(x), -float(y)

    def doubt(self) -> float:
        """A bound of the estimate's own error: that of independent samples, 16 times, since
        neighbors are alike."""
        if self.found() is None:
            return 0.0
        move = np.linalg.solve(self.normal, self.right)
        rest = max(self.residual - float(move @ self.right), 0.0) / self.num_samples
        return 16 * float(np.sqrt(rest / np.linalg.eigvalsh(self.normal)[0]))
