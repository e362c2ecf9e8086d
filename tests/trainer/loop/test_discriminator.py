"""The discriminators: the paper's shape, any crop or one, and that they learn."""

import pytest
import torch

from trainer.loop.discriminator import (
    Discriminator,
    UNetDiscriminator,
    make_discriminator,
)
from trainer.loop.losses import discriminator_loss


def test_the_paper_s_shape():
    network = Discriminator(64, crop=96)
    convolutions = [stage[0] for stage in network.stages]
    assert [c.out_channels for c in convolutions] == [64, 64, 128, 128, 256, 256, 512, 512]
    assert [c.stride[0] for c in convolutions] == [1, 2] * 4
    norms = [isinstance(stage[1], torch.nn.BatchNorm2d) for stage in network.stages]
    assert norms == [False] + 7 * [True]
    assert [d.weight.shape for d in network.dense] == [(1024, 512 * 36), (1, 1024)]
    assert network(torch.rand(2, 3, 96, 96)).shape == (2, 1)
    with pytest.raises(ValueError, match=r"\(64, 64\) came to a discriminator for 96"):
        network(torch.rand(2, 3, 64, 64))


def test_without_a_crop_any_picture_will_do():
    network = Discriminator(8)
    for side in (40, 96, 130):
        assert network(torch.rand(2, 3, side, side + 8)).shape == (2, 1)


def test_the_unet_judges_each_pixel():
    network = UNetDiscriminator(8)
    assert network(torch.rand(2, 3, 40, 64)).shape == (2, 1, 40, 64)
    assert [f.shape[1] for f in network.features(torch.rand(1, 3, 16, 16))] == [8, 16, 32, 64]


def test_spectral_norm_bounds_every_layer():
    network = Discriminator(8, norm="spectral")
    for _ in range(30):
        network(torch.rand(2, 3, 32, 32))  # each pass in training refines the estimate
    layers = [stage[0] for stage in network.stages] + list(network.dense)
    for layer in layers:
        largest = float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2))
        assert largest == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("kind", ["srgan", "unet"])
@pytest.mark.parametrize("norm", ["batch", "spectral"])
def test_noise_and_flats_are_told_apart_within_a_few_iterations(kind, norm):
    torch.manual_seed(0)
    network = make_discriminator(kind, width=4, norm=norm, crop=None)
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        real = torch.rand(4, 3, 32, 32)
        made = torch.rand(4, 3, 1, 1).expand(4, 3, 32, 32)
        loss = discriminator_loss(network(real), network(made), "standard")
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
