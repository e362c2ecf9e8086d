"""The steps of a job that read its source, other than decoding; each can run in a confined child.

The command line runs them in its own process, on its own user's files. The daemon runs them all
in `media_child.py`.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from srstream.config import JobConfig, SourceConfig
from srstream.errors import HostileInputError, InterruptedJobError, MediaError, error_from_wire
from srstream.media.read.degradation import RestoreChoice, choose_restore
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
from srstream.sandbox.child import CONFINED, Child, start_child
from srstream.sandbox.life import SignsOfLife

logger = logging.getLogger(__name__)

OnProgress = Callable[[int, int | None], None]

MAX_DEATHS = 3
_POLL_SECONDS = 0.2
_T = TypeVar("_T")


class Step(BaseModel, Generic[_T]):
    """A step: its arguments are the fields, its work is `perform`.

    A step crosses to a child as JSON and its reply crosses back, so both are plain data. It raises
    what the function of `media` that it calls raises.
    """

    model_config = ConfigDict(frozen=True)

    step: str
    reply: ClassVar[TypeAdapter[Any]]
    """The adapter of the type that `perform` returns."""

    @abstractmethod
    def perform(self, source: Path, on_progress: OnProgress | None) -> _T:
        """Do the step in this process."""


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


class MediaSteps(Protocol):
    """Does steps, in this process or elsewhere."""

    def do(self, step: Step[_T], source: Path, on_progress: OnProgress | None = None) -> _T:
        """Do a step with a source and return its result."""
        ...


class InProcess:
    """Does the steps in this process."""

    def do(self, step: Step[_T], source: Path, on_progress: OnProgress | None = None) -> _T:
        return step.perform(source, on_progress)


# --- the same in a child -----------------------------------------------------------------------


class Opening(BaseModel):
    """The order of a child: everything that it may read or write."""

    model_config = ConfigDict(frozen=True)

    source: Path
    """The name of the source, for messages and for its suffix."""
    source_descriptor: int
    directory: Path
    """The job's folder, in which the child may write."""
    memory_bytes: int | None = None


AnyStep = Probe | TryOutput | Scan | ChooseRestore | Assemble | Verify
STEP: TypeAdapter[AnyStep] = TypeAdapter(Annotated[AnyStep, Field(discriminator="step")])
"""Every later message to the child."""


class Answer(BaseModel):
    """A message from the child: progress, or the end of a step."""

    progress: tuple[int, int | None] | None = None
    reply: str | None = None
    """The step's result as JSON, in the form of its `reply`."""
    error: tuple[str, str] | None = None
    """As `error_to_wire` makes it."""


class InChild:
    """Does the steps in a child process that sees the source, the job's folder and nothing else.

    One thread at a time may use it.

    Args:
        source, descriptor: the name of the source, and the source opened for reading.
        on_advance: called at each sign that the child makes progress.
        is_aborted: asked a few times a second; True ends the step with `InterruptedJobError`.
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
            memory_bytes=memory_bytes,
        )
        self._on_advance, self._is_aborted = on_advance, is_aborted
        self._child: Child | None = None

    def do(self, step: Step[_T], source: Path, on_progress: OnProgress | None = None) -> _T:
        """Do a step with the open source; `source` is its name.

        Raises:
            HostileInputError: the child died in every attempt.
            InterruptedJobError: `is_aborted` returned True.
        """
        for deaths in range(1, MAX_DEATHS + 1):
            try:
                return self._try(step, on_progress)
            except EOFError:
                status = self._end()
                logger.warning(
                    "the process that reads the source died (status %s) at the step %r, %d of %d "
                    "times that are tried",
                    status,
                    step.step,
                    deaths,
                    MAX_DEATHS,
                )
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
        self._end()

    def _end(self) -> int | None:
        """End the child and return its exit status, negative for a signal."""
        child, self._child = self._child, None
        if child is None:
            return None
        child.end()
        return child.status

    def _try(self, step: Step[_T], on_progress: OnProgress | None) -> _T:
        child = self._child or self._start()
        child.channel.send(step)
        while True:
            answer = Answer.model_validate_json(self._received(child))
            self._on_advance()
            if answer.progress is not None:
                if on_progress is not None:
                    on_progress(*answer.progress)
            elif answer.error is not None:
                raise error_from_wire(*answer.error, otherwise=MediaError)
            else:
                reply: _T = step.reply.validate_json(answer.reply or "null")
                return reply

    def _start(self) -> Child:
        opening = self._opening
        with (opening.directory / "media.log").open("ab") as log:
            self._child = start_child(
                "srstream.sandbox.media_child",
                opening,
                descriptors=[opening.source_descriptor],
                log=log,
                variables=CONFINED,
            )
        return self._child

    def _received(self, child: Child) -> bytes:
        life = SignsOfLife(child.pid)
        while True:
            if self._is_aborted():
                raise InterruptedJobError("the job was stopped while its source was read.")
            message = child.channel.receive(_POLL_SECONDS)
            if message is not None:
                return message
            if life.are_new():
                self._on_advance()
