"""Judges whether an output's picture looks like the source's: color and position.

Shape legend: H, W are rows and columns of a plane. Levels are 8-bit levels in the source's own
range: 219 from black to white if it is limited.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction

import cv2
import numpy as np
import numpy.typing as npt

from srstream.media.receipt import ColorReceipt
from srstream.media.witness.motion import Motion
from srstream.media.witness.pictures import (
    LUMA_WEIGHTS,
    FloatPlane,
    Label,
    Picture,
    differences_to_rgb,
    field_of,
    resized,
    rgb_to_differences,
)

NUM_FIELDS = 8
"""Grid cells per side in which local changes are looked for."""

MAX_SHIFT = 2.5
MAX_LOCAL_SHIFT = 16.0
MAX_MEAN_ERROR = 14.0
"""Levels, for a picture without detail. A network changes detail (dots, scan lines, stars) by
several levels on average, but hardly the mean of a picture or of an eighth of it."""

DETAIL_SHARE = 0.5
"""The share of the source's detail (mean distance from its own blur) that is added to each bound:
no network fully reproduces a picture in which every pixel differs from its neighbors."""

THUMB = 32
"""Rows and columns of the thumbnails in which alternative explanations are tried."""

SURE_ERROR = 0.8
SURE_SHARE = 0.4
"""An output shows something else if its mean difference from the source's picture exceeds
`SURE_ERROR` levels, and that from the alternative is less than `SURE_SHARE` of it."""

MAX_MOVE = 0.1
MAX_CHROMA_MOVE = 0.12
"""Samples of the source's planes by which a picture, or its color, may appear shifted. Enlarging
left-sited color as if it were centered shifts it by 0.19 to 0.25."""

DEINTERLACED_MOVE = 0.5
"""Additional rows for a deinterlaced picture: a deinterlacer guesses the rows between those of a
field, and a still picture may appear shifted by a fraction of a row."""

Thumb = npt.NDArray[np.float32]
"""A thumbnail, (3, THUMB, THUMB): luma and color differences in levels."""

_BLACK_BELOW = 3.0


@dataclass(frozen=True, slots=True)
class Crop:
    """Columns and rows that a container hides, counted in luma samples."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0

    def __bool__(self) -> bool:
        return bool(self.left or self.top or self.right or self.bottom)


@dataclass(frozen=True, slots=True)
class Sight:
    """A picture with its label, cut to what its container shows."""

    picture: Picture
    label: Label

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        rows, columns = self.picture.luma.shape
        return columns, rows

    @property
    def levels(self) -> tuple[float, float]:
        """Return the number of levels of luma and of color differences."""
        return (255.0, 255.0) if self.label.is_full else (219.0, 224.0)


