"""Checks that a run still makes pictures, and stops one that does not."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from srstream.errors import SrstreamError

WINDOW = 50
"""Iterations that are judged together, because batches differ but a collapse lasts."""

MIN_CONTRAST = 0.25
"""A run stops below this share of the originals' deviation; a sound network keeps 0.9 or more."""

MAX_DRIFT = 8 / 255
"""A run stops when a plane's mean is off by this; a working network stays within 1 / 255."""

WARM_UP = 300
"""Iterations before contrast and color are judged, because a new network starts gray."""


class TrainingCollapsedError(SrstreamError):
    """The network in training no longer makes pictures."""


@dataclass
class Guard:
    """Watches a run's output; `check` raises before a spoiled state can be saved.

    NaN and infinity count at once. Gray collapse (contrast lost) and color drift (a plane's mean
    wanders off) are judged on the mean over a window of iterations.
    """

    warm_up: int = WARM_UP

    def __post_init__(self) -> None:
        self._contrasts: deque[float] = deque(maxlen=WINDOW)
        self._drifts: deque[Sequence[float]] = deque(maxlen=WINDOW)
        self._num_seen = 0

    def see(self, contrast: float, drifts: Sequence[float]) -> None:
        """Record one iteration's pictures, as `contrast_and_drifts` measures them."""
        self._num_seen += 1
        self._contrasts.append(contrast)
        self._drifts.append(drifts)

    def check(self, iteration: int, losses: dict[str, float]) -> None:
        """Raise `TrainingCollapsedError` with the cause and a remedy."""
        for name, loss in losses.items():
            if loss != loss or abs(loss) == float("inf"):
                raise TrainingCollapsedError(
                    f"iteration {iteration}: the loss {name!r} is {loss}. {_ADVICE}"
                )
        if self._num_seen < self.warm_up or len(self._contrasts) < WINDOW:
            return
        contrast = sum(self._contrasts) / len(self._contrasts)
        if contrast < MIN_CONTRAST:
            raise TrainingCollapsedError(
                f"iteration {iteration}: the pictures have gone gray, with {contrast:.0%} of the "
                f"originals' contrast over {WINDOW} iterations. {_ADVICE}"
            )
        worst = max(abs(sum(plane) / len(plane)) for plane in zip(*self._drifts, strict=True))
        if worst > MAX_DRIFT:
            raise TrainingCollapsedError(
                f"iteration {iteration}: the colors have drifted by {255 * worst:.1f} levels from "
                f"the originals' over {WINDOW} iterations. {_ADVICE}"
            )


@torch.no_grad()
def contrast_and_drifts(made: Tensor, true: Tensor) -> Tensor:
    """Measure pictures, (B, planes, H, W) each, on their device; (1 + planes,).

    The contrast is a share of the original's, a drift the difference of a plane's means.
    """
    contrast = made.std() / true.std().clamp(min=1e-4)
    drifts = made.mean((0, 2, 3)) - true.mean((0, 2, 3))
    return torch.cat([contrast[None], drifts])


def check_finite(iteration: int, tensors: Mapping[str, Tensor]) -> None:
    """Raise `TrainingCollapsedError` naming a tensor of the run's state that isn't finite.

    A step from a finite loss can still spoil the weights, which shows only in the next loss.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise TrainingCollapsedError(
                f"iteration {iteration}: {name} holds values that are not finite. {_ADVICE}"
            )


_ADVICE = (
    "The run is stopped, and its folder holds the last good state. Start a new run from that "
    "with a lower learning_rate, or a lower adversarial_weight."
)
