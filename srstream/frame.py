"""Frames: decoded planes with their exact time and color description, as stages pass them on.

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

MAX_HEADER_BYTES = 4096
"""Largest header of a frame on the wire, ten times the longest that is ever written."""

MAX_SIDE = 1 << 20
"""Maximum number of rows or columns of a frame on the wire. No codec allows more, and the size of a
plane cannot overflow."""

_INT64_MAX = (1 << 63) - 1
_INT32_MAX = (1 << 31) - 1
_MAX_LOG2_CHROMA = 3
_MAX_CODE_POINT = 0xFFFF
_HEADER_FIELDS = frozenset(
    ("layout", "size", "pts", "time_base", "duration", "color", "key", "concealed")
)
_LAYOUT_FIELDS = frozenset(("kind", "bits", "log2_chroma_w", "log2_chroma_h", "has_alpha"))
_COLOR_FIELDS = frozenset(("primaries", "transfer", "matrix", "full_range", "chroma_location"))


@dataclass(frozen=True, slots=True)
class ColorSpec:
    """The color description of a picture, as the code points of ITU-T H.273.

    2 means unspecified for the first three. `full_range` is None when the source does not say.
    `chroma_location` is libav's AVChromaLocation (0 unspecified, 1 left, 2 center, 3 top-left,
    4 top, 5 bottom-left, 6 bottom).
    """

    primaries: int = 2
    transfer: int = 2
    matrix: int = 2
    full_range: bool | None = None
    chroma_location: int = 0


@dataclass(frozen=True, slots=True)
class PlaneLayout:
    """The planes of a frame and the storage of their samples.

    The planes of `kind` yuv are Y, U, V; of rgb G, B, R (libav's planar order); of gray Y alone. An
    alpha plane comes last, at luma size. Chroma planes measure ceil(W / 2**log2_chroma_w) by
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
        """Return (rows, columns) of plane `index` of a picture of `width` x `height`."""
        if self.kind == "yuv" and index in (1, 2):
            return -(-height >> self.log2_chroma_h), -(-width >> self.log2_chroma_w)
        return height, width

    def frame_bytes(self, width: int, height: int) -> int:
        """Return the bytes of all planes of one frame."""
        samples = 0
        for index in range(self.num_planes):
            rows, columns = self.plane_shape(index, width, height)
            samples += rows * columns
        return samples * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture and its time.

    `pts` counts `time_base` units and only grows during a job; `duration` is in the same units, 0
    if unknown. `layout` describes the `planes`. `sample_aspect_ratio` is None unless the shape of a
    pixel differs from the one with which the stream began. `concealed` marks a repetition of the
    last frame in place of one that could not be decoded.
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
    sample_aspect_ratio: Fraction | None = None

    @property
    def pts_seconds(self) -> float:
        return float(self.pts * self.time_base)

    @property
    def num_bytes(self) -> int:
        return sum(plane.nbytes for plane in self.planes)

    def with_planes(
        self, planes: Sequence[Plane], width: int, height: int, layout: PlaneLayout | None = None
    ) -> Frame:
        """Return a frame with these planes at the same time."""
        return replace(
            self, planes=tuple(planes), width=width, height=height, layout=layout or self.layout
        )


@dataclass(frozen=True, slots=True)
class FrameForm:
    """The form that the frames of one stream share: size, layout, color and pixel shape.

    `sample_aspect_ratio` is the shape of a pixel wherever a frame does not state its own.
    """

    width: int
    height: int
    layout: PlaneLayout
    color: ColorSpec
    sample_aspect_ratio: Fraction = Fraction(1)

    @property
    def frame_bytes(self) -> int:
        return self.layout.frame_bytes(self.width, self.height)

    def scaled(self, scale: int) -> FrameForm:
        """Return the same form with `scale` times as many rows and columns."""
        return replace(self, width=self.width * scale, height=self.height * scale)


def encode_frame(frame: Frame) -> list[bytes | memoryview]:
    """Encode a frame as a JSON header and the bytes of each plane.

    Contiguous planes are not copied.
    """
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
    aspect = frame.sample_aspect_ratio
    if aspect is not None:
        header["aspect"] = [aspect.numerator, aspect.denominator]
    planes = [np.ascontiguousarray(plane).data.cast("B") for plane in frame.planes]
    return [json.dumps(header).encode(), *planes]


def decode_frame(parts: Sequence[bytes | memoryview]) -> Frame:
    """Decode a wire message, which may come from an untrusted peer.

    Every field of the header is checked, and then the length of every part against it. Planes are
    views of the parts unless those are misaligned. Samples are not checked against the depth.

    Raises:
        MediaError: the header is not one that `encode_frame` writes, or the parts contradict it.
    """
    frame = decode_header(parts[0] if parts else b"")
    layout = frame.layout
    if len(parts) - 1 != layout.num_planes:
        raise MediaError(
            f"frame message: {len(parts) - 1} planes came, {layout.num_planes} were announced"
        )
    planes: list[Plane] = []
    for index, part in enumerate(parts[1:]):
        shape = layout.plane_shape(index, frame.width, frame.height)
        if len(part) != shape[0] * shape[1] * layout.dtype.itemsize:
            raise MediaError(
                f"frame message: plane {index} has {len(part)} bytes, its header says {shape} "
                f"{layout.dtype}"
            )
        plane = np.require(np.frombuffer(part, dtype=layout.dtype), requirements="A")
        planes.append(plane.reshape(shape))
    return replace(frame, planes=tuple(planes))


def decode_header(part: bytes | memoryview) -> Frame:
    """Decode the first part of a message to a frame without planes.

    Raises:
        MediaError: the part is not a header that `encode_frame` writes.
    """
    try:
        if len(part) > MAX_HEADER_BYTES:
            raise ValueError(f"it has {len(part)} bytes")
        header = json.loads(bytes(part))
        if not isinstance(header, dict) or header.keys() - {"aspect"} != _HEADER_FIELDS:
            raise ValueError("it does not have the expected fields")
        width, height = (_integer(side, 1, MAX_SIDE) for side in header["size"])
        numerator, denominator = (_integer(n, 1, _INT64_MAX) for n in header["time_base"])
        return Frame(
            planes=(),
            layout=layout_from(header["layout"]),
            width=width,
            height=height,
            pts=_integer(header["pts"], -_INT64_MAX - 1, _INT64_MAX),
            time_base=Fraction(numerator, denominator),
            duration=_integer(header["duration"], -_INT64_MAX - 1, _INT64_MAX),
            color=color_from(header["color"]),
            is_key=_truth(header["key"]),
            concealed=_truth(header["concealed"]),
            sample_aspect_ratio=_aspect(header["aspect"]) if "aspect" in header else None,
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise MediaError(f"frame message: its header cannot be read ({error})") from error


def layout_from(fields: object) -> PlaneLayout:
    """Read a layout from a mapping such as `dataclasses.asdict` makes.

    Raises:
        ValueError: the mapping describes no layout.
    """
    if not isinstance(fields, dict) or fields.keys() != _LAYOUT_FIELDS:
        raise ValueError("its layout does not have the expected fields")
    kind = fields["kind"]
    if kind not in ("yuv", "rgb", "gray"):
        raise ValueError("its layout is not yuv, rgb or gray")
    most = _MAX_LOG2_CHROMA if kind == "yuv" else 0
    return PlaneLayout(
        kind=kind,
        bits=_integer(fields["bits"], 8, 16),
        log2_chroma_w=_integer(fields["log2_chroma_w"], 0, most),
        log2_chroma_h=_integer(fields["log2_chroma_h"], 0, most),
        has_alpha=_truth(fields["has_alpha"]),
    )


def color_from(fields: object) -> ColorSpec:
    """Read a color description from a mapping such as `dataclasses.asdict` makes.

    Raises:
        ValueError: the mapping holds no color description.
    """
    if not isinstance(fields, dict) or fields.keys() != _COLOR_FIELDS:
        raise ValueError("its color does not have the expected fields")
    full_range = fields["full_range"]
    return ColorSpec(
        primaries=_integer(fields["primaries"], 0, _MAX_CODE_POINT),
        transfer=_integer(fields["transfer"], 0, _MAX_CODE_POINT),
        matrix=_integer(fields["matrix"], 0, _MAX_CODE_POINT),
        full_range=None if full_range is None else _truth(full_range),
        chroma_location=_integer(fields["chroma_location"], 0, 6),
    )


def _integer(value: object, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"a number is not an integer from {least} to {most}")
    return value


def _aspect(value: object) -> Fraction:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError("its aspect is not a pair of numbers")
    return Fraction(*(_integer(n, 1, _INT32_MAX) for n in value))


def _truth(value: object) -> bool:
    if type(value) is not bool:
        raise ValueError("a flag is neither true nor false")
    return value
