"""One client's stream in the engine worker: its frames, their results, and its thread.

The thread that owns the socket (`server.py`) puts frames in and takes messages out; it never waits
for a stage. The session's thread never touches the socket.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from srstream.enhancer.stage import Stage
from srstream.errors import ServiceError, SrstreamError, error_to_wire
from srstream.frame import Frame, FrameForm, encode_frame
from srstream.protocol.frames import (
    CREDIT,
    END,
    ERROR,
    FRAME,
    MAX_CREDIT,
    READY,
    Hello,
    ProtocolError,
    check_samples,
)

logger = logging.getLogger(__name__)

MAX_UNSENT_FRAMES = 2
"""Finished frames that may wait for the client before the session stops computing."""

Parts = list[bytes | memoryview]


OpenStage = Callable[[Hello], Stage]
"""Opens a session's stage. It is called in the session's thread, so it may be slow."""


class _CancelledError(Exception):
    """The session was cancelled."""


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """The limits of a session."""

    window_frames: int
    """Number of input frames that may wait."""
    frames_in_stage: int
    """Number of frames that may be computed at once."""
    idle_seconds: float
    """How long the session waits for its client."""
    reserved_bytes: int
    """Largest size of its input and output frames in memory."""


class FrameSession:
    """A client's stream from HELLO to END.

    Its methods belong to the socket's thread, except `_run` and what it calls. The session's thread
    calls `wake` whenever there is something to send.
    """

    def __init__(
        self,
        hello: Hello,
        limits: SessionLimits,
        *,
        open_stage: OpenStage,
        wake: Callable[[], None],
    ) -> None:
        self.id = uuid.uuid4().hex[:16]
        self.hello, self.limits, self.form = hello, limits, hello.form
        self._open_stage, self._wake = open_stage, wake
        self._changed = threading.Condition()
        self._inputs: deque[Frame] = deque()
        self._announcements: deque[Parts] = deque()
        self._made: deque[Frame] = deque()
        self._last: Parts | None = None
        self._input_credit = limits.window_frames
        self._owed_credit = 0
        self._output_credit = 0
        self._is_finishing = self._is_cancelled = self._has_ended = False
        self._is_busy = True
        self._touched = time.monotonic()
        self.num_frames = 0
        """Frames computed so far."""
        self._thread = threading.Thread(target=self._run, name=f"frames-{self.id}", daemon=True)

    def start(self) -> None:
        """Starts the session's thread."""
        self._thread.start()

    def join(self, timeout_seconds: float) -> None:
        """Waits for the session's thread to end."""
        self._thread.join(timeout_seconds)

    @property
    def has_ended(self) -> bool:
        """Whether the session has freed its frames and its engine."""
        return self._has_ended

    def put(self, frame: Frame) -> None:
        """Queues a frame.

        Raises:
            ProtocolError: the client had no credit left, or has said BYE.
        """
        with self._changed:
            if self._is_finishing:
                raise ProtocolError("FRAME: after BYE.")
            if self._input_credit < 1:
                raise ProtocolError("FRAME: more were sent than credit was given for.")
            self._input_credit -= 1
            self._inputs.append(frame)
            self._changed.notify()

    def grant(self, num_frames: int) -> None:
        """Adds credit: the client can take so many more frames."""
        with self._changed:
            self._output_credit = min(self._output_credit + num_frames, MAX_CREDIT)

    def finish(self) -> None:
        """Takes no more frames; END follows the last result."""
        with self._changed:
            self._is_finishing = True
            self._changed.notify()

    def cancel(self) -> None:
        """Drops all frames; the thread ends as soon as the stage returns."""
        with self._changed:
            self._is_cancelled = True
            self._inputs.clear()
            self._made.clear()
            self._changed.notify()

    def touch(self) -> None:
        """Notes a sign of life from the client."""
        self._touched = time.monotonic()

    def is_idle(self) -> bool:
        """Return whether the session has waited too long, and for its client only."""
        waited = time.monotonic() - self._touched
        return not self._is_busy and waited > self.limits.idle_seconds

    def next_message(self) -> Parts | None:
        """The message to send now, if any; `sent` must be called when it is on its way."""
        with self._changed:
            if self._announcements:
                return self._announcements[0]
            if self._owed_credit:
                return [CREDIT, b"%d" % self._owed_credit]
            if self._made and self._output_credit:
                return [FRAME, *encode_frame(self._made[0])]
            return None if self._made else self._last

    def sent(self, message: Parts) -> bool:
        """Notes that a message was sent; returns whether it was the session's last."""
        with self._changed:
            if message[0] == CREDIT:
                amount = int(message[1])
                self._owed_credit -= amount
                self._input_credit += amount
            elif message[0] == FRAME:
                self._made.popleft()
                self._output_credit -= 1
                self._changed.notify()
            elif message is self._last:
                return True
            else:
                self._announcements.popleft()
            return False

    def _run(self) -> None:
        stage: Stage | None = None
        last: Parts | None = None
        try:
            stage = self._open_stage(self.hello)
            self._announce([READY, json.dumps(self._ready(stage.output)).encode()])
            self._work(stage)
            last = [END, json.dumps({"num_frames": self.num_frames}).encode()]
        except _CancelledError:
            pass
        except SrstreamError as error:
            last = error_message(error)
        except Exception:
            logger.exception("session=%s failed", self.id)
            last = error_message(ServiceError("the daemon failed; see its log."))
        finally:
            self._leave(stage, last)

    def _work(self, stage: Stage) -> None:
        num_pushed = 0
        while (frame := self._next_frame()) is not None:
            check_samples(frame)
            made = stage.push(frame)
            num_pushed += 1
            num_inside = num_pushed - self.num_frames - len(made)
            # The next frame may come late, and memory is reserved for only so many.
            if not self._inputs or num_inside >= self.limits.frames_in_stage:
                made += stage.drain()
            self._deliver(made)
        self._deliver(stage.drain())

    def _next_frame(self) -> Frame | None:
        """Waits for a frame and for room for its result; None after the last one."""
        with self._changed:
            self._is_busy = False
            self.touch()
            while not self._is_cancelled:
                if len(self._made) < MAX_UNSENT_FRAMES:
                    if self._inputs:
                        self._is_busy = True
                        self._owed_credit += 1
                        self._wake()
                        return self._inputs.popleft()
                    if self._is_finishing:
                        self._is_busy = True
                        return None
                self._changed.wait()
            raise _CancelledError

    def _deliver(self, frames: list[Frame]) -> None:
        with self._changed:
            if self._is_cancelled:
                raise _CancelledError
            self._made.extend(frames)
            self.num_frames += len(frames)
        self._wake()

    def _announce(self, message: Parts) -> None:
        with self._changed:
            self._announcements.append(message)
        self._wake()

    def _leave(self, stage: Stage | None, last: Parts | None) -> None:
        """Frees everything, and only then queues the message that ends the session."""
        self._inputs.clear()
        if stage is not None:
            try:
                stage.close()
            except Exception:
                logger.exception("session=%s: its stage cannot be closed", self.id)
        with self._changed:
            self._last = last
            self._is_busy, self._has_ended = False, True
        self.touch()
        self._wake()

    def _ready(self, output: FrameForm) -> dict[str, Any]:
        return {
            "version": 1,
            "session": self.id,
            "width": output.width,
            "height": output.height,
            "layout": asdict(output.layout),
            "color": asdict(output.color),
            "credit_frames": self.limits.window_frames,
            "idle_seconds": self.limits.idle_seconds,
        }


def error_message(error: SrstreamError) -> Parts:
    """The ERROR message for an error."""
    kind, text = error_to_wire(error)
    return [ERROR, json.dumps({"kind": kind, "text": text[:2000]}).encode()]
