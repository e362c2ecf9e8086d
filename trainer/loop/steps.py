"""The parts of an iteration that all stages share: plane losses, optimizer step, memory layout."""

from __future__ import annotations

from collections.abc import Callable

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Adam, Optimizer

from srstream.models.networks import Planes
from trainer.config import StageSection
from trainer.data.pairs import Batch
from trainer.data.rgb import to_chroma
from trainer.loop.losses import steadiness_loss

Distance = Callable[[Tensor, Tensor], Tensor]

STEADINESS_BORDER = 16
"""High-resolution pixels left out at each side, because the two crops end at different places."""


def plane_loss(
    sr: Planes, hr: Planes, section: StageSection, distance: Distance = functional.l1_loss
) -> Tensor:
    """Return the distance of the first plane group plus the weighted distance of color.

    Color is the second group, or U and V of the first one if it is RGB.
    """
    loss = distance(sr[0], hr[0])
    for made, true in zip(sr[1:], hr[1:], strict=True):
        loss = loss + section.chroma_weight * distance(made, true)
    if section.colour_weight and sr[0].shape[1] == 3:
        loss = loss + section.colour_weight * distance(to_chroma(sr[0]), to_chroma(hr[0]))
    return loss


def steadiness(network: nn.Module, sr: Planes, batch: Batch, *knob: float | Tensor) -> Tensor:
    """Return how much two views of the same place disagree, on the first plane group."""
    assert batch.shifted is not None
    again = network(fast_layout(batch.shifted.lr_BCHW), *knob)
    return steadiness_loss(sr[0], again[0], batch.shifted.offset, border=STEADINESS_BORDER)


class Dial:
    """A number that the host sets between iterations and the device reads.

    On CUDA it lies in memory, where a graph that was captured once finds it; elsewhere it is plain.
    """

    def __init__(self, value: float, device: torch.device) -> None:
        self.value: float | Tensor = value
        if device.type == "cuda":
            self.value = torch.tensor(value, dtype=torch.float32, device=device)
        self._set_to = value

    def set(self, value: float) -> None:
        """Let iterations from now on read this value."""
        if value == self._set_to:
            return
        self._set_to = value
        if isinstance(self.value, Tensor):
            self.value.fill_(value)
        else:
            self.value = value


def adam(module: nn.Module, section: StageSection, rate: float, device: torch.device) -> Adam:
    """Return Adam with the section's decays; on CUDA in one kernel, fit for a graph."""
    trained = [value for value in module.parameters() if value.requires_grad]
    betas = (section.beta1, section.beta2)
    if device.type != "cuda":
        return Adam(trained, lr=rate, betas=betas)
    on_device = torch.tensor(rate, dtype=torch.float32, device=device)
    return Adam(trained, lr=on_device, betas=betas, fused=True, capturable=True)


def set_rate(optimizer: Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def descend(
    fabric: Fabric, loss: Tensor, module: nn.Module, optimizer: Optimizer, clip_norm: float
) -> None:
    optimizer.zero_grad(set_to_none=True)
    fabric.backward(loss)
    if clip_norm:
        fabric.clip_gradients(module, optimizer, max_norm=clip_norm, error_if_nonfinite=False)
    optimizer.step()


def fast_layout(x_BCHW: Tensor) -> Tensor:
    """Convert to channels last, which a CPU's convolutions use, to avoid reordering."""
    return x_BCHW.contiguous(memory_format=torch.channels_last)


def lay_out_fast(module: nn.Module) -> None:
    """Lay out the kernels as `fast_layout` does their input."""
    for parameter in module.parameters():
        if parameter.dim() == 4:
            parameter.data = fast_layout(parameter.data)


def detached(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: loss.detach() for name, loss in losses.items()}
