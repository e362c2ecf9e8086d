"""`srstream plan`: the decisions about a job as data."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from srstream.config import JobConfig
from srstream.jobs.events import printable
from srstream.jobs.planning.estimate import copy_gbps, estimate
from srstream.jobs.planning.gpu_model import device_spec, predict
from srstream.jobs.planning.memory import memory_bytes
from srstream.jobs.planning.plan import JobPlan, make_plan
from srstream.media.players import players_of
from srstream.media.write.containers import canonical_codec

SCHEMA = "srstream.plan/1"
_SCAN_SECONDS = 1.0


class StreamSummary(BaseModel):
    """What happens to one stream."""

    model_config = ConfigDict(frozen=True)

    index: int
    type: str
    codec: str
    language: str | None
    action: str
    output_codec: str | None
    reason: str


class PlanSummary(BaseModel):
    """The output of `srstream plan`: sizes in bytes, times in seconds, pictures in pixels."""

    model_config = ConfigDict(frozen=True)

    schema_version: str = Field(SCHEMA, serialization_alias="schema")
    input: str
    output: str
    container: str
    width: int
    height: int
    pix_fmt: str
    output_width: int
    output_height: int
    output_pix_fmt: str
    codec: str
    codec_options: dict[str, str]
    plays_in: list[str]
    """Which of browsers, phones and TVs usually play the output."""
    num_frames: int
    is_whole_file_read: bool
    duration_seconds: float | None
    is_interlaced: bool
    is_truncated: bool
    model: str
    engine: str
    engine_reason: str
    restore: float
    restore_reason: str
    strength: float
    detail: float
    num_segments: int
    streams: list[StreamSummary]
    num_chapters: int
    losses: list[str]
    notes: list[str]
    estimated_fps: float
    estimated_seconds: float
    estimated_output_bytes: int
    estimated_memory_bytes: int
    device_prediction: str | None = None
    """For `--device`: the prediction of a paper model, not a measurement."""


def plan_summary(
    source: Path,
    output: Path | None,
    config: JobConfig,
    *,
    device: str | None = None,
) -> PlanSummary:
    """Plan a job, measure the speed of this machine, and return both.

    `device` names an entry of `DEVICES`, for which a speed is predicted.

    Raises:
        SrstreamError: as in `make_plan`.
    """
    spec = None if device is None else device_spec(device)
    plan = make_plan(source, output, config, deadline_seconds=_SCAN_SECONDS)
    speed = estimate(plan)
    video, out = plan.source.video, plan.output.video
    predicted = None
    if spec is not None:
        sizes = (video.width, video.height), (out.width, out.height)
        predicted = predict(spec, plan.model, *sizes, speed.encode_fps, copy_gbps()).sentence()
    return PlanSummary(
        input=printable(source),
        output=printable(plan.output.path),
        container=plan.output.container,
        width=video.width,
        height=video.height,
        pix_fmt=video.pix_fmt,
        output_width=plan.output.size[0],
        output_height=plan.output.size[1],
        output_pix_fmt=plan.output.pix_fmt,
        codec=plan.output.codec,
        codec_options={} if plan.output.is_animation else out.options,
        plays_in=list(_players(plan)),
        num_frames=plan.num_frames,
        is_whole_file_read=plan.index.is_complete,
        duration_seconds=plan.source.duration_seconds,
        is_interlaced=video.is_interlaced,
        is_truncated=plan.is_truncated,
        model=plan.model_name,
        engine=plan.engine.capabilities.name,
        engine_reason=plan.engine_reason,
        restore=plan.restore.value,
        restore_reason=plan.restore.reason,
        strength=plan.restore.strength,
        detail=config.model.detail,
        num_segments=len(plan.cuts),
        streams=_stream_summaries(plan),
        num_chapters=plan.source.num_chapters,
        losses=list(plan.output.losses),
        notes=[*plan.source.warnings, *plan.output.notes],
        estimated_fps=round(speed.fps, 2),
        estimated_seconds=round(speed.seconds, 1),
        estimated_output_bytes=plan.output_bytes,
        estimated_memory_bytes=memory_bytes(plan.source.video, plan.output.video),
        device_prediction=predicted,
    )


def _players(plan: JobPlan) -> tuple[str, ...]:
    video = plan.output.video
    audio = {
        canonical_codec(stream.output_codec or stream.codec)
        for stream in plan.output.streams
        if stream.type == "audio" and stream.action != "drop"
    }
    size = video.width, video.height
    codec = canonical_codec(video.codec)
    return players_of(plan.output.container, codec, video.layout, size, audio)


def _stream_summaries(plan: JobPlan) -> list[StreamSummary]:
    languages = {stream.index: stream.language for stream in plan.source.streams}
    return [
        StreamSummary(
            index=stream.index,
            type=stream.type,
            codec=stream.codec,
            language=languages.get(stream.index),
            action=stream.action,
            output_codec=stream.output_codec,
            reason=stream.reason,
        )
        for stream in plan.output.streams
    ]
