"""`srstream.Client` against a control socket in a separate process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import srstream
from srstream import errors
from srstream.client.jobs import Client
from srstream.errors import ConfigError, ServiceError, SrstreamError, UsageError
from tests.support.paths import REPOSITORY
from tests.support.service.control import Daemon, daemon


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with daemon(tmp_path_factory.mktemp("run")) as it:
        yield it


@pytest.fixture
def client(running: Daemon) -> Iterator[Client]:
    with srstream.Client(running.address) as it:
        yield it


def test_every_request_and_what_it_returns(client: Client, tmp_path: Path) -> None:
    job = client.submit(tmp_path / "in.mp4", tmp_path / "out.mp4", priority=2)
    assert (job.state, job.input, job.output) == (
        "queued", str(tmp_path / "in.mp4"), str(tmp_path / "out.mp4"),
    )  # fmt: skip
    assert client.status(job.id) == job
    assert client.list()[0] == job
    assert client.list("done", "failed", limit=5) == ()
    assert client.pause(job.id).state == "paused"
    assert client.set_priority(job.id, -7).priority == -7
    assert client.cancel(job.id).state == "cancelled"
    assert {model["name"] for model in client.models()["models"]} == {"fast", "balanced"}
    assert client.add_model("/w/mine.safetensors") == {"name": "mine"}
    assert client.use_model("fast") == {"default": "fast"}
    assert client.remove_model("mine") == {"name": "mine"}
    assert client.reload() == {"changed": []}
    assert client.health().ok


def test_only_the_differences_are_sent(client: Client) -> None:
    job = client.submit("/in.mp4", config={"model": {"name": "balanced"}})
    assert job.result == {"config": {"model": {"name": "balanced"}}}


def test_relative_names_are_taken_from_here(client: Client) -> None:
    assert client.submit("in.mp4").input == str(Path.cwd() / "in.mp4")


def test_errors_arrive_as_what_they_are(client: Client) -> None:
    with pytest.raises(UsageError, match="outside the configured roots"):
        client.submit("/forbidden/in.mp4")
    with pytest.raises(UsageError, match="no job 0000000000ff"):
        client.status("0000000000ff")
    with pytest.raises(ServiceError, match="priority: input should be less"):
        client.set_priority("000000000000", 99)
    with pytest.raises(ServiceError, match="an error inside the daemon") as caught:
        client.submit("/broken")
    assert "secret" not in str(caught.value)
    assert client.health().ok


def test_events_come_in_order_each_once(client: Client) -> None:
    job = client.submit("/in.mp4")
    events = client.watch(job.id, after=0)
    first = next(events)
    client.resume(job.id)
    seen = [first]
    while seen[-1].data.get("state") != "done":
        seen.append(next(events))
    kept = [event.seq for event in seen if event.kind != "progress"]
    assert kept == sorted(set(kept))
    assert [e.data["index"] for e in seen if e.kind == "segment"] == list(range(20))
    assert {event.job for event in seen} == {job.id}
    assert any(event.kind == "progress" for event in seen)


def test_a_watch_from_the_past_misses_nothing_while_more_happens(client: Client) -> None:
    begin = client.health().num_queued
    stop = threading.Event()

    def submit_more() -> None:
        with Client(client.address) as other:
            while not stop.is_set():
                other.submit("/in.mp4")

    thread = threading.Thread(target=submit_more)
    thread.start()
    try:
        time.sleep(0.3)
        seqs = []
        for event in client.watch(after=0):
            if event.kind != "progress":
                seqs.append(event.seq)
            if len(seqs) >= 2500:
                break
    finally:
        stop.set()
        thread.join()
    assert seqs == list(range(1, 2501))
    assert client.health().num_queued > begin


def test_wait_returns_when_the_job_has_ended(client: Client) -> None:
    job = client.submit("/in.mp4")
    client.resume(job.id)
    assert client.wait(job.id, 10).state == "done"
    assert client.wait(job.id, 10).state == "done"  # also if it has ended before
    queued = client.submit("/in.mp4")
    with pytest.raises(ServiceError, match=r"queued still after 0.2 s"):
        client.wait(queued.id, 0.2)


def test_two_clients_wait_while_a_third_is_slow(client: Client, running: Daemon) -> None:
    slow = client.submit("/in-slow.mp4")
    thread = threading.Thread(target=client.status, args=(slow.id,))
    thread.start()
    time.sleep(0.1)
    with Client(running.address) as other:
        begun = time.monotonic()
        assert other.health().ok
        assert time.monotonic() - begun < 0.5
    thread.join()


def test_no_daemon_is_said_at_once(tmp_path: Path) -> None:
    begun = time.monotonic()
    with Client(f"ipc://{tmp_path}/control.sock") as client:
        with pytest.raises(ServiceError, match=r"no daemon listens at .*srstream serve"):
            client.health()
        with pytest.raises(ServiceError, match="no daemon listens"):
            next(client.watch())
    assert time.monotonic() - begun < 1


def test_a_socket_that_nobody_serves_is_said_within_the_timeout(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        begun = time.monotonic()
        with (
            Client(f"ipc://{path}", timeout_seconds=0.5) as client,
            pytest.raises(ServiceError) as caught,
        ):
            client.health()
    assert 0.4 < time.monotonic() - begun < 2
    assert str(caught.value).count(".\n") == 0 and str(caught.value).endswith(".")


def test_a_daemon_that_stands_still_is_said_within_the_timeout(tmp_path: Path) -> None:
    with daemon(tmp_path) as it, Client(it.address, timeout_seconds=0.7) as client:
        assert client.health().ok
        it.process.send_signal(signal.SIGSTOP)
        begun = time.monotonic()
        with pytest.raises(ServiceError, match=r"gave no answer in 0.7 s"):
            client.submit("/lost.mp4")
        assert time.monotonic() - begun < 2
        it.process.send_signal(signal.SIGCONT)
        assert client.health().ok  # and the client works again


def test_a_request_that_timed_out_before_there_was_a_daemon_is_never_sent(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        client = Client(f"ipc://{path}", timeout_seconds=0.3)
        with pytest.raises(ServiceError):
            client.submit("/never.mp4")
    with daemon(tmp_path):
        time.sleep(0.3)
        assert client.list() == ()
    client.close()


def test_a_watch_goes_on_when_the_daemon_comes_back(tmp_path: Path) -> None:
    client = Client(f"ipc://{tmp_path}/control.sock", timeout_seconds=2)
    found: list[int] = []

    def follow() -> None:
        found.extend(next(events).seq for _ in range(4))

    with daemon(tmp_path) as it, Client(it.address) as other:
        for _ in range(3):
            other.submit("/first.mp4")
        events = client.watch(after=0)
        found.extend(next(events).seq for _ in range(3))
        thread = threading.Thread(target=follow)
        thread.start()
    with daemon(tmp_path) as it, Client(it.address) as other:
        # The new handler starts from number 1, which the watch must survive too.
        for _ in range(100):
            other.submit("/second.mp4")
            thread.join(0.1)
            if not thread.is_alive():
                break
    thread.join(1)
    assert found[:3] == [1, 2, 3]
    assert len(found) == 7 and found[3:] == list(range(found[3], found[3] + 4))
    client.close()


def test_what_was_missed_is_asked_for(client: Client) -> None:
    events = client.watch(after=client.submit("/in.mp4") and 0)
    last = next(events).seq
    events.close()  # type: ignore[attr-defined]
    made = [client.submit("/in.mp4").id for _ in range(5)]
    again = client.watch(after=last)
    ids: list[str | None] = []
    while made[-1] not in ids:
        event = next(again)
        assert event.seq == last + 1
        last = event.seq
        ids.append(event.job)
    assert [each for each in ids if each in made] == made


def test_a_watch_of_a_job_that_is_not_there_is_refused(client: Client) -> None:
    with pytest.raises(UsageError, match="there is no job"):
        next(client.watch("0000000000ff"))


@pytest.mark.parametrize("address", ["control.sock", "http://x", "inproc://x", ""])
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(UsageError, match="write ipc://PATH or tcp://HOST:PORT"):
        Client(address)


def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "studio.key"
    path.write_text('name = "a"')
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="lets others at the keys"):
        Client("tcp://127.0.0.1:1", key=path)


def test_no_error_is_lost_on_the_way() -> None:
    """Every error of the tree comes back as its class from its name and its text alone."""
    found = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, SrstreamError)
    ]
    assert len(found) > 10
    for kind in found:
        assert str(kind("a sentence.")) == "a sentence."


def test_importing_the_client_loads_nothing_heavy() -> None:
    code = (
        "import sys, srstream; srstream.Client; "
        "print(sorted({'av', 'numpy', 'cv2', 'torch', 'openvino', 'rich'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY,
        env=os.environ, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == "[]", done.stderr
