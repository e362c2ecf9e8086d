"""A client of the daemon, for Python programs and for the commands.

with srstream.Client() as client:
    job = client.submit("/videos/in.mkv", priority=2)
    print(client.wait(job.id).output)
"""

from __future__ import annotations

import functools
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

import zmq
from pydantic import ValidationError

from srstream.client.connection import Connection, NoAnswerError, check_there
from srstream.errors import ServiceError, UsageError
from srstream.protocol.addresses import CONTROL_NAME, default_address
from srstream.protocol.control import (
    FINAL_STATES,
    WATCH_SECONDS,
    Event,
    HealthInfo,
    JobInfo,
    JobProgress,
    JobState,
)
from srstream.protocol.keys import ClientKey

_CREDIT = 1000
_PAGE_JOBS = 500
_RECONNECT_SECONDS = 0.5

Answer = TypeVar("Answer", JobInfo, HealthInfo)


class Client:
    """A connection to the daemon. It is not thread-safe.

    Every method raises the daemon's error in its class of `srstream.errors`, and ServiceError if no
    answer comes within `timeout_seconds`.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        key: ClientKey | os.PathLike[str] | str | None = None,
        timeout_seconds: float = 10.0,
    ) -> None:
        """Prepare a connection; nothing is sent yet.

        Args:
            address: ipc://PATH or tcp://HOST:PORT; the daemon of this machine if None.
            key: for TCP, the key, or the file that `srstream keys new` wrote.
        """
        self.address = default_address(CONTROL_NAME) if address is None else address
        self.timeout_seconds = timeout_seconds
        if not self.address.startswith(("ipc://", "tcp://")):
            raise UsageError(f"{self.address}: write ipc://PATH or tcp://HOST:PORT.")
        self._key = key if key is None or isinstance(key, ClientKey) else ClientKey.read(Path(key))
        if self.address.startswith("tcp://") and self._key is None:
            raise UsageError(f"{self.address}: TCP needs a key; see srstream keys new.")
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._connection: Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection, and every watch."""
        self._connection = None
        self._context.destroy(0)

    def submit(
        self,
        source: str | os.PathLike[str],
        output: str | os.PathLike[str] | None = None,
        *,
        config: dict[str, dict[str, Any] | bool] | None = None,
        overwrite: bool = False,
        priority: int = 0,
        key: str | None = None,
    ) -> JobInfo:
        """Queue a file on the daemon's machine; relative paths start at the current folder.

        Args:
            output: path of the result; None: `INPUT_4x`, in a folder that the daemon's
                configuration names, or beside the source.
            config: differences from the daemon's defaults, in the sections of `JobConfig`.
            key: submitting again with the same key returns the first job; with another source it
                is refused.
        """
        values = {
            "input": os.path.abspath(source),
            "output": None if output is None else os.path.abspath(output),
            "config": config or {},
            "overwrite": overwrite,
            "priority": priority,
            "key": key,
        }
        return self._ask_for(JobInfo, "submit", **values)

    def status(self, job: str) -> JobInfo:
        """Return a job.

        Raises:
            UsageError: there is none of this id.
        """
        return self._ask_for(JobInfo, "status", job=_job_id(job))

    def list(
        self, *states: JobState, limit: int = 100, before: str | None = None
    ) -> tuple[JobInfo, ...]:
        """Return jobs of these states (none: of all), newest first; `before` continues a list.

        The daemon is asked for one page after the other.
        """
        found: list[JobInfo] = []
        while (num_left := limit - len(found)) > 0:
            size = min(num_left, _PAGE_JOBS)
            result = self.ask("list", states=states, limit=size, before=before)
            found += (_checked(JobInfo, each) for each in result.get("jobs", ()))
            before = result.get("next")
            if before is None:
                break
        return tuple(found)

    def cancel(self, job: str) -> JobInfo:
        """End a job for good."""
        return self._ask_for(JobInfo, "cancel", job=_job_id(job))

    def pause(self, job: str) -> JobInfo:
        """Stop a job at the end of the segment under way."""
        return self._ask_for(JobInfo, "pause", job=_job_id(job))

    def resume(self, job: str) -> JobInfo:
        """Let a paused job continue, or try a failed one again."""
        return self._ask_for(JobInfo, "resume", job=_job_id(job))

    def set_priority(self, job: str, priority: int) -> JobInfo:
        """Change a job's priority, from -10 to 10; higher ones go first."""
        return self._ask_for(JobInfo, "priority", job=_job_id(job), priority=priority)

    def models(self) -> dict[str, Any]:
        """Return `models`, which a job may name, and `default`, which the others get."""
        return self.ask("models.list")

    def add_model(
        self, weights: str | os.PathLike[str], name: str | None = None, *, replace: bool = False
    ) -> dict[str, Any]:
        """Register weights, a .safetensors file on the daemon's machine."""
        return self.ask("models.add", weights=os.path.abspath(weights), name=name, replace=replace)

    def use_model(self, name: str, *, running: bool = False) -> dict[str, Any]:
        """Make a model the default; with `running`, also of jobs that run with the former."""
        return self.ask("models.use", name=name, running=running)

    def remove_model(self, name: str) -> dict[str, Any]:
        """Remove a registered model that no unfinished job uses."""
        return self.ask("models.remove", name=name)

    def reload(self) -> dict[str, Any]:
        """Let the daemon read its configuration again."""
        return self.ask("reload")

    def health(self) -> HealthInfo:
        """Return the daemon's condition."""
        return self._ask_for(HealthInfo, "health")

    def watch(
        self, job: str | None = None, *, after: int = -1, patience_seconds: float = 60.0
    ) -> Iterator[Event]:
        """Yield events as they happen, without end, each once and in order.

        After a lost connection it connects again and asks for the events that it missed.

        Args:
            after: sequence number of the last event seen; -1: begin at the first `next`.
            patience_seconds: how long the daemon may be away before ServiceError is raised.
        """
        watch = _Watch(self, job, after, patience_seconds)
        try:
            watch.begin()
            while True:
                event = watch.next_event(None)
                if event is not None:
                    yield event
        finally:
            watch.close()

    def wait(
        self,
        job: str,
        timeout_seconds: float | None = None,
        *,
        on_info: Callable[[JobInfo], None] = lambda info: None,
    ) -> JobInfo:
        """Wait until a job has ended, successfully or not, and return it.

        Args:
            on_info: called with the job whenever its state or its progress has changed.

        Raises:
            ServiceError: it has not ended within `timeout_seconds`, or the daemon is gone.
        """
        ends = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        watch = _Watch(self, job, -1, _PATIENCE_SECONDS)
        try:
            watch.begin()  # before the first status, so that no change is missed in between
            while True:
                info = self._patient_status(job)
                on_info(info)
                if info.state in FINAL_STATES:
                    return info
                if not watch.next_state(ends, functools.partial(_tell, on_info, info)):
                    raise ServiceError(f"job {job}: {info.state} still after {timeout_seconds} s.")
        finally:
            watch.close()

    def ask(self, op: str, **values: Any) -> dict[str, Any]:
        """Send any request and return the reply's result."""
        if self._connection is None:
            self._connection = self.connect()
        try:
            return self._connection.ask(op, values, self.timeout_seconds)
        except NoAnswerError:
            # A request that still waits must not reach a daemon that starts later.
            self._connection.close()
            self._connection = None
            raise

    def connect(self) -> Connection:
        """Make a further connection, which the caller closes."""
        if self.address.startswith("ipc://"):
            check_there(self.address.removeprefix("ipc://"))
        return Connection(self._context, self.address, self._key)

    def _ask_for(self, kind: type[Answer], op: str, **values: Any) -> Answer:
        return _checked(kind, self.ask(op, **values))

    def _patient_status(self, job: str) -> JobInfo:
        """Return a job, even if the daemon is being restarted."""
        ends = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                return self.status(job)
            except ServiceError:
                if time.monotonic() > ends:
                    raise
            time.sleep(_RECONNECT_SECONDS)


