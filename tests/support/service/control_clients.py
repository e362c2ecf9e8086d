"""Plain clients of a control socket, and how long one of them waits."""

from __future__ import annotations

import json
import time
from typing import Any

import zmq

from tests.support.service.control import Daemon

LATENCY_SECONDS = 0.1


class Connection:
    """A plain DEALER or REQ socket, as any program could use."""

    def __init__(self, address: str | None = None, kind: int = zmq.DEALER) -> None:
        self.socket = zmq.Context.instance().socket(kind)
        self.socket.linger = 0
        if address is not None:
            self.socket.connect(address)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, op: str, **values: Any) -> None:
        self.socket.send_json({"op": op, **values})

    def receive(self, seconds: float = 10) -> Any:
        assert self.socket.poll(seconds * 1000), "no answer"
        *envelope, payload = self.socket.recv_multipart()
        assert envelope in ([], [b""])  # the latter for what came with one
        return json.loads(payload)

    def ask(self, op: str, **values: Any) -> Any:
        self.send(op, **values)
        return self.receive()

    def has_answer(self, seconds: float) -> bool:
        return bool(self.socket.poll(seconds * 1000))


def submit(connection: Connection, path: str = "/in.mp4", **values: Any) -> str:
    return connection.ask("submit", input=path, **values)["result"]["id"]


def slowest(daemon: Daemon, seconds: float) -> float:
    """The longest that a well-behaved client waits for an answer; the best of three goes, since
    a machine may be busy with other things.
    """
    return min(_slowest(daemon, seconds) for _ in range(3))


def _slowest(daemon: Daemon, seconds: float) -> float:
    worst = 0.0
    end = time.monotonic() + seconds
    with Connection(daemon.address, zmq.REQ) as client:
        client.ask("health")
        while time.monotonic() < end:
            began = time.monotonic()
            assert client.ask("health")["ok"]
            worst = max(worst, time.monotonic() - began)
            time.sleep(0.02)
    return worst
