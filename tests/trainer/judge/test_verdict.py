"""When fine-tuning may say that a model became better: beyond the noise, and by both measures."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from trainer.judge.comparison import Comparison, Method, Row
from trainer.judge.evaluate import LowResolution, TestPicture, bicubic_upscaler
from trainer.judge.paired import paired_gain
from trainer.judge.verdict import HELD_OUT, Outcome, outcome_of, verdict_of

ROW = Row("m", "held out", 8, 30.0, 0.9, 40.0, 0.3, 0.1, 0.0, 1.0)


def outcome(psnr_gains, ssim_gains):
    """The base at 30 dB and 0.9; gains for each frame of each moment."""
    psnr, ssim = (
        paired_gain(
            [[level] * len(moment) for moment in gains],
            [[level + gain for gain in moment] for moment in gains],
        )
        for level, gains in ((30.0, psnr_gains), (0.9, ssim_gains))
    )
    return Outcome(ROW, ROW, ROW, psnr, ssim, Path("w"), Path("r"))


def test_the_noise_is_student_s_interval_of_the_moments_means():
    """By hand: means of 1, 2 and 3, a deviation of 1, and t = 4.3027 for two degrees of freedom."""
    gain = paired_gain([[0, 0], [0, 0], [0, 0]], [[0.5, 1.5], [2, 2], [2.5, 3.5]])
    assert gain.mean == pytest.approx(2.0)
    assert gain.noise == pytest.approx(4.30265 / math.sqrt(3), rel=1e-4)
    assert (gain.num_frames, gain.num_moments) == (6, 3)
    assert not gain.exceeds_noise


def test_with_two_moments_the_noise_is_that_of_the_frames():
    """By hand: 0, 0, 2, 2 deviate by 1.1547, and t = 3.1824 for three degrees of freedom."""
    gain = paired_gain([[1, 1], [1, 1]], [[1, 1], [3, 3]])
    assert gain.noise == pytest.approx(3.18245 * 1.154701 / 2, rel=1e-4)
    assert math.isinf(paired_gain([[1.0]], [[2.0]]).noise)


def test_what_both_methods_share_is_no_noise():
    """Frames differ by 10 dB, the gain on each is the same."""
    base = [[20.0, 30.0], [25.0, 35.0], [22.0, 40.0]]
    gain = paired_gain(base, [[n + 0.05 for n in moment] for moment in base])
    assert gain.noise == pytest.approx(0, abs=1e-6)
    assert gain.exceeds_noise


@pytest.mark.parametrize(
    ("psnr_gains", "ssim_gain", "words"),
    [
        # The home user's: +0.03 dB on average, up and down among moments, SSIM lower.
        ([0.20, -0.12, 0.05, -0.01], -0.0012, "+0.03 dB over fast, which is within the noise of ±"),
        ([0.20, -0.12, 0.05, -0.01], 0.0012, "which is within the noise of ±0.2"),
        ([0.03, 0.031, 0.029, 0.03], -0.0012, "but a lower SSIM (-0.0012)"),
        ([0.01, 0.01, 0.01, 0.011], 0.001, "less than the 0.02 dB that count"),
        ([-0.3, -0.31, -0.29, -0.3], -0.01, "-0.30 dB over fast, less than"),
    ],
)
def test_no_gain_is_called_so(psnr_gains, ssim_gain, words):
    made = outcome([[g] * 8 for g in psnr_gains], [[ssim_gain] * 8 for _ in psnr_gains])
    assert not made.is_better
    verdict = verdict_of(made, "fast")
    assert verdict.startswith("Rolled back: on held-out frames training brought ")
    assert words in verdict
    assert "the 95 % interval of the difference over 32 frames of 4 moments" in verdict
    assert verdict.endswith("; keep using fast.")


def test_a_gain_beyond_its_noise_says_both():
    made = outcome([[g] * 8 for g in (0.40, 0.44, 0.41, 0.39)], [[0.002] * 8] * 4)
    assert made.is_better
    verdict = verdict_of(made, "fast")
    assert "0.41 dB better than fast (noise: ±0.03 dB" in verdict
    assert "SSIM +0.0020" in verdict


def test_the_frames_of_a_comparison_are_paired_by_moment():
    """Real upscaling: one method does worse on the second moment's frames alone."""
    random = np.random.default_rng(3)
    moments = []
    for n in range(3):
        frames = []
        for k in range(2):
            rgb = random.integers(0, 255, (48, 64, 3), dtype=np.uint8)
            low = LowResolution.of_picture(rgb[::4, ::4])
            frames.append(TestPicture(f"{n}.{k}", low, rgb))
        moments.append(frames)
    plain = bicubic_upscaler(4)
    spoilt = {id(picture.lr) for picture in moments[1]}

    def worse(lr):
        made = plain(lr)
        return type(made)(255 - made.y_HW, made.chroma_2HW) if id(lr) in spoilt else made

    methods = [Method("bicubic", plain), Method("base", plain), Method("tuned", worse)]
    comparison = Comparison(methods)
    comparison.add_sequences(HELD_OUT, moments, 4, None)
    made = outcome_of(comparison, 3, Path("w"), Path("r"))
    assert (made.psnr.num_frames, made.psnr.num_moments) == (6, 3)
    tuned = comparison.by_picture["tuned", HELD_OUT]
    base = comparison.by_picture["base", HELD_OUT]
    assert [a == b for a, b in zip(tuned, base, strict=True)] == [True, False, True]
    assert made.gain_db == pytest.approx(made.tuned.psnr_db - made.base.psnr_db, abs=1e-3)
    assert not made.is_better
