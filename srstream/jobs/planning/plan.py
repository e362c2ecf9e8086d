"""Plans a job before any work is done, and refuses a job that cannot work."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from importlib import metadata
from pathlib import Path
from typing import Any

import av

from srstream.config import EngineConfig, JobConfig, ModelConfig
from srstream.engines.bicubic_mix import softened
from srstream.engines.contract import Engine
from srstream.engines.table import ENGINES, GPU_ENGINES, choose_engine, engine_name
from srstream.errors import NoSpaceError, RefusedError, TruncatedError, UsageError
from srstream.files import largest_file
from srstream.jobs.planning.memory import memory_notes
from srstream.jobs.planning.output_bytes import low_bytes, output_bytes, typical_bytes
from srstream.jobs.planning.size import output_size, size_note
from srstream.jobs.segments import SegmentCuts
from srstream.media.animations.plan import with_thinning
from srstream.media.read.degradation import RestoreChoice
from srstream.media.read.start import earliest, start_pts
from srstream.media.types import (
    OutputPlan,
    OutputVideo,
    PacketIndex,
    SourceInfo,
    StreamPlan,
    TimeWindow,
    Tried,
    VideoInfo,
)
from srstream.media.write.containers import Container
from srstream.media.write.output import plan_output
from srstream.models.registry import resolved
from srstream.models.table import ModelSpec, model_spec
from srstream.naming import check_length
from srstream.sandbox.media_steps import ChooseRestore, Probe, Scan, TryNvdec, TryOutput
from srstream.sandbox.steps import InProcess, OnProgress, Steps

MIN_SEGMENT_SECONDS = 2
MAX_SEGMENT_SECONDS = 10
MAX_SEGMENT_MACS = 12e12
"""Limit of the network's work in a segment longer than a second: about two minutes on two cores,
which is what a kill loses if frames take seconds."""

OpenEngine = Callable[[EngineConfig, ModelConfig, ModelSpec], tuple[Engine, str]]


@dataclass(frozen=True, slots=True)
class JobPlan:
    """The plan of a job: its source, output, model, engine and segments."""

    source: SourceInfo
    index: PacketIndex
    output: OutputPlan
    model: ModelSpec
    model_name: str
    """The name that the user gave: the network's, or that of own weights."""
    engine: Engine
    engine_reason: str
    restore: RestoreChoice
    window: TimeWindow
    cuts: SegmentCuts
    config: JobConfig

    @property
    def num_frames(self) -> int:
        """The number of frames within the window according to the index."""
        if not self.index.has_timestamps:
            return self.index.num_packets
        return len(shown_pts(self.index, self.window))

    @property
    def is_truncated(self) -> bool:
        return self.index.truncated_at_seconds is not None

    @property
    def low_bytes(self) -> int:
        """The smallest expected size of the segments."""
        return low_bytes(self.output, self.num_frames)

    @property
    def typical_bytes(self) -> int:
        """The approximate size of the segments, and of an output that is a video."""
        return typical_bytes(self.output, self.num_frames)

    @property
    def output_bytes(self) -> int:
        """The approximate size of the output."""
        return output_bytes(self.output, self.num_frames)


