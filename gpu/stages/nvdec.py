"""NVDEC against the software decoder: equal planes, speed, in this process and confined."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gpu.stages.report import Report, has_gpu, run_stage
from srstream.config import SourceConfig
from srstream.media.read.decode import Decoder
from srstream.media.read.probe import probe
from srstream.sandbox.decoder import frame_hash
from srstream.sandbox.media_steps import MEDIA_CHILD, TryNvdec
from srstream.sandbox.steps import InChild
from tests.support.clips import write_clip
from tests.support.decoding import decode_in_child


@dataclass(frozen=True)
class Clip:
    name: str
    codec: str
    pix_fmt: str
    options: dict[str, str]


CLIPS = (
    Clip("H.264", "libx264", "yuv420p", {"preset": "veryfast"}),
    Clip(
        "HEVC 10 bit",
        "libx265",
        "yuv420p10le",
        {"preset": "ultrafast", "x265-params": "log-level=error"},
    ),
    Clip("AV1", "libsvtav1", "yuv420p", {"preset": "12"}),
)

MEMORY_BYTES = 2 << 30
"""Writable memory of a child that decodes; a daemon allows as much."""


def main(report: Report) -> None:
    width, height, count = (1280, 720, 100) if has_gpu() else (320, 192, 12)
    for clip in CLIPS:
        path = report.work / f"{clip.codec}.mp4"
        write_clip(
            path,
            count,
            width=width,
            height=height,
            codec=clip.codec,
            pix_fmt=clip.pix_fmt,
            options=clip.options,
            noise=8,
        )
        expected, fps = decoded(path, "cpu")
        report.check(f"{clip.name}, CPU", len(expected) == count, f"{count} frames, {fps:.0f} fps")
        hashes, _, log = decode_in_child(path, report.work / f"{clip.codec}-cpu", SourceConfig())
        report.check(f"{clip.name}, CPU, confined", hashes == expected, confinement(log))
        fault = tried_in_child(path, report.work / f"{clip.codec}-try")
        if has_gpu():
            value = fault or "it decodes"
            report.check(f"{clip.name}, NVDEC tried, confined", fault is None, value)
            compare(report, clip, path, expected)
        else:
            is_refused = fault is not None and "no NVIDIA driver" in fault
            report.check(f"{clip.name}, NVDEC refused, confined", is_refused, str(fault))
            report.not_shown(f"{clip.name}, NVDEC")


def compare(report: Report, clip: Clip, path: Path, expected: list[str]) -> None:
    """Decode with NVDEC, here and in the confined child of a job."""
    found, fps = decoded(path, "nvdec")
    differ = sum(one != other for one, other in zip(found, expected, strict=False))
    value = f"{len(found)} frames, {differ} differ, {fps:.0f} fps"
    report.check(f"{clip.name}, NVDEC", found == expected, value)
    began = time.perf_counter()
    hashes, said, log = decode_in_child(
        path,
        report.work / f"{clip.codec}-nvdec",
        SourceConfig(decoder="nvdec"),
        memory_bytes=MEMORY_BYTES,
    )
    seconds = time.perf_counter() - began
    value = f"{len(hashes)} frames in {seconds:.1f} s with its start; {confinement(log)}"
    is_equal = hashes == expected
    value = value if is_equal else f"{value}; {said}; {log[-200:]}"
    report.check(f"{clip.name}, NVDEC, confined", is_equal, value)


def decoded(path: Path, decoder: Literal["cpu", "nvdec"]) -> tuple[list[str], float]:
    """Return the hashes of all frames, and frames a second without the hashing."""
    config = SourceConfig(decoder=decoder)
    opened = Decoder(path, probe(path, config).video, config, threads=os.cpu_count() or 1)
    began = time.perf_counter()
    frames = list(opened.frames())
    seconds = time.perf_counter() - began
    opened.close()
    return [frame_hash(frame) for frame in frames], len(frames) / seconds


def tried_in_child(path: Path, folder: Path) -> str | None:
    """Return why NVDEC cannot decode a file in a confined child, as a plan asks it."""
    folder.mkdir()
    limits, descriptor = SourceConfig(), os.open(path, os.O_RDONLY)
    child = InChild(MEDIA_CHILD, path, descriptor, folder, memory_bytes=MEMORY_BYTES)
    try:
        trial = TryNvdec(max_pixels=limits.max_pixels, max_streams=limits.max_streams)
        return child.do(trial, path)
    finally:
        child.close()
        os.close(descriptor)


def confinement(log: str) -> str:
    """Return the line of a child's log that says how it is confined."""
    return next((line for line in log.splitlines() if "confined: " in line), "not confined")


if __name__ == "__main__":
    run_stage(main)
