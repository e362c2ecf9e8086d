"""`srstream bench`: real stages, figures that hang together, advice that follows from them."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from srstream.cli.bench import Network, Report, Stage, advice
from srstream.cli.main import app
from srstream.cli.matrix_product import gemm_gflops
from srstream.models.table import available_models
from tests.support import clips


def test_a_clip_s_stages_and_the_whole_command(tmp_path):
    source = clips.cfr(tmp_path / "in.mp4", frames=12)
    arguments = ["bench", str(source), "--frames", "6", "--repeats", "1", "--no-networks", "--json"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    report = json.loads(result.stdout)
    assert report["clip"] == "64x48, 12 frames"
    assert set(report["stages"]) == {"decode", "enhance", "encode"}
    fps = {name: stage["fps"] for name, stage in report["stages"].items()}
    assert report["slowest_stage"] == min(fps, key=fps.get)
    assert 0 < report["command_fps"] < fps[report["slowest_stage"]]
    assert report["command_to_slowest_stage"] == pytest.approx(
        report["command_fps"] / fps[report["slowest_stage"]]
    )
    assert 50 < report["command_memory_mib"] < 2000
    assert report["gemm_gflops"] > 0


@pytest.mark.long
def test_every_model_in_every_engine_on_a_clip_that_is_made(monkeypatch):
    monkeypatch.setattr("srstream.cli.bench.NETWORK_SECONDS", 0.05)
    monkeypatch.setattr("srstream.cli.bench.CLIP_SIZE", (64, 48))
    arguments = ["bench", "--seconds", "0.4", "--frames", "4", "--repeats", "1", "--no-command"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    for name in available_models():
        for engine in ("openvino", "pytorch"):
            assert any(line.split()[:2] == [name, engine] for line in result.stdout.splitlines()), (
                result.stdout
            )
    assert "GFLOP/s" in result.stdout


def test_advice_follows_from_what_was_measured():
    stages = {name: Stage(fps, [fps], 1.0) for name, fps in
              {"decode": 900.0, "enhance": 5.0, "encode": 90.0}.items()}  # fmt: skip
    networks = [
        Network("openvino", "fast", 30.0, 60.0, 0.9),
        Network("openvino", "balanced", 5.0, 58.0, 0.9),
    ]  # fmt: skip
    report = Report("", "balanced", 2, 66.0, networks, stages, "enhance", 9.0)
    assert any("--model fast runs 6.0 times" in sentence for sentence in advice(report))
    networks.append(Network("openvino, int8", "balanced", 15.0, 174.0, 2.7))
    assert any("--precision int8 runs the network 3.0 times" in s for s in advice(report))
    encoding = replace(report, slowest_stage="encode")
    assert any("--preset" in sentence for sentence in advice(encoding))
    slow = replace(report, command_fps=2.0)
    assert any("40% of its slowest stage" in sentence for sentence in advice(slow))


@pytest.mark.parametrize("library", ["openvino", "torch"])
def test_the_matrix_product_is_measured_by_the_library_that_is_there(monkeypatch, library):
    monkeypatch.setattr(
        "srstream.cli.matrix_product.is_installed", lambda name: library == "openvino"
    )
    if library == "torch":
        monkeypatch.setitem(sys.modules, "openvino", None)  # its import fails
    assert 1 < gemm_gflops(1, 1) < 5000


def test_the_engine_that_is_asked_for_is_measured(tmp_path):
    source = clips.cfr(tmp_path / "in.mp4", frames=4)
    arguments = ["bench", str(source), "--frames", "2", "--repeats", "1", "--no-networks", "--json"]
    result = CliRunner().invoke(app, [*arguments, "--engine", "pytorch"], catch_exceptions=False)
    report = json.loads(result.stdout)
    assert report["engine"].startswith("pytorch on ")
    assert report["command_fps"] > 0
