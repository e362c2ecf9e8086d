"""Patches cut on the device that trains: all planes lie there, and a batch is gathered by index.

The draws and the batches are those of `PatchSampler`. What crosses to the device is what was drawn,
for `BLOCK` iterations at once, while it computes.

Shapes: B patches of a batch, C planes, S the side of a patch, N iterations of a block.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from srstream.errors import UsageError
from srstream.models.table import ColorFormName
from trainer.data.augment import BLACK, GREY
from trainer.data.pairs import Batch, Draw, Pair, PairStore, PatchSampler, Place, oriented
from trainer.data.planes import FRACTIONS

BLOCK = 256
"""Iterations that are drawn at once."""

LUMA, CHROMA = 0, 1
"""Kinds of planes, which tones and roundings treat differently; R, G and B are of the first."""

GAIN, OFFSET, STEP = 0, 1, 2

SMALLEST_STEP = 0.1
"""Less than any step between codes, and more than none."""


class Cut(NamedTuple):
    """What was drawn for a batch, on the device."""

    views: Tensor
    """(B, 1 + groups, 3) int64: start, row stride and plane stride of low resolution and groups."""
    orientations: Tensor
    """(B,) int64."""
    changes: Tensor
    """(B, kinds, 3) float32: gain and offset, and the step to round to, 0 for none."""
    knob: Tensor
    """Scalar, float32; unused where no knob is sampled."""


class _Block(NamedTuple):
    cuts: Cut
    """Each with N in front."""
    states: list[dict[str, Any]]
    """Of the generator before each draw, and behind the last."""


class DevicePatches:
    """The batches of a `PatchSampler`, cut on a device from planes that lie there.

    `next` is the host's part of a batch, `batch` the device's, without a wait for either.
    """

    def __init__(
        self, sampler: PatchSampler, color: ColorFormName, device: torch.device, block: int = BLOCK
    ) -> None:
        """Move the planes of the sampler's pairs to the device.

        Raises:
            UsageError: not all of them are in memory, or the sampler shifts crops.
        """
        if isinstance(sampler.pairs, PairStore):
            raise UsageError(
                "the pictures are more than memory_mib in [run] allows, so patches cannot be cut "
                'on the device; make it larger, or set crops = "host"'
            )
        if sampler.shifts:
            raise UsageError('steadiness_weight shifts crops, which needs crops = "host" in [run]')
        self._sampler, self._device, self._block_size = sampler, device, block
        pairs = sampler.pairs
        self._low_starts, self._high_starts = _starts(pairs)
        self._low = _moved([planes for pair in pairs for _, planes in pair.lr], device)
        self._high = _moved([planes for pair in pairs for planes in pair.hr], device)
        self._num_low = pairs[0].lr[0][1].shape[0]
        self._scales = [planes.shape[1] // pairs[0].shape[0] for planes in pairs[0].hr]
        self._num_high = [planes.shape[0] for planes in pairs[0].hr]
        self._is_changed = sampler.augmentation is not None
        kinds = [LUMA] + [LUMA if color == "rgb" else CHROMA] * (self._num_low - 1)
        self._low_kinds = torch.tensor(kinds, device=device)
        origins = [0.0 if color == "rgb" else (BLACK, GREY)[kind] for kind in kinds]
        self._origins = torch.tensor(origins, device=device).view(1, -1, 1, 1)
        sides = {sampler.patch_size * scale for scale in (1, *self._scales)}
        self._orders = {side: _orders(side, device) for side in sides}
        self._thread = ThreadPoolExecutor(1, "draws")
        self._block, self._used = self._drawn_block(), 0
        self._ahead = self._thread.submit(self._drawn_block)

    def next(self) -> Cut:
        """Return what is drawn next."""
        if self._used == self._block_size:
            self._block, self._used = self._ahead.result(), 0
            self._ahead = self._thread.submit(self._drawn_block)
        self._used += 1
        return Cut(*(part[self._used - 1] for part in self._block.cuts))

    def batch(self, cut: Cut) -> Batch:
        """Gather a batch, on the device."""
        size = self._sampler.patch_size
        lr = self._gathered(self._low, cut, 0, self._num_low, size)
        hr = [
            self._gathered(self._high, cut, 1 + group, num_planes, size * scale)
            for group, (num_planes, scale) in enumerate(
                zip(self._num_high, self._scales, strict=True)
            )
        ]
        if self._is_changed:
            lr = self._rounded(_toned(lr, cut.changes[:, self._low_kinds]), cut)
            hr = [
                _toned(planes, cut.changes[:, kind : kind + 1])
                for planes, kind in zip(hr, (LUMA, CHROMA), strict=False)
            ]
        knob = cut.knob if self._sampler.knobs else None
        return Batch(lr.div_(255.0), tuple(planes.div_(255.0) for planes in hr), None, knob)

    def state(self) -> str:
        """Return the generator's state before the next draw, as `PatchSampler.state` does."""
        return json.dumps(self._block.states[self._used])

    def set_state(self, state: str) -> None:
        self.settle()
        self._sampler.set_state(state)
        self._block, self._used = self._drawn_block(), 0
        self._ahead = self._thread.submit(self._drawn_block)

    def settle(self) -> None:
        """Wait until nothing is being drawn, and nothing moved to the device."""
        self._ahead.result()

    def _drawn_block(self) -> _Block:
        states, draws = [], []
        for _ in range(self._block_size):
            states.append(self._sampler.generator_state())
            draws.append(self._sampler.draw())
        states.append(self._sampler.generator_state())
        return _Block(Cut(*map(self._sent, self._cuts_of(draws))), states)

    def _sent(self, array: NDArray[Any]) -> Tensor:
        """Move to the device; from pinned memory, so that the host need not wait for it."""
        tensor = torch.from_numpy(array)
        if self._device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True)

    def _cuts_of(self, draws: Sequence[Draw]) -> tuple[NDArray[Any], ...]:
        """Return the fields of `Cut`, with the iterations in front."""
        places = [[self._views_of(place) for place in draw.places] for draw in draws]
        orientations = [[place.orientation for place in draw.places] for draw in draws]
        changes = [[_change_of(place) for place in draw.places] for draw in draws]
        knobs = [0.0 if draw.knob is None else draw.knob for draw in draws]
        return (
            np.array(places, np.int64),
            np.array(orientations, np.int64),
            np.array(changes, np.float32),
            np.array(knobs, np.float32),
        )

    def _views_of(self, place: Place) -> list[tuple[int, int, int]]:
        height, width = self._sampler.outlines[place.number].shape
        starts = (
            self._low_starts[place.number][place.variant],
            *self._high_starts[place.number],
        )
        views = []
        for start, scale in zip(starts, (1, *self._scales), strict=True):
            row = width * scale
            first = start + place.top * scale * row + place.left * scale
            views.append((first, row, height * scale * row))
        return views

    def _gathered(
        self, planes: Tensor, cut: Cut, number: int, num_planes: int, side: int
    ) -> Tensor:
        """Return (B, C, S, S) code values, float32."""
        rows, columns = self._orders[side]
        start, row, plane = (part[:, None, None] for part in cut.views[:, number].unbind(1))
        within_BSS = start + row * rows[cut.orientations] + columns[cut.orientations]
        each = torch.arange(num_planes, device=planes.device).view(1, -1, 1, 1)
        index_BCSS = within_BSS[:, None] + plane[:, None] * each
        found = planes[index_BCSS]
        if planes.dtype == torch.int16:  # the bits of fine codes
            return (found.int() & 0xFFFF).float().div_(FRACTIONS)
        return found.float()

    def _rounded(self, lr: Tensor, cut: Cut) -> Tensor:
        """Round half up to whole steps, as `augment._to_steps` does, where there is a step."""
        step = cut.changes[:, self._low_kinds, STEP, None, None]
        some = step.clamp(min=SMALLEST_STEP)
        rounded = self._origins + some * torch.floor((lr - self._origins) / some + 0.5)
        return torch.where(step > 0, rounded, lr)


