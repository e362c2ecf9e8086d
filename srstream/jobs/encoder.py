"""The thread that encodes enhanced frames, and commits and journals the resulting segments."""

from __future__ import annotations

import contextlib
import contextvars
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

from srstream.frame import Frame
from srstream.jobs.store import JobStore, SegmentRecord, disk_errors
from srstream.media.types import OutputVideo
from srstream.media.write.encode import SegmentEncoder

SEGMENT_SUFFIX = ".mp4"
ABANDON_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Cut:
    """Segment `number` is complete."""

    number: int
    last_frame_hash: str


Item = tuple[int, Frame] | Cut
"""A frame with its segment's number, or the end of a segment."""


class EncoderThread(threading.Thread):
    """Encodes frames, closes segments at cuts and commits them.

    Args:
        queue_items: the capacity of the queue; `offer` refuses more and never blocks.
        on_progress: called in this thread when there may be room again, and at its end.
    """

    def __init__(
        self,
        store: JobStore,
        video: OutputVideo,
        *,
        threads: int,
        deterministic: bool,
        queue_items: int,
        on_segment: Callable[[SegmentRecord], None],
        on_progress: Callable[[], None],
    ) -> None:
        super().__init__(name="srstream-encode", daemon=True)
        self._context = contextvars.copy_context()
        """Gives this thread's log lines the job's name, if there is one."""
        self._store, self._video = store, video
        self._threads, self._deterministic = threads, deterministic
        self._queue: queue.Queue[Item | None] = queue.Queue(queue_items)
        self._on_segment, self._on_progress = on_segment, on_progress
        self._encoder: SegmentEncoder | None = None
        self._is_abandoned = self._has_ended = False
        self._error: BaseException | None = None

    @property
    def num_items(self) -> int:
        """The number of items that wait or are being encoded."""
        return self._queue.unfinished_tasks

    @property
    def has_ended(self) -> bool:
        """Whether the thread has ended: everything is on disk, or an error occurred."""
        return self._has_ended

    def offer(self, item: Item | None) -> bool:
        """Queue an item, None for the end; return False if the queue is full."""
        self.check()
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(item)
            return True
        return False

    def abandon(self, limit_seconds: float = ABANDON_SECONDS) -> None:
        """Drop what is not committed and stop; leave the thread behind if it hangs."""
        self._is_abandoned = True
        with contextlib.suppress(queue.Full):  # In that case it need not be woken.
            self._queue.put_nowait(None)
        self.join(limit_seconds)

    def check(self) -> None:
        """Raise this thread's error in the caller's thread."""
        if self._error is not None:
            raise self._error

    def run(self) -> None:
        self._context.run(self._work)

    def _work(self) -> None:
        try:
            while (item := self._next()) is not None:
                self._do(item)
                del item  # A frame is large.
                self._queue.task_done()
        except BaseException as error:
            self._error = error
        finally:
            with contextlib.suppress(OSError):  # An unfinished file that stays is swept later.
                if self._encoder is not None:
                    self._encoder.abandon()
            self._has_ended = True
            self._on_progress()

    def _next(self) -> Item | None:
        item = self._queue.get()
        self._on_progress()
        return None if self._is_abandoned else item

    def _do(self, item: Item) -> None:
        if isinstance(item, Cut):
            self._commit(item)
        else:
            self._encode(*item)

    def _encode(self, number: int, frame: Frame) -> None:
        with disk_errors(f"encoding segment {number}", self._store.directory):
            if self._encoder is None:
                path = self._store.temporary_segment(number)
                self._encoder = SegmentEncoder(
                    path, self._video, self._threads, self._deterministic
                )
            self._encoder.push(frame)

    def _commit(self, cut: Cut) -> None:
        encoder, self._encoder = self._encoder, None
        with disk_errors(f"encoding segment {cut.number}", self._store.directory):
            encoded = None if encoder is None else encoder.close()
        record = self._store.commit_segment(
            cut.number, encoded, SEGMENT_SUFFIX, cut.last_frame_hash
        )
        self._on_segment(record)
