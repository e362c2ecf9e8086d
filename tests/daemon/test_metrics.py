"""The metrics, and their server, which bad clients cannot harm."""

from __future__ import annotations

import asyncio
import http.client
import socket
import stat
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from srstream.daemon.metrics import Metrics, MetricsServer
from srstream.daemon.settings import MetricsSettings
from srstream.daemon.workers.link import Counts
from srstream.errors import ConfigError, ServiceError, UsageError
from srstream.protocol.control import HealthInfo, WorkerInfo
from tests.support import clips
from tests.support.service.daemon import Daemon, wait_for

Samples = dict[tuple[str, ...], float]


def parsed(text: str) -> Samples:
    """Samples by name and label values, in the order of the labels' names."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def health(*, ok: bool = True) -> HealthInfo:
    return HealthInfo(
        ok=ok,
        version="1",
        uptime_seconds=7,
        num_queued=0,
        num_running=0,
        num_paused=0,
        workers=(
            WorkerInfo(
                name="engine-0", device="cpu", pid=1, state="ready", num_jobs=0, num_restarts=0
            ),
        ),
        problems=() if ok else ("the disk is full.",),
    )


def rendered(metrics: Metrics) -> Samples:
    return parsed(metrics.render({"queued": 2}, health(), 12.5).decode())


def test_a_worker_that_starts_anew_takes_nothing_back() -> None:
    metrics = Metrics()
    first = Counts(frames={"fast": 10}, pixels=1000, pixels_computed=600, frame_sessions=2)
    metrics.count("engine-0", first)
    metrics.count("engine-0", first.model_copy(update={"frames": {"fast": 25, "balanced": 1}}))
    metrics.count("engine-1", Counts(frames={"fast": 5}, stage_seconds={"enhancing": 1.5}))
    metrics.worker_lost("engine-0")
    metrics.count("engine-0", Counts(frames={"fast": 3}, pixels=1000, pixels_computed=1000))
    found = rendered(metrics)
    assert found["srstream_frames_total", "fast"] == 33
    assert found["srstream_frames_total", "balanced"] == 1
    assert found["srstream_stage_seconds_total", "enhancing"] == 1.5
    assert found["srstream_pixels_total",] == 2000
    assert found["srstream_pixels_computed_total",] == 1600
    assert found["srstream_reuse_share",] == pytest.approx(0.2)
    assert found["srstream_worker_restarts_total", "engine-0"] == 1
    assert found["srstream_frame_sessions",] == 0
    assert found["srstream_fps",] == 12.5
    assert found["srstream_jobs", "queued"] == 2 and found["srstream_jobs", "done"] == 0


def test_errors_and_latencies_have_few_labels() -> None:
    metrics = Metrics()
    for error in (UsageError("no."), ValueError("odd")):
        with pytest.raises(type(error)), metrics.request("submit"):
            raise error
    metrics.error("job", "DiskFullError")
    metrics.error("job", "Whatever a client wrote")
    metrics.error("job", "annotations")
    metrics.job_started(3.0)
    metrics.job_ended("done", 12.0)
    found = rendered(metrics)
    assert found["srstream_request_seconds_count", "submit"] == 2
    assert found["srstream_errors_total", "UsageError", "request"] == 1
    assert found["srstream_errors_total", "DiskFullError", "job"] == 1
    assert found["srstream_errors_total", "internal", "job"] == 2
    assert found["srstream_job_wait_seconds_bucket", "5.0"] == 1
    assert found["srstream_job_duration_seconds_bucket", "5.0", "done"] == 0
    assert found["srstream_job_duration_seconds_bucket", "15.0", "done"] == 1


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


def serving(
    settings: MetricsSettings,
    act: Callable[[], Awaitable[None]],
    told: Callable[[], HealthInfo] = health,
) -> None:
    """Do something while a server answers."""

    async def run() -> None:
        server = MetricsServer(settings, lambda: Metrics().render({}, told(), 0.0), told)
        server.bind()
        task = asyncio.ensure_future(server.serve())
        try:
            await act()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            server.close()

    asyncio.run(run())


def get(port: int, target: str, method: str = "GET") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request(method, target)
    reply = connection.getresponse()
    text = reply.read().decode()
    connection.close()
    return reply.status, text


def test_two_pages_and_nothing_else() -> None:
    port = free_port()

    async def act() -> None:
        ask = asyncio.to_thread
        status, text = await ask(get, port, "/metrics")
        assert status == 200 and parsed(text)["srstream_uptime_seconds",] == 7
        assert await ask(get, port, "/healthz") == (200, "ok\n")
        assert (await ask(get, port, "/healthz", "HEAD")) == (200, "")
        for target in ("/", "/metrics/", "/etc/passwd", "/../metrics"):
            assert (await ask(get, port, target))[0] == 404, target
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            assert (await ask(get, port, "/metrics", method))[0] == 405

    serving(MetricsSettings(port=port), act)


def test_a_daemon_that_is_unwell_says_so() -> None:
    port = free_port()

    async def act() -> None:
        assert await asyncio.to_thread(get, port, "/healthz") == (503, "the disk is full.\n")

    serving(MetricsSettings(port=port), act, lambda: health(ok=False))


def test_a_unix_socket_is_for_owner_and_group(tmp_path: Path) -> None:
    path = tmp_path / "metrics.sock"

    async def act() -> None:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert (await reader.read()).endswith(b"\r\n\r\nok\n")
        writer.close()

    serving(MetricsSettings(path=path), act)
    assert not path.exists()


def test_sockets_that_cannot_be_had_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    server = MetricsServer(MetricsSettings(path=tmp_path / "file"), bytes, health)
    with pytest.raises(ConfigError, match="no socket"):
        server.bind()
    assert (tmp_path / "file").read_text() == "mine"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServiceError, match="in use"):
            MetricsServer(MetricsSettings(port=port), bytes, health).bind()


def test_sockets_change_while_it_answers(tmp_path: Path) -> None:
    """Sockets that stay are not closed; if a new one fails, nothing changes."""
    first, second, path = free_port(), free_port(), tmp_path / "metrics.sock"

    async def act() -> None:
        server = MetricsServer(MetricsSettings(port=first), bytes, health)
        server.bind()
        task = asyncio.ensure_future(server.serve())
        ask = asyncio.to_thread
        assert (await ask(get, first, "/healthz"))[0] == 200
        server.use(server.opened(MetricsSettings(port=first, path=path)))
        assert (await ask(get, first, "/healthz"))[0] == 200 and path.is_socket()
        with socket.create_server(("127.0.0.1", second)), pytest.raises(ServiceError):
            server.opened(MetricsSettings(port=second, path=path))
        assert (await ask(get, first, "/healthz"))[0] == 200 and path.is_socket()
        server.use(server.opened(MetricsSettings(port=second)))
        assert (await ask(get, second, "/healthz"))[0] == 200 and not path.exists()
        with pytest.raises(OSError, match="refused"):
            await ask(get, first, "/healthz")
        server.use(server.opened(MetricsSettings()))
        server.use(server.opened(MetricsSettings(port=first)))
        assert (await ask(get, first, "/healthz"))[0] == 200
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        server.close()

    asyncio.run(act())


def test_garbage_and_idle_clients_keep_nobody_waiting() -> None:
    port = free_port()

    async def act() -> None:
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(10)]
        for payload in (b"\x00\xff\r\n\r\n", b"GET /metrics\r\n\r\n", b"x" * 100_000, b"\r\n\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(payload)
            try:
                reply = await asyncio.wait_for(reader.read(), 5)
            except ConnectionError:
                reply = b"HTTP/1.1 4"
            assert reply.startswith(b"HTTP/1.1 4"), payload[:20]
            writer.close()
        began = time.monotonic()
        assert (await asyncio.to_thread(get, port, "/healthz"))[0] == 200
        assert time.monotonic() - began < 1
        more = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
        refused, _ = more[-1]
        # Connections beyond the limit end at once, not after the timeout of an idle one.
        assert await asyncio.wait_for(_rest(refused), 2) == b""
        for reader, writer in idle:
            with_nothing = await asyncio.wait_for(_rest(reader), 10)
            assert with_nothing == b""
            writer.close()
        assert (await asyncio.to_thread(get, port, "/healthz"))[0] == 200
        for _, writer in more:
            writer.close()

    serving(MetricsSettings(port=port), act)


async def _rest(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionError:
        return b""


def test_a_daemon_counts_its_work(tmp_path: Path) -> None:
    port = free_port()
    with Daemon(tmp_path, f"[metrics]\nport = {port}") as daemon:
        source = clips.cfr(daemon.inputs / "a.mp4", frames=60)
        assert daemon.wait(daemon.submit(source, "a.mp4"))["state"] == "done"
        (daemon.inputs / "b.mp4").write_text("no video")
        daemon.wait(daemon.submit(daemon.inputs / "b.mp4", "b.mp4"))
        assert not daemon.ask("submit", input="/etc/passwd")["ok"]
        (worker,) = daemon.children("workers.main")
        wait_for(lambda: parsed(get(port, "/metrics")[1])["srstream_pixels_total",] > 0)
        worker.kill()
        restarts = ("srstream_worker_restarts_total", "engine-0")
        wait_for(lambda: parsed(get(port, "/metrics")[1])[restarts] == 1)
        found = parsed(get(port, "/metrics")[1])
        assert found["srstream_jobs", "done"] == 1 and found["srstream_jobs", "failed"] == 1
        assert found["srstream_job_wait_seconds_count",] == 2
        assert found["srstream_job_duration_seconds_count", "done"] == 1
        assert found["srstream_frames_total", "fast"] == 60
        for stage in ("reading", "enhancing", "assembling", "verifying"):
            assert found["srstream_stage_seconds_total", stage] > 0
        assert found["srstream_request_seconds_count", "submit"] == 3
        assert found["srstream_errors_total", "RefusedError", "request"] == 1
        assert found["srstream_errors_total", "MediaError", "job"] == 1
        assert daemon.stop() == 0
    with pytest.raises(OSError):
        get(port, "/metrics")
