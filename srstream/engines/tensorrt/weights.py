"""Which tensor of a network each weight of TensorRT's engine is, so that it can take other ones.

torch-tensorrt names the weights after the nodes of a graph that it has lowered, and changes their
shapes. So what they are is found by their values: the network is filled with random numbers and
translated into TensorRT's layers, which takes seconds and builds nothing.
"""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor

from srstream.engines.faults import engine_error
from srstream.engines.tensorrt import build
from srstream.engines.tensorrt.build import exported, import_torch_tensorrt, tensorrt_input
from srstream.errors import EngineError
from srstream.models import flat_correction, flat_network, networks, subpixel_tail
from srstream.models.flat_network import FlatNetwork
from srstream.models.networks import Generator, Network, before_shuffles

NUM_PROBES = 2
"""Fillings with random numbers. What is the same in all of them does not depend on the weights."""


def engine_tensors(network: Network | FlatNetwork) -> dict[str, Tensor]:
    """Return the tensors that an engine of this network holds, by name.

    They are the network's own, but a generator's as it computes with them (`before_shuffles`).
    """
    tensors: dict[str, Tensor] = dict(network.state_dict())
    inner, prefix = (
        (network.network, "network.") if isinstance(network, FlatNetwork) else (network, "")
    )
    if isinstance(inner, Generator):
        tensors |= {prefix + name: value for name, value in before_shuffles(inner).items()}
    return {name: value.detach() for name, value in tensors.items()}


def architecture_sha256(network: Network | FlatNetwork) -> str:
    """Return a hash of everything but the values of its tensors that makes up a network.

    Given the code (`graph_sha256`), that is its model and the shapes of its tensors. The
    correction for flat pictures may be missing or be larger.
    """
    shapes = {name: list(value.shape) for name, value in network.state_dict().items()}
    described = json.dumps([repr(network.spec), shapes], sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()


def graph_sha256() -> str:
    """Return a hash of everything in srstream that determines the graph of given weights.

    It is that of the source code: tracing the graph itself takes seconds for each engine.
    """
    hashed = hashlib.sha256()
    for module in (networks, flat_network, flat_correction, subpixel_tail, build):
        hashed.update(Path(str(module.__file__)).read_bytes())
    hashed.update(Path(__file__).read_bytes())
    return hashed.hexdigest()


def weight_names(network: Network | FlatNetwork, max_side: int) -> dict[str, str | None]:
    """Return the name in `engine_tensors` of each of the engine's weights, by its name there.

    It is None for constants that do not depend on the network's weights.

    Raises:
        EngineError: a weight is none of the tensors, or a tensor is in none of the weights.
    """
    probes = []
    for seed in range(NUM_PROBES):
        probe = _with_random_weights(network, seed)
        try:
            weights = _weights_in_layers(probe, max_side)
        except Exception as error:  # torch-tensorrt raises any exception of its layers
            raise engine_error("its weights cannot be listed", error) from error
        probes.append((weights, engine_tensors(probe)))
    (first, tensors), *_ = probes
    names = {name: _source(name, probes) for name in first}
    if unused := sorted(tensors.keys() - names.values()):
        raise EngineError(f"tensors of the network are not in the engine: {', '.join(unused)}")
    return names


def _with_random_weights(network: Network | FlatNetwork, seed: int) -> Network | FlatNetwork:
    """Return a copy of a network in half precision whose tensors hold random numbers."""
    probe = copy.deepcopy(network).half()
    numbers = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in probe.state_dict().values():
            value.copy_(torch.randn(value.shape, generator=numbers))
    return probe


def _weights_in_layers(network: Network | FlatNetwork, max_side: int) -> dict[str, Tensor]:
    """Translate a network into TensorRT's layers as a build does; return their weights by name."""
    import_torch_tensorrt()
    from torch_tensorrt.dynamo import CompilationSettings
    from torch_tensorrt.dynamo._refit import construct_refit_mapping
    from torch_tensorrt.dynamo.lowering import (
        get_decompositions,
        post_lowering,
        pre_export_lowering,
    )

    settings = CompilationSettings(immutable_weights=False, require_full_compilation=True)
    program = pre_export_lowering(exported(network, max_side), settings).run_decompositions(
        get_decompositions(
            settings.enable_experimental_decompositions,
            settings.decompose_attention,
            settings.use_distributed_mode_trace,
        )
    )
    graph = post_lowering(program.module(), settings)
    weights = construct_refit_mapping(graph, [tensorrt_input(network, max_side)], settings)
    return {name: value.detach().cpu().clone() for name, value in weights.items()}


def _source(name: str, probes: list[tuple[dict[str, Tensor], dict[str, Tensor]]]) -> str | None:
    """Return the name of the tensor that a weight is in all probes; None for a constant."""
    sources = [
        source
        for source in probes[0][1]
        if all(_are_equal(weights[name], tensors[source]) for weights, tensors in probes)
    ]
    if len(sources) == 1:
        return sources[0]
    first = probes[0][0][name]
    if sources or not all(torch.equal(first, weights[name]) for weights, _ in probes):
        raise EngineError(f"the engine's weight {name!r} is none of the network's tensors")
    return None


def _are_equal(weight: Tensor, tensor: Tensor) -> bool:
    """Return whether two tensors hold the same numbers in the same order, in whatever shape."""
    return weight.dtype == tensor.dtype and torch.equal(weight.flatten(), tensor.cpu().flatten())
