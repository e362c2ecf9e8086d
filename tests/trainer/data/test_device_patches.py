"""Patches cut on the device are those that the host's sampler cuts, from the same draws."""

import numpy as np
import pytest
import torch

from srstream.errors import UsageError
from srstream.models.table import MODELS
from trainer.config import AugmentationSection, DataSection
from trainer.data.augment import Augmentation
from trainer.data.device_patches import DevicePatches
from trainer.data.pairs import Pair, PatchSampler, clean_pair

CPU = torch.device("cpu")


def pairs_for(name: str, data: DataSection) -> list[Pair]:
    random = np.random.default_rng(5)
    shapes = [(96, 128), (160, 104), (104, 104)]
    pictures = [random.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
    pairs = [clean_pair(str(n), rgb, MODELS[name], data) for n, rgb in enumerate(pictures)]
    return [Pair(pair.name, pair.lr, pair.hr, severity=n / 2) for n, pair in enumerate(pairs)]


def samplers(name: str, *, varied: bool, subsampled: bool = False, knobs: bool = False):
    section = AugmentationSection(dark_share=0.3, bright_share=0.3) if varied else None
    data = DataSection(subsampled_chroma=subsampled, augmentation=section)
    pairs = pairs_for(name, data)
    augmentation = None if section is None else Augmentation(section, MODELS[name].color_form)
    return [
        PatchSampler(
            pairs, patch_size=16, batch_size=5, seed=9, knobs=knobs, augmentation=augmentation
        )
        for _ in range(2)
    ]


@pytest.mark.parametrize("name", ["fast", "balanced", "srgan"])
@pytest.mark.parametrize("varied", [False, True], ids=["plain", "varied"])
@pytest.mark.parametrize("subsampled", [False, True], ids=["whole", "subsampled"])
def test_the_batches_are_the_host_s_bit_for_bit(name, varied, subsampled):
    """Over several blocks; all variants, orientations, tones and roundings are among them."""
    host, drawn = samplers(name, varied=varied, subsampled=subsampled)
    device = DevicePatches(drawn, MODELS[name].color_form, CPU, block=7)
    for _ in range(40):
        expected, batch = host.next_batch(), device.batch(device.next())
        assert torch.equal(batch.lr_BCHW, expected.lr_BCHW)
        assert len(batch.hr) == len(expected.hr)
        for planes, true in zip(batch.hr, expected.hr, strict=True):
            assert torch.equal(planes, true)
        assert device.state() == host.state()


def test_the_knob_and_what_suits_it_are_the_host_s(monkeypatch):
    host, drawn = samplers("balanced", varied=True, knobs=True)
    device = DevicePatches(drawn, "yuv420", CPU, block=4)
    for _ in range(9):
        expected, batch = host.next_batch(), device.batch(device.next())
        assert float(batch.knob) == np.float32(expected.knob)
        assert torch.equal(batch.lr_BCHW, expected.lr_BCHW)


@pytest.mark.parametrize("num_before", [0, 3, 4, 5, 11])
def test_it_goes_on_from_a_saved_state_with_either_sampler(num_before):
    """The state is that of what was used, not of what was drawn ahead."""
    first, second = samplers("fast", varied=True)
    begun = DevicePatches(first, "luma", CPU, block=4)
    for _ in range(num_before):
        begun.next()
    state = begun.state()
    expected = [begun.batch(begun.next()).lr_BCHW for _ in range(6)]
    second.set_state(state)
    assert all(torch.equal(second.next_batch().lr_BCHW, lr) for lr in expected)
    begun.set_state(state)
    assert all(torch.equal(begun.batch(begun.next()).lr_BCHW, lr) for lr in expected)


def test_shifted_crops_are_refused():
    _, sampler = samplers("fast", varied=False)
    sampler.shifts = True
    with pytest.raises(UsageError, match=r'steadiness_weight .* crops = "host"'):
        DevicePatches(sampler, "luma", CPU)
