"""Steps that read an untrusted file, in this process or in a confined child.

The command line runs them in its own process, on its own user's files. The daemon runs them all
in a child, `step_child.py`.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter

from srstream.errors import HostileInputError, InterruptedJobError, MediaError, error_from_wire
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
    what the functions that it calls raise.
    """

    model_config = ConfigDict(frozen=True)

    needs_devices: ClassVar[bool] = False
    """Whether it uses a GPU, whose driver opens files that nobody can list."""

    step: str
    reply: ClassVar[TypeAdapter[Any]]
    """The adapter of the type that `perform` returns."""

    @abstractmethod
    def perform(self, source: Path, on_progress: OnProgress | None) -> _T:
        """Do the step in this process."""


class Steps(Protocol):
    """Does steps, in this process or elsewhere."""

    def do(self, step: Step[_T], source: Path, on_progress: OnProgress | None = None) -> _T:
        """Do a step with a source and return its result."""
        ...

    def allow_more(self, num_bytes: int) -> None:
        """Allow so much more memory from the next step on."""
        ...


class InProcess:
    """Does the steps in this process."""

    def do(self, step: Step[_T], source: Path, on_progress: OnProgress | None = None) -> _T:
        return step.perform(source, on_progress)

    def allow_more(self, num_bytes: int) -> None:
        """Do nothing: the memory of this process is not limited."""


# --- the same in a child --------------------------------------------------------------------------


class Opening(BaseModel):
    """The order of a child: everything that it may read or write."""

    model_config = ConfigDict(frozen=True)

    source: Path
    """The name of the source, for messages and for its suffix."""
    source_descriptor: int
    directory: Path
    """The job's folder, in which the child may write."""
    memory_bytes: int | None = None
    devices: bool = False
    """Whether it may use a GPU; its access to files is not restricted then."""


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
        module: the child's, which knows the steps.
        source, descriptor: the name of the source, and the source opened for reading.
        on_advance: called at each sign that the child makes progress.
        is_aborted: asked a few times a second; True ends the step with `InterruptedJobError`.
    """

    def __init__(
        self,
        module: str,
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
        self._module = module
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

    def allow_more(self, num_bytes: int) -> None:
        """Allow so much more memory from the next step on, which a new child does."""
        if self._opening.memory_bytes is not None:
            self._end()
            more = {"memory_bytes": self._opening.memory_bytes + num_bytes}
            self._opening = self._opening.model_copy(update=more)

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
        if step.needs_devices:
            return self._try_with_devices(step, on_progress)
        child = self._child or self._start(self._opening)
        return self._answered(child, step, on_progress)

    def _try_with_devices(self, step: Step[_T], on_progress: OnProgress | None) -> _T:
        """Do a step in a child of its own, so that no other step has what it is given."""
        self._end()
        child = self._start(self._opening.model_copy(update={"devices": True}))
        reply = self._answered(child, step, on_progress)
        self._end()
        return reply

    def _answered(self, child: Child, step: Step[_T], on_progress: OnProgress | None) -> _T:
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

    def _start(self, opening: Opening) -> Child:
        with (opening.directory / "media.log").open("ab") as log:
            self._child = start_child(
                self._module,
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