_PATIENCE_SECONDS = 60.0


class _Watch:
    """A subscription to events that survives the loss of its connection."""

    def __init__(self, client: Client, job: str | None, after: int, patience: float) -> None:
        self._client = client
        self._job = job
        self._seq = after
        self._patience_seconds = patience
        self._connection: Connection | None = None
        self._credit = 0
        self._renew_at = 0.0

    def begin(self) -> None:
        """Connect and subscribe. No event from now on is missed."""
        self._connection = self._client.connect()
        self._renew()

    def next_event(self, ends: float | None) -> Event | None:
        """The next event that was not returned before; None if none comes until `ends`."""
        while ends is None or time.monotonic() < ends:
            event = self._next_of_connection(ends)
            if event is None:
                continue
            self._credit -= 1
            if event.kind == "progress":
                return event
            if event.seq > self._seq:
                self._seq = event.seq
                return event
        return None

    def next_state(self, ends: float | None, on_progress: Callable[[Event], None]) -> bool:
        """Wait for the event of a new state; False if none comes until `ends`."""
        while (event := self.next_event(ends)) is not None:
            if event.kind == "state":
                return True
            if event.kind == "progress":
                on_progress(event)
        return False

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _next_of_connection(self, ends: float | None) -> Event | None:
        now = time.monotonic()
        if self._connection is None or self._credit <= 0 or now >= self._renew_at:
            self._keep_up()
        assert self._connection is not None
        until = self._renew_at if ends is None else min(self._renew_at, ends)
        return self._connection.next_event(max(until - now, 0.0))

    def _keep_up(self) -> None:
        """Renew the watch, on a new connection if needed, until patience runs out."""
        ends = time.monotonic() + self._patience_seconds
        while True:
            try:
                self.begin() if self._connection is None else self._renew()
                return
            except ServiceError:
                self.close()
                if time.monotonic() > ends:
                    raise
            time.sleep(_RECONNECT_SECONDS)

    def _renew(self) -> None:
        assert self._connection is not None
        values = {"after": self._seq, "job": self._job, "credit": _CREDIT}
        begun = self._connection.ask("watch", values, self._client.timeout_seconds)
        self._seq = begun["after"]  # lower than asked for, if the daemon's queue is new
        self._credit = _CREDIT
        self._renew_at = time.monotonic() + _RENEW_SECONDS


_RENEW_SECONDS = min(WATCH_SECONDS / 4, 5.0)
"""Time between renewals, in which a restart of the daemon is noticed too."""


def _job_id(text: str) -> str:
    """Check that a text may be a job's id.

    Raises:
        UsageError: no job can have it.
    """
    if not re.fullmatch(r"[0-9a-z]{8,40}", text):
        raise UsageError(f"{text}: there is no such job; srstream jobs lists them.")
    return text


def _tell(on_info: Callable[[JobInfo], None], job: JobInfo, event: Event) -> None:
    """Pass on a job with the progress that an event tells."""
    progress = JobProgress.model_validate(event.data)
    on_info(job.model_copy(update={"progress": progress}))


def _checked(kind: type[Answer], values: dict[str, Any]) -> Answer:
    """Convert an answer to its type; further fields of a newer daemon are ignored."""
    try:
        return kind.model_validate({n: v for n, v in values.items() if n in kind.model_fields})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ServiceError(f"the daemon's answer is odd: {where}: {first['msg']}.") from error
