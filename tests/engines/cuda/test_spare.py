"""Results' memory is used again, but never while anybody holds a part of it."""

from __future__ import annotations

import gc
import threading

import numpy as np

from srstream.engines.cuda.spare import MAX_SPARE, SpareBlocks

SHAPE, DTYPE = (40, 60), np.dtype(np.uint16)


def address(array):
    return array.__array_interface__["data"][0]


def test_memory_is_used_again_once_nobody_holds_it():
    blocks = SpareBlocks()
    array = blocks.array(SHAPE, DTYPE)
    assert (array.shape, array.dtype, array.flags.writeable) == (SHAPE, DTYPE, True)
    first = address(array)
    assert address(blocks.array(SHAPE, DTYPE)) != first
    del array
    assert address(blocks.array(SHAPE, DTYPE)) == first


def test_a_view_of_a_view_keeps_the_memory():
    blocks = SpareBlocks()
    array = blocks.array(SHAPE, DTYPE)
    array[...] = 7
    part = array[3:20][2:, 5:9].view(np.uint8)
    del array
    gc.collect()
    others = [blocks.array(SHAPE, DTYPE) for _ in range(20)]
    for other in others:
        other[...] = 0
    assert np.array_equal(part.view(DTYPE), np.full((15, 4), 7, DTYPE))


def test_sizes_are_not_mixed_and_few_blocks_are_kept():
    blocks = SpareBlocks()
    large = [blocks.array(SHAPE, DTYPE) for _ in range(3 * MAX_SPARE)]
    addresses = {address(array) for array in large}
    del large
    assert address(blocks.array((8, 8), DTYPE)) not in addresses
    assert len(blocks._spare[40 * 60 * 2]) == MAX_SPARE


def test_other_threads_may_drop_arrays():
    blocks = SpareBlocks()
    held, wrong = [], []

    def drop():
        for _ in range(2000):
            if held:
                number, array = held.pop()
                if not (array == number).all():
                    wrong.append(number)

    threads = [threading.Thread(target=drop) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(1000):
        held.append((number, blocks.copy(np.full((16, 16), number, DTYPE))))
    for thread in threads:
        thread.join()
    assert not wrong
