"""Whether fine-tuning made a model better, and the sentence that says so."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.judge.comparison import Comparison, Row
from trainer.judge.paired import PairedGain, paired_gain

HELD_OUT = "held-out frames"

MIN_GAIN_DB = 0.02
"""The smallest gain on held-out frames that counts; nobody sees less, however certain it is."""


@dataclass(frozen=True)
class Outcome:
    """The result; all figures are measured on the held-out frames."""

    bicubic: Row
    base: Row
    tuned: Row
    psnr: PairedGain
    """Of the tuned model over the base, in dB."""
    ssim: PairedGain
    weights: Path
    report: Path

    @property
    def gain_db(self) -> float:
        return self.psnr.mean

    @property
    def is_better(self) -> bool:
        """Whether PSNR rose beyond its noise, enough to be seen, and SSIM did not fall."""
        return self.why_not is None

    @property
    def why_not(self) -> str | None:
        """Why the tuned model is no better; None if it is."""
        noise = noise_in_words(self.psnr)
        if self.gain_db < MIN_GAIN_DB:
            return f"less than the {MIN_GAIN_DB:g} dB that count (noise: {noise})"
        if not self.psnr.exceeds_noise:
            return f"which is within the noise of {noise}"
        if round(self.ssim.mean, 4) < 0:
            return (
                f"but a lower SSIM ({self.ssim.mean:+.4f}), so the two measures disagree "
                f"(noise of PSNR: {noise})"
            )
        return None


def outcome_of(comparison: Comparison, num_moments: int, weights: Path, report: Path) -> Outcome:
    """Return what the comparison of bicubic, base and tuned model shows."""
    by_moment = {}
    for name in ("base", "tuned"):
        frames = [f for frames in comparison.by_picture[name, HELD_OUT] for f in frames]
        by_moment[name] = np.array_split(np.array(frames), num_moments)
    psnr, ssim = (
        paired_gain(
            [moment[:, column].tolist() for moment in by_moment["base"]],
            [moment[:, column].tolist() for moment in by_moment["tuned"]],
        )
        for column in (0, 1)
    )
    bicubic, base, tuned = comparison.rows
    return Outcome(bicubic, base, tuned, psnr, ssim, weights, report)


def noise_in_words(gain: PairedGain) -> str:
    """Return how sure a gain in dB is, and from what it was reckoned."""
    return (
        f"±{gain.noise:.2f} dB, the 95 % interval of the difference over {gain.num_frames} frames "
        f"of {gain.num_moments} moments"
    )


def verdict_of(outcome: Outcome, base: str) -> str:
    """Return one sentence."""
    gain = outcome.gain_db
    over_bicubic = outcome.tuned.psnr_db - outcome.bicubic.psnr_db
    if outcome.is_better:
        return (
            f"On held-out frames the tuned model is {gain:.2f} dB better than {base} (noise: "
            f"{noise_in_words(outcome.psnr)}), with SSIM {outcome.ssim.mean:+.4f}; over bicubic it "
            f"gains {over_bicubic:.2f} dB."
        )
    return (
        f"Rolled back: on held-out frames training brought {gain:+.2f} dB over {base}, "
        f"{outcome.why_not}; keep using {base}."
    )
