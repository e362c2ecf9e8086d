"""The literature's protocol: PSNR and SSIM on luma, 4x bicubic degradation, border shaved.

The same protocol also measures frames that went through a codec.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from srstream.models.table import ColorFormName
from srstream.quality import Plane, psnr, ssim
from srstream.resampling import with_local_mean
from trainer.console import Reporter
from trainer.data.degrade import bicubic_resize, downscale
from trainer.data.pairs import crop_to_multiple, find_pictures, read_rgb
from trainer.data.planes import (
    LEFT_SITED,
    Codes,
    Picture,
    as_yuv420,
    chroma_through_420,
    on_luma_grid,
    rgb_of,
    yuv444,
)
from trainer.networks import TrainedNetwork, TrainedSpec


@dataclass(frozen=True)
class LowResolution:
    """The input of an upscaler, in every form that one may need."""

    rgb_HW3: Picture
    yuv_3HW: NDArray[np.float64]
    """BT.601 in limited range, not rounded if it comes from RGB."""
    subsampled_2HW: NDArray[np.float64]
    """U and V that went through 4:2:0, on luma's grid."""

    @classmethod
    def of_picture(cls, rgb_HW3: Picture) -> LowResolution:
        """Convert a picture; luma isn't rounded, following the literature's protocol."""
        yuv_3HW = yuv444(rgb_HW3)
        subsampled = chroma_through_420(yuv_3HW, LEFT_SITED)[1:].astype(np.float64)
        return cls(rgb_HW3, yuv_3HW, subsampled)

    @classmethod
    def of_video(cls, planes: Sequence[Codes]) -> LowResolution:
        """Convert a left-sited 4:2:0 frame, (Y, U, V)."""
        yuv_3HW = on_luma_grid(planes, LEFT_SITED).astype(np.float64)
        return cls(rgb_of(yuv_3HW).transpose(1, 2, 0), yuv_3HW, yuv_3HW[1:])

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        height, width = self.rgb_HW3.shape[:2]
        return height, width

    def input_of(self, color: ColorFormName) -> NDArray[np.float32]:
        """Return (1, C, H, W), the input of a model of this color form, code / 255."""
        if color == "rgb":
            planes = self.rgb_HW3.transpose(2, 0, 1).astype(np.float64)
        elif color == "luma":
            planes = self.yuv_3HW[:1]
        else:
            planes = np.concatenate([self.yuv_3HW[:1], self.subsampled_2HW])
        return np.ascontiguousarray((planes / 255.0).astype(np.float32)[None])


@dataclass(frozen=True)
class Enlarged:
    """An upscaler's output: BT.601, 16 to 235 and 16 to 240, float, not rounded."""

    y_HW: Plane
    chroma_2HW: NDArray[np.float64]
    """U and V at the size of Y."""

    def rgb_HW3(self) -> Picture:
        """Return the planes as a viewable picture, uint8."""
        return rgb_of(np.concatenate([self.y_HW[None], self.chroma_2HW])).transpose(1, 2, 0)


Upscaler = Callable[[LowResolution], Enlarged]


@dataclass(frozen=True)
class Score:
    """Means over the pictures of a set."""

    psnr_db: float
    """PSNR on luma; SSIM likewise."""
    ssim: float
    chroma_psnr_db: float
    """Mean over U and V, at the size of luma."""
    num_pictures: int


@dataclass(frozen=True)
class TestPicture:
    """One picture of a test set, or one frame of a clip."""

    name: str
    lr: LowResolution
    hr_HW3: Picture
    """RGB, uint8."""


def load_test_set(
    folder: Path, scale: int, *, subsampled: bool = False, reporter: Reporter | None = None
) -> list[TestPicture]:
    """Load originals cropped to multiples of `scale`; low resolution is MATLAB's bicubic in RGB.

    With `subsampled`, low resolution then goes through 8-bit 4:2:0, for all methods alike.
    """
    reporter = reporter or Reporter(is_silent=True)
    paths, pictures = find_pictures(folder), []
    for path in reporter.each(f"reading {folder.name}", paths, len(paths)):
        rgb = crop_to_multiple(read_rgb(path), 2 * scale if subsampled else scale)
        small = downscale(rgb, scale)
        lr = (
            LowResolution.of_video(as_yuv420(small))
            if subsampled
            else LowResolution.of_picture(small)
        )
        pictures.append(TestPicture(path.stem, lr, rgb))
    return pictures


GREY_CHROMA_DB = 58.9
"""The chroma PSNR of a gray picture: it is exact, but counts as having 8-bit rounding error."""