def sight_of(picture: Picture, label: Label, crop: Crop) -> Sight:
    """Return the part of a picture that its container shows."""
    if not crop:
        return Sight(picture, label)

    def cut(plane: FloatPlane, step_x: int, step_y: int) -> FloatPlane:
        rows, columns = plane.shape
        top, left = crop.top // step_y, crop.left // step_x
        return plane[top : rows - crop.bottom // step_y, left : columns - crop.right // step_x]

    chroma = picture.chroma
    if chroma is not None:
        chroma = (cut(chroma[0], *picture.step), cut(chroma[1], *picture.step))
    alpha = None if picture.alpha is None else cut(picture.alpha, 1, 1)
    return Sight(
        Picture(cut(picture.luma, 1, 1), chroma, alpha, picture.step, picture.siting), label
    )


def nearest_field(source: Sight, output: Sight) -> tuple[Sight, bool]:
    """Return the field of an interlaced source that an output shows, and whether it shows both.

    A deinterlacer keeps the rows of one field.
    """
    both = [replace(source, picture=field_of(source.picture, first)) for first in (0, 1)]
    seen_HW = resized(output.picture.luma, source.picture.luma.shape)
    errors = [255 * float(np.abs(sight.picture.luma - seen_HW).mean()) for sight in (*both, source)]
    nearest = min(range(2), key=lambda n: errors[n])
    return both[nearest], is_surely_other(errors[nearest], errors[2])


@dataclass(frozen=True, slots=True)
class Frame:
    """The shape into which all frames of a source are fitted: the first one's size and aspect."""

    width: int
    height: int
    aspect: Fraction

    def place(self, width: int, height: int, aspect: Fraction) -> tuple[int, int, int, int]:
        """Return (left, top, width, height) of a picture that is fitted without distortion."""
        wide = float(width * aspect / self.aspect)
        factor = min(self.width / wide, self.height / height)
        fitted = min(round(wide * factor), self.width), min(round(height * factor), self.height)
        return (self.width - fitted[0]) // 2, (self.height - fitted[1]) // 2, *fitted


@dataclass(slots=True)
class Likeness:
    """Collects the results of comparisons, in little memory. `leeway` multiplies all limits."""

    leeway: float = 1.0
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
    shows_instead: dict[str, float] = field(default_factory=dict)
    """Other content that was seen, with the time at which it first appeared."""
    luma_motion: Motion = field(default_factory=Motion)
    is_deinterlaced: bool = False
    chroma_motion: Motion = field(default_factory=Motion)

    def add(self, source: Sight, output: Sight, frame: Frame, seconds: float) -> None:
        """Compare one output picture with the source frame it was made from."""
        size, aspect = source.size, source.label.aspect
        place = frame.place(*size, aspect)
        is_whole = place == (0, 0, frame.width, frame.height) and size == (
            frame.width,
            frame.height,
        )
        self.is_deinterlaced |= source.label.is_interlaced
        own = source
        source = in_matrix_of(source, output.label)
        is_converted = source is not own
        if not is_whole:
            unfitted = thumb_of(source.picture)
            source = replace(source, picture=_fitted(source.picture, frame, place))
            self._look_for_stretched(source, output, unfitted, seconds)
        errors = []
        for name, small_HW, large_HW in _pairs(source, output):
            levels = source.levels[name == "chroma"] if name != "alpha" else 255.0
            back_HW = resized(large_HW, small_HW.shape) * levels
            small_HW = small_HW * levels
            mask_HW = None if is_whole else _inside(small_HW.shape, frame, place)
            errors.append(self._compare(small_HW, back_HW, mask_HW, seconds))
            if is_whole and name == "luma":
                self.luma_motion.add(small_HW, back_HW)
            elif name != "chroma" or not is_whole or is_converted:
                continue
            elif source.label.siting and output.label.siting:
                expected = _expected_move(source.picture, output.picture)
                self.chroma_motion.add(small_HW, back_HW, expected)
        self.num_frames += 1
        self.sum_errors += sum(errors) / max(len(errors), 1)
        self.largest_error = max([self.largest_error, *errors])
        self._look_for_black(source, output)
        if is_whole:
            self._look_for_another(source, output, seconds)

    def see_instead(self, what: str, seconds: float) -> None:
        """Note what an output shows instead of the source's picture."""
        self.shows_instead.setdefault(what, seconds)

    def receipt(self) -> ColorReceipt:
        """Return the results as a receipt."""
        return ColorReceipt(
            num_frames_compared=self.num_frames,
            mean_error=round(self.sum_errors / max(self.num_frames, 1), 4),
            largest_mean_error=round(self.largest_error, 4),
            largest_shift=round(self.largest_shift, 4),
            largest_local_shift=round(self.largest_local_shift, 4),
            num_black_frames=self.num_black,
            num_nan_frames=0,  # No integer format can hold NaN, and srstream writes no other.
        )

    def problems(self) -> list[str]:
        """Return sentences about changes that no network causes."""
        found = []
        if self.num_black:
            found.append(f"{self.num_black} frames are black that are not black in the source")
        for what, seconds in self.shows_instead.items():
            found.append(f"the picture at {seconds:.3f} s {what}")
        if self.excess_shift > self.leeway * MAX_SHIFT:
            found.append(
                f"the mean of a color plane changes by {self.largest_shift:.1f} of 255 levels at "
                f"{self.worst_seconds:.3f} s"
            )
        elif self.excess_local_shift > self.leeway * MAX_LOCAL_SHIFT:
            found.append(
                f"a part of a picture changes by {self.largest_local_shift:.1f} of 255 levels"
            )
        elif self.excess_error > self.leeway * MAX_MEAN_ERROR:
            found.append(f"a picture differs by {self.largest_error:.1f} of 255 levels on average")
        return [*found, *self._moves()]

    def _compare(
        self,
        small_HW: FloatPlane,
        back_HW: FloatPlane,
        mask_HW: FloatPlane | None,
        seconds: float,
    ) -> float:
        difference_HW = back_HW - small_HW
        detail_HW = DETAIL_SHARE * np.abs(small_HW - cv2.blur(small_HW, (3, 3)))
        if mask_HW is not None:
            difference_HW = difference_HW * mask_HW
        allowed = float(detail_HW.mean())
        error = float(np.abs(difference_HW).mean())
        self.excess_error = max(self.excess_error, error - 2 * allowed)
        shift = float(abs(difference_HW.mean()))
        self.excess_shift = max(self.excess_shift, shift - allowed)
        if shift > self.largest_shift:
            self.largest_shift, self.worst_seconds = shift, seconds
        rows, columns = small_HW.shape
        size = (min(NUM_FIELDS, columns), min(NUM_FIELDS, rows))
        fields_HW = np.abs(cv2.resize(difference_HW, size, interpolation=cv2.INTER_AREA))
        bounds_HW = cv2.resize(detail_HW, size, interpolation=cv2.INTER_AREA)
        self.largest_local_shift = max(self.largest_local_shift, float(fields_HW.max()))
        self.excess_local_shift = max(self.excess_local_shift, float((fields_HW - bounds_HW).max()))
        return error

    def _look_for_black(self, source: Sight, output: Sight) -> None:
        luma = source.picture.luma
        sparkle = float(np.abs(luma - cv2.blur(luma, (3, 3))).mean())
        light, now = (_light(sight) for sight in (source, output))
        self.num_black += now < _BLACK_BELOW and light > _BLACK_BELOW + 255 * sparkle

    def _look_for_another(self, source: Sight, output: Sight, seconds: float) -> None:
        thumb, seen = thumb_of(source.picture), thumb_of(output.picture)
        best = min(
            ((_distance(other, seen), what) for what, other in _others(thumb, source.label)),
            key=lambda found: found[0],
        )
        if is_surely_other(_distance(thumb, seen), best[0]):
            self.see_instead(best[1], seconds)

    def _look_for_stretched(
        self, source: Sight, output: Sight, unfitted: Thumb, seconds: float
    ) -> None:
        """Note if a picture of a different shape was stretched to fill the output."""
        seen = thumb_of(output.picture)
        if is_surely_other(_distance(thumb_of(source.picture), seen), _distance(unfitted, seen)):
            self.see_instead(
                "has another pixel aspect or size than the first, and is shown in its shape",
                seconds,
            )

    def _is_beyond(self, move: tuple[float, float] | None, limit: float) -> bool:
        """Return whether a move (columns, rows) exceeds `limit` and deinterlacing tolerance."""
        if move is None:
            return False
        rows = limit + (DEINTERLACED_MOVE if self.is_deinterlaced else 0.0)
        return abs(move[0]) > limit or abs(move[1]) > rows

    def _moves(self) -> list[str]:
        found = []
        move = self.luma_motion.found()
        if self._is_beyond(move, MAX_MOVE + self.luma_motion.doubt()):
            assert move is not None
            found.append(
                f"the picture is moved by {move[0]:+.2f} columns and {move[1]:+.2f} rows of the "
                "source"
            )
            return found
        move = self.chroma_motion.found()
        if self._is_beyond(move, MAX_CHROMA_MOVE + self.chroma_motion.doubt()):
            assert move is not None
            found.append(
                f"color is moved by {move[0]:+.2f} columns and {move[1]:+.2f} rows of the "
                "source's color planes, against where their siting says"
            )
        return found


def is_surely_other(error: float, other: float) -> bool:
    """Return whether something else explains an output that differs this much from its source."""
    return error > SURE_ERROR and other < SURE_SHARE * error


def thumb_of(picture: Picture) -> Thumb:
    """Return a picture's thumbnail, (3, THUMB, THUMB), in levels; color is 0 if it is gray."""
    chroma = picture.chroma or (np.zeros((1, 1), np.float32),) * 2
    planes = [picture.luma, *chroma]
    return np.stack(
        [255 * cv2.resize(p, (THUMB, THUMB), interpolation=cv2.INTER_AREA) for p in planes]
    )


def luma_distance(first: Thumb, second: Thumb) -> float:
    """Return the mean difference of two thumbnails' luma, in levels."""
    return float(np.abs(first[0] - second[0]).mean())


def _distance(first: Thumb, second: Thumb) -> float:
    return float(np.abs(first - second).mean())


def _others(thumb: Thumb, label: Label) -> Iterator[tuple[str, Thumb]]:
    """Yield what a fault could turn a picture into, with a description of each."""
    luma, first, second = thumb
    yield "is the source's upside down", thumb[:, ::-1]
    yield "is the source's mirrored", thumb[:, :, ::-1]
    yield "is the source's turned by 180 degrees", thumb[:, ::-1, ::-1]
    yield "is the source's turned by 90 degrees", np.rot90(thumb, 1, (1, 2))
    yield "is the source's turned by 90 degrees", np.rot90(thumb, -1, (1, 2))
    yield "has its color planes swapped", np.stack([luma, second, first])
    yield "has no color", np.stack([luma, 0 * first, 0 * second])
    yield "has its range squeezed", np.stack([luma * 219 / 255 + 16, *(thumb[1:] * 224 / 255)])
    yield "has its range stretched", np.stack([(luma - 16) * 255 / 219, *(thumb[1:] * 255 / 224)])
    own = label.matrix if label.matrix in LUMA_WEIGHTS else 6
    for other in (1, 6, 9):
        if LUMA_WEIGHTS[other] == LUMA_WEIGHTS[own] or label.is_gray:
            continue
        for here, there in ((own, other), (other, own)):
            rgb = differences_to_rgb(luma, first, second, here)
            yield "has the colors of another matrix", np.stack(rgb_to_differences(*rgb, there))


def _pairs(source: Sight, output: Sight) -> Iterator[tuple[str, FloatPlane, FloatPlane]]:
    """Yield (luma, chroma or alpha; the source's plane; the output's plane made from it)."""
    before, now = source.picture, output.picture
    yield "luma", before.luma, now.luma
    if now.chroma is not None:
        neutral = np.zeros(before.luma.shape, np.float32)
        chroma = before.chroma or (neutral, neutral)
        yield "chroma", chroma[0], now.chroma[0]
        yield "chroma", chroma[1], now.chroma[1]
    if before.alpha is not None and now.alpha is not None:
        yield "alpha", before.alpha, now.alpha


def in_matrix_of(source: Sight, output: Label) -> Sight:
    """Return the source in the output's matrix if both are known and differ."""
    before, now = (1 if label.is_rgb else label.matrix for label in (source.label, output))
    picture = source.picture
    known = before in LUMA_WEIGHTS and now in LUMA_WEIGHTS
    if not known or LUMA_WEIGHTS[before] == LUMA_WEIGHTS[now] or picture.chroma is None:
        return source
    shape = picture.luma.shape
    first, second = (resized(plane, shape) for plane in picture.chroma)
    rgb = differences_to_rgb(picture.luma, first, second, before)
    luma, first, second = rgb_to_differences(*rgb, now)
    made = Picture(luma, (first, second), picture.alpha, (1, 1), (0.0, 0.0))
    return Sight(made, source.label)


def _fitted(picture: Picture, frame: Frame, place: tuple[int, int, int, int]) -> Picture:
    """Fit a picture of a different shape onto black of the source's first size."""

    def fit(plane: FloatPlane) -> FloatPlane:
        left, top, width, height = place
        canvas: FloatPlane = np.zeros((frame.height, frame.width), np.float32)
        canvas[top : top + height, left : left + width] = resized(plane, (height, width))
        return canvas

    chroma = picture.chroma
    if chroma is not None:
        chroma = (fit(chroma[0]), fit(chroma[1]))
    alpha = None if picture.alpha is None else fit(picture.alpha)
    return Picture(fit(picture.luma), chroma, alpha, (1, 1), (0.0, 0.0))


def _inside(shape: tuple[int, int], frame: Frame, place: tuple[int, int, int, int]) -> FloatPlane:
    """Return a mask of 1, and 0 near the edges of a fitted picture, which may be a pixel off."""
    mask: FloatPlane = np.ones((frame.height, frame.width), np.float32)
    left, top, width, height = place
    near = 3
    for at, size, whole, axis in ((left, width, frame.width, 1), (top, height, frame.height, 0)):
        for edge in (at, at + size):
            if 0 < edge < whole:
                band = slice(max(edge - near, 0), edge + near)
                if axis:
                    mask[:, band] = 0
                else:
                    mask[band] = 0
    return resized(mask, shape)


def _expected_move(source: Picture, output: Picture) -> tuple[float, float]:
    """Return the shift of the output's color planes that averaging to the source's size causes.

    It is in samples of the source's color planes. The sitings that both files state differ from the
    centers of the areas that are averaged.
    """
    assert source.chroma is not None and output.chroma is not None
    moves = []
    for axis in (0, 1):
        side = 1 - axis
        luma_shape, chroma_shape = output.shapes or (output.luma.shape, output.chroma[0].shape)
        luma_scale = luma_shape[side] / source.luma.shape[side]
        chroma_scale = chroma_shape[side] / source.chroma[0].shape[side]
        before, now = source.siting[axis], output.siting[axis]
        # The position of the source's color sample 0, and the center of the samples averaged to it.
        place = before + 0.5
        middle = ((chroma_scale - 1) / 2 * output.step[axis] + now + 0.5) / luma_scale
        moves.append((place - middle) / source.step[axis])
    return moves[0], moves[1]


def _light(sight: Sight) -> float:
    """Return how far the brightest color component lies above black on average, in levels."""
    picture = sight.picture
    if sight.label.is_rgb and picture.chroma is not None:
        rgb = differences_to_rgb(picture.luma, *picture.chroma, 1)
        return 255 * max(float(plane.mean()) for plane in rgb)
    return 255 * float(picture.luma.mean())
