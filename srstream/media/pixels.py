"""Comparing the pixels of an output with its source's.

Shape legend: H, W are rows and columns of a plane.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from srstream.frame import Frame, Plane, PlaneLayout
from srstream.media.receipt import ColorReceipt

NUM_FIELDS = 8
"""Local changes are looked for in so many fields along each side."""

MAX_SHIFT = 2.5
MAX_LOCAL_SHIFT = 16.0
MAX_MEAN_ERROR = 14.0
"""Levels of 8 bits, for a picture without detail. A network changes detail, by several levels on
average where there is much of it (dots, scan lines, stars), but hardly the mean of a picture or
that of an eighth of it."""

DETAIL_SHARE = 0.5
"""Of the source's detail (mean distance from its own blur), added to each of the bounds: where
every pixel differs from its neighbours, no network gives all of it back."""

_BLACK_BELOW = 3.0


@dataclass(slots=True)
class ColorTally:
    """Collects what single comparisons find. Nothing in it grows."""

    num_frames: int = 0
    sum_errors: float = 0.0
    largest_error: float = 0.0
    largest_shift: float = 0.0
    largest_local_shift: float = 0.0
    excess_error: float = 0.0
    excess_shift: float = 0.0
    excess_local_shift: float = 0.0
    num_black: int = 0
    worst_seconds: float = 0.0

    def add(self, source: Frame, layout: PlaneLayout, planes: tuple[Plane, ...]) -> None:
        """Compare one output picture with the source frame it was made from."""
        errors = []
        for index, source_plane in enumerate(source.planes):
            partner = _partner(index, source.layout, layout)
            if partner is None:
                continue
            small_HW = _eight_bit(source_plane, source.layout.bits)
            large_HW = _eight_bit(planes[partner], layout.bits)
            rows, columns = small_HW.shape
            back_HW = cv2.resize(large_HW, (columns, rows), interpolation=cv2.INTER_AREA)
            difference_HW = back_HW - small_HW
            detail_HW = DETAIL_SHARE * np.abs(small_HW - cv2.blur(small_HW, (3, 3)))
            allowed = float(detail_HW.mean())
            errors.append(float(np.abs(difference_HW).mean()))
            self.excess_error = max(self.excess_error, errors[-1] - 2 * allowed)
            self._note_shift(float(abs(difference_HW.mean())), allowed, source.pts_seconds)
            size = (min(NUM_FIELDS, columns), min(NUM_FIELDS, rows))
            fields_HW = np.abs(cv2.resize(difference_HW, size, interpolation=cv2.INTER_AREA))
            bounds_HW = cv2.resize(detail_HW, size, interpolation=cv2.INTER_AREA)
            self.largest_local_shift = max(self.largest_local_shift, float(fields_HW.max()))
            self.excess_local_shift = max(
                self.excess_local_shift, float((fields_HW - bounds_HW).max())
            )
        self.num_frames += 1
        self.sum_errors += sum(errors) / max(len(errors), 1)
        self.largest_error = max([self.largest_error, *errors])
        if _light(planes, layout, source.color.full_range) < _BLACK_BELOW and (
            _light(source.planes, source.layout, source.color.full_range)
            > _BLACK_BELOW + _sparkle(source.planes[0], source.layout.bits)
        ):
            self.num_black += 1

    def receipt(self) -> ColorReceipt:
        """What was found."""
        return ColorReceipt(
            num_frames_compared=self.num_frames,
            mean_error=round(self.sum_errors / max(self.num_frames, 1), 4),
            largest_mean_error=round(self.largest_error, 4),
            largest_shift=round(self.largest_shift, 4),
            largest_local_shift=round(self.largest_local_shift, 4),
            num_black_frames=self.num_black,
            num_nan_frames=0,  # No integer format can hold one, and srstream writes no other.
        )

    def problems(self) -> list[str]:
        """Sentences for what no network does to a picture."""
        found = []
        if self.num_black:
            found.append(f"{self.num_black} frames are black that are not black in the source")
        if self.excess_shift > MAX_SHIFT:
            found.append(
                f"the mean of a colour plane changes by {self.largest_shift:.1f} of 255 levels at "
                f"{self.worst_seconds:.3f} s"
            )
        elif self.excess_local_shift > MAX_LOCAL_SHIFT:
            found.append(
                f"a part of a picture changes by {self.largest_local_shift:.1f} of 255 levels"
            )
        elif self.excess_error > MAX_MEAN_ERROR:
            found.append(f"a picture differs by {self.largest_error:.1f} of 255 levels on average")
        return found

    def _note_shift(self, shift: float, allowed: float, seconds: float) -> None:
        self.excess_shift = max(self.excess_shift, shift - allowed)
        if shift > self.largest_shift:
            self.largest_shift, self.worst_seconds = shift, seconds


def _partner(index: int, source: PlaneLayout, output: PlaneLayout) -> int | None:
    """The output's plane that was made from the source's plane `index`."""
    num_colors = 1 if source.kind == "gray" else 3
    if index >= num_colors:
        return output.num_planes - 1 if output.has_alpha else None
    if source.kind == "rgb" and output.kind != "rgb":
        return None
    if source.kind == "yuv" and output.kind == "gray" and index:
        return None
    return index if source.kind != "gray" or output.kind != "rgb" else 0


def _eight_bit(plane: Plane, bits: int) -> npt.NDArray[np.float32]:
    plane_HW: npt.NDArray[Any] = plane
    return plane_HW.astype(np.float32) * np.float32(1 / (1 << (bits - 8)))


def _sparkle(plane: Plane, bits: int) -> float:
    """Mean distance of a plane from its own blur: a starry sky is all sparkle."""
    plane_HW = _eight_bit(plane, bits)
    return float(np.abs(plane_HW - cv2.blur(plane_HW, (3, 3))).mean())


def _light(planes: tuple[Plane, ...], layout: PlaneLayout, full_range: bool | None) -> float:
    """How far the luma, or the brightest of RGB, lies above black on average."""
    black = 0.0 if layout.kind == "rgb" or full_range else 16.0
    scale = 1 << (layout.bits - 8)
    colors = planes[:3] if layout.kind == "rgb" else planes[:1]
    return max(float(np.mean(plane)) / scale for plane in colors) - black
