"""How an engine's results compare: with the reference, in tiles, and with themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from srstream.engines.contract import Engine, TileFormat
from srstream.engines.tiles import choose_tiles
from srstream.frame import Plane
from srstream.models.table import ModelSpec
from srstream.quality import psnr


@dataclass(frozen=True)
class Agreement:
    """How far two results are apart."""

    psnr_db: float
    """The lowest of a plane's, in codes of 8 bits."""
    worst: int
    """In codes of the depth."""
    share_beyond_one: float
    """The share of samples that differ by more than one code."""

    @property
    def is_close(self) -> bool:
        """Whether half precision may explain it."""
        return self.psnr_db >= 50.0 and self.share_beyond_one <= 0.001


def noise(shape: tuple[int, int], planes: int, bits: int = 8, seed: int = 0) -> list[Plane]:
    """Return planes of independent codes in the limited range: far from any picture."""
    random, dtype = np.random.default_rng(seed), np.uint8 if bits == 8 else np.uint16
    low, high = 16 << (bits - 8), 236 << (bits - 8)
    return [random.integers(low, high, shape, dtype=dtype) for _ in range(planes)]


def picture(shape: tuple[int, int], planes: int, bits: int = 8, seed: int = 0) -> list[Plane]:
    """Return planes of soft shapes with all codes from the lowest to the highest."""
    dtype = np.uint8 if bits == 8 else np.uint16
    made = []
    for plane in range(planes):
        noise = cv2.GaussianBlur(np.random.default_rng(seed + plane).random(shape), (0, 0), 2)
        share = (noise - noise.min()) / (noise.max() - noise.min())
        made.append(np.round(share * ((1 << bits) - 1)).astype(dtype))
    return made


def tile_format(spec: ModelSpec, shape: tuple[int, int], bits: int = 8) -> TileFormat:
    return TileFormat(shape, bits, 1 if spec.color_form == "rgb" else None)


def through(engine: Engine, tile: TileFormat, planes: Sequence[Plane]) -> tuple[Plane, ...]:
    session = engine.open_session(tile)
    result = session.result(session.submit(planes))
    session.close()
    return result


def agreement(made: Sequence[Plane], true: Sequence[Plane], bits: int) -> Agreement:
    share = 255 / ((1 << bits) - 1)
    apart = [np.abs(one.astype(int) - other).ravel() for one, other in zip(made, true, strict=True)]
    everything = np.concatenate(apart)
    return Agreement(
        min(psnr(one * share, other * share, 0) for one, other in zip(made, true, strict=True)),
        int(everything.max()),
        float((everything > 1).mean()),
    )


def tiles_against_whole(
    engine: Engine, spec: ModelSpec, shape: tuple[int, int]
) -> tuple[float, int]:
    """Return the share of samples that are the same in tiles, and how many are off by over one.

    The tiles are as small as the halo allows, so that most of their samples lie near an edge.
    """
    planes = noise(shape, spec.form.num_input_planes)
    grid = choose_tiles(shape[1], shape[0], spec.halo, 1, max_side=4 * spec.halo + 17)
    assert not grid.is_whole_picture
    (true, *_) = through(engine, tile_format(spec, shape), planes)
    session = engine.open_session(tile_format(spec, grid.tile_shape))
    same, wrong = [], 0
    for tile in grid.tiles():
        window = tile.window(grid.tile_shape).slices
        (made, *_) = session.result(session.submit([plane[window] for plane in planes]))
        kept = made[tile.kept_in_result(spec.scale)]
        apart = np.abs(kept.astype(int) - true[tile.kept_in_picture(spec.scale)])
        same.append(float((apart == 0).mean()))
        wrong += int((apart > 1).sum())
    session.close()
    return float(np.mean(same)), wrong


def num_different_repeats(
    engine: Engine, spec: ModelSpec, shape: tuple[int, int], repeats: int
) -> int:
    """Return how many of so many repeats of a tile differ from the first in any bit."""
    session = engine.open_session(tile_format(spec, shape))
    planes = noise(shape, spec.form.num_input_planes)
    first = session.result(session.submit(planes))
    different = 0
    for _ in range(repeats):
        again = session.result(session.submit(planes))
        different += not all(map(np.array_equal, again, first))
    session.close()
    return different
