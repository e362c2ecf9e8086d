"""What a job does with its source besides decoding it: in this process, or in a confined child.

The command line trusts its user's files as far as looking at them goes; the daemon does not, and
has all of it done in `media_child.py`.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from srstream import errors
from srstream.config import JobConfig, SourceConfig
from srstream.errors import HostileInputError, InterruptedJobError, MediaError
from srstream.media.mux import assemble
from srstream.media.probe import probe, scan_packets
from srstream.media.receipt import Receipt
from srstream.media.types import (
    OutputPlan,
    PacketIndex,
    SegmentFile,
    SourceInfo,
    TimeWindow,
    VideoInfo,
)
from srstream.media.verify import verify
from srstream.models.table import ModelSpec, model_spec
from srstream.pipeline.compression import RestoreChoice, choose_restore
from srstream.pipeline.decoder import bytes_read

OnProgress = Callable[[int, int | None], None]

MAX_DEATHS = 3
_POLL_SECONDS = 0.2
_LARGEST_LINE_BYTES = 256 << 20
_T = TypeVar("_T")


class MediaSteps(Protocol):
    """The steps; each raises what the function of the same name in `media` raises."""

    def probe(self, source: Path, config: SourceConfig) -> SourceInfo: ...

    def scan(
        self,
        source: Path,
        video: VideoInfo,
        deadline_seconds: float | None,
        on_progress: OnProgress | None,
    ) -> PacketIndex: ...

    def restore(
        self,
        source: Path,
        video: VideoInfo,
        index: PacketIndex,
        config: JobConfig,
        spec: ModelSpec,
    ) -> RestoreChoice: ...

    def assemble(
        self,
        source: SourceInfo,
        plan: OutputPlan,
        segments: Sequence[SegmentFile],
        destination: Path,
        window: TimeWindow,
        on_progress: OnProgress | None,
    ) -> None: ...

    def verify(self, source: Path, output: Path, window: TimeWindow, sample: int) -> Receipt: ...


class InProcess:
    """The steps as they are, in this process."""

    def probe(self, source: Path, config: SourceConfig) -> SourceInfo:
        return probe(source, config)

    def scan(
        self,
        source: Path,
        video: VideoInfo,
        deadline_seconds: float | None,
        on_progress: OnProgress | None,
    ) -> PacketIndex:
        return scan_packets(
            source, video, deadline_seconds=deadline_seconds, on_progress=on_progress
        )

    def restore(
        self,
        source: Path,
        video: VideoInfo,
        index: PacketIndex,
        config: JobConfig,
        spec: ModelSpec,
    ) -> RestoreChoice:
        return choose_restore(source, video, index, config, spec)

    def assemble(
        self,
        source: SourceInfo,
        plan: OutputPlan,
        segments: Sequence[SegmentFile],
        destination: Path,
        window: TimeWindow,
        on_progress: OnProgress | None,
    ) -> None:
        assemble(source.path, source, plan, segments, destination, window, on_progress=on_progress)

    def verify(self, source: Path, output: Path, window: TimeWindow, sample: int) -> Receipt:
        return verify(source, output, window=window, sample=sample)


# --- the same in a child -----------------------------------------------------------------------


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True)


class Opening(_Request):
    """The first line that a child is given: what it may touch."""

    source: Path
    """Its name, for texts and endings."""
    source_descriptor: int
    directory: Path
    """Of the job; the child may write in it."""
    parent_pid: int
    memory_bytes: int | None = None


class ProbeStep(_Request):
    step: Literal["probe"] = "probe"
    config: SourceConfig


class ScanStep(_Request):
    step: Literal["scan"] = "scan"
    video: VideoInfo
    deadline_seconds: float | None


class RestoreStep(_Request):
    step: Literal["restore"] = "restore"
    video: VideoInfo
    index: PacketIndex
    config: JobConfig
    model: str


class AssembleStep(_Request):
    step: Literal["assemble"] = "assemble"
    source: SourceInfo
    plan: OutputPlan
    segments: tuple[SegmentFile, ...]
    destination: Path
    window: TimeWindow


class VerifyStep(_Request):
    step: Literal["verify"] = "verify"
    output: Path
    window: TimeWindow
    sample: int


Step = ProbeStep | ScanStep | RestoreStep | AssembleStep | VerifyStep
STEP: TypeAdapter[Step] = TypeAdapter(Annotated[Step, Field(discriminator="step")])

REPLIES: dict[str, TypeAdapter[object]] = {
    "probe": TypeAdapter(SourceInfo),
    "scan": TypeAdapter(PacketIndex),
    "restore": TypeAdapter(RestoreChoice),
    "assemble": TypeAdapter(None),
    "verify": TypeAdapter(Receipt),
}


class Line(BaseModel):
    """One line from a child: progress, or the end of a step."""

    progress: tuple[int, int | None] | None = None
    reply: str | None = None
    """JSON, as `REPLIES` has it."""
    error: tuple[str, str] | None = None
    """Name of an srstream error, and its text."""


def perform(
    request: Step, source: Path, steps: InProcess, on_progress: OnProgress | None
) -> object:
    """Do one step; in the child."""
    if isinstance(request, ProbeStep):
        return steps.probe(source, request.config)
    if isinstance(request, ScanStep):
        return steps.scan(source, request.video, request.deadline_seconds, on_progress)
    if isinstance(request, RestoreStep):
        spec = model_spec(request.model)
        return steps.restore(source, request.video, request.index, request.config, spec)
    if isinstance(request, AssembleStep):
        info = replace(request.source, path=source)
        plan, segments = request.plan, request.segments
        steps.assemble(info, plan, segments, request.destination, request.window, on_progress)
        return None
    return steps.verify(source, request.output, request.window, request.sample)


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

    def probe(self, source: Path, config: SourceConfig) -> SourceInfo:
        return self._call(ProbeStep(config=config), SourceInfo)

    def scan(
        self,
        source: Path,
        video: VideoInfo,
        deadline_seconds: float | None,
        on_progress: OnProgress | None,
    ) -> PacketIndex:
        request = ScanStep(video=video, deadline_seconds=deadline_seconds)
        return self._call(request, PacketIndex, on_progress)

    def restore(
        self,
        source: Path,
        video: VideoInfo,
        index: PacketIndex,
        config: JobConfig,
        spec: ModelSpec,
    ) -> RestoreChoice:
        keys_only = replace(index, pts=())  # all that is read of it; it can be long
        request = RestoreStep(video=video, index=keys_only, config=config, model=spec.name)
        return self._call(request, RestoreChoice)

    def assemble(
        self,
        source: SourceInfo,
        plan: OutputPlan,
        segments: Sequence[SegmentFile],
        destination: Path,
        window: TimeWindow,
        on_progress: OnProgress | None,
    ) -> None:
        request = AssembleStep(
            source=source,
            plan=plan,
            segments=tuple(segments),
            destination=destination,
            window=window,
        )
        self._call(request, type(None), on_progress)

    def verify(self, source: Path, output: Path, window: TimeWindow, sample: int) -> Receipt:
        return self._call(VerifyStep(output=output, window=window, sample=sample), Receipt)

    def close(self) -> None:
        """End the child."""
        child, self._child, self._pending = self._child, None, b""
        if child is None:
            return
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # of what was not sent yet
                    pipe.close()

    def _call(self, request: Step, kind: type[_T], on_progress: OnProgress | None = None) -> _T:
        for deaths in range(1, MAX_DEATHS + 1):
            try:
                reply = self._try(request, on_progress)
            except (EOFError, BrokenPipeError):
                self.close()
                if deaths == MAX_DEATHS:
                    raise HostileInputError(
                        f"{self._opening.source}: reading it ended the process that did so "
                        f"{deaths} times ({request.step}), so it may be hostile or memory too "
                        "short."
                    ) from None
                continue
            except BaseException:
                self.close()
                raise
            assert isinstance(reply, kind)
            return reply
        raise AssertionError

    def _try(self, request: Step, on_progress: OnProgress | None) -> object:
        child = self._child or self._start()
        assert child.stdin is not None
        child.stdin.write(request.model_dump_json().encode() + b"\n")
        child.stdin.flush()
        while True:
            line = Line.model_validate_json(self._read_line(child))
            self._on_advance()
            if line.progress is not None:
                if on_progress is not None:
                    on_progress(*line.progress)
            elif line.error is not None:
                kind, text = line.error
                raise getattr(errors, kind, MediaError)(text)
            else:
                return REPLIES[request.step].validate_json(line.reply or "null")

    def _start(self) -> subprocess.Popen[bytes]:
        with (self._opening.directory / "media.log").open("ab") as log:
            self._child = child = subprocess.Popen(
                [sys.executable, "-P", "-m", "srstream.pipeline.media_child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                pass_fds=[self._opening.source_descriptor],
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
                process_group=0,
            )
        assert child.stdin is not None
        child.stdin.write(self._opening.model_dump_json().encode() + b"\n")
        return child

    def _read_line(self, child: subprocess.Popen[bytes]) -> bytes:
        assert child.stdout is not None
        position = bytes_read(child.pid)
        while b"\n" not in self._pending:
            if self._is_aborted():
                raise InterruptedJobError("the job was stopped while its source was read.")
            if select.select([child.stdout], [], [], _POLL_SECONDS)[0]:
                chunk = os.read(child.stdout.fileno(), 1 << 20)
                self._pending += chunk
                if not chunk or len(self._pending) > _LARGEST_LINE_BYTES:
                    raise EOFError
            elif (now_at := bytes_read(child.pid)) != position:
                position = now_at
                self._on_advance()
        line, self._pending = self._pending.split(b"\n", 1)
        return line
