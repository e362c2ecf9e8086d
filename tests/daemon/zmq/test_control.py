"""The control socket of a daemon in a separate process, with valid and hostile clients."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from srstream.daemon.api.zmq import subscriptions
from srstream.daemon.api.zmq.endpoint import Sent
from srstream.daemon.api.zmq.subscriptions import Subscriptions
from srstream.protocol.control import MAX_MESSAGE_BYTES, Event, Watch
from srstream.protocol.keys import KeyRing
from tests.support import control
from tests.support.control import Daemon

LATENCY_SECONDS = 0.1


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with control.daemon(tmp_path / "run") as started:
        yield started


@pytest.fixture(scope="module")
def shared_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon for tests that do not depend on what others have left in it."""
    with control.daemon(tmp_path_factory.mktemp("run")) as started:
        yield started


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


# --- requests --------------------------------------------------------------------------------


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


# --- watches ---------------------------------------------------------------------------------


def events_of(connection: Connection, until: int) -> list[Any]:
    """The events that a watch sends up to a sequence number."""
    events = []
    while not events or events[-1]["seq"] < until:
        events.append(connection.receive()["event"])
    return events


def test_a_watch_replays_and_goes_on_without_gap_or_double(daemon: Daemon) -> None:
    with Connection(daemon.address) as client, Connection(daemon.address) as watcher:
        jobs = [submit(client) for _ in range(300)]
        for job in jobs[:10]:
            client.send("resume", job=job)  # these jobs run while missed events are sent
        reply = watcher.ask("watch", id="w", after=0, credit=10_000)
        assert reply["id"] == "w" and reply["result"]["last_seq"] >= 300
        num_events = 300 + 10 * (1 + 20 + 1)
        events = events_of(watcher, num_events)
        kept = [event["seq"] for event in events if event["kind"] != "progress"]
        assert kept == list(range(1, num_events + 1))
        assert events == sorted(events, key=lambda event: event["seq"])


def test_a_watch_of_a_job_sees_its_events_and_its_progress(shared_daemon: Daemon) -> None:
    with Connection(shared_daemon.address) as client, Connection(shared_daemon.address) as watcher:
        job, other = submit(client), submit(client)
        assert watcher.ask("watch", job=job)["ok"]
        client.send("resume", job=other)
        client.send("resume", job=job)
        events = []
        while not events or events[-1]["data"].get("state") != "done":
            events.append(watcher.receive()["event"])
        assert {event["job"] for event in events} == {job}
        assert [e["data"]["index"] for e in events if e["kind"] == "segment"] == list(range(20))
        assert any(event["kind"] == "progress" for event in events)
        again = watcher.ask("watch", job=job, after=0)
        assert again["ok"]
        replayed = [watcher.receive()["event"]["kind"] for _ in range(1 + 1 + 20 + 1)]
        assert "progress" not in replayed


def test_a_watch_sends_no_more_than_its_credit(daemon: Daemon) -> None:
    with Connection(daemon.address) as client, Connection(daemon.address) as watcher:
        for _ in range(10):
            submit(client)
        watcher.ask("watch", after=0, credit=4)
        assert [event["seq"] for event in events_of(watcher, 4)] == [1, 2, 3, 4]
        submit(client)
        assert not watcher.has_answer(0.2)
        assert watcher.ask("watch", after=4, credit=100)["result"]["last_seq"] == 11
        assert [event["seq"] for event in events_of(watcher, 11)] == list(range(5, 12))
        watcher.ask("watch", credit=0)
        submit(client)
        assert not watcher.has_answer(0.2)


def test_a_watch_that_cannot_be_is_refused(shared_daemon: Daemon) -> None:
    with (
        Connection(shared_daemon.address) as dealer,
        Connection(shared_daemon.address, zmq.REQ) as req,
    ):
        assert "no job" in dealer.ask("watch", job="z" * 12)["error"]["text"]
        assert "DEALER" in req.ask("watch")["error"]["text"]


class _Kept:
    """An event source that is a list."""

    def __init__(self, num_events: int) -> None:
        self.events = [
            Event(seq=n, time=0, job=None, kind="note", data={}) for n in range(1, num_events + 1)
        ]

    def events_after(self, after: int, job: str | None, limit: int) -> list[Event]:
        return self.events[after:][:limit]

    def last_seq(self) -> int:
        return len(self.events)


