"""Shared by the tests of encode, mux and verify: an output without a network in between."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from srstream.config import JobConfig, SourceConfig
from srstream.frame import Frame, Plane
from srstream.media.read.decode import Decoder
from srstream.media.read.demux import MAX_PIXELS_OF_LIBAV, ReadFault, open_source, read_packets
from srstream.media.read.probe import probe
from srstream.media.read.start import Starts, earliest
from srstream.media.types import OutputPlan, OutputVideo, SegmentFile, SourceInfo, TimeWindow
from srstream.media.write.encode import SegmentEncoder, plan_output
from srstream.media.write.mux import assemble
from srstream.media.write.trial import try_output

KEEP = JobConfig(source=SourceConfig(keep_start=True))
"""Times begin where the source's do."""

Change = Callable[[int, Frame], Iterable[Frame]]


@dataclass(frozen=True)
class Made:
    """What `make_output` went through."""

    source: SourceInfo
    plan: OutputPlan
    segments: list[SegmentFile]
    path: Path


def enlarge(frame: Frame, video: OutputVideo) -> Frame:
    """The frame at the output's size and layout (same kind and depth), by nearest neighbor.

    Chroma is moved to where the same siting puts it on the larger grid.
    """
    planes = []
    for index, plane in enumerate(frame.planes[: video.layout.num_planes]):
        rows, columns = video.layout.plane_shape(index, video.width, video.height)
        if frame.layout.kind == "yuv" and index in (1, 2):
            planes.append(_placed(plane, (rows, columns), frame, video))
        else:
            planes.append(cv2.resize(plane, (columns, rows), interpolation=cv2.INTER_NEAREST))
    return frame.with_planes(planes, video.width, video.height, video.layout)


def _placed(plane: Plane, shape: tuple[int, int], frame: Frame, video: OutputVideo) -> Plane:
    """A chroma plane enlarged to `shape`, each sample made of those around its own place."""
    places = []
    location = frame.color.chroma_location or (2 if frame.color.full_range else 1)
    before, now = frame.layout, video.layout
    for rows, log2_in, log2_out, side, large in (
        (True, before.log2_chroma_h, now.log2_chroma_h, frame.height, video.height),
        (False, before.log2_chroma_w, now.log2_chroma_w, frame.width, video.width),
    ):
        places_out = np.arange(shape[0 if rows else 1]) * (1 << log2_out)
        in_luma = (places_out + _shift(location, log2_out, rows) + 0.5) * side / large - 0.5
        place = (in_luma - _shift(location, log2_in, rows)) / (1 << log2_in)
        places.append(place.astype(np.float32))
    y_HW, x_HW = np.meshgrid(*places, indexing="ij")
    return cv2.remap(plane, x_HW, y_HW, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _shift(location: int, log2: int, rows: bool) -> float:
    """Where the first chroma sample lies, in luma samples; `location` is libav's number."""
    middle = ((1 << log2) - 1) / 2
    if rows:
        return {3: 0.0, 4: 0.0, 5: 2 * middle, 6: 2 * middle}.get(location, middle)
    return 0.0 if location in (1, 3, 5) else middle


def make_output(
    source_path: Path,
    output: Path | None = None,
    *,
    scale: int = 2,
    segment_frames: int = 5,
    window: TimeWindow | None = None,
    config: JobConfig | None = None,
    change: Change | None = None,
    alter: Callable[[OutputPlan], OutputPlan] = lambda plan: plan,
) -> Made:
    """Decode, enlarge, encode in segments of a few frames, assemble.

    `change` gets each frame's number and the enlarged frame, and gives what is encoded instead;
    `alter` changes the plan before anything is encoded.
    """
    window = window or TimeWindow()
    source = probe(source_path, SourceConfig())
    size = (source.video.width * scale, source.video.height * scale)
    config = config or JobConfig()
    plan = plan_output(
        source,
        config,
        output,
        size,
        try_streams=lambda *what: try_output(source_path, source, *what),
    )
    other = earliest(_read_starts(source_path, source.video.index), plan.streams)
    plan = alter(replace(plan, keeps_start=config.source.keep_start, earliest_other=other))
    folder = plan.path.parent / f"segments_{plan.path.name}"
    folder.mkdir(exist_ok=True)
    segments: list[SegmentFile] = []
    encoder: SegmentEncoder | None = None
    num_frames = 0
    decoder = Decoder(source_path, source.video, SourceConfig(), start_pts=window.start_pts)
    for number, frame in enumerate(decoder.frames()):
        if window.end_pts is not None and frame.pts >= window.end_pts:
            break
        large = enlarge(frame, plan.video)
        for changed in [large] if change is None else change(number, large):
            if encoder is None:
                encoder = SegmentEncoder(folder / f"{len(segments)}.part", plan.video, 1, True)
            encoder.push(changed)
            num_frames += 1
            if num_frames % segment_frames == 0:
                segments.append(encoder.close())
                encoder = None
    decoder.close()
    if encoder is not None:
        segments.append(encoder.close())
    assemble(source_path, source, plan, segments, plan.path, window)
    return Made(source, plan, segments, plan.path)


def packet_times(path: Path, index: int) -> list[Fraction]:
    """Exact display times of a stream's packets, sorted, in seconds."""
    with av.open(str(path)) as container:
        stream = container.streams[index]
        return sorted(
            packet.pts * Fraction(packet.time_base)
            for packet in container.demux(stream)
            if packet.size and packet.pts is not None
        )


def _read_starts(path: Path, video_index: int) -> dict[int, Fraction]:
    """The starts of a file's streams but one, from a pass over their packets."""
    with open_source(path, MAX_PIXELS_OF_LIBAV) as container:
        starts = Starts(container.format.name)
        streams = [s for s in container.streams if s.index != video_index]
        for packet in read_packets(container, *streams) if streams else ():
            if not isinstance(packet, ReadFault):
                starts.take(packet)
    return starts.seconds
