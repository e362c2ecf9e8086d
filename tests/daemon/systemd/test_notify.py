"""sd_notify and sd_listen_fds, with real sockets and a real daemon under a service manager."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from srstream.daemon.systemd import Notifier, Readiness, listen_fds
from srstream.protocol.control import HealthInfo, WorkerInfo
from tests.support import clips
from tests.support.paths import REPOSITORY
from tests.support.service.daemon import Daemon, wait_for


class Manager:
    """The service manager's end of the notification socket."""

    def __init__(self, address: str | bytes) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.settimeout(5)
        self.said: list[str] = []

    def hear(self) -> list[str]:
        """The assignments of the next datagram."""
        return self.socket.recv(4096).decode().split("\n")

    def hear_all(self) -> list[str]:
        """All assignments so far, in order."""
        self.socket.setblocking(False)
        try:
            while True:
                self.said += self.socket.recv(4096).decode().split("\n")
        except BlockingIOError:
            return self.said


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(str(tmp_path / "notify"))
    yield made
    made.socket.close()


def notifier(tmp_path: Path, **more: str) -> Notifier:
    return Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify"), **more})


def health(*states: str, problems: tuple[str, ...] = ()) -> HealthInfo:
    workers = tuple(
        WorkerInfo(name=f"engine-{n}", device="cpu", pid=1, state=s, num_jobs=0, num_restarts=0)  # type: ignore[arg-type]
        for n, s in enumerate(states)
    )
    return HealthInfo(
        ok=not problems,
        version="1",
        uptime_seconds=1,
        num_queued=3,
        num_running=1,
        num_paused=0,
        workers=workers,
        problems=problems,
    )


def test_what_is_said(manager: Manager, tmp_path: Path) -> None:
    to = notifier(tmp_path, WATCHDOG_USEC="3000000", WATCHDOG_PID=str(os.getpid()))
    assert to.watchdog_seconds == 3.0
    to.ready("2 queued")
    assert manager.hear() == ["READY=1", "STATUS=2 queued"]
    to.status("two\nREADY=1")
    assert manager.hear() == ["STATUS=two READY=1"]
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    to.reloading()
    first, second = manager.hear()
    assert first == "RELOADING=1"
    assert before <= int(second.removeprefix("MONOTONIC_USEC=")) <= before + 5_000_000
    to.watchdog()
    assert manager.hear() == ["WATCHDOG=1"]
    to.extend_timeout(1.5)
    assert manager.hear() == ["EXTEND_TIMEOUT_USEC=1500000"]
    to.stopping("bye")
    assert manager.hear() == ["STOPPING=1", "STATUS=bye"]


def test_an_abstract_socket_hears_too() -> None:
    name = f"srstream-test-{os.getpid()}"
    manager = Manager(f"\0{name}")
    Notifier({"NOTIFY_SOCKET": f"@{name}"}).ready()
    assert manager.hear() == ["READY=1"]
    manager.socket.close()


def test_without_systemd_nothing_happens(tmp_path: Path) -> None:
    silent = Notifier({})
    assert silent.watchdog_seconds is None
    silent.ready("x")
    gone = notifier(tmp_path)
    gone.ready()  # no socket is bound there
    gone.watchdog()


def test_a_watchdog_meant_for_another_process_is_not_answered(
    manager: Manager, tmp_path: Path
) -> None:
    to = notifier(tmp_path, WATCHDOG_USEC="3000000", WATCHDOG_PID="1")
    assert to.watchdog_seconds is None
    to.watchdog()
    assert manager.hear_all() == []


def test_children_do_not_inherit_the_variables(tmp_path: Path) -> None:
    environment = {"NOTIFY_SOCKET": str(tmp_path / "n"), "WATCHDOG_USEC": "1", "PATH": "/bin"}
    Notifier(environment)
    assert environment == {"PATH": "/bin"}


