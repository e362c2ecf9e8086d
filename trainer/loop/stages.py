"""What one iteration does, in each stage of a run.

A stage owns its optimisers and what only it needs (discriminator, feature network). Each is given
a batch and the learning rate's place on its cycle, and returns its losses by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.optim import Adam, Optimizer

from srstream.errors import ConfigError
from srstream.models.networks import Generator, Planes, UpscalingStack, folded_tensors
from trainer.config import AdversarialSection, PixelSection, StageSection
from trainer.data.pairs import Batch
from trainer.data.rgb import to_chroma
from trainer.loop.losses import steadiness_loss
from trainer.networks import TrainedNetwork, folded

Distance = Callable[[Tensor, Tensor], Tensor]

STEADINESS_BORDER = 16
"""High-resolution pixels left out at each side: the two crops end there at different places."""


class Stage(Protocol):
    """One of the run's stages, ready to go."""

    modules: dict[str, nn.Module]
    """Trained beside the network; part of a checkpoint."""
    optimisers: dict[str, Optimizer]

    def step(
        self, batch: Batch, rate_factor: float, done: float
    ) -> tuple[dict[str, Tensor], Planes]:
        """One iteration at `rate_factor` of the peak learning rates, `done` of the stage behind.

        Returns the losses by name and what the network made, both detached.
        """
        ...


def make_stage(
    section: StageSection, fabric: Fabric, network: TrainedNetwork, average: TrainedNetwork
) -> Stage:
    """The stage that a section of the config describes."""
    if isinstance(section, AdversarialSection):
        from trainer.loop.adversarial import AdversarialStage

        return AdversarialStage(section, fabric, network, average)
    assert isinstance(section, PixelSection)
    return PixelStage(section, fabric, network)


class Knobbed(nn.Module):
    """A weighted mean of folded weights that stay and of a network in training, as one network."""

    def __init__(self, faithful: UpscalingStack | Generator, network: TrainedNetwork) -> None:
        super().__init__()
        self.faithful, self.network = faithful.requires_grad_(False), network

    def forward(self, lr_BCHW: Tensor, knob: float) -> Planes:
        """What the mean makes: at 0 that of the weights that stay, at 1 of those in training."""
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

    With `sample_knob` what is fitted is its mean with the weights that it began with.
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
        self.network, optimiser = fabric.setup(fitted, adam(network, section))
        self.optimisers = {"optimiser": cast(Optimizer, optimiser)}

    def step(
        self, batch: Batch, rate_factor: float, done: float
    ) -> tuple[dict[str, Tensor], Planes]:
        section, optimiser = self.section, self.optimisers["optimiser"]
        set_rate(optimiser, section.learning_rate * rate_factor)
        knob = () if batch.knob is None else (batch.knob,)
        sr = self.network(fast_layout(batch.lr_BCHW), *knob)
        distance = functional.l1_loss if section.loss == "l1" else functional.mse_loss
        losses = {"pixel": plane_loss(sr, batch.hr, section, distance)}
        total = losses["pixel"]
        if batch.shifted is not None:
            losses["steadiness"] = steadiness(self.network, sr, batch, *knob)
            total = total + section.steadiness_weight * losses["steadiness"]
        descend(self.fabric, total, self.network, optimiser, section.clip_norm)
        return detached(losses), tuple(planes.detach() for planes in sr)


def plane_loss(
    sr: Planes, hr: Planes, section: StageSection, distance: Distance = functional.l1_loss
) -> Tensor:
    """The distance of the first plane group, and the section's share of that of colour.

    Colour is the second group, or what the first one's U and V are where it is RGB.
    """
    loss = distance(sr[0], hr[0])
    for made, true in zip(sr[1:], hr[1:], strict=True):
        loss = loss + section.chroma_weight * distance(made, true)
    if section.colour_weight and sr[0].shape[1] == 3:
        loss = loss + section.colour_weight * distance(to_chroma(sr[0]), to_chroma(hr[0]))
    return loss


def steadiness(network: nn.Module, sr: Planes, batch: Batch, *knob: float) -> Tensor:
    """How far two views of the same place disagree, on the first plane group."""
    assert batch.shifted is not None
    again = network(fast_layout(batch.shifted.lr_BCHW), *knob)
    return steadiness_loss(sr[0], again[0], batch.shifted.offset, border=STEADINESS_BORDER)


def adam(network: nn.Module, section: StageSection) -> Adam:
    trained = [value for value in network.parameters() if value.requires_grad]
    return Adam(trained, lr=section.learning_rate, betas=(section.beta1, section.beta2))


def set_rate(optimiser: Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate


def descend(
    fabric: Fabric, loss: Tensor, module: nn.Module, optimiser: Optimizer, clip_norm: float
) -> None:
    optimiser.zero_grad(set_to_none=True)
    fabric.backward(loss)
    if clip_norm:
        fabric.clip_gradients(module, optimiser, max_norm=clip_norm, error_if_nonfinite=False)
    optimiser.step()


def fast_layout(x_BCHW: Tensor) -> Tensor:
    """Channels last, the order that a CPU's convolutions work in: spares them the turning."""
    return x_BCHW.contiguous(memory_format=torch.channels_last)


def detached(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: loss.detach() for name, loss in losses.items()}
