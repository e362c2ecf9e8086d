"""The model table, folding, weight files and the ONNX graph."""

import hashlib
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional

from srstream.engines.openvino.library import openvino_core
from srstream.errors import UsageError, WeightsError
from srstream.models.checkpoint import Weights, load_weights, safetensors_bytes
from srstream.models.networks import (
    EdgeBlock,
    fold,
    network_from_weights,
    network_tensors,
    network_to_tune,
    training_network,
)
from srstream.models.onnx_graph import onnx_model
from srstream.models.table import (
    MODELS,
    WEIGHTS_DIR,
    ModelSpec,
    ResidualGenerator,
    Stack,
    available_models,
    available_sets,
    model_spec,
    weights_path,
    weights_stem,
)

SPECS = [
    MODELS["fast"],
    MODELS["balanced"],
    ModelSpec("odd", "luma", Stack((5, 7))),
    ModelSpec("three_planes", "rgb", Stack((6, 9, 4))),
    ModelSpec("small_srgan", "rgb", ResidualGenerator(channels=6, num_blocks=2)),
    ModelSpec("paper_srgan", "rgb", ResidualGenerator(4, num_blocks=1, signed_input=False)),
]
SHIPPED = [(name, weight_set) for name in available_models() for weight_set in available_sets(name)]


def random_input(spec, height, width, batch=1, dtype=np.float32):
    shape = (batch, spec.form.num_input_planes, height, width)
    return np.random.default_rng(0).random(shape).astype(dtype)


def trained_network(spec):
    """A network as after training, in which every branch and every statistic matters."""
    torch.manual_seed(3)
    network = training_network(spec)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, EdgeBlock):
                module.edge_scales.normal_(0, 0.3)
                module.plain.bias.normal_(0, 0.1)
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2.0)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
    return network.eval()


def random_weights(spec=MODELS["fast"]):
    return Weights(spec, network_tensors(fold(trained_network(spec))), "random, for a test")


def in_openvino(model_bytes, lr_BCHW):
    core = openvino_core()
    model = core.read_model(model_bytes)
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    results = compiled([lr_BCHW])
    return [results[index] for index in range(len(compiled.outputs))]


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


def branch_by_branch(block, x_BCHW):
    """An `EdgeBlock` as its paper draws it, without `zero_sum`."""
    padded = functional.pad(x_BCHW, (1, 1, 1, 1))
    total = block.plain(padded) + block.squeeze(block.expand(padded))
    for points, scales, mask in zip(
        block.edge_points, block.edge_scales, block.edge_masks, strict=True
    ):
        pointwise = functional.conv2d(padded, points[:, :, None, None])
        depthwise = scales[:, None, None, None] * mask
        total = total + functional.conv2d(pointwise, depthwise, groups=len(scales))
    return total


@pytest.mark.parametrize("channels", [(1, 16), (16, 16), (7, 3)])
def test_the_folded_block_equals_its_branches_and_trains_alike(channels):
    block = EdgeBlock(*channels)
    with torch.no_grad():
        block.edge_scales.normal_()
    x = torch.randn(2, channels[0], 13, 11)
    outputs, gradients = [], []
    for forward in (block.forward, partial(branch_by_branch, block)):
        block.zero_grad()
        output = forward(x)
        output.square().mean().backward()
        outputs.append(output.detach())
        gradients.append([parameter.grad.clone() for parameter in block.parameters()])
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    for collapsed, branched in zip(*gradients, strict=True):
        torch.testing.assert_close(collapsed, branched, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (5, 4), (17, 23)])
def test_the_generator_equals_its_drawing_and_trains_alike(size):
    network = trained_network(SPECS[-2]).double()
    lr_BCHW = torch.rand(2, 3, *size, dtype=torch.double)
    outputs, gradients = [], []
    for forward in (network.forward, network.forward_as_drawn):
        network.zero_grad()
        (output,) = forward(lr_BCHW)
        output.square().mean().backward()
        outputs.append(output.detach())
        gradients.append([parameter.grad.clone() for parameter in network.parameters()])
    assert outputs[0].shape == (2, 3, 4 * size[0], 4 * size[1])
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-12)
    for rewritten, drawn in zip(*gradients, strict=True):
        torch.testing.assert_close(rewritten, drawn, rtol=0, atol=1e-12)


