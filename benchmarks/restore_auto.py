"""The gain of `--restore auto` over bicubic, and the fit of its rules.

    python benchmarks/restore_auto.py fit DATA fast balanced
    python benchmarks/restore_auto.py judge DATA fast balanced

DATA holds `video/features` and `train` (to fit), `video/real` (half to fit, half to judge) and
`test/BSD100` (to judge).
Originals are at most 512x288, downscaled to a quarter, encoded with x264 `medium` at four CRFs,
decoded and enlarged, with the knob at five positions. Some are first blurred, made noisy or
darkened; flat shapes, gradients and text are drawn. `fit` prints each model's `RestoreRule`;
`judge` prints a table: the gain in dB on luma with the rules in `models/restore_auto.py`, and at
both ends of the knob.

For every frame, `--cache` keeps the mean products of the network's and the original's
differences from bicubic; the error at any strength follows: |E|^2 - 2 s <D, E> + s^2 |D|^2.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from restore_clips import CRFS, Frames, Makers, clips_to_fit, clips_to_judge
from scipy.optimize import differential_evolution

from srstream.config import SourceConfig
from srstream.media.read.probe import probe
from srstream.media.read.quantizer import measure_compression
from srstream.models.restore_auto import (
    MIDDLE_QUANTIZER,
    MOST_BESIDE,
    RESTORE_RULES,
    Detail,
    Restoration,
    RestoreRule,
    restoration_by,
)
from srstream.quality import luma_bt601
from trainer.data.codec import decode, encode, x264_at
from trainer.data.degrade import SCALE, downscale
from trainer.data.planes import Codes, Picture, as_yuv420
from trainer.judge.evaluate import LowResolution, Upscaler, bicubic_upscaler
from trainer.ship.methods import method_of

KNOBS = (0.0, 0.25, 0.5, 0.75, 1.0)
MEASURED = (2, 5, 8)
CROPS = {"srgan": (72, 96)}
"""Rows and columns of the center crop of low resolution, for models that take seconds a frame."""
ROUNDING = 1 / 12
"""Mean squared error that rounding to codes adds."""

Array = NDArray[np.float64]


# Measurements.


@dataclass(frozen=True)
class Clip:
    """One clip at one CRF, with one model. F measured frames, K positions of the knob."""

    name: str
    crf: int
    quantizer: float
    detail: Detail
    bicubic_F: Array
    """Mean squared error."""
    products_FK2: Array
    """Products of the network's difference from bicubic with the original's, and with itself."""

    def gains(self, knobs: Array, strengths: Array) -> Array:
        """Return gains over bicubic, (len(knobs), len(strengths)) in dB, as means over the frames.

        Between the measured positions the products are interpolated linearly.
        """
        total = np.zeros((len(knobs), len(strengths)))
        for error, products_K2 in zip(self.bicubic_F, self.products_FK2, strict=True):
            with_error, with_itself = (
                np.interp(knobs, KNOBS, products_K2[:, n])[:, None] for n in (0, 1)
            )
            made = error - 2 * strengths * with_error + strengths**2 * with_itself
            total += 10 * np.log10((error + ROUNDING) / (np.maximum(made, 0) + ROUNDING))
        return total / len(self.bicubic_F)

    def gain(self, chosen: Restoration) -> float:
        return float(self.gains(np.array([chosen.restore]), np.array([chosen.strength]))[0, 0])


@dataclass(frozen=True)
class Material:
    """A clip that went through the codec at one CRF: the measurements that need no network."""

    quantizer: float
    detail: Detail
    small: list[list[Codes]]
    """(Y, U, V) of the measured frames, decoded."""
    large: Frames


def materials(frames: Frames) -> dict[int, Material]:
    """Return the material at each CRF."""
    low = [as_yuv420(downscale(rgb, SCALE)) for rgb in frames]
    made = {}
    for crf in CRFS:
        settings = x264_at(crf)
        encoded = encode(low, settings)
        with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
            file.write(encoded)
            file.flush()
            path, config = Path(file.name), SourceConfig()
            found = measure_compression(path, probe(path, config).video, [], config)
        assert found is not None
        decoded = decode(encoded, len(frames), settings)
        small = [list(decoded[n].planes) for n in MEASURED]
        large = [frames[n] for n in MEASURED]
        made[crf] = Material(found.quantizer, found.detail, small, large)
    return made


def measured(makers: Makers, model: str, cache: Path) -> list[Clip]:
    """Measure every clip at every CRF."""
    upscalers = [method_of(model, restore=knob).upscale for knob in KNOBS]
    clips = []
    for name, make in makers.items():
        path = cache / f"{_digest(name)}.{model}.json"
        if not path.is_file():
            content = {}
            for crf, material in _kept_materials(name, make, cache).items():
                errors, products = _products(material, upscalers, CROPS.get(model))
                signals = material.quantizer, material.detail.slope, material.detail.curvature
                content[crf] = [signals, errors, products]
            path.write_text(json.dumps(content))
            print(".", end="", flush=True)
        for crf, (signals, errors, products) in json.loads(path.read_text()).items():
            detail = Detail(*signals[1:])
            clip = Clip(name, int(crf), signals[0], detail, np.array(errors), np.array(products))
            clips.append(clip)
    print()
    return clips


def _kept_materials(name: str, make: Callable[[], Frames], cache: Path) -> dict[int, Material]:
    path = cache / f"{_digest(name)}.npz"
    if not path.is_file():
        arrays: dict[str, NDArray[Any]] = {}
        for crf, material in materials(make()).items():
            detail = material.detail
            arrays[f"{crf}"] = np.array([material.quantizer, detail.slope, detail.curvature])
            for number, (planes, rgb) in enumerate(
                zip(material.small, material.large, strict=True)
            ):
                arrays[f"{crf} {number}"] = rgb
                arrays |= {f"{crf} {number} {n}": plane for n, plane in enumerate(planes)}
        np.savez(path, **arrays)
    kept = np.load(path)
    frames = range(len(MEASURED))
    return {
        crf: Material(
            float(kept[f"{crf}"][0]),
            Detail(*kept[f"{crf}"][1:].tolist()),
            [[kept[f"{crf} {number} {n}"] for n in range(3)] for number in frames],
            [kept[f"{crf} {number}"] for number in frames],
        )
        for crf in CRFS
    }


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def _products(
    material: Material, upscalers: Sequence[Upscaler], crop: tuple[int, int] | None
) -> tuple[list[float], list[list[list[float]]]]:
    """Return the products that `Clip` keeps."""
    bicubic = bicubic_upscaler(SCALE)
    errors, products = [], []
    inside = (slice(SCALE, -SCALE),) * 2
    for small, large in zip(material.small, material.large, strict=True):
        if crop is not None:
            small, large = _cropped(small, large, crop)
        lr = LowResolution.of_video(small)
        plain = bicubic(lr).y_HW[inside]
        missing = luma_bt601(large)[inside] - plain
        errors.append(float(np.mean(missing**2)))
        added = [np.clip(upscale(lr).y_HW[inside], 0, 255) - plain for upscale in upscalers]
        products.append([[float(np.mean(a * missing)), float(np.mean(a * a))] for a in added])
        if crop is not None:
            break  # a model that takes seconds a frame
    return errors, products


def _cropped(
    small: Sequence[Codes], large: Picture, crop: tuple[int, int]
) -> tuple[list[Codes], Picture]:
    rows, columns = (min(n, most) for n, most in zip(small[0].shape, crop, strict=True))
    top, left = ((n - m) // 4 * 2 for n, m in zip(small[0].shape, (rows, columns), strict=True))

    def window(scale: float) -> tuple[slice, slice]:
        return (
            slice(int(top * scale), int((top + rows) * scale)),
            slice(int(left * scale), int((left + columns) * scale)),
        )

    y, u, v = small
    return [y[window(1)], u[window(0.5)], v[window(0.5)]], large[window(SCALE)]


# Fitting.

UNHARMED = (5.0, 0.0)
"""The quantizer and knob positions that every rule shares."""
QUANTIZERS = (14.0, 19.0, 23.0, 28.0, 33.0)
BOUNDS = [
    (0.0, 0.5), (0.0, 0.3), (0.0, 0.4), (0.0, 0.8), (0.0, 0.8),  # rises of the knob
    (0.25, 0.8), (0.1, 0.35), (0.0, 0.025),  # soft below; width; by the quantizer
    (0.05, 0.5), (0.2, 0.7), (0.1, 0.6),  # strength there; soft below; width
    (0.1, 1.0), (-6.0, -2.5), (0.5, 3.0),  # strength there; octaves below; width
]  # fmt: skip
UNSURE = (
    (0, 1, 0), (2, 0.96, -0.2), (-2, 1.04, 0.2), (1, 1.05, 0.1), (-3, 1, 0), (-1, 0.94, -0.1),
)  # fmt: skip
"""Other encoders and other moments of a clip: how far the signals may be off."""
MARGIN_DB, PENALTY, GREATEST_GAIN_DB = 0.02, 60.0, 3.0
WEIGHTS = {18: 3.0, 24: 1.0, 30: 1.0, 36: 2.0}
"""Weights of the gains at each CRF: the ends have most to lose."""


def rule_of(parameters: Sequence[float]) -> RestoreRule:
    knob, soft, strength, octaves = (
        [round(float(p), 3) for p in parameters[start:end]]
        for start, end in ((0, 5), (5, 8), (8, 11), (11, 14))
    )
    knobs = np.minimum(np.cumsum(knob), 1.0).round(2)
    return RestoreRule(
        knob_by_quantizer=(UNHARMED, *zip(QUANTIZERS, knobs.tolist(), strict=True)),
        knob_by_sharpness=((soft[0], 1.0), (round(soft[0] + soft[1], 3), 0.0)),
        sharper_per_quantizer=soft[2],
        strength_by_sharpness=((strength[1], strength[0]), (round(sum(strength[1:]), 3), 1.0)),
        strength_by_octaves=((octaves[1], octaves[0]), (round(sum(octaves[1:]), 3), 1.0)),
    )


def fitted(clips: Sequence[Clip]) -> RestoreRule:
    """Return the rule with the largest mean gain that is almost never below bicubic."""
    steps = np.linspace(0, 1, 21)
    gains = np.stack([clip.gains(steps, steps) for clip in clips])
    which = np.arange(len(clips))
    weights = np.array([WEIGHTS[clip.crf] for clip in clips])
    quantizers = np.array([clip.quantizer for clip in clips])
    sharpness = np.array([clip.detail.sharpness for clip in clips])
    octaves = np.array([clip.detail.octaves_over(clip.quantizer) for clip in clips])

    def loss(parameters: Sequence[float]) -> float:
        rule, total = rule_of(parameters), 0.0
        for harder, sharper, more in UNSURE:
            knob = np.maximum(
                _along(rule.knob_by_quantizer, quantizers + harder),
                _along(
                    rule.knob_by_sharpness,
                    sharpness * sharper
                    + rule.sharper_per_quantizer
                    * np.clip(quantizers + harder - MIDDLE_QUANTIZER, -MOST_BESIDE, MOST_BESIDE),
                ),
            )
            strength = np.minimum(
                _along(rule.strength_by_sharpness, sharpness * sharper),
                _along(rule.strength_by_octaves, octaves + more),
            )
            gain = gains[which, np.rint(20 * knob).astype(int), np.rint(20 * strength).astype(int)]
            too_little = np.maximum(0, MARGIN_DB - gain)
            counted = weights * np.minimum(gain, GREATEST_GAIN_DB)
            total += float(np.mean(counted - PENALTY * too_little))
        return -total / len(UNSURE)

    found = differential_evolution(loss, BOUNDS, seed=0, maxiter=300, popsize=8, polish=False)
    return rule_of(found.x)


def _along(line: Sequence[tuple[float, float]], x: Array) -> Array:
    xs, ys = zip(*line, strict=True)
    return np.interp(x, xs, ys)


# Tables.


def table(clips: Sequence[Clip], rule: RestoreRule) -> str:
    """Tabulate gains at each CRF: with a rule (its choice in parentheses) and at both ends."""
    lines = ["| clip | " + " | ".join(f"CRF {crf}" for crf in CRFS) + " |", "| --- " * 5 + "|"]
    for name in dict.fromkeys(clip.name for clip in clips):
        cells = [_cell(clip, rule) for clip in clips if clip.name == name]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    means = []
    for crf in CRFS:
        of_crf = [clip for clip in clips if clip.crf == crf]
        gains = [[clip.gain(choice) for choice in _choices(clip, rule)] for clip in of_crf]
        faithful, auto, mended = np.mean(gains, axis=0)
        means.append(f"{faithful:+.2f} / **{auto:+.2f}** / {mended:+.2f}")
    lowest = min(clip.gain(_choices(clip, rule)[1]) for clip in clips)
    return "\n".join([*lines, "| mean | " + " | ".join(means) + " |", f"lowest: {lowest:+.3f}"])


def _choices(clip: Clip, rule: RestoreRule) -> list[Restoration]:
    chosen = restoration_by(rule, clip.quantizer, clip.detail)
    return [Restoration(0.0, 1.0), chosen, Restoration(1.0, 1.0)]


def _cell(clip: Clip, rule: RestoreRule) -> str:
    faithful, auto, mended = _choices(clip, rule)
    strength = "" if auto.strength == 1.0 else f" x {auto.strength:g}"
    return (
        f"{clip.gain(faithful):+.2f} / **{clip.gain(auto):+.2f}** ({auto.restore:g}{strength}) / "
        f"{clip.gain(mended):+.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", choices=["fit", "judge"])
    parser.add_argument("data", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--cache", type=Path, help="where measurements are kept")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        cache: Path = arguments.cache or Path(temporary)
        cache.mkdir(parents=True, exist_ok=True)
        for model in arguments.models:
            if arguments.what == "fit":
                clips = measured(clips_to_fit(arguments.data), model, cache)
                rule = fitted(clips)
                print(f"{model}: {rule}")
            else:
                clips = measured(clips_to_judge(arguments.data), model, cache)
                rule = RESTORE_RULES[model]
            print(f"{model}\n\n{table(clips, rule)}\n")


if __name__ == "__main__":
    main()
