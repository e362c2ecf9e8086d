"""Finds the size of an output from the size of its source and what was asked for."""

from __future__ import annotations

from fractions import Fraction

from srstream.config import ScaleConfig
from srstream.errors import RefusedError, UsageError
from srstream.frame import FrameForm
from srstream.models.table import ModelSpec

_MIN_OUTPUT_SIDE = 16


def output_size(
    source: FrameForm, scaling: ScaleConfig, model_scale: int, *, rotation_degrees: int = 0
) -> tuple[int, int]:
    """Return (width, height) of the output as stored, rounded to the chroma grid.

    `--height`, `--width` and `--fit` count rows and columns as a viewer sees them: of a source that
    is turned by a quarter, they are swapped.

    Args:
        rotation_degrees: by which players turn the picture.

    Raises:
        UsageError: more than one of --scale, --height, --width and --fit was given.
        RefusedError: the size asked for is too small.
    """
    given = [f"--{name}" for name, value in scaling if value is not None]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} exclude each other; give one of them.")
    if not given:
        return source.width * model_scale, source.height * model_scale
    factor = _factor(source, scaling, is_turned=rotation_degrees % 180 != 0)
    if min(source.width, source.height) * factor < _MIN_OUTPUT_SIDE:
        raise RefusedError(
            f"a picture smaller than {_MIN_OUTPUT_SIDE} pixels was asked for; choose a larger "
            f"{given[0]}."
        )
    return tuple(  # type: ignore[return-value]
        max(2, round(side * factor / step) * step)
        for side, step in (
            (source.width, 1 << source.layout.log2_chroma_w),
            (source.height, 1 << source.layout.log2_chroma_h),
        )
    )


def _factor(source: FrameForm, scaling: ScaleConfig, *, is_turned: bool) -> Fraction:
    """Return by how much both sides grow."""
    width, height = source.width, source.height
    if scaling.box is not None:
        box_width, box_height = scaling.box[::-1] if is_turned else scaling.box
        aspect = source.sample_aspect_ratio if source.sample_aspect_ratio > 0 else Fraction(1)
        # Players stretch one of the sides to show pixels that are not square.
        one = Fraction(1)
        shown_width, shown_height = width * max(aspect, one), height / min(aspect, one)
        return min(Fraction(box_width) / shown_width, Fraction(box_height) / shown_height)
    if scaling.height is not None:
        return Fraction(scaling.height, width if is_turned else height)
    if scaling.width is not None:
        return Fraction(scaling.width, height if is_turned else width)
    return Fraction(scaling.scale or 1).limit_denominator(10_000)


def size_note(source: FrameForm, size: tuple[int, int], model: ModelSpec) -> tuple[str, ...]:
    """Say where an output is larger than what the network makes of the source."""
    made = source.width * model.scale, source.height * model.scale
    if size[0] <= made[0] and size[1] <= made[1]:
        return ()
    native, final = (f"{width}x{height}" for width, height in (made, size))
    rest = f"from there to {final} the picture is enlarged by bicubic interpolation"
    return (f"The network enlarges to {native}; {rest}.",)