def test_a_generator_may_be_trained_without_bn_and_folds_to_the_same_shape():
    spec = SPECS[-2]
    network = training_network(spec, batch_norm=False)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    with_bn, without = fold(training_network(spec)), fold(network)
    assert {n: t.shape for n, t in with_bn.state_dict().items()} == {
        n: t.shape for n, t in without.state_dict().items()
    }


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_the_folded_network_equals_the_trained_one(spec):
    network = trained_network(spec)
    lr_BCHW = torch.from_numpy(random_input(spec, 17, 23, batch=2))
    with torch.no_grad():
        expected = network(lr_BCHW)
        for made, true, group in zip(
            fold(network)(lr_BCHW), expected, spec.form.outputs, strict=True
        ):
            torch.testing.assert_close(made, true, rtol=0, atol=1e-5)
            assert made.shape == (2, group.num_planes, 17 * group.scale, 23 * group.scale)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_a_network_to_tune_begins_where_its_weights_are(spec):
    weights = random_weights(spec)
    tuned = network_to_tune(weights)
    lr_BCHW = torch.from_numpy(random_input(spec, 12, 9))
    with torch.no_grad():
        for network in (tuned, fold(tuned)):
            for made, true in zip(
                network(lr_BCHW), network_from_weights(weights)(lr_BCHW), strict=True
            ):
                torch.testing.assert_close(made, true, rtol=0, atol=1e-5)
    assert all(parameter.requires_grad for parameter in tuned.parameters())


@pytest.mark.parametrize("spec", SPECS[:4], ids=lambda spec: spec.name)
def test_flat_weights_and_their_means_leave_flat_input_as_it_is(spec):
    """It holds for new weights, weights made from others, and any mean of both.

    Only the area beyond the halo is compared: edges see the zeros with which convolutions pad.
    """
    torch.manual_seed(1)
    others = random_weights(spec)
    ends = [training_network(spec, flat=True), network_to_tune(others, flat=True)]
    with torch.no_grad():
        for network in ends:
            for parameter in network.parameters():
                if parameter.requires_grad:
                    parameter += 0.03 * torch.randn_like(parameter)
    folded = [fold(network) for network in ends]
    mean = fold(ends[0])
    for name, value in mean.state_dict().items():
        value.copy_(0.3 * folded[0].state_dict()[name] + 0.7 * folded[1].state_dict()[name])
    side = 2 * spec.halo + 1
    for network in (*ends, *folded, mean):
        for gray in (0.1, 1.0):
            lr_BCHW = torch.full((1, spec.form.num_input_planes, side, side), gray)
            with torch.no_grad():
                groups = zip(network(lr_BCHW), spec.form.outputs, strict=True)
            for made, group in groups:
                inside = slice(spec.halo * group.scale, -spec.halo * group.scale)
                assert (made[..., inside, inside] - gray).abs().max() < 1e-4
    with torch.no_grad():  # the test can fail: the weights from which it was made do respond
        made = network_from_weights(others)(torch.full_like(lr_BCHW, 0.5))[0]
    middle = made.shape[-1] // 2
    assert (made[..., middle, middle] - 0.5).abs().max() > 1e-3


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_the_halo_is_the_receptive_field_radius(spec):
    """If one pixel changes, the output changes no farther than `halo` pixels from it.

    A stack's output changes as far as that; a generator's halo is rounded up.
    """
    side, middle = 2 * spec.halo + 9, spec.halo + 4
    lr_BCHW = torch.from_numpy(random_input(spec, side, side, dtype=np.float64))
    changed = lr_BCHW.clone()
    changed[0, :, middle, middle] += 100.0
    network = fold(trained_network(spec)).double()
    slack = 0 if isinstance(spec.network, Stack) else 1
    with torch.no_grad():
        for before, after, group in zip(
            network(lr_BCHW), network(changed), spec.form.outputs, strict=True
        ):
            rows, columns = torch.nonzero((after - before)[0].abs().sum(0), as_tuple=True)
            for positions in (rows // group.scale, columns // group.scale):
                first, last = int(positions.min()), int(positions.max())
                assert middle - spec.halo <= first <= middle - spec.halo + slack
                assert middle + spec.halo - slack <= last <= middle + spec.halo


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 45, 67), (1, 1, 1)])
def test_onnx_in_openvino_equals_pytorch(spec, shape):
    weights = random_weights(spec)
    batch, height, width = shape
    lr_BCHW = random_input(spec, height, width, batch)
    expected = network_from_weights(weights)(torch.from_numpy(lr_BCHW))
    results = in_openvino(onnx_model(weights).SerializeToString(), lr_BCHW)
    for made, true in zip(results, expected, strict=True):
        assert np.abs(made - true.numpy()).max() < 1e-4


