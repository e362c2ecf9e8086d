"""The events of a running job. With `--json` each is a line of JSON; the schema is versioned."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA = "srstream.events/1"


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True)

    schema_version: str = Field(SCHEMA, serialization_alias="schema")


class Started(_Event):
    """The job was planned and begins, or goes on where it was interrupted (`is_resumed`)."""

    event: Literal["started"] = "started"
    input: str
    output: str
    width: int
    height: int
    output_width: int
    output_height: int
    model: str
    engine: str
    engine_reason: str
    restore: float
    restore_reason: str
    strength: float
    detail: float
    codec: str
    num_frames: int | None
    num_frames_done: int
    is_resumed: bool = False
    losses: list[str]
    notes: list[str]


class Note(_Event):
    """A sentence that the user should read."""

    event: Literal["note"] = "note"
    text: str


class Progress(_Event):
    """How far the work is. `fps` counts this run only; `eta_seconds` is None while unknown."""

    event: Literal["progress"] = "progress"
    stage: Literal["reading", "enhancing", "assembling", "verifying"]
    done: int
    total: int | None
    fps: float | None = None
    eta_seconds: float | None = None


class SegmentDone(_Event):
    """A segment is safely on disk: a crash after this costs nothing of it."""

    event: Literal["segment"] = "segment"
    number: int
    num_segments: int
    num_frames: int
    start_seconds: float


class Verified(_Event):
    """The fidelity receipt of the whole output."""

    event: Literal["verified"] = "verified"
    ok: bool
    summary: str
    receipt: dict[str, Any]


class Done(_Event):
    """The output has its name. `exit_code` 4 says that only a part could be delivered."""

    event: Literal["done"] = "done"
    output: str
    num_frames: int
    seconds: float
    fps: float | None
    num_corrupt_packets: int
    num_concealed: int
    exit_code: int


class Failed(_Event):
    """The job ended without an output; `resumable` says whether the same command goes on."""

    event: Literal["failed"] = "failed"
    kind: str
    text: str
    exit_code: int
    resumable: bool


Event = Started | Note | Progress | SegmentDone | Verified | Done | Failed
OnEvent = Callable[[Event], None]


def printable(path: Path) -> str:
    """Return a path as text that can be printed and put into JSON, whatever bytes it holds."""
    return os.fsencode(path).decode(errors="backslashreplace")


def ignore(_: Event) -> None:
    """A listener that does nothing."""
