"""SRGAN's generator with a tail that costs next to nothing, for training its body.

Upsampling and the 9x9 tail take half of an iteration and hold few of the layers.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from srstream.models.networks import Generator, Planes, fold
from trainer.networks import ResearchNetwork, weights_bytes


class ThinTailed(ResearchNetwork):
    """Head, blocks and long skip of a generator, then k3n48s1, PixelShuffle(4) and its tanh.

    The generator's own upsampling and tail stay unchanged and get no gradients.
    """

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.spec, self.generator = generator.spec, generator
        num_planes, scale = generator.spec.form.num_input_planes, generator.spec.scale
        self.thin = nn.Conv2d(generator.body.out_channels, num_planes * scale**2, 3, padding=1)
        for part in (generator.upsampling, generator.upsampling_activations, generator.tail):
            part.requires_grad_(False)

    def forward(self, lr_BCHW: Tensor) -> Planes:
        x = self.thin(self.generator.features(lr_BCHW))
        return (0.5 * (torch.tanh(functional.pixel_shuffle(x, self.spec.scale)) + 1.0),)

    def folded(self) -> ThinTailed:
        """Return the same network without BN, the form in which it is measured."""
        plain = copy.deepcopy(self).eval()
        generator = fold(self.generator)
        assert isinstance(generator, Generator)
        plain.generator = generator
        return plain

    def weights_bytes(self, recipe: str) -> bytes:
        return weights_bytes(self.generator, f"{recipe}; upsampling and tail are not trained")
