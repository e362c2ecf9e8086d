"""Finds the upscaling method that a user names: a model, run, weight file or baseline."""

from __future__ import annotations

from pathlib import Path

from srstream.config import ModelConfig, Precision
from srstream.engines.openvino.graph import engine_network
from srstream.engines.openvino.int8 import ranges_of
from srstream.engines.openvino.library import openvino_core
from srstream.errors import UsageError
from srstream.models.blend import blend_of
from srstream.models.checkpoint import Weights, load_weights
from srstream.models.networks import network_from_weights
from srstream.models.onnx_file import check_self_contained
from srstream.models.onnx_graph import onnx_metadata
from srstream.models.table import MODELS, ModelSpec, model_spec, weights_path
from trainer.data.degrade import SCALE
from trainer.judge.comparison import Method
from trainer.judge.evaluate import (
    bicubic_upscaler,
    model_upscaler,
    network_upscaler,
    softened_upscaler,
)
from trainer.research import research_module
from trainer.ship.export import compiled_planes, load_run, openvino_planes

BICUBIC = "bicubic"


def method_of(
    name: str,
    *,
    restore: float = 0.0,
    strength: float = 1.0,
    detail: float = 0.0,
    precision: Precision = "float32",
) -> Method:
    """Return the method for `bicubic`, a model's name, a run's folder or a file.

    Files are `.onnx`, `.safetensors` or `.npz`. The knobs mix the sets of weights that ship with a
    model; `strength` scales what the model adds to bicubic.

    Raises:
        UsageError, WeightsError: nothing has this name, or it is not a method.
    """
    path = Path(name)
    if name == BICUBIC:
        return Method(BICUBIC, bicubic_upscaler(SCALE))
    if name in MODELS:
        return _shipped(model_spec(name), restore, strength, detail, precision)
    if path.is_dir():
        run = load_run(path)
        spec = run.network.spec
        count = sum(tensor.numel() for tensor in run.network.parameters())
        upscale = network_upscaler(run.network)
        return Method(path.name, upscale, count, spec.kmac_per_pixel, run.recipe())
    if not path.is_file():
        raise UsageError(
            f"{name}: neither a model ({', '.join(MODELS)}), nor {BICUBIC}, nor a run's folder, "
            "nor a file of weights"
        )
    if path.suffix == ".npz":
        research = research_module("sparse", name)
        dictionaries = research.load_dictionaries(path)
        upscale = research.sparse_upscaler(dictionaries)
        return Method(path.stem, upscale, dictionaries.num_parameters, None, dictionaries.recipe)
    if path.suffix == ".onnx":
        content = path.read_bytes()
        check_self_contained(content, name)
        stated = onnx_metadata(content, name)
        spec = model_spec(stated["model"])
        upscale = model_upscaler(openvino_planes(content), spec)
        return Method(path.stem, upscale, None, spec.kmac_per_pixel, stated["recipe"])
    return _of_weights(path.stem, load_weights(path))


def _shipped(
    spec: ModelSpec, restore: float, strength: float, detail: float, precision: Precision
) -> Method:
    blend = blend_of(ModelConfig(name=spec.name, restore=restore, detail=detail), spec)
    core = openvino_core()
    ranges = ranges_of(blend) if precision == "int8" else None
    network = engine_network(core, blend, spec, ranges)
    upscale = model_upscaler(compiled_planes(core, network, precision), spec)
    if strength < 1.0:
        upscale = softened_upscaler(upscale, strength, SCALE)
    knobs = {"restore": restore, "detail": detail}
    turned = "".join(f" {knob} {value:g}" for knob, value in knobs.items() if value)
    turned += "" if strength == 1.0 else f" strength {strength:g}"
    turned += "" if precision == "float32" else f" {precision}"
    weights = load_weights(weights_path(spec.name, ".safetensors"))
    return Method(spec.name + turned, upscale, _size(weights), spec.kmac_per_pixel, weights.recipe)


def _of_weights(name: str, weights: Weights) -> Method:
    upscale = network_upscaler(network_from_weights(weights))
    spec = weights.spec
    return Method(name, upscale, _size(weights), spec.kmac_per_pixel, weights.recipe)


def _size(weights: Weights) -> int:
    return sum(tensor.size for tensor in weights.tensors.values())
