"""A file of weights that names another file is refused, wherever in the graph it does so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from srstream.config import EngineConfig, ModelConfig
from srstream.engines.table import ENGINES, can_run, open_engine
from srstream.errors import WeightsError
from srstream.models.onnx_file import check_self_contained
from srstream.models.table import WEIGHTS_DIR, model_spec
from trainer.ship.methods import method_of

FILES = sorted(WEIGHTS_DIR.glob("*.onnx"))


def external(tensor: TensorProto, location: str = "secret") -> TensorProto:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    return tensor


def tensor() -> TensorProto:
    return external(numpy_helper.from_array(np.zeros((2, 2), np.float32), "w"))


def graph_of(*nodes: onnx.NodeProto) -> onnx.GraphProto:
    return helper.make_graph(nodes, "g", [], [])


def with_node(**attributes: object) -> onnx.ModelProto:
    return helper.make_model(graph_of(helper.make_node("Constant", [], ["w"], **attributes)))


def in_initializer() -> onnx.ModelProto:
    return helper.make_model(helper.make_graph([], "g", [], [], [tensor()]))


def in_sparse_initializer() -> onnx.ModelProto:
    model = helper.make_model(graph_of())
    model.graph.sparse_initializer.add().values.CopyFrom(tensor())
    return model


def in_function() -> onnx.ModelProto:
    model = with_node()
    node = helper.make_node("Constant", [], ["w"], value=tensor())
    model.functions.append(
        helper.make_function("f", "F", [], ["w"], [node], [helper.make_opsetid("", 17)])
    )
    return model


def in_training() -> onnx.ModelProto:
    model = with_node()
    model.training_info.add().algorithm.CopyFrom(in_initializer().graph)
    return model


PLACES: dict[str, Callable[[], onnx.ModelProto]] = {
    "initializer": in_initializer,
    "sparse initializer": in_sparse_initializer,
    "attribute": lambda: with_node(value=tensor()),
    "attributes": lambda: with_node(values=[tensor()]),
    "inner graph": lambda: with_node(then_branch=in_initializer().graph),
    "inner graphs": lambda: with_node(branches=[in_initializer().graph]),
    "function": in_function,
    "training": in_training,
}


@pytest.mark.parametrize("place", PLACES)
def test_external_data_is_found_wherever_it_is(place: str) -> None:
    with pytest.raises(WeightsError, match=r"^w\.onnx: keeps weights in other files"):
        check_self_contained(PLACES[place]().SerializeToString(), "w.onnx")


def test_a_location_is_enough_without_the_mark() -> None:
    """Some readers look at the one, some at the other."""
    model = in_initializer()
    model.graph.initializer[0].ClearField("data_location")
    with pytest.raises(WeightsError, match="other files"):
        check_self_contained(model.SerializeToString(), "w.onnx")
    model = in_initializer()
    model.graph.initializer[0].ClearField("external_data")
    with pytest.raises(WeightsError, match="other files"):
        check_self_contained(model.SerializeToString(), "w.onnx")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_weights_that_ship_hold_everything(path: Path) -> None:
    check_self_contained(path.read_bytes(), path)


@pytest.mark.parametrize(
    "content",
    [b"", b"x", b"\xff" * 40, b"<?xml version='1.0'?><net/>", b"\x08\x08", b"\x3a\xff\xff\xff\x0f"],
)
def test_what_is_no_onnx_file_is_refused(content: bytes) -> None:
    with pytest.raises(WeightsError, match=r"^w\.onnx: not an ONNX file"):
        check_self_contained(content, "w.onnx")


def test_a_file_cut_anywhere_is_refused_or_complete() -> None:
    """No cut leads to another error, and none hides what comes before it."""
    content = in_initializer().SerializeToString()
    for length in range(len(content)):
        with pytest.raises(WeightsError):
            check_self_contained(content[:length], "w.onnx")


@pytest.fixture
def borrowing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights of which one tensor is in a file of the working folder, and would load from it."""
    model = onnx.load(WEIGHTS_DIR / "fast.onnx")
    borrowed = next(each for each in model.graph.initializer if len(each.dims) == 4)
    (tmp_path / "secret").write_bytes(borrowed.raw_data)
    external(borrowed)
    path = tmp_path / "w.onnx"
    path.write_bytes(model.SerializeToString())
    safetensors = (WEIGHTS_DIR / "fast.safetensors").read_bytes()
    path.with_suffix(".safetensors").write_bytes(safetensors)
    monkeypatch.chdir(tmp_path)
    return path


@pytest.mark.parametrize("engine", [name for name in ENGINES if can_run(name)])
def test_every_engine_refuses_them(borrowing: Path, engine: str) -> None:
    config = ModelConfig(name="fast", weights=str(borrowing), restore=0.0)
    with pytest.raises(WeightsError, match="other files"):
        open_engine(engine, EngineConfig(), config, model_spec("fast"))


def test_the_trainer_does_not_judge_them(borrowing: Path) -> None:
    with pytest.raises(WeightsError, match="other files"):
        method_of(str(borrowing))
