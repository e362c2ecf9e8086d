"""Engines of an enhancer that lack memory, or that are swapped between two frames."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from srstream.config import ReuseConfig
from srstream.enhancer.enhancer import Enhancer
from srstream.errors import EngineMemoryError, RefusedError
from tests.support.enhancer import HEIGHT, WIDTH, YUV420, noise_frame, output, video


class SmallDevice:
    """An engine whose device has no memory for large tiles, or for two sizes at once."""

    def __init__(self, engine, max_pixels, max_sessions=10):
        self.engine, self.max_pixels, self.max_sessions = engine, max_pixels, max_sessions
        self.capabilities = replace(engine.capabilities, takes_any_shape=False)
        self.asked, self.num_open = [], 0

    def open_session(self, tile, on_done=None):
        self.asked.append(tile.shape)
        if tile.shape[0] * tile.shape[1] > self.max_pixels or self.num_open >= self.max_sessions:
            raise EngineMemoryError(f"no memory for {tile.shape}")
        session = self.engine.open_session(tile, on_done)
        self.num_open += 1
        close = session.close

        def closed():
            self.num_open -= 1
            close()

        session.close = closed
        return session


def enhanced(engine, frames, layout=YUV420):
    stage = Enhancer(engine, video(layout), output(layout))
    made = [done for frame in frames for done in stage.push(frame)] + stage.drain()
    stage.close()
    return made


def test_tiles_are_halved_until_the_device_has_memory_for_them(made, caplog):
    frames = [noise_frame(YUV420, pts=pts) for pts in range(4)]
    small = SmallDevice(made, max_pixels=1500)
    for one, other in zip(enhanced(small, frames), enhanced(made, frames), strict=True):
        assert all(map(np.array_equal, one.planes, other.planes))
    areas = [rows * columns for rows, columns in small.asked]
    assert areas[0] == WIDTH * HEIGHT
    assert areas == sorted(areas, reverse=True)
    assert areas[-1] <= 1500 < areas[-2]
    assert len(areas) <= 6  # once and for all, not frame by frame
    assert "tiles are halved" in caplog.text


def test_a_device_without_memory_for_the_smallest_tile_is_an_error(made):
    stage = Enhancer(SmallDevice(made, max_pixels=10), video(YUV420), output(YUV420))
    with pytest.raises(EngineMemoryError, match=r"the frame at 0\.000 s.*cannot be smaller"):
        stage.push(noise_frame(YUV420))
    stage.close()


def test_sessions_of_other_sizes_make_room_before_tiles_are_halved(made):
    small = SmallDevice(made, max_pixels=10_000, max_sessions=1)
    frames = [noise_frame(YUV420, width=w, pts=n) for n, w in enumerate([WIDTH, 64, WIDTH, 64])]
    for one, other in zip(enhanced(small, frames), enhanced(made, frames), strict=True):
        assert all(map(np.array_equal, one.planes, other.planes))
    assert {(HEIGHT, WIDTH), (HEIGHT, 64)} == set(small.asked)


@pytest.mark.parametrize("reuse", [True, False])
def test_engines_are_swapped_between_two_frames(reuse, made, nearest, tmp_path):
    same = noise_frame(YUV420)
    frames = [replace(same, pts=pts) for pts in range(6)]
    stage = Enhancer(made, video(YUV420), output(YUV420), reuse=ReuseConfig(enabled=reuse))
    out = [done for frame in frames[:3] for done in stage.push(frame)]
    out += stage.replace_engine(nearest)
    assert len(out) == 3
    out += [done for frame in frames[3:] for done in stage.push(frame)] + stage.drain()
    stage.close()
    assert [frame.pts for frame in out] == list(range(6))
    for index, frame in enumerate(out):
        (expected,) = enhanced(made if index < 3 else nearest, [same])
        assert all(map(np.array_equal, frame.planes, expected.planes))


def test_a_swap_to_another_model_and_back(made, color_engine):
    frames = [noise_frame(YUV420, pts=pts) for pts in range(3)]
    stage = Enhancer(made, video(YUV420), output(YUV420))
    out = stage.push(frames[0]) + stage.replace_engine(color_engine)
    out += stage.push(frames[1]) + stage.replace_engine(made)
    out += stage.push(frames[2]) + stage.drain()
    for frame, engine, source in zip(out, [made, color_engine, made], frames, strict=True):
        (expected,) = enhanced(engine, [source])
        assert all(map(np.array_equal, frame.planes, expected.planes))


def test_an_engine_of_another_scale_is_refused_and_the_old_one_goes_on(made):
    twice = SmallDevice(made, 10_000)
    twice.capabilities = replace(twice.capabilities, scale=2)
    stage = Enhancer(made, video(YUV420), output(YUV420))
    first = stage.push(noise_frame(YUV420))
    with pytest.raises(RefusedError, match="2 times"):
        stage.replace_engine(twice)
    assert len(first + stage.push(noise_frame(YUV420, pts=1)) + stage.drain()) == 2
