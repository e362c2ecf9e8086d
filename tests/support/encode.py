"""Sources that are only described, their plans, and frames that move."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from srstream.config import JobConfig
from srstream.frame import ColorSpec, Frame, Plane, PlaneLayout
from srstream.media.types import OutputPlan, OutputVideo, SourceInfo, StreamInfo, VideoInfo
from srstream.media.write.encode import plan_output

YUV420 = PlaneLayout("yuv", 8, 1, 1)


def source_info(
    name: str = "in.mp4",
    container: str = "mov,mp4,m4a,3gp,3g2,mj2",
    layout: PlaneLayout = YUV420,
    streams: tuple[StreamInfo, ...] = (),
    **video: object,
) -> SourceInfo:
    base = VideoInfo(
        index=0,
        codec="h264",
        pix_fmt="yuv420p",
        width=160,
        height=120,
        layout=layout,
        color=ColorSpec(),
        time_base=Fraction(1, 12800),
        frame_rate=Fraction(25),
        sample_aspect_ratio=Fraction(1),
    )
    return SourceInfo(
        path=Path("/nowhere") / name,
        container=container,
        size_bytes=1000,
        duration_seconds=1.0,
        video=replace(base, **video),  # type: ignore[arg-type]
        streams=(StreamInfo(0, "video", "h264"), *streams),
    )


def plan(
    info: SourceInfo,
    output: Path | None = None,
    config: JobConfig | None = None,
    size: tuple[int, int] = (640, 480),
) -> OutputPlan:
    return plan_output(info, config or JobConfig(), output, size)


def output_video(**changes: object) -> OutputVideo:
    return replace(plan(source_info()).video, width=64, height=48, **changes)  # type: ignore[arg-type]


def moving_frame(video: OutputVideo, number: int, pts: int) -> Frame:
    """A gradient that moves, with values over most of the range."""
    top = (1 << video.layout.bits) - 1
    planes: list[Plane] = []
    for index in range(video.layout.num_planes):
        rows, columns = video.layout.plane_shape(index, video.width, video.height)
        y, x = np.mgrid[0:rows, 0:columns]
        wave = 0.5 + 0.4 * np.sin((x * (2 + index) + y + number * 3) / 60)
        plane = np.round(wave * top).astype(video.layout.dtype)
        planes.append(plane)
    return Frame(tuple(planes), video.layout, video.width, video.height, pts, video.time_base)
