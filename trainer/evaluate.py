"""The literature's protocol: PSNR and SSIM on luma, 4x bicubic degradation, border shaved."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from srstream.models.table import Colour
from srstream.quality import Plane, luma_bt601, psnr, ssim
from trainer.data import crop_to_multiple, find_pictures, read_rgb
from trainer.degrade import bicubic_resize, downscale
from trainer.networks import TrainedNetwork, TrainedSpec
from trainer.planes import LEFT_SITED, Picture, chroma_through_420, rgb_of, yuv444


@dataclass(frozen=True)
class Enlarged:
    """A picture as an upscaler made it: BT.601, 16 to 235 and 16 to 240, float, not rounded."""

    y_HW: Plane
    chroma_2HW: NDArray[np.float64]
    """U and V at the size of Y."""

    def rgb_HW3(self) -> Picture:
        """As a picture to look at, uint8."""
        return rgb_of(np.concatenate([self.y_HW[None], self.chroma_2HW])).transpose(1, 2, 0)


Upscaler = Callable[[Picture], Enlarged]
"""From the low-resolution picture, (H, W, 3) RGB, uint8."""


@dataclass(frozen=True)
class Score:
    """Means over the pictures of a set."""

    psnr_db: float
    """On luma, as SSIM."""
    ssim: float
    chroma_psnr_db: float
    """Mean of U's and V's, at the size of luma."""
    num_pictures: int


@dataclass(frozen=True)
class TestPicture:
    """One picture of a test set, RGB, uint8."""

    name: str
    lr_HW3: Picture
    hr_HW3: Picture


def load_test_set(folder: Path, scale: int) -> list[TestPicture]:
    """Originals cropped to multiples of `scale`; low resolution by MATLAB's bicubic in RGB."""
    pictures = []
    for path in find_pictures(folder):
        rgb = crop_to_multiple(read_rgb(path), scale)
        pictures.append(TestPicture(path.stem, downscale(rgb, scale), rgb))
    return pictures


def score(upscale: Upscaler, pictures: list[TestPicture], scale: int) -> Score:
    """What `upscale` reaches: its output rounded to the 8 bits that a video will hold.

    `scale` pixels are shaved off every side. The original's luma is not rounded.
    """
    psnrs, ssims, chroma_psnrs = [], [], []
    for picture in pictures:
        enlarged = upscale(picture.lr_HW3)
        original = yuv444(picture.hr_HW3)
        sr_HW = np.clip(np.round(enlarged.y_HW), 0, 255)
        psnrs.append(psnr(sr_HW, original[0], border=scale))
        ssims.append(ssim(sr_HW, original[0], border=scale))
        for made, true in zip(enlarged.chroma_2HW, original[1:], strict=True):
            made = np.clip(np.round(made), 0, 255)
            # A grey picture's chroma is reproduced exactly; count it as what 8 bits allow.
            chroma_psnrs.append(min(psnr(made, true, border=scale), 58.9))
    means = (float(np.mean(values)) for values in (psnrs, ssims, chroma_psnrs))
    return Score(next(means), next(means), next(means), len(pictures))


def enlarge_planes(planes: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """(C, H, W) by bicubic."""
    return np.stack([bicubic_resize(plane, height, width) for plane in planes])


def bicubic_upscaler(scale: int) -> Upscaler:
    """MATLAB's bicubic on each plane: the baseline."""

    def upscale(lr_HW3: Picture) -> Enlarged:
        height, width = (side * scale for side in lr_HW3.shape[:2])
        yuv = enlarge_planes(yuv444(lr_HW3), height, width)
        return Enlarged(yuv[0], yuv[1:])

    return upscale


PlaneFunction = Callable[[NDArray[np.float32]], list[NDArray[np.float32]]]
"""A network as a function: (1, C, H, W), code / 255, to (1, planes, sH, sW) for each group."""


def model_upscaler(run: PlaneFunction, spec: TrainedSpec) -> Upscaler:
    """The network on what its colour form takes of the picture; the rest by bicubic.

    Luma goes in unrounded, as the literature's protocol has it; a `yuv420` model is given chroma
    that went through left-sited 4:2:0 in 8 bits.
    """
    bicubic = bicubic_upscaler(spec.scale)

    def upscale(lr_HW3: Picture) -> Enlarged:
        made = [
            group[0].astype(np.float64) * 255.0
            for group in run(_network_input(lr_HW3, spec.colour))
        ]
        height, width = made[0].shape[1:]
        if spec.colour == "luma":
            return Enlarged(made[0][0], bicubic(lr_HW3).chroma_2HW)
        if spec.colour == "yuv420":
            return Enlarged(made[0][0], enlarge_planes(made[1], height, width))
        rgb_HW3 = np.clip(np.round(made[0].transpose(1, 2, 0)), 0, 255).astype(np.uint8)
        yuv = yuv444(rgb_HW3)
        return Enlarged(yuv[0], yuv[1:])

    return upscale


def network_upscaler(network: TrainedNetwork) -> Upscaler:
    """A folded network in PyTorch."""

    def run(lr_1CHW: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        with torch.no_grad():
            return [group.numpy() for group in network(torch.from_numpy(lr_1CHW))]

    return model_upscaler(run, network.spec)


def _network_input(lr_HW3: Picture, colour: Colour) -> NDArray[np.float32]:
    """(1, C, H, W), code / 255."""
    if colour == "rgb":
        planes = lr_HW3.transpose(2, 0, 1).astype(np.float64)
    elif colour == "luma":
        planes = luma_bt601(lr_HW3)[None]
    else:
        yuv = yuv444(lr_HW3)
        planes = np.stack([yuv[0], *chroma_through_420(yuv, LEFT_SITED)[1:]])
    return np.ascontiguousarray((planes / 255.0).astype(np.float32)[None])
