"""Applies a container's crop to decoded pictures: PixelCrop in Matroska, `clap` in MP4 and MOV."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, cast

import av
import numpy as np
from av.container import InputContainer
from av.stream import Stream

from srstream.frame import Plane, PlaneLayout
from srstream.media.types import WHOLE, Crop


def cropped_planes(
    planes: Sequence[Plane], layout: PlaneLayout, size: tuple[int, int], crop: Crop
) -> tuple[Plane, ...]:
    """Return the cropped planes of a picture of `size` (width, height), contiguous.

    Where the crop would split a chroma sample (an odd column or row), that sample stays whole, as
    in players.
    """
    shown = crop.size_of(*size)
    kept: list[Plane] = []
    for index, plane in enumerate(planes):
        is_chroma = layout.kind == "yuv" and index in (1, 2)
        top = crop.top >> (layout.log2_chroma_h if is_chroma else 0)
        left = crop.left >> (layout.log2_chroma_w if is_chroma else 0)
        rows, columns = layout.plane_shape(index, *shown)
        part: Any = np.ascontiguousarray(plane[top : top + rows, left : left + columns])
        kept.append(part)
    return tuple(kept)


def container_crop(container: InputContainer, stream: Stream, width: int, height: int) -> Crop:
    """Return the crop that a container states for a stream; none if nothing would remain.

    `width` and `height` are those of the decoded picture. libav leaves cropping to the player, and
    PyAV has no attribute for it; libavformat's dump of a file states it. Do not call this while a
    threaded decoder runs: see `media.color_tags.chroma_location`.
    """
    level, skips_repeated = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.INFO)
    av.logging.set_skip_repeated(False)
    try:
        dump: str = cast(Any, container).dumps_format()
    finally:
        av.logging.set_level(level)
        av.logging.set_skip_repeated(skips_repeated)
    # A tag cannot imitate this: the lines of its value begin with more spaces.
    is_meant = False
    for line in dump.splitlines():
        if head := re.match(r"  Stream #0:(\d+)", line):
            is_meant = int(head[1]) == stream.index
        elif is_meant and (sides := re.match(r" {6}Frame Cropping: (\d+)/(\d+)/(\d+)/(\d+)", line)):
            left, right, top, bottom = map(int, sides.groups())
            crop = Crop(left, top, right, bottom)
            return crop if min(crop.size_of(width, height)) > 0 else WHOLE
    return WHOLE
