"""The literature's protocol: PSNR and SSIM on luma, 4x bicubic degradation, border shaved."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from srstream.quality import Plane, luma_bt601, psnr, ssim
from trainer.data import crop_to_multiple, find_pictures, read_rgb
from trainer.degrade import bicubic_resize, downscale

Upscaler = Callable[[Plane], Plane]
"""(H, W) luma on the scale 0 to 255, not rounded, to (scale H, scale W) likewise."""


@dataclass(frozen=True)
class Score:
    """Means over the pictures of a set."""

    psnr_db: float
    ssim: float
    num_pictures: int


@dataclass(frozen=True)
class TestPicture:
    """One picture of a test set: luma, float, 0 to 255."""

    name: str
    lr_HW: Plane
    hr_HW: Plane


def load_test_set(folder: Path, scale: int) -> list[TestPicture]:
    """Originals cropped to multiples of `scale`; low resolution by MATLAB's bicubic.

    The RGB picture is downscaled and rounded to uint8; luma is taken of it and of the original
    without another rounding.
    """
    pictures = []
    for path in find_pictures(folder):
        rgb = crop_to_multiple(read_rgb(path), scale)
        lr_HW = luma_bt601(downscale(rgb, scale))
        pictures.append(TestPicture(path.stem, lr_HW, luma_bt601(rgb)))
    return pictures


def score(upscale: Upscaler, pictures: list[TestPicture], scale: int) -> Score:
    """What `upscale` reaches: its output rounded to the 8 bits that a video will hold.

    `scale` pixels are shaved off every side.
    """
    psnrs, ssims = [], []
    for picture in pictures:
        sr_HW = np.clip(np.round(upscale(picture.lr_HW)), 0, 255)
        psnrs.append(psnr(sr_HW, picture.hr_HW, border=scale))
        ssims.append(ssim(sr_HW, picture.hr_HW, border=scale))
    return Score(float(np.mean(psnrs)), float(np.mean(ssims)), len(pictures))


def bicubic_upscaler(scale: int) -> Upscaler:
    """MATLAB's bicubic on luma: the baseline."""

    def upscale(lr_HW: Plane) -> Plane:
        return bicubic_resize(lr_HW, lr_HW.shape[0] * scale, lr_HW.shape[1] * scale)

    return upscale


def network_upscaler(network: nn.Module) -> Upscaler:
    """A luma network in PyTorch."""

    def upscale(lr_HW: Plane) -> Plane:
        lr_1HW = torch.from_numpy(lr_HW / 255.0).float()[None, None]
        with torch.no_grad():
            sr_1HW: NDArray[np.float32] = network(lr_1HW)[0, 0].numpy()
        return sr_1HW.astype(np.float64) * 255.0

    return upscale
