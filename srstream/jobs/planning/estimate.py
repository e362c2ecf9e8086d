"""Estimates the speed and duration of a job by a calibration of under a second."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from srstream.enhancer.enhancer import Enhancer
from srstream.frame import Frame, Plane
from srstream.jobs.planning.plan import JobPlan
from srstream.media.write.encode import SegmentEncoder

_MAX_WIDTH, _MAX_HEIGHT = 320, 180
_CALIBRATION_SECONDS = 0.6
_MIN_FRAMES = 4
_COPY_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Estimate:
    """`fps` in frames of the source per second; `seconds` for all frames of the job."""

    fps: float
    seconds: float
    encode_fps: float
    """Frames per second of the encoder alone, on all cores."""


def estimate(plan: JobPlan) -> Estimate:
    """Enhance and encode a few noisy frames, and scale their CPU time to the job's frame size.

    The pictures are at most 320x180; CPU time per pixel is nearly independent of the size. The
    estimate assumes that all cores are busy, as they are in a job.
    """
    video, output = plan.source.video, plan.output.video
    width, height = min(video.width, _MAX_WIDTH), min(video.height, _MAX_HEIGHT)
    small_in = replace(video, width=width, height=height)
    small_out = replace(
        output,
        width=max(2, round(output.width * width / video.width / 2) * 2),
        height=max(2, round(output.height * height / video.height / 2) * 2),
    )
    frames = _noise(small_in.layout.num_planes, plan, width, height)
    with tempfile.TemporaryDirectory(prefix="srstream-") as folder:
        enhancer = Enhancer(plan.engine, small_in.form, small_out.form)
        encoder = SegmentEncoder(Path(folder) / "calibration.part", small_out, 1, False)
        try:
            _step(enhancer, encoder, frames[0])  # The first frame includes compilation.
            deadline = time.monotonic() + _CALIBRATION_SECONDS
            cpu, num_frames, encode_seconds = time.process_time(), 0, 0.0
            while num_frames < _MIN_FRAMES or time.monotonic() < deadline:
                encode_seconds += _step(
                    enhancer,
                    encoder,
                    replace(frames[num_frames % 2], pts=_pts(plan, num_frames + 1)),
                )
                num_frames += 1
            cpu_seconds = (time.process_time() - cpu) / num_frames
        finally:
            encoder.abandon()
            enhancer.close()
    larger = (video.width * video.height) / (width * height)
    cores = min(plan.config.engine.threads or 1024, len(os.sched_getaffinity(0)))
    fps = cores / (cpu_seconds * larger)
    encode_fps = cores * num_frames / max(encode_seconds * larger, 1e-9)
    return Estimate(fps=fps, seconds=plan.num_frames / fps, encode_fps=encode_fps)


def copy_gbps() -> float:
    """Measure how many gigabytes per second one thread copies, from memory to memory."""
    source, target = (np.zeros(_COPY_BYTES, np.uint8) for _ in range(2))
    target[...] = source  # touches the pages
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        target[...] = source
        seconds.append(time.perf_counter() - start)
    return _COPY_BYTES / statistics.median(seconds) / 1e9


def _step(enhancer: Enhancer, encoder: SegmentEncoder, frame: Frame) -> float:
    """Process one frame; return the CPU seconds that the encoder took."""
    enlarged = [*enhancer.push(frame), *enhancer.drain()]
    before = time.process_time()
    for enhanced in enlarged:
        encoder.push(enhanced)
    return time.process_time() - before


def _pts(plan: JobPlan, number: int) -> int:
    video = plan.source.video
    return int(number / (video.frame_rate or 25) / video.time_base)


def _noise(num_planes: int, plan: JobPlan, width: int, height: int) -> list[Frame]:
    layout = plan.source.video.layout
    generator = np.random.default_rng(0)
    middle = 1 << (layout.bits - 1)

    def plane(index: int) -> Plane:
        shape = layout.plane_shape(index, width, height)
        noise = generator.normal(middle, middle / 16, shape)
        return np.clip(noise, 0, 2 * middle - 1).astype(layout.dtype)

    return [
        Frame(
            planes=tuple(plane(index) for index in range(num_planes)),
            layout=layout,
            width=width,
            height=height,
            pts=0,
            time_base=plan.source.video.time_base,
            color=plan.source.video.color,
        )
        for _ in range(2)
    ]
