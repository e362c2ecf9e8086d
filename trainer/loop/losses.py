"""The loss functions of the stages.

Pictures are (B, C, H, W), RGB or planes, about [0, 1]; logits have any shape, the batch first;
features are lists of (B, C, H, W). Every loss is a scalar.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Adversary = Literal["standard", "relativistic"]

FEATURE_SCALE = 1 / 12.75
"""Ledig et al. (CVPR 2017), section 3.2: VGG features scaled so that losses are as large as MSE."""

LDL_WINDOW = 7

GRID_WINDOW = 8

TEXTURE_OCTAVES, TEXTURE_WINDOW = 3, 8


def content_loss(made: Sequence[Tensor], true: Sequence[Tensor]) -> Tensor:
    """Return the mean squared error of rescaled features over the layers (Ledig et al., eq. 5)."""
    errors = [
        functional.mse_loss(FEATURE_SCALE * m, FEATURE_SCALE * t)
        for m, t in zip(made, true, strict=True)
    ]
    return torch.stack(errors).mean()


def unit_content_loss(made: Sequence[Tensor], true: Sequence[Tensor]) -> Tensor:
    """Return the squared error of features at unit length, averaged over the layers.

    It is LPIPS without its learned weights (Zhang et al., CVPR 2018, equation 1): all depths count
    alike, and flat places count as much as edges, whose features are larger.
    """
    errors = [
        (functional.normalize(m.float(), dim=1) - functional.normalize(t.float(), dim=1))
        .square()
        .sum(dim=1)
        .mean()
        for m, t in zip(made, true, strict=True)
    ]
    return torch.stack(errors).mean()


def feature_matching_loss(made: Sequence[Tensor], true: Sequence[Tensor]) -> Tensor:
    """Return the mean absolute difference of a discriminator's features (Wang et al., CVPR 2018).

    The loss is their equation 4. Each layer is divided by the mean magnitude of its true features,
    so that it counts in proportion to its own scale.
    """
    errors = [
        functional.l1_loss(m, t) / t.abs().mean().clamp(min=1e-6)
        for m, t in zip(made, true, strict=True)
    ]
    return torch.stack(errors).mean()


def discriminator_loss(real_logits: Tensor, made_logits: Tensor, adversary: Adversary) -> Tensor:
    """Return the binary cross-entropy: real pictures are 1, made ones 0.

    Relativistic average (Jolicoeur-Martineau, ICLR 2019; as in ESRGAN): a real picture should be
    more real than the average made one, and vice versa.
    """
    if adversary == "relativistic":
        real_logits, made_logits = (
            real_logits - made_logits.mean(),
            made_logits - real_logits.mean(),
        )
    return (_cross_entropy(real_logits, 1.0) + _cross_entropy(made_logits, 0.0)) / 2


def generator_loss(made_logits: Tensor, real_logits: Tensor, adversary: Adversary) -> Tensor:
    """Return the generator's part: made pictures should pass for real (Ledig et al., eq. 6)."""
    if adversary == "standard":
        return _cross_entropy(made_logits, 1.0)
    made, real = made_logits - real_logits.mean(), real_logits - made_logits.mean()
    return (_cross_entropy(made, 1.0) + _cross_entropy(real, 0.0)) / 2


def ldl_loss(made: Tensor, steady: Tensor, real: Tensor) -> Tensor:
    """Return the loss of locally discriminative learning: absolute difference at artifacts.

    A pixel's weight is the variance of the residual in the surrounding 7x7, times the fifth root of
    the residual's variance over the picture; it is zero where the averaged network (`steady`) is
    farther from the original than the one in training (Liang et al., CVPR 2022, equations 5 to 8).
    """
    residual = (real - made).abs().sum(1, keepdim=True)
    residual_steady = (real - steady).abs().sum(1, keepdim=True)
    with torch.no_grad():
        overall = residual.var((1, 2, 3), keepdim=True) ** 0.2
        weight = overall * _local_variance(residual)
        weight = torch.where(residual < residual_steady, torch.zeros_like(weight), weight)
    return functional.l1_loss(weight * made, weight * real)


def grid_loss(made: Tensor, real: Tensor, scale: int) -> Tensor:
    """Return the strength of PixelShuffle's `scale` x `scale` pattern in a difference.

    The difference is split into its phases, each averaged over `GRID_WINDOW` cells each way; the
    result is the mean square of each phase's deviation from the mean of all phases.
    """
    phases = functional.pixel_unshuffle(made - real, scale)
    means = functional.avg_pool2d(phases, GRID_WINDOW, stride=GRID_WINDOW // 2)
    by_phase = means.unflatten(1, (made.shape[1], scale**2))
    return (by_phase - by_phase.mean(2, keepdim=True)).square().mean()


def texture_loss(made: Tensor, real: Tensor) -> Tensor:
    """Return the error in the local strength of detail, except for the finest.

    Each channel is split into octaves (a Laplacian pyramid by averages of 2x2); the root mean
    squares of the second and third, in windows of 8x8 samples, are compared by mean absolute
    difference. (Low resolution tells nothing about the finest octave, and strength there comes out
    as a mesh.) The position of detail within a window makes no difference, so detail that cannot be
    known need not be drawn faintly, as a mean error would demand (such statistics: Portilla and
    Simoncelli, IJCV 2000; as a loss, of features' Gram matrices: Sajjadi et al., EnhanceNet, ICCV
    2017). Sides must be at least 32.
    """
    differences = []
    made, real = functional.avg_pool2d(made, 2), functional.avg_pool2d(real, 2)
    for _ in range(1, TEXTURE_OCTAVES):
        (made, made_strength), (real, real_strength) = _octave(made), _octave(real)
        differences.append(functional.l1_loss(made_strength, real_strength))
    return torch.stack(differences).mean()


def _octave(x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Return the coarser part, at half the size, and the strength of the rest in each window."""
    coarse = functional.avg_pool2d(x_BCHW, 2)
    fine = x_BCHW - functional.interpolate(coarse, x_BCHW.shape[2:], mode="bilinear")
    windows = functional.avg_pool2d(fine.square(), TEXTURE_WINDOW, stride=TEXTURE_WINDOW // 2)
    return coarse, (windows + 1e-6).sqrt()  # a thousandth: the slope of a root is infinite at 0


def steadiness_loss(
    sr_a: Tensor, sr_b: Tensor, offset: tuple[int, int], *, border: int = 0
) -> Tensor:
    """Return the mean absolute difference of two views of one place (Eilertsen et al., CVPR 2019).

    `sr_b` starts `offset` = (rows, columns) pixels farther into the picture than `sr_a`, and may be
    smaller; `border` pixels at each side of their overlap are left out. This is their equation 3.
    """
    rows, columns = offset
    shown_a = sr_a[:, :, rows:, columns:]
    height = min(shown_a.shape[2], sr_b.shape[2])
    width = min(shown_a.shape[3], sr_b.shape[3])
    inside = slice(border, height - border), slice(border, width - border)
    return functional.l1_loss(shown_a[:, :, *inside], sr_b[:, :, *inside])


def _cross_entropy(logits: Tensor, label: float) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))


def _local_variance(x_B1HW: Tensor) -> Tensor:
    """Return the unbiased variance in windows of `LDL_WINDOW` squared, edges mirrored."""
    reach = LDL_WINDOW // 2
    padded = functional.pad(x_B1HW, [reach] * 4, mode="reflect")
    patches = functional.unfold(padded, LDL_WINDOW)
    return patches.var(1).view_as(x_B1HW)
