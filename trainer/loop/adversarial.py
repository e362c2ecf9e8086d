"""The adversarial stage: features and a discriminator judge the network's output."""

from __future__ import annotations

from typing import cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer

from srstream.models.networks import Planes
from trainer.config import AdversarialSection
from trainer.data.pairs import Batch
from trainer.data.rgb import to_rgb
from trainer.judge.features import feature_network
from trainer.loop.discriminator import make_discriminator
from trainer.loop.losses import (
    content_loss,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
    grid_loss,
    ldl_loss,
    texture_loss,
    unit_content_loss,
)
from trainer.loop.steps import (
    Dial,
    adam,
    descend,
    detached,
    fast_layout,
    plane_loss,
    set_rate,
    steadiness,
)
from trainer.networks import TrainedNetwork

GRID_SCALE = 4
"""The period of the grid in luma; that of half-size chroma is part of it."""


class AdversarialStage:
    """SRGAN: features and a discriminator judge the pictures (Ledig et al., CVPR 2017, eq. 3)."""

    def __init__(
        self,
        section: AdversarialSection,
        fabric: Fabric,
        network: TrainedNetwork,
        average: TrainedNetwork,
    ) -> None:
        self.section, self.fabric = section, fabric
        self.color = network.spec.color_form
        self.average = average
        optimizer = adam(network, section, section.learning_rate, fabric.device)
        self.network, optimizer = fabric.setup(network, optimizer)
        discriminator = make_discriminator(
            section.discriminator,
            width=section.discriminator_width,
            norm=section.discriminator_norm,
            crop=section.discriminator_crop,
        )
        rate = section.discriminator_learning_rate
        discriminator_optimizer = adam(discriminator, section, rate, fabric.device)
        self.discriminator, discriminator_optimizer = fabric.setup(
            discriminator, discriminator_optimizer
        )
        self.modules: dict[str, nn.Module] = {"discriminator": discriminator}
        self.optimizers = {
            "optimiser": cast(Optimizer, optimizer),
            "discriminator_optimiser": cast(Optimizer, discriminator_optimizer),
        }
        self.features = None
        if section.perceptual != "discriminator":
            self.features = feature_network(
                section.perceptual, section.perceptual_layers, weights=section.perceptual_weights
            )
            self.features.to(fabric.device)
        self.weights = {
            name: Dial(weight, fabric.device) for name, weight in self._weights(0.0).items()
        }

    def schedule(self, rate_factor: float, done: float) -> None:
        section = self.section
        set_rate(self.optimizers["optimiser"], section.learning_rate * rate_factor)
        set_rate(
            self.optimizers["discriminator_optimiser"],
            section.discriminator_learning_rate * rate_factor,
        )
        for name, weight in self._weights(done).items():
            self.weights[name].set(weight)

    def step(self, batch: Batch) -> tuple[dict[str, Tensor], Planes]:
        section = self.section
        sr = self.network(fast_layout(batch.lr_BCHW))
        made, real = (to_rgb(planes, self.color) for planes in (sr, batch.hr))
        judged = self._judge(made.detach(), real)
        losses = self._generator_losses(batch, sr, made, real)
        total = torch.stack(
            [self.weights[name].value * loss for name, loss in losses.items()]
        ).sum()
        descend(self.fabric, total, self.network, self.optimizers["optimiser"], section.clip_norm)
        return detached(losses | judged), tuple(planes.detach() for planes in sr)

    def _judge(self, made: Tensor, real: Tensor) -> dict[str, Tensor]:
        """Run the discriminator's own iteration."""
        self.discriminator.requires_grad_(True)
        loss = discriminator_loss(
            self.discriminator(real), self.discriminator(made), self.section.adversary
        )
        descend(
            self.fabric,
            loss,
            self.discriminator,
            self.optimizers["discriminator_optimiser"],
            self.section.clip_norm,
        )
        self.discriminator.requires_grad_(False)
        return {"discriminator": loss}

    def _generator_losses(
        self, batch: Batch, sr: Planes, made: Tensor, real: Tensor
    ) -> dict[str, Tensor]:
        section = self.section
        made_logits, real_logits = self.discriminator(made), self.discriminator(real)
        losses = {"adversarial": generator_loss(made_logits, real_logits, section.adversary)}
        losses["content"] = self._content(made, real)
        if section.pixel_weight:
            losses["pixel"] = plane_loss(sr, batch.hr, section)
        if section.ldl_weight:
            with torch.no_grad():
                steady = to_rgb(self.average(batch.lr_BCHW), self.color)
            losses["ldl"] = ldl_loss(made, steady, real)
        if section.grid_weight:
            losses["grid"] = grid_loss(made, real, GRID_SCALE)
        if section.texture_weight:
            losses["texture"] = texture_loss(made, real)
        if batch.shifted is not None:
            losses["steadiness"] = steadiness(self.network, sr, batch)
        return losses

    def _content(self, made: Tensor, real: Tensor) -> Tensor:
        section = self.section
        if self.features is None:
            module = cast(nn.Module, self.discriminator.module)
            with torch.no_grad():
                true = module.features(real)  # type: ignore[operator]
            return feature_matching_loss(module.features(made), true)  # type: ignore[operator]
        with self.fabric.autocast():
            with torch.no_grad():
                true = self.features(real)
            distance = unit_content_loss if section.perceptual_form == "unit" else content_loss
            return distance(self.features(made), true)

    def _weights(self, done: float) -> dict[str, float]:
        section = self.section
        risen = 1.0 if section.ramp == 0 else min(done / section.ramp, 1.0)
        return {
            "adversarial": section.adversarial_weight * risen,
            "content": section.content_weight,
            "pixel": section.pixel_weight,
            "ldl": section.ldl_weight * risen,
            "grid": section.grid_weight,
            "texture": section.texture_weight,
            "steadiness": section.steadiness_weight,
        }
