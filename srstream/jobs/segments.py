"""The inner loop of a job: moves frames from the decoder through the enhancer to the encoder.

The loop waits for whichever comes first: a message from the decoder, a tile that the engine has
completed, or room at the encoder. None of the three blocks it, whatever their speeds are. A stalled
stage is detected and named (`stall.py`).
"""

from __future__ import annotations

import os
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

from srstream.enhancer.stage import Stage
from srstream.errors import (
    InterruptedJobError,
    MediaError,
    SrstreamError,
    StalledError,
    error_from_wire,
)
from srstream.frame import Frame
from srstream.jobs.encoder import Cut, EncoderThread
from srstream.jobs.stall import STALL_SECONDS, Stages, StallWatch
from srstream.jobs.store import JobStore, SegmentRecord
from srstream.jobs.wakeup import Wakeup
from srstream.sandbox.child import Child
from srstream.sandbox.decoder import (
    DecodeOutcome,
    DecodeRequest,
    frame_hash,
    opened_source,
    start_decoder,
)
from srstream.sandbox.transport import END, ERROR, FRAME, FrameReceiver

POLL_SECONDS = 0.2
"""The longest delay until a stop request is noticed."""

_DEATH_SECONDS = 1.0
"""Time for the last messages of a decoder that has ended to arrive."""


class DecoderDiedError(SrstreamError):
    """The decoder's process ended early; its unfinished part is decoded again."""


@dataclass(frozen=True, slots=True)
class SegmentCuts:
    """The first pts of each segment; the first segment also holds all earlier frames."""

    starts: tuple[int, ...]

    def number_of(self, pts: int) -> int:
        """Return the number of the segment to which a frame shown at `pts` belongs."""
        return max(0, bisect_right(self.starts, pts) - 1)

    def __len__(self) -> int:
        return len(self.starts)


@dataclass(frozen=True, slots=True)
class SegmentTask:
    """The remaining segments of a job: from `first_number` to the end of the input.

    Each finished one becomes a `SegmentRecord`.
    """

    first_number: int
    anchor: SegmentRecord | None
    """The last finished segment that holds a frame; decoding resumes after that frame."""


@dataclass(frozen=True, slots=True)
class _Finished:
    """An enhanced frame that waits for the encoder, with its source frame."""

    number: int
    frame: Frame
    source: Frame


