"""Clips as training data: in place, in order, through real codecs, the same each time."""

from __future__ import annotations

import re
from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch

from srstream.errors import UsageError
from srstream.models.table import MODELS
from srstream.quality import luma_bt601, psnr
from tests.support import clips as made_clips
from trainer.config import DegradationSection, TrainConfig
from trainer.data import clips
from trainer.data.clips import (
    camera_move,
    degraded_pairs,
    frame_to_rgb,
    kept_frames,
    video_frames,
)
from trainer.data.codec import CodecSettings, x264_at
from trainer.judge.clipset import automatic_restore, load_test_clip
from trainer.run import start_run
from trainer.state import CHECKPOINT_NAME, load_state

SECTION = DegradationSection(window=256, frames_per_clip=4)
MEDIUM = {"preset": "medium", "gop": 250, "b_frames": 3}


def photograph(height=272, width=320, seed=0):
    random = np.random.default_rng(seed)
    picture = random.integers(0, 255, (height, width, 3), dtype=np.uint8)
    picture = cv2.GaussianBlur(picture, (0, 0), 2.5)
    return cv2.normalize(picture, None, 0, 255, cv2.NORM_MINMAX)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    for seed in range(5):
        path = tmp_path / "pictures" / f"{seed}.png"
        cv2.imwrite(str(path), photograph(seed=seed))
    cv2.imwrite(str(tmp_path / "pictures" / "tiny.png"), photograph(60, 60))
    return tmp_path / "pictures"


def test_a_camera_move_shows_the_picture_moving_steadily():
    rgb = photograph()
    speeds = []
    for seed in range(12):
        frames = camera_move(rgb, np.random.default_rng(seed), 128, 5)
        assert all(frame.shape == (128, 128, 3) for frame in frames)
        grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32) for frame in frames]
        middle = [g[32:96, 32:96] for g in grey]
        window = cv2.createHanningWindow((64, 64), cv2.CV_32F)
        moves = [cv2.phaseCorrelate(a, b, window)[0] for a, b in pairwise(middle)]
        speeds.append(np.hypot(*np.mean(moves, axis=0)))
        assert np.abs(np.diff(moves, axis=0)).max() < 1.5  # no jumps
    assert min(speeds) < 0.05  # a tripod now and then
    assert 1.0 < max(speeds) < 4


def test_a_still_camera_shows_the_picture_s_own_pixels(monkeypatch):
    class Still:
        def uniform(self, low, high):
            return 0.0 if low < 0 or high == 3.0 else low

        def random(self):
            return 0.0

    rgb = photograph(200, 240)
    frames = camera_move(rgb, Still(), 96, 3)
    assert any(
        np.abs(frames[0].astype(int) - rgb[top : top + 96, left : left + 96]).max() <= 1
        for top in range(105)
        for left in range(145)
    )


@pytest.mark.parametrize("name", MODELS)
def test_pairs_are_aligned_and_some_are_clean(folder, name, caplog):
    spec = MODELS[name]
    pairs = degraded_pairs(folder, spec, SECTION, patch_size=24, seed=1)
    assert "tiny.png: smaller than a patch of 96; left out" in caplog.text
    assert len(pairs) == 5 * SECTION.clips_per_picture * SECTION.kept_frames
    errors = {shift: [] for shift in ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0))}
    for pair in pairs:
        ((_, lr),) = pair.lr
        assert lr.shape == (spec.form.num_input_planes, 64, 64)
        for planes, group in zip(pair.hr, spec.form.outputs, strict=True):
            assert planes.shape == (group.num_planes, 64 * group.scale, 64 * group.scale)
        box = cv2.resize(pair.hr[0][0], (64, 64), interpolation=cv2.INTER_AREA)[4:-4, 4:-4]
        for shift, total in errors.items():
            moved = np.roll(lr[0], shift, (0, 1))[4:-4, 4:-4].astype(float)
            total.append(np.mean((moved - box) ** 2))
    right = np.array(errors.pop((0, 0)))
    for shifted in errors.values():
        assert right.mean() < 0.7 * np.mean(shifted)
        # Noise and quantization hide half a pixel in a smooth picture; less in the better half.
        sharp = right <= np.median(right)
        assert (right[sharp] < np.array(shifted)[sharp]).all()
    types = {pair.name.rsplit(" ", 1)[1] for pair in pairs}
    assert types <= {"clean", "P", "B", "I"}
    assert {"clean", "P"} <= types
    assert {pair.name.split("@")[0] for pair in pairs} == {f"{seed}.png" for seed in range(5)}