def test_readiness_waits_for_every_worker(manager: Manager, tmp_path: Path) -> None:
    ready_file = tmp_path / "ready"
    ready_file.write_text("of a daemon that was killed")
    to = Readiness(notifier(tmp_path, WATCHDOG_USEC="1000000"), ready_file)
    assert not ready_file.exists()
    to.tick(health("ready", "starting", problems=("engine-1 warms up",)), 0, is_advancing=True)
    said = manager.hear_all()
    assert said == [
        "EXTEND_TIMEOUT_USEC=30000000",
        "STATUS=starting: 1 running, 3 queued (engine-1 warms up)",
    ]
    assert not ready_file.exists()
    to.tick(health("ready", "ready"), 12.34, is_advancing=True)
    assert manager.hear_all()[2:] == [
        "READY=1",
        "STATUS=1 running, 3 queued, 12.3 fps",
        "WATCHDOG=1",
    ]
    assert ready_file.exists()
    num_said = len(manager.said)
    to.tick(health("ready", "starting"), 12.34, is_advancing=False)
    assert "WATCHDOG=1" not in manager.hear_all()[num_said:]
    to.stopping()
    assert not ready_file.exists()
    assert manager.hear_all()[-2:] == ["STOPPING=1", "STATUS=stopping"]


FDS = """
import json, os, sys
from srstream.daemon.systemd import listen_fds
os.environ["LISTEN_PID"] = str(os.getpid()) if sys.argv[1] == "own" else "1"
fds = listen_fds()
print(json.dumps([fds, [os.get_inheritable(fd) for fd in fds.values()],
                  [name for name in os.environ if name.startswith("LISTEN_")]]))
"""


def listened(whose: str, names: str) -> list[object]:
    """What a process finds that is given two sockets, from descriptor 3 on."""
    pair = socket.socketpair()
    code = (
        f"import os, sys; os.dup2({pair[0].fileno()}, 103); os.dup2({pair[1].fileno()}, 104);"
        "os.dup2(103, 3); os.dup2(104, 4);"
        f"os.execv(sys.executable, [sys.executable, '-c', {FDS!r}, {whose!r}])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        pass_fds=[end.fileno() for end in pair],
        env=dict(os.environ, LISTEN_FDS="2", LISTEN_FDNAMES=names, PYTHONPATH=str(REPOSITORY)),
        capture_output=True,
        text=True,
        check=True,
    )
    for end in pair:
        end.close()
    found: list[object] = json.loads(done.stdout)
    return found


def test_descriptors_come_by_name() -> None:
    assert listened("own", "control:frames") == [{"control": 3, "frames": 4}, [False, False], []]
    assert listened("own", "control:control") == [{"control": 3}, [False], []]
    assert listened("other", "control:frames") == [{}, [], []]
    assert listen_fds({}) == {}


def test_a_daemon_tells_how_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What systemd hears of warm-up, work, reload and drain; WATCHDOG_PID is the daemon's."""
    manager = Manager(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "10000000")
    daemon = Daemon(tmp_path / "home")
    ready_file = tmp_path / "ready"
    daemon.config.write_text(f'ready_file = "{ready_file}"\n' + daemon.config.read_text())
    with daemon:
        wait_for(lambda: "READY=1" in manager.hear_all(), 10)
        assert ready_file.exists()
        first_ready = manager.said.index("READY=1")
        assert "EXTEND_TIMEOUT_USEC=30000000" in manager.said[:first_ready]
        assert "WATCHDOG=1" not in manager.said[:first_ready]
        source = clips.cfr(daemon.inputs / "a.mp4", frames=500, width=192, height=128, gop=25)
        job = daemon.submit(source, "a.mp4")
        wait_for(lambda: daemon.job(job)["progress"] is not None)
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "RELOADING=1" in manager.hear_all())
        wait_for(lambda: "READY=1" in manager.hear_all()[manager.said.index("RELOADING=1") :])
        wait_for(lambda: any("1 running" in line for line in manager.hear_all()), 15)
        assert daemon.stop() == 0
        said = manager.hear_all()
        after = said[said.index("STOPPING=1") :]
        assert "READY=1" not in after
        assert said.count("WATCHDOG=1") >= 3
        assert not ready_file.exists()
    manager.socket.close()
