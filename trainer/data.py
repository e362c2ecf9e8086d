"""Pictures in memory and random patches of them.

Shapes: `hr_HW` high-resolution luma, `lr_HW` its downscaled luma, uint8; a batch is
`lr_B1HW` and `hr_B1HW`, float32, code values / 255.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from srstream.errors import UsageError
from srstream.quality import luma_bt601
from trainer.degrade import downscale, to_uint8

log = logging.getLogger(__name__)

PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class Pair:
    """One picture's luma at both resolutions."""

    path: Path
    lr_HW: NDArray[np.uint8]
    hr_HW: NDArray[np.uint8]


def find_pictures(folder: Path) -> list[Path]:
    """Every picture below the folder, sorted; `UsageError` if there is none."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder of pictures")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES)
    if not paths:
        raise UsageError(f"{folder}: holds no pictures ({', '.join(sorted(PICTURE_SUFFIXES))})")
    return paths


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) RGB, uint8; a grey picture has three equal planes."""
    bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if bgr is None:
        raise UsageError(f"{path}: cannot be decoded as a picture")
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def crop_to_multiple(rgb_HW3: NDArray[np.uint8], multiple: int) -> NDArray[np.uint8]:
    """Right and bottom cut so that both sides are multiples."""
    height, width = rgb_HW3.shape[:2]
    return rgb_HW3[: height - height % multiple, : width - width % multiple]


def load_pairs(folder: Path, scale: int, patch_size: int) -> list[Pair]:
    """All pictures of the folder, decoded and downscaled once.

    A picture smaller than one patch, or one that can't be decoded, is named in the log and left
    out; `UsageError` if none remains.
    """
    pairs = []
    for path in find_pictures(folder):
        try:
            rgb = crop_to_multiple(read_rgb(path), scale)
        except UsageError as error:
            log.warning("%s; left out", error)
            continue
        if min(rgb.shape[:2]) < patch_size * scale:
            height, width = rgb.shape[:2]
            log.warning(
                "%s: %dx%d is smaller than a patch of %d; left out",
                path, width, height, patch_size * scale,
            )  # fmt: skip
            continue
        lr_HW = to_uint8(luma_bt601(downscale(rgb, scale)))
        pairs.append(Pair(path, lr_HW, to_uint8(luma_bt601(rgb))))
    if not pairs:
        raise UsageError(
            f"{folder}: no picture is at least {patch_size * scale} pixels wide and high"
        )
    return pairs


class PatchSampler:
    """Endless random batches; its state can be saved and set, so a resumed run sees the same.

    Pictures are drawn in proportion to their area, positions uniformly, and each patch is
    flipped and turned into one of its eight orientations.
    """

    def __init__(
        self, pairs: list[Pair], *, scale: int, patch_size: int, batch_size: int, seed: int
    ) -> None:
        self.pairs = pairs
        self.scale = scale
        self.patch_size = patch_size
        self.batch_size = batch_size
        areas = np.array([pair.lr_HW.size for pair in pairs], dtype=np.float64)
        self._cumulative_area = np.cumsum(areas / areas.sum())
        self._random = np.random.Generator(np.random.PCG64(seed))

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """`lr_B1HW` and the `hr_B1HW` it was made from."""
        patches = [self._next_patch() for _ in range(self.batch_size)]
        lr_BHW = np.stack([lr for lr, _ in patches])
        hr_BHW = np.stack([hr for _, hr in patches])
        return _to_batch(lr_BHW), _to_batch(hr_BHW)

    def state(self) -> str:
        return json.dumps(self._random.bit_generator.state)

    def set_state(self, state: str) -> None:
        self._random.bit_generator.state = json.loads(state)

    def _next_patch(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        drawn = np.searchsorted(self._cumulative_area, self._random.random(), side="right")
        pair = self.pairs[min(int(drawn), len(self.pairs) - 1)]
        height, width = pair.lr_HW.shape
        size, scale = self.patch_size, self.scale
        top = int(self._random.integers(height - size + 1))
        left = int(self._random.integers(width - size + 1))
        orientation = int(self._random.integers(8))
        lr = pair.lr_HW[top : top + size, left : left + size]
        hr = pair.hr_HW[top * scale : (top + size) * scale, left * scale : (left + size) * scale]
        return _orient(lr, orientation), _orient(hr, orientation)


def _orient(patch_HW: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    turned = np.rot90(patch_HW, orientation % 4)
    return turned[:, ::-1] if orientation >= 4 else turned


def _to_batch(planes_BHW: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(planes_BHW).unsqueeze(1).float().div_(255.0)
