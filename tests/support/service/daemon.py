"""Shared by the tests of the daemon: a real one in a process of its own, asked over its socket."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import zmq

from tests.support.paths import REPOSITORY

START_SECONDS = 60.0
FINAL = {"done", "failed", "quarantined", "cancelled"}


class Daemon:
    """`srstream serve` with folders of its own below `home`; `settings` are further TOML lines.

    Each engine worker first runs `worker_code`, one statement.
    """

    def __init__(
        self, home: Path, settings: str = "", state: Path | None = None, worker_code: str = ""
    ) -> None:
        self.home = home
        self.inputs, self.outputs = home / "in", home / "out"
        self.state = state or home / "state"
        self.work = self.state / "work"
        for folder in (self.inputs, self.outputs):
            folder.mkdir(parents=True, exist_ok=True)
        self.environment: dict[str, str] = {"PYTHONPATH": str(REPOSITORY)}
        if worker_code:
            is_worker = "'srstream.daemon.workers.main' in __import__('sys').orig_argv"
            (home / "sitecustomize.py").write_text(f"if {is_worker}:\n    {worker_code}\n")
            self.environment["PYTHONPATH"] = f"{home}:{REPOSITORY}"
        # A unix socket's path has at most 107 bytes, and pytest's folders are long.
        self.runtime = Path(f"/tmp/srd-{os.getpid()}-{abs(hash(home)) % 10**8}")
        self.config = home / "srstream.toml"
        self.configure(settings)
        self.process: subprocess.Popen[bytes] | None = None
        self._context = zmq.Context()

    def configure(self, settings: str = "") -> None:
        """Write the configuration file."""
        self.config.write_text(
            f"""
drain_seconds = 20
[sockets]
runtime_dir = "{self.runtime}"
[security]
read_roots = ["{self.inputs}"]
write_roots = ["{self.outputs}"]
[jobs]
state_dir = "{self.state}"
retry_seconds = 0.2
{settings}
"""
        )

    def __enter__(self) -> Daemon:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._context.destroy(linger=0)
        for path in self.runtime.glob("*"):
            path.unlink()
        if self.runtime.exists():
            self.runtime.rmdir()

    def start(self) -> None:
        """Start it and wait until its engine is warm."""
        self.process = self.launch()
        wait_for(lambda: self.ask("health", wait=0.5)["result"]["ok"], START_SECONDS)

    def launch(self) -> subprocess.Popen[bytes]:
        """Start it."""
        with (self.home / "daemon.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "srstream", "serve", "--config", str(self.config)],
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment},
            )

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self, timeout: float = 30.0) -> int:
        """SIGTERM; its exit code. Nothing in its log is a surprise of Python's own."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout)
        assert "Unknown child process" not in self.log()
        return code

    def ask(self, op: str, *, wait: float = 10.0, **fields: Any) -> dict[str, Any]:
        """One request and its whole reply.

        Raises:
            TimeoutError: no reply in time.
        """
        socket = self._context.socket(zmq.REQ)
        socket.setsockopt(zmq.LINGER, 0)
        try:
            socket.connect(f"ipc://{self.runtime}/control.sock")
            socket.send(json.dumps({"op": op, **fields}).encode())
            if not socket.poll(int(wait * 1000)):
                raise TimeoutError(f"no reply to {op}; see {self.home}/daemon.log")
            reply: dict[str, Any] = json.loads(socket.recv())
            return reply
        finally:
            socket.close()

    def result(self, op: str, **fields: Any) -> dict[str, Any]:
        """The result of a request that must not fail."""
        reply = self.ask(op, **fields)
        assert reply["ok"], reply
        result: dict[str, Any] = reply["result"]
        return result

    def submit(self, source: Path, name: str, **fields: Any) -> str:
        """Submit; the job's id."""
        job: str = self.result(
            "submit", input=str(source), output=str(self.outputs / name), **fields
        )["id"]
        return job

    def job(self, job: str) -> dict[str, Any]:
        """What is told of a job."""
        return self.result("status", job=job)

    def wait(self, job: str, timeout: float = 60.0) -> dict[str, Any]:
        """A job's end."""
        wait_for(lambda: self.job(job)["state"] in FINAL, timeout)
        return self.job(job)

    def children(self, module: str) -> list[psutil.Process]:
        """Processes below the daemon that run this module.

        A process that is just being started is its parent's copy until it runs its own program.
        """
        assert self.process is not None
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                command = child.cmdline()
                copied = command == psutil.Process(child.ppid()).cmdline()
                if not copied and any(module in word for word in command):
                    found.append(child)
            except psutil.NoSuchProcess:
                continue
        return found

    def log(self) -> str:
        return (self.home / "daemon.log").read_text()


def wait_for(condition: Callable[[], Any], timeout: float = 30.0) -> None:
    """Until the condition holds; a daemon that is not there yet counts as no."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            if condition():
                return
        except (TimeoutError, TypeError):
            pass
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.05)
