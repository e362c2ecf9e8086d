"""The control socket itself: whose it is, who may serve it, how many connect at once."""

from __future__ import annotations

import contextlib
import socket
import stat
from pathlib import Path

import pytest

from tests.support.service import control
from tests.support.service.control import Daemon
from tests.support.service.control_clients import Connection


def test_the_socket_belongs_to_owner_and_group(shared_daemon: Daemon) -> None:
    assert stat.S_IMODE(shared_daemon.path.stat().st_mode) == 0o660


def test_a_second_daemon_is_refused_and_the_first_unharmed(shared_daemon: Daemon) -> None:
    second = control.start(shared_daemon.path.parent)
    _, said = second.communicate(timeout=30)
    assert second.returncode == 1
    assert said == f"srstream: {shared_daemon.path}: another srstream daemon serves this socket.\n"
    with Connection(shared_daemon.address) as client:
        assert client.ask("health")["ok"]


def test_a_socket_that_a_killed_daemon_left_is_taken_over(tmp_path: Path) -> None:
    first = control.start(tmp_path)
    assert first.stdout is not None and first.stdout.readline() == "ready\n"
    first.kill()
    first.wait()
    with control.daemon(tmp_path) as second, Connection(second.address) as client:
        assert client.ask("health")["ok"]
    assert not second.path.exists()


def test_a_socket_of_systemd_is_served_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        number = listener.fileno()
        with Connection(f"ipc://{path}") as early:
            early.send("health")  # before there is a daemon: the socket keeps it
            for _ in range(2):
                with control.daemon(tmp_path, "--fd", number, pass_fds=[number]):
                    assert early.receive()["ok"]
                    early.send("health")
                    assert early.receive()["ok"]
                assert path.exists()
                early.send("health")


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_a_descriptor_that_is_no_such_socket_is_refused(tmp_path: Path, kind: str) -> None:
    with socket.socket() as other, (tmp_path / "file").open("w") as file:
        number = file.fileno() if kind == "file" else other.fileno()
        process = control.start(tmp_path, "--fd", number, pass_fds=[number])
        _, said = process.communicate(timeout=30)
    assert process.returncode == 1
    assert said.startswith(f"srstream: descriptor {number} is no ") and said.count("\n") == 1


def test_more_clients_than_allowed_wait_outside(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(control.daemon(tmp_path, "--max-clients", 4))
        inside = [stack.enter_context(Connection(daemon.address)) for _ in range(4)]
        assert all(client.ask("health")["ok"] for client in inside)
        with Connection(daemon.address) as outside:
            outside.send("health")
            assert not outside.has_answer(0.5)
            assert all(client.ask("health")["ok"] for client in inside)
            inside[0].socket.close()
            assert outside.receive()["ok"]
