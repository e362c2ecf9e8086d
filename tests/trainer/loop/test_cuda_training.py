"""Training on a real GPU: batches, graphs, fused kernels and checkpoints (docs/training.md)."""

import json

import pytest
import torch

from srstream.models.table import MODELS
from tests.trainer.data.test_device_patches import samplers
from trainer.config import TrainConfig
from trainer.data.device_patches import DevicePatches
from trainer.data.pairs import load_pairs
from trainer.loop import train as loop
from trainer.networks import spec_of
from trainer.state import CHECKPOINT_NAME, load_state, part, save_state

DEVICE = "cuda"

pytestmark = [pytest.mark.needs_cuda, pytest.mark.timeout(900)]

PIXEL = {"pixel": {"iterations": 40, "loss": "mse", "ema": 0.5}}
ADVERSARIAL = {
    "adversarial": {
        "iterations": 40,
        "ema": 0.5,
        "discriminator_width": 4,
        "perceptual": "random_vgg",
        "pixel_weight": 1.0,
        "ramp": 0.5,
    }
}


@pytest.fixture(autouse=True)
def true_float32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def config_for(model: str, stages: dict, **run) -> TrainConfig:
    data = {"patch_size": 12, "batch_size": 4, "augmentation": {}}
    given = {"accelerator": DEVICE, "tensorboard": False, "num_threads": 2, **run}
    network = {"num_blocks": 2, "batch_norm": False} if model == "srgan" else {"flat": True}
    return TrainConfig.model_validate(
        {"model": model, "seed": 5, "network": network, "data": data, "run": given, **stages}
    )


def trained(config, pictures, run_dir, *, resume=False) -> tuple[dict, dict]:
    pairs = load_pairs(pictures, spec_of(config), config.data)
    loop.train(config, pairs, run_dir, resume=resume)
    return load_state(run_dir / CHECKPOINT_NAME)


def moved_apart(one, other, begun) -> float:
    """How far two averages are from each other, as a share of how far they have come."""

    def flat(tensors):
        return torch.cat([value.flatten() for _, value in sorted(part(tensors, "average").items())])

    return float((flat(one) - flat(other)).norm() / (flat(one) - flat(begun)).norm())


@pytest.mark.parametrize("name", MODELS)
def test_batches_are_the_host_s_within_a_rounding(name):
    """CUDA divides by 255 through its reciprocal; codes and roundings are the same."""
    host, drawn = samplers(name, varied=True, subsampled=True)
    device = DevicePatches(drawn, MODELS[name].color_form, torch.device(DEVICE), block=7)
    for _ in range(30):
        expected, batch = host.next_batch(), device.batch(device.next())
        for planes, true in zip(
            (batch.lr_BCHW, *batch.hr), (expected.lr_BCHW, *expected.hr), strict=True
        ):
            torch.testing.assert_close(planes.cpu(), true, rtol=0, atol=1.2e-7)


@pytest.mark.parametrize("model", ["fast", "balanced", "srgan"])
@pytest.mark.parametrize("stages", [PIXEL, ADVERSARIAL], ids=["pixel", "adversarial"])
def test_a_graph_trains_like_single_kernels(tmp_path, pictures, model, stages):
    runs = {
        name: trained(config_for(model, stages, **run), pictures, tmp_path / name)
        for name, run in {
            "graph": {"crops": "device", "read_iterations": 16},
            "device": {"crops": "device", "cuda_graph": False},
            "host": {"crops": "host"},
        }.items()
    }
    one = {name: {**given, "iterations": 1} for name, given in stages.items()}
    begun, _ = trained(config_for(model, one, crops="host"), pictures, tmp_path / "begun")
    (tensors, metadata) = runs["graph"]
    for name in ("device", "host"):
        assert runs[name][1]["samplers"] == metadata["samplers"]
        assert moved_apart(tensors, runs[name][0], begun) < 0.05, name


def test_a_stretch_goes_on_where_the_last_one_stopped(tmp_path, pictures, monkeypatch):
    """In state: generators and counts exactly, weights but for the order of a GPU's sums."""
    run = {"crops": "device", "read_iterations": 8, "checkpoint_iterations": 20}
    config = config_for("srgan", PIXEL, **run)
    whole, metadata = trained(config, pictures, tmp_path / "whole")
    begun, _ = trained(config_for("srgan", {"pixel": {"iterations": 1}}), pictures, tmp_path / "1")
    checkpoints = []

    def save_and_stop(path, tensors, states, progress, header):
        save_state(path, tensors, states, progress, header)
        checkpoints.append(progress.iteration)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "save_state", save_and_stop)
        trained(config, pictures, tmp_path / "parts")
    assert checkpoints == [20]
    parts, again = trained(config, pictures, tmp_path / "parts", resume=True)
    assert again["iteration"] == metadata["iteration"] == 40
    assert again["samplers"] == metadata["samplers"]
    assert moved_apart(whole, parts, begun) < 0.05
    steps = {name: value for name, value in parts.items() if name.endswith(".step")}
    assert steps and all(float(value) == 40 for value in steps.values())


def test_the_weights_that_come_home_are_the_cpu_s_too(tmp_path, pictures):
    """A checkpoint of a GPU is continued on a CPU; its log has what was read."""
    config = config_for("fast", PIXEL, crops="device", read_iterations=16)
    trained(config, pictures, tmp_path / "run")
    longer = {"pixel": {**PIXEL["pixel"], "iterations": 42}}
    home = config_for("fast", longer, crops="host", accelerator="cpu")
    _, metadata = trained(home, pictures, tmp_path / "run", resume=True)
    assert metadata["iteration"] == 42
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").open()]
    assert [line["event"] for line in lines] == ["start", "finish"] * 2
