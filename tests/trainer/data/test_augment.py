"""What training sees of ranges, roundings, dark and bright scenes; and of the knob."""

import json

import numpy as np
import pytest
import torch

from srstream.models.networks import fold, training_network
from srstream.models.table import MODELS, ModelSpec, ResidualGenerator
from trainer.config import AugmentationSection, DataSection, DegradationSection
from trainer.data.augment import Augmentation, Tone
from trainer.data.pairs import Pair, PatchSampler, clean_pair
from trainer.data.planes import code_values
from trainer.loop.stages import Knobbed

NOTHING = dict.fromkeys(AugmentationSection.model_fields, 0.0)


def only(**shares: float) -> AugmentationSection:
    """Nothing but these."""
    return AugmentationSection(**(NOTHING | shares))


def smooth_picture(side: int = 96) -> np.ndarray:
    """RGB waves from black to white, about 40 pixels long."""
    rows, columns = np.mgrid[:side, :side] / 6.5
    waves = [np.sin(rows + shift) * np.cos(columns - shift) for shift in (0.0, 0.7, 1.9)]
    return np.round(127.5 + 127.5 * np.stack(waves, axis=-1)).astype(np.uint8)


def batch_of(name: str, section: AugmentationSection | None, *, subsampled: bool = False):
    data = DataSection(patch_size=16, subsampled_chroma=subsampled, augmentation=section)
    pair = clean_pair("waves", smooth_picture(), MODELS[name], data)
    augmentation = None if section is None else Augmentation(section, MODELS[name].color_form)
    sampler = PatchSampler([pair], patch_size=16, batch_size=32, seed=3, augmentation=augmentation)
    return sampler.next_batch()


@pytest.mark.parametrize("colour", ["luma", "yuv420"])
def test_black_and_white_go_where_the_tone_says(colour):
    tone = Tone.between(4.0, 250.0, colour)
    np.testing.assert_allclose(tone.luma(np.float32([16, 235])), [4, 250], rtol=1e-6)
    gain = 246 / 219  # of chroma too: a picture with more contrast has more color
    expected = [128 - 112 * gain, 128, 128 + 112 * gain]
    np.testing.assert_allclose(tone.chroma(np.float32([16, 128, 240])), expected, rtol=1e-6)


def test_in_rgb_nothing_goes_beyond_black_and_white():
    assert Tone.between(4.0, 250.0, "rgb").luma(np.float32([0, 255])).tolist() == [0, 255]
    dark = Tone.between(16.0, 16.0 + 219 / 5, "rgb").luma(np.float32([0, 255]))
    np.testing.assert_allclose(dark, [0, 51], atol=1e-4)


@pytest.mark.parametrize(
    ("shares", "steps_of_luma", "steps_of_chroma"),
    [
        ({}, 1, 1),
        ({"full_range_share": 1.0}, 219 / 255, 224 / 255),
        ({"ten_bit_share": 1.0}, 1 / 4, 1 / 4),
    ],
)
@pytest.mark.parametrize("tone", [{}, {"dark_share": 1.0}, {"wide_share": 1.0}])
def test_low_resolution_is_rounded_as_the_format_has_it(
    shares, steps_of_luma, steps_of_chroma, tone
):
    """Whole codes of the file: (y - 16) / 219 * 255 of full range, 4 y of ten bits."""
    lr_BCHW = 255 * batch_of("balanced", only(**shares, **tone)).lr_BCHW.double()
    for planes, origin, step in [
        (lr_BCHW[:, :1], 16, steps_of_luma),
        (lr_BCHW[:, 1:], 128, steps_of_chroma),
    ]:
        codes = (planes - origin) / step
        assert (codes - codes.round()).abs().max() < 1e-3
        assert len(torch.unique(codes.round())) > 5


def test_unrounded_planes_are_not_whole_codes():
    codes = 255 * batch_of("fast", only(unrounded_share=1.0)).lr_BCHW
    assert (codes - codes.round()).abs().mean() == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize(
    ("share", "darkest", "brightest"),
    [("dark_share", (1, 24), (32, 120)), ("bright_share", (120, 208), (225, 254)),
     ("wide_share", (1, 16), (235, 254))],
)  # fmt: skip
@pytest.mark.parametrize("name", ["fast", "balanced"])
def test_both_resolutions_get_the_same_tone(name, share, darkest, brightest):
    """The original's 4x4 means are the low resolution, whatever was done to both."""
    batch = batch_of(name, only(**{share: 1.0, "unrounded_share": 1.0}))
    luma, hr = 255 * batch.lr_BCHW[:, :1], 255 * batch.hr[0]
    assert (torch.nn.functional.avg_pool2d(hr, 4) - luma).abs().mean() < 1.5
    lows, highs = hr.amin((1, 2, 3)), hr.amax((1, 2, 3))
    # Patches of 64 pixels show waves of 40 from end to end, but for what the colors mix to.
    assert darkest[0] - 1 <= lows.min() and lows.max() <= darkest[1] + 0.25 * 219
    assert brightest[0] - 0.25 * 219 <= highs.min() and highs.max() <= brightest[1] + 1
    assert len(torch.unique(highs)) > 16
    if name == "balanced":
        box = torch.nn.functional.avg_pool2d(255 * batch.hr[1], 2)
        chroma = 255 * batch.lr_BCHW[:, 1:]
        assert (box.mean((2, 3)) - chroma.mean((2, 3))).abs().max() < 2
        strength = chroma.std((2, 3)) / box.std((2, 3))  # 4:2:0 leaves less of so short waves
        assert strength.min() > 0.75 and strength.max() < 1.05


