"""What stops a run: NaN, gray collapse, color drift; and what does not."""

import pytest
import torch

from trainer.loop.guards import (
    WARM_UP,
    WINDOW,
    Guard,
    TrainingCollapsedError,
    contrast_and_drifts,
)


def batches(num_batches, spoil=lambda made: made):
    random = torch.Generator().manual_seed(0)
    for _ in range(num_batches):
        true = torch.rand(2, 3, 16, 16, generator=random)
        noise = 0.05 * torch.randn(true.shape, generator=random)
        yield spoil(true + noise), true


def show(guard, made, true):
    contrast, *drifts = contrast_and_drifts(made, true).tolist()
    guard.see(contrast, drifts)


def test_a_working_network_passes():
    guard = Guard()
    for iteration, (made, true) in enumerate(batches(2 * WARM_UP)):
        show(guard, made, true)
        guard.check(iteration, {"pixel": 0.1})


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_stops_at_once(loss):
    with pytest.raises(TrainingCollapsedError, match="iteration 3: the loss 'pixel' is"):
        Guard().check(3, {"adversarial": 0.5, "pixel": loss})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda made: 0.5 + 0.1 * (made - 0.5), "gone gray"),
        (lambda made: made + torch.tensor([0.0, 0.05, 0.0])[:, None, None], r"drifted by 12\.\d"),
    ],
)
def test_lost_contrast_and_wandering_colours_stop_after_the_warm_up(spoil, message):
    guard = Guard()
    for iteration, (made, true) in enumerate(batches(WARM_UP - 1, spoil)):
        show(guard, made, true)
        guard.check(iteration, {})
    (made, true) = next(batches(1, spoil))
    show(guard, made, true)
    with pytest.raises(TrainingCollapsedError, match=message):
        guard.check(WARM_UP, {})


def test_a_bad_batch_now_and_then_is_no_collapse():
    guard = Guard()
    for iteration, (made, true) in enumerate(batches(WARM_UP + 2 * WINDOW)):
        contrast = 0.1 if iteration % 10 == 0 else 1.0
        show(guard, 0.5 + contrast * (made - 0.5), true)
        guard.check(iteration, {})
