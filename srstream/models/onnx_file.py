"""Checks that an ONNX file is one, and holds all of its weights itself.

A tensor may name a file for its values ("external data"), which libraries look for relative to the
working folder. So a file of weights could have any file of the machine read. The package `onnx` is
no part of the base install, so the protocol buffer is walked here; onnx/onnx.proto has the numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from srstream.errors import WeightsError

_Message = Literal[
    "model", "training", "function", "graph", "node", "attribute", "sparse", "tensor"
]

_INNER: dict[_Message, dict[int, _Message]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
"""The fields of each message that can hold a tensor, by their numbers."""
_GRAPH = 7
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def check_self_contained(content: bytes, origin: object) -> None:
    """Check that a file is an ONNX file that names no other file.

    Raises:
        WeightsError: it is none, or it does; `origin` names it.
    """
    try:
        fields = [number for number, _ in _fields(memoryview(content))]
        names_files = _has_external_data(content)
    except ValueError as error:
        raise WeightsError(f"{origin}: not an ONNX file ({error})") from error
    if _GRAPH not in fields:
        raise WeightsError(f"{origin}: not an ONNX file (it has no graph)")
    if names_files:
        raise WeightsError(
            f"{origin}: keeps weights in other files (external data), which are not read; save it "
            "with all weights inside"
        )


def _has_external_data(content: bytes) -> bool:
    waiting: list[tuple[_Message, memoryview]] = [("model", memoryview(content))]
    while waiting:
        message, view = waiting.pop()
        inner = _INNER[message]
        for number, value in _fields(view):
            if message == "tensor" and (
                number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0)
            ):
                return True
            if number in inner:
                if isinstance(value, int):
                    raise ValueError(f"a number where a {inner[number]} should be")
                waiting.append((inner[number], value))
    return False


def _fields(view: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield the number and the value of each field of a message."""
    place = 0
    while place < len(view):
        tag, place = _varint(view, place)
        kind, length = tag & 7, 0
        if kind == _VARINT:
            value, place = _varint(view, place)
            yield tag >> 3, value
            continue
        if kind == _BYTES:
            length, place = _varint(view, place)
        elif kind in (_FIXED64, _FIXED32):
            length = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError("no protocol buffer")
        if place + length > len(view):
            raise ValueError("it ends too early")
        yield tag >> 3, view[place : place + length]
        place += length


def _varint(view: memoryview, place: int) -> tuple[int, int]:
    """Read a number of 7 bits a byte; return it and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(view):
            raise ValueError("it ends too early")
        byte = view[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("no protocol buffer")
