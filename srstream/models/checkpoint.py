"""Weight files, `.safetensors`: a network's tensors, and a header that says how they were made.

The tensors are those of the folded network, under the names of its PyTorch module: convolutions
(out, in, k, k) with a bias (out,), and PReLU slopes (channels,). They are float32 in memory; a file
may store them as float16. Reading them needs neither PyTorch nor pickles.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from srstream.errors import WeightsError
from srstream.models.blend import Blend
from srstream.models.table import MODELS, ModelSpec, ResidualGenerator, Stack

Tensors = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Weights:
    """The tensors of a folded network, and its model."""

    spec: ModelSpec
    tensors: Tensors
    recipe: str
    """How the weights were made, in one line."""

    def metadata(self) -> dict[str, str]:
        """The metadata of every weight file, as text."""
        stated = {
            "model": self.spec.name,
            "scale": str(self.spec.scale),
            "halo": str(self.spec.halo),
            "colour": self.spec.color_form,
            "recipe": self.recipe,
        }
        if isinstance(self.spec.network, ResidualGenerator):
            stated["signed_input"] = str(self.spec.network.signed_input).lower()
        return stated


def expected_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the folded network's tensors by name."""
    if isinstance(spec.network, Stack):
        return _stack_shapes(spec, spec.network)
    return _generator_shapes(spec, spec.network)


def _stack_shapes(spec: ModelSpec, network: Stack) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, (num_in, num_out) in enumerate(network.layer_channels(spec.form)):
        shapes |= _convolution_shapes(f"convolutions.{layer}", num_in, num_out)
        if layer < len(network.widths):
            shapes[f"activations.{layer}.weight"] = (num_out,)
    return shapes


def _generator_shapes(spec: ModelSpec, network: ResidualGenerator) -> dict[str, tuple[int, ...]]:
    wide, num_planes = network.channels, spec.form.num_input_planes
    shapes = _convolution_shapes("head", num_planes, wide, side=9)
    shapes["head_activation.weight"] = (wide,)
    for block in range(network.num_blocks):
        shapes |= _convolution_shapes(f"blocks.{block}.first", wide, wide)
        shapes[f"blocks.{block}.activation.weight"] = (wide,)
        shapes |= _convolution_shapes(f"blocks.{block}.second", wide, wide)
    shapes |= _convolution_shapes("body", wide, wide)
    for step in range(2):
        shapes |= _convolution_shapes(f"upsampling.{step}", wide, 4 * wide)
        shapes[f"upsampling_activations.{step}.weight"] = (wide,)
    return shapes | _convolution_shapes("tail", wide, num_planes, side=9)


def _convolution_shapes(
    name: str, num_in: int, num_out: int, *, side: int = 3
) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (num_out, num_in, side, side), f"{name}.bias": (num_out,)}


def check_tensors(spec: ModelSpec, tensors: Tensors, origin: str) -> None:
    """Raise `WeightsError` unless the tensors are finite float32 of exactly the model's shapes."""
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


def safetensors_bytes(weights: Weights, *, half: bool = False) -> bytes:
    """Return the content of a `.safetensors` file; with `half` it stores float16."""
    check_tensors(weights.spec, weights.tensors, "weights to save")
    dtype = np.float16 if half else np.float32
    contiguous = {
        name: np.ascontiguousarray(array, dtype) for name, array in weights.tensors.items()
    }
    # One key only: safetensors writes several in an order that differs from run to run.
    return save(contiguous, {"srstream": json.dumps(weights.metadata())})


def count_blocks(path: Path) -> int:
    """Count the residual blocks in a generator's `.safetensors` file.

    Raises:
        WeightsError: the file cannot be read.
    """
    try:
        with safe_open(path, framework="np") as file:
            names = list(file.keys())
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: cannot be read as safetensors weights: {error}") from error
    return len({name.split(".")[1] for name in names if name.startswith("blocks.")})


def load_weights(path: Path, expected: ModelSpec | None = None) -> Weights:
    """Read and check a `.safetensors` file of folded weights.

    The weights must belong to the `expected` network, or to any network of the model table if that
    is None.

    Raises:
        WeightsError: the file cannot be read, or the weights belong to another network.
    """
    try:
        with safe_open(path, framework="np") as file:
            metadata = json.loads((file.metadata() or {}).get("srstream", "{}"))
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read as safetensors weights: {error}") from error
    name = metadata.get("model") if isinstance(metadata, dict) else None
    known = MODELS if expected is None else {expected.name: expected}
    if name not in known:
        raise WeightsError(
            f"{path}: says it belongs to model {name!r}, not to {' or '.join(known)}"
        )
    spec = known[name]
    if isinstance(spec.network, ResidualGenerator):
        signed = metadata.get("signed_input") != "false"
        spec = replace(spec, network=replace(spec.network, signed_input=signed))
    tensors = {
        key: array.astype(np.float32) if array.dtype == np.float16 else array
        for key, array in stored.items()
    }
    check_tensors(spec, tensors, str(path))
    return Weights(spec, tensors, str(metadata.get("recipe", "")))


def blended_weights(blend: Blend, spec: ModelSpec) -> Weights:
    """Blend folded weights from the `.safetensors` files next to the blend's `.onnx` files.

    Raises:
        WeightsError: the weights are missing, cannot be read, or belong to another model.
    """
    parts = [
        (load_weights(file.path.with_suffix(".safetensors"), spec), file.share)
        for file in blend.files
    ]
    first = parts[0][0]
    tensors = {
        name: sum((share * w.tensors[name] for w, share in parts), np.zeros((), np.float32))
        for name in first.tensors
    }
    return Weights(first.spec, tensors, first.recipe)
