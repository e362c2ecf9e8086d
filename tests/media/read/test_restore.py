"""How hard a source was compressed, and what `--restore auto` makes of it."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from srstream.config import JobConfig, ModelConfig, SourceConfig
from srstream.media.read.degradation import choose_restore
from srstream.media.read.probe import probe, scan_packets
from srstream.media.read.quantizer import estimated_quantizer, measure_compression
from srstream.media.read.sharpness import detail_of
from srstream.models import table
from srstream.models.restore_auto import RESTORE_RULES, Detail, restoration_for
from srstream.models.table import Stack, model_spec
from tests.support.clips import write_clip
from tests.support.jobs import run
from tests.support.networks import model_network

CONFIG = SourceConfig()


def moving_clip(path: Path, codec: str, num_frames: int = 40, **options: str) -> Path:
    """A detailed picture that moves, with a keyframe in the middle."""
    random = np.random.default_rng(0)
    picture = random.integers(0, 255, (200, 400, 3), dtype=np.uint8)
    picture = cv2.GaussianBlur(picture, (0, 0), 1.5)
    picture = cv2.normalize(picture, None, 0, 255, cv2.NORM_MINMAX)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"g": "20", **options})
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        if codec == "mjpeg":
            stream.pix_fmt = "yuvj420p"
        stream.time_base = Fraction(1, 25)
        for n in range(num_frames):
            rgb = np.ascontiguousarray(picture[n : n + 96, 3 * n : 3 * n + 160])
            frame = av.VideoFrame.from_ndarray(rgb, "rgb24")
            frame.pts = n
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def compression_of(path: Path):
    video = probe(path, CONFIG).video
    return measure_compression(path, video, scan_packets(path, video).key_pts, CONFIG)


@pytest.mark.parametrize(
    ("codec", "name", "option", "values", "is_read"),
    [
        ("libx264", "x.mp4", "crf", (18, 24, 30, 36), True),
        ("mpeg2video", "x.mpg", "qscale", (2, 5, 10, 20), True),
        ("mpeg4", "x.mp4", "qscale", (2, 5, 10, 20), True),
        ("libvpx-vp9", "x.webm", "crf", (10, 25, 40, 55), True),
        ("libx265", "x.mp4", "crf", (18, 24, 30, 36), False),
        ("libsvtav1", "x.mp4", "crf", (15, 30, 45, 60), False),
        ("mjpeg", "x.mkv", "qscale", (2, 5, 10, 20), False),
    ],
)
def test_the_quantizer_rises_with_the_compression(tmp_path, codec, name, option, values, is_read):
    found = []
    for value in values:
        options = {option: str(value)}
        if option == "qscale":
            options = {"qmin": str(value), "qmax": str(value)}
        if codec == "libvpx-vp9":
            options |= {"b": "0", "cpu-used": "8", "deadline": "realtime"}
        if codec == "libsvtav1":
            options |= {"preset": "12"}
        if codec == "libx265":
            options |= {"preset": "ultrafast", "x265-params": "log-level=error:pools=1"}
        found.append(compression_of(moving_clip(tmp_path / f"{value}{name}", codec, **options)))
    quantizers = [one.quantizer for one in found]
    assert all((one.num_frames > 0) == is_read for one in found)
    assert all(b > a + 2 for a, b in pairwise(quantizers)), quantizers
    if codec == "libx264":
        assert quantizers == pytest.approx(values, abs=5)


def test_mpeg_quantizers_become_x264_s(tmp_path):
    """x264 counts qscale as 0.85 * 2 ** ((qp - 12) / 6)."""
    clip = moving_clip(tmp_path / "x.mpg", "mpeg2video", qmin="8", qmax="8")
    assert compression_of(clip).quantizer == pytest.approx(31.4, abs=1.5)


def test_lossless_sources_need_no_mending(tmp_path):
    found = compression_of(moving_clip(tmp_path / "x.mkv", "ffv1"))
    assert found.quantizer == 0.0
    assert 0 < found.detail.sharpness < 1.0  # blurred by 1.5


def test_the_estimate_follows_the_bits_and_the_codec():
    assert estimated_quantizer("h264", 0.12) == pytest.approx(23)
    assert estimated_quantizer("h264", 0.06) == pytest.approx(29)
    assert estimated_quantizer("hevc", 0.06) < estimated_quantizer("h264", 0.06)
    assert estimated_quantizer("prores", 4.0) < 18
    assert estimated_quantizer("h264", 0.0) == 51


SHARP = Detail(slope=20.0, curvature=20.0)


@pytest.mark.parametrize("model", RESTORE_RULES)
def test_the_knob_rises_with_the_quantizer(model):
    assert restoration_for(0, SHARP, model).restore == 0.0
    assert restoration_for(51, SHARP, model).restore == 1.0
    values = [restoration_for(quantizer, SHARP, model).restore for quantizer in range(52)]
    assert values == sorted(values)
    assert restoration_for(18, SHARP, model).strength == 1.0


@pytest.mark.parametrize("model", RESTORE_RULES)
@pytest.mark.parametrize("quantizer", [12, 24, 36])
def test_the_softer_a_source_the_less_of_the_network(model, quantizer):
    chosen = [
        restoration_for(quantizer, Detail(slope=20.0, curvature=20.0 * share), model)
        for share in (0.1, 0.3, 0.5, 0.7, 1.0)
    ]
    strengths = [one.strength for one in chosen]
    assert strengths == sorted(strengths)
    assert strengths[0] <= 0.5
    assert chosen[0].restore == 1.0  # what the faithful weights add to it is wrong


def frames_of(picture: np.ndarray, num_frames: int = 20) -> list[np.ndarray]:
    """96x160 windows of a large picture, moved by whole pixels."""
    return [
        np.ascontiguousarray(picture[n : n + 96, 3 * n : 3 * n + 160]) for n in range(num_frames)
    ]


def checks() -> np.ndarray:
    """Squares with hard edges."""
    y, x = np.mgrid[:200, :400]
    grey = np.where((y // 12 + x // 12) % 2, 200, 60).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def detail_at(path: Path, picture: np.ndarray, crf: int) -> Detail:
    write_clip(path, frames_of(picture), width=160, height=96, options={"crf": str(crf)})
    found = compression_of(path)
    return found.detail


@pytest.mark.parametrize("crf", [18, 30])
def test_sharpness_tells_blur_from_edges_and_edges_from_noise(tmp_path, crf):
    sharp = checks()
    blurred = cv2.GaussianBlur(sharp, (0, 0), 3.0)
    noise = np.random.default_rng(0).normal(0, 25, (*sharp.shape[:2], 1))
    noisy = np.clip(128 + 0 * sharp + noise, 0, 255).astype(np.uint8)
    made = [
        detail_at(tmp_path / f"{name}.mp4", picture, crf)
        for name, picture in (("blurred", blurred), ("sharp", sharp), ("noisy", noisy))
    ]
    soft, edges, grain = (one.sharpness for one in made)
    assert 0.1 < soft < 0.35
    assert edges == pytest.approx(1.0, abs=0.1)
    assert grain > edges + 0.1
    assert made[1].octaves_over(20) == pytest.approx(made[1].octaves_over(26) + 1)


def test_detail_is_measured_in_levels_whatever_the_depth(tmp_path):
    """A ramp of 2 levels a sample: a slope of 4 over two samples, no curvature."""
    ramp = np.tile(np.arange(40, 200, 2, np.uint16), (60, 1))
    for bits in (8, 10, 16):
        plane = (ramp << (bits - 8)).astype(np.uint8 if bits == 8 else np.uint16)
        found = detail_of(plane, bits)
        assert found.slope == pytest.approx(4 / 2**0.5)  # along one axis of two
        assert found.curvature == 0.0
    # Of a wave: 2 (1 - cos w) beside 2 sin w.
    wave = np.tile(32768 + 20000 * np.sin(2 * np.pi / 24 * np.arange(241)), (241, 1))
    found = detail_of(wave.astype(np.uint16), 16)
    assert found.sharpness == pytest.approx(np.tan(np.pi / 24), rel=0.02)
    woven = np.zeros((60, 80), np.uint8)
    woven[1::2] = 100
    assert detail_of(woven, 8, is_interlaced=True).curvature == 0.0
    assert detail_of(woven, 8).curvature > 100
    assert detail_of(np.zeros((1, 1), np.uint8), 8).sharpness == 0.0


def test_a_file_whose_first_stream_is_sound(tmp_path):
    """The stream's number in the file is not its number among the video streams."""
    silent = moving_clip(tmp_path / "silent.mp4", "libx264", crf="24")
    path = tmp_path / "x.mkv"
    with av.open(str(silent)) as source, av.open(str(path), "w") as target:
        sound = target.add_stream("pcm_s16le", rate=8000, layout="mono")
        video = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = video
                target.mux(packet)
        block = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        block.sample_rate, block.pts = 8000, 0
        target.mux(sound.encode(block))
        target.mux(sound.encode())
    assert probe(path, CONFIG).video.index == 1
    assert compression_of(path).quantizer == pytest.approx(compression_of(silent).quantizer)


