"""The model table, folding, weight files and the ONNX graph."""

import hashlib
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from srstream.engines.openvino import import_openvino
from srstream.errors import UsageError, WeightsError
from srstream.models.checkpoint import Weights, load_weights, safetensors_bytes
from srstream.models.networks import (
    EdgeBlock,
    fold,
    network_from_weights,
    network_tensors,
    training_network,
)
from srstream.models.onnx_graph import onnx_model
from srstream.models.table import (
    MODELS,
    WEIGHTS_DIR,
    available_models,
    model_spec,
    plain_convolutions,
    weights_path,
)

SPECS = [*MODELS.values(), plain_convolutions("odd", channels=5, layers=3, scale=2)]


def trained_network(spec):
    """As after training: every branch counts."""
    torch.manual_seed(3)
    network = training_network(spec)
    with torch.no_grad():
        for block in network.convolutions:
            block.edge_scales.normal_(0, 0.3)
            block.plain.bias.normal_(0, 0.1)
    return network


def random_weights(spec=MODELS["fast"]):
    return Weights(spec, network_tensors(fold(trained_network(spec))), "random, for a test")


def in_openvino(model_bytes, lr_BCHW):
    openvino = import_openvino()
    model = openvino.Core().read_model(model_bytes)
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled([lr_BCHW])[0]


