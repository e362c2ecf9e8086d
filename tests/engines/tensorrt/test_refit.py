"""TensorRT's engines take other weights: what is built, kept and put in, with a recorder."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from srstream.config import ModelConfig
from srstream.engines import faults
from srstream.engines.contract import Refittable, TileFormat
from srstream.errors import DeviceFaultError, EngineError
from tests.engines.tensorrt.recorder import Refitter, assert_holds, opened, tensors_of

TILE = TileFormat((40, 64), 8)


def test_blends_share_an_engine(machine):
    for restore in (0.25, 0.75, 0.25):
        opened("fast", restore).open_session(TILE)
    assert [options["immutable_weights"] for options in machine.built] == [False]
    first, *others = machine.loaded
    assert not first.num_refits, "it was built with these weights"
    for engine, restore in zip(others, (0.75, 0.25), strict=True):
        assert engine.num_refits == 1
        assert_holds(engine, tensors_of("fast", restore))


def test_all_blends_share_an_engine(machine):
    """Alone, `fast` needs no correction for flat pictures, and in blends 2 to 16 lines of it."""
    for step in range(0, 21, 4):
        opened("fast", step / 20).open_session(TILE)
    assert len(machine.built) == 2
    assert len(list(machine.folder.rglob("*.engine"))) == 2


def test_weights_are_exchanged_in_open_sessions(machine):
    engine = opened("fast", 0.25)
    refittable: Refittable = engine
    assert isinstance(refittable, Refittable)
    engine.open_session(TILE)
    engine.open_session(TileFormat((300, 300), 8))
    small = TileFormat((4, 4), 8)
    by_torch = engine.open_session(small)
    planes = [np.arange(16, dtype=np.uint8).reshape(4, 4) * 15]
    before = by_torch.result(by_torch.submit(planes))
    assert engine.refit(ModelConfig(name="fast", restore=0.75))
    assert len(machine.built) == len(machine.loaded) == 2
    for built in machine.loaded:
        assert_holds(built, tensors_of("fast", 0.75))
    fresh = opened("fast", 0.75)
    assert engine.capabilities == fresh.capabilities
    session = fresh.open_session(small)
    expected = session.result(session.submit(planes))
    after = by_torch.result(by_torch.submit(planes))
    assert all(map(np.array_equal, after, expected))
    assert not all(map(np.array_equal, after, before))
    engine.open_session(TileFormat((500, 500), 8))
    assert len(machine.built) == 3
    fresh.open_session(TileFormat((500, 500), 8))
    assert len(machine.built) == 3
    assert_holds(machine.loaded[-1], tensors_of("fast", 0.75))


def test_other_layers_need_another_engine(machine):
    engine = opened("fast", 0.0)
    engine.open_session(TILE)
    before = engine.capabilities
    assert not engine.refit(ModelConfig(name="fast", restore=0.5))
    assert engine.capabilities == before
    assert not machine.loaded[0].num_refits


def test_weights_are_not_exchanged_under_tiles_in_flight(machine):
    engine = opened("fast", 0.25)
    session = engine.open_session(TILE)
    ticket = session.submit([np.zeros((40, 64), np.uint8)])
    with pytest.raises(EngineError, match="while tiles are in the engine"):
        engine.refit(ModelConfig(name="fast", restore=0.75))
    session.result(ticket)
    assert engine.refit(ModelConfig(name="fast", restore=0.75))


def test_weights_that_tensorrt_refuses_leave_the_old_ones(machine, tensorrt):
    engine = opened("fast", 0.25)
    engine.open_session(TILE)
    engine.open_session(TileFormat((300, 300), 8))
    before = engine.capabilities
    first, second = machine.loaded

    original = Refitter.set_named_weights
    second.refuses.add("set")

    class Once(Refitter):
        def set_named_weights(self, name, given):
            is_taken = original(self, name, given)
            if not is_taken:
                self.engine.refuses.clear()
            return is_taken

    tensorrt.Refitter = Once
    with pytest.raises(EngineError, match="does not take") as caught:
        engine.refit(ModelConfig(name="fast", restore=0.75))
    assert type(caught.value) is EngineError
    assert first.num_refits == 2, "it had taken them already"
    assert_holds(first, tensors_of("fast", 0.25))
    assert engine.capabilities == before
    assert faults.device_fault() is None


def test_an_engine_with_weights_of_two_networks_is_a_broken_device(machine):
    engine = opened("fast", 0.25)
    engine.open_session(TILE)
    machine.loaded[0].refuses.add("refit")
    with pytest.raises(DeviceFaultError, match="half exchanged"):
        engine.refit(ModelConfig(name="fast", restore=0.75))
    assert faults.device_fault() is not None


def test_a_kept_engine_that_does_not_take_the_weights_is_built_anew(machine, caplog):
    opened("fast", 0.25).open_session(TILE)
    machine.lost.add("network.convolutions.0.bias")
    engine = opened("fast", 0.75)
    engine.open_session(TILE)
    assert "is built anew" in caplog.text
    assert [options["immutable_weights"] for options in machine.built] == [False, False, True]


@pytest.mark.parametrize("fault", ["lost", "extra", "fixed"])
def test_an_engine_that_cannot_take_all_weights_is_built_for_each(fault, machine, caplog):
    """TensorRT may fold a weight into another one, or drop it, and then does not list it."""
    if fault == "lost":
        machine.lost.add("network.convolutions.0.bias")
    elif fault == "extra":
        machine.extra.append("[folded]")
    else:
        machine.refit_error = ValueError("this layer cannot be refitted")
    engine = opened("fast", 0.25)
    engine.open_session(TILE)
    assert [options["immutable_weights"] for options in machine.built] == [False, True]
    assert "is built for these weights alone" in caplog.text
    assert not engine.refit(ModelConfig(name="fast", restore=0.75))
    opened("fast", 0.75).open_session(TILE)
    opened("fast", 0.25).open_session(TILE)
    assert [options["immutable_weights"] for options in machine.built] == [False, True, True]
    assert not any(engine.num_refits for engine in machine.loaded)


def test_shapes_that_an_engine_lists_are_not_weights(machine):
    machine.extra.append("shape of a split")
    opened("fast", 0.25).open_session(TILE)
    opened("fast", 0.75).open_session(TILE)
    assert len(machine.built) == 1


def test_a_lack_of_memory_is_not_remembered(machine):
    machine.refit_error = torch.cuda.OutOfMemoryError("CUDA out of memory.")
    opened("fast", 0.25).open_session(TILE)
    machine.refit_error = None
    opened("fast", 0.75).open_session(TILE)
    opened("fast", 0.25).open_session(TILE)
    assert [options["immutable_weights"] for options in machine.built] == [False, True, False]
