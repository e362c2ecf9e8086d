"""How long a daemon's valid clients wait during a flood of its sockets, compared with no flood.

    chrt -r 1 python benchmarks/flood.py [--seconds 8] [--flooders 3] [KIND ...]

Starts a daemon. One client pushes 96x64 frames one by one, one opens a session and ends it, one
asks for `health`; each is its own process and never pauses. Under `chrt`, they and the daemon
have priority over the machine's other work and over the flooders, so that the result reflects the
daemon. Memory is the peak of the process that serves the socket, in MB.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import zmq

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x04\x1c\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
HELLO = {"version": 1, "width": 96, "height": 64, "layout": "yuv420p", "model": "fast"}


def dealer(address: str) -> zmq.Socket[bytes]:
    dealer = zmq.Context.instance().socket(zmq.DEALER)
    dealer.linger = 0
    dealer.connect(address)
    return dealer


# --- valid clients: each prints how long it waited, in seconds


def push_frames(frames: str, _: str) -> None:
    import numpy as np

    from srstream import FrameStream

    planes = [np.full(shape, 90, np.uint8) for shape in ((64, 96), (32, 48), (32, 48))]
    with FrameStream(96, 64, address=frames) as stream:
        while True:
            begun = time.monotonic()
            list(stream.enhance([planes]))
            print(time.monotonic() - begun, flush=True)
            time.sleep(0.01)


def open_sessions(frames: str, _: str) -> None:
    while True:
        begun = time.monotonic()
        client = dealer(frames)
        client.send_multipart([b"HELLO", json.dumps(HELLO).encode()])
        wait_for(client, b"READY")
        print(time.monotonic() - begun, flush=True)
        client.send_multipart([b"BYE"])
        wait_for(client, b"END")
        client.close()
        time.sleep(0.02)


def wait_for(client: zmq.Socket[bytes], kind: bytes) -> None:
    while True:
        assert client.poll(20_000), "no answer"
        got, *rest = client.recv_multipart()
        if got == kind:
            return
        assert got == b"CREDIT", (got, rest)


def ask_for_health(_: str, control: str) -> None:
    client = zmq.Context.instance().socket(zmq.REQ)
    client.connect(control)
    while True:
        begun = time.monotonic()
        client.send_json({"op": "health"})
        assert client.poll(20_000), "no answer"
        assert client.recv_json()["ok"]  # type: ignore[call-overload, index]
        print(time.monotonic() - begun, flush=True)
        time.sleep(0.02)


VALID = {"frame": push_frames, "hello": open_sessions, "health": ask_for_health}


# --- flooders: each prints from time to time how many messages it sent


def count(number: int) -> None:
    if number % 100 == 0:
        print(number, flush=True)


def nonsense(address: str, kinds: list[list[bytes]]) -> None:
    client, generator = dealer(address), random.Random(os.getpid())
    number = 0
    while True:
        client.send_multipart(generator.choice(kinds))
        while client.poll(0):
            client.recv_multipart()
        count(number := number + 1)


BAD_FRAMES: list[list[bytes]] = [
    [b""],
    [b"GIVE", b"all"],
    [b"CREDIT", b"1"],
    [b"BYE"],
    [b"HELLO"],
    [b"HELLO", b'{"version": 2, "width": 8, "height": 8}'],
    [b"HELLO", b'{"width": 16384, "height": 16384, "layout": "gray"}'],
    [b"FRAME", b"[" * 4000, bytes(6144), bytes(1536), bytes(1536)],
    [b"FRAME", b" " * 50_000],
    [b"x"] * 6,
    [b"x"] * 60,
]
BAD_REQUESTS: list[list[bytes]] = [
    [b""],
    [b"x"],
    [b'{"op":"health","id":"' + b"a" * 500 + b'"}'],
    [b"[" * 50_000],
    [b'{"op":"watch","credit":99999999999999999999999}'],
    [b"", b"", b'{"op":"health"}'],
    [b"x"] * 40,
    [b"a" * 65535],
]


def bad(frames: str, _: str) -> None:
    nonsense(frames, BAD_FRAMES)


def bad_control(_: str, control: str) -> None:
    nonsense(control, BAD_REQUESTS)


def parts(frames: str, _: str) -> None:
    number = 0
    while True:
        client = dealer(frames)
        client.send_multipart([b"x"] * 100_000)
        client.poll(1000)
        client.close()
        print(number := number + 1, flush=True)


def heartbeats(frames: str, _: str) -> None:
    """Send well-formed heartbeats only."""
    client = dealer(frames)
    client.send_multipart([b"HELLO", json.dumps(HELLO).encode()])
    wait_for(client, b"READY")
    number = 0
    while True:
        client.send_multipart([b"CREDIT", b"0"])
        while client.poll(0):
            client.recv_multipart()
        count(number := number + 1)


def raw(address: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(5)
    connection.connect(address.removeprefix("ipc://"))
    connection.sendall(GREETING + READY)
    return connection


def endless(address: str, part: bytes) -> None:
    number = 0
    while True:
        try:
            with raw(address) as connection:
                while True:
                    connection.sendall(part)
        except OSError:
            print(number := number + 1, flush=True)


def endless_large(frames: str, _: str) -> None:
    endless(frames, b"\x03" + (1 << 20).to_bytes(8, "big") + bytes(1 << 20))


def endless_small(frames: str, _: str) -> None:
    endless(frames, b"\x01\x01x" * 30_000)


def connections(frames: str, _: str) -> None:
    """Open a new connection for each message."""
    number = 0
    while True:
        try:
            with raw(frames) as connection:
                connection.sendall(b"\x00\x04GIVE")
                connection.recv(4096)
        except OSError:
            pass
        count(number := number + 1)


FLOODS: dict[str, Callable[[str, str], None]] = {
    it.__name__: it
    for it in (bad, heartbeats, parts, endless_large, endless_small, connections, bad_control)
}


def be_ordinary() -> None:
    """Schedule flooders like ordinary programs, whatever priority this one was started with."""
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    os.setpriority(os.PRIO_PROCESS, 0, 0)


class Other:
    """One of the processes above."""

    def __init__(self, kind: str, folder: Path, *, is_ordinary: bool = False) -> None:
        self.record = folder / f"{kind}-{time.monotonic_ns()}"
        with self.record.open("w") as file:
            self._process = subprocess.Popen(
                [sys.executable, __file__, "--be", kind, "--folder", str(folder)],
                stdout=file,
                preexec_fn=be_ordinary if is_ordinary else None,
            )

    def values(self) -> list[float]:
        return [float(line) for line in self.record.read_text().splitlines(keepends=True)[:-1]]

    def end(self) -> None:
        assert self._process.poll() is None, f"{self.record.name} was hurt"
        self._process.kill()
        self._process.wait()


def serving(daemon: psutil.Process, kind: str) -> psutil.Process:
    """Return the process whose memory counts."""
    if kind == "bad_control":
        return daemon
    return next(it for it in daemon.children() if "workers.main" in " ".join(it.cmdline()))


def phase(kind: str, daemon: psutil.Process, folder: Path, options: Any) -> None:
    """Run the valid clients for some seconds during a flood."""
    process = serving(daemon, kind)
    valid = {name: Other(name, folder) for name in VALID}
    while not all(len(it.values()) > 3 for it in valid.values()):
        time.sleep(0.05)
    num_before = {name: len(it.values()) for name, it in valid.items()}
    before = largest = process.memory_info().rss
    num = 0 if kind == "quiet" else options.flooders
    flooders = [Other(kind, folder, is_ordinary=True) for _ in range(num)]
    used = process.cpu_times()
    end = time.monotonic() + options.seconds
    while time.monotonic() < end:
        largest = max(largest, process.memory_info().rss)
        time.sleep(0.02)
    now = process.cpu_times()
    seconds = now.user + now.system - used.user - used.system
    num_sent = sum(max(it.values(), default=0) for it in flooders)
    for flooder in flooders:
        flooder.end()
    columns = []
    for name, it in valid.items():
        waits = sorted(it.values()[num_before[name] :]) or [float("inf")]
        columns.append(
            f"{name} {len(waits):4d}: {1000 * statistics.median(waits):5.0f} "
            f"{1000 * waits[int(0.99 * len(waits))]:5.0f} {1000 * waits[-1]:5.0f}"
        )
        it.end()
    print(
        f"{kind:14s} {num_sent:8.0f} sent | {' | '.join(columns)} | "
        f"{before / 1e6:.0f} to {largest / 1e6:.0f} MB, {seconds / options.seconds:.2f} cores",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kinds", nargs="*", default=["quiet", *FLOODS, "quiet"])
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--flooders", type=int, default=3)
    parser.add_argument("--be")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.be:
        ends = (f"ipc://{options.folder}/{name}.sock" for name in ("frames", "control"))
        (VALID | FLOODS)[options.be](*ends)
        return
    folder = Path(tempfile.mkdtemp(prefix="srflood-"))
    config = folder / "srstream.toml"
    config.write_text(
        f'[sockets]\nruntime_dir = "{folder}"\n[jobs]\nstate_dir = "{folder}/state"\n'
        f'[security]\nread_roots = ["{folder}"]\nwrite_roots = ["{folder}"]\n'
    )
    command = [sys.executable, "-m", "srstream", "serve", "--config", str(config)]
    with (folder / "log").open("w") as log:
        daemon = psutil.Process(subprocess.Popen(command, stdout=log, stderr=log).pid)
    try:
        while not (folder / "frames.sock").exists():
            assert daemon.status() != psutil.STATUS_ZOMBIE, (folder / "log").read_text()
            time.sleep(0.1)
        print("milliseconds: median, 99 %, longest", flush=True)
        for kind in options.kinds:
            phase(kind, daemon, folder, options)
        print(f"log: {(folder / 'log').stat().st_size} bytes")
    finally:
        daemon.terminate()
        daemon.wait(60)
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
