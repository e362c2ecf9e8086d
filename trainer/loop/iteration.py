"""One iteration as the device computes it, from the batch to the average, and what is read of it.

Nothing here waits for the device but `Readings.read`. On CUDA an iteration can be captured once as
a graph, which is then replayed: the host only copies in what was drawn. The same code runs without.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from trainer.data.device_patches import Cut, DevicePatches
from trainer.data.pairs import Batch, PatchSampler
from trainer.loop.guards import Guard, contrast_and_drifts
from trainer.loop.stages import Stage
from trainer.loop.steps import Dial

WARM_UP = 3
"""Iterations before the capture, in which libraries choose their kernels and states appear."""


class Feed(Protocol):
    """Where batches come from."""

    def next(self) -> Any:
        """Return what the host knows of the next batch."""
        ...

    def batch(self, given: Any) -> Batch:
        """Return that batch, on the device."""
        ...

    def state(self) -> str: ...
    def set_state(self, state: str) -> None: ...


class HostFeed:
    """Batches that the host cuts and moves to the device, one by one."""

    def __init__(self, sampler: PatchSampler, fabric: Fabric) -> None:
        self._sampler, self._fabric = sampler, fabric
        self.state, self.set_state = sampler.state, sampler.set_state

    def next(self) -> Batch:
        moved: Batch = self._fabric.to_device(self._sampler.next_batch())
        return moved

    def batch(self, given: Batch) -> Batch:
        return given


class Capture(Protocol):
    """How an iteration becomes something to replay."""

    def warm(self, compute: Callable[[], Tensor]) -> Tensor:
        """Compute once as it is, in the place where the capture will be made."""
        ...

    def capture(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Return what computes the same again; nothing is computed yet."""
        ...


class CudaCapture:
    """A CUDA graph, captured on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)

    def warm(self, compute: Callable[[], Tensor]) -> Tensor:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            row = compute()
        torch.cuda.current_stream().wait_stream(self._stream)
        return row

    def capture(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            row = compute()

        def replay() -> Tensor:
            graph.replay()
            return row

        return replay


class Iteration:
    """Runs a stage's iterations, with the average of the weights and the measures of each."""

    def __init__(
        self,
        stage: Stage,
        feed: Feed,
        network: nn.Module,
        average: nn.Module,
        device: torch.device,
        capture: Capture | None = None,
    ) -> None:
        """With `capture`, the feed must be a `DevicePatches`."""
        self._stage, self._feed, self._capture = stage, feed, capture
        self._average = Average(average, network)
        self._weight = Dial(1.0, device)
        self._num_warm = 0
        self._given: Cut | None = None
        self._replay: Callable[[], Tensor] | None = None
        self.names: list[str] = []
        """Of the losses, once an iteration has run."""

    def run(self, *, factor: float, done: float, decay: float) -> Tensor:
        """Run one, with `factor` of the peak rates and `done` of the stage behind it.

        Returns a row on the device: the losses in the order of `names`, contrast and drifts.
        """
        self._stage.schedule(factor, done)
        self._weight.set(1.0 - decay)
        given = self._feed.next()
        if self._capture is None:
            return self._compute(given)
        if self._num_warm < WARM_UP:
            self._num_warm += 1
            return self._capture.warm(lambda: self._compute(given))
        return self._replayed(self._capture, given)

    def _replayed(self, capture: Capture, given: Cut) -> Tensor:
        if self._given is None or self._replay is None:
            assert isinstance(self._feed, DevicePatches)
            self._feed.settle()  # a copy to the device at the wrong moment would end the capture
            static = self._given = Cut(*(part.clone() for part in given))
            self._replay = capture.capture(lambda: self._compute(static))
        for part, value in zip(self._given, given, strict=True):
            part.copy_(value)
        return self._replay().clone()

    def _compute(self, given: Any) -> Tensor:
        batch = self._feed.batch(given)
        losses, made = self._stage.step(batch)
        self._average.update(self._weight.value)
        self.names = list(losses)
        measures = contrast_and_drifts(made[0], batch.hr[0])
        return torch.cat([torch.stack([loss.float() for loss in losses.values()]), measures])


class Average:
    """An exponential moving average of a network's state; BN's statistics are averaged alike."""

    def __init__(self, average: nn.Module, network: nn.Module) -> None:
        means, values = average.state_dict(), network.state_dict()
        floating = [name for name, mean in means.items() if mean.is_floating_point()]
        self._means = [means[name] for name in floating]
        self._values = [values[name] for name in floating]
        counts = means.keys() - floating
        self._counts = [(means[name], values[name]) for name in sorted(counts)]

    @torch.no_grad()
    def update(self, weight: float | Tensor) -> None:
        """Move the average towards the network by this share of the difference."""
        if isinstance(weight, Tensor):
            steps = torch._foreach_sub(self._values, self._means)
            torch._foreach_mul_(steps, weight)
            torch._foreach_add_(self._means, steps)
        else:
            torch._foreach_lerp_(self._means, self._values, weight)
        for mean, value in self._counts:
            mean.copy_(value)


class Readings:
    """Rows of iterations that stay on the device until somebody looks at them."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._rows: list[Tensor] = []
        self._sums: dict[str, float] = {}
        self._num_summed = 0

    def add(self, row: Tensor) -> None:
        self._rows.append(row)

    def read(self, names: list[str], iteration: int) -> dict[str, float]:
        """Wait for all rows, `iteration` the last; return the losses of that one, if there is one.

        Raises:
            TrainingCollapsedError: one of them shows it.
        """
        rows: list[list[float]] = torch.stack(self._rows).tolist() if self._rows else []
        self._rows.clear()
        losses: dict[str, float] = {}
        for number, row in enumerate(rows, start=iteration + 1 - len(rows)):
            losses = dict(zip(names, row, strict=False))
            contrast, *drifts = row[len(names) :]
            self._guard.see(contrast, drifts)
            self._guard.check(number, losses)
            self._sums = {n: self._sums.get(n, 0.0) + loss for n, loss in losses.items()}
            self._num_summed += 1
        return losses

    def means(self) -> dict[str, float]:
        """Return the mean losses of what was read since the last call."""
        means = {name: total / self._num_summed for name, total in self._sums.items()}
        self._sums, self._num_summed = {}, 0
        return means
