"""The daemon's metrics for Prometheus, and the opt-in HTTP server that shows them.

`/metrics` and `/healthz` answer GET and HEAD only. A client that is slow or sends too much is
disconnected, and so is one beyond the limit of connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from srstream.daemon.settings import MetricsSettings
from srstream.daemon.sockets import listen_tcp, listen_unix
from srstream.daemon.workers.link import Counts
from srstream.errors import ConfigError, SrstreamError, error_named
from srstream.protocol.control import FINAL_STATES, HealthInfo, JobState

_REQUEST_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
_JOB_BUCKETS = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 24 * 3600.0)
_STATES: tuple[JobState, ...] = ("queued", "running", "paused", *FINAL_STATES)

_Place = str | Path
"""Where to listen: tcp://HOST:PORT, or the path of a unix socket."""
_SOCKET_MODE = 0o660
_MAX_HEAD_BYTES = 8192
_MAX_CLIENTS = 16
_TIMEOUT_SECONDS = 5.0


class Metrics:
    """The daemon's metrics, in their own registry. All calls belong to the event loop."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._define_jobs()
        self._define_work()
        self._counted: dict[str, Counts] = {}
        """What each worker has reported since it started."""

    def _define_jobs(self) -> None:
        of = self._registry
        self._jobs = Gauge("srstream_jobs", "Jobs that are remembered.", ["state"], registry=of)
        self._wait = Histogram(
            "srstream_job_wait_seconds",
            "From the submission of a job to its first start.",
            buckets=_JOB_BUCKETS,
            registry=of,
        )
        self._duration = Histogram(
            "srstream_job_duration_seconds",
            "From the first start of a job to its end.",
            ["state"],
            buckets=_JOB_BUCKETS,
            registry=of,
        )
        self._requests = Histogram(
            "srstream_request_seconds",
            "Answering a request on the control socket.",
            ["op"],
            buckets=_REQUEST_BUCKETS,
            registry=of,
        )
        self._errors = Counter(
            "srstream_errors",
            "Errors by kind; where: request, job or worker.",
            ["where", "kind"],
            registry=of,
        )

    def _define_work(self) -> None:
        of = self._registry
        self._frames = Counter("srstream_frames", "Frames enhanced.", ["model"], registry=of)
        self._fps = Gauge("srstream_fps", "Frames a second, all jobs together.", registry=of)
        self._stages = Counter(
            "srstream_stage_seconds", "Time that jobs spent in a stage.", ["stage"], registry=of
        )
        self._pixels = Counter(
            "srstream_pixels", "Pixels of the input that were to be enlarged.", registry=of
        )
        self._pixels_computed = Counter(
            "srstream_pixels_computed", "Of these, those that a network computed.", registry=of
        )
        self._reuse = Gauge(
            "srstream_reuse_share", "Share of the pixels that was not computed again.", registry=of
        )
        self._num_pixels = self._num_pixels_computed = 0
        self._restarts = Counter(
            "srstream_worker_restarts",
            "Engine workers that had to be replaced.",
            ["worker"],
            registry=of,
        )
        self._ready = Gauge(
            "srstream_worker_ready", "Whether a worker's engine is warm.", ["worker"], registry=of
        )
        self._sessions = Gauge(
            "srstream_frame_sessions", "Clients that push raw frames.", registry=of
        )
        self._healthy = Gauge(
            "srstream_healthy", "What `srstream health` and /healthz say.", registry=of
        )
        self._uptime = Gauge("srstream_uptime_seconds", "Since the daemon's start.", registry=of)

    @contextmanager
    def request(self, op: str) -> Iterator[None]:
        """Count the request that the block answers, its time and its error."""
        began = time.perf_counter()
        try:
            yield
        except SrstreamError as error:
            self.error("request", type(error).__name__)
            raise
        finally:
            self._requests.labels(op).observe(time.perf_counter() - began)

    def job_started(self, wait_seconds: float) -> None:
        """Count a job's first start, so long after it was submitted."""
        self._wait.observe(max(0.0, wait_seconds))

    def job_ended(self, state: JobState, seconds: float) -> None:
        """Count a job's end, so many seconds after its first start."""
        self._duration.labels(state).observe(max(0.0, seconds))

    def error(self, where: str, kind: str) -> None:
        """Count an error. `kind` is its class in srstream; other names count as `internal`."""
        self._errors.labels(where, kind if error_named(kind) else "internal").inc()

    def count(self, worker: str, told: Counts) -> None:
        """Add what a worker has counted since its last report; its counts start at 0 with it."""
        before = self._counted.get(worker, Counts())
        self._counted[worker] = told
        for model, number in _grown(before.frames, told.frames):
            self._frames.labels(model).inc(number)
        for stage, seconds in _grown(before.stage_seconds, told.stage_seconds):
            self._stages.labels(stage).inc(seconds)
        pixels = max(0, told.pixels - before.pixels)
        computed = max(0, told.pixels_computed - before.pixels_computed)
        self._pixels.inc(pixels)
        self._pixels_computed.inc(computed)
        self._num_pixels += pixels
        self._num_pixels_computed += computed

    def worker_lost(self, worker: str) -> None:
        """Note that a worker died; its successor counts from 0."""
        self._counted.pop(worker, None)
        self._restarts.labels(worker).inc()

    def render(self, jobs: Mapping[str, int], health: HealthInfo, fps: float) -> bytes:
        """All metrics as text, with the gauges set to their present values."""
        for state in _STATES:
            self._jobs.labels(state).set(jobs.get(state, 0))
        for worker in health.workers:
            self._ready.labels(worker.name).set(worker.state == "ready")
            self._restarts.labels(worker.name)
        self._fps.set(fps)
        self._sessions.set(sum(counts.frame_sessions for counts in self._counted.values()))
        if self._num_pixels:
            self._reuse.set(1 - self._num_pixels_computed / self._num_pixels)
        self._healthy.set(health.ok)
        self._uptime.set(health.uptime_seconds)
        return generate_latest(self._registry)


