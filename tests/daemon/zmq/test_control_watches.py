"""Watches of a daemon's events: without gap or double, within their credit, until they end."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import zmq

from srstream.daemon.api.zmq import subscriptions
from srstream.daemon.api.zmq.endpoint import Sent
from srstream.daemon.api.zmq.subscriptions import Subscriptions
from srstream.protocol.control import Event, Watch
from tests.support.service.control import Daemon
from tests.support.service.control_clients import Connection, submit


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
