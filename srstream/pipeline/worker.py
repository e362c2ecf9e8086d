"""From the decoder's socket through the enhancer to segments on disk: the part that does the work.

Two threads: this one receives and drives the enhancer (whose engine has threads of its own), the
other encodes, commits and journals. They share a bounded queue, so memory does not grow with the
length of the input.
"""

from __future__ import annotations

import contextvars
import os
import queue
import subprocess
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from srstream.errors import InterruptedJobError, MediaError, SrstreamError, error_named
from srstream.frame import Frame
from srstream.media.encode import SegmentEncoder
from srstream.media.types import OutputVideo
from srstream.pipeline.child import bytes_read
from srstream.pipeline.decoder import DecodeRequest, frame_hash, opened_source, start_decoder
from srstream.pipeline.store import JobStore, SegmentRecord, disk_errors
from srstream.pipeline.transport import END, ERROR, FRAME, FrameReceiver

POLL_SECONDS = 0.2
SEGMENT_SUFFIX = ".mp4"


class DecoderDiedError(SrstreamError):
    """The child was killed; what it had not finished is decoded again."""


class FrameStage(Protocol):
    """What the worker needs of the enhancer."""

    def push(self, frame: Frame) -> list[Frame]: ...
    def drain(self) -> list[Frame]: ...
    def forget(self) -> None: ...


@dataclass(frozen=True, slots=True)
class SegmentCuts:
    """Where segments begin, in pts; the first begins before everything."""

    starts: tuple[int, ...]

    def number_of(self, pts: int) -> int:
        """The segment to which a frame shown at `pts` belongs."""
        return max(0, bisect_right(self.starts, pts) - 1)

    def __len__(self) -> int:
        return len(self.starts)


@dataclass(frozen=True, slots=True)
class _Cut:
    """In the encoder's queue: segment `number` is complete."""

    number: int
    last_frame_hash: str
    statistics: dict[str, Any]


@dataclass(frozen=True, slots=True)
class DecodeOutcome:
    """The decoder's report at the end of the input."""

    num_corrupt_packets: int = 0
    num_concealed: int = 0
    stopped_at_seconds: float | None = None


class EncoderThread(threading.Thread):
    """Encodes frames, closes segments at cuts and commits them."""

    def __init__(
        self,
        store: JobStore,
        video: OutputVideo,
        *,
        threads: int,
        deterministic: bool,
        queue_frames: int,
        on_segment: Callable[[SegmentRecord], None],
    ) -> None:
        super().__init__(name="srstream-encode", daemon=True)
        self._context = contextvars.copy_context()
        """So that what this thread logs carries the job's name, where it has one."""
        self._store, self._video = store, video
        self._threads, self._deterministic = threads, deterministic
        self._queue: queue.Queue[tuple[int, Frame] | _Cut | None] = queue.Queue(queue_frames)
        self._on_segment = on_segment
        self._encoder: SegmentEncoder | None = None
        self._abandoned = threading.Event()
        self._error: BaseException | None = None

    def put(self, item: tuple[int, Frame] | _Cut | None) -> None:
        """Hand over a frame with its segment's number, a cut, or None for the end."""
        while True:
            self.check()
            try:
                self._queue.put(item, timeout=POLL_SECONDS)
                return
            except queue.Full:
                continue

    def finish(self) -> None:
        """Wait until all that was handed over is on disk."""
        self.put(None)
        self.join()
        self.check()

    def abandon(self) -> None:
        """Drop what is not committed and stop."""
        self._abandoned.set()
        self.join()

    def check(self) -> None:
        """Raise here what went wrong over there."""
        if self._error is not None:
            raise self._error

    def run(self) -> None:
        self._context.run(self._work)

    def _work(self) -> None:
        try:
            while (item := self._next()) is not None:
                if isinstance(item, _Cut):
                    self._commit(item)
                else:
                    self._encode(*item)
        except BaseException as error:
            self._error = error
        finally:
            if self._encoder is not None:
                self._encoder.abandon()

    def _next(self) -> tuple[int, Frame] | _Cut | None:
        while not self._abandoned.is_set():
            try:
                return self._queue.get(timeout=POLL_SECONDS)
            except queue.Empty:
                continue
        return None

    def _encode(self, number: int, frame: Frame) -> None:
        with disk_errors(f"encoding segment {number}", self._store.directory):
            if self._encoder is None:
                path = self._store.temporary_segment(number)
                self._encoder = SegmentEncoder(
                    path, self._video, self._threads, self._deterministic
                )
            self._encoder.push(frame)

    def _commit(self, cut: _Cut) -> None:
        encoder, self._encoder = self._encoder, None
        with disk_errors(f"encoding segment {cut.number}", self._store.directory):
            encoded = None if encoder is None else encoder.close()
        record = self._store.commit_segment(
            cut.number, encoded, SEGMENT_SUFFIX, cut.last_frame_hash, cut.statistics
        )
        self._on_segment(record)


class StallWatch:
    """Tells a process that gets on from one that hangs: it sends messages, or reads its input.

    Time in which nobody waited for it does not count.
    """

    def __init__(self, pid: int, limit_seconds: float) -> None:
        self._pid, self._limit_seconds = pid, limit_seconds
        self._position, self._waited_seconds = -1, 0.0

    def saw_message(self) -> None:
        self._waited_seconds = 0.0

    def is_stalled_after(self, waited_seconds: float) -> bool:
        """Whether so long a wait, without a message, made it too long."""
        position = bytes_read(self._pid)
        moved, self._position = position != self._position, position
        self._waited_seconds = 0.0 if moved else self._waited_seconds + waited_seconds
        return self._waited_seconds > self._limit_seconds


