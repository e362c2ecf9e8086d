"""Pictures at both resolutions and random patches of them.

Shapes: a low-resolution picture is (C, H, W), where C is the model's input planes; the original is
one (planes, scale H, scale W) for each plane group of its color form. Both are codes in memory
and, in a batch, float32, code values / 255.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from srstream.errors import UsageError
from trainer.config import DataSection
from trainer.data.augment import Augmentation, Change
from trainer.data.degrade import downscale, downscale_exactly, resize_matrix, to_uint8
from trainer.data.planes import (
    Codes,
    InputCodes,
    Values,
    code_values,
    input_variants,
    target_planes,
)
from trainer.networks import TrainedSpec

log = logging.getLogger(__name__)

PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}

KNOB_REACH = 0.1
"""Maximum distance of a pair's severity from the position of `--restore` of its batch."""

MAX_REDRAWS = 50
"""Times that pictures which cannot be read are drawn anew for one batch."""

VIDEO_SUFFIXES = {
    ".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg",
    ".wmv",
}  # fmt: skip


class Outline(NamedTuple):
    """What is known of a pair without its planes: enough to draw a patch of it."""

    name: str
    shape: tuple[int, int]
    """(H, W) of the low resolution."""
    shares: tuple[float, ...]
    """Of the patches, for each form of the low resolution."""
    severity: float


@runtime_checkable
class PairStore(Protocol):
    """Pairs that are not all in memory."""

    @property
    def outlines(self) -> Sequence[Outline]: ...
    def several(self, indices: Sequence[int]) -> list[Pair | None]:
        """The pairs of these indices; None for what cannot be read."""
        ...


@dataclass(frozen=True)
class Pair:
    """One picture at both resolutions."""

    name: str
    lr: tuple[tuple[float, InputCodes], ...]
    """Variants of the low resolution, (C, H, W) each, with the share of patches that use each."""
    hr: tuple[Codes, ...]
    severity: float = 0.0
    """The codec's damage, as the position of `--restore` that suits it."""

    @property
    def shape(self) -> tuple[int, int]:
        """Return (H, W) of the low resolution."""
        height, width = self.lr[0][1].shape[1:]
        return height, width

    @property
    def outline(self) -> Outline:
        """What patches are drawn by."""
        return Outline(self.name, self.shape, tuple(share for share, _ in self.lr), self.severity)

    @property
    def num_bytes(self) -> int:
        """What its planes take in memory."""
        return sum(planes.nbytes for _, planes in self.lr) + sum(hr.nbytes for hr in self.hr)


def clean_pair(name: str, rgb_HW3: NDArray[np.uint8], spec: TrainedSpec, data: DataSection) -> Pair:
    """Pair a picture, sides multiples of twice the scale, with its antialiased bicubic reduction.

    Low resolution is rounded to 8 bits, unless augmentation rounds each patch.
    """
    exact = data.augmentation is not None
    small = downscale_exactly(rgb_HW3, spec.scale) if exact else downscale(rgb_HW3, spec.scale)
    lr = input_variants(small, spec.color_form, subsampled=data.subsampled_chroma, exact=exact)
    return Pair(name, lr, target_planes(rgb_HW3, spec.color_form))


class Shifted(NamedTuple):
    """The same pictures again, each crop shifted and downscaled once more."""

    lr_BCHW: Tensor
    offset: tuple[int, int]
    """(rows, columns), in high-resolution pixels, by which these crops start farther in."""


class Batch(NamedTuple):
    """The data of one iteration."""

    lr_BCHW: Tensor
    hr: tuple[Tensor, ...]
    shifted: Shifted | None = None
    knob: float | Tensor | None = None
    """The position of `--restore` that the batch is for; of batches cut on a device, a scalar."""


def find_pictures(folder: Path) -> list[Path]:
    """Return every picture below the folder, sorted; `UsageError` if there is none."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder of pictures")
    paths = _files(folder, PICTURE_SUFFIXES)
    if not paths:
        raise UsageError(f"{folder}: holds no pictures ({', '.join(sorted(PICTURE_SUFFIXES))})")
    return paths


def find_training_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return pictures and videos below the folder, sorted; `UsageError` if there are neither."""
    videos = _files(folder, VIDEO_SUFFIXES) if folder.is_dir() else []
    if videos and not _files(folder, PICTURE_SUFFIXES):
        return [], videos
    return find_pictures(folder), videos


def _files(folder: Path, suffixes: set[str]) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in suffixes)


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """Read (H, W, 3) RGB, uint8; a gray picture has three equal planes."""
    bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if bgr is None:
        raise UsageError(f"{path}: cannot be decoded as a picture")
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def crop_to_multiple(rgb_HW3: NDArray[np.uint8], multiple: int) -> NDArray[np.uint8]:
    """Crop right and bottom so that both sides are multiples."""
    height, width = rgb_HW3.shape[:2]
    return rgb_HW3[: height - height % multiple, : width - width % multiple]


