"""What a job does with its source besides decoding it: in this process, or in a confined child.

The command line trusts its user's files as far as looking at them goes; the daemon does not, and
has all of it done in `steps_child.py`.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from srstream.config import JobConfig, SourceConfig
from srstream.errors import HostileInputError, InterruptedJobError, MediaError, error_named
from srstream.media.read.probe import probe, scan_packets
from srstream.media.read.restore import RestoreChoice, choose_restore
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
from srstream.sandbox.child import SignsOfLife, end_child, start_child

OnProgress = Callable[[int, int | None], None]

MAX_DEATHS = 3
_POLL_SECONDS = 0.2
_LARGEST_LINE_BYTES = 256 << 20
_T = TypeVar("_T")


class Step(BaseModel, Generic[_T]):
    """One of the steps: what it is given, and what becomes of it.

    It crosses to a child as JSON and its reply crosses back, so both are plain data. It raises what
    the function of `media` that it calls raises.
    """

    model_config = ConfigDict(frozen=True)

    step: str
    reply: ClassVar[TypeAdapter[Any]]
    """Of the type that `perform` returns."""

    @abstractmethod
    def perform(self, source: Path, on_progress: OnProgress | None) -> _T:
        """Do it, in this process."""


class Probe(Step[SourceInfo]):
    step: Literal["probe"] = "probe"
    reply = TypeAdapter(SourceInfo)
    config: SourceConfig

    def perform(self, source: Path, on_progress: OnProgress | None) -> SourceInfo:
        return probe(source, self.config)


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
    """For scratch files; None: the system's own."""

    def perform(self, source: Path, on_progress: OnProgress | None) -> Tried:
        container = CONTAINERS[self.container]
        return try_output(source, self.source, self.video, container, self.streams, self.folder)


class ChooseRestore(Step[RestoreChoice]):
    step: Literal["restore"] = "restore"
    reply = TypeAdapter(RestoreChoice)
    video: VideoInfo
    index: PacketIndex
    """Its keyframes are all that is read of it."""
    config: JobConfig
    """Its model is a network of the table."""

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
        assemble(source, info, self.plan, self.segments, self.destination, self.window, on_progress)


class Verify(Step[Receipt]):
    step: Literal["verify"] = "verify"
    reply = TypeAdapter(Receipt)
    output: Path
    window: TimeWindow
    sample: int
    plan: OutputPlan
    """What was announced of each stream; the witness looks for itself at everything else."""

    def perform(self, source: Path, on_progress: OnProgress | None) -> Receipt:
        return verify(source, self.output, window=self.window, sample=self.sample, plan=self.plan)


class MediaSteps(Protocol):
    """Who does the steps."""

    def do(self, step: Step[_T], source: Path, on_progress: OnProgress | None = None) -> _T:
        """Do a step with a source, and give what it returns."""
        ...


class InProcess:
    """Does them here."""

    def do(self, step: Step[_T], source: Path, on_progress: OnProgress | None = None) -> _T:
        return step.perform(source, on_progress)


# --- the same in a child -----------------------------------------------------------------------


class Opening(BaseModel):
    """The first line that a child is given: what it may touch."""

    model_config = ConfigDict(frozen=True)

    source: Path
    """Its name, for texts and endings."""
    source_descriptor: int
    directory: Path
    """Of the job; the child may write in it."""
    parent_pid: int
    memory_bytes: int | None = None


AnyStep = Probe | TryOutput | Scan | ChooseRestore | Assemble | Verify
STEP: TypeAdapter[AnyStep] = TypeAdapter(Annotated[AnyStep, Field(discriminator="step")])
"""Every further line."""


class Line(BaseModel):
    """One line from a child: progress, or the end of a step."""

    progress: tuple[int, int | None] | None = None
    reply: str | None = None
    """JSON, as the step's `reply` has it."""
    error: tuple[str, str] | None = None
    """Name of an srstream error, and its text."""


class InChild:
    """The steps in a child process that sees the source, the job's folder and nothing else.

    Args:
        source, descriptor: the source's name, and the source, opened for reading.
        on_advance: called whenever the child shows that it gets on.
        is_aborted: asked a few times a second; True ends the step with `InterruptedJobError`.

    One thread at a time.
    """

    def __init__(
        self,
        source: Path,
        descriptor: int,
        directory: Path,
        *,
        memory_bytes: int | None = None,
        on_advance: Callable[[], None] = lambda: None,
        is_aborted: Callable[[], bool] = lambda: False,
    ) -> None:
        self._opening = Opening(
            source=source,
            source_descriptor=descriptor,
            directory=directory,
            parent_pid=os.getpid(),
            memory_bytes=memory_bytes,
        )
        self._on_advance, self._is_aborted = on_advance, is_aborted
        self._child: subprocess.Popen[bytes] | None = None
        self._pending = b""

    def do(self, step: Step[_T], source: Path, on_progress: OnProgress | None = None) -> _T:
        """Do a step with the source that is open; `source` is its name.

        Raises:
            HostileInputError: the child died of it every time.
            InterruptedJobError: `is_aborted` said so.
        """
        for deaths in range(1, MAX_DEATHS + 1):
            try:
                return self._try(step, on_progress)
            except (EOFError, BrokenPipeError):
                self.close()
                if deaths == MAX_DEATHS:
                    raise HostileInputError(
                        f"{self._opening.source}: reading it ended the process that did so "
                        f"{deaths} times ({step.step}), so it may be hostile or memory too short."
                    ) from None
            except BaseException:
                self.close()
                raise
        raise AssertionError

    def close(self) -> None:
        """End the child."""
        child, self._child, self._pending = self._child, None, b""
        if child is None:
            return
        end_child(child)
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # of what was not sent yet
                    pipe.close()

    def _try(self, step: Step[_T], on_progress: OnProgress | None) -> _T:
        child = self._child or self._start()
        assert child.stdin is not None
        child.stdin.write(step.model_dump_json().encode() + b"\n")
        child.stdin.flush()
        while True:
            line = Line.model_validate_json(self._read_line(child))
            self._on_advance()
            if line.progress is not None:
                if on_progress is not None:
                    on_progress(*line.progress)
            elif line.error is not None:
                kind, text = line.error
                raise (error_named(kind) or MediaError)(text)
            else:
                reply: _T = step.reply.validate_json(line.reply or "null")
                return reply

    def _start(self) -> subprocess.Popen[bytes]:
        with (self._opening.directory / "media.log").open("ab") as log:
            self._child = child = start_child(
                "srstream.sandbox.steps_child",
                inherited=[self._opening.source_descriptor],
                stdout=subprocess.PIPE,
                log=log,
            )
        assert child.stdin is not None
        child.stdin.write(self._opening.model_dump_json().encode() + b"\n")
        return child

    def _read_line(self, child: subprocess.Popen[bytes]) -> bytes:
        assert child.stdout is not None
        life = SignsOfLife(child.pid)
        while b"\n" not in self._pending:
            if self._is_aborted():
                raise InterruptedJobError("the job was stopped while its source was read.")
            if select.select([child.stdout], [], [], _POLL_SECONDS)[0]:
                chunk = os.read(child.stdout.fileno(), 1 << 20)
                self._pending += chunk
                if not chunk or len(self._pending) > _LARGEST_LINE_BYTES:
                    raise EOFError
            elif life.are_new():
                self._on_advance()
        line, self._pending = self._pending.split(b"\n", 1)
        return line
