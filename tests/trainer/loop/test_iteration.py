"""An iteration gives what a plain loop gives, wherever patches are cut and however it is run."""

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from srstream.models.checkpoint import load_weights
from srstream.models.networks import fold, network_to_tune, training_network
from srstream.models.table import MODELS, weights_path
from trainer.config import TrainConfig
from trainer.data.augment import Augmentation
from trainer.data.device_patches import DevicePatches
from trainer.data.pairs import PatchSampler, load_pairs
from trainer.loop.guards import Guard, TrainingCollapsedError
from trainer.loop.iteration import Average, HostFeed, Iteration, Readings
from trainer.loop.stages import make_stage
from trainer.loop.steps import Dial
from trainer.loop.train import train
from trainer.networks import new_network, spec_of
from trainer.state import CHECKPOINT_NAME, load_state, restore, state_tensors

CPU = torch.device("cpu")


def config_for(model: str, crops: str, **stages) -> TrainConfig:
    subsampled = model == "srgan"
    return TrainConfig.model_validate(
        {
            "model": model,
            "seed": 3,
            "network": {"num_blocks": 1, "batch_norm": True} if model == "srgan" else {},
            "data": {
                "patch_size": 12,
                "batch_size": 2,
                "subsampled_chroma": subsampled,
                "augmentation": {},
            },
            "run": {"num_threads": 1, "crops": crops, "tensorboard": False, "read_iterations": 3},
            **(stages or {"pixel": {"iterations": 8, "loss": "mse", "colour_weight": 1.0}}),
        }
    )


def plain_loop(config: TrainConfig, pictures) -> dict[str, torch.Tensor]:
    """The same run, written down from the config alone: no stage, no feed, no average."""
    section, spec = config.pixel, spec_of(config)
    torch.set_num_threads(1)
    torch.manual_seed(config.seed)
    sampler = PatchSampler(
        load_pairs(pictures, spec, config.data),
        patch_size=config.data.patch_size,
        batch_size=config.data.batch_size,
        seed=config.seed,
        augmentation=Augmentation(config.data.augmentation, spec.color_form),
    )
    network = training_network(spec)
    average = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.Adam(network.parameters(), betas=(section.beta1, section.beta2))
    to_chroma = np.array([[-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]]) / 224
    mix = torch.tensor(to_chroma, dtype=torch.float32)
    for n in range(section.iterations):
        done, batch = n / section.iterations, sampler.next_batch()
        if done < section.warmup:
            factor = max(done / section.warmup, 1e-3)
        else:
            along = (done - section.warmup) / (1 - section.warmup)
            last = section.final_learning_rate / section.learning_rate
            factor = last + (1 - last) * 0.5 * (1 + np.cos(np.pi * along))
        optimizer.param_groups[0]["lr"] = section.learning_rate * float(factor)
        made = network(batch.lr_BCHW.contiguous(memory_format=torch.channels_last))
        loss = ((made[0] - batch.hr[0]) ** 2).mean()
        for planes, true in zip(made[1:], batch.hr[1:], strict=True):
            loss = loss + section.chroma_weight * ((planes - true) ** 2).mean()
        if made[0].shape[1] == 3:
            chroma = [torch.einsum("oi,bihw->bohw", mix, rgb) for rgb in (made[0], batch.hr[0])]
            loss = loss + section.colour_weight * ((chroma[0] - chroma[1]) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), section.clip_norm)
        optimizer.step()
        share = 1 - min(section.ema, (1 + n) / (10 + n))
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                average[name].lerp_(value, share)
            else:
                average[name].copy_(value)
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    return tensors | {f"average.{name}": value for name, value in average.items()}


@pytest.mark.parametrize("model", ["fast", "balanced", "srgan"])
@pytest.mark.parametrize("crops", ["host", "device"])
def test_a_run_has_the_weights_of_a_plain_loop_bit_for_bit(tmp_path, pictures, model, crops):
    config = config_for(model, crops)
    pairs = load_pairs(pictures, spec_of(config), config.data)
    train(config, pairs, tmp_path / "run")
    tensors, _ = load_state(tmp_path / "run" / CHECKPOINT_NAME)
    for name, value in plain_loop(config, pictures).items():
        assert torch.equal(tensors[name], value), name


class HostCapture:
    """Replays by computing again, from the same inputs, as a graph reads the same memory."""

    def warm(self, compute):
        return compute()

    def capture(self, compute):
        return compute


ADVERSARIAL = {
    "learning_rate": 1e-4,
    "iterations": 100,
    "discriminator_width": 4,
    "perceptual": "random_vgg",
    "pixel_weight": 0.1,
    "ldl_weight": 1.0,
    "grid_weight": 1.0,
    "ramp": 0.5,
}
KNOB = {"pixel": {"iterations": 100, "sample_knob": True}, "degradation": {}}


