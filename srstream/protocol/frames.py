"""The messages of the data socket, version 1: raw frames in, enhanced frames out.

A message has several parts, of which the first is its kind; docs/frames.md describes them. No
message is trusted: sizes are compared before a plane is made.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Annotated, Any, Final, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from srstream.errors import MediaError, UsageError
from srstream.frame import (
    MAX_PLANES,
    ColorSpec,
    Frame,
    FrameForm,
    Plane,
    PlaneLayout,
    decode_frame,
)
from srstream.protocol.control import Name

FRAMES_VERSION = 1

HELLO: Final = b"HELLO"
READY: Final = b"READY"
FRAME: Final = b"FRAME"
CREDIT: Final = b"CREDIT"
BYE: Final = b"BYE"
NOTE: Final = b"NOTE"
END: Final = b"END"
ERROR: Final = b"ERROR"

MAX_PARTS = 2 + MAX_PLANES
"""Parts of a message: kind, header, planes."""

MAX_TEXT_BYTES = 4 << 10
"""Largest size of a JSON part."""

MAX_CREDIT = 1024
"""Largest credit that a client can have granted; more count as this many frames."""

MAX_SIDE = 16384

_LAYOUT_NAME = re.compile(
    r"(?:yuv(?P<yuva>a?)(?P<chroma>444|422|420|440|411|410)p|gbr(?P<gbra>a?)p|gray)"
    r"(?:(?P<bits>9|10|12|14|16)(?:le)?)?"
)
_CHROMA = {"444": (0, 0), "422": (1, 0), "420": (1, 1), "440": (0, 1), "411": (2, 0), "410": (2, 2)}


class ProtocolError(UsageError):
    """A message that the protocol does not allow; it ends the session."""


def layout_named(name: str) -> PlaneLayout:
    """The layout of a planar format of libav, such as yuv420p or yuv422p10.

    Raises:
        UsageError: the format is packed, big-endian or unknown.
    """
    found = _LAYOUT_NAME.fullmatch(name)
    if found is None:
        raise UsageError(
            f"layout {name!r}: only planar ones are read, such as yuv420p, yuv422p10, gbrp or gray."
        )
    bits = int(found["bits"] or 8)
    if found["chroma"]:
        return PlaneLayout("yuv", bits, *_CHROMA[found["chroma"]], bool(found["yuva"]))
    return PlaneLayout("rgb" if "gbr" in name else "gray", bits, has_alpha=bool(found["gbra"]))


class _JsonPart(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Layout(_JsonPart):
    """A `PlaneLayout` in JSON."""

    kind: Literal["yuv", "rgb", "gray"]
    bits: int = Field(ge=8, le=16)
    log2_chroma_w: int = Field(0, ge=0, le=2)
    log2_chroma_h: int = Field(0, ge=0, le=2)
    has_alpha: bool = False

    @model_validator(mode="after")
    def _only_yuv_has_chroma(self) -> Self:
        if self.kind != "yuv" and (self.log2_chroma_w or self.log2_chroma_h):
            raise ValueError(f"{self.kind} has no chroma planes that could be smaller")
        return self

    def planes(self) -> PlaneLayout:
        """The layout that this describes."""
        return PlaneLayout(**self.model_dump())


class Color(_JsonPart):
    """A `ColorSpec` in JSON."""

    primaries: int = Field(2, ge=0, le=255)
    transfer: int = Field(2, ge=0, le=255)
    matrix: int = Field(2, ge=0, le=255)
    full_range: bool | None = None
    chroma_location: int = Field(0, ge=0, le=6)

    def spec(self) -> ColorSpec:
        """The color description that this stands for."""
        return ColorSpec(**self.model_dump())


def _layout_by_name(value: Any) -> Any:
    """Replace a layout's name by its description."""
    if not isinstance(value, str):
        return value
    try:
        layout = layout_named(value[:32])
    except UsageError as error:
        raise ValueError(str(error)) from None
    return Layout(
        kind=layout.kind,
        bits=layout.bits,
        log2_chroma_w=layout.log2_chroma_w,
        log2_chroma_h=layout.log2_chroma_h,
        has_alpha=layout.has_alpha,
    )


