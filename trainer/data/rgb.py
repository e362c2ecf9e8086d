"""A network's output as RGB pictures, for feature networks, judges and people."""

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


def to_chroma(rgb_B3HW: Tensor) -> Tensor:
    """Convert RGB in [0, 1] to (B, 2, H, W), U and V, about [-0.5, 0.5] (ITU-R BT.601-7)."""
    matrix = torch.tensor(FROM_RGB[1:] / 224, dtype=rgb_B3HW.dtype, device=rgb_B3HW.device)
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
    offsets = torch.tensor([16, 128, 128], device=y_B1HW.device).view(1, 3, 1, 1) / 255
    yuv = torch.cat([y_B1HW, chroma_B2HW], dim=1) - offsets
    matrix = torch.tensor(_FROM_YUV, dtype=yuv.dtype, device=yuv.device)
    return torch.einsum("oi,bihw->bohw", matrix, yuv)
