"""The steps of a video's job that read its source, other than decoding (`steps.py`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, TypeAdapter

from srstream.config import JobConfig, SourceConfig
from srstream.media.animations.assemble import assemble_animation
from srstream.media.read.degradation import RestoreChoice, choose_restore
from srstream.media.read.demux import nvdec_fault
from srstream.media.read.probe import probe, scan_packets
from srstream.media.receipt import Receipt
from srstream.media.types import (
    OutputPlan,
    OutputVideo,
    PacketIndex,
    SegmentFile,
    SourceInfo,
    StreamPlan,
    TimeWindow,
    Tried,
    VideoInfo,
)
from srstream.media.verify import verify
from srstream.media.write.containers import CONTAINERS
from srstream.media.write.mux import assemble
from srstream.media.write.trial import try_output
from srstream.models.table import model_spec
from srstream.sandbox.steps import OnProgress, Step

MEDIA_CHILD = "srstream.sandbox.media_child"
"""The module that does these steps in a child."""


class Probe(Step[SourceInfo]):
    step: Literal["probe"] = "probe"
    reply = TypeAdapter(SourceInfo)
    config: SourceConfig

    def perform(self, source: Path, on_progress: OnProgress | None) -> SourceInfo:
        return probe(source, self.config)


class TryNvdec(Step[str | None]):
    """Its result is the reason why NVIDIA's decoder cannot be used, or None."""

    needs_devices: ClassVar[bool] = True

    step: Literal["nvdec"] = "nvdec"
    reply = TypeAdapter(str | None)
    max_pixels: int
    max_streams: int

    def perform(self, source: Path, on_progress: OnProgress | None) -> str | None:
        return nvdec_fault(source, self.max_pixels, self.max_streams)


class Scan(Step[PacketIndex]):
    step: Literal["scan"] = "scan"
    reply = TypeAdapter(PacketIndex)
    video: VideoInfo
    deadline_seconds: float | None

    def perform(self, source: Path, on_progress: OnProgress | None) -> PacketIndex:
        return scan_packets(
            source,
            self.video,
            deadline_seconds=self.deadline_seconds,
            on_progress=on_progress,
        )


class TryOutput(Step[Tried]):
    step: Literal["try"] = "try"
    reply = TypeAdapter(Tried)
    source: SourceInfo
    video: OutputVideo
    container: str
    streams: tuple[StreamPlan, ...]
    folder: Path | None
    """Folder for scratch files; None: the system's folder for temporary files."""

    def perform(self, source: Path, on_progress: OnProgress | None) -> Tried:
        container = CONTAINERS[self.container]
        return try_output(source, self.source, self.video, container, self.streams, self.folder)


class ChooseRestore(Step[RestoreChoice]):
    step: Literal["restore"] = "restore"
    reply = TypeAdapter(RestoreChoice)
    video: VideoInfo
    index: PacketIndex
    """The step reads its keyframes only."""
    config: JobConfig
    """The job's settings; their model is a network of the table."""

    def perform(self, source: Path, on_progress: OnProgress | None) -> RestoreChoice:
        spec = model_spec(self.config.model.name)
        return choose_restore(source, self.video, self.index, self.config, spec)


class Assemble(Step[None]):
    step: Literal["assemble"] = "assemble"
    reply = TypeAdapter(None)
    source: SourceInfo
    plan: OutputPlan
    segments: tuple[SegmentFile, ...]
    destination: Path
    window: TimeWindow

    def perform(self, source: Path, on_progress: OnProgress | None) -> None:
        info = replace(self.source, path=source)
        if self.plan.is_animation:
            assemble_animation(info, self.plan, self.segments, self.destination, on_progress)
            return
        assemble(source, info, self.plan, self.segments, self.destination, self.window, on_progress)


class Verify(Step[Receipt]):
    step: Literal["verify"] = "verify"
    reply = TypeAdapter(Receipt)
    output: Path
    window: TimeWindow
    sample: int
    plan: OutputPlan
    """What the plan announces for each stream; the witness determines the rest by itself."""

    def perform(self, source: Path, on_progress: OnProgress | None) -> Receipt:
        return verify(source, self.output, window=self.window, sample=self.sample, plan=self.plan)


AnyStep = Probe | TryNvdec | TryOutput | Scan | ChooseRestore | Assemble | Verify
STEP: TypeAdapter[AnyStep] = TypeAdapter(Annotated[AnyStep, Field(discriminator="step")])
"""A step as a message to the child."""