def make_plan(
    source: Path,
    output: Path | None,
    config: JobConfig,
    *,
    unsuffixed: Path | None = None,
    deadline_seconds: float | None = None,
    on_read: OnProgress | None = None,
    media: Steps | None = None,
    open_engine: OpenEngine = choose_engine,
    work_folder: Path | None = None,
) -> JobPlan:
    """Decide everything about a job.

    Args:
        unsuffixed: names an output whose suffix its container decides; see `enhance_file`.
        media: runs the steps that read the source; None: this process does.
        open_engine: returns the engine for a model and the reason for the choice.
        work_folder: where the unfinished job is; None: next to the output.
        deadline_seconds: ends the packet scan early (`plan` should answer in about a second); a job
            itself needs the whole scan.

    Raises:
        UsageError, RefusedError: the request cannot work, in one sentence.
        MediaError: the source cannot be read.
        TruncatedError: the source ends early and `--salvage` was not given.
    """
    media, model_name = media or InProcess(), config.model.name
    config = config.model_copy(update={"model": resolved(config.model)})
    spec = model_spec(config.model.name)
    if source.exists() and not source.is_file() and not source.is_dir():
        raise UsageError(f"{source}: this is no regular file; give a file that can be read twice.")
    info = media.do(Probe(config=config.source), source)
    config, notes = _with_decoder(source, config, media)
    plan = _plan_output(source, info, config, output, media, work_folder, unsuffixed)
    _check_name(plan.path, source)
    scan = Scan(video=info.video, deadline_seconds=deadline_seconds)
    index = media.do(scan, source, on_read)
    _check_index(source, index, config)
    window = time_window(info.video, index, config)
    plan = _with_start(plan, info.video, index, config)
    plan = with_thinning(plan, shown_pts(index, window))
    keys = replace(index, pts=())  # it can be long, and may have to cross to another process
    restore = media.do(ChooseRestore(video=info.video, index=keys, config=config), source)
    engine, reason = open_engine(config.engine, restore.applied(config.model), spec)
    engine = softened(engine, restore.strength)
    job = JobPlan(
        source=info,
        index=index,
        output=replace(plan, notes=(*plan.notes, *notes)),
        model=spec,
        model_name=model_name,
        engine=engine,
        engine_reason=reason,
        restore=restore,
        window=window,
        cuts=cut_segments(info.video, index, window, longest_segment(info.video, spec)),
        config=config,
    )
    return _fitted_to_disk(job, work_folder)


def _plan_output(
    source: Path,
    info: SourceInfo,
    config: JobConfig,
    output: Path | None,
    media: Steps,
    work_folder: Path | None,
    unsuffixed: Path | None,
) -> OutputPlan:
    """Plan the output; `media` tries in `work_folder` which streams its container takes."""

    def try_streams(
        video: OutputVideo, container: Container, streams: tuple[StreamPlan, ...]
    ) -> Tried:
        trial = TryOutput(
            source=info,
            video=video,
            container=container.name,
            streams=streams,
            folder=work_folder,
        )
        return media.do(trial, source)

    spec = model_spec(config.model.name)
    size = output_size(
        info.video.form, config.scaling, spec.scale, rotation_degrees=info.video.rotation_degrees
    )
    engine = engine_name(config.engine, spec.name)
    on_gpu = engine in GPU_ENGINES and not config.deterministic
    plan = plan_output(
        info,
        config,
        output,
        size,
        on_gpu=on_gpu,
        try_streams=try_streams,
        unsuffixed=unsuffixed,
    )
    notes = (*size_note(info.video.form, size, spec), *memory_notes(info.video, plan.video))
    return replace(plan, notes=(*plan.notes, *notes))


def _check_name(path: Path, source: Path) -> None:
    """Refuse a name that no output can have.

    Raises:
        UsageError: what is wrong with it.
    """
    if path.resolve() == source.resolve():
        raise UsageError(f"{source}: the output would be the input itself; choose another -o.")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent}: there is no such folder; create it or change -o.")
    if path.is_dir():
        raise UsageError(f"{path}: this is a folder; give the output a name in it.")
    check_length(path)


def _check_index(source: Path, index: PacketIndex, config: JobConfig) -> None:
    """Refuse a source that has no packets, or ends early without `--salvage`."""
    if index.truncated_at_seconds is not None and not config.source.salvage:
        raise TruncatedError(
            f"{source}: the file ends at {index.truncated_at_seconds:.3f} s, earlier than its "
            "header says. Use --salvage to enhance what is there."
        )
    if index.num_packets == 0 and index.is_complete:
        raise RefusedError(f"{source}: its video stream holds no packet.")


def _fitted_to_disk(job: JobPlan, work_folder: Path | None) -> JobPlan:
    """Check the space in the folders of output and work; note an output that may not fit."""
    folders = [job.output.path.parent, *([work_folder] if work_folder is not None else [])]
    for folder in folders:
        _check_disk(job, folder)
    job = _noted_space(job, folders)
    limits = [limit for limit in map(largest_file, folders) if limit is not None]
    return _fitted(job, min(limits, default=None))