class MetricsServer:
    """Serves `/metrics` and `/healthz` where the settings say so; nowhere by default.

    Args:
        render: returns the metrics as text.
        health: returns the daemon's condition.
    """

    def __init__(
        self,
        settings: MetricsSettings,
        render: Callable[[], bytes],
        health: Callable[[], HealthInfo],
    ) -> None:
        self._settings, self._render, self._health = settings, render, health
        self._listeners: dict[_Place, socket.socket] = {}
        self._servers: dict[_Place, asyncio.Server] = {}
        self._is_changed = asyncio.Event()
        self._num_clients = 0

    def bind(self) -> None:
        """Open the configured sockets.

        Raises:
            SrstreamError: one of them cannot be opened.
        """
        self.use(self.opened(self._settings))

    def opened(self, settings: MetricsSettings) -> dict[_Place, socket.socket]:
        """The sockets of new settings: those that are open already, and newly opened ones.

        Raises:
            SrstreamError: one of them cannot be opened; no new one stays open then.
        """
        sockets: dict[_Place, socket.socket] = {}
        try:
            for place in _places(settings):
                sockets[place] = self._listeners.get(place) or _listen(place)
        except BaseException:
            self.give_up(sockets)
            raise
        return sockets

    def give_up(self, sockets: Mapping[_Place, socket.socket]) -> None:
        """Close those of `sockets` that are not in use, and remove the names of unix sockets."""
        for place, listener in sockets.items():
            if place not in self._listeners:
                _close(place, listener)

    def use(self, sockets: Mapping[_Place, socket.socket]) -> None:
        """Answer on these sockets from now on, and close all others."""
        before, self._listeners = self._listeners, dict(sockets)
        for place, listener in before.items():
            if place not in sockets:
                if (server := self._servers.pop(place, None)) is not None:
                    server.close()
                _close(place, listener)
        self._is_changed.set()

    async def serve(self) -> None:
        """Answer until cancelled."""
        try:
            while True:
                self._is_changed.clear()
                for place in self._listeners.keys() - self._servers.keys():
                    await self._start(place)
                await self._is_changed.wait()
        finally:
            for server in self._servers.values():
                server.close()

    async def _start(self, place: _Place) -> None:
        listener = self._listeners.get(place)
        if listener is None:
            # It was closed while another was started.
            return
        start = asyncio.start_unix_server if isinstance(place, Path) else asyncio.start_server
        server = await start(
            self._answer, sock=listener, limit=_MAX_HEAD_BYTES, start_serving=False
        )
        self._servers[place] = server
        await server.start_serving()

    def close(self) -> None:
        """Close the sockets, and remove the unix socket's name."""
        self.use({})

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request, then end the connection."""
        if self._num_clients >= _MAX_CLIENTS:
            writer.transport.abort()
            return
        self._num_clients += 1
        try:
            # This ends whatever a client sends, or does not read.
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._reply(head))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError):
            writer.transport.abort()
        except asyncio.LimitOverrunError:
            with contextlib.suppress(ConnectionError):
                writer.write(_response(431, b"the request is too long\n"))
            writer.close()
        finally:
            self._num_clients -= 1

    def _reply(self, head: bytes) -> bytes:
        words = head.split(b"\r\n", 1)[0].split()
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return _response(400, b"this is no request\n")
        method, target, _ = words
        if method not in (b"GET", b"HEAD"):
            return _response(405, b"only GET and HEAD\n")
        path = target.split(b"?", 1)[0]
        if path == b"/metrics":
            reply = _response(200, self._render(), CONTENT_TYPE_LATEST)
        elif path == b"/healthz":
            health = self._health()
            text = "ok" if health.ok else "\n".join(health.problems)
            reply = _response(200 if health.ok else 503, f"{text}\n".encode())
        else:
            reply = _response(404, b"there are /metrics and /healthz\n")
        return reply if method == b"GET" else reply[: reply.index(b"\r\n\r\n") + 4]


def _places(settings: MetricsSettings) -> Iterator[_Place]:
    if settings.port is not None:
        host = f"[{settings.address}]" if ":" in settings.address else settings.address
        yield f"tcp://{host}:{settings.port}"
    if settings.path is not None:
        yield settings.path


def _listen(place: _Place) -> socket.socket:
    if isinstance(place, str):
        return listen_tcp(place)
    if place.exists() and not stat.S_ISSOCK(place.lstat().st_mode):
        raise ConfigError(f"metrics.path: {place} is there and no socket.")
    return listen_unix(place, _SOCKET_MODE, None)


def _close(place: _Place, listener: socket.socket) -> None:
    if isinstance(place, Path):
        place.unlink(missing_ok=True)
    listener.close()


_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}


def _response(status: int, body: bytes, kind: str = "text/plain; charset=utf-8") -> bytes:
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


def _grown(before: Mapping[str, float], now: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    """Return how much each value has grown; a new name appears even with 0."""
    for name, value in now.items():
        yield name, max(0.0, value - before.get(name, 0))