def _starts(pairs: Sequence[Pair]) -> tuple[list[list[int]], list[list[int]]]:
    """Return where the planes of each pair begin, of each variant and of each group."""
    low, high, low_end, high_end = list[list[int]](), list[list[int]](), 0, 0
    for pair in pairs:
        low.append([])
        for _, planes in pair.lr:
            low[-1].append(low_end)
            low_end += planes.size
        high.append([])
        for hr in pair.hr:
            high[-1].append(high_end)
            high_end += hr.size
    return low, high


def _moved(arrays: Sequence[NDArray[Any]], device: torch.device) -> Tensor:
    """Return all samples in one tensor on the device; of 16 bits as int16 with the same bits."""
    together = np.empty(sum(array.size for array in arrays), arrays[0].dtype)
    end = 0
    for array in arrays:
        together[end : end + array.size] = array.ravel()
        end += array.size
    bits = together.view(np.int16) if together.dtype == np.uint16 else together
    return torch.from_numpy(bits).to(device)


def _orders(side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return rows and columns, (8, S, S) each, that each orientation of a patch shows."""
    numbers = np.arange(side * side, dtype=np.uint32).reshape(1, side, side)
    turned = np.stack([oriented(numbers, orientation)[0] for orientation in range(8)])
    order = torch.from_numpy(turned.astype(np.int64)).to(device)
    return order // side, order % side


def _change_of(place: Place) -> tuple[tuple[float, float, float], ...]:
    """Return the gain, the offset and the step for each kind of plane."""
    tone, step = place.change or (None, None)
    luma_step, chroma_step = step or (0.0, 0.0)
    if tone is None:
        return (1.0, 0.0, luma_step), (1.0, 0.0, chroma_step)
    return (*tone.luma, luma_step), (*tone.chroma, chroma_step)


def _toned(planes: Tensor, changes: Tensor) -> Tensor:
    """Map (B, C, S, S) by the gain and offset of each patch and plane, (B, C or 1, 3)."""
    gain, offset = (changes[..., n, None, None] for n in (GAIN, OFFSET))
    return gain * planes + offset