def _noted_space(job: JobPlan, folders: list[Path]) -> JobPlan:
    """Return the job, with a note if its disk may become full."""
    free = min(shutil.disk_usage(folder).free for folder in folders)
    needed = 2 * job.typical_bytes
    if free >= needed:
        return job
    note = f"About {needed / 1e9:.1f} GB of disk space are needed, {free / 1e9:.1f} GB are free."
    return replace(job, output=replace(job.output, notes=(*job.output.notes, note)))


def _fitted(job: JobPlan, limit: int | None) -> JobPlan:
    """Return the job, with a note if its output may exceed the largest file of its file system.

    Raises:
        NoSpaceError: the output will exceed it.
    """
    if limit is None or job.typical_bytes <= limit:
        return job
    text = (
        f"Its file system (FAT) holds files of at most {limit / 1e9:.1f} GB, the output takes "
        f"about {job.typical_bytes / 1e9:.1f} GB"
    )
    if job.low_bytes > limit:
        raise NoSpaceError(f"{job.output.path}: {text}. Name another folder with -o.")
    return replace(job, output=replace(job.output, notes=(*job.output.notes, f"{text}.")))


def _with_decoder(
    source: Path, config: JobConfig, media: Steps
) -> tuple[JobConfig, tuple[str, ...]]:
    """Return the config with the decoder that is used, and notes about it.

    Raises:
        RefusedError: NVDEC was requested and cannot be opened.
    """
    asked = config.source.decoder
    if asked == "cpu":
        return config, ()
    limits = config.source
    trial = TryNvdec(max_pixels=limits.max_pixels, max_streams=limits.max_streams)
    fault = media.do(trial, source)
    if fault is not None and asked == "nvdec":
        raise RefusedError(f"{source}: {fault}; use --decoder cpu.")
    chosen = "nvdec" if fault is None else "cpu"
    note = "Decoded by NVDEC, on the GPU." if fault is None else f"Decoded on the CPU: {fault}."
    section = config.source.model_copy(update={"decoder": chosen})
    return config.model_copy(update={"source": section}), (note,)


