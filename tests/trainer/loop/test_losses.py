"""The losses, against numbers worked out by hand."""

import math

import pytest
import torch

from trainer.config import PixelSection
from trainer.loop.losses import (
    content_loss,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
    grid_loss,
    ldl_loss,
    steadiness_loss,
    texture_loss,
    unit_content_loss,
)
from trainer.loop.steps import plane_loss


def test_the_unit_content_loss_sees_direction_only():
    made = [
        torch.tensor([3.0, 0.0]).reshape(1, 2, 1, 1),
        torch.tensor([1.0, 1.0, 0]).reshape(1, 3, 1, 1),
    ]
    true = [
        torch.tensor([0.0, 7.0]).reshape(1, 2, 1, 1),
        torch.tensor([5.0, 5.0, 0]).reshape(1, 3, 1, 1),
    ]
    assert float(unit_content_loss(made, true)) == pytest.approx((2 + 0) / 2)
    zero = [torch.zeros(1, 2, 1, 1)]
    assert float(unit_content_loss(zero, zero)) == 0.0


def test_the_content_loss_is_the_mean_square_of_rescaled_features():
    true = [torch.zeros(1, 2, 3, 3), torch.zeros(1, 4, 1, 1)]
    made = [torch.full((1, 2, 3, 3), 12.75), torch.full((1, 4, 1, 1), 25.5)]
    assert float(content_loss(made, true)) == pytest.approx((1 + 4) / 2)


def test_feature_matching_counts_in_the_features_own_size():
    true = [torch.full((1, 1, 2, 2), 10.0), torch.full((1, 1, 2, 2), -0.1)]
    made = [torch.full((1, 1, 2, 2), 15.0), torch.full((1, 1, 2, 2), 0.0)]
    assert float(feature_matching_loss(made, true)) == pytest.approx((0.5 + 1.0) / 2)


def test_standard_cross_entropy():
    real, made = torch.tensor([2.0]), torch.tensor([-1.0])
    softplus = [math.log1p(math.exp(x)) for x in (-2.0, -1.0, 1.0)]
    loss = discriminator_loss(real, made, "standard")
    assert float(loss) == pytest.approx((softplus[0] + softplus[1]) / 2)
    assert float(generator_loss(made, real, "standard")) == pytest.approx(softplus[2])


def test_the_relativistic_adversary_compares_with_the_others_mean():
    real, made = torch.tensor([3.0, 1.0]), torch.tensor([0.0, 2.0])  # means 2 and 1
    expected = 0.5 * (
        (math.log1p(math.exp(-2)) + math.log1p(math.exp(0))) / 2
        + (math.log1p(math.exp(-2)) + math.log1p(math.exp(0))) / 2
    )
    assert float(discriminator_loss(real, made, "relativistic")) == pytest.approx(expected)
    swapped = discriminator_loss(made, real, "relativistic")
    assert float(generator_loss(made, real, "relativistic")) == pytest.approx(float(swapped))


@pytest.mark.parametrize("adversary", ["standard", "relativistic"])
def test_descending_makes_real_and_made_swap_their_verdicts(adversary):
    logits = torch.zeros(2, requires_grad=True)
    discriminator_loss(logits[:1], logits[1:], adversary).backward()
    assert logits.grad[0] < 0 < logits.grad[1]
    logits.grad = None
    generator_loss(logits[1:], logits[:1], adversary).backward()
    assert logits.grad[1] < 0


def test_ldl_spares_smooth_residuals_and_what_the_average_does_worse():
    real = torch.zeros(1, 3, 16, 16)
    speck = real.clone()
    speck[..., 8, 8] = 0.5
    assert float(ldl_loss(real + 0.1, real, real)) == pytest.approx(0.0, abs=1e-7)
    assert float(ldl_loss(speck, real, real)) > 0
    assert float(ldl_loss(speck, 2 * speck, real)) == 0.0
    made = speck.clone().requires_grad_(True)
    ldl_loss(made, real, real).backward()
    assert made.grad[..., 8, 8].abs().min() > 0


@pytest.mark.parametrize("offset", [(0, 0), (3, 0), (1, 2), (0, 3)])
def test_steadiness_is_nothing_for_two_crops_of_one_picture(offset):
    picture = torch.rand(2, 1, 40, 44)
    rows, columns = offset
    moved = picture[:, :, rows : rows + 36, columns : columns + 40]
    assert float(steadiness_loss(picture, moved, offset)) == 0.0
    assert float(steadiness_loss(picture, moved, (rows + 1, columns))) > 0.2
    spoilt = moved.clone()
    spoilt[:, :, :4] += 1
    assert float(steadiness_loss(picture, spoilt, offset, border=4)) == 0.0
    assert float(steadiness_loss(picture, spoilt, offset)) > 0.05


def test_grid_loss_sees_a_pattern_and_neither_shift_nor_noise():
    torch.manual_seed(0)
    real = torch.rand(2, 3, 64, 64)
    assert grid_loss(real + 0.1, real, 4) < 1e-12
    pattern = torch.randn(1, 3, 4, 4) * 0.01
    pattern -= pattern.mean((2, 3), keepdim=True)
    tiled = pattern.repeat(2, 1, 16, 16)
    assert float(grid_loss(real + tiled, real, 4)) == pytest.approx(
        float(pattern.square().mean()), rel=1e-4
    )
    noise = 0.01 * torch.randn_like(real)
    assert grid_loss(real + noise, real, 4) < 3e-6


def test_colour_counts_beside_rgb_where_it_is_asked_for():
    true = torch.rand(2, 3, 8, 8)
    brighter, redder = true + 0.1, true + torch.tensor([0.1, 0, 0]).view(1, 3, 1, 1)
    plain, coloured = PixelSection(), PixelSection(colour_weight=2.0)
    for made, added in ((brighter, 0.0), (redder, 0.1 * (0.168736 + 0.5) / 2)):
        difference = plane_loss((made,), (true,), coloured) - plane_loss((made,), (true,), plain)
        assert float(difference) == pytest.approx(2 * added, abs=1e-6)


def test_texture_loss_sees_how_strong_detail_is_and_not_where_it_lies():
    wave = torch.sin(torch.arange(96) * 1.1)
    real = 0.5 + 0.2 * (wave[:, None] * wave[None, :]).expand(2, 3, 96, 96)
    moved = real.roll(3, dims=3)
    fainter = 0.5 + 0.6 * (real - 0.5)
    assert float(texture_loss(real, real)) == 0
    assert float(texture_loss(moved, real)) < 0.1 * float(texture_loss(fainter, real))
    assert float(torch.nn.functional.l1_loss(moved, real)) > float(
        torch.nn.functional.l1_loss(fainter, real)
    )
    flat = torch.full((1, 1, 32, 32), 0.5, requires_grad=True)
    texture_loss(flat, real[:1, :1, :32, :32]).backward()
    assert flat.grad.isfinite().all()
