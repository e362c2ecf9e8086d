"""Shipped weights: `.safetensors`, arrays and a header that says where they come from.

Tensors are those of the folded network, float32: `convolutions.N.weight` (out, in, 3, 3),
`convolutions.N.bias` (out,) and `activations.N.weight` (channels,), N from 0. Neither PyTorch nor
a pickle is involved.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from srstream.errors import WeightsError
from srstream.models.table import MODELS, ModelSpec

Tensors = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Weights:
    """A folded network's tensors and the model they belong to."""

    spec: ModelSpec
    tensors: Tensors
    recipe: str
    """How they were made, in one line."""

    def metadata(self) -> dict[str, str]:
        """What every weight file says of itself, as text."""
        return {
            "model": self.spec.name,
            "scale": str(self.spec.scale),
            "halo": str(self.spec.halo),
            "colour": self.spec.colour,
            "recipe": self.recipe,
        }


def expected_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the folded network."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, (num_in, num_out) in enumerate(spec.layer_channels()):
        shapes[f"convolutions.{layer}.weight"] = (num_out, num_in, 3, 3)
        shapes[f"convolutions.{layer}.bias"] = (num_out,)
        if layer < spec.layers - 1:
            shapes[f"activations.{layer}.weight"] = (num_out,)
    return shapes


def check_tensors(spec: ModelSpec, tensors: Tensors, origin: str) -> None:
    """`WeightsError` unless these are finite float32 tensors of exactly this model's shapes."""
    expected = expected_shapes(spec)
    if odd := sorted(expected.keys() ^ tensors.keys()):
        raise WeightsError(
            f"{origin}: not the weights of {spec.name!r}: missing or unknown tensors: "
            + ", ".join(odd)
        )
    for name, shape in expected.items():
        tensor = tensors[name]
        if tensor.shape != shape or tensor.dtype != np.float32:
            raise WeightsError(
                f"{origin}: tensor {name} is {tensor.dtype} {tensor.shape}, "
                f"but {spec.name!r} needs float32 {shape}"
            )
        if not np.isfinite(tensor).all():
            raise WeightsError(f"{origin}: tensor {name} holds values that are not finite")


def safetensors_bytes(weights: Weights) -> bytes:
    """The content of a `.safetensors` file."""
    check_tensors(weights.spec, weights.tensors, "weights to save")
    contiguous = {name: np.ascontiguousarray(array) for name, array in weights.tensors.items()}
    # One key only: safetensors writes several in an order that differs from run to run.
    return save(contiguous, {"srstream": json.dumps(weights.metadata())})


def load_weights(path: Path) -> Weights:
    """Reads and checks a `.safetensors` file of folded weights, or raises `WeightsError`."""
    try:
        with safe_open(path, framework="np") as file:
            metadata = json.loads((file.metadata() or {}).get("srstream", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read as safetensors weights: {error}") from error
    name = metadata.get("model") if isinstance(metadata, dict) else None
    if name not in MODELS:
        raise WeightsError(
            f"{path}: says it belongs to model {name!r}; there are: {', '.join(MODELS)}"
        )
    check_tensors(MODELS[name], tensors, str(path))
    return Weights(MODELS[name], tensors, str(metadata.get("recipe", "")))