def time_window(video: VideoInfo, index: PacketIndex, config: JobConfig) -> TimeWindow:
    """Return `--start` and `--end`, which count from the first video frame, as pts."""
    start, end = config.source.start_seconds, config.source.end_seconds
    if start is None and end is None:
        return TimeWindow()
    if end is not None and end <= (start or 0):
        raise UsageError(f"--end {end:g} is not after --start {start or 0:g}.")
    first = index.pts[0] if index.pts else 0

    def to_pts(seconds: float | None) -> int | None:
        if seconds is None:
            return None
        return first + -int(-Fraction(str(seconds)) // video.time_base)

    window = TimeWindow(to_pts(start), to_pts(end))
    last = index.pts[-1] if index.pts else None
    if last is not None and window.start_pts is not None and window.start_pts > last:
        length = float((last - first) * video.time_base)
        raise UsageError(f"--start {start:g} s lies behind the last frame, at {length:.3f} s.")
    return window


def shown_pts(index: PacketIndex, window: TimeWindow) -> tuple[int, ...]:
    """Return the times of the frames within a window, in the video's time base."""
    start, end = window.start_pts, window.end_pts
    return tuple(
        pts for pts in index.pts if (start is None or pts >= start) and (end is None or pts < end)
    )


def _with_start(
    plan: OutputPlan, video: VideoInfo, index: PacketIndex, config: JobConfig
) -> OutputPlan:
    """Return the plan with the start time of its output, and a note if times are shifted."""
    other = earliest(index.starts, plan.streams)
    plan = replace(plan, keeps_start=config.source.keep_start, earliest_other=other)
    start = start_pts(index.pts[0] if index.pts else 0, video.time_base, other) * video.time_base
    if plan.keeps_start or config.source.start_seconds is not None or not start:
        return plan
    note = f"The file's clock starts at {float(start):.3f} s; all times are moved to start at zero"
    return replace(plan, notes=(*plan.notes, f"{note} (--keep-start keeps them)."))


def longest_segment(video: VideoInfo, model: ModelSpec) -> float:
    """Return the length in seconds: 10, or less if it would exceed `MAX_SEGMENT_MACS`."""
    macs_a_second = 1e3 * model.kmac_per_pixel * video.width * video.height
    macs_a_second *= float(video.frame_rate or 25)
    return min(max(MAX_SEGMENT_MACS / macs_a_second, 1.0), MAX_SEGMENT_SECONDS)


def cut_segments(
    video: VideoInfo, index: PacketIndex, window: TimeWindow, longest_seconds: float
) -> SegmentCuts:
    """Cut at keyframes of the source, into segments of 2 seconds or more where possible."""
    longest = max(int(Fraction(longest_seconds) / video.time_base), 1)
    shortest = min(int(MIN_SEGMENT_SECONDS / video.time_base), longest)
    if index.has_timestamps:
        first, last = index.pts[0] if index.pts else 0, index.pts[-1] if index.pts else 0
        keys = index.key_pts
    else:
        rate = video.frame_rate or Fraction(25)
        first, last = 0, int(index.num_packets / rate / video.time_base)
        keys = ()
    first = first if window.start_pts is None else max(first, window.start_pts)
    last = last if window.end_pts is None else min(last, window.end_pts - 1)
    starts = [first]
    for key in [*(key for key in keys if first < key <= last), last + 1]:
        while key - starts[-1] > longest:
            starts.append(starts[-1] + longest)
        if key - starts[-1] >= shortest and key <= last:
            starts.append(key)
    return SegmentCuts(tuple(starts))


def fingerprint(plan: JobPlan) -> dict[str, Any]:
    """Return everything that determines the result; a job resumes only if it is unchanged."""
    config = plan.config.model_dump(mode="json")
    # These affect speed and memory, not the result.
    for neutral in ("threads", "max_memory_bytes"):
        config["engine"].pop(neutral)
    config["reuse"].pop("enabled")
    video = plan.output.video
    return {
        "source": plan.index.sha256,
        "settings": config,
        "output": {
            "container": plan.output.container,
            "codec": video.codec,
            "pix_fmt": video.pix_fmt,
            "size": [video.width, video.height],
            "options": video.options,
        },
        "weights": plan.engine.capabilities.weights_sha256,
        "versions": _versions(plan.engine.capabilities.name),
    }


_OPTIONS = {
    "settings.source.start_seconds": "--start",
    "settings.source.end_seconds": "--end",
    "settings.streams.other_video": "--other-video",
    "settings.reuse.threshold": "--reuse-threshold",
    "settings.engine.name": "--engine",
    "settings.model.name": "--model",
}
_PARTS = {
    "source": "the source's content",
    "weights": "the network's weights",
    "output.codec": "the video encoder",
    "output.container": "the container",
    "output.pix_fmt": "the pixel format",
    "output.size": "the output's size",
}


def in_words(difference: str) -> str:
    """Name an entry of `fingerprint` as its user does: `--crf` for `settings.encode.crf`."""
    if difference in _OPTIONS:
        return _OPTIONS[difference]
    if difference.startswith("settings."):
        return "--" + difference.rsplit(".", 1)[1].replace("_", "-")
    if difference.startswith("versions."):
        return f"the version of {difference.removeprefix('versions.')}"
    if difference.startswith("output.options."):
        return f"the encoder's {difference.removeprefix('output.options.')}"
    return _PARTS.get(difference, difference)


def _versions(engine: str) -> dict[str, str]:
    own = ENGINES[engine].package
    packages = ["srstream", "av", "numpy", "opencv-python-headless", own]
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "unknown"
    for library, version in av.library_versions.items():
        found[library] = ".".join(str(part) for part in version)
    return found


def _check_disk(plan: JobPlan, folder: Path) -> None:
    if not os.access(folder, os.W_OK):
        raise RefusedError(f"{folder}: this folder cannot be written to; choose another with -o.")
    free = shutil.disk_usage(folder).free
    # Segments and the assembled file exist side by side for a moment.
    if free < 2 * plan.low_bytes:
        raise NoSpaceError(
            f"{folder}: {free / 1e6:.1f} MB are free, the job needs at least "
            f"{2 * plan.low_bytes / 1e6:.1f} MB and about {2 * plan.typical_bytes / 1e6:.1f} MB. "
            "Free some space or choose another folder with -o."
        )
