"""`srstream enhance` through the real command, and where a frame's time goes.

Decoding, the host's work and encoding are measured alone by `srstream bench`, the network alone in
its session. On a CPU the same commands run with `--engine cuda` on the host device.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Self

from gpu.stages.report import TREE, Report, has_gpu, run_stage
from srstream.cli.bench import make_clip, network_fps
from srstream.config import EngineConfig, ModelConfig
from srstream.engines.table import open_engine
from srstream.models.table import available_models, model_spec

COMMAND_SECONDS = 100


def main(report: Report) -> None:
    size, num_frames = ((960, 540), 150) if has_gpu() else ((64, 48), 8)
    clip = make_clip(report.work / "clip.mp4", num_frames, size)
    version = command("--version")
    report.check("srstream --version", version.returncode == 0, said(version))
    planned = command("plan", clip, "--device", "h100", "--engine", "cuda")
    sentence = next((s for s in planned.stdout.splitlines() if "on paper" in s), said(planned))
    report.check("plan --device h100", planned.returncode == 0, sentence)
    for name in available_models():
        if name != "fast" and not has_gpu():
            report.not_shown(name)
        elif enhance(report, clip, name, num_frames):
            stages(report, clip, name)


def enhance(report: Report, clip: Path, name: str, num_frames: int) -> bool:
    """Enhance the clip; return whether that worked."""
    result = report.work / f"{name}.mp4"
    model = ["--model", name, "--engine", "cuda"]
    with GpuUse() as use:
        began = time.perf_counter()
        ran = command("enhance", clip, "-o", result, "--overwrite", "--restart", *model)
        seconds = time.perf_counter() - began
    text = ran.stdout + ran.stderr
    verified = next((s for s in text.splitlines() if s.startswith("verified")), said(ran))
    is_right = ran.returncode == 0 and f"{num_frames} of {num_frames} frames" in verified
    value = f"{num_frames / seconds:.1f} fps, start and check included; {verified}"
    report.check(f"{name}, enhance", is_right, value)
    if not has_gpu():
        report.not_shown(f"{name}, GPU busy")
    elif use.samples:
        mean, most = statistics.mean(use.samples), max(use.samples)
        value = f"{mean:.0f} % of the command's time, {most} % at most, says nvidia-smi"
        report.figure(f"{name}, GPU busy", value)
    else:
        report.not_shown(f"{name}, GPU busy", "nvidia-smi said nothing")
    return is_right


def stages(report: Report, clip: Path, name: str) -> None:
    """Measure each stage of the command alone."""
    options = ["--frames", "40", "--repeats", "1", "--no-networks", "--no-command", "--json"]
    measured = command("bench", clip, "--model", name, "--engine", "cuda", *options)
    if measured.returncode != 0:
        report.check(f"{name}, bench", False, said(measured))
        return
    found = json.loads(measured.stdout)
    alone = ", ".join(
        f"{stage} {1000 / of['fps']:.2f} (of the cores {of['cpu_ms_per_frame']:.2f})"
        for stage, of in found["stages"].items()
    )
    value = f"{alone}; the slowest: {found['slowest_stage']}"
    report.figure(f"{name}, ms a frame", value)
    if has_gpu():
        spec = model_spec(name)
        engine = open_engine("cuda", EngineConfig(), ModelConfig(name=name), spec)
        fps = network_fps(engine, spec, (540, 960))
        engine.close()
        enhance_fps = found["stages"]["enhance"]["fps"]
        value = f"{1000 / fps:.2f} ms a frame; busy for {enhance_fps / fps:.0%} of `enhance` alone"
        report.figure(f"{name}, network in its ring", value)


class GpuUse:
    """Asks nvidia-smi ten times a second for the share of time in which kernels ran."""

    def __init__(self) -> None:
        self.samples: list[int] = []
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        if has_gpu():
            query = ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "100"]
            self._process = subprocess.Popen(
                ["nvidia-smi", *query], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            self._thread = threading.Thread(target=self._read, args=[self._process])
            self._thread.start()
        return self

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip().isdigit():
                self.samples.append(int(line))

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._thread.join()


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    module = "srstream.cli.main" if has_gpu() else "tests.support.gpu.host_gpu"
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=TREE,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
    )


def said(ran: subprocess.CompletedProcess[str]) -> str:
    return (ran.stdout + ran.stderr).strip()[-300:]


if __name__ == "__main__":
    run_stage(main)