def test_half_precision_files_hold_the_rounded_weights(tmp_path):
    spec = MODELS["srgan"]
    weights = random_weights(spec)
    content = safetensors_bytes(weights, half=True)
    onnx_bytes = onnx_model(weights, half=True).SerializeToString()
    assert max(len(content), len(onnx_bytes)) < 3.3e6
    path = tmp_path / "srgan.safetensors"
    path.write_bytes(content)
    loaded = load_weights(path)
    np.testing.assert_array_equal(
        loaded.tensors["head.weight"], weights.tensors["head.weight"].astype(np.float16)
    )
    lr_BCHW = random_input(spec, 9, 7)
    expected = network_from_weights(loaded)(torch.from_numpy(lr_BCHW))[0].numpy()
    assert np.abs(in_openvino(onnx_bytes, lr_BCHW)[0] - expected).max() < 1e-4


def test_a_weight_file_says_which_range_its_generator_takes(tmp_path):
    network = replace(MODELS["srgan"].network, signed_input=False)
    weights = random_weights(replace(MODELS["srgan"], network=network))
    path = tmp_path / "srgan.safetensors"
    path.write_bytes(safetensors_bytes(weights, half=True))
    assert load_weights(path).spec.network.signed_input is False


def test_the_paper_s_generator_costs_what_the_design_says():
    spec = model_spec("srgan")
    assert spec.kmac_per_pixel == pytest.approx(2218, abs=1)
    assert model_spec("balanced").kmac_per_pixel == pytest.approx(96.12)
    num_weights = sum(value.numel() for value in fold(training_network(spec)).parameters())
    assert num_weights == pytest.approx(1.55e6, rel=0.01)


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


@pytest.mark.parametrize(("name", "weight_set"), SHIPPED)
def test_shipped_files_belong_together(name, weight_set):
    """Both weight files hold the same network, and the model card states their hashes."""
    path = weights_path(name, weight_set=weight_set)
    weights = load_weights(weights_path(name, ".safetensors", weight_set))
    graph = onnx.load(path)
    assert {entry.key: entry.value for entry in graph.metadata_props} == weights.metadata()
    named = {constant.name for constant in graph.graph.initializer}
    assert weights.tensors.keys() <= named  # the knobs blend these tensors

    lr_BCHW = random_input(weights.spec, 40, 56)
    expected = network_from_weights(weights)(torch.from_numpy(lr_BCHW))
    for made, true in zip(in_openvino(path.read_bytes(), lr_BCHW), expected, strict=True):
        assert np.abs(made - true.numpy()).max() < 1e-4

    stem = weights_stem(name, weight_set)
    listed = re.findall(
        r"\| (\S+) \| `([0-9a-f]{64})` \|", (WEIGHTS_DIR / f"{stem}.md").read_text()
    )
    suffixes = (".onnx", ".safetensors", ".pictures.txt")
    assert {file for file, _ in listed} == {stem + suffix for suffix in suffixes}
    assert all((WEIGHTS_DIR / file).stat().st_size < 4e6 for file, _ in listed)
    for file, digest in listed:
        assert sha256(WEIGHTS_DIR / file) == digest, file


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
