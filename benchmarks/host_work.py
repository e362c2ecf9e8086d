"""The enhance stage without its network: what the host computes around it for each frame.

    python benchmarks/host_work.py [--width 960 --height 540] [--frames 12] [--model fast ...]

`tiles` is for engines on the CPU: a stand-in returns enlarged planes at once. Their local mean is
wrong as a network's is: `balanced` on `samples/nasa_13013.mp4` is off by 0.03 codes, and by half a
code or more in 1 % of luma. `whole` is for engines that make whole frames on a GPU: the ring of
slots runs on a device that copies and computes nothing, which on a GPU costs the host nothing.
Figures are medians over the frames of the processor's time on one core, in milliseconds; `parts`
are the functions that take longest for tiles. `whole` needs PyTorch.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np

from srstream.engines.contract import Capabilities, OnDone, Ticket, TileFormat
from srstream.engines.tiles import TileGrid
from srstream.engines.whole_frames import FrameRecipe, FrameSession
from srstream.enhancer.enhancer import Enhancer
from srstream.frame import ColorSpec, Frame, FrameForm, Plane, PlaneLayout
from srstream.models.table import MODELS, ModelSpec

SCALE = 4
LAYOUT, COLOR = PlaneLayout("yuv", 8, 1, 1), ColorSpec(1, 1, 1, False, 1)
MEAN_LUMA = 125
"""The mean that a free device reports, near that of `frame_of`."""
CELL, SHARE_WRONG, WRONG = 24, 0.02, 1.5
"""Side of a cell in source samples; the share of cells whose mean is off, and by how many codes."""


class Done:
    def is_done(self) -> bool:
        return True


class FreeSession:
    """Returns planes that were made when the first tile came."""

    num_in_flight = 3

    def __init__(self, tile: TileFormat, spec: ModelSpec) -> None:
        self.format, self._spec = tile, spec
        self._made: tuple[Plane, ...] = ()

    def submit(self, tile: Sequence[Plane]) -> Ticket:
        if not self._made:
            scales = [g.scale for g in self._spec.form.outputs for _ in range(g.num_planes)]
            self._made = tuple(
                _enlarged(plane, scale) for plane, scale in zip(tile, scales, strict=True)
            )
        return Done()

    def result(self, ticket: Ticket) -> tuple[Plane, ...]:
        return self._made

    def close(self) -> None:
        pass


def _enlarged(plane: Plane, scale: int) -> Plane:
    rows, columns = plane.shape
    random = np.random.default_rng(1)
    cells = rows // CELL + 1, columns // CELL + 1
    error = WRONG * (random.random(cells) < SHARE_WRONG)
    size = columns * scale, rows * scale
    wide = cv2.resize(plane, size, interpolation=cv2.INTER_CUBIC).astype(np.float64)
    wide += cv2.resize(error, size, interpolation=cv2.INTER_LINEAR)
    return np.asarray(wide.round().clip(0, 255), np.uint8)


class FreeEngine:
    """An engine for tiles whose network takes no time."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self.capabilities = Capabilities(
            name="free", device="none", weights=Path("none"), weights_sha256="",
            color_form=spec.color_form, scale=SCALE, halo=spec.halo, activation_bytes_per_pixel=64,
            num_streams=1, num_threads=1, border=0,
        )  # fmt: skip

    def open_session(self, tile: TileFormat, on_done: OnDone | None = None) -> FreeSession:
        return FreeSession(tile, self._spec)

    def close(self) -> None:
        pass


class FreeFrameEngine(FreeEngine):
    """An engine for whole frames whose device takes no time."""

    max_frame_pixels = 1 << 30

    def open_frames(
        self, recipe: FrameRecipe, grid: TileGrid, on_done: OnDone | None = None
    ) -> FrameSession:
        from srstream.engines.cuda.frames import RingFrames
        from srstream.engines.cuda.host import HostDevice

        class FreeDevice(HostDevice):
            def copy(self, target: Any, source: Any, stream: None) -> None:
                pass

            def pinned(self, shape: Sequence[int], dtype: np.dtype[Any]) -> Any:
                return super().pinned(shape, dtype).fill_(MEAN_LUMA)

        work = dict.fromkeys(("begin", "enlarge", "end"), print)  # nothing calls them
        program: Any = SimpleNamespace(recipe=recipe, tiles=grid.tiles(), **work)

        def record(work: Any, stream: Any) -> Any:
            return lambda: None

        return RingFrames(program, FreeDevice(), record, record, on_done)


def frame_of(width: int, height: int, number: int) -> Frame:
    """Return a frame of soft shapes and fine texture."""
    random = np.random.default_rng(7)
    planes = []
    for index in range(3):
        rows, columns = LAYOUT.plane_shape(index, width, height)
        coarse = random.integers(30, 220, (rows // 24 + 2, columns // 24 + 2)).astype(np.uint8)
        soft = cv2.resize(coarse, (columns, rows), interpolation=cv2.INTER_CUBIC)
        texture = random.integers(0, 12, (rows, columns)).astype(np.uint8)
        planes.append(cv2.add(soft, texture))
    return Frame(tuple(planes), LAYOUT, width, height, number, Fraction(1, 25), color=COLOR)


def measure(engine: FreeEngine, width: int, height: int, num_frames: int) -> tuple[float, str]:
    """Return the median milliseconds of a frame, and the functions that take longest."""
    form = FrameForm(width, height, LAYOUT, COLOR)
    enhancer = Enhancer(engine, form, replace(form, width=SCALE * width, height=SCALE * height))
    first = frame_of(width, height, 0)
    profile = cProfile.Profile()
    seconds = []
    for number in range(num_frames + 2):
        frame = replace(first, pts=number)
        start = time.process_time()
        made = [*enhancer.push(frame), *enhancer.drain()]
        seconds.append(time.process_time() - start)
        assert len(made) == 1
    profile.enable()
    for number in range(3):
        enhancer.push(replace(first, pts=number))
        enhancer.drain()
    profile.disable()
    enhancer.close()
    rows = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    longest = sorted(rows.items(), key=lambda item: -item[1][2])[:4]
    parts = ", ".join(f"{name} {1000 * row[2] / 3:.1f}" for (_, _, name), row in longest)
    return 1000 * statistics.median(seconds[2:]), parts


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--width", type=int, default=960)
    parser.add_argument("--height", type=int, default=540)
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--model", nargs="+", default=list(MODELS), choices=list(MODELS))
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    cv2.setNumThreads(1)
    print(f"{'model':10}{'whole':>8}{'tiles':>8}  parts of tiles")
    for name in arguments.model:
        size = arguments.width, arguments.height
        whole, _ = measure(FreeFrameEngine(MODELS[name]), *size, arguments.frames)
        tiles, parts = measure(FreeEngine(MODELS[name]), *size, arguments.frames)
        print(f"{name:10}{whole:8.1f}{tiles:8.1f}  {parts}")


if __name__ == "__main__":
    main()