def test_a_watch_that_is_not_renewed_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscriptions, "WATCH_SECONDS", 0.05)
    sent: list[bytes] = []
    watches = Subscriptions(_Kept(3), lambda _, payload: sent.append(payload) or Sent.YES, 8)
    watches.begin("peer", Watch(after=0))
    watches.catch_up()
    assert len(sent) == 3
    time.sleep(0.06)
    watches.catch_up()
    watches.publish(Event(seq=4, time=0, job=None, kind="note", data={}))
    assert len(sent) == 3


def test_what_a_full_reader_could_not_take_comes_later_and_once() -> None:
    source, room, sent = _Kept(5), [2], []

    def send(_: str, payload: bytes) -> Sent:
        if not room[0]:
            return Sent.FULL
        room[0] -= 1
        sent.append(json.loads(payload)["event"]["seq"])
        return Sent.YES

    watches = Subscriptions(source, send, 8)
    watches.begin("peer", Watch(after=0))
    watches.catch_up()
    source.events.append(Event(seq=6, time=0, job=None, kind="note", data={}))
    watches.publish(source.events[-1])
    assert sent == [1, 2]
    room[0] = 100
    time.sleep(0.01)
    watches.catch_up()
    assert sent == [1, 2, 3, 4, 5, 6] and not watches.has_backlog


# --- the socket itself -----------------------------------------------------------------------


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


# --- hostile clients -------------------------------------------------------------------------


def malformed(generator: random.Random) -> list[bytes]:
    """A message of one of many invalid forms."""
    valid = b'{"op":"health","id":"a"}'
    deep = generator.randrange(1, 30_000)
    kinds: list[list[bytes]] = [
        [generator.randbytes(generator.randrange(1, 300))],
        [valid[: generator.randrange(1, len(valid) - 1)]],
        [b"[" * deep],
        [b'{"op":' * min(deep, 9000)],
        [b'{"op":"health","id":"' + b"a" * generator.randrange(65, 2000) + b'"}'],
        [b'{"op":"status","job":' + str(generator.random()).encode() + b"}"],
        [b'{"op":"submit","input":"/a\\u0000b"}'],
        [b'{"op":"submit","input":"/a","config":{"model":{"name":' + b'[{"a":' * 200 + b"1"],
        [b'{"op":"watch","credit":99999999999999999999999}'],
        [b'{"op":"health","version":' + b"9" * generator.randrange(1, 5000) + b"}"],
        [valid, valid],
        [b"", b""],
        [b"", valid, valid],
        [b"", b"", valid],
        [b"x"] * generator.randrange(3, 40),
        [b"\xff\xfe" + valid.decode().encode("utf-16-le")],
        [pickle.dumps({"op": "health"})],
        [b"null"],
        [b"NaN"],
        [b'"health"'],
        [b"a" * generator.choice((MAX_MESSAGE_BYTES - 1, MAX_MESSAGE_BYTES))],
    ]
    return generator.choice(kinds)


def bombard(daemon: Daemon, num_messages: int) -> int:
    """Send malformed messages; returns how many were refused. The others were dropped."""
    generator = random.Random(5)
    num_refused = 0
    with Connection(daemon.address) as attacker:
        for number in range(num_messages):
            attacker.socket.send_multipart(malformed(generator))
            if number % 100 == 0:  # ends the connection
                with Connection(daemon.address) as other:
                    other.socket.send_multipart([b"x"] * generator.randrange(65, 400))
            if number % 8 == 7:  # or else its own replies are dropped
                while attacker.has_answer(0 if num_refused else 1):
                    reply = attacker.receive()
                    assert not reply["ok"] and len(json.dumps(reply)) < 2000
                    num_refused += 1
        attacker.send("health", id="the end")
        while (reply := attacker.receive())["id"] != "the end":
            num_refused += not reply["ok"]
    return num_refused


WELL_BEHAVED = """
import sys, time, zmq
client = zmq.Context().socket(zmq.REQ)
client.connect(sys.argv[1])
worst = num_answers = 0
while True:
    began = time.monotonic()
    client.send_json({"op": "health"})
    assert client.recv_json()["ok"]
    if num_answers:
        worst = max(worst, time.monotonic() - began)
    num_answers += 1
    print(worst, num_answers, flush=True)
    time.sleep(0.02)
"""


