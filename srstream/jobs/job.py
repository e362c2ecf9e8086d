"""One enhancement from start to end: plan, resume, work, assemble, verify, publish."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from srstream.config import JobConfig
from srstream.engines.table import choose_engine
from srstream.enhancer.enhancer import Enhancer
from srstream.enhancer.stage import Stage
from srstream.errors import (
    HostileInputError,
    InterruptedJobError,
    MediaError,
    ResumeMismatchError,
    SrstreamError,
    UsageError,
    VerifyError,
)
from srstream.jobs.encoder import EncoderThread
from srstream.jobs.events import (
    Done,
    Failed,
    Note,
    OnEvent,
    Progress,
    SegmentDone,
    Started,
    Verified,
    ignore,
    printable,
)
from srstream.jobs.failpoints import failpoint
from srstream.jobs.plan import JobPlan, OpenEngine, fingerprint, make_plan
from srstream.jobs.segments import DecoderDiedError, Worker
from srstream.jobs.stall import STALL_SECONDS
from srstream.jobs.store import JobStore, SegmentRecord, disk_errors, job_directory
from srstream.jobs.wakeup import Wakeup
from srstream.media.receipt import Receipt
from srstream.sandbox.decoder import DecodeOutcome, DecodeRequest
from srstream.sandbox.steps import Assemble, InProcess, MediaSteps, Verify

# Frames of the source that may be under way between the processes: enough to hide a hiccup, few
# enough that a short clip fills them too.
_WINDOW_FRAMES = 24
_WINDOW_BYTES = 24 << 20
_QUEUE_BYTES = 48 << 20
_MAX_DECODER_DEATHS = 3
_NUM_VERIFY_SAMPLES = 8
_PROGRESS_SECONDS = 0.25
_OF_WEIGHTS = ("weights", "settings.model.")
"""Entries of a fingerprint, by how their dotted names begin."""


@dataclass(frozen=True, slots=True)
class Result:
    """A finished job. `exit_code` is 0, or 4 when only a part could be delivered (salvage)."""

    output: Path
    num_frames: int
    exit_code: int
    receipt: Receipt | None


@dataclass(slots=True)
class StopSignal:
    """How a caller asks a running job to end: at the next segment's end, or at once."""

    _soon: threading.Event = field(default_factory=threading.Event)
    _now: threading.Event = field(default_factory=threading.Event)

    def request(self) -> None:
        """At the end of the segment under way."""
        self._soon.set()

    def request_now(self) -> None:
        """Within a second; the segment under way is lost."""
        self._soon.set()
        self._now.set()

    def is_requested(self) -> bool:
        return self._soon.is_set()

    def is_aborted(self) -> bool:
        return self._now.is_set()


@dataclass(frozen=True, slots=True)
class Workplace:
    """Where and with what a job is done; the daemon's differs from the command line's."""

    media: MediaSteps = field(default_factory=InProcess)
    """Who looks at the source and assembles the output."""
    open_engine: OpenEngine = choose_engine
    directory: Path | None = None
    """Of the unfinished job; None: beside the output."""
    output_folder: int | None = None
    """Descriptor of the output's folder; None: found by its name."""
    source_descriptor: int | None = None
    """The source, opened; None: found by its name."""
    share: Callable[[Enhancer, Callable[[], None]], Stage] = lambda enhancer, wake: enhancer
    """Wraps the enhancer of a job that shares its engine with others; given what to call when the
    engine may be free for it."""
    on_alive: Callable[[], None] = lambda: None
    """Called at least once a second as long as the work on segments gets on."""
    stall_seconds: float = STALL_SECONDS
    """In which something must get on there, or it ends."""
    may_change_weights: bool = False
    """A job that was begun with other weights goes on with these."""
    keeps_directory: bool = False
    """The caller deletes the job's folder when the result is known to be on record."""
    decoder_memory_bytes: int | None = None


