"""How hard a source was compressed, and what `--restore auto` makes of it."""

from __future__ import annotations

import json
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from srstream.config import JobConfig, ModelConfig, SourceConfig
from srstream.media.probe import probe, scan_packets
from srstream.media.quantiser import estimated_quantiser, measure_compression
from srstream.models import table
from srstream.models.blend import RESTORE_BY_QUANTISER, restore_for
from srstream.models.table import Stack, model_spec
from srstream.pipeline.compression import choose_restore
from tests.jobs import run
from tests.networks import model_network

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
def test_the_quantiser_rises_with_the_compression(tmp_path, codec, name, option, values, is_read):
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
    quantisers = [one.quantiser for one in found]
    assert all((one.num_frames > 0) == is_read for one in found)
    assert all(b > a + 2 for a, b in pairwise(quantisers)), quantisers
    if codec == "libx264":
        assert quantisers == pytest.approx(values, abs=5)


def test_mpeg_quantisers_become_x264_s(tmp_path):
    """x264 counts qscale as 0.85 * 2 ** ((qp - 12) / 6)."""
    clip = moving_clip(tmp_path / "x.mpg", "mpeg2video", qmin="8", qmax="8")
    assert compression_of(clip).quantiser == pytest.approx(31.4, abs=1.5)


def test_lossless_sources_need_no_mending(tmp_path):
    found = compression_of(moving_clip(tmp_path / "x.mkv", "ffv1"))
    assert found.quantiser == 0.0


def test_the_estimate_follows_the_bits_and_the_codec():
    assert estimated_quantiser("h264", 0.12) == pytest.approx(23)
    assert estimated_quantiser("h264", 0.06) == pytest.approx(29)
    assert estimated_quantiser("hevc", 0.06) < estimated_quantiser("h264", 0.06)
    assert estimated_quantiser("prores", 4.0) < 18
    assert estimated_quantiser("h264", 0.0) == 51


@pytest.mark.parametrize("model", RESTORE_BY_QUANTISER)
def test_the_knob_rises_with_the_quantiser(model):
    assert restore_for(0, model) == 0.0
    assert restore_for(51, model) == 1.0
    values = [restore_for(quantiser, model) for quantiser in range(52)]
    assert values == sorted(values)
    for quantiser, value in RESTORE_BY_QUANTISER[model]:
        assert restore_for(quantiser, model) == pytest.approx(value)


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
    assert chosen.reason.startswith("h264 at a mean quantiser of 3")
    assert chosen.reason.endswith("frames")
    assert chosen.applied(ModelConfig()).restore == chosen.value
    assert choose(restore=0.25).value == 0.25
    assert choose(weights="mine.onnx").value == 0.0


def test_the_plan_says_what_was_chosen(tmp_path):
    clip = moving_clip(tmp_path / "x.mp4", "libx264")
    planned = run("plan", clip, "--json")
    summary = json.loads(planned.stdout)
    assert {"restore", "restore_reason", "detail"} <= summary.keys()
    assert f"restore {summary['restore']:g} (" in run("plan", clip).stdout
    refused = run("plan", clip, "--restore", "much")
    assert refused.returncode == 2
    assert "--restore much: write a number from 0 to 1, or auto" in refused.stderr
    refused = run("plan", clip, "--detail", "1")
    assert refused.returncode == 2
    assert "has no crisp weights, only faithful" in refused.stderr
