"""Requests to the control socket of a daemon in a separate process: each has its reply."""

from __future__ import annotations

import json
import os
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
import zmq

from tests.support.service.control import Daemon
from tests.support.service.control_clients import LATENCY_SECONDS, Connection, slowest, submit


@pytest.mark.parametrize("kind", [zmq.DEALER, zmq.REQ], ids=["dealer", "req"])
def test_a_request_has_one_reply_with_its_id(daemon: Daemon, kind: int) -> None:
    with Connection(daemon.address, kind) as client:
        reply = client.ask("submit", id="seven", input="/in.mp4", priority=3)
        assert reply["ok"] and reply["id"] == "seven" and reply["version"] == 1
        job = reply["result"]
        assert (job["state"], job["priority"], job["submitter"]) == ("queued", 3, "local")
        assert client.ask("status", job=job["id"])["result"] == job
        assert client.ask("list")["result"]["jobs"] == [job]
        assert not client.has_answer(0.1)


def test_errors_carry_the_name_of_their_class(shared_daemon: Daemon) -> None:
    with Connection(shared_daemon.address) as client:
        refused = client.ask("submit", id="x", input="/forbidden/in.mp4")
        assert refused["error"] == {
            "kind": "UsageError",
            "text": "/forbidden/in.mp4: outside the configured roots.",
        }
        assert refused["id"] == "x" and not refused["ok"] and refused["result"] is None


def test_a_fault_in_the_daemon_is_one_sentence_and_tells_nothing(shared_daemon: Daemon) -> None:
    with Connection(shared_daemon.address) as client:
        broken = client.ask("submit", id="x", input="/broken")
        assert broken["error"]["kind"] == "InternalError"
        assert "secret" not in json.dumps(broken) and "Traceback" not in json.dumps(broken)
        assert client.ask("health")["ok"]


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        ({"op": "launch"}, "launch"),
        ({"op": "status"}, "job: field required"),
        ({"op": "status", "job": "../../etc"}, "job: "),
        ({"op": "submit", "input": "relative.mp4"}, "input: "),
        ({"op": "health", "version": 2}, "version: "),
        ({"op": "health", "surprise": 1}, "surprise: "),
        ({"op": "priority", "job": "0" * 12, "priority": 11}, "priority: "),
    ],
)
def test_what_is_wrong_with_a_request_is_said(
    shared_daemon: Daemon, request_: Any, text: str
) -> None:
    with Connection(shared_daemon.address) as client:
        client.socket.send_json({"id": "q", **request_})
        reply = client.receive()
        assert reply["id"] == "q" and reply["error"]["kind"] == "ProtocolError"
        assert text in reply["error"]["text"]


def test_a_pickle_is_text_that_is_no_json(shared_daemon: Daemon, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "boom"),)

    with Connection(shared_daemon.address) as client:
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            client.socket.send(pickle.dumps(Bomb(), protocol))
            assert client.receive()["error"]["kind"] == "ProtocolError"
    assert not (tmp_path / "boom").exists()


def test_a_slow_request_holds_up_its_own_connection_only(shared_daemon: Daemon) -> None:
    with Connection(shared_daemon.address) as slow, Connection(shared_daemon.address) as quick:
        job = submit(slow, "/in-slow.mp4")
        slow.send("status", id="1", job=job)
        slow.send("health", id="2")
        began = time.monotonic()
        assert quick.ask("health")["ok"]
        assert time.monotonic() - began < 0.5
        assert [slow.receive()["id"], slow.receive()["id"]] == ["1", "2"]


def test_many_requests_of_one_client_starve_no_other(daemon: Daemon) -> None:
    with Connection(daemon.address) as greedy:
        greedy.socket.sndhwm = 0
        for number in range(3000):
            greedy.send("health", id=str(number))
        assert slowest(daemon, 0.5) < LATENCY_SECONDS