class Worker:
    """Drives one pass from the resume point to the end of the input.

    Args:
        should_stop: asked at every segment's end; True ends the pass there.
        is_aborted: asked all the time; True ends the pass with `InterruptedJobError`.
        stall_seconds: a decoder that has credit, sends nothing and reads nothing for so long is
            taken for dead.
    """

    def __init__(
        self,
        store: JobStore,
        cuts: SegmentCuts,
        make_enhancer: Callable[[], FrameStage],
        encoder: EncoderThread,
        *,
        window_bytes: int,
        on_note: Callable[[str], None],
        on_frame: Callable[[], None],
        should_stop: Callable[[], bool],
        is_aborted: Callable[[], bool] = lambda: False,
        stall_seconds: float = 600.0,
    ) -> None:
        self._store, self._cuts = store, cuts
        self._enhancer = make_enhancer()
        self._encoder = encoder
        self._window_bytes = window_bytes
        self._on_note, self._on_frame, self._should_stop = on_note, on_frame, should_stop
        self._is_aborted, self._stall_seconds = is_aborted, stall_seconds
        self._pending: deque[tuple[int, Frame] | _Cut] = deque()
        self._number = 0
        self._last: Frame | None = None
        self._num_frames = self._num_concealed = 0

    def run(self, request: DecodeRequest, first_number: int) -> DecodeOutcome | None:
        """Work until the end (the outcome) or a stop asked for at a segment's end (None)."""
        self._number = first_number
        receiver = FrameReceiver(self._store.directory, window_bytes=self._window_bytes)
        try:
            child = self._start(request, receiver)
        except BaseException:
            receiver.close()
            raise
        try:
            outcome = self._receive(receiver, child)
            if outcome is not None:
                self._cut_until(len(self._cuts))
                self._deliver(self._enhancer.drain(), receiver)
            self._encoder.finish()
            return outcome
        except BaseException:
            self._encoder.abandon()
            raise
        finally:
            child.kill()
            child.wait()
            receiver.close()

    def _start(self, request: DecodeRequest, receiver: FrameReceiver) -> subprocess.Popen[bytes]:
        """Start the child, which may read the source but open no file by its name."""
        log_path = self._store.directory / "decoder.log"
        given = request.source_descriptor
        with opened_source(request.path, given) as source, log_path.open("wb") as log:
            return start_decoder(
                request.model_copy(
                    update={
                        "source_descriptor": source,
                        "directory_descriptor": receiver.directory_descriptor,
                        "parent_pid": os.getpid(),
                    }
                ),
                log,
            )

    def _receive(
        self, receiver: FrameReceiver, child: subprocess.Popen[bytes]
    ) -> DecodeOutcome | None:
        watch = StallWatch(child.pid, self._stall_seconds)
        while True:
            self._encoder.check()
            if self._is_aborted():
                raise InterruptedJobError("the job was stopped.")
            message = receiver.receive(POLL_SECONDS)
            if message is not None:
                watch.saw_message()
            elif watch.is_stalled_after(POLL_SECONDS):
                child.kill()
            if message is None:
                if child.poll() is not None and (message := receiver.receive(0)) is None:
                    raise DecoderDiedError(
                        f"the decoder process ended unexpectedly (status {child.returncode})."
                    )
                if message is None:
                    continue
            kind, content = message
            if isinstance(content, Frame):
                if not self._accept(content, receiver):
                    return None
            elif isinstance(content, str):
                if content:
                    self._on_note(content)
            elif kind == END:
                return DecodeOutcome(
                    num_corrupt_packets=content["num_corrupt_packets"],
                    num_concealed=content["num_concealed"],
                    stopped_at_seconds=content["stopped_at_seconds"],
                )
            elif kind == ERROR:
                raise (error_named(content["kind"]) or MediaError)(content["text"])
            elif kind == FRAME:
                raise MediaError("the decoder sent a frame message that holds no frame")

    def _accept(self, frame: Frame, receiver: FrameReceiver) -> bool:
        number = self._cuts.number_of(frame.pts)
        if number > self._number:
            stop = self._should_stop()
            self._cut_until(self._number + 1 if stop else number)
            # A segment is the same whatever came before it, also after a resume.
            self._enhancer.forget()
            if stop:
                self._deliver(self._enhancer.drain(), receiver)
                return False
        self._last = frame
        self._num_frames += 1
        self._num_concealed += frame.concealed
        self._pending.append((self._number, frame))
        self._deliver(self._enhancer.push(frame), receiver)
        return True

    def _deliver(self, enhanced: Sequence[Frame], receiver: FrameReceiver) -> None:
        """Hand enhanced frames to the encoder, and each cut once the frames before it are there."""
        for frame in enhanced:
            self._flush_cuts()
            entry = self._pending.popleft()
            assert not isinstance(entry, _Cut)
            number, source = entry
            receiver.release(source)
            self._encoder.put((number, frame))
            self._on_frame()
        self._flush_cuts()

    def _flush_cuts(self) -> None:
        while self._pending and isinstance(cut := self._pending[0], _Cut):
            self._encoder.put(cut)
            self._pending.popleft()

    def _cut_until(self, number: int) -> None:
        """Close the segment under way and skip those that hold no frame."""
        while self._number < number:
            last_hash = "" if self._last is None else frame_hash(self._last)
            statistics = {"num_frames": self._num_frames, "num_concealed": self._num_concealed}
            self._pending.append(_Cut(self._number, last_hash, statistics))
            self._last, self._num_frames, self._num_concealed = None, 0, 0
            self._number += 1