def test_the_shares_are_those_of_the_patches():
    section = only(dark_share=0.25, unrounded_share=0.5)
    pair = clean_pair("w", smooth_picture(), MODELS["fast"], DataSection(augmentation=section))
    sampler = PatchSampler(
        [pair], patch_size=24, batch_size=400, seed=0, augmentation=Augmentation(section, "luma")
    )
    batch = sampler.next_batch()
    dark = 255 * batch.hr[0].amax((1, 2, 3)) < 121
    codes = 255 * batch.lr_BCHW
    unrounded = (codes - codes.round()).abs().amax((1, 2, 3)) > 0.01
    assert dark.float().mean() == pytest.approx(0.25, abs=0.07)
    assert unrounded.float().mean() == pytest.approx(0.5, abs=0.08)
    assert (dark & unrounded).float().mean() == pytest.approx(0.125, abs=0.06)
    state = sampler.state()
    again = PatchSampler(
        [pair], patch_size=24, batch_size=400, seed=9, augmentation=Augmentation(section, "luma")
    )
    again.set_state(state)
    assert torch.equal(sampler.next_batch().lr_BCHW, again.next_batch().lr_BCHW)


@pytest.mark.parametrize(("name", "subsampled"), [("balanced", False), ("srgan", True)])
def test_fine_codes_are_the_whole_ones_before_their_rounding(name, subsampled):
    def variants(section):
        data = DataSection(subsampled_chroma=subsampled, augmentation=section)
        return clean_pair("w", smooth_picture(), MODELS[name], data).lr

    pairs = list(zip(variants(None), variants(only()), strict=True))
    assert len(pairs) == 3
    for (share, whole), (same_share, fine) in pairs:
        assert share == same_share and whole.dtype == np.uint8 and fine.dtype == np.uint16
        difference = np.abs(code_values(fine) - code_values(whole))
        assert difference.mean() < 0.8 and difference.max() < 4.5


def test_more_than_the_whole_is_refused():
    with pytest.raises(ValueError, match="more than the whole"):
        AugmentationSection(dark_share=0.6, bright_share=0.6)


def test_batches_are_for_a_position_and_of_pairs_as_severe():
    planes = np.zeros((1, 12, 12), np.uint8)
    pairs = [
        Pair(f"{level}", ((1.0, planes + level),), (np.zeros((1, 48, 48), np.uint8),), level / 100)
        for level in range(101)
    ]
    sampler = PatchSampler(pairs, patch_size=8, batch_size=64, seed=0, knobs=True)
    knobs = []
    for _ in range(100):
        batch = sampler.next_batch()
        levels = 2.55 * batch.lr_BCHW[:, 0, 0, 0]
        assert (levels - batch.knob).abs().max() <= 0.1 + 1e-6
        assert len(torch.unique(levels)) > 5
        knobs.append(batch.knob)
    assert np.quantile(knobs, [0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9], abs=0.15)
    lone = PatchSampler(pairs[:1], patch_size=8, batch_size=1, seed=0, knobs=True)
    assert json.loads(lone.state()) and lone.next_batch().lr_BCHW.shape == (1, 1, 8, 8)


def test_a_clip_s_severity_is_its_place_between_two_crfs():
    section = DegradationSection(faithful_crf=20, restore_crf=40)
    assert [section.severity(crf) for crf in (10, 20, 25, 40, 51)] == [0, 0, 0.25, 1, 1]
    with pytest.raises(ValueError, match="faithful_crf is not below"):
        DegradationSection(faithful_crf=30, restore_crf=30)


@pytest.mark.parametrize(
    "spec",
    [MODELS["fast"], ModelSpec("small", "rgb", ResidualGenerator(channels=4, num_blocks=1))],
    ids=["stack", "generator"],
)
def test_a_knobbed_network_is_the_mean_and_trains_its_one_end(spec):
    """Against the tensors of both ends mixed by hand; the gradient is the position's share."""
    torch.manual_seed(0)
    faithful = fold(training_network(spec, batch_norm=False))
    network = training_network(spec, batch_norm=False)
    mixture = fold(network)
    plain = mixture.state_dict()
    with torch.no_grad():
        for key, value in faithful.state_dict().items():
            plain[key].copy_(0.75 * value + 0.25 * plain[key])
    knobbed = Knobbed(faithful, network)
    lr_BCHW = torch.rand(1, spec.form.num_input_planes, 9, 7)
    for made, true in zip(knobbed(lr_BCHW, 0.25), mixture(lr_BCHW), strict=True):
        torch.testing.assert_close(made, true, rtol=0, atol=1e-5)
    for made, true in zip(knobbed(lr_BCHW, 0.0), faithful(lr_BCHW), strict=True):
        assert torch.equal(made, true)
    sum(planes.square().mean() for planes in knobbed(lr_BCHW, 0.25)).backward()
    trained = [value for value in network.parameters() if value.requires_grad]
    assert all(value.grad is not None and value.grad.abs().max() > 0 for value in trained)
    assert all(value.grad is None for value in faithful.parameters())
