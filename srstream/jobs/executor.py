"""Executors process the segments of a job: in this process, or elsewhere.

`Executor` is the interface, `LocalExecutor` the implementation.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

from srstream.enhancer.enhancer import Enhancer
from srstream.enhancer.stage import Stage
from srstream.jobs.context import JobContext, StopSignal
from srstream.jobs.encoder import EncoderThread
from srstream.jobs.planning.plan import JobPlan
from srstream.jobs.segments import SegmentTask, Worker
from srstream.jobs.store import JobStore, SegmentRecord
from srstream.jobs.wakeup import Wakeup
from srstream.sandbox.decoder import DecodeOutcome, DecodeRequest

# Maximum number of source frames in transit between the processes: enough to hide a hiccup, few
# enough that a short clip reaches it too.
_WINDOW_FRAMES = 24
_WINDOW_BYTES = 24 << 20
_QUEUE_BYTES = 48 << 20


class Executor(Protocol):
    """Processes one `SegmentTask`: call `start`, then `wait`, and `close` in every case."""

    def start(self, task: SegmentTask) -> None:
        """Prepare the work on a task."""
        ...

    def wait(self) -> DecodeOutcome | None:
        """Return at the end of the input, or None after a stop at the end of a segment.

        Raises:
            DecoderDiedError: what is not in the store has to be done again.
            SrstreamError: the task failed.
        """
        ...

    def close(self) -> None:
        """Free what the executor holds."""
        ...


class LocalExecutor:
    """Processes a task in this process, with a child that decodes and a thread that encodes.

    Args:
        on_segment: called with each segment that is safely on disk, in the encoder's thread.
        on_note: called with each sentence that the user should read.
        on_frame: called for each frame that the encoder has been given.
    """

    def __init__(
        self,
        plan: JobPlan,
        store: JobStore,
        place: JobContext,
        stop: StopSignal,
        *,
        on_segment: Callable[[SegmentRecord], None],
        on_note: Callable[[str], None],
        on_frame: Callable[[], None],
    ) -> None:
        self._plan, self._store, self._place, self._stop = plan, store, place, stop
        self._on_segment, self._on_note, self._on_frame = on_segment, on_note, on_frame
        self._wakeup = Wakeup()
        self._task: SegmentTask | None = None
        self._worker: Worker | None = None

    def start(self, task: SegmentTask) -> None:
        source = self._plan.source.video
        source_bytes = source.layout.frame_bytes(source.width, source.height)
        encoder = self._make_encoder()
        stage = self._make_stage()
        encoder.start()
        self._task = task
        self._worker = Worker(
            self._store,
            self._plan.cuts,
            stage,
            encoder,
            self._wakeup,
            window_bytes=min(_WINDOW_BYTES, _WINDOW_FRAMES * source_bytes),
            on_note=self._on_note,
            on_frame=self._on_frame,
            should_stop=self._stop.is_requested,
            is_aborted=self._stop.is_aborted,
            on_alive=self._place.on_alive,
            stall_seconds=self._place.stall_seconds,
        )

    def wait(self) -> DecodeOutcome | None:
        assert self._worker is not None and self._task is not None
        return self._worker.run(self._decode_request(self._task), self._task.first_number)

    def close(self) -> None:
        self._wakeup.close()

    def _make_encoder(self) -> EncoderThread:
        plan, video = self._plan, self._plan.output.video
        frame_bytes = video.layout.frame_bytes(video.width, video.height)
        return EncoderThread(
            self._store,
            video,
            threads=plan.config.engine.threads or len(os.sched_getaffinity(0)),
            deterministic=plan.config.deterministic,
            queue_items=max(2, min(16, _QUEUE_BYTES // frame_bytes)),
            on_segment=self._on_segment,
            on_progress=self._wakeup.wake,
        )

    def _make_stage(self) -> Stage:
        plan = self._plan
        enhancer = Enhancer(
            plan.engine,
            plan.source.video.form,
            plan.output.video.form,
            max_memory_bytes=plan.config.engine.max_memory_bytes,
            reuse=plan.config.reuse,
            on_done=self._wakeup.wake,
        )
        return self._place.share(enhancer, self._wakeup.wake)

    def _decode_request(self, task: SegmentTask) -> DecodeRequest:
        plan, anchor = self._plan, task.anchor
        return DecodeRequest(
            # The path is not resolved: a descriptor's path must stay one.
            path_hex=os.fsencode(plan.source.path.absolute()).hex(),
            source_descriptor=self._place.source_descriptor,
            container=plan.source.container,
            memory_bytes=self._place.decoder_memory_bytes,
            video=plan.source.video,
            config=plan.config.source,
            window=plan.window,
            directory_descriptor=-1,
            anchor_pts=None if anchor is None else anchor.file.pts[-1],
            anchor_hash=None if anchor is None else anchor.last_frame_hash,
        )
