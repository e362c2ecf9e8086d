"""Jobs that share an engine take turns: each gets its share of the engine's time, none is starved.

Start-time fair queueing (Goyal, Vin and Cheng, 1997) on measured time: every member has a clock
that runs faster the lower its weight, and of those that wait the one whose clock is behind goes
first. Who comes in late starts at the others' time, so idling saves nothing up.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from srstream.frame import Frame
from srstream.pipeline.worker import FrameStage

STEP = 1.5
"""By which a step of priority multiplies a member's share."""


class Member:
    """One job's place in the round. Its owner's thread takes turns; any thread may weigh it."""

    def __init__(self, round_: Round, priority: int) -> None:
        self._round = round_
        self.weight = STEP**priority
        self.clock = 0.0
        self.is_waiting = False

    def weigh(self, priority: int) -> None:
        """Give it another priority from the next turn on."""
        self.weight = STEP**priority

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the engine; waits until it is this member's turn."""
        self._round.enter(self)
        started = time.monotonic()
        try:
            yield
        finally:
            self._round.leave(self, (time.monotonic() - started) / self.weight)

    def close(self) -> None:
        """Leave the round."""
        self._round.remove(self)


class Round:
    """The members that share one engine."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._members: list[Member] = []
        self._is_taken = False
        self._now = 0.0
        """The clock of the last one that was let in: where newcomers start."""

    def join(self, priority: int) -> Member:
        """A new member, at the time of those that are there."""
        member = Member(self, priority)
        with self._changed:
            self._members.append(member)
        return member

    def enter(self, member: Member) -> None:
        with self._changed:
            member.is_waiting = True
            member.clock = max(member.clock, self._now)
            self._changed.wait_for(lambda: not self._is_taken and self._next() is member)
            member.is_waiting = False
            self._is_taken = True
            self._now = member.clock

    def leave(self, member: Member, cost: float) -> None:
        with self._changed:
            member.clock += cost
            self._is_taken = False
            self._changed.notify_all()

    def remove(self, member: Member) -> None:
        with self._changed:
            self._members.remove(member)
            self._changed.notify_all()

    def _next(self) -> Member:
        waiting = [member for member in self._members if member.is_waiting]
        return min(waiting, key=lambda member: member.clock)


class SharedStage:
    """An enhancer that works only when it is its job's turn."""

    def __init__(self, stage: FrameStage, member: Member) -> None:
        self._stage, self._member = stage, member

    def push(self, frame: Frame) -> list[Frame]:
        with self._member.turn():
            return self._stage.push(frame)

    def drain(self) -> list[Frame]:
        with self._member.turn():
            return self._stage.drain()

    def forget(self) -> None:
        self._stage.forget()
