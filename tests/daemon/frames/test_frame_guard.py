"""Endless messages and too many connections on the data socket of a real engine worker."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.daemon.frames.test_frames_worker import WorkerProcess, frames, open_stream, worker

__all__ = ["worker"]

MIB = 1 << 20


def resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def num_descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def wait_until_below(limit: float, measure: object, pid: int, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while (now := measure(pid)) >= limit:  # type: ignore[operator]
        assert time.monotonic() < deadline, (now, limit)
        time.sleep(0.05)


def connected(path: Path) -> socket.socket:
    """A client that writes ZMTP 3.0 itself, since libzmq sends no part of an incomplete message."""
    ours = socket.socket(socket.AF_UNIX)
    ours.settimeout(20)
    ours.connect(str(path))
    ours.sendall(b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32))
    ready = b"\x05READY" + b"\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
    ours.sendall(b"\x04" + bytes([len(ready)]) + ready)
    received = b""
    while b"ROUTER" not in received:
        more = ours.recv(4096)
        assert more, f"the connection was ended after {received!r}"
        received += more
    return ours


def part(content: bytes) -> bytes:
    """A part with the flag that another one follows."""
    return b"\x03" + struct.pack(">Q", len(content)) + content


@pytest.fixture
def stream_beside(worker: WorkerProcess) -> Iterator[list[float]]:
    """Use the socket all the time; collect the seconds that each frame took."""
    seconds: list[float] = []
    stop = threading.Event()
    given = frames(20)

    def use() -> None:
        with open_stream(worker) as stream:
            while not stop.is_set():
                for frame in given:
                    started = time.monotonic()
                    (made,) = stream.enhance([frame])
                    seconds.append(time.monotonic() - started)
                    assert made.pts == frame.pts

    thread = threading.Thread(target=use)
    thread.start()
    while len(seconds) < 20:
        time.sleep(0.01)
    yield seconds
    count = len(seconds)
    while thread.is_alive() and len(seconds) < count + 5:
        time.sleep(0.01)
    assert thread.is_alive(), "its session was ended"
    stop.set()
    thread.join()


def test_a_message_without_end_is_cut_off(
    worker: WorkerProcess, stream_beside: list[float]
) -> None:
    before = resident_bytes(worker.process.pid)
    for size in (MIB, 0):
        with connected(worker.sockets.frames_path) as ours, pytest.raises(OSError):
            ours.sendall(part(b"FRAME"))
            another = part(bytes(np.random.default_rng(1).bytes(size)))
            for _ in range(8192):
                ours.sendall(another)
            assert ours.recv(1) == b"", "it was not cut"
            raise OSError
        assert resident_bytes(worker.process.pid) < before + 128 * MIB
    wait_until_below(1.1 * before, resident_bytes, worker.process.pid)


def test_who_says_nothing_right_is_cut_off(worker: WorkerProcess) -> None:
    with connected(worker.sockets.frames_path) as ours:
        answered = b""
        for number in range(1, 100):
            ours.sendall(b"\x00\x04GIVE")
            while answered.count(b"is no kind of message") < number:
                answered += ours.recv(4096)
        ours.sendall(b"\x00\x04GIVE")
        with suppress(ConnectionError):
            while ours.recv(4096):
                pass


def test_unfinished_messages_of_many_are_bounded_together(worker: WorkerProcess) -> None:
    pid, path = worker.process.pid, worker.sockets.frames_path
    with open_stream(worker) as stream:
        assert len(list(stream.enhance(frames(20)))) == 20
        before = resident_bytes(pid)
        with ExitStack() as held:
            for _ in range(12):
                ours = held.enter_context(connected(path))
                ours.sendall(part(b"FRAME") + 40 * part(bytes(MIB)))
            assert resident_bytes(pid) < before + 200 * MIB
            assert len(list(stream.enhance(frames(20)))) == 20
        wait_until_below(1.1 * before, resident_bytes, pid)


def gates_of(pid: int) -> list[psutil.Process]:
    children = psutil.Process(pid).children()
    return [child for child in children if "srstream.daemon.frames.gate" in child.cmdline()]


def test_a_gate_that_dies_is_replaced_and_none_outlives_its_worker(worker: WorkerProcess) -> None:
    (gate,) = gates_of(worker.process.pid)
    gate.kill()
    with open_stream(worker) as stream:
        assert len(list(stream.enhance(frames(5)))) == 5
    (gate,) = gates_of(worker.process.pid)
    worker.kill()
    gate.wait(5)


def test_an_unfinished_message_of_a_client_that_goes_leaves_nothing(
    worker: WorkerProcess,
) -> None:
    with open_stream(worker) as stream:
        assert len(list(stream.enhance(frames(20)))) == 20
    before = resident_bytes(worker.process.pid)
    with connected(worker.sockets.frames_path) as ours:
        for _ in range(60):  # a few more would end the connection
            ours.sendall(part(bytes(MIB)))
        assert resident_bytes(worker.process.pid) > before + 30 * MIB
    wait_until_below(1.1 * before, resident_bytes, worker.process.pid)


def test_connections_are_bounded_and_freed(worker: WorkerProcess) -> None:
    pid, most = worker.process.pid, worker.sockets.max_clients
    with open_stream(worker) as stream:
        assert len(list(stream.enhance(frames(5)))) == 5
        before = num_descriptors(pid)
        crowd = []
        for _ in range(most + 100):
            crowd.append(socket.socket(socket.AF_UNIX))
            crowd[-1].connect(str(worker.sockets.frames_path))
        wait_until_below(before + most + 1, num_descriptors, pid)
        assert len(list(stream.enhance(frames(5)))) == 5
        with open_stream(worker) as newer:  # the oldest silent one gives it its place
            assert len(list(newer.enhance(frames(5)))) == 5
        for ours in crowd:
            ours.close()
        wait_until_below(before + 1, num_descriptors, pid)
    with open_stream(worker) as stream:
        assert len(list(stream.enhance(frames(5)))) == 5
