"""Every stage alone and the whole command, as frames a second and as ratios.

    python benchmarks/stages.py                     a one-minute 320x180 clip made from the sample
    python benchmarks/stages.py my.mp4 --json       another clip, machine-readable

Stages: `decode` (libav, planes out), `network` (the engine's session, no colour, no placing),
`enhance` (the whole Enhancer on decoded frames) and `encode` (x264 veryfast). Each is measured
alone, in turns with the others, `--repeats` times; medians are shown, and the spread, because
shared machines drift. CPU milliseconds count all threads; cores / their sum is what a perfect
pipeline could reach. `gemm` is the machine's float32 matrix product through OpenVINO, to judge
absolute figures by.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import av
import numpy as np

from srstream.config import EncodeConfig, EngineConfig, JobConfig
from srstream.engines.openvino import import_openvino
from srstream.frame import Frame
from srstream.media.decode import Decoder
from srstream.media.encode import SegmentEncoder
from srstream.pipeline.enhancer import Enhancer
from srstream.pipeline.plan import JobPlan, make_plan

REPOSITORY = Path(__file__).parent.parent
SAMPLE = REPOSITORY / "samples" / "nasa_13013.mp4"
WIDTH, HEIGHT, SECONDS = 320, 180, 60


@dataclass(frozen=True)
class Measured:
    """One stage: frames a second, all runs of them, and CPU time a frame over all threads."""

    fps: float
    fps_runs: list[float]
    cpu_ms_per_frame: float


def main() -> None:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory(prefix="srstream-bench-") as name:
        folder = Path(name)
        clip = arguments.clip or make_clip(folder / "clip.mp4")
        report = measure(clip, folder, arguments)
    print(json.dumps(report, indent=2) if arguments.json else table(report))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "clip", nargs="?", type=Path, help="video file; default: made of the sample"
    )
    parser.add_argument("--frames", type=int, default=100, help="frames a stage is measured on")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each stage")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: all")
    parser.add_argument("--no-command", action="store_true", help="leave the whole command out")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args()


def make_clip(path: Path) -> Path:
    """The sample at 320x180, over and over for a minute; its sound is left out."""
    with av.open(SAMPLE) as source:
        stream = source.streams.video[0]
        rate = stream.average_rate or 25
        pictures = [
            frame.reformat(WIDTH, HEIGHT, "yuv420p", interpolation="AREA")
            for frame in source.decode(stream)
        ]
    with av.open(path, "w") as target:
        output = target.add_stream("libx264", rate=rate, options={"crf": "20", "preset": "fast"})
        output.width, output.height, output.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(round(SECONDS * rate)):
            picture = pictures[number % len(pictures)]
            picture.pts, picture.time_base, picture.pict_type = number, 1 / rate, 0
            target.mux(output.encode(picture))
        target.mux(output.encode())
    return path


def measure(clip: Path, folder: Path, arguments: argparse.Namespace) -> dict[str, object]:
    config = JobConfig(
        engine=EngineConfig(threads=arguments.threads),
        encode=EncodeConfig(codec="libx264", preset="veryfast"),
    )
    plan = make_plan(clip, folder / "planned.mp4", config)
    frames = decode(plan, arguments.frames)
    enlarged = enhance(plan, frames)
    stages: dict[str, Callable[[], object]] = {
        "decode": lambda: decode(plan, len(frames)),
        "network": lambda: network(plan, frames),
        "enhance": lambda: enhance(plan, frames),
        "encode": lambda: encode(plan, enlarged, folder / "segment.part"),
    }
    measured = in_turns(stages, len(frames), arguments.repeats)
    cores = arguments.threads or len(os.sched_getaffinity(0))
    used = sum(measured[name].cpu_ms_per_frame for name in ("decode", "enhance", "encode"))
    slowest = min(("decode", "enhance", "encode"), key=lambda name: measured[name].fps)
    report: dict[str, object] = {
        "clip": f"{plan.source.video.width}x{plan.source.video.height}, {plan.num_frames} frames",
        "model": plan.model.name,
        "cores": cores,
        "stages": {name: asdict(stage) for name, stage in measured.items()},
        "slowest_stage": slowest,
        "fps_if_all_cores_were_always_busy": 1000 * cores / used,
        "gemm_gflops": gemm_gflops(cores, arguments.repeats),
        "network_gflops": network_gflops(plan, measured["network"].fps),
    }
    if not arguments.no_command:
        runs = [whole_command(clip, folder, arguments.threads) for _ in range(arguments.repeats)]
        fps = plan.num_frames / statistics.median(runs)
        report["command_fps"] = fps
        report["command_fps_runs"] = [plan.num_frames / seconds for seconds in runs]
        report["command_to_slowest_stage"] = fps / measured[slowest].fps
    return report


def in_turns(
    stages: dict[str, Callable[[], object]], num_frames: int, repeats: int
) -> dict[str, Measured]:
    """Every stage once, then all again: a slow minute of the machine hits them all."""
    wall: dict[str, list[float]] = {name: [] for name in stages}
    cpu: dict[str, list[float]] = {name: [] for name in stages}
    for _ in range(repeats):
        for name, run in stages.items():
            wall_start, cpu_start = time.perf_counter(), time.process_time()
            run()
            wall[name].append(time.perf_counter() - wall_start)
            cpu[name].append(time.process_time() - cpu_start)
    return {
        name: Measured(
            fps=num_frames / statistics.median(wall[name]),
            fps_runs=[num_frames / seconds for seconds in wall[name]],
            cpu_ms_per_frame=1000 * statistics.median(cpu[name]) / num_frames,
        )
        for name in stages
    }


def decode(plan: JobPlan, num_frames: int) -> list[Frame]:
    decoder = Decoder(plan.source.path, plan.source.video, plan.config.source)
    try:
        return [frame for frame, _ in zip(decoder.frames(), range(num_frames), strict=False)]
    finally:
        decoder.close()


def network(plan: JobPlan, frames: Iterable[Frame]) -> None:
    """Luma of every frame through a session of the frame's own size."""
    video = plan.source.video
    session = plan.engine.open_session((video.height, video.width), video.layout.bits)
    tickets = []
    for frame in frames:
        if len(tickets) >= session.num_in_flight:
            session.result(tickets.pop(0))
        tickets.append(session.submit(frame.planes[0]))
    for ticket in tickets:
        session.result(ticket)
    session.close()


