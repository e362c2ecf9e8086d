"""Measures the ranges of a network's activations on pictures, for 8-bit integer inference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from srstream.engines.openvino.int8 import Ranges, ranges_json, ranges_path
from srstream.errors import UsageError
from srstream.models.checkpoint import load_weights
from srstream.models.networks import Network, UpscalingStack, network_from_weights
from trainer.data.degrade import downscale
from trainer.data.pairs import find_pictures, read_rgb
from trainer.data.planes import Picture
from trainer.judge.evaluate import LowResolution
from trainer.state import write_atomically

NUM_PICTURES = 32
CROP = 512
"""Side of the crops, in pixels of the originals; 128 in low resolution."""


def calibrate(weights: Path, data_dir: Path) -> Path:
    """Write the ranges file next to `STEM.safetensors` and `STEM.onnx`; return its path.

    Raises:
        UsageError: there is no `.onnx` file, or the model does not run in 8 bits.
        WeightsError: the weights cannot be read.
    """
    graph = weights.with_suffix(".onnx")
    if not graph.is_file():
        raise UsageError(f"{graph} does not exist; export the weights first")
    pictures = sample_pictures(find_pictures(data_dir))
    network = network_from_weights(load_weights(weights.with_suffix(".safetensors")))
    content = ranges_json(graph.read_bytes(), activation_ranges(network, pictures), len(pictures))
    path = ranges_path(weights)
    write_atomically(path, content.encode())
    return path


def sample_pictures(paths: Sequence[Path]) -> list[Picture]:
    """Return the middles of up to `NUM_PICTURES` pictures, spread over all of them."""
    step = max(1, -(-len(paths) // NUM_PICTURES))
    return [_middle(read_rgb(path)) for path in paths[::step]]


def activation_ranges(network: Network, pictures: Sequence[Picture]) -> Ranges:
    """Return the smallest and the largest input of each convolution but the first.

    Raises:
        UsageError: the network is not a stack of convolutions.
    """
    if not isinstance(network, UpscalingStack):
        raise UsageError(f"{network.spec.name} does not run in 8 bits; fast and balanced do")
    ranges: Ranges = {}

    def watch(name: str) -> Any:
        def see(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            low, high = (float(n) for n in inputs[0].aminmax())
            before = ranges.get(name, (0.0, 0.0))
            ranges[name] = min(before[0], low), max(before[1], high)

        return see

    hooks = [
        convolution.register_forward_pre_hook(watch(f"convolutions.{layer}"))
        for layer, convolution in enumerate(network.convolutions)
        if layer
    ]
    with torch.inference_mode():
        for rgb_HW3 in pictures:
            lr = LowResolution.of_picture(downscale(rgb_HW3, network.spec.scale))
            network(torch.from_numpy(lr.input_of(network.spec.color_form)))
    for hook in hooks:
        hook.remove()
    return ranges


def _middle(rgb_HW3: Picture) -> Picture:
    height, width = (min(side, CROP) // 8 * 8 for side in rgb_HW3.shape[:2])
    top, left = (rgb_HW3.shape[0] - height) // 2, (rgb_HW3.shape[1] - width) // 2
    return rgb_HW3[top : top + height, left : left + width]