def load_pairs(folder: Path, spec: TrainedSpec, data: DataSection) -> list[Pair]:
    """Load all pictures of the folder, decoded and downscaled once.

    A picture smaller than one patch, or one that can't be decoded, is named in the log and left
    out; `UsageError` if none remains.
    """
    pairs = [pair for pair in loaded_pairs(find_pictures(folder), folder, spec, data) if pair]
    if not pairs:
        raise none_is_large_enough(folder, spec, data)
    return pairs


def loaded_pairs(
    paths: Sequence[Path], folder: Path, spec: TrainedSpec, data: DataSection
) -> Iterator[Pair | None]:
    """The pair of each picture, in order; None, and a line in the log, for those left out."""
    threads = ThreadPoolExecutor(len(os.sched_getaffinity(0)), "pictures")
    try:
        yield from threads.map(lambda path: _loaded_pair(path, folder, spec, data), paths)
    finally:
        threads.shutdown(cancel_futures=True)


def _loaded_pair(path: Path, folder: Path, spec: TrainedSpec, data: DataSection) -> Pair | None:
    try:
        rgb = crop_to_multiple(read_rgb(path), 2 * spec.scale)
    except UsageError as error:
        log.warning("%s; left out", error)
        return None
    if not is_large_enough(path, rgb.shape[:2], spec, data):
        return None
    return clean_pair(path.relative_to(folder).as_posix(), rgb, spec, data)


