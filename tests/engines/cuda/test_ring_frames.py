"""Whole frames in the ring of slots, on a device that does everything as late as it may."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srstream.engines.contract import TileFormat
from srstream.engines.cuda.frames import RingFrames
from srstream.engines.cuda.ring import NUM_SLOTS
from srstream.engines.whole_frames import FrameRecipe, Place
from tests.engines.cuda.lazy_device import LazyDevice
from tests.support.gpu.ring import DTYPE


class FakeFrames:
    """A frame's work in parts that share two buffers, as `FrameProgram`'s do.

    The output has a row for each tile: what the network made of the frame for which the tile was
    computed last. The last row is of the frame itself.
    """

    recipe = FrameRecipe(((3, 4),), 8, (), TileFormat(None, 8), (), (Place(0, 0, (4, 4), 0),), 8)
    tiles = range(3)

    def __init__(self):
        self.given, self.made = np.zeros((3, 4), DTYPE), np.zeros((3, 4), DTYPE)

    def begin(self, planes):
        self.given[...] = planes[0][0]

    def enlarge(self, number):
        self.made[number] = self.row(self.given, number)

    def end(self, planes, outputs):
        outputs[0][0, :3] = self.made
        outputs[0][0, 3] = self.row(planes[0][0], 3)
        outputs[1][...] = self.made.mean()

    @staticmethod
    def row(frame, number):
        return (frame.astype(int).sum(axis=0) * (number + 3) % 251).astype(DTYPE)


def drive_frames(seed, num_frames):
    """Submit whole frames, each with some of its tiles, and collect them in random order."""
    random = np.random.default_rng(seed)
    device, program = LazyDevice(random), FakeFrames()

    def record(work, stream):
        assert not device.is_sealed, "a graph is captured after the ring was ready"
        device.num_captured += 1
        return lambda: device.put(stream, work)

    frames = RingFrames(program, device, record, record)
    assert device.num_captured == 2 * NUM_SLOTS + len(program.tiles)
    device.is_sealed = True
    waiting, true, number = [], np.zeros((4, 4), DTYPE), 0
    while number < num_frames or waiting:
        if number < num_frames and (not waiting or random.random() < 0.6):
            frame = random.integers(0, 255, (3, 4), dtype=DTYPE)
            tiles = None
            if number and random.random() < 0.7:
                tiles = np.flatnonzero(random.random(3) < 0.5).tolist()
            ticket = frames.submit([frame], tiles)
            for row in [*(range(3) if tiles is None else tiles), 3]:
                true[row] = program.row(frame, row)
            frame[:] = 0  # it belongs to the caller again
            waiting.append((ticket, true.copy()))
            number += 1
        else:
            ticket, expected = waiting.pop(int(random.integers(len(waiting))))
            (made,), mean = frames.result(ticket)
            assert np.array_equal(made, expected)
            assert mean == pytest.approx(expected[:3].mean(), abs=1e-3)
    frames.close()


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 14))
def test_whole_frames_come_back_each_as_its_own_in_any_schedule(seed, num_frames):
    drive_frames(seed, num_frames)


@pytest.mark.long
def test_ten_thousand_schedules_of_whole_frames():
    for seed in range(10_000):
        drive_frames([8, seed], 1 + seed % 12)
