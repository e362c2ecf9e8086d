"""Watches whether a run still makes pictures, and stops one that does not."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from srstream.errors import SrstreamError

WINDOW = 50
"""Iterations that are judged together: batches differ, a collapse lasts."""

MIN_CONTRAST = 0.25
"""A run ends below this share of the originals' deviation; a sound network keeps 0.9 and more."""

MAX_DRIFT = 8 / 255
"""A run ends where a plane's mean is off by this; a network that works stays within 1 / 255."""

WARM_UP = 300
"""Iterations before contrast and color are judged: a new network begins gray."""


class TrainingCollapsedError(SrstreamError):
    """The network in training came to make something that is no picture."""


@dataclass
class Guard:
    """Watches a run's output; `check` raises before a spoilt state could be kept.

    NaN and infinity count at once. Grey collapse (contrast lost) and color drift (a plane's mean
    wanders off) are judged on the mean over a window of iterations.
    """

    warm_up: int = WARM_UP

    def __post_init__(self) -> None:
        self._contrasts: deque[float] = deque(maxlen=WINDOW)
        self._drifts: deque[Tensor] = deque(maxlen=WINDOW)
        self._num_seen = 0

    @torch.no_grad()
    def see(self, made: Tensor, true: Tensor) -> None:
        """One iteration's pictures, (B, planes, H, W) each."""
        self._num_seen += 1
        self._contrasts.append(float(made.std() / true.std().clamp(min=1e-4)))
        self._drifts.append((made.mean((0, 2, 3)) - true.mean((0, 2, 3))).cpu())

    def check(self, iteration: int, losses: dict[str, float]) -> None:
        """Raises `TrainingCollapsedError` saying what is wrong and what to do."""
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
                f"iteration {iteration}: the pictures have gone grey, with {contrast:.0%} of the "
                f"originals' contrast over {WINDOW} iterations. {_ADVICE}"
            )
        drift = torch.stack(list(self._drifts)).mean(0)
        worst = float(drift.abs().max())
        if worst > MAX_DRIFT:
            raise TrainingCollapsedError(
                f"iteration {iteration}: the colours have drifted by {255 * worst:.1f} levels from "
                f"the originals' over {WINDOW} iterations. {_ADVICE}"
            )


def check_finite(iteration: int, tensors: Mapping[str, Tensor]) -> None:
    """Raises `TrainingCollapsedError` naming a tensor of the run's state that isn't finite.

    A step from a finite loss can still spoil the weights; that shows in the next loss only.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise TrainingCollapsedError(
                f"iteration {iteration}: {name} holds values that are not finite. {_ADVICE}"
            )


_ADVICE = (
    "The run is stopped, and its folder holds the last good state. Go on from that in a new run "
    "with a lower learning_rate, or a lower adversarial_weight."
)