def latency_during(daemon: Daemon, folder: Path, attack: Callable[[], object]) -> float:
    """The longest wait of a client in another process during an attack."""
    record = folder / "latency"
    with record.open("w") as file:
        client = subprocess.Popen([sys.executable, "-c", WELL_BEHAVED, daemon.address], stdout=file)
    try:
        while not record.read_text():
            time.sleep(0.05)
        attack()
        assert client.poll() is None, "a valid client was hurt"
    finally:
        client.kill()
        client.wait()
    worst, num_answers = record.read_text().splitlines()[-2].split()
    assert int(num_answers) > 3
    return float(worst)


def added_latency(daemon: Daemon, folder: Path, attack: Callable[[], object]) -> float:
    """How much longer a valid client waits because of an attack, in seconds.

    The machine's own share, which other programs cause, is measured just before and taken off;
    the best of three goes counts.
    """
    added = []
    while not added or (added[-1] >= LATENCY_SECONDS and len(added) < 3):
        idle = latency_during(daemon, folder, lambda: time.sleep(1))
        added.append(latency_during(daemon, folder, attack) - idle)
    print(f"longest wait {1000 * min(added):.0f} ms more than {1000 * idle:.0f} ms")
    return min(added)


def fuzz(daemon: Daemon, folder: Path, num_messages: int) -> None:
    bombard(daemon, 500)  # code paths and caches are warm
    before, num_descriptors = daemon.resident_bytes(), daemon.num_descriptors()
    refused: list[int] = []
    added = added_latency(daemon, folder, lambda: refused.append(bombard(daemon, num_messages)))
    after = daemon.resident_bytes()
    print(f"{refused[-1]} of {num_messages} refused; {before / 1e6:.1f} to {after / 1e6:.1f} MB")
    assert refused[-1] > num_messages / 2
    assert added < LATENCY_SECONDS
    assert after < 1.1 * before
    time.sleep(0.2)
    assert daemon.num_descriptors() <= num_descriptors


def test_malformed_messages_hurt_nobody(daemon: Daemon, tmp_path: Path) -> None:
    fuzz(daemon, tmp_path, 10_000)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_very_many_malformed_messages_hurt_nobody(daemon: Daemon, tmp_path: Path) -> None:
    fuzz(daemon, tmp_path, 100_000)


def test_a_part_that_is_too_long_ends_its_connection_only(shared_daemon: Daemon) -> None:
    with Connection(shared_daemon.address) as client, Connection(shared_daemon.address) as attacker:
        assert client.ask("health")["ok"] and attacker.ask("health")["ok"]
        attacker.socket.send(b"x" * (MAX_MESSAGE_BYTES + 1))
        assert not attacker.has_answer(0.3)
        assert client.ask("health")["ok"]


def send_very_many_parts(daemon: Daemon) -> None:
    for size in (0, 1, 100, 1000):
        with Connection(daemon.address) as attacker:
            attacker.socket.send_multipart([b"x" * size] * 100_000)
            attacker.has_answer(0.5)


def test_messages_of_very_many_parts_hurt_nobody(daemon: Daemon, tmp_path: Path) -> None:
    send_very_many_parts(daemon)
    before = daemon.resident_bytes()
    assert added_latency(daemon, tmp_path, lambda: send_very_many_parts(daemon)) < LATENCY_SECONDS
    time.sleep(0.5)
    assert daemon.resident_bytes() < 1.1 * before


def test_a_sender_of_very_many_parts_is_cut_off(shared_daemon: Daemon) -> None:
    with Connection(shared_daemon.address) as attacker:
        attacker.ask("health")
        monitor = attacker.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        attacker.socket.send_multipart([b""] * 5000)
        assert monitor.poll(5000)
        attacker.socket.disable_monitor()


ENDLESS = """
import socket, sys
attacker = socket.socket(socket.AF_UNIX)
attacker.connect(sys.argv[1])
attacker.sendall(b"\\xff" + bytes(8) + b"\\x7f\\x03\\x00NULL" + bytes(48))
ready = b"\\x05READY\\x0bSocket-Type\\x00\\x00\\x00\\x06DEALER"
attacker.sendall(bytes([4, len(ready)]) + ready)
attacker.recv(64, socket.MSG_WAITALL)
size = int(sys.argv[2])
part = b"\\x03" + size.to_bytes(8, "big") + bytes(size)  # a long one, and more to come
parts = part * max(1, 100_000 // size)
while True:
    attacker.sendall(parts)
"""