def test_the_table_and_the_weight_files_import_no_torch():
    code = (
        "import sys, srstream.models.table, srstream.models.checkpoint\n"
        "assert not {'torch', 'onnx', 'openvino'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_fast_costs_what_the_table_says():
    spec = model_spec("fast")
    assert spec.kmac_per_pixel == pytest.approx(16.272)
    network = fold(training_network(spec))
    num_weights = sum(convolution.weight.numel() for convolution in network.convolutions)
    assert num_weights / 1000 == pytest.approx(spec.kmac_per_pixel)


def test_unknown_models_are_refused_with_the_names_of_the_known():
    with pytest.raises(UsageError, match="fast"):
        model_spec("slow")
    with pytest.raises(WeightsError, match=r"slow.*models with weights: fast"):
        weights_path("slow")


@pytest.mark.parametrize("channels", [(1, 16), (16, 16), (7, 3)])
def test_the_folded_block_equals_its_branches_and_trains_alike(channels):
    block = EdgeBlock(*channels)
    with torch.no_grad():
        block.edge_scales.normal_()
    x = torch.randn(2, channels[0], 13, 11)
    outputs, gradients = [], []
    for forward in (block.forward, block.forward_branches):
        block.zero_grad()
        output = forward(x)
        output.square().mean().backward()
        outputs.append(output.detach())
        gradients.append([parameter.grad.clone() for parameter in block.parameters()])
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    for collapsed, branched in zip(*gradients, strict=True):
        torch.testing.assert_close(collapsed, branched, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_the_folded_network_equals_the_trained_one(spec):
    network = trained_network(spec)
    lr_BCHW = torch.rand(2, 1, 17, 23)
    with torch.no_grad():
        sr_BCHW = network(lr_BCHW)
        torch.testing.assert_close(fold(network)(lr_BCHW), sr_BCHW, rtol=0, atol=1e-5)
    assert sr_BCHW.shape == (2, 1, 17 * spec.scale, 23 * spec.scale)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_the_halo_is_the_receptive_field_radius(spec):
    """One pixel changed: the output changes out to `halo` pixels from it, and no farther."""
    side, middle = 2 * spec.halo + 9, spec.halo + 4
    lr_BCHW = torch.rand(1, 1, side, side, dtype=torch.float64)
    changed = lr_BCHW.clone()
    changed[0, 0, middle, middle] += 100.0
    network = fold(trained_network(spec)).double()
    with torch.no_grad():
        difference = (network(changed) - network(lr_BCHW))[0, 0].abs()
    rows, columns = torch.nonzero(difference, as_tuple=True)
    first, last = middle - spec.halo, middle + spec.halo
    for positions in (rows // spec.scale, columns // spec.scale):
        assert (int(positions.min()), int(positions.max())) == (first, last)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("shape", [(1, 1, 64, 64), (3, 1, 45, 67), (1, 1, 1, 1)])
def test_onnx_in_openvino_equals_pytorch(spec, shape):
    weights = random_weights(spec)
    lr_BCHW = np.random.default_rng(0).random(shape, np.float32)
    expected = network_from_weights(weights)(torch.from_numpy(lr_BCHW)).numpy()
    sr_BCHW = in_openvino(onnx_model(weights).SerializeToString(), lr_BCHW)
    assert np.abs(sr_BCHW - expected).max() < 1e-4


def test_the_onnx_file_says_what_it_is():
    model = onnx_model(random_weights())
    assert {entry.key: entry.value for entry in model.metadata_props} == {
        "model": "fast", "scale": "4", "halo": "8", "colour": "luma",
        "recipe": "random, for a test",
    }  # fmt: skip
    assert [value.name for value in model.graph.input] == ["y"]
    assert [value.name for value in model.graph.output] == ["sr"]


def test_weights_are_the_same_after_saving_and_loading(tmp_path):
    weights = random_weights()
    content = safetensors_bytes(weights)
    assert content == safetensors_bytes(weights)
    path = tmp_path / "fast.safetensors"
    path.write_bytes(content)
    loaded = load_weights(path)
    assert (loaded.spec, loaded.recipe) == (weights.spec, weights.recipe)
    for name, tensor in weights.tensors.items():
        np.testing.assert_array_equal(loaded.tensors[name], tensor)


def test_damaged_and_foreign_weight_files_are_refused(tmp_path):
    path = tmp_path / "fast.safetensors"
    content = safetensors_bytes(random_weights())
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(WeightsError, match="cannot be read"):
        load_weights(path)
    torch.save({"convolutions.0.weight": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match="cannot be read"):
        load_weights(path)
    path.write_bytes(content.replace(b'\\"fast\\"', b'\\"slow\\"'))
    with pytest.raises(WeightsError, match="slow"):
        load_weights(path)


def test_wrong_tensors_are_named():
    weights = random_weights()
    bias = "convolutions.2.bias"

    def with_bias(array):
        return replace(weights, tensors=weights.tensors | {bias: array})

    with pytest.raises(WeightsError, match=bias):
        safetensors_bytes(with_bias(np.zeros(3, np.float32)))
    with pytest.raises(WeightsError, match=f"{bias}.*not finite"):
        safetensors_bytes(with_bias(np.full(16, np.nan, np.float32)))
    with pytest.raises(WeightsError, match="unknown tensors: extra"):
        safetensors_bytes(replace(weights, tensors=weights.tensors | {"extra": np.zeros(1)}))


@pytest.mark.parametrize("name", MODELS)
def test_shipped_files_belong_together(name):
    """Both weight files hold the same network, and the card has their hashes."""
    assert name in available_models()
    weights = load_weights(weights_path(name, ".safetensors"))
    graph = onnx.load(weights_path(name))
    assert {entry.key: entry.value for entry in graph.metadata_props} == weights.metadata()

    lr_BCHW = np.random.default_rng(5).random((1, 1, 40, 56), np.float32)
    expected = network_from_weights(weights)(torch.from_numpy(lr_BCHW)).numpy()
    sr_BCHW = in_openvino(weights_path(name).read_bytes(), lr_BCHW)
    assert np.abs(sr_BCHW - expected).max() < 1e-4

    listed = re.findall(
        r"\| (\S+) \| `([0-9a-f]{64})` \|", (WEIGHTS_DIR / f"{name}.md").read_text()
    )
    assert {file for file, _ in listed} == {
        f"{name}.onnx", f"{name}.safetensors", f"{name}.pictures.txt"
    }  # fmt: skip
    for file, digest in listed:
        assert sha256(WEIGHTS_DIR / file) == digest, file


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
