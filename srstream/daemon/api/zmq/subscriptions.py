"""Watches: subscriptions of connections to events, each event sent once and none left out."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from srstream.daemon.api.zmq.endpoint import Sent
from srstream.errors import ServiceError
from srstream.protocol.control import WATCH_SECONDS, Event, EventMessage, Watch

_BATCH = 64
_RETRY_SECONDS, _MAX_RETRY_SECONDS = 0.002, 1.0

PeerKey = TypeVar("PeerKey", bound=Hashable)


class EventSource(Protocol):
    """Where events are recorded. An event is recorded before `publish` is called with it."""

    def events_after(self, after: int, job: str | None, limit: int) -> list[Event]: ...

    def last_seq(self) -> int: ...


@dataclass
class _Subscription:
    job: str | None
    seq: int
    """Sequence number up to which every event was sent or does not concern the watch."""
    credit: int
    ends: float
    is_behind: bool = True
    """Events must be read from the record; live ones are not sent meanwhile."""
    retry_at: float = 0.0
    retry_seconds: float = _RETRY_SECONDS


class Subscriptions(Generic[PeerKey]):
    """Sends events to all watches. A peer that does not read gets missed events later.

    Nothing is queued here: missed events come from `source`, which records them anyway.
    """

    def __init__(
        self, source: EventSource, send: Callable[[PeerKey, bytes], Sent], max_watches: int
    ) -> None:
        self._source = source
        self._send = send
        self._max_watches = max_watches
        self._watches: dict[PeerKey, _Subscription] = {}

    def begin(self, peer: PeerKey, watch: Watch) -> dict[str, int]:
        """Begin, renew or end a peer's watch; events follow with the next `catch_up`.

        Returns:
            The reply: after which event the watch begins, the last event, and how many seconds
            the watch lasts.

        Raises:
            ServiceError: there are too many watches.
        """
        self._sweep()
        last = self._source.last_seq()
        # A number from a former queue would make the watch wait forever.
        seq = last if watch.after < 0 else min(watch.after, last)
        self._watches.pop(peer, None)
        if watch.credit:
            if len(self._watches) >= self._max_watches:
                raise ServiceError(f"there are {len(self._watches)} watches already; try later.")
            ends = time.monotonic() + WATCH_SECONDS
            self._watches[peer] = _Subscription(watch.job, seq, watch.credit, ends)
        return {"after": seq, "last_seq": last, "seconds": WATCH_SECONDS}

    def end(self, peer: PeerKey) -> None:
        """End a peer's watch, if it has one."""
        self._watches.pop(peer, None)

    def publish(self, event: Event) -> None:
        """Send a new event to the watches that have all events before it; the others are behind."""
        payload = _encoded(event)
        for peer, watch in list(self._watches.items()):
            if watch.is_behind:
                continue
            if event.kind == "progress":
                if watch.seq == event.seq and watch.job in (None, event.job):
                    self._deliver(peer, watch, payload)
            elif event.seq != watch.seq + 1:
                watch.is_behind = event.seq > watch.seq
            elif watch.job not in (None, event.job) or self._deliver(peer, watch, payload):
                watch.seq = event.seq
            else:
                watch.is_behind = True

    def catch_up(self) -> bool:
        """Send a batch to every watch that is behind; returns whether more can be sent at once."""
        self._sweep()
        could_more = False
        for peer, watch in list(self._watches.items()):
            if watch.is_behind and watch.credit and watch.retry_at <= time.monotonic():
                could_more |= self._feed(peer, watch)
        return could_more

    @property
    def has_backlog(self) -> bool:
        """Whether a watch with credit is behind."""
        return any(watch.is_behind and watch.credit for watch in self._watches.values())

    def _feed(self, peer: PeerKey, watch: _Subscription) -> bool:
        last = self._source.last_seq()
        limit = min(_BATCH, watch.credit)
        events = self._source.events_after(watch.seq, watch.job, limit)
        for event in events:
            if not self._deliver(peer, watch, _encoded(event)):
                watch.retry_seconds = min(2 * watch.retry_seconds, _MAX_RETRY_SECONDS)
                watch.retry_at = time.monotonic() + watch.retry_seconds
                return False
            watch.seq = event.seq
            watch.retry_seconds = _RETRY_SECONDS
        if len(events) < limit:
            watch.seq = max(watch.seq, last)
            watch.is_behind = False
        return watch.is_behind and watch.credit > 0

    def _deliver(self, peer: PeerKey, watch: _Subscription, payload: bytes) -> bool:
        if not watch.credit:
            return False
        sent = self._send(peer, payload)
        if sent is Sent.GONE:
            self._watches.pop(peer, None)
        watch.credit -= sent is Sent.YES
        return sent is Sent.YES

    def _sweep(self) -> None:
        now = time.monotonic()
        self._watches = {peer: each for peer, each in self._watches.items() if each.ends > now}


def _encoded(event: Event) -> bytes:
    return EventMessage(event=event).model_dump_json().encode()
