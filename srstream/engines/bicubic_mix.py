"""An engine that mixes its network's results with bicubic interpolation.

A network sharpens. If a source is soft or too damaged, there is nothing to sharpen, and a smaller
share of the network is closer to the truth. Any engine can be wrapped. Tiles pass through it in
16 bits, so that nothing is rounded to the source's depth before it is mixed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2

from srstream.color import (
    CodeRange,
    code_range,
    convert_codes,
)
from srstream.engines.contract import (
    Capabilities,
    Engine,
    OnDone,
    Session,
    Ticket,
    TileFormat,
    check_tile,
)
from srstream.frame import Plane
from srstream.resampling import Sampling, resample_plane

MIXING_BITS = 16
BYTES_PER_PIXEL = 4 * 16
"""Working memory for one input pixel: the bicubic result in float and as codes, at 4x."""


def softened(engine: Engine, strength: float) -> Engine:
    """Wrap an engine so that its share is `strength`; at 1 the engine itself is returned."""
    if strength >= 1.0:
        return engine
    made: Engine = SoftenedEngine(engine, strength)
    return made


class SoftenedEngine:
    """An `Engine` whose results are a mixture: a share of `strength`, in [0, 1], and bicubic."""

    capabilities: Capabilities

    def __init__(self, engine: Engine, strength: float) -> None:
        can = engine.capabilities
        what = f"{can.weights_sha256} {strength!r}"
        self.engine, self.strength = engine, strength
        self.capabilities = replace(
            can,
            weights_sha256=hashlib.sha256(what.encode()).hexdigest(),
            activation_bytes_per_pixel=can.activation_bytes_per_pixel + BYTES_PER_PIXEL,
        )

    def open_session(self, tile: TileFormat, on_done: OnDone | None = None) -> SoftenedSession:
        """See `Engine.open_session`."""
        inner = self.engine.open_session(replace(tile, bits=MIXING_BITS), on_done)
        return SoftenedSession(inner, tile, self.capabilities, self.strength)

    def close(self) -> None:
        self.engine.close()


@dataclass(frozen=True, slots=True)
class _Ticket:
    inner: Ticket
    planes: tuple[Plane, ...]
    """The planes that were submitted, in 16 bits."""

    def is_done(self) -> bool:
        return self.inner.is_done()


class SoftenedSession:
    """See `Session`."""

    def __init__(
        self, inner: Session, tile: TileFormat, can: Capabilities, strength: float
    ) -> None:
        self.format = tile
        self.num_in_flight = inner.num_in_flight
        self._inner, self._strength = inner, strength
        self._form = can.form

    def submit(self, tile: Sequence[Plane]) -> Ticket:
        """See `Session.submit`."""
        check_tile(tile, self.format, self._form)
        deep = tuple(
            plane.copy() if self.format.bits == MIXING_BITS else convert_codes(plane, *ranges)
            for plane, ranges in zip(tile, map(self._ranges, range(len(tile))), strict=True)
        )
        return _Ticket(self._inner.submit(deep), deep)

    def result(self, ticket: Ticket) -> tuple[Plane, ...]:
        """See `Session.result`."""
        assert isinstance(ticket, _Ticket)
        made = self._inner.result(ticket.inner)
        scales = [group.scale for group in self._form.outputs for _ in range(group.num_planes)]
        planes = zip(made, ticket.planes, scales, strict=True)
        return tuple(
            self._mixed(index, *plane_source_scale)
            for index, plane_source_scale in enumerate(planes)
        )

    def close(self) -> None:
        self._inner.close()

    def _mixed(self, index: int, made_HW: Plane, source_HW: Plane, scale: int) -> Plane:
        rows, columns = source_HW.shape
        bicubic_HW = resample_plane(
            source_HW,
            made_HW.shape,
            Sampling.between(rows, scale * rows),
            Sampling.between(columns, scale * columns),
            (1 << MIXING_BITS) - 1,
        )
        weights = self._strength, 1.0 - self._strength
        mixed: Any = cv2.addWeighted(made_HW, weights[0], bicubic_HW, weights[1], 0.0)
        shallow, deep = self._ranges(index)
        return convert_codes(mixed, deep, shallow)

    def _ranges(self, index: int) -> tuple[CodeRange, CodeRange]:
        """Return the code ranges of a plane, at the session's depth and at the mixing depth."""
        full, is_chroma = self.format.full_range, index > 0
        shallow = code_range(self.format.bits, full, is_chroma=is_chroma)
        return shallow, code_range(MIXING_BITS, full, is_chroma=is_chroma)
