"""What travels between the stages: decoded planes with exact time and colour description.

Shape legend: H, W are rows and columns of a plane.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from srstream.errors import MediaError

Plane = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
"""One plane, (H, W), C-contiguous rows; uint8 for 8 bits, uint16 (native, low-aligned) for more."""

Kind = Literal["yuv", "rgb", "gray"]

MAX_PLANES = 4


@dataclass(frozen=True, slots=True)
class ColorSpec:
    """The colour description of a picture, as the code points of ITU-T H.273.

    2 means unspecified for the first three. `full_range` is None when the source does not say.
    `chroma_location` is libav's AVChromaLocation (0 unspecified, 1 left, 2 centre, 3 top-left,
    4 top, 5 bottom-left, 6 bottom).
    """

    primaries: int = 2
    transfer: int = 2
    matrix: int = 2
    full_range: bool | None = None
    chroma_location: int = 0


@dataclass(frozen=True, slots=True)
class PlaneLayout:
    """How the planes of a frame are to be read.

    `kind` yuv: Y, U, V; rgb: G, B, R (libav's planar order); gray: Y alone. An alpha plane comes
    last, at luma size. Chroma planes measure ceil(W / 2**log2_chroma_w) by
    ceil(H / 2**log2_chroma_h). `bits` is the depth of a sample, 8 to 16.
    """

    kind: Kind
    bits: int
    log2_chroma_w: int = 0
    log2_chroma_h: int = 0
    has_alpha: bool = False

    @property
    def num_planes(self) -> int:
        return (1 if self.kind == "gray" else 3) + self.has_alpha

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint8 if self.bits <= 8 else np.uint16)

    def plane_shape(self, index: int, width: int, height: int) -> tuple[int, int]:
        """(rows, columns) of plane `index` of a picture of `width` x `height`."""
        if self.kind == "yuv" and index in (1, 2):
            return -(-height >> self.log2_chroma_h), -(-width >> self.log2_chroma_w)
        return height, width

    def frame_bytes(self, width: int, height: int) -> int:
        """Size of one frame's planes in bytes."""
        samples = 0
        for index in range(self.num_planes):
            rows, columns = self.plane_shape(index, width, height)
            samples += rows * columns
        return samples * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture and its time.

    `pts` counts `time_base` units and is monotonic through a job; `duration` likewise, 0 if
    unknown. `planes` are described by `layout`. `concealed` marks a repetition of the frame
    before it, put in place of one that could not be decoded.
    """

    planes: tuple[Plane, ...]
    layout: PlaneLayout
    width: int
    height: int
    pts: int
    time_base: Fraction
    duration: int = 0
    color: ColorSpec = field(default_factory=ColorSpec)
    is_key: bool = False
    concealed: bool = False

    @property
    def pts_seconds(self) -> float:
        return float(self.pts * self.time_base)

    @property
    def num_bytes(self) -> int:
        return sum(plane.nbytes for plane in self.planes)

    def with_planes(
        self, planes: Sequence[Plane], width: int, height: int, layout: PlaneLayout | None = None
    ) -> Frame:
        """The same moment with other planes."""
        return replace(
            self, planes=tuple(planes), width=width, height=height, layout=layout or self.layout
        )


def encode_frame(frame: Frame) -> list[bytes | memoryview]:
    """The wire form: a JSON header, then each plane's bytes. No copy of a contiguous plane."""
    header = {
        "layout": asdict(frame.layout),
        "size": [frame.width, frame.height],
        "pts": frame.pts,
        "time_base": [frame.time_base.numerator, frame.time_base.denominator],
        "duration": frame.duration,
        "color": asdict(frame.color),
        "key": frame.is_key,
        "concealed": frame.concealed,
    }
    planes = [np.ascontiguousarray(plane).data.cast("B") for plane in frame.planes]
    return [json.dumps(header).encode(), *planes]


def decode_frame(parts: Sequence[bytes | memoryview]) -> Frame:
    """The frame of a wire message. Every length is checked against the header.

    Raises:
        MediaError: the header and the parts disagree.
    """
    try:
        header = json.loads(bytes(parts[0]))
        layout = PlaneLayout(**header["layout"])
        width, height = (int(n) for n in header["size"])
        num, den = header["time_base"]
        color = ColorSpec(**header["color"])
        pts, duration = int(header["pts"]), int(header["duration"])
        is_key, concealed = bool(header["key"]), bool(header["concealed"])
        time_base = Fraction(int(num), int(den))
    except (ValueError, KeyError, TypeError, IndexError, ZeroDivisionError) as error:
        raise MediaError(f"frame message: its header cannot be read ({error})") from error
    if len(parts) - 1 != layout.num_planes or layout.num_planes > MAX_PLANES:
        raise MediaError(
            f"frame message: {len(parts) - 1} planes came, {layout.num_planes} were announced"
        )
    planes: list[Plane] = []
    for index, part in enumerate(parts[1:]):
        shape = layout.plane_shape(index, width, height)
        plane = np.frombuffer(part, dtype=layout.dtype)
        if plane.size != shape[0] * shape[1]:
            raise MediaError(
                f"frame message: plane {index} has {plane.size} samples, its header says {shape}"
            )
        planes.append(plane.reshape(shape))
    return Frame(
        planes=tuple(planes),
        layout=layout,
        width=width,
        height=height,
        pts=pts,
        time_base=time_base,
        duration=duration,
        color=color,
        is_key=is_key,
        concealed=concealed,
    )