def is_large_enough(
    path: Path, shape: tuple[int, int], spec: TrainedSpec, data: DataSection
) -> bool:
    """Return whether a picture of (H, W) holds a patch; where it does not, the log says so."""
    multiple, side = 2 * spec.scale, data.patch_size * spec.scale
    height, width = (length // multiple * multiple for length in shape)
    if min(height, width) >= side:
        return True
    log.warning("%s: %dx%d is smaller than a patch of %d; left out", path, width, height, side)
    return False


def none_is_large_enough(folder: Path, spec: TrainedSpec, data: DataSection) -> UsageError:
    """The error of a folder without a picture to train on."""
    side = data.patch_size * spec.scale
    return UsageError(f"{folder}: no picture is at least {side} pixels wide and high")


def evenly_chosen(paths: Sequence[Path], count: int | None) -> list[Path]:
    """So many of them, evenly spaced in their order; all of them for None, or if there are less."""
    if count is None or count >= len(paths):
        return list(paths)
    return [paths[n * len(paths) // count] for n in range(count)]


class PatchSampler:
    """Endless random batches; its state can be saved and restored, so a resumed run sees the same.

    Pictures are drawn in proportion to their area, positions uniformly, and each patch is
    flipped and turned into one of its eight orientations. With `shifts`, every batch comes with its
    `Shifted` self, as Eilertsen et al. (CVPR 2019) train for temporal stability. With `knobs`, each
    batch is for a uniformly drawn position of `--restore`, with pairs of about that severity.
    """

    def __init__(
        self,
        pairs: Sequence[Pair] | PairStore,
        *,
        patch_size: int,
        batch_size: int,
        seed: int,
        shifts: bool = False,
        knobs: bool = False,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.pairs = pairs
        self.patch_size = patch_size
        self.batch_size = batch_size
        self.shifts, self.knobs = shifts, knobs
        self.augmentation = augmentation
        self.outlines = outlines_of(pairs)
        self._areas = np.array([np.prod(o.shape) for o in self.outlines], dtype=np.float64)
        self._cumulative_shares = [np.cumsum(o.shares) / sum(o.shares) for o in self.outlines]
        self._severities = np.array([outline.severity for outline in self.outlines])
        self._random = np.random.Generator(np.random.PCG64(seed))

    def draw(self) -> Draw:
        """Draw the patches of the next batch; for what cuts them itself, and reads any pair."""
        knob = float(self._random.random()) if self.knobs else None
        cumulative_area = self._cumulative_area(knob)
        return Draw(knob, [self._place(cumulative_area) for _ in range(self.batch_size)])

    def next_batch(self) -> Batch:
        knob = float(self._random.random()) if self.knobs else None
        cumulative_area = self._cumulative_area(knob)
        patches = self._patches(cumulative_area)
        lr_BCHW = _to_batch([patch.lr for patch in patches])
        groups = zip(*(patch.hr for patch in patches), strict=True)
        shifted = self._shifted(patches) if self.shifts else None
        return Batch(lr_BCHW, tuple(_to_batch(group) for group in groups), shifted, knob)

    def generator_state(self) -> dict[str, Any]:
        """Return the state of the generator that all draws are from."""
        return dict(self._random.bit_generator.state)

    def state(self) -> str:
        return json.dumps(self.generator_state())

    def set_state(self, state: str) -> None:
        self._random.bit_generator.state = json.loads(state)

    def _cumulative_area(self, knob: float | None) -> NDArray[np.float64]:
        """Return the areas of the pairs for this position: within `KNOB_REACH`, or the nearest."""
        areas = self._areas
        if knob is not None:
            distances = np.abs(self._severities - knob)
            areas = np.where(distances <= max(KNOB_REACH, float(distances.min())), areas, 0.0)
        return np.cumsum(areas / areas.sum())

    def _patches(self, cumulative_area: NDArray[np.float64]) -> list[_Patch]:
        """Draw all of a batch first, so that a store may read its pictures at the same time.

        A picture that cannot be read is drawn once more, which a resumed run repeats.
        """
        places = [self._place(cumulative_area) for _ in range(self.batch_size)]
        patches = self._cut(places)
        for _ in range(MAX_REDRAWS):
            missing = [n for n, patch in enumerate(patches) if patch is None]
            if not missing:
                return [patch for patch in patches if patch is not None]
            places = [self._place(cumulative_area) for _ in missing]
            for n, patch in zip(missing, self._cut(places), strict=True):
                patches[n] = patch
        raise UsageError(
            f"hardly any of the {len(self.outlines)} pictures can be read any more; are they "
            "still where they were?"
        )

    def _place(self, cumulative_area: NDArray[np.float64]) -> Place:
        index = _draw(cumulative_area, self._random)
        outline = self.outlines[index]
        variant = _draw(self._cumulative_shares[index], self._random)
        height, width = outline.shape
        size = self.patch_size
        top = int(self._random.integers(height - size + 1))
        left = int(self._random.integers(width - size + 1))
        orientation = int(self._random.integers(8))
        change = self.augmentation.draw(self._random) if self.augmentation else None
        return Place(index, variant, top, left, orientation, change)

    def _cut(self, places: Sequence[Place]) -> list[_Patch | None]:
        indices = [place.number for place in places]
        found: Sequence[Pair | None]
        if isinstance(self.pairs, PairStore):
            found = self.pairs.several(indices)
        else:
            found = [self.pairs[index] for index in indices]
        return [
            None if pair is None else self._patch(pair, place)
            for pair, place in zip(found, places, strict=True)
        ]

    def _patch(self, pair: Pair, place: Place) -> _Patch:
        height, size = pair.shape[0], self.patch_size

        def cut(planes: InputCodes) -> InputCodes:
            scale = planes.shape[1] // height
            rows = slice(place.top * scale, (place.top + size) * scale)
            columns = slice(place.left * scale, (place.left + size) * scale)
            return oriented(planes[:, rows, columns], place.orientation)

        lr = code_values(cut(pair.lr[place.variant][1]))
        hr = tuple(code_values(cut(planes)) for planes in pair.hr)
        if self.augmentation is None or place.change is None:
            return _Patch(lr, hr)
        return _Patch(*self.augmentation.apply(lr, hr, place.change))

    def _shifted(self, patches: Sequence[_Patch]) -> Shifted:
        """Shift the batch by one offset; low resolution is a pixel smaller, its border mirrored."""
        scales = [planes.shape[1] // self.patch_size for planes in patches[0].hr]
        coarsest = max(scales) // min(scales)  # 4:2:0 chroma moves by whole samples only
        steps = self._random.integers(4 // coarsest, size=2)
        rows, columns = (int(step) * coarsest for step in steps)
        size = self.patch_size - 1
        lr = [
            np.concatenate(
                [
                    _shrunk(
                        planes[:, rows * scale // max(scales) :, columns * scale // max(scales) :],
                        size,
                        scale,
                    )
                    for planes, scale in zip(patch.hr, scales, strict=True)
                ]
            )
            for patch in patches
        ]
        return Shifted(_to_batch(lr), (rows, columns))


def outlines_of(pairs: Sequence[Pair] | PairStore) -> Sequence[Outline]:
    """The outline of each pair, without reading any from a store."""
    if isinstance(pairs, PairStore):
        return pairs.outlines
    return [pair.outline for pair in pairs]


class Place(NamedTuple):
    """Which patch was drawn."""

    number: int
    """Of the pair."""
    variant: int
    top: int
    left: int
    orientation: int
    change: Change | None


class Draw(NamedTuple):
    """What was drawn for a batch."""

    knob: float | None
    places: list[Place]


class _Patch(NamedTuple):
    lr: Values
    hr: tuple[Values, ...]


def _shrunk(planes: Values, size: int, scale: int) -> Codes:
    """Downscale the first `size` x `size` low-resolution pixels of high-resolution planes."""
    side = size * scale
    shrink = resize_matrix(side, size)
    return to_uint8(shrink @ planes[:, :side, :side].astype(np.float64) @ shrink.T)


def _draw(cumulative: NDArray[np.float64], random: np.random.Generator) -> int:
    drawn = np.searchsorted(cumulative, random.random(), side="right")
    return min(int(drawn), len(cumulative) - 1)


def oriented(patch_CHW: InputCodes, orientation: int) -> InputCodes:
    """Turn a patch by quarters of a circle, and mirror it from the fourth orientation on."""
    turned = np.rot90(patch_CHW, orientation % 4, axes=(1, 2))
    return turned[:, :, ::-1] if orientation >= 4 else turned


def _to_batch(patches: Sequence[Values] | Sequence[Codes]) -> Tensor:
    return torch.from_numpy(np.stack(patches)).float().div_(255.0)
