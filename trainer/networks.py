"""Which network a config asks for: one of the models that ship, or one of the baselines."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

from safetensors.torch import save

from srstream.errors import ConfigError
from srstream.models.checkpoint import Weights, safetensors_bytes
from srstream.models.networks import (
    Generator,
    UpscalingStack,
    fold,
    network_tensors,
    network_to_tune,
)
from srstream.models.networks import training_network as model_network
from srstream.models.table import ModelSpec, model_spec
from trainer.baselines import BASELINES, BaselineNetwork, BaselineSpec, baseline_network
from trainer.config import TrainConfig

TrainedNetwork = UpscalingStack | Generator | BaselineNetwork
TrainedSpec = ModelSpec | BaselineSpec


def spec_of(config: TrainConfig) -> TrainedSpec:
    """The model's entry in its table, with what the config's [network] changes of it."""
    if config.model in BASELINES:
        return BASELINES[config.model]
    spec = model_spec(config.model)
    changes = config.network.model_dump(exclude_none=True, exclude={"batch_norm"})
    colour = changes.pop("colour", spec.colour)
    try:
        return replace(spec, colour=colour, network=replace(spec.network, **changes))
    except TypeError:
        raise ConfigError(
            f"[network] {', '.join(changes)}: the network of {spec.name!r} has no such setting"
        ) from None


def new_network(
    spec: TrainedSpec, base: Weights | None = None, *, batch_norm: bool = True
) -> TrainedNetwork:
    """A network to train: new, or going on from folded weights of the same shape."""
    if isinstance(spec, BaselineSpec):
        if base is not None:
            raise ConfigError(f"{spec.name}: a baseline is trained from the start, without --base")
        return baseline_network(spec.name)
    if base is None:
        return model_network(spec, batch_norm=batch_norm)
    if base.spec != spec:
        raise ConfigError(f"--base holds weights of {base.spec.name!r}, not of {spec.name!r}")
    return network_to_tune(base)


def folded(network: TrainedNetwork) -> TrainedNetwork:
    """The network as it is exported and measured; the one in training is left alone."""
    if isinstance(network, UpscalingStack | Generator):
        return fold(network)
    return copy.deepcopy(network).eval()


def weights_bytes(network: TrainedNetwork, recipe: str) -> bytes:
    """A folded network as a `.safetensors` file that says how it was made."""
    if isinstance(network, UpscalingStack | Generator):
        weights = Weights(network.spec, network_tensors(network), recipe)
        is_large = isinstance(network, Generator)  # its 1.5 million weights ship as float16
        return safetensors_bytes(weights, half=is_large)
    stated = {"model": network.spec.name, "recipe": recipe}
    tensors = {name: value.contiguous() for name, value in network.state_dict().items()}
    return save(tensors, {"srstream": json.dumps(stated)})
