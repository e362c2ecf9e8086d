"""Clips to encode: camera moves over photographs, and real video as its own truth.

A clip is a list of (H, W, 3) RGB frames, uint8, both sides multiples of 8. Low resolution is made
frame by frame, the whole clip is encoded and decoded, and a few of its frames are kept as pairs.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from srstream.color import rgb_to_yuv_matrix
from srstream.config import SourceConfig
from srstream.errors import MediaError, UsageError
from srstream.frame import Frame
from srstream.media.read.decode import Decoder
from srstream.media.read.probe import probe
from trainer.config import DegradationSection
from trainer.console import Reporter
from trainer.data.clip_frames import Camera, ClipFrame, LowFrame, read_frames, write_frames
from trainer.data.codec import MIN_SIDE, CodecSettings, encode_decode, random_settings
from trainer.data.degrade import downscale
from trainer.data.pairs import Pair, evenly_chosen, find_pictures, read_rgb
from trainer.data.planes import (
    Picture,
    Yuv,
    as_yuv420,
    decoded_input,
    round_to_codes,
    target_planes,
)
from trainer.networks import TrainedSpec

log = logging.getLogger(__name__)

CACHE_FORMAT = 3
SIDE_MULTIPLE = 8

FALLBACK_CODEC = "libx264"
"""The codec for pictures that are too small for every requested codec."""


@dataclass(frozen=True)
class LowClip:
    """Low-resolution frames, possibly decoded from a codec, and their originals."""

    lr: list[Yuv]
    hr: list[Picture]
    picture_types: list[str]
    """`I`, `P` or `B`; `-` without a codec."""


def camera_path(
    shape: tuple[int, int], random: np.random.Generator, side: int, num_frames: int
) -> tuple[int, list[NDArray[np.float64]]]:
    """Draw a pan over a picture of (H, W) with a little zoom and rotation, at sub-pixel steps.

    Returns the side of what is seen, at most `side`, and for each frame the (2, 3) from there to
    the picture. The window stays far enough from the edges that no frame shows anything beyond the
    picture other than its mirrored edge.
    """
    height, width = shape
    side = min(side, height, width) // SIDE_MULTIPLE * SIDE_MULTIPLE
    speed = random.uniform(0.0, 3.0)  # high-resolution pixels a frame: 0 to 0.75 in low resolution
    angle = random.uniform(0, 2 * np.pi)
    step = speed * np.array([np.cos(angle), np.sin(angle)])
    zoom, turn = random.uniform(-0.004, 0.004), random.uniform(-0.003, 0.003)
    if random.random() < 0.25:
        step, zoom, turn = np.zeros(2), 0.0, 0.0  # a camera on a tripod
    span = 0.5 * num_frames * np.abs(step)
    centre = [
        random.uniform(min(side / 2 + s, length / 2), max(length - side / 2 - s, length / 2))
        for length, s in zip((width, height), span, strict=True)
    ]
    matrices = []
    for n in range(num_frames):
        along = n - (num_frames - 1) / 2
        scale, radians = 1 + zoom * along, turn * along
        cosine, sine = scale * np.cos(radians), scale * np.sin(radians)
        x, y = np.asarray(centre) + along * step
        middle = (side - 1) / 2
        matrices.append(
            np.array(
                [
                    [cosine, -sine, x - 0.5 - cosine * middle + sine * middle],
                    [sine, cosine, y - 0.5 - sine * middle - cosine * middle],
                ]
            )
        )
    return side, matrices


def camera_move(
    rgb_HW3: Picture, random: np.random.Generator, side: int, num_frames: int
) -> list[Picture]:
    """Return the frames of a drawn `camera_path` over a picture."""
    height, width = rgb_HW3.shape[:2]
    side, matrices = camera_path((height, width), random, side, num_frames)
    return [Camera("", side, matrix).sees(rgb_HW3) for matrix in matrices]


def decoded_frames(path: Path) -> Iterator[Frame]:
    """Yield every frame of a video, decoded as in the service; `MediaError` if that fails."""
    config = SourceConfig()
    decoder = Decoder(path, probe(path, config).video, config)
    try:
        yield from decoder.frames()
    finally:
        decoder.close()


def video_frames(path: Path, num_frames: int) -> list[Picture]:
    """Return the first frames of a video as RGB, cropped to multiples of 8.

    Raises:
        MediaError: the video cannot be decoded, or its colors cannot be converted.
    """
    frames = [_cropped(frame_to_rgb(frame)) for frame in islice(decoded_frames(path), num_frames)]
    if not frames:
        raise MediaError(f"{path}: no frame could be decoded.")
    return frames


def _cropped(rgb_HW3: Picture) -> Picture:
    height, width = (side // SIDE_MULTIPLE * SIDE_MULTIPLE for side in rgb_HW3.shape[:2])
    return rgb_HW3[:height, :width]


def frame_to_rgb(frame: Frame) -> Picture:
    """Convert to (H, W, 3), full range, uint8; subsampled chroma is enlarged by bicubic."""
    layout, color = frame.layout, frame.color
    if layout.kind == "rgb":
        green, blue, red = (_eight_bits(plane, layout.bits) for plane in frame.planes[:3])
        return round_to_codes(np.stack([red, green, blue], axis=-1))
    full = color.full_range if color.full_range is not None else layout.kind != "yuv"
    y = _eight_bits(frame.planes[0], layout.bits)
    luma = y / 255 if full else (y - 16) / 219
    if layout.kind == "gray":
        return round_to_codes(np.repeat(255 * luma[..., None], 3, axis=-1))
    size = (frame.width, frame.height)
    chroma = [
        cv2.resize(_eight_bits(plane, layout.bits) - 128, size, interpolation=cv2.INTER_CUBIC)
        / (255 if full else 224)
        for plane in frame.planes[1:3]
    ]
    inverse = np.linalg.inv(rgb_to_yuv_matrix(color.matrix))
    return round_to_codes(255 * (np.stack([luma, *chroma], axis=-1) @ inverse.T))


def through_codec(lr: list[Yuv], hr: list[Picture], settings: CodecSettings | None) -> LowClip:
    """Return the clip after its codec, or unchanged without one."""
    if settings is None:
        return LowClip(lr, hr, ["-"] * len(lr))
    decoded = encode_decode(lr, settings)
    return LowClip([d.planes for d in decoded], hr, [d.picture_type for d in decoded])


def degraded_pairs(
    folder: Path,
    spec: TrainedSpec,
    section: DegradationSection,
    *,
    patch_size: int,
    seed: int,
    num_pictures: int | None = None,
    cache_dir: Path | None = None,
    reporter: Reporter | None = None,
) -> list[Pair]:
    """Return frames of camera moves over the pictures of a folder, after their codecs.

    With `cache_dir` they are kept there, and a resumed run reads exactly the same ones; so does a
    run elsewhere, where no codec is. Memory: about 1.1 bytes per pixel of every kept frame, 1.6
    with chroma, 3.2 in RGB.

    Raises:
        UsageError: no picture is large enough for a patch.
        EncodeError: a codec failed.
    """
    frames = degraded_frames_of(
        folder,
        section,
        patch_size=patch_size,
        seed=seed,
        num_pictures=num_pictures,
        cache_dir=cache_dir,
        reporter=reporter,
    )
    by_picture = groupby(frames, key=lambda frame: frame.camera.picture)
    return [
        _pair_of(frame.low, frame.camera.sees(rgb), spec)
        for rgb, group in ((read_rgb(folder / name), group) for name, group in by_picture)
        for frame in group
    ]


def degraded_frames_of(
    folder: Path,
    section: DegradationSection,
    *,
    patch_size: int,
    seed: int,
    num_pictures: int | None = None,
    cache_dir: Path | None = None,
    reporter: Reporter | None = None,
) -> list[ClipFrame]:
    """Return what `degraded_pairs` makes pairs of; it raises the same errors."""
    reporter = reporter or Reporter(is_silent=True)
    pictures = evenly_chosen(find_pictures(folder), num_pictures)
    cache_path = None
    if cache_dir is not None:
        cache_path = cache_dir / f"{_cache_key(pictures, section, patch_size, seed)}.safetensors"
    frames = None if cache_path is None else read_frames(cache_path)
    if frames is None:
        making = reporter.each("making clips of the pictures", pictures, len(pictures))
        frames = [
            frame
            for number, path in enumerate(making)
            for frame in _frames_of(path, folder, section, patch_size, seed + number)
        ]
        if not frames:
            raise UsageError(
                f"{folder}: no picture is large enough for patches of {4 * patch_size}"
            )
        if cache_path is not None:
            write_frames(cache_path, frames)
    return frames


def _frames_of(
    path: Path, folder: Path, section: DegradationSection, patch_size: int, seed: int
) -> Iterator[ClipFrame]:
    try:
        rgb = read_rgb(path)
    except UsageError as error:
        log.warning("%s; left out", error)
        return
    if min(min(rgb.shape[:2]), section.window) // SIDE_MULTIPLE * SIDE_MULTIPLE < 4 * patch_size:
        log.warning("%s: smaller than a patch of %d; left out", path, 4 * patch_size)
        return
    random = np.random.Generator(np.random.PCG64(seed))
    name, (height, width) = path.relative_to(folder).as_posix(), rgb.shape[:2]
    for number in range(section.clips_per_picture):
        side, matrices = camera_path(
            (height, width), random, section.window, section.frames_per_clip
        )
        cameras = [Camera(name, side, matrix) for matrix in matrices]
        hr = [camera.sees(rgb) for camera in cameras]
        for low in low_frames(f"{name}@{number}", hr, section, random):
            yield ClipFrame(low, cameras[low.number])


def pairs_of_clip(
    name: str,
    hr: list[Picture],
    spec: TrainedSpec,
    section: DegradationSection,
    random: np.random.Generator,
) -> Iterator[Pair]:
    """Yield a few frames of a clip, downscaled and degraded together, with their originals."""
    for low in low_frames(name, hr, section, random):
        yield _pair_of(low, hr[low.number], spec)


def low_frames(
    name: str, hr: list[Picture], section: DegradationSection, random: np.random.Generator
) -> Iterator[LowFrame]:
    """Downscale and degrade a clip, and yield the few of its frames to train on."""
    small = degraded_frames([downscale(frame, 4) for frame in hr], section, random)
    settings = None
    if random.random() >= section.clean_share:
        side = min(small[0].shape[:2])
        codecs = [name for name in section.codecs if side >= MIN_SIDE.get(name, 2)]
        settings = random_settings(
            random, codecs or [FALLBACK_CODEC], section.min_crf, section.max_crf
        )
    clip = through_codec([as_yuv420(frame) for frame in small], hr, settings)
    severity = 0.0 if settings is None else section.severity(settings.crf)
    for index in kept_frames(clip.picture_types, section.kept_frames, random):
        how = "clean" if settings is None else f"{settings} {clip.picture_types[index]}"
        yield LowFrame(f"{name}.{index} {how}", index, severity, clip.lr[index])


def _pair_of(low: LowFrame, hr: Picture, spec: TrainedSpec) -> Pair:
    planes = decoded_input(low.planes, spec.color_form)
    return Pair(low.name, ((1.0, planes),), target_planes(hr, spec.color_form), low.severity)


def degraded_frames(
    frames: list[Picture], section: DegradationSection, random: np.random.Generator
) -> list[Picture]:
    """Apply blur, noise and JPEG before the codec, like Real-ESRGAN's second order (ICCVW 2021).

    All settings are the same for all frames of a clip; the noise itself is drawn for each.
    """
    if random.random() < section.blur_share:
        sigma_x, sigma_y = random.uniform(0.2, section.max_blur, size=2)
        frames = [
            np.asarray(cv2.GaussianBlur(f, (0, 0), sigma_x, sigmaY=sigma_y), np.uint8)
            for f in frames
        ]
    if random.random() < section.noise_share:
        deviation = random.uniform(0.5, section.max_noise)
        planes = 1 if random.random() < 0.5 else 3
        frames = [
            round_to_codes(f + random.normal(0, deviation, (*f.shape[:2], planes))) for f in frames
        ]
    if random.random() < section.jpeg_share:
        quality = int(random.integers(40, 95))
        frames = [_as_jpeg(f, quality) for f in frames]
    return frames


def kept_frames(types: Sequence[str], count: int, random: np.random.Generator) -> list[int]:
    """Return which frames of a clip to train on, in order: P and B if possible, then I."""
    order = random.permutation(len(types))
    return sorted(int(i) for i in sorted(order, key=lambda i: types[i] == "I")[:count])


def _as_jpeg(rgb_HW3: Picture, quality: int) -> Picture:
    bgr = cv2.cvtColor(rgb_HW3, cv2.COLOR_RGB2BGR)
    _, content = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded: Any = cv2.imdecode(content, cv2.IMREAD_COLOR)
    return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), np.uint8)


def _eight_bits(plane: NDArray[Any], bits: int) -> NDArray[np.float32]:
    return plane.astype(np.float32) / np.float32(1 << (bits - 8))


def _cache_key(
    pictures: list[Path], section: DegradationSection, patch_size: int, seed: int
) -> str:
    """Return a digest of everything that decides the frames."""
    files = [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in pictures]
    what = [CACHE_FORMAT, section.model_dump(mode="json"), patch_size, seed, files]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]
