"""The scores of a run in progress: PSNR on a set of pictures, and panels to look at."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from trainer.console import Reporter
from trainer.data.planes import Picture
from trainer.judge.evaluate import Enlarged, TestPicture, load_test_set, network_upscaler, score
from trainer.networks import TrainedNetwork

PANEL_SIDE = 256
"""Side of the crop of the original's middle, in pixels; a panel has three side by side."""

MAX_PANELS = 4


class SetValidation:
    """Measures a network on a folder of originals and draws its output for them."""

    def __init__(self, folder: Path, scale: int, reporter: Reporter) -> None:
        self.folder, self.scale, self.reporter = folder, scale, reporter
        self.pictures = load_test_set(folder, scale, reporter=reporter)

    def measure(self, network: TrainedNetwork) -> dict[str, float]:
        """Return PSNR (also as `score`) and SSIM on luma, and PSNR on chroma."""
        pictures = self.reporter.each("validating", self.pictures, len(self.pictures))
        reached = score(network_upscaler(network), pictures, self.scale)
        return {
            "score": reached.psnr_db,
            "psnr_db": reached.psnr_db,
            "ssim": reached.ssim,
            "chroma_psnr_db": reached.chroma_psnr_db,
        }

    def panel(self, network: TrainedNetwork) -> Picture:
        """Draw low resolution | generated | original, a row for each of the first pictures."""
        upscale = network_upscaler(network)
        rows = [
            _panel_row(picture, upscale(picture.lr), self.scale)
            for picture in self.pictures[:MAX_PANELS]
        ]
        return np.concatenate(rows)


def _panel_row(picture: TestPicture, made: Enlarged, scale: int) -> Picture:
    height, width = picture.hr_HW3.shape[:2]
    nearest = cv2.resize(picture.lr.rgb_HW3, (width, height), interpolation=cv2.INTER_NEAREST)
    return np.concatenate(
        [_middle(np.asarray(p, np.uint8)) for p in (nearest, made.rgb_HW3(), picture.hr_HW3)], 1
    )


def _middle(picture_HW3: Picture) -> Picture:
    """Crop the middle, `PANEL_SIDE` squared, with black around smaller pictures."""
    top, left = (max(side - PANEL_SIDE, 0) // 2 for side in picture_HW3.shape[:2])
    cut = picture_HW3[top : top + PANEL_SIDE, left : left + PANEL_SIDE]
    panel = np.zeros((PANEL_SIDE, PANEL_SIDE, 3), np.uint8)
    panel[: cut.shape[0], : cut.shape[1]] = cut
    return panel