def attack_without_end(daemon: Daemon, size: int) -> tuple[int, int, int]:
    """In 2 seconds: attacks that were cut off, answers to others, and most resident bytes."""
    command = [sys.executable, "-c", ENDLESS, str(daemon.path), str(size)]
    num_attacks = num_answers = peak = 0
    end = time.monotonic() + 2
    attacker = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while time.monotonic() < end:
        with Connection(daemon.address) as client:
            client.send("health")
            num_answers += client.has_answer(1)
        peak = max(peak, daemon.resident_bytes())
        if attacker.poll() is not None:  # it was cut off: again
            num_attacks += 1
            attacker = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    attacker.kill()
    attacker.wait()
    time.sleep(1)
    return num_attacks, num_answers, peak


@pytest.mark.parametrize("size", [1, 60_000])
def test_a_message_without_end_is_cut_off(daemon: Daemon, size: int) -> None:
    """A new process takes 3 to 9 MB for its first thousand connections; that is no growth."""
    fresh = daemon.resident_bytes()
    attack_without_end(daemon, size)
    before = daemon.resident_bytes()
    assert before < fresh + (16 << 20)
    num_attacks, num_answers, peak = attack_without_end(daemon, size)
    print(f"peak {(peak - before) / 1e6:.0f} MB above {before / 1e6:.0f} MB; {num_answers} answers")
    assert num_attacks >= 1 and num_answers > 3
    assert peak < before + (512 << 20)
    assert daemon.resident_bytes() < 1.1 * before


def test_a_client_that_never_reads_hurts_itself_only(daemon: Daemon) -> None:
    with Connection(daemon.address) as client, Connection(daemon.address) as silent:
        silent.socket.rcvhwm = 1
        for _ in range(200):
            submit(client)
        before = daemon.resident_bytes()
        silent.socket.sndtimeo = 2000
        with contextlib.suppress(zmq.Again):
            silent.send("watch", after=0, credit=10_000)
            for _ in range(20_000):
                silent.send("list", limit=200)
        assert slowest(daemon, 1.0) < LATENCY_SECONDS
        assert daemon.resident_bytes() < 1.5 * before
    time.sleep(0.5)


def test_half_a_handshake_is_given_up(shared_daemon: Daemon) -> None:
    with socket.socket(socket.AF_UNIX) as silent, Connection(shared_daemon.address) as client:
        silent.connect(str(shared_daemon.path))
        silent.send(b"\xff" + bytes(8))
        assert client.ask("health")["ok"]
        silent.settimeout(15)
        while silent.recv(1024):
            pass  # ended by the daemon


def test_bytes_that_are_no_zmtp_are_dropped(shared_daemon: Daemon) -> None:
    generator = random.Random(1)
    for _ in range(200):
        with socket.socket(socket.AF_UNIX) as noise, contextlib.suppress(OSError):
            noise.connect(str(shared_daemon.path))
            noise.send(generator.randbytes(generator.randrange(1, 3000)))
    with Connection(shared_daemon.address) as client:
        assert client.ask("health")["ok"]


def test_over_tcp_neither_noise_nor_a_key_holder_harms_others(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        host, port = free.getsockname()[:2]
    key = KeyRing(tmp_path / "keys").new("laptop")
    options = ("--tcp", f"tcp://{host}:{port}", "--keys", tmp_path / "keys")
    generator = random.Random(1)
    with control.daemon(tmp_path / "run", *options) as daemon, Connection(daemon.address) as client:
        for _ in range(200):
            with socket.create_connection((host, port)) as noise, contextlib.suppress(OSError):
                noise.send(generator.randbytes(generator.randrange(1, 3000)))
        assert client.ask("health")["ok"]
        before = daemon.resident_bytes()
        with Connection() as holder:
            holder.socket.curve_publickey = key.public.encode()
            holder.socket.curve_secretkey = key.secret.encode()
            holder.socket.curve_serverkey = key.server.encode()
            holder.socket.connect(f"tcp://{host}:{port}")
            assert holder.ask("health")["result"]["peer"] == "laptop"
            holder.socket.send_multipart([b"x"] * 100_000)
            holder.has_answer(1)
            assert holder.ask("health")["ok"]
            holder.socket.send_multipart([b"x" * 60_000] * 4000)
            holder.has_answer(1)
            assert client.ask("health")["ok"]
        time.sleep(1)
        assert daemon.resident_bytes() < 1.1 * before
