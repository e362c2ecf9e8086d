"""A network's output as RGB pictures, for feature networks, judges and people."""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from srstream.models.networks import Planes
from srstream.models.table import ColorFormName
from trainer.data.planes import FROM_RGB

# ITU-R BT.601-7: RGB from Y - 16, U - 128 and V - 128 in limited range, all on a scale of 0 to 255.
_FROM_YUV = (
    (255 / 219, 0.0, 1.402 * 255 / 224),
    (255 / 219, -0.344136 * 255 / 224, -0.714136 * 255 / 224),
    (255 / 219, 1.772 * 255 / 224, 0.0),
)

_YUV_OFFSETS = (16.0, 128.0, 128.0)

_TO_CHROMA = tuple(map(tuple, (FROM_RGB[1:] / 224).tolist()))


def to_chroma(rgb_B3HW: Tensor) -> Tensor:
    """Convert RGB in [0, 1] to (B, 2, H, W), U and V, about [-0.5, 0.5] (ITU-R BT.601-7)."""
    matrix = _constant(_TO_CHROMA, rgb_B3HW.dtype, rgb_B3HW.device)
    return torch.einsum("oi,bihw->bohw", matrix, rgb_B3HW)


def to_rgb(planes: Planes, color: ColorFormName) -> Tensor:
    """Convert to (B, 3, H, W), RGB in about [0, 1], not clamped; a luma model's picture is gray.

    The conversion is differentiable. Half-size chroma is enlarged by bilinear interpolation.
    """
    if color == "rgb":
        return planes[0]
    y_B1HW = planes[0]
    if color == "luma":
        grey = (y_B1HW - 16 / 255) * (255 / 219)
        return grey.expand(-1, 3, -1, -1)
    chroma_B2HW = functional.interpolate(planes[1], scale_factor=2, mode="bilinear")
    offsets = _constant(_YUV_OFFSETS, torch.float32, y_B1HW.device).view(1, 3, 1, 1) / 255
    yuv = torch.cat([y_B1HW, chroma_B2HW], dim=1) - offsets
    return torch.einsum("oi,bihw->bohw", _constant(_FROM_YUV, yuv.dtype, yuv.device), yuv)


@lru_cache
def _constant(
    values: tuple[float, ...] | tuple[tuple[float, ...], ...],
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Return numbers that lie on the device from the second call on, as a CUDA graph needs."""
    return torch.tensor(values, dtype=dtype, device=device)