class _Form(_JsonPart):
    width: int = Field(ge=1, le=MAX_SIDE)
    height: int = Field(ge=1, le=MAX_SIDE)
    layout: Annotated[Layout, BeforeValidator(_layout_by_name)]
    color: Color = Color()

    @property
    def form(self) -> FrameForm:
        """Size, layout and color of the frames."""
        return FrameForm(self.width, self.height, self.layout.planes(), self.color.spec())


class Hello(_Form):
    """HELLO: what frames a client will send, and how to enhance them."""

    version: Literal[1] = 1
    model: Name = "fast"
    restore: float = Field(0.0, ge=0, le=1, description="see `srstream.config.ModelConfig`")
    detail: float = Field(0.0, ge=0, le=1)


class Ready(_Form):
    """READY: the session is open; what frames will come back, and how many may be sent."""

    model_config = ConfigDict(
        extra="ignore", frozen=True, strict=True
    )  # a newer daemon sends more fields

    version: Literal[1] = 1
    width: int = Field(ge=1)
    height: int = Field(ge=1)
    session: str
    credit_frames: int = Field(ge=1)
    idle_seconds: float = Field(gt=0)


_Model = TypeVar("_Model", bound=BaseModel)


def parse(model: type[_Model], part: bytes | memoryview) -> _Model:
    """Parse and check a JSON part.

    Raises:
        ProtocolError: it is too long, or no valid `model`.
    """
    name = model.__name__
    if len(part) > MAX_TEXT_BYTES:
        raise ProtocolError(f"{name}: {len(part)} bytes; at most {MAX_TEXT_BYTES} are read.")
    try:
        return model.model_validate_json(bytes(part))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(item) for item in (name, *first["loc"]))
        raise ProtocolError(f"{one_line(where)}: {one_line(first['msg'])}.") from None


def parse_credit(parts: Sequence[bytes | memoryview]) -> int:
    """The number of frames in a CREDIT, 0 to 10**9 - 1.

    Raises:
        ProtocolError: it is no such number.
    """
    text = bytes(parts[0][:10]) if len(parts) == 1 else b""
    if not text.isdigit() or len(text) > 9:
        raise ProtocolError("CREDIT: one part with a decimal number of frames is expected.")
    return int(text)


def read_frame(parts: Sequence[bytes | memoryview], form: FrameForm) -> Frame:
    """Make a frame of its header and planes, which may be views of the parts.

    Raises:
        ProtocolError: the header or a part's size is invalid, or the frame is not of `form`.
    """
    try:
        frame = decode_frame(parts)
    except MediaError as error:
        raise ProtocolError(f"FRAME: {one_line(str(error))}.") from None
    if (frame.width, frame.height) != (form.width, form.height):
        raise ProtocolError(
            f"FRAME: {frame.width}x{frame.height}, but HELLO said {form.width}x{form.height}; "
            "open another session for another size."
        )
    if frame.sample_aspect_ratio is not None:
        raise ProtocolError("FRAME: its header has a field that is not known here (aspect).")
    if frame.layout != form.layout or frame.color != form.color:
        raise ProtocolError("FRAME: its layout or color is not what HELLO said.")
    return frame


def one_line(text: str) -> str:
    """A client's text with at most 300 characters, unprintable ones replaced by `?`."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:300])


def check_samples(frame: Frame) -> None:
    """Check that no sample in two bytes is larger than its depth allows.

    Raises:
        ProtocolError: a sample is.
    """
    bits = frame.layout.bits
    if bits == 8 * frame.layout.dtype.itemsize:
        return
    for index, plane in enumerate(frame.planes):
        largest = int(plane.max())
        if largest >> bits:
            raise ProtocolError(f"FRAME: plane {index} holds {largest}, too large for {bits} bits.")


def frame_of_planes(
    planes: Sequence[Plane], form: FrameForm, pts: int, time_base: Fraction
) -> Frame:
    """Make a frame of arrays, which must have the planes of `form`.

    Raises:
        UsageError: the number, shape or dtype of the planes is wrong.
    """
    layout = form.layout
    wanted = [layout.plane_shape(i, form.width, form.height) for i in range(layout.num_planes)]
    got = [plane.shape for plane in planes]
    if got != wanted or any(plane.dtype != layout.dtype for plane in planes):
        dtypes = "/".join(sorted({str(plane.dtype) for plane in planes}))
        raise UsageError(
            f"planes of {got} {dtypes} were given; {wanted} {layout.dtype} are expected."
        )
    return Frame(tuple(planes), layout, form.width, form.height, pts, time_base, color=form.color)