def enhance_file(
    source: Path,
    output: Path | None = None,
    config: JobConfig | None = None,
    *,
    overwrite: bool = False,
    restart: bool = False,
    on_event: OnEvent = ignore,
    stop: StopSignal | None = None,
    workplace: Workplace | None = None,
) -> Result:
    """Enhance one video file; resumes an unfinished job of the same output.

    Raises:
        SrstreamError: one of the tree in `srstream.errors`, its text meant for the user.
    """
    started = time.monotonic()
    plan, place = None, workplace or Workplace()
    try:
        plan = make_plan(
            source,
            output,
            config or JobConfig(),
            on_read=_Throttle(on_event, "reading"),
            media=place.media,
            open_engine=place.open_engine,
            work_folder=place.directory,
        )
        return _Job(plan, place, on_event, stop or StopSignal(), overwrite, restart, started).run()
    except SrstreamError as error:
        resumable = plan is not None and _directory(plan.output.path, place).exists()
        on_event(
            Failed(
                kind=type(error).__name__,
                text=str(error),
                exit_code=error.exit_code,
                resumable=resumable,
            )
        )
        raise


class _Job:
    """The steps of one job, in the order of `run`."""

    def __init__(
        self,
        plan: JobPlan,
        workplace: Workplace,
        on_event: OnEvent,
        stop: StopSignal,
        overwrite: bool,
        restart: bool,
        started: float,
    ) -> None:
        self._plan, self._place = plan, workplace
        self._on_event, self._stop = on_event, stop
        self._overwrite, self._restart, self._started = overwrite, restart, started
        self._output = plan.output.path
        self._num_enhanced = 0

    def run(self) -> Result:
        self._check_output_is_free()
        store = JobStore(
            self._output,
            directory=self._place.directory,
            output_folder=self._place.output_folder,
            fresh=self._restart,
        )
        try:
            if store.was_published():
                return self._finish(store, store.get("result"))
            self._match(store)
            outcome = self._work(store)
            receipt = self._assemble(store, outcome)
            result = self._result(store, outcome, receipt)
            store.put("result", result)
            store.publish(overwrite=self._overwrite)
            return self._finish(store, result, receipt)
        finally:
            store.close()

    def _check_output_is_free(self) -> None:
        if self._output.is_dir():
            raise UsageError(f"{self._output}: this is a folder; give the output a name in it.")
        if not os.path.lexists(self._output) or self._overwrite:
            return
        if not _is_publishing(self._output, self._place):
            raise UsageError(
                f"{self._output}: exists already and was not touched. "
                "Use --overwrite to replace it, or -o for another name."
            )

    def _match(self, store: JobStore) -> None:
        """Go on only with a job made from the same source, settings, weights and libraries."""
        wanted, found = fingerprint(self._plan), store.get("fingerprint")
        differences = _differences(found or {}, wanted) if found != wanted else set()
        if self._place.may_change_weights:
            differences -= {name for name in differences if name.startswith(_OF_WEIGHTS)}
        if found is not None and differences and not self._restart:
            differing = ", ".join(sorted(differences))
            raise ResumeMismatchError(
                f"{self._output}: an unfinished job exists that differs in: {differing}. "
                "Use --restart to begin anew, or the former settings to resume it."
            )
        if found is None or self._restart:
            store.forget()
        if found != wanted:
            store.put("fingerprint", wanted)
        store.sweep()

    def _work(self, store: JobStore) -> DecodeOutcome:
        """Enhance all segments that are not done yet."""
        plan = self._plan
        deaths = 0
        announced = False
        while True:
            done = store.segments()
            if not announced:
                self._announce(done)
                announced = True
            outcome = store.get("outcome")
            if outcome is not None and len(done) == len(plan.cuts):
                return DecodeOutcome.model_validate(outcome)
            try:
                ended = self._run_worker(store, done)
            except DecoderDiedError as error:
                deaths = deaths + 1 if len(store.segments()) == len(done) else 1
                if deaths >= _MAX_DECODER_DEATHS:
                    raise HostileInputError(
                        f"{plan.source.path}: {error} It happened {deaths} times at the same "
                        "place, so the input may be hostile or memory too short. "
                        "The same command resumes."
                    ) from error
                self._on_event(Note(text=f"{error} Decoding starts again at the last segment."))
                store.sweep()
                continue
            if ended is None:
                raise InterruptedJobError(
                    f"{self._output}: interrupted; {len(store.segments())} of {len(plan.cuts)} "
                    "segments are done. Run the same command again to go on."
                )
            store.put("outcome", ended.model_dump())

    def _run_worker(self, store: JobStore, done: list[SegmentRecord]) -> DecodeOutcome | None:
        plan = self._plan
        num_done = sum(len(record.file.pts) for record in done)
        progress = _Throttle(self._on_event, "enhancing", num_before=num_done)
        self._num_enhanced = 0

        def on_frame() -> None:
            self._num_enhanced += 1
            progress(num_done + self._num_enhanced, plan.num_frames)

        with Wakeup() as wakeup:
            worker = self._make_worker(store, wakeup, on_frame)
            return worker.run(self._decode_request(done), first_number=len(done))

    def _make_worker(self, store: JobStore, wakeup: Wakeup, on_frame: Callable[[], None]) -> Worker:
        plan = self._plan
        video = plan.output.video
        frame_bytes = video.layout.frame_bytes(video.width, video.height)
        source = plan.source.video
        source_bytes = source.layout.frame_bytes(source.width, source.height)
        encoder = EncoderThread(
            store,
            video,
            threads=plan.config.engine.threads or len(os.sched_getaffinity(0)),
            deterministic=plan.config.deterministic,
            queue_items=max(2, min(16, _QUEUE_BYTES // frame_bytes)),
            on_segment=self._on_segment,
            on_progress=wakeup.wake,
        )
        stage = self._make_stage(wakeup.wake)
        encoder.start()
        return Worker(
            store,
            plan.cuts,
            stage,
            encoder,
            wakeup,
            window_bytes=min(_WINDOW_BYTES, _WINDOW_FRAMES * source_bytes),
            on_note=lambda text: self._on_event(Note(text=text)),
            on_frame=on_frame,
            should_stop=self._stop.is_requested,
            is_aborted=self._stop.is_aborted,
            on_alive=self._place.on_alive,
            stall_seconds=self._place.stall_seconds,
        )

    def _decode_request(self, done: list[SegmentRecord]) -> DecodeRequest:
        plan = self._plan
        anchor = next((record for record in reversed(done) if record.file.pts), None)
        return DecodeRequest(
            # Not resolved: a descriptor's path must stay one.
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

    def _make_stage(self, wake: Callable[[], None]) -> Stage:
        plan = self._plan
        enhancer = Enhancer(
            plan.engine,
            plan.source.video.form,
            plan.output.video.form,
            max_memory_bytes=plan.config.engine.max_memory_bytes,
            reuse=plan.config.reuse,
            on_done=wake,
        )
        return self._place.share(enhancer, wake)

    def _assemble(self, store: JobStore, outcome: DecodeOutcome) -> Receipt:
        """Join the segments with the copied streams and compare the whole with the source."""
        plan = self._plan
        files = [record.file for record in store.segments() if record.file.pts]
        if not files:
            raise MediaError(f"{plan.source.path}: not one frame could be decoded.")
        path, output = plan.source.path, store.assembled_path
        assemble = Assemble(
            source=plan.source,
            plan=plan.output,
            segments=tuple(files),
            destination=output,
            window=plan.window,
        )
        with disk_errors("assembling the output", store.directory):
            self._place.media.do(assemble, path, _Throttle(self._on_event, "assembling"))
        failpoint("output.assembled")
        verify = Verify(
            output=output, window=plan.window, sample=_NUM_VERIFY_SAMPLES, plan=plan.output
        )
        receipt = self._place.media.do(verify, path)
        receipt = receipt.model_copy(update={"output": printable(self._output)})
        partial = self._is_partial(outcome)
        self._on_event(
            Verified(
                ok=receipt.ok, summary=receipt.summary, receipt=receipt.model_dump(mode="json")
            )
        )
        if not receipt.ok and not partial:
            raise VerifyError(
                f"{self._output}: not published, because it does not hold what the source holds: "
                f"{'; '.join(receipt.problems)}. The result lies in {store.assembled_path}."
            )
        return receipt

    def _is_partial(self, outcome: DecodeOutcome) -> bool:
        return outcome.stopped_at_seconds is not None or self._plan.is_truncated

    def _result(self, store: JobStore, outcome: DecodeOutcome, receipt: Receipt) -> dict[str, Any]:
        return {
            "num_frames": sum(len(record.file.pts) for record in store.segments()),
            "num_corrupt_packets": outcome.num_corrupt_packets,
            "num_concealed": outcome.num_concealed,
            "exit_code": 4 if self._is_partial(outcome) else 0,
            "receipt": receipt.model_dump(mode="json", exclude_computed_fields=True),
        }

    def _finish(
        self, store: JobStore, result: dict[str, Any], receipt: Receipt | None = None
    ) -> Result:
        if not self._place.keeps_directory:
            store.remove()
        receipt = receipt or Receipt.model_validate(result["receipt"])
        seconds = time.monotonic() - self._started
        fps = self._num_enhanced / seconds if self._num_enhanced else None
        self._on_event(
            Done(
                output=printable(self._output),
                num_frames=result["num_frames"],
                seconds=seconds,
                fps=fps,
                num_corrupt_packets=result["num_corrupt_packets"],
                num_concealed=result["num_concealed"],
                exit_code=result["exit_code"],
            )
        )
        return Result(self._output, result["num_frames"], result["exit_code"], receipt)

    def _announce(self, done: list[SegmentRecord]) -> None:
        plan = self._plan
        video, output = plan.source.video, plan.output.video
        self._on_event(
            Started(
                input=printable(plan.source.path),
                output=printable(self._output),
                width=video.width,
                height=video.height,
                output_width=output.width,
                output_height=output.height,
                model=plan.model.name,
                engine=plan.engine.capabilities.name,
                engine_reason=plan.engine_reason,
                restore=plan.restore.value,
                restore_reason=plan.restore.reason,
                strength=plan.restore.strength,
                detail=plan.config.model.detail,
                codec=output.codec,
                num_frames=plan.num_frames,
                num_frames_done=sum(len(record.file.pts) for record in done),
                losses=list(plan.output.losses),
                notes=[*plan.source.warnings, *plan.output.notes],
            )
        )

    def _on_segment(self, record: SegmentRecord) -> None:
        first = record.file.pts[0] if record.file.pts else 0
        self._on_event(
            SegmentDone(
                number=record.number,
                num_segments=len(self._plan.cuts),
                num_frames=len(record.file.pts),
                start_seconds=float(first * self._plan.source.video.time_base),
            )
        )


class _Throttle:
    """Turns every step into at most a few progress events a second."""

    def __init__(self, on_event: OnEvent, stage: Any, *, num_before: int = 0) -> None:
        self._on_event, self._stage = on_event, stage
        self._before = num_before
        self._started = self._last = time.monotonic()

    def __call__(self, done: int, total: int | None) -> None:
        now = time.monotonic()
        if now - self._last < _PROGRESS_SECONDS and done != total:
            return
        self._last = now
        fps = (done - self._before) / max(now - self._started, 1e-6)
        eta = (total - done) / fps if total is not None and fps > 0 else None
        self._on_event(
            Progress(stage=self._stage, done=done, total=total, fps=fps, eta_seconds=eta)
        )


def _directory(output: Path, workplace: Workplace) -> Path:
    return workplace.directory or job_directory(output)


def _is_publishing(output: Path, workplace: Workplace) -> bool:
    """Whether an unfinished job of `output` was killed while it gave the output its name."""
    directory = _directory(output, workplace)
    if not directory.exists():
        return False
    with JobStore(output, directory=directory, output_folder=workplace.output_folder) as store:
        return bool(store.get("state") == "publishing")


def _differences(found: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> set[str]:
    """Dotted names of the entries in which two fingerprints differ."""
    names: set[str] = set()
    for key in found.keys() | wanted.keys():
        a, b = found.get(key), wanted.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            names |= _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            names.add(f"{prefix}{key}")
    return names


__all__ = ["Result", "StopSignal", "enhance_file"]
