"""The network that a config asks for: a model that ships, or a baseline."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import nn

from srstream.errors import ConfigError
from srstream.models.checkpoint import Weights, count_blocks, load_weights, safetensors_bytes
from srstream.models.networks import (
    Generator,
    UpscalingStack,
    fold,
    network_tensors,
    network_to_tune,
)
from srstream.models.networks import training_network as model_network
from srstream.models.table import (
    ColorForm,
    ColorFormName,
    ModelSpec,
    ResidualGenerator,
    Stack,
    model_spec,
)
from trainer.config import NetworkSection, TrainConfig
from trainer.research import BASELINES, research_module

FLAT_SUM = 1e-6
"""The float32 error of nine taps that add up to zero; other weights add up to about 0.01."""


class ResearchSpec(Protocol):
    """What training needs from the specification of a network that no engine runs."""

    @property
    def name(self) -> str: ...
    @property
    def color_form(self) -> ColorFormName: ...
    @property
    def form(self) -> ColorForm: ...
    @property
    def scale(self) -> int: ...
    @property
    def kmac_per_pixel(self) -> float: ...


class ResearchNetwork(nn.Module):
    """A network that is trained and measured but that no engine runs; see `research/`."""

    spec: ResearchSpec

    def folded(self) -> ResearchNetwork:
        """Return a copy in the form in which it is measured."""
        raise NotImplementedError

    def weights_bytes(self, recipe: str) -> bytes:
        """Return the contents of a `.safetensors` file that records how the weights were made."""
        raise NotImplementedError


TrainedNetwork = UpscalingStack | Generator | ResearchNetwork
TrainedSpec = ModelSpec | ResearchSpec


def spec_of(config: TrainConfig) -> TrainedSpec:
    """Return the model's entry in its table, with the changes in the config's [network]."""
    if config.model in BASELINES:
        spec: ResearchSpec = research_module("baselines", config.model).BASELINES[config.model]
        return spec
    entry = model_spec(config.model)
    changes = config.network.model_dump(
        exclude_none=True, exclude={"batch_norm", "thin_tail", "flat"}
    )
    color_form = changes.pop("colour", entry.color_form)
    try:
        return replace(entry, color_form=color_form, network=replace(entry.network, **changes))
    except TypeError:
        raise ConfigError(
            f"[network] {', '.join(changes)}: the network of {entry.name!r} has no such setting"
        ) from None


def new_network(
    spec: TrainedSpec, base: Weights | None = None, section: NetworkSection | None = None
) -> TrainedNetwork:
    """Return a network to train: new, or initialized from folded weights of the same shape."""
    section = section or NetworkSection()
    if not isinstance(spec, ModelSpec):
        if base is not None:
            raise ConfigError(f"{spec.name}: a baseline is trained from the start, without --base")
        baseline: ResearchNetwork = research_module("baselines", spec.name).baseline_network(
            spec.name
        )
        return baseline
    if base is not None and base.spec != spec:
        raise ConfigError(f"--base holds weights of {base.spec.name!r}, not of {spec.name!r}")
    if section.flat and not isinstance(spec.network, Stack):
        raise ConfigError(
            f"[network] flat: {spec.name!r} has no anchor to carry a flat input to the output"
        )
    network = (
        model_network(spec, batch_norm=section.batch_norm, flat=section.flat)
        if base is None
        else network_to_tune(base, flat=section.flat)
    )
    if not section.thin_tail:
        return network
    if not isinstance(network, Generator):
        raise ConfigError(f"[network] thin_tail: {spec.name!r} has no tail to be replaced")
    thin: ResearchNetwork = research_module("thin_tail", "[network] thin_tail").ThinTailed(network)
    return thin


def saved_network(
    spec: TrainedSpec, section: NetworkSection, names: Iterable[str]
) -> TrainedNetwork:
    """Return a network that fits a checkpoint's tensors, given their names.

    A run that started from folded weights has no BN, whatever its config says.
    """
    has_norms = any("_norm." in name for name in names)
    return new_network(spec, section=section.model_copy(update={"batch_norm": has_norms}))


def load_base(path: Path, spec: TrainedSpec) -> Weights:
    """Load weights to start from; a generator of fewer blocks than `spec`'s is grown to match.

    Raises:
        WeightsError: the file holds no such weights.
    """
    if not isinstance(spec, ModelSpec) or not isinstance(spec.network, ResidualGenerator):
        return load_weights(path)
    num_blocks = min(count_blocks(path), spec.network.num_blocks)
    smaller = replace(spec, network=replace(spec.network, num_blocks=num_blocks))
    return grown(load_weights(path, smaller), spec.network.num_blocks)


def grown(weights: Weights, num_blocks: int) -> Weights:
    """Add residual blocks without changing the output: the new ones come last and add nothing yet.

    A new block's first convolution is drawn at random, its second is zero (Net2Net's identity: Chen
    et al., ICLR 2016).
    """
    network = weights.spec.network
    assert isinstance(network, ResidualGenerator)
    if network.num_blocks == num_blocks:
        return weights
    spec = replace(weights.spec, network=replace(network, num_blocks=num_blocks))
    fresh = network_tensors(fold(model_network(spec, batch_norm=False)))
    for block in range(network.num_blocks, num_blocks):
        for name in ("weight", "bias"):
            fresh[f"blocks.{block}.second.{name}"][:] = 0
    recipe = f"{weights.recipe}; grown from {network.num_blocks} to {num_blocks} blocks"
    return Weights(spec, {**fresh, **weights.tensors}, recipe)


def is_flat(weights: Weights) -> bool:
    """Return whether these weights keep flat input flat by construction: see `UpscalingStack`."""
    network = weights.spec.network
    if not isinstance(network, Stack):
        return False
    last = f"convolutions.{len(network.widths)}"
    kernel, bias = (weights.tensors[f"{last}.{name}"] for name in ("weight", "bias"))
    return bool(np.abs(kernel.sum(axis=(2, 3))).max() < FLAT_SUM and not bias.any())


def folded(network: TrainedNetwork) -> TrainedNetwork:
    """Return the network as it is exported and measured; the one in training stays unchanged."""
    if isinstance(network, UpscalingStack | Generator):
        return fold(network)
    return network.folded()


def weights_bytes(network: TrainedNetwork, recipe: str) -> bytes:
    """Return a folded network as a `.safetensors` file that records how it was made."""
    if isinstance(network, ResearchNetwork):
        return network.weights_bytes(recipe)
    weights = Weights(network.spec, network_tensors(network), recipe)
    is_large = isinstance(network, Generator)  # its 1.5 million weights ship as float16
    return safetensors_bytes(weights, half=is_large)
