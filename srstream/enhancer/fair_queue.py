"""Turns for jobs that share an engine: each gets its share of the engine's time, none is starved.

The turns follow start-time fair queueing (Goyal, Vin and Cheng, 1997) on measured time. Every
member has a clock that runs faster the lower its weight, and of the waiting members, the one whose
clock is farthest behind goes first. A newcomer starts at the others' time, so idling does not
save up any time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Generic, TypeVar

from srstream.enhancer.enhancer import Enhancer
from srstream.enhancer.stage import Stage
from srstream.frame import Frame, FrameForm

STEP = 1.5
"""Factor by which one step of priority multiplies a member's share."""

SLICE_SECONDS = 0.5
"""Longest turn of a stage that works on one large frame."""


class Member:
    """One job's place in the round.

    The job's thread takes the turns; any thread may change the priority.
    """

    def __init__(self, round_: Round, priority: int) -> None:
        self._round = round_
        self.weight = STEP**priority
        self.clock = 0.0
        self.is_waiting = False
        self.call: Callable[[], None] = _nothing
        """A callback, from any thread, for when this member waits and its turn has come."""
        self._since: float | None = None

    def weigh(self, priority: int) -> None:
        """Change the priority, from the next turn on."""
        self.weight = STEP**priority

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for this member's turn and hold the engine during the context."""
        self._round.enter(self)
        self._since = time.monotonic()
        try:
            yield
        finally:
            self.end_turn()

    def try_turn(self) -> bool:
        """Take the turn if it is this member's; otherwise line up and be called when it comes.

        A member in line holds up those behind it until it has come back and taken its turn.
        """
        if self._since is None and self._round.try_enter(self):
            self._since = time.monotonic()
        return self._since is not None

    def held_seconds(self) -> float:
        """Return for how long this member has held the engine; 0 if it does not hold it."""
        return 0.0 if self._since is None else time.monotonic() - self._since

    def end_turn(self) -> None:
        """Pass the engine on, if this member holds it."""
        since, self._since = self._since, None
        if since is not None:
            self._round.leave(self, (time.monotonic() - since) / self.weight)

    def close(self) -> None:
        """Leave the round, even in the middle of a turn."""
        self.end_turn()
        self._round.remove(self)


class Round:
    """The members that share one engine."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._members: list[Member] = []
        self._is_taken = False
        self._now = 0.0
        """The clock of the member that had the last turn; newcomers start at it."""

    def join(self, priority: int) -> Member:
        """Add a member, at the time of the others."""
        member = Member(self, priority)
        with self._changed:
            self._members.append(member)
        return member

    def enter(self, member: Member) -> None:
        with self._changed:
            member.is_waiting = True
            member.clock = max(member.clock, self._now)
            self._changed.wait_for(lambda: self._is_turn_of(member))
            self._let_in(member)

    def try_enter(self, member: Member) -> bool:
        with self._changed:
            if not member.is_waiting:
                member.is_waiting = True
                member.clock = max(member.clock, self._now)
            if not self._is_turn_of(member):
                return False
            self._let_in(member)
            return True

    def leave(self, member: Member, cost: float) -> None:
        with self._changed:
            member.clock += cost
            self._is_taken = False
            self._call_next()

    def remove(self, member: Member) -> None:
        with self._changed:
            self._members.remove(member)
            self._call_next()

    def _let_in(self, member: Member) -> None:
        member.is_waiting = False
        self._is_taken = True
        self._now = member.clock

    def _call_next(self) -> None:
        self._changed.notify_all()
        if not self._is_taken and (next_one := self._next()) is not None:
            next_one.call()

    def _is_turn_of(self, member: Member) -> bool:
        return not self._is_taken and self._next() is member

    def _next(self) -> Member | None:
        waiting = [member for member in self._members if member.is_waiting]
        return min(waiting, key=lambda member: member.clock, default=None)


_S = TypeVar("_S", bound=Stage)


class _InTurns(Generic[_S]):
    """A stage whose job shares its engine with others.

    Args:
        wake: called, from any thread, when the job's turn has come.
    """

    def __init__(self, stage: _S, member: Member, wake: Callable[[], None]) -> None:
        self._stage, self._member = stage, member
        member.call = wake

    @property
    def output(self) -> FrameForm:
        return self._stage.output

    def forget(self) -> None:
        self._stage.forget()

    def close(self) -> None:
        self._stage.close()
        self._member.end_turn()


class SharedStage(_InTurns[Stage]):
    """A stage that has room for a frame only when it is its job's turn.

    A turn lasts from the beginning of a frame until the engine has room for the next one, so its
    cost is the time for which the job kept the engine busy.
    """

    def has_room(self) -> bool:
        return self._stage.has_room() and self._member.try_turn()

    def push(self, frame: Frame) -> list[Frame]:
        try:
            return self._stage.push(frame)
        finally:
            self._end_turn()

    def collect(self) -> list[Frame]:
        try:
            return self._stage.collect()
        finally:
            self._end_turn()

    def drain(self) -> list[Frame]:
        try:
            return self._stage.drain()
        finally:
            self._end_turn()

    def _end_turn(self) -> None:
        if self._stage.has_room():
            self._member.end_turn()


class SlicedStage(_InTurns[Enhancer]):
    """A stage for one large frame, which gives tiles to the engine in short turns only.

    Its first tiles, as many as the engine takes at once, need no turn. Preparing the frame and
    composing the result take seconds, in which the engine is for others.
    """

    def has_room(self) -> bool:
        return self._stage.has_room()

    def push(self, frame: Frame) -> list[Frame]:
        return self._stage.push(frame)

    def collect(self) -> list[Frame]:
        """See `Stage.collect`; while tiles wait for the engine, nothing is done between turns."""
        if not self._stage.has_waiting_tiles():
            self._member.end_turn()
        elif not self._member.try_turn():
            return []
        made = self._stage.collect()
        if self._member.held_seconds() >= SLICE_SECONDS:
            self._member.end_turn()
        return made

    def drain(self) -> list[Frame]:
        return self._stage.drain()


class WaitingStage:
    """A stage whose caller waits for its turn, in a thread that does nothing else.

    Args:
        turn: entered while frames are computed, such as `Member.turn`.
        on_close: called after the stage is closed.
    """

    def __init__(
        self,
        stage: Stage,
        turn: Callable[[], AbstractContextManager[None]],
        on_close: Callable[[], None],
    ) -> None:
        self._stage, self._turn, self._on_close = stage, turn, on_close

    @property
    def output(self) -> FrameForm:
        return self._stage.output

    def has_room(self) -> bool:
        return self._stage.has_room()

    def push(self, frame: Frame) -> list[Frame]:
        with self._turn():
            return self._stage.push(frame)

    def collect(self) -> list[Frame]:
        return self._stage.collect()

    def drain(self) -> list[Frame]:
        with self._turn():
            return self._stage.drain()

    def forget(self) -> None:
        self._stage.forget()

    def close(self) -> None:
        self._stage.close()
        self._on_close()


def _nothing() -> None:
    """Do nothing, for a member that nothing waits for."""
