"""Stages that share an engine by turns enlarge the same frames, and pass the engine on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from srstream.config import ReuseConfig
from srstream.enhancer import fair_queue
from srstream.enhancer.enhancer import RESERVED_BYTES, Enhancer
from srstream.enhancer.fair_queue import Round, SharedStage, SlicedStage, WaitingStage
from srstream.enhancer.stage import Stage
from srstream.frame import Frame
from tests.support.enhancer import YUV420, engine_of, noise_frame, output, video
from tests.support.networks import made_network


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("turns")
    return engine_of(made_network(folder / "made.onnx", layers=4), folder)


@pytest.fixture
def enhancer(engine):
    return Enhancer(engine, video(YUV420), output(YUV420), reuse=ReuseConfig())


def waking(stage: Enhancer, round_: Round) -> Stage:
    return SharedStage(stage, round_.join(0), lambda: None)


def sliced(stage: Enhancer, round_: Round) -> Stage:
    return SlicedStage(stage, round_.join(0), lambda: None)


def waiting(stage: Enhancer, round_: Round) -> Stage:
    member = round_.join(0)
    return WaitingStage(stage, member.turn, on_close=member.close)


def through(stage: Stage, frames: list[Frame]) -> list[Frame]:
    made: list[Frame] = []
    for frame in frames:
        while not stage.has_room():
            made += stage.collect()
        made += stage.push(frame)
    return made + stage.drain()


@pytest.mark.parametrize("wrap", [waking, sliced, waiting])
def test_a_stage_in_turns_makes_the_same_frames(
    wrap: Callable[[Enhancer, Round], Stage], engine, enhancer
):
    frames = [noise_frame(YUV420, pts=pts) for pts in (0, 1, 1, 2)]
    plain = Enhancer(engine, video(YUV420), output(YUV420))
    expected = through(plain, frames)
    plain.close()
    round_ = Round()
    stage = wrap(enhancer, round_)
    assert stage.output == output(YUV420)
    other = round_.join(0)
    for _ in range(2):
        for made, wanted in zip(through(stage, frames), expected, strict=True):
            assert made.pts == wanted.pts
            assert all(map(np.array_equal, made.planes, wanted.planes))
        assert other.try_turn()  # the engine is free again
        other.end_turn()
        stage.forget()
    stage.close()


@pytest.mark.parametrize("wrap", [waking, sliced, waiting])
def test_a_stage_that_is_closed_with_frames_under_way_passes_the_engine_on(wrap, enhancer):
    round_ = Round()
    stage = wrap(enhancer, round_)
    assert stage.has_room()
    stage.push(noise_frame(YUV420))
    stage.close()
    other = round_.join(0)
    assert other.try_turn()


def test_closing_a_waiting_stage_frees_what_was_lent_to_it(enhancer):
    freed: list[bool] = []
    stage = WaitingStage(enhancer, Round().join(0).turn, on_close=partial(freed.append, True))
    stage.close()
    assert freed == [True]


def test_a_large_frame_lets_others_in_before_it_is_done(engine, monkeypatch):
    """Of many tiles, the ones given to the engine are done; the rest wait for the next turn."""
    monkeypatch.setattr(fair_queue, "SLICE_SECONDS", 0.0)
    forms = video(YUV420, width=640, height=480), output(YUV420, width=2560, height=1920)
    frame = noise_frame(YUV420, width=640, height=480)
    small_tiles = RESERVED_BYTES + 4 * forms[1].frame_bytes + 1
    whole = Enhancer(engine, *forms)
    (expected,) = through(whole, [frame])
    whole.close()
    round_ = Round()
    enhancer = Enhancer(engine, *forms, max_memory_bytes=small_tiles)
    stage = SlicedStage(enhancer, round_.join(0), lambda: None)
    other = round_.join(0)
    assert stage.has_room()
    made, num_turns = stage.push(frame), 0
    assert not enhancer.has_room()
    while not made:
        made = stage.collect()
        if other.try_turn():
            num_turns += not made
            if num_turns == 1:
                num_computed = enhancer.num_pixels_computed
                assert not stage.collect() and enhancer.num_pixels_computed == num_computed
            other.end_turn()
    assert num_turns > 1
    assert all(map(np.array_equal, made[0].planes, expected.planes))
    stage.close()
