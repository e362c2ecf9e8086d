"""Reads a decoded frame's side data, also where FFmpeg has more kinds than PyAV has names for.

PyAV makes an enumeration of the kinds. It raises ValueError as soon as a frame carries one that it
does not list, such as the EXIF data of a TIFF picture or of a camera's Motion JPEG.
"""

from __future__ import annotations

from typing import Any

from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import VideoFrame


def side_data_of(frame: VideoFrame) -> Any:
    """Return PyAV's container of a frame's side data; kinds without a name are called `KIND_31`."""
    return frame.side_data


def _unlisted(cls: type[SideDataType], value: object) -> SideDataType | None:
    if not isinstance(value, int):
        return None
    member = object.__new__(cls)
    member._name_ = f"KIND_{value}"
    member._value_ = value  # type: ignore[assignment]
    return member


SideDataType._missing_ = classmethod(_unlisted)  # type: ignore[assignment, method-assign]
