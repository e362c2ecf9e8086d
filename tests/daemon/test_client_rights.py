"""Who may change whose jobs, and how many jobs one client may have: over ipc and over TCP."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from srstream.client.jobs import Client
from srstream.errors import BusyError, RefusedError
from srstream.protocol.keys import ClientKey, KeyRing
from tests.daemon.test_daemon import long_clip
from tests.daemon.zmq.test_keys import free_port
from tests.support.jobs import run
from tests.support.service.daemon import Daemon, wait_for

NOBODY = 65534
ASK_AS_NOBODY = """
import os, sys, zmq
os.setgid(65534); os.setuid(65534)
socket = zmq.Context().socket(zmq.REQ)
socket.connect(sys.argv[1])
socket.send(sys.argv[2].encode())
print(socket.recv().decode())
"""
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")


class Shared:
    """A daemon that several clients share, over ipc and over TCP."""

    def __init__(self, home: Path) -> None:
        self.tcp = f"tcp://127.0.0.1:{free_port()}"
        self.daemon = Daemon(home)
        self.configure()
        self.keys = KeyRing(home / "keys")

    def configure(self, jobs: str = "", security: str = "") -> None:
        self.daemon.configure(jobs)
        text = self.daemon.config.read_text()
        text = text.replace("[sockets]", f'[sockets]\ncontrol_tcp = "{self.tcp}"\nmode = 0o666')
        self.daemon.config.write_text(text.replace("[security]", f"[security]\n{security}"))

    def client(self, key: ClientKey | None = None) -> Client:
        local = f"ipc://{self.daemon.runtime}/control.sock"
        return Client(local if key is None else self.tcp, key=key)

    def ask_as_nobody(self, op: str, **fields: Any) -> dict[str, Any]:
        """Ask as another user of this machine; returns the whole reply."""
        address = f"ipc://{self.daemon.runtime}/control.sock"
        command = [sys.executable, "-c", ASK_AS_NOBODY, address, json.dumps({"op": op, **fields})]
        done = subprocess.run(command, capture_output=True, timeout=30, check=True)
        reply: dict[str, Any] = json.loads(done.stdout)
        return reply


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Shared]:
    shared = Shared(tmp_path)
    with shared.daemon:
        yield shared


def test_clients_over_tcp_change_their_own_jobs_and_admins_all(shared: Shared) -> None:
    source = long_clip(shared.daemon.inputs / "in.mp4")
    folder = shared.keys.folder
    ann, bob = shared.keys.new("ann"), shared.keys.new("bob")
    made = run("keys", "new", "chief", "--admin", "--keys-dir", folder, "-o", folder / "c.key")
    assert made.returncode == 0, made.stderr
    chief = ClientKey.read(folder / "c.key")
    assert "chief (admin)" in run("keys", "list", "--keys-dir", folder).stdout
    with shared.client(ann) as anns, shared.client(bob) as bobs, shared.client(chief) as chiefs:
        job = anns.submit(source, shared.daemon.outputs / "ann.mp4")
        assert job.submitter == "ann"
        changes: list[Callable[[], object]] = [
            lambda: bobs.cancel(job.id),
            lambda: bobs.pause(job.id),
            lambda: bobs.resume(job.id),
            lambda: bobs.set_priority(job.id, 10),
            lambda: bobs.use_model("fast", running=True),
            lambda: bobs.remove_model("mine"),
            bobs.reload,
        ]
        for change in changes:
            with pytest.raises(RefusedError, match="admin"):
                change()
        assert bobs.status(job.id).state in ("queued", "running")  # seeing is allowed
        assert anns.set_priority(job.id, 3).priority == 3
        assert chiefs.set_priority(job.id, 4).priority == 4
        assert chiefs.reload() == {"needs_restart": []}
        anns.cancel(job.id)
        wait_for(lambda: anns.status(job.id).state == "cancelled")
        other = bobs.submit(source, shared.daemon.outputs / "bob.mp4")
        chiefs.cancel(other.id)
        wait_for(lambda: bobs.status(other.id).state == "cancelled")


@needs_root
def test_local_users_are_told_apart_by_the_kernels_word(shared: Shared) -> None:
    daemon = shared.daemon
    source = long_clip(daemon.inputs / "in.mp4")
    with shared.client() as root:
        roots = root.submit(source, daemon.outputs / "root.mp4").id
        asked = {"input": str(source), "output": str(daemon.outputs / "nobody.mp4")}
        theirs = shared.ask_as_nobody("submit", **asked)["result"]
        assert theirs["submitter"] == f"uid:{NOBODY}"
        refused = shared.ask_as_nobody("cancel", job=roots)
        assert refused["error"]["kind"] == "RefusedError"
        assert "belongs to local" in refused["error"]["text"]
        assert shared.ask_as_nobody("priority", job=theirs["id"], priority=2)["ok"]
        assert root.set_priority(theirs["id"], 1).priority == 1
        shared.configure(security='admin_users = ["nobody"]')
        root.reload()
        assert shared.ask_as_nobody("priority", job=roots, priority=5)["ok"]
        assert root.status(roots).priority == 5


def test_one_client_cannot_fill_the_queue_or_the_workers(tmp_path: Path) -> None:
    shared = Shared(tmp_path)
    shared.configure("max_running = 2\nmax_queued_per_client = 3\nmax_running_per_client = 1")
    ann, bob = shared.keys.new("ann"), shared.keys.new("bob")
    source = long_clip(shared.daemon.inputs / "in.mp4", seconds=30)
    outputs = shared.daemon.outputs
    with shared.daemon, shared.client(ann) as anns, shared.client(bob) as bobs:
        first, *_ = [anns.submit(source, outputs / f"ann{n}.mp4").id for n in range(3)]
        with pytest.raises(BusyError, match="ann has 3 jobs here, the most allowed"):
            anns.submit(source, outputs / "ann3.mp4")
        wait_for(lambda: anns.status(first).state == "running")
        bobs_job = bobs.submit(source, outputs / "bob.mp4", priority=-5).id
        wait_for(lambda: bobs.status(bobs_job).state == "running")
        running = {job.id for job in bobs.list("running")}
        assert running == {first, bobs_job}  # although other jobs of ann's come before bob's