def score(upscale: Upscaler, pictures: Iterable[TestPicture], scale: int) -> Score:
    """Return the score of `upscale`, its output rounded to the 8 bits that a video holds.

    `scale` pixels are shaved off every side. The original's luma is not rounded.
    """
    figures = [score_picture(upscale(picture.lr), picture.hr_HW3, scale) for picture in pictures]
    psnr_db, ssim_mean, chroma_psnr_db = (float(mean) for mean in np.mean(figures, axis=0))
    return Score(psnr_db, ssim_mean, chroma_psnr_db, len(figures))


def score_picture(made: Enlarged, hr_HW3: Picture, border: int) -> tuple[float, float, float]:
    """Return PSNR and SSIM on luma and PSNR on chroma; see `Score`."""
    luma, *chroma = yuv444(hr_HW3)
    y_HW = as_codes(made.y_HW)
    chroma_psnrs = [
        min(psnr(as_codes(plane), true, border), GREY_CHROMA_DB)
        for plane, true in zip(made.chroma_2HW, chroma, strict=True)
    ]
    return psnr(y_HW, luma, border), ssim(y_HW, luma, border), float(np.mean(chroma_psnrs))


def as_codes(plane: Plane) -> Plane:
    """Round to whole levels and clip; the result is still float."""
    return np.clip(np.round(plane), 0, 255)


def enlarge_planes(planes: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """Enlarge (C, H, W) by bicubic."""
    return np.stack([bicubic_resize(plane, height, width) for plane in planes])


def bicubic_upscaler(scale: int) -> Upscaler:
    """Return the baseline: MATLAB's bicubic on each plane."""

    def upscale(lr: LowResolution) -> Enlarged:
        height, width = (side * scale for side in lr.shape)
        yuv = enlarge_planes(lr.yuv_3HW, height, width)
        return Enlarged(yuv[0], yuv[1:])

    return upscale


def softened_upscaler(upscale: Upscaler, strength: float, scale: int) -> Upscaler:
    """Blend bicubic with another upscaler's output, like `srstream.engines.bicubic_mix`."""
    bicubic = bicubic_upscaler(scale)

    def mixed(lr: LowResolution) -> Enlarged:
        plain, made = bicubic(lr), upscale(lr)
        return Enlarged(
            plain.y_HW + strength * (made.y_HW - plain.y_HW),
            plain.chroma_2HW + strength * (made.chroma_2HW - plain.chroma_2HW),
        )

    return mixed


PlaneFunction = Callable[[NDArray[np.float32]], list[NDArray[np.float32]]]
"""A network as a function: (1, C, H, W), code / 255, to (1, planes, sH, sW) for each group."""


def model_upscaler(run: PlaneFunction, spec: TrainedSpec) -> Upscaler:
    """Return an upscaler that runs the network on its own planes and bicubic on the others.

    As in a video, the output of a network that makes all planes keeps the source's local mean.
    """

    def upscale(lr: LowResolution) -> Enlarged:
        made = [group[0].astype(np.float64) * 255.0 for group in run(lr.input_of(spec.color_form))]
        height, width = made[0].shape[1:]
        if spec.color_form == "luma":
            return Enlarged(made[0][0], enlarge_planes(lr.yuv_3HW[1:], height, width))
        source = lr.yuv_3HW
        if spec.color_form == "yuv420":
            luma = _with_local_mean(made[0][0], source[0])
            chroma = [
                _with_local_mean(plane, true)
                for plane, true in zip(made[1], lr.subsampled_2HW, strict=True)
            ]
            return Enlarged(luma, enlarge_planes(np.stack(chroma), height, width))
        rgb_HW3 = np.clip(np.round(made[0].transpose(1, 2, 0)), 0, 255).astype(np.uint8)
        planes = zip(yuv444(rgb_HW3), source, strict=True)
        yuv = np.stack([_with_local_mean(plane, true) for plane, true in planes])
        return Enlarged(yuv[0], yuv[1:])

    return upscale


def _with_local_mean(made_HW: Plane, source_HW: Plane) -> Plane:
    return with_local_mean(made_HW, source_HW).astype(np.float64)


def network_upscaler(network: TrainedNetwork) -> Upscaler:
    """Run a folded network in PyTorch."""

    def run(lr_1CHW: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        with torch.no_grad():
            return [group.numpy() for group in network(torch.from_numpy(lr_1CHW))]

    return model_upscaler(run, network.spec)
