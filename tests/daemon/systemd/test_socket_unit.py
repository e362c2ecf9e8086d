"""The control socket as systemd's descriptor 3, which stays open while daemons come and go."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import clips
from tests.support.paths import REPOSITORY
from tests.support.service.daemon import Daemon

START = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES="control")
os.execv(sys.executable, [sys.executable, "-m", "srstream", "serve", "--config", sys.argv[2]])
"""


class Activated(Daemon):
    """A daemon started as srstream.socket starts it."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.runtime.mkdir()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.runtime / "control.sock"))
        self.listener.listen(16)

    def launch(self) -> subprocess.Popen[bytes]:
        with (self.home / "daemon.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-c", START, str(self.listener.fileno()), str(self.config)],
                pass_fds=[self.listener.fileno()],
                stdout=log,
                stderr=log,
                env=dict(os.environ, PYTHONPATH=str(REPOSITORY)),
            )


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Activated]:
    activated = Activated(tmp_path)
    with activated:
        yield activated
        activated.listener.close()


def test_it_is_served_and_survives_the_daemon(daemon: Activated) -> None:
    path = daemon.runtime / "control.sock"
    before = path.stat().st_ino
    source = clips.cfr(daemon.inputs / "a.mp4", frames=10)
    assert daemon.wait(daemon.submit(source, "a.mp4"))["state"] == "done"
    assert daemon.stop() == 0
    assert path.stat().st_ino == before
    answers: list[dict[str, Any]] = []
    client = threading.Thread(target=lambda: answers.append(daemon.ask("health", wait=60)))
    client.start()  # while no daemon runs: the client waits in systemd's queue
    time.sleep(0.5)
    assert not answers
    daemon.start()
    client.join(30)
    assert answers[0]["ok"]
    daemon.kill()
    assert path.stat().st_ino == before


def test_no_child_inherits_it(daemon: Activated) -> None:
    (worker,) = daemon.children("workers.main")
    inode = os.fstat(daemon.listener.fileno()).st_ino
    folder = Path(f"/proc/{worker.pid}/fd")
    assert f"socket:[{inode}]" not in {os.readlink(link) for link in folder.iterdir()}
    environment = Path(f"/proc/{worker.pid}/environ").read_bytes()
    assert b"LISTEN_" not in environment


def test_a_second_daemon_cannot_take_it(daemon: Activated) -> None:
    second = Daemon(daemon.home / "other")
    text = second.config.read_text().replace(str(second.runtime), str(daemon.runtime))
    second.config.write_text(text)
    process = second.launch()
    assert process.wait(30) not in (0, None)
    assert "another srstream daemon serves this socket" in second.log()
    assert daemon.result("health")["ok"]
