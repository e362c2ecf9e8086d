"""The paper model of a GPU: what it says follows from its figures, and it says what it is."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from typer.testing import CliRunner

from gpu.stages.speed import around
from srstream.cli.main import app
from srstream.config import EngineConfig, ModelConfig
from srstream.engines.cuda.engine import CudaEngine
from srstream.errors import UsageError
from srstream.jobs.planning.estimate import copy_gbps
from srstream.jobs.planning.gpu_model import DEVICES, KERNELS_AROUND, device_spec, predict
from srstream.models.table import MODELS
from tests.support import clips

SMALL, HD = (320, 180), (1920, 1080)


def limits(device, model, size, encode=100.0, copies=6.0):
    out = size[0] * 4, size[1] * 4
    return predict(DEVICES[device], MODELS[model], size, out, encode, copies)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("model", MODELS)
def test_the_least_limit_is_the_bottleneck(device, model):
    prediction = limits(device, model, HD)
    assert prediction.fps == min(prediction.limits.values())
    assert prediction.limits[prediction.bottleneck] == prediction.fps
    text = prediction.sentence()
    assert "on paper" in text
    assert "Nothing of it was measured on such a device" in text
    assert DEVICES[device].source in text


def test_larger_frames_and_networks_are_slower_and_faster_devices_faster():
    for name in ("compute", "memory bandwidth"):
        assert limits("l4", "fast", HD).limits[name] < limits("l4", "fast", SMALL).limits[name]
        assert limits("l4", "srgan", HD).limits[name] < limits("l4", "fast", HD).limits[name]
        assert limits("h100", "srgan", HD).limits[name] > limits("l4", "srgan", HD).limits[name]


def test_compute_is_operations_over_the_assumed_share_of_the_peak():
    operations = 2e3 * MODELS["srgan"].kmac_per_pixel * HD[0] * HD[1]
    expected = 121e12 * 0.3 / operations
    assert limits("l4", "srgan", HD).limits["compute"] == pytest.approx(expected)


def test_a_device_without_an_encoder_leaves_it_to_the_cpu():
    assert limits("h100", "fast", SMALL, encode=55.0).limits["encoding on this CPU"] == 55.0
    assert limits("h100", "fast", SMALL, encode=55.0).bottleneck == "encoding on this CPU"
    with_encoder = replace(DEVICES["h100"], has_nvenc=True)
    prediction = predict(with_encoder, MODELS["fast"], SMALL, (1280, 720), 55.0, 6.0)
    assert "encoding on this CPU" not in prediction.limits


def test_the_host_copies_each_plane_once():
    """At 3.11 GB/s the planes of 960x540 and of 4K, 1.5 bytes a pixel, take 4.25 ms."""
    found = limits("h200", "fast", (960, 540), copies=3.11).limits["copies on this CPU"]
    assert found == pytest.approx(1000 / 4.25, rel=0.001)


class Operations(TorchDispatchMode):
    """Counts what PyTorch computes; a view computes nothing, but for a change of type."""

    def __init__(self):
        super().__init__()
        self.num_computed = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.num_computed += not function.is_view or function is torch.ops.aten.to.dtype
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("name", MODELS)
def test_the_kernels_around_the_network_are_those_of_the_program(name):
    spec = MODELS[name]
    engine = CudaEngine(EngineConfig(), ModelConfig(name=name), spec, torch.device("cpu"))
    work = around(engine, spec, (48, 32))
    with Operations() as counted:
        work()
    assert counted.num_computed == KERNELS_AROUND[spec.color_form]


def test_copies_are_measured():
    """Nothing copies 100 GB/s on a thread, and no machine of today less than a tenth of one."""
    assert 0.1 < copy_gbps() < 100


def test_plan_says_it(tmp_path):
    source = clips.cfr(tmp_path / "in.mp4", frames=6)
    result = CliRunner().invoke(app, ["plan", str(source), "--device", "h100", "--json"])
    assert "H100 SXM, on paper" in json.loads(result.stdout)["device_prediction"]
    result = CliRunner().invoke(app, ["plan", str(source), "--device", "l4"])
    assert "L4, on paper" in result.stdout
    result = CliRunner().invoke(app, ["plan", str(source), "--device", "abacus"])
    assert isinstance(result.exception, UsageError)
    with pytest.raises(UsageError, match="there are: h100"):
        device_spec("abacus")