def rows_of(config, pictures, *, capture) -> tuple[list[str], torch.Tensor]:
    torch.manual_seed(1)
    spec, stage_section = spec_of(config), config.stages[0]
    sampler = PatchSampler(
        load_pairs(pictures, spec, config.data),
        patch_size=12,
        batch_size=2,
        seed=4,
        knobs=config.samples_knob,
        augmentation=Augmentation(config.data.augmentation, spec.color_form),
    )
    base = load_weights(weights_path("fast", ".safetensors")) if config.samples_knob else None
    network = new_network(spec, base, config.network)
    average = new_network(spec, base, config.network).requires_grad_(False).eval()
    average.load_state_dict(network.state_dict())
    fabric = Fabric(accelerator="cpu")
    stage = make_stage(stage_section, fabric, network, average)
    feed = HostFeed(sampler, fabric)
    if capture:
        feed = DevicePatches(sampler, spec.color_form, CPU, block=3)
    iteration = Iteration(stage, feed, network, average, CPU, HostCapture() if capture else None)
    rows = [iteration.run(factor=1 - n / 10, done=n / 10, decay=n / (n + 1)) for n in range(8)]
    return iteration.names, torch.stack(rows)


@pytest.mark.parametrize(
    "stages", [{"adversarial": ADVERSARIAL}, KNOB], ids=["adversarial", "knob"]
)
def test_what_is_replayed_reads_what_was_drawn_and_set(pictures, stages):
    """Rates, weights that rise, averages and knobs change from one replay to the next."""
    config = config_for("fast", "host", **stages)
    names, expected = rows_of(config, pictures, capture=False)
    again, rows = rows_of(config, pictures, capture=True)
    assert names == again
    assert torch.equal(rows[:, : len(names)], expected[:, : len(names)])
    torch.testing.assert_close(rows, expected, rtol=0, atol=1e-6)  # sums of another alignment
    assert len({tuple(row.tolist()) for row in rows}) == 8


def test_an_average_by_plain_number_is_lerp_and_by_tensor_within_a_rounding():
    torch.manual_seed(0)
    network = fold(training_network(MODELS["srgan"]))
    base = network_to_tune(load_weights(weights_path("srgan", ".safetensors")))
    for weight in (0.9, 0.5, 0.001):
        by_number, by_tensor = (fold(network) for _ in range(2))
        expected = {name: value.clone() for name, value in by_number.state_dict().items()}
        values = base.state_dict()
        Average(by_number, base).update(weight)
        Average(by_tensor, base).update(torch.tensor(weight))
        for name, mean in expected.items():
            mean.lerp_(values[name], weight)
            assert torch.equal(by_number.state_dict()[name], mean), name
            size = torch.maximum(mean.abs(), values[name].abs()).max()
            error = (by_tensor.state_dict()[name] - mean).abs().max()
            assert error <= 4 * torch.finfo(torch.float32).eps * size, (name, weight)


def test_a_dial_off_cuda_is_a_plain_number():
    dial = Dial(0.5, CPU)
    dial.set(0.25)
    assert dial.value == 0.25


def test_readings_are_judged_by_their_own_iterations():
    readings = Readings(Guard())
    for loss in (0.5, 0.25, float("nan"), 0.125):
        readings.add(torch.tensor([loss, 1.0, 0.0]))
    with pytest.raises(TrainingCollapsedError, match="iteration 9: the loss 'pixel' is nan"):
        readings.read(["pixel"], 10)


def test_readings_give_the_last_losses_and_their_means():
    readings = Readings(Guard())
    assert readings.read(["pixel"], 0) == {}
    for loss in (0.5, 0.25):
        readings.add(torch.tensor([loss, 1.0, 0.0]))
    assert readings.read(["pixel"], 2) == {"pixel": 0.25}
    readings.add(torch.tensor([0.0, 1.0, 0.0]))
    readings.read(["pixel"], 3)
    assert readings.means() == {"pixel": 0.25}
    assert readings.means() == {}


def test_moments_take_the_layout_of_their_kernels():
    """Fused kernels want it; a checkpoint holds none."""

    def made(layout):
        torch.manual_seed(2)
        module = torch.nn.Conv2d(8, 8, 3)
        module.weight.data = module.weight.data.contiguous(memory_format=layout)
        return module, torch.optim.Adam(module.parameters())

    plain, optimizer = made(torch.contiguous_format)
    plain(torch.rand(1, 8, 5, 5)).sum().backward()
    optimizer.step()
    tensors = state_tensors({"network": plain}, {"optimiser": optimizer})
    tensors["random.torch"] = torch.get_rng_state()
    laid, other = made(torch.channels_last)
    restore(tensors, {"network": laid}, {"optimiser": other})
    moment = other.state[laid.weight]["exp_avg"]
    assert moment.stride() == laid.weight.stride() != plain.weight.stride()
    assert torch.equal(moment, optimizer.state[plain.weight]["exp_avg"])