def test_about_a_fifth_is_clean(folder):
    section = SECTION.model_copy(update={"clips_per_picture": 12, "kept_frames": 1})
    section = section.model_copy(update={"codecs": ("libx264",), "frames_per_clip": 2})
    pairs = degraded_pairs(folder, MODELS["fast"], section, patch_size=24, seed=1)
    clean = sum(pair.name.endswith("clean") for pair in pairs)
    assert 4 <= clean <= 20  # of 60


def test_the_same_seed_gives_the_same_pairs_and_the_cache_too(folder, tmp_path, caplog):
    def make(**options):
        return degraded_pairs(folder, MODELS["balanced"], SECTION, patch_size=24, seed=3, **options)

    first, cached = make(), make(cache_dir=tmp_path / "cache")
    (kept,) = (tmp_path / "cache").iterdir()
    read = make(cache_dir=tmp_path / "cache")
    content = kept.read_bytes()
    kept.unlink()  # the arrays read above are maps of it
    kept.write_bytes(content[:-100])
    mended = make(cache_dir=tmp_path / "cache")
    assert "cannot be read" in caplog.text
    for other in (cached, read, mended):
        assert [pair.name for pair in other] == [pair.name for pair in first]
        for a, b in zip(first, other, strict=True):
            assert np.array_equal(a.lr[0][1], b.lr[0][1])
            assert all(np.array_equal(p, q) for p, q in zip(a.hr, b.hr, strict=True))
            assert a.severity == b.severity
    for pair in first:  # their names say what was done to them
        crf = re.search(r" crf([\d.]+) ", pair.name)
        expected = 0.0 if crf is None else min(max((float(crf[1]) - 18) / 18, 0.0), 1.0)
        assert pair.severity == pytest.approx(expected)
    assert len({pair.severity for pair in first}) > 3


def test_p_and_b_frames_are_kept_before_i():
    random = np.random.default_rng(0)
    assert kept_frames(["I", "P", "B", "I"], 2, random) == [1, 2]
    assert kept_frames(["I", "P", "I"], 2, random)[-1] in (1, 2)
    assert 1 in kept_frames(["I", "P", "I"], 2, random)
    drawn = {tuple(kept_frames(["-"] * 4, 2, random)) for _ in range(40)}
    assert len(drawn) == 6


def test_a_video_is_its_own_truth(tmp_path):
    path = made_clips.cfr(tmp_path / "in.mp4")
    hr = video_frames(path, 6)
    assert len(hr) == 6
    assert all(side % 8 == 0 for side in hr[0].shape[:2])
    quality = []
    for settings in (None, *(CodecSettings("libx264", crf, **MEDIUM) for crf in (18, 36))):
        clip = load_test_clip(path, settings, 6)
        assert all(np.array_equal(p.hr_HW3, f) for p, f in zip(clip.pictures, hr, strict=True))
        assert (clip.encoded is None) == (settings is None)
        small = [cv2.resize(luma_bt601(f), None, fx=0.25, fy=0.25, interpolation=3) for f in hr]
        planes = [picture.lr.yuv_3HW[0] for picture in clip.pictures]
        quality.append(np.mean([psnr(a, b) for a, b in zip(planes, small, strict=True)]))
    assert quality[0] > quality[1] > quality[2]


def test_auto_restores_the_more_the_harder_a_clip_was_compressed(tmp_path):
    rows, columns = np.mgrid[:96, :128] // 16
    checks = np.where((rows + columns) % 2, 200, 60).astype(np.uint8)  # what is soft is all mended
    frames = [np.repeat(np.roll(checks, 5 * n, 1)[..., None], 3, -1) for n in range(6)]
    path = made_clips.write_clip(tmp_path / "in.mp4", frames, width=128, height=96)
    mild, harsh = (
        automatic_restore(load_test_clip(path, x264_at(crf), 6).encoded, "fast") for crf in (5, 45)
    )
    assert mild.restore < harsh.restore == 1.0