def enhance(plan: JobPlan, frames: Iterable[Frame]) -> list[Frame]:
    enhancer = Enhancer(plan.engine, plan.source.video, plan.output.video)
    try:
        done = [enlarged for frame in frames for enlarged in enhancer.push(frame)]
        return done + enhancer.drain()
    finally:
        enhancer.close()


def encode(plan: JobPlan, frames: Iterable[Frame], path: Path) -> None:
    encoder = SegmentEncoder(path, plan.output.video, plan.config.engine.threads)
    for frame in frames:
        encoder.push(frame)
    encoder.close()


def gemm_gflops(cores: int, repeats: int, side: int = 1536) -> float:
    openvino = import_openvino()
    from openvino import opset13 as ops

    left, right = (ops.parameter([side, side], openvino.Type.f32) for _ in range(2))
    graph = openvino.Model([ops.result(ops.matmul(left, right, False, False))], [left, right])
    options = {"INFERENCE_NUM_THREADS": str(cores), "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(graph, "CPU", options).create_infer_request()
    matrices = list(np.random.default_rng(0).random((2, side, side), np.float32))
    request.infer(matrices)
    seconds = []
    for _ in range(3 * repeats):
        start = time.perf_counter()
        request.infer()
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / statistics.median(seconds) / 1e9


def network_gflops(plan: JobPlan, fps: float) -> float:
    video = plan.source.video
    return 2e3 * plan.model.kmac_per_pixel * video.width * video.height * fps / 1e9


def whole_command(clip: Path, folder: Path, threads: int) -> float:
    """Seconds of `srstream enhance`, start of the interpreter and verification included."""
    command = [sys.executable, "-m", "srstream.cli", "enhance", str(clip)]
    command += ["-o", str(folder / "whole.mp4"), "--overwrite", "--restart"]
    command += ["--codec", "libx264", "--preset", "veryfast", "--threads", str(threads)]
    start = time.perf_counter()
    ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise SystemExit(f"srstream enhance failed:\n{ran.stderr}")
    return time.perf_counter() - start


def table(report: dict[str, object]) -> str:
    stages = report["stages"]
    slowest = report["slowest_stage"]
    assert isinstance(stages, dict)
    assert isinstance(slowest, str)
    lines = [f"{report['clip']}, model {report['model']}, {report['cores']} cores", ""]
    lines.append(f"{'alone':12}{'fps':>9}{'lowest':>9}{'highest':>9}{'CPU ms':>9}{'x slowest':>11}")
    for name, stage in stages.items():
        runs = stage["fps_runs"]
        lines.append(
            f"{name:12}{stage['fps']:9.1f}{min(runs):9.1f}{max(runs):9.1f}"
            f"{stage['cpu_ms_per_frame']:9.1f}{stage['fps'] / stages[slowest]['fps']:11.2f}"
        )
    lines.append("")
    lines.append(
        f"all cores always busy: {report['fps_if_all_cores_were_always_busy']:.1f} fps; network "
        f"{report['network_gflops']:.0f} GFLOP/s, matrix product {report['gemm_gflops']:.0f}"
    )
    if "command_fps" in report:
        lines.append(
            f"srstream enhance:      {report['command_fps']:.1f} fps, "
            f"{report['command_to_slowest_stage']:.2f} of the slowest stage ({slowest}) alone"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
