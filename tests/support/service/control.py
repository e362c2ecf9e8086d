"""A daemon's control socket with a queue that is a dict; runs as a process of its own.

python -m tests.support.service.control RUNTIME_DIR [--tcp ADDRESS --keys FOLDER] [--fd N]
    [--max-clients N]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from srstream.daemon.actions import Peer
from srstream.daemon.api.zmq.control import ControlServer
from srstream.daemon.settings import SocketSettings
from srstream.errors import SrstreamError, UsageError
from srstream.protocol.control import Event, HealthInfo, JobInfo, Request
from srstream.protocol.keys import KeyRing
from tests.support.paths import REPOSITORY


class DictHandler:
    """Jobs that are enhanced by waiting; `-slow` in a job's name makes its status slow."""

    def __init__(self) -> None:
        self.jobs: dict[str, JobInfo] = {}
        self.events: list[Event] = []
        self.server: ControlServer | None = None
        self.default = "fast"
        self.numbers = itertools.count()

    def events_after(self, after: int, job: str | None, limit: int) -> list[Event]:
        later = itertools.islice(self.events, max(after, 0), None)
        return list(itertools.islice((e for e in later if job in (None, e.job)), limit))

    def last_seq(self) -> int:
        return len(self.events)

    def emit(self, job: str | None, kind: Any, **data: Any) -> None:
        seq = len(self.events) + (kind != "progress")
        event = Event(seq=seq, time=time.time(), job=job, kind=kind, data=data)
        if kind != "progress":
            self.events.append(event)
        if self.server is not None:
            self.server.publish(event)

    async def handle(self, request: Request, peer: Peer) -> dict[str, Any]:
        method = getattr(self, request.op.replace(".", "_"))
        return await method(request, peer)

    async def submit(self, request: Any, peer: Peer) -> dict[str, Any]:
        if request.input.startswith("/forbidden"):
            raise UsageError(f"{request.input}: outside the configured roots.")
        if request.input == "/broken":
            raise RuntimeError("a secret of the daemon")
        job = f"{next(self.numbers):012d}"
        output = request.output or request.input + "_4x"
        self.jobs[job] = JobInfo(
            id=job, state="queued", input=request.input, output=output, created=time.time(),
            priority=request.priority, submitter=peer.name, result={"config": request.config},
        )  # fmt: skip
        self.emit(job, "state", state="queued")
        return self.jobs[job].model_dump()

    async def status(self, request: Any, peer: Peer) -> dict[str, Any]:
        if request.job not in self.jobs:
            raise UsageError(f"there is no job {request.job}.")
        if "-slow" in self.jobs[request.job].input:
            await asyncio.sleep(1)
        return self.jobs[request.job].model_dump()

    async def list(self, request: Any, peer: Peer) -> dict[str, Any]:
        jobs = [j for j in reversed(self.jobs.values()) if j.state in (request.states or [j.state])]
        return {"jobs": [job.model_dump() for job in jobs[: request.limit]]}

    def change(self, job: str, **changes: Any) -> dict[str, Any]:
        if job not in self.jobs:
            raise UsageError(f"there is no job {job}.")
        self.jobs[job] = self.jobs[job].model_copy(update=changes)
        self.emit(job, "state", state=self.jobs[job].state)
        return self.jobs[job].model_dump()

    async def cancel(self, request: Any, peer: Peer) -> dict[str, Any]:
        return self.change(request.job, state="cancelled")

    async def pause(self, request: Any, peer: Peer) -> dict[str, Any]:
        return self.change(request.job, state="paused")

    async def resume(self, request: Any, peer: Peer) -> dict[str, Any]:
        asyncio.get_running_loop().create_task(self.run(request.job))
        return self.change(request.job, state="running")

    async def run(self, job: str) -> None:
        for done in range(20):
            await asyncio.sleep(0.02)
            self.emit(job, "progress", stage="enhancing", done=done)
            self.emit(job, "segment", index=done)
        self.change(job, state="done")

    async def priority(self, request: Any, peer: Peer) -> dict[str, Any]:
        return self.change(request.job, priority=request.priority)

    async def models_list(self, request: Any, peer: Peer) -> dict[str, Any]:
        return {"models": [{"name": "fast"}, {"name": "balanced"}], "default": self.default}

    async def models_add(self, request: Any, peer: Peer) -> dict[str, Any]:
        return {"name": request.name or Path(request.weights).stem}

    async def models_use(self, request: Any, peer: Peer) -> dict[str, Any]:
        self.default = request.name
        return {"default": self.default}

    async def models_remove(self, request: Any, peer: Peer) -> dict[str, Any]:
        return {"name": request.name}

    async def reload(self, request: Any, peer: Peer) -> dict[str, Any]:
        return {"changed": []}

    async def health(self, request: Any, peer: Peer) -> dict[str, Any]:
        info = HealthInfo(
            ok=self.default != "broken", version="0", uptime_seconds=1, workers=(),
            num_queued=len(self.jobs), num_running=0, num_paused=0,
            problems=() if self.default != "broken" else ("the default model is broken",),
        )  # fmt: skip
        return info.model_dump() | {"peer": peer.name}


async def serve(options: argparse.Namespace) -> None:
    handler = DictHandler()
    settings = SocketSettings(
        runtime_dir=options.folder, control_tcp=options.tcp, max_clients=options.max_clients
    )
    keys = None if options.keys is None else KeyRing(options.keys)
    server = handler.server = ControlServer(settings, handler, keys)
    server.bind(options.fd)
    task = asyncio.ensure_future(server.serve())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    print("ready", flush=True)
    with contextlib.suppress(asyncio.CancelledError):
        await task
    server.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tcp")
    parser.add_argument("--keys", type=Path)
    parser.add_argument("--fd", type=int)
    parser.add_argument("--max-clients", type=int, default=256)
    try:
        asyncio.run(serve(parser.parse_args()))
    except SrstreamError as error:
        print(f"srstream: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


class Daemon:
    """The process, and where it listens."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self.process = process
        self.path = folder / "control.sock"
        self.address = f"ipc://{self.path}"

    def resident_bytes(self) -> int:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * 4096

    def num_descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


@contextlib.contextmanager
def daemon(folder: Path, *options: object, **arguments: Any) -> Iterator[Daemon]:
    """A daemon that is ready; it must still be alive at the end, and leave in peace."""
    process = start(folder, *options, **arguments)
    try:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        yield Daemon(process, folder)
        assert process.poll() is None, process.stderr.read()
        process.terminate()
        assert process.wait(10) == 0, process.stderr.read()
    finally:
        process.kill()
        process.wait()


def start(folder: Path, *options: object, **arguments: Any) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.service.control", str(folder), *map(str, options)],
        cwd=REPOSITORY, text=True, **{**pipes, **arguments},
    )  # fmt: skip


if __name__ == "__main__":
    main()