def test_the_choice_and_its_reason(tmp_path, monkeypatch):
    spec = model_spec("fast")
    clip = moving_clip(tmp_path / "x.mp4", "libx264", crf="32")
    video = probe(clip, CONFIG).video
    index = scan_packets(clip, video)

    def choose(**model):
        return choose_restore(clip, video, index, JobConfig(model=ModelConfig(**model)), spec)

    monkeypatch.setattr(table, "WEIGHTS_DIR", tmp_path)
    model_network(tmp_path / "fast.onnx", table.ModelSpec("fast", "luma", Stack((4,))))
    assert choose().value == 0.0
    assert "has no restore weights" in choose().reason
    model_network(tmp_path / "fast.restore.onnx", table.ModelSpec("fast", "luma", Stack((4,))))
    chosen = choose()
    assert chosen.value > 0.6
    assert chosen.reason.startswith("h264 at a mean quantizer of 3")
    assert re.search(r"from \d+ frames; sharpness \d\.\d\d$", chosen.reason)
    assert chosen.applied(ModelConfig()).restore == chosen.value
    assert choose(restore=0.25).value == 0.25
    assert choose(weights="mine.onnx").value == 0.0


def test_the_plan_says_what_was_chosen(tmp_path):
    clip = moving_clip(tmp_path / "x.mp4", "libx264")
    planned = run("plan", clip, "--json")
    summary = json.loads(planned.stdout)
    assert {"restore", "restore_reason", "strength", "detail"} <= summary.keys()
    strength = summary["strength"]
    at_strength = "" if strength == 1 else f" at a strength of {strength:g}"
    assert f"restore {summary['restore']:g}{at_strength} (" in run("plan", clip, "--verbose").stdout
    soft = write_clip(
        tmp_path / "soft.mp4",
        frames_of(cv2.GaussianBlur(checks(), (0, 0), 4.0)),
        width=160,
        height=96,
    )
    summary = json.loads(run("plan", soft, "--json").stdout)
    assert 0 < summary["strength"] < 1
    assert (
        f"at a strength of {summary['strength']:g} (h264" in run("plan", soft, "--verbose").stdout
    )
    asked = json.loads(run("plan", soft, "--json", "--restore", "0.5").stdout)
    assert (asked["restore"], asked["strength"]) == (0.5, 1.0)
    refused = run("plan", clip, "--restore", "much")
    assert refused.returncode == 2
    assert "--restore much: write a number from 0 to 1, or auto" in refused.stderr
    refused = run("plan", clip, "--detail", "1")
    assert refused.returncode == 2
    assert "has no crisp weights, only faithful" in refused.stderr
