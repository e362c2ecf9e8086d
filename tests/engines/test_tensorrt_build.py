"""Real TensorRT engines of all models, built but not run without a GPU (`make test-tensorrt`).

torch-tensorrt-rtx builds them, which has the same front end and installs without a driver.
"""

from __future__ import annotations

import pytest
import torch

from srstream.config import ModelConfig
from srstream.engines.cache import EngineCache
from srstream.engines.tensorrt import weights
from srstream.engines.tensorrt.build import build_engine, exported, tensorrt_input, versions
from srstream.engines.tensorrt.engine import SIDES
from srstream.engines.tensorrt.weights import architecture_sha256, engine_tensors, weight_names
from srstream.errors import EngineError
from srstream.models.blend import blend_of
from srstream.models.flat_network import blended_network
from srstream.models.networks import fold, training_network
from srstream.models.table import MODELS
from tests.support import tensorrt_shim

pytestmark = pytest.mark.needs_tensorrt


@pytest.fixture(scope="module", autouse=True)
def torch_tensorrt():
    tensorrt_shim.install()
    import torch_tensorrt

    return torch_tensorrt


NUM_CONVOLUTIONS = {"fast": 8, "balanced": 8, "srgan": 37}


def network(name):
    torch.manual_seed(0)
    return fold(training_network(MODELS[name]))


@pytest.mark.parametrize("name", MODELS)
def test_every_operator_is_tensorrts_in_one_engine(name, tmp_path, torch_tensorrt):
    report = tmp_path / "dryrun.txt"
    half = network(name)
    torch_tensorrt.dynamo.compile(
        exported(half, SIDES[0]),
        arg_inputs=[tensorrt_input(half, SIDES[0])],
        require_full_compilation=True,
        dryrun=str(report),
    )
    text = report.read_text()
    assert "100.0% coverage" in text
    assert text.count("TRT Engine #") == 1


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("side", [SIDES[0], SIDES[-1]])
def test_an_engine_is_built_in_half_precision(name, side, tmp_path):
    engine = build_engine(network(name), side, tmp_path)
    assert len(engine) > 100_000
    assert tensorrt_shim.SEEN["convolutions"] == {"HALF": NUM_CONVOLUTIONS[name]}


def test_a_network_in_float32_would_be_noticed(torch_tensorrt):
    """torch-tensorrt builds float32 from a module that is not half, whatever it is asked for."""
    single = network("fast")
    torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine(
        torch.export.export(single, (torch.zeros(1, 1, 24, 40),)),
        arg_inputs=[torch_tensorrt.Input(shape=(1, 1, 24, 40), dtype=torch.float32)],
        enabled_precisions={torch.float16},
        require_full_compilation=True,
    )
    assert tensorrt_shim.SEEN["convolutions"] == {"FLOAT": 8}


def test_what_tensorrt_does_not_take_is_one_sentence(tmp_path):
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.spec = MODELS["fast"]
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return torch.special.i0(x.float()).half() + self.weight

    with pytest.raises(EngineError, match="TensorRT cannot build 'fast'") as caught:
        build_engine(Odd(), SIDES[-1], tmp_path)
    assert "\n" not in str(caught.value)


def test_a_built_engine_is_kept_under_the_versions_that_built_it(tmp_path):
    cache = EngineCache(tmp_path)
    key = {"model": "fast", "max_side": SIDES[-1], **versions()}
    assert all(versions()[name][0].isdigit() for name in ("torch", "torch_tensorrt", "tensorrt"))
    first = cache.get(key, lambda: build_engine(network("fast"), SIDES[-1], tmp_path))

    def never():
        raise AssertionError("built twice")

    assert cache.get(key, never) == first


# --- other weights in an engine that is there ----------------------------------------------------

NUM_ACTIVATIONS = {"fast": 7, "balanced": 7, "srgan": 19}
NUM_CORRECTING = {"fast": 2 * 2 + 1, "balanced": 8 * 2 + 7, "srgan": 39 * 2 + 19}
"""Tensors of the correction for flat pictures: two for each sum, one for each activation."""


def blend(name, restore):
    spec = MODELS[name]
    return blended_network(blend_of(ModelConfig(name=name, restore=restore), spec), spec).half()


@pytest.mark.parametrize("name", MODELS)
def test_each_tensor_is_found_in_the_layers_of_another_blend(name):
    """The names are found with random numbers, and hold for weights that were not looked at."""
    names = weight_names(blend(name, 0.25), SIDES[0])
    tensors = engine_tensors(blend(name, 0.75))
    assert architecture_sha256(blend(name, 0.25)) == architecture_sha256(blend(name, 0.75))
    found = {source for source in names.values() if source is not None}
    assert found == tensors.keys()
    assert len(found) == (2 * NUM_CONVOLUTIONS[name] + NUM_ACTIVATIONS[name] + NUM_CORRECTING[name])
    layers = weights._weights_in_layers(blend(name, 0.75), SIDES[0])
    assert layers.keys() == names.keys()
    for weight, source in names.items():
        if source is None:
            assert layers[weight].dtype != torch.float16 or layers[weight].numel() == 1
        else:
            assert torch.equal(layers[weight].flatten(), tensors[source].flatten())


def test_a_tensor_that_is_computed_with_is_not_taken_for_a_weight(monkeypatch):
    """Such an engine would keep the old product."""
    network = blend("fast", 0.0)
    forward = type(network).forward

    def scaled(self, lr):
        return tuple(plane * self.activations[0].weight.sum() for plane in forward(self, lr))

    monkeypatch.setattr(type(network), "forward", scaled)
    with pytest.raises(EngineError, match="none of the network's tensors"):
        weight_names(network, SIDES[-1])


class StopHereError(Exception):
    """The engine's settings are known."""


@pytest.mark.parametrize("refittable", [False, True])
def test_an_engine_is_asked_to_be_refittable(refittable, tmp_path, monkeypatch):
    """RTX's builder cannot go on from here: it compiles such engines on the device."""
    import tensorrt
    from torch_tensorrt.dynamo.conversion._TRTInterpreter import TRTInterpreter

    configure, flags = TRTInterpreter._populate_trt_builder_config, []

    def and_stop(self, *given):
        config = configure(self, *given)
        flags.append(config.get_flag(tensorrt.BuilderFlag.REFIT))
        raise StopHereError

    monkeypatch.setattr(TRTInterpreter, "_populate_trt_builder_config", and_stop)
    with pytest.raises(EngineError):
        build_engine(blend("fast", 0.5), SIDES[-1], tmp_path, refittable=refittable)
    assert flags == [refittable]
