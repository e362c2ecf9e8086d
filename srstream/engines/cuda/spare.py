"""Memory of results that is used again once nobody holds them.

A fresh array of some megabytes costs more than the copy into it: the system clears every page of it
at the first touch. That is 10 ms for a 4K frame.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_SPARE = 8
"""Blocks of one size that are kept. More are in use only where results wait for their reader."""


class _Block:
    """The owner of an array's memory: numpy keeps it as long as any view of the array lives."""

    def __init__(
        self, memory: NDArray[np.uint8], shape: Sequence[int], dtype: np.dtype[Any]
    ) -> None:
        self.__array_interface__ = {
            "version": 3,
            "shape": tuple(shape),
            "typestr": dtype.str,
            "data": (memory.ctypes.data, False),
        }
        self._memory = memory


class SpareBlocks:
    """Makes arrays, out of the memory of earlier ones where these are gone.

    Any thread may drop an array; one thread makes them.
    """

    def __init__(self) -> None:
        self._spare: dict[int, deque[NDArray[np.uint8]]] = {}

    def array(self, shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return an array with arbitrary content that belongs to the caller."""
        num_bytes = int(np.prod(shape)) * dtype.itemsize
        spare = self._spare.setdefault(num_bytes, deque(maxlen=MAX_SPARE))
        try:
            memory = spare.pop()
        except IndexError:
            memory = np.empty(num_bytes, np.uint8)
        block = _Block(memory, shape, dtype)
        weakref.finalize(block, spare.append, memory).atexit = False
        return np.asarray(block)

    def copy(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return a copy of an array that belongs to the caller."""
        made = self.array(array.shape, array.dtype)
        made[...] = array
        return made
