"""`srstream bench`: what this machine can do, stage by stage, and what would make it faster.

Each stage is measured alone, in turns with the others, several times over; medians are shown,
because shared machines drift. The machine's own float32 matrix product stands beside absolute
figures. Nothing is tuned for the clip.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import av
import cv2
import numpy as np
from rich.table import Table

from srstream.cli.matrix_product import gemm_gflops
from srstream.config import EncodeConfig, EngineConfig, JobConfig, ModelConfig, Precision
from srstream.engines.contract import Engine, TileFormat
from srstream.engines.table import ENGINES, FASTER_IN_NCNN, can_run, open_engine
from srstream.enhancer.enhancer import Enhancer
from srstream.errors import EngineError
from srstream.frame import Frame, Plane
from srstream.jobs.planning.plan import JobPlan, make_plan
from srstream.media.read.decode import Decoder
from srstream.media.write.encode import SegmentEncoder
from srstream.models.table import ModelSpec, available_models, model_spec
from srstream.terminal import plain_console

CLIP_SIZE, CLIP_RATE = (320, 180), 25
"""Columns and rows of the clip that is made where none is given."""

CLIP_PERIOD = 100
"""Frames after which it turns back."""

NETWORK_SECONDS = 1.0
"""How long each network is measured, at least for three tiles."""


CLEARLY = 1.1
"""Times as fast: less is not held against the rule by which `auto` chooses an engine."""


@dataclass(frozen=True)
class Network:
    """A model in an engine, alone: no color, no placing."""

    engine: str
    model: str
    fps: float
    gflops: float
    """Multiply-accumulates count as two."""
    share_of_gemm: float


@dataclass(frozen=True)
class Stage:
    """Frames a second, all runs of them, and CPU time a frame over all threads."""

    fps: float
    fps_runs: list[float]
    cpu_ms_per_frame: float


@dataclass(frozen=True)
class Report:
    """Everything that was measured."""

    clip: str
    model: str
    cores: int
    gemm_gflops: float
    networks: list[Network]
    stages: dict[str, Stage]
    slowest_stage: str
    fps_if_all_cores_were_always_busy: float
    engine: str = ""
    """The engine of the stages and the command, and its device."""
    command_fps: float | None = None
    command_fps_runs: list[float] = field(default_factory=list)
    command_memory_mib: float | None = None
    """Peak of the command and its decoder together, at most."""
    advice: list[str] = field(default_factory=list)

    @property
    def command_to_slowest_stage(self) -> float | None:
        """The whole command's speed as a share of the slowest stage's alone."""
        if self.command_fps is None:
            return None
        return self.command_fps / self.stages[self.slowest_stage].fps

    def as_json(self) -> dict[str, Any]:
        """The same, for programs."""
        return asdict(self) | {"command_to_slowest_stage": self.command_to_slowest_stage}


def bench(
    clip: Path | None,
    config: JobConfig,
    *,
    num_frames: int = 60,
    repeats: int = 3,
    seconds: float = 10.0,
    with_command: bool = True,
    with_networks: bool = True,
) -> Report:
    """Measures on a clip, or on one that is made, so many seconds long.

    Args:
        config: its model, decoder, engine and threads count.

    Raises:
        SrstreamError: the clip or the model cannot be used.
    """
    with tempfile.TemporaryDirectory(prefix="srstream-bench-") as name:
        folder = Path(name)
        clip = clip or make_clip(folder / "clip.mp4", round(seconds * CLIP_RATE))
        encode = EncodeConfig(codec="libx264", preset="veryfast")
        config = config.model_copy(update={"encode": encode})
        plan = make_plan(clip, folder / "planned.mp4", config)
        threads = config.engine.threads
        cores = threads or len(os.sched_getaffinity(0))
        gemm = gemm_gflops(cores, repeats)
        stages = _stages(plan, folder, num_frames, repeats)
        used = sum(stages[stage].cpu_ms_per_frame for stage in ("decode", "enhance", "encode"))
        slowest = min(("decode", "enhance", "encode"), key=lambda stage: stages[stage].fps)
        video = plan.source.video
        networks = _networks(threads, gemm, (video.height, video.width)) if with_networks else []
        runs, memory = (
            _whole_command(clip, config, plan, folder, repeats) if with_command else ([], None)
        )
        plan.engine.close()
    report = Report(
        clip=f"{video.width}x{video.height}, {plan.num_frames} frames",
        model=config.model.name,
        cores=cores,
        gemm_gflops=gemm,
        networks=networks,
        stages=stages,
        slowest_stage=slowest,
        fps_if_all_cores_were_always_busy=1000 * cores / used,
        engine=f"{plan.engine.capabilities.name} on {plan.engine.capabilities.device}",
        command_fps=statistics.median(runs) if runs else None,
        command_fps_runs=runs,
        command_memory_mib=memory,
    )
    report.advice.extend(advice(report))
    return report


def make_clip(path: Path, num_frames: int, size: tuple[int, int] | None = None) -> Path:
    """All of it moving: a pan to and fro over lines and noise; columns and rows if given."""
    width, height = size or CLIP_SIZE
    random = np.random.default_rng(0)
    wide = random.integers(0, 255, (height + CLIP_PERIOD, width + 2 * CLIP_PERIOD, 3), np.uint8)
    wide = np.asarray(cv2.GaussianBlur(wide, (0, 0), 2.0), np.uint8)
    for _ in range(120):
        start, end = random.integers(0, (wide.shape[1], wide.shape[0]), (2, 2)).tolist()
        shade = random.integers(0, 255, 3).tolist()
        cv2.line(wide, start, end, shade, int(random.integers(1, 8)), cv2.LINE_AA)
    with av.open(path, "w") as container:
        stream = container.add_stream(
            "libx264", rate=CLIP_RATE, options={"crf": "20", "preset": "fast"}
        )
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(num_frames):
            along = CLIP_PERIOD - abs(number % (2 * CLIP_PERIOD) - CLIP_PERIOD)
            view = wide[along : along + height, 2 * along : 2 * along + width]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(view), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, CLIP_RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def _networks(threads: int, gemm: float, shape: tuple[int, int]) -> list[Network]:
    """Every model with weights in every engine that can run here."""
    measured = []
    for model in available_models():
        spec = model_spec(model)
        for name in ENGINES:
            if not can_run(name):
                continue
            for precision in get_args(Precision) if name == "openvino" else ("float32",):
                config = EngineConfig(threads=threads, precision=precision)
                try:
                    engine = open_engine(name, config, ModelConfig(name=model), spec)
                except EngineError:  # not on this processor, or not for this model
                    continue
                fps = network_fps(engine, spec, shape)
                engine.close()
                gflops = 2e3 * spec.kmac_per_pixel * shape[0] * shape[1] * fps / 1e9
                called = name if precision == "float32" else f"{name}, {precision}"
                measured.append(Network(called, model, fps, gflops, gflops / gemm))
    return measured


def network_fps(engine: Engine, spec: ModelSpec, shape: tuple[int, int]) -> float:
    """Tiles of a shape a second, as many in flight as the session takes."""
    matrix = 1 if spec.color_form == "rgb" else None
    session = engine.open_session(TileFormat(shape, 8, matrix))
    random = np.random.default_rng(0)
    planes: list[Plane] = [
        random.integers(16, 235, shape, dtype=np.uint8) for _ in range(spec.form.num_input_planes)
    ]
    session.result(session.submit(planes))  # the first one pays for what is put off
    began, count = time.perf_counter(), 0
    tickets = [session.submit(planes) for _ in range(session.num_in_flight)]
    while count < 3 or time.perf_counter() - began < NETWORK_SECONDS:
        session.result(tickets.pop(0))
        tickets.append(session.submit(planes))
        count += 1
    seconds = time.perf_counter() - began
    session.close()
    return count / seconds


def _stages(plan: JobPlan, folder: Path, num_frames: int, repeats: int) -> dict[str, Stage]:
    frames = list(_decoded(plan, num_frames))
    enlarged = _enhanced(plan, frames)
    stages: dict[str, Callable[[], object]] = {
        "decode": lambda: list(_decoded(plan, len(frames))),
        "enhance": lambda: _enhanced(plan, frames),
        "encode": lambda: _encoded(plan, enlarged, folder / "segment.part"),
    }
    wall: dict[str, list[float]] = {name: [] for name in stages}
    cpu: dict[str, list[float]] = {name: [] for name in stages}
    for _ in range(repeats):  # in turns: a slow minute of the machine hits them all
        for name, run in stages.items():
            wall_start, cpu_start = time.perf_counter(), time.process_time()
            run()
            wall[name].append(time.perf_counter() - wall_start)
            cpu[name].append(time.process_time() - cpu_start)
    return {
        name: Stage(
            fps=len(frames) / statistics.median(wall[name]),
            fps_runs=[len(frames) / seconds for seconds in wall[name]],
            cpu_ms_per_frame=1000 * statistics.median(cpu[name]) / len(frames),
        )
        for name in stages
    }


def _decoded(plan: JobPlan, num_frames: int) -> Iterator[Frame]:
    decoder = Decoder(plan.source.path, plan.source.video, plan.config.source)
    try:
        for frame, _ in zip(decoder.frames(), range(num_frames), strict=False):
            yield frame
    finally:
        decoder.close()


def _enhanced(plan: JobPlan, frames: Iterable[Frame]) -> list[Frame]:
    enhancer = Enhancer(
        plan.engine,
        plan.source.video.form,
        plan.output.video.form,
        reuse=plan.config.reuse,
    )
    try:
        done = [enlarged for frame in frames for enlarged in enhancer.push(frame)]
        return done + enhancer.drain()
    finally:
        enhancer.close()


def _encoded(plan: JobPlan, frames: Sequence[Frame], path: Path) -> None:
    encoder = SegmentEncoder(path, plan.output.video, plan.config.engine.threads)
    for frame in frames:
        encoder.push(frame)
    encoder.close()


def _whole_command(
    clip: Path, config: JobConfig, plan: JobPlan, folder: Path, repeats: int
) -> tuple[list[float], float]:
    """Frames a second of each run, start and verification included; peak memory in MiB."""
    command = [sys.executable, "-m", "srstream.cli.main", "enhance", str(clip)]
    command += ["-o", str(folder / "whole.mp4"), "--overwrite", "--restart"]
    command += ["--model", config.model.name, "--decoder", config.source.decoder]
    command += ["--engine", config.engine.name, "--threads", str(config.engine.threads)]
    command += ["--codec", "libx264", "--preset", "veryfast"]
    runs = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        runs.append(plan.num_frames / (time.perf_counter() - start))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return runs, peak / 1024


def advice(report: Report) -> list[str]:
    """What would make it faster here, by what was measured."""
    found = []
    openvino = {n.model: n for n in report.networks if n.engine == "openvino"}
    own, fast = openvino.get(report.model), openvino.get("fast")
    if report.slowest_stage == "enhance":
        found.append("the network is what takes the time; a GPU engine or more cores would help.")
        if own is not None and fast is not None and own.fps < 0.7 * fast.fps:
            found.append(f"--model fast runs {fast.fps / own.fps:.1f} times as many frames.")
        int8 = next(
            (n for n in report.networks if (n.model, n.engine) == (report.model, "openvino, int8")),
            None,
        )
        if own is not None and int8 is not None and int8.fps > 1.2 * own.fps:
            found.append(
                f"--precision int8 runs the network {int8.fps / own.fps:.1f} times as fast, for "
                "less than 0.1 dB."
            )
    if report.slowest_stage == "encode":
        found.append(
            "the encoder is what takes the time; --preset superfast or ultrafast makes larger "
            "files in less of it."
        )
    if report.slowest_stage == "decode":
        found.append("decoding is what takes the time; nothing of srstream's would help.")
    if own is not None and own.share_of_gemm < 0.5:
        found.append(
            f"the network reaches {own.share_of_gemm:.0%} of the machine's matrix product; "
            "something else is busy, or this CPU lacks wide vectors."
        )
    found += rule_checks(report.networks)
    share = report.command_to_slowest_stage
    if share is not None and share < 0.75:
        found.append(
            f"the command reaches {share:.0%} of its slowest stage: on short clips its start and "
            "its check weigh, on two cores the stages share them."
        )
    return found


def rule_checks(networks: Sequence[Network]) -> list[str]:
    """For each model: the engine that `auto` takes on a CPU, and whether it is the faster here."""
    fps = {(n.model, n.engine): n.fps for n in networks}
    found = []
    for model in dict.fromkeys(n.model for n in networks):
        recorded = FASTER_IN_NCNN.get(model)
        openvino, ncnn = fps.get((model, "openvino")), fps.get((model, "ncnn"))
        if openvino is None:
            continue
        if ncnn is None:
            if recorded is not None:
                found.append(
                    f"{model} ran {recorded:g} times as fast in ncnn as in OpenVINO where it was "
                    f"measured, and ncnn is missing here: {ENGINES['ncnn'].install}"
                )
            continue
        taken, other = ("ncnn", "openvino") if recorded is not None else ("openvino", "ncnn")
        ratio = fps[model, taken] / fps[model, other]
        sentence = f"auto takes {taken} for {model}: {ratio:.2f} times as fast as {other} here"
        if ratio * CLEARLY < 1:
            sentence += f", so its rule is wrong for this machine; use --engine {other}"
        found.append(f"{sentence}.")
    return found


def as_text(report: Report) -> str:
    """The report for people."""
    stages = Table("alone", "fps", "lowest", "highest", "CPU ms a frame", box=None)
    for name, stage in report.stages.items():
        runs = stage.fps_runs
        stages.add_row(
            name, f"{stage.fps:.1f}", f"{min(runs):.1f}", f"{max(runs):.1f}",
            f"{stage.cpu_ms_per_frame:.1f}",
        )  # fmt: skip
    networks = Table("network", "engine", "fps", "GFLOP/s", "per matrix product", box=None)
    for n in report.networks:
        networks.add_row(
            n.model, n.engine, f"{n.fps:.2f}", f"{n.gflops:.0f}", f"{n.share_of_gemm:.2f}"
        )
    console = plain_console(width=100)
    with console.capture() as capture:
        console.print(
            f"{report.clip}, model {report.model}, {report.engine}, {report.cores} cores; float32 "
            f"matrix product of the cores {report.gemm_gflops:.0f} GFLOP/s"
        )
        console.print()
        console.print(stages)
        console.print()
        console.print(f"all cores always busy: {report.fps_if_all_cores_were_always_busy:.1f} fps")
        if report.command_fps is not None:
            console.print(
                f"srstream enhance: {report.command_fps:.1f} fps, "
                f"{report.command_to_slowest_stage:.2f} of {report.slowest_stage} alone; "
                f"at most {report.command_memory_mib:.0f} MiB"
            )
        if report.networks:
            console.print()
            console.print(networks)
            console.print()
            console.print(
                "GFLOP/s count every multiplication of the plain convolution. A value above 1 "
                "comes from algorithms with fewer of them (Winograd) and from units for int8 and "
                "bfloat16."
            )
        for sentence in report.advice:
            console.print()
            console.print(f"- {sentence}")
    return capture.get().rstrip("\n")