class Worker:
    """Drives one pass from the resume point to the end of the input.

    Args:
        stage: starts and returns frames; wakes the `wakeup` when it has done something, as the
            encoder does.
        on_alive: called at least once a second while anything makes progress.
        should_stop: asked at the end of each segment; True ends the pass there.
        is_aborted: asked continually; True ends the pass with `InterruptedJobError`.
        stall_seconds: time in which something must move; see `stall.py`.
        start: starts the decoder's process; its second argument is the log.
    """

    def __init__(
        self,
        store: JobStore,
        cuts: SegmentCuts,
        stage: Stage,
        encoder: EncoderThread,
        wakeup: Wakeup,
        *,
        window_bytes: int,
        on_note: Callable[[str], None],
        on_frame: Callable[[], None],
        should_stop: Callable[[], bool],
        is_aborted: Callable[[], bool] = lambda: False,
        on_alive: Callable[[], None] = lambda: None,
        stall_seconds: float = STALL_SECONDS,
        start: Callable[[DecodeRequest, BinaryIO], Child] = start_decoder,
    ) -> None:
        self._store, self._cuts = store, cuts
        self._stage, self._encoder, self._wakeup = stage, encoder, wakeup
        self._window_bytes = window_bytes
        self._on_note, self._on_frame, self._should_stop = on_note, on_frame, should_stop
        self._is_aborted, self._on_alive = is_aborted, on_alive
        self._stall_seconds, self._start = stall_seconds, start
        self._received: deque[Frame] = deque()
        self._is_in_line = False
        """Whether the next frame goes to the engine as soon as there is room."""
        self._pending: deque[tuple[int, Frame] | Cut] = deque()
        """Frames that the stage holds, and the cuts after them."""
        self._finished: deque[_Finished | Cut] = deque()
        self._is_receiving = True
        self._is_told_of_end = False
        self._outcome: DecodeOutcome | None = None
        self._number = 0
        self._last: Frame | None = None

    def run(self, request: DecodeRequest, first_number: int) -> DecodeOutcome | None:
        """Work until the end (the outcome), or until a stop at the end of a segment (None).

        Raises:
            DecoderDiedError: the child ended too early, or was idle and was killed.
            InterruptedJobError: `is_aborted` said so.
            StalledError: the engine or the encoder has work but does nothing.
        """
        self._number = first_number
        try:
            receiver = FrameReceiver(self._store.directory, window_bytes=self._window_bytes)
            with closing(receiver), self._decoder(request, receiver) as child:
                self._work(receiver, child)
        except StalledError:
            self._encoder.abandon(limit_seconds=1.0)
            raise
        except BaseException:
            self._encoder.abandon()
            raise
        return self._outcome

    @contextmanager
    def _decoder(self, request: DecodeRequest, receiver: FrameReceiver) -> Iterator[Child]:
        """Run the child, which may read the source but cannot open files by name."""
        log_path = self._store.directory / "decoder.log"
        given = request.source_descriptor
        with opened_source(request.path, given) as source, log_path.open("wb") as log:
            wanted = {
                "source_descriptor": source,
                "directory_descriptor": receiver.directory_descriptor,
            }
            child = self._start(request.model_copy(update=wanted), log)
        try:
            yield child
        finally:
            child.end()

    def _work(self, receiver: FrameReceiver, child: Child) -> None:
        """Do what is possible until everything is done; wait only while nothing is."""
        watch = StallWatch(child.pid, self._stall_seconds, self._on_alive)
        death = _Death(child)
        try:
            while True:
                self._encoder.check()
                if self._encoder.has_ended:
                    return
                if self._is_aborted():
                    raise InterruptedJobError("the job was stopped.")
                moved = self._take_message(receiver)
                moved |= self._keep(self._stage.collect())
                moved |= self._hand_over(receiver)
                moved |= self._push()
                moved |= self._close_up()
                if moved:
                    watch.moved()
                else:
                    self._wait(receiver, watch, death)
        finally:
            death.close()

    def _wait(self, receiver: FrameReceiver, watch: StallWatch, death: _Death) -> None:
        """Sleep until something is possible; raise if nothing ever will be."""
        if self._is_receiving and death.is_certain() and not self._holds_frames():
            raise DecoderDiedError(f"the decoder process ended unexpectedly ({death.status}).")
        sources: list[Any] = [receiver.socket, *death.awaited()] if self._is_receiving else []
        started = time.monotonic()
        woken = self._wakeup.wait(sources, POLL_SECONDS)
        waited = min(time.monotonic() - started, POLL_SECONDS)
        stages = self._stages(receiver)
        if woken:
            watch.moved()
        elif watch.is_stalled_after(waited, stages):
            self._give_up(watch, stages)

    def _give_up(self, watch: StallWatch, stages: Stages) -> None:
        if stages.is_decoder_due and not stages.is_working:
            raise DecoderDiedError(
                f"the decoder process did nothing for {watch.limit_seconds:.0f} s, as if the disk "
                "of its source did not answer, and was ended."
            )
        raise StalledError(
            f"{self._store.output}: nothing has moved for {watch.limit_seconds:.0f} s, so the job "
            f"was ended: {stages}. Run the same command again to go on."
        )

    def _stages(self, receiver: FrameReceiver) -> Stages:
        return Stages(
            decoder_has_ended=not self._is_receiving,
            credit_bytes=receiver.credit_bytes,
            num_received=len(self._received),
            num_in_engine=sum(not isinstance(entry, Cut) for entry in self._pending),
            num_finished=sum(not isinstance(entry, Cut) for entry in self._finished),
            num_at_encoder=self._encoder.num_items,
        )

    def _holds_frames(self) -> bool:
        return bool(self._received or self._pending or self._finished or self._encoder.num_items)

    def _take_message(self, receiver: FrameReceiver) -> bool:
        """Take one message from the decoder; credit bounds the number of frames."""
        message = receiver.receive(0) if self._is_receiving else None
        if message is None:
            return False
        kind, content = message
        if isinstance(content, Frame):
            self._received.append(content)
        elif isinstance(content, str):
            if content:
                self._on_note(content)
        elif kind == END:
            self._is_receiving = False
            self._outcome = DecodeOutcome.model_validate(content)
        elif kind == ERROR:
            raise error_from_wire(content["kind"], content["text"], MediaError)
        elif kind == FRAME:
            raise MediaError("the decoder sent a frame message that holds no frame")
        return True

    def _push(self) -> bool:
        """Begin the next frame if there is room, and nothing waits for the encoder."""
        if not self._received or (self._finished and not self._is_in_line):
            return False
        frame = self._received[0]
        if not self._enter_segment_of(frame):
            self._is_receiving, self._outcome = False, None
            self._received.clear()
            return True
        self._is_in_line = not self._stage.has_room()
        if self._is_in_line:
            return False
        self._received.popleft()
        self._last = frame
        self._pending.append((self._number, frame))
        self._keep(self._stage.push(frame))
        return True

    def _enter_segment_of(self, frame: Frame) -> bool:
        """Close the segments before that of a frame; return False to stop here."""
        number = self._cuts.number_of(frame.pts)
        if number <= self._number:
            return True
        stop = self._should_stop()
        self._cut_until(self._number + 1 if stop else number)
        # A segment's frames must not depend on what came before it, so a resume reproduces them.
        self._stage.forget()
        return not stop

    def _cut_until(self, number: int) -> None:
        """Close the current segment, and empty ones before `number`."""
        while self._number < number:
            last_hash = "" if self._last is None else frame_hash(self._last)
            self._pending.append(Cut(self._number, last_hash))
            self._last = None
            self._number += 1
        self._keep_cuts()

    def _keep(self, enhanced: Sequence[Frame]) -> bool:
        """Keep enhanced frames for the encoder, and each cut after the frames before it."""
        for frame in enhanced:
            entry = self._pending.popleft()
            assert not isinstance(entry, Cut)
            self._finished.append(_Finished(entry[0], frame, entry[1]))
            self._keep_cuts()
        return bool(enhanced)

    def _keep_cuts(self) -> None:
        while self._pending and isinstance(cut := self._pending[0], Cut):
            self._finished.append(cut)
            self._pending.popleft()

    def _hand_over(self, receiver: FrameReceiver) -> bool:
        """Give the encoder as much as it has room for, and release the source frames."""
        moved = False
        while self._finished:
            entry = self._finished[0]
            item = entry if isinstance(entry, Cut) else (entry.number, entry.frame)
            if not self._encoder.offer(item):
                break
            self._finished.popleft()
            moved = True
            if isinstance(entry, _Finished):
                receiver.release(entry.source)
                self._on_frame()
        return moved

    def _close_up(self) -> bool:
        """Close the last segment after the last frame, then send the encoder the end."""
        if self._is_receiving or self._received or self._is_told_of_end:
            return False
        if self._outcome is not None and self._number < len(self._cuts):
            self._cut_until(len(self._cuts))
            return True
        if not self._pending and not self._finished:
            self._is_told_of_end = self._encoder.offer(None)
        return self._is_told_of_end


class _Death:
    """The end of a child, as a descriptor that a poller can wait for."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._descriptor = os.pidfd_open(child.pid)
        self._seen_at: float | None = None

    def awaited(self) -> list[int]:
        """Return the descriptors that become readable when the child ends; none after."""
        return [self._descriptor] if self._seen_at is None else []

    def is_certain(self) -> bool:
        """Return whether the child ended long enough ago that all its messages have arrived."""
        if self._child.status is None:
            return False
        if self._seen_at is None:
            self._seen_at = time.monotonic()
        return time.monotonic() - self._seen_at > _DEATH_SECONDS

    @property
    def status(self) -> str:
        return f"status {self._child.status}"

    def close(self) -> None:
        os.close(self._descriptor)