def test_frames_become_rgb_in_every_layout():
    from srstream.frame import ColorSpec, PlaneLayout
    from tests.support.enhancer import color_bars, frame_of, planes_of

    picture = color_bars(64, 48)
    for layout, matrix, full in [
        (PlaneLayout("yuv", 8), 1, False),
        (PlaneLayout("yuv", 10), 9, True),
        (PlaneLayout("rgb", 8), 1, True),
        (PlaneLayout("rgb", 16), 1, True),
    ]:
        color = ColorSpec(1, 1, matrix, full, 1)
        rgb = frame_to_rgb(frame_of(planes_of(picture, layout, color), layout, color))
        assert np.abs(rgb - 255 * picture).max() <= 2.5


def test_a_folder_of_small_pictures_is_refused(tmp_path):
    cv2.imwrite(str(tmp_path / "tiny.png"), photograph(60, 60))
    with pytest.raises(UsageError, match="no picture is large enough"):
        degraded_pairs(tmp_path, MODELS["fast"], SECTION, patch_size=24, seed=0)


def test_kept_frames_travel_and_serve_every_colour_form(folder, tmp_path, monkeypatch):
    """Elsewhere no codec runs, and each model gets what it would have got here."""

    def make(name, **options):
        return degraded_pairs(folder, MODELS[name], SECTION, patch_size=24, seed=3, **options)

    expected = {name: make(name) for name in MODELS}
    make("fast", cache_dir=tmp_path / "made")
    monkeypatch.setattr(clips, "low_frames", None)
    for name, pairs in expected.items():
        for pair, kept in zip(pairs, make(name, cache_dir=tmp_path / "made"), strict=True):
            assert (kept.name, kept.severity) == (pair.name, pair.severity)
            assert np.array_equal(kept.lr[0][1], pair.lr[0][1])
            assert all(np.array_equal(p, q) for p, q in zip(kept.hr, pair.hr, strict=True))
    (kept,) = (tmp_path / "made").iterdir()
    raw = sum(pair.hr[0].size + pair.hr[1].size for pair in expected["balanced"])
    assert kept.stat().st_size < raw / 10  # the originals are not in it


def test_a_degraded_run_trains_and_resumes_on_the_same_clips(folder, tmp_path):
    def config(iterations):
        return TrainConfig.model_validate(
            {
                "model": "fast",
                "data": {"patch_size": 16, "batch_size": 2},
                "degradation": SECTION.model_dump(),
                "pixel": {"iterations": iterations},
                "run": {"num_threads": 1, "tensorboard": False},
            }
        )

    start_run(config(6), folder, tmp_path / "whole")
    start_run(config(3), folder, tmp_path / "parts")
    # The rate's cycle depends on the length: compare the patches that both have seen.
    start_run(config(6), folder, tmp_path / "parts", resume=True)
    whole, parts = (load_state(tmp_path / n / CHECKPOINT_NAME) for n in ("whole", "parts"))
    assert whole[1]["samplers"] == parts[1]["samplers"]
    assert whole[1]["pictures"] == parts[1]["pictures"]
    assert any("@" in name for name in whole[1]["pictures"])
    assert all(torch.isfinite(t).all() for t in parts[0].values() if t.is_floating_point())
    assert clips.CACHE_FORMAT == 3


def test_videos_in_the_data_folder_are_trained_on_too(tmp_path, caplog):
    from tests.trainer.test_finetune import write_video

    (tmp_path / "data").mkdir()
    write_video(tmp_path / "data" / "cam.mp4", range(2))
    made_clips.cfr(tmp_path / "data" / "small.mp4")
    (tmp_path / "data" / "broken.mkv").write_bytes(b"no video")
    for section in (None, SECTION.model_dump()):
        config = TrainConfig.model_validate(
            {
                "model": "balanced",
                "data": {"patch_size": 16, "batch_size": 2},
                "degradation": section,
                "pixel": {"iterations": 2},
                "run": {"num_threads": 1, "tensorboard": False},
            }
        )
        run_dir = tmp_path / f"run {section is None}"
        start_run(config, tmp_path / "data", run_dir)
        names = load_state(run_dir / CHECKPOINT_NAME)[1]["pictures"]
        assert {name.split("@")[0] for name in names} == {"cam.mp4"}
        assert len(names) >= 5
    assert "broken.mkv" in caplog.text
    assert "small.mp4: smaller than a patch of 64; left out" in caplog.text
    (tmp_path / "data" / "cam.mp4").unlink()
    with pytest.raises(UsageError, match="no video there shows anything"):
        start_run(config, tmp_path / "data", tmp_path / "none")
