"""The work of one iteration in each stage of a run.

A stage owns its optimizers and anything only it needs (discriminator, feature network). `schedule`
sets what changes between iterations, on the host; `step` is all that the device computes, the same
each time, so that it can be captured in a CUDA graph.
"""

from __future__ import annotations

from typing import Protocol, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.optim import Optimizer

from srstream.errors import ConfigError
from srstream.models.networks import Generator, Planes, UpscalingStack, folded_tensors
from trainer.config import AdversarialSection, PixelSection, StageSection
from trainer.data.pairs import Batch
from trainer.loop.adversarial import AdversarialStage
from trainer.loop.steps import (
    adam,
    descend,
    detached,
    fast_layout,
    plane_loss,
    set_rate,
    steadiness,
)
from trainer.networks import TrainedNetwork, folded


class Stage(Protocol):
    """A stage of the run, ready to start."""

    modules: dict[str, nn.Module]
    """Modules trained alongside the network; they are part of a checkpoint."""
    optimizers: dict[str, Optimizer]

    def schedule(self, rate_factor: float, done: float) -> None:
        """Set the rates to `rate_factor` of their peaks, with `done` of the stage complete."""
        ...

    def step(self, batch: Batch) -> tuple[dict[str, Tensor], Planes]:
        """Run one iteration; return its losses by name and the network's output, detached."""
        ...


def make_stage(
    section: StageSection, fabric: Fabric, network: TrainedNetwork, average: TrainedNetwork
) -> Stage:
    """Return the stage that a section of the config describes."""
    if isinstance(section, AdversarialSection):
        return AdversarialStage(section, fabric, network, average)
    assert isinstance(section, PixelSection)
    return PixelStage(section, fabric, network)


class Knobbed(nn.Module):
    """The weighted mean of fixed folded weights and a network in training, as one network."""

    def __init__(self, faithful: UpscalingStack | Generator, network: TrainedNetwork) -> None:
        super().__init__()
        self.faithful, self.network = faithful.requires_grad_(False), network

    def forward(self, lr_BCHW: Tensor, knob: float | Tensor) -> Planes:
        """Run the mean: at 0 it has the fixed weights, at 1 those in training."""
        assert isinstance(self.network, UpscalingStack | Generator)
        trained = folded_tensors(self.network)
        mean = {
            name: torch.lerp(value, trained[name], knob)
            for name, value in self.faithful.state_dict().items()
        }
        planes: Planes = functional_call(self.faithful, mean, (lr_BCHW,))
        return planes


class PixelStage:
    """Fits the network to the originals, pixel by pixel.

    With `sample_knob`, it fits the network's mean with its initial weights instead.
    """

    def __init__(self, section: PixelSection, fabric: Fabric, network: TrainedNetwork) -> None:
        self.section, self.fabric = section, fabric
        self.modules: dict[str, nn.Module] = {}
        fitted: nn.Module = network
        if section.sample_knob:
            faithful = folded(network)
            if not isinstance(faithful, UpscalingStack | Generator):
                raise ConfigError(f"[pixel] sample_knob: {network.spec.name!r} has no such knob")
            fitted = Knobbed(faithful, network)
            self.modules["faithful"] = faithful
        optimizer = adam(network, section, section.learning_rate, fabric.device)
        self.network, optimizer = fabric.setup(fitted, optimizer)
        self.optimizers = {"optimiser": cast(Optimizer, optimizer)}

    def schedule(self, rate_factor: float, done: float) -> None:
        set_rate(self.optimizers["optimiser"], self.section.learning_rate * rate_factor)

    def step(self, batch: Batch) -> tuple[dict[str, Tensor], Planes]:
        section, optimizer = self.section, self.optimizers["optimiser"]
        knob = () if batch.knob is None else (batch.knob,)
        sr = self.network(fast_layout(batch.lr_BCHW), *knob)
        distance = functional.l1_loss if section.loss == "l1" else functional.mse_loss
        losses = {"pixel": plane_loss(sr, batch.hr, section, distance)}
        total = losses["pixel"]
        if batch.shifted is not None:
            losses["steadiness"] = steadiness(self.network, sr, batch, *knob)
            total = total + section.steadiness_weight * losses["steadiness"]
        descend(self.fabric, total, self.network, optimizer, section.clip_norm)
        return detached(losses), tuple(planes.detach() for planes in sr)
