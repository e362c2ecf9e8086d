"""One enhancement from start to end: plan, resume, work, assemble, verify, publish."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srstream.config import JobConfig
from srstream.errors import (
    DiskFullError,
    HostileInputError,
    InterruptedJobError,
    MediaError,
    ResumeMismatchError,
    SrstreamError,
    UsageError,
    VerifyError,
    error_to_wire,
)
from srstream.jobs.context import JobContext, StopSignal
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
from srstream.jobs.executor import Executor, LocalExecutor
from srstream.jobs.failpoints import failpoint
from srstream.jobs.planning.plan import JobPlan, fingerprint, in_words, make_plan
from srstream.jobs.segments import DecoderDiedError, SegmentTask
from srstream.jobs.store import JobStore, SegmentRecord, disk_errors, job_directory
from srstream.media.receipt import Receipt
from srstream.sandbox.decoder import DecodeOutcome
from srstream.sandbox.media_steps import Assemble, Verify
from srstream.sqlite import is_disk_full

_MAX_DECODER_DEATHS = 3
_NUM_VERIFY_SAMPLES = 8
_PROGRESS_SECONDS = 0.25
_OF_WEIGHTS = ("weights", "settings.model.")
"""Prefixes of the dotted names of a fingerprint's entries about the weights."""


@dataclass(frozen=True, slots=True)
class Result:
    """A finished job. `exit_code` is 0, or 4 when only a part could be delivered (salvage)."""

    output: Path
    num_frames: int
    exit_code: int
    receipt: Receipt | None


def enhance_file(
    source: Path,
    output: Path | None = None,
    config: JobConfig | None = None,
    *,
    unsuffixed: Path | None = None,
    overwrite: bool = False,
    restart: bool = False,
    on_event: OnEvent = ignore,
    stop: StopSignal | None = None,
    context: JobContext | None = None,
) -> Result:
    """Enhance one video file; resumes an unfinished job of the same output.

    Args:
        unsuffixed: the output's path without the suffix, which its container decides; for where
            `output` is None and the default, beside the source, is not wanted.

    Raises:
        SrstreamError: one of the tree in `srstream.errors`, its text meant for the user.
    """
    started = time.monotonic()
    plan, place = None, context or JobContext()
    try:
        plan = make_plan(
            source,
            output,
            config or JobConfig(),
            unsuffixed=unsuffixed,
            on_read=_Throttle(on_event, "reading"),
            media=place.media,
            open_engine=place.open_engine,
            work_folder=place.directory,
        )
        return _Job(plan, place, on_event, stop or StopSignal(), overwrite, restart, started).run()
    except SrstreamError as error:
        resumable = plan is not None and _directory(plan.output.path, place).exists()
        kind, text = error_to_wire(error)
        on_event(Failed(kind=kind, text=text, exit_code=error.exit_code, resumable=resumable))
        raise
    except Exception as error:
        if is_disk_full(error):  # where a socket, a log or a lock did not fit
            raise DiskFullError(
                f"{source}: the disk became full ({error}); nothing was published. "
                "Free some space and run the same command again: it resumes."
            ) from error
        raise


class _Job:
    """The steps of one job, in the order of `run`."""

    def __init__(
        self,
        plan: JobPlan,
        context: JobContext,
        on_event: OnEvent,
        stop: StopSignal,
        overwrite: bool,
        restart: bool,
        started: float,
    ) -> None:
        self._plan, self._place = plan, context
        self._on_event, self._stop = on_event, stop
        self._overwrite, self._restart, self._started = overwrite, restart, started
        self._output = plan.output.path
        self._num_enhanced = 0
        self._is_resumed = False

    def run(self) -> Result:
        self._check_output_is_free()
        store = JobStore(
            self._output,
            directory=self._place.directory,
            open_folder=self._place.open_folder,
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
        except DiskFullError:
            store.assembled_path.unlink(missing_ok=True)  # it takes space and is made again
            raise
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
        """Resume only a job with the same source, settings, weights and libraries."""
        wanted, found = fingerprint(self._plan), store.get("fingerprint")
        differences = _differences(found or {}, wanted) if found != wanted else set()
        if self._place.may_change_weights:
            differences -= {name for name in differences if name.startswith(_OF_WEIGHTS)}
        if found is not None and differences and not self._restart:
            differing = ", ".join(sorted({in_words(name) for name in differences}))
            raise ResumeMismatchError(
                f"{self._output}: an unfinished job exists that differs in: {differing}. "
                "Use --restart to start over, or the former settings to resume it."
            )
        if found is None or self._restart:
            store.forget()
        self._is_resumed = found is not None and not self._restart
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
                ended = self._execute(store, done)
            except InterruptedJobError as error:
                raise self._interrupted(store) from error
            except DecoderDiedError as error:
                self._place.on_death(str(error))
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
                raise self._interrupted(store)
            store.put("outcome", ended.model_dump())

    def _interrupted(self, store: JobStore) -> InterruptedJobError:
        kept = sum(len(record.file.pts) for record in store.segments())
        return InterruptedJobError(
            f"{self._output}: interrupted; {kept} of {self._plan.num_frames} frames are kept. "
            "Run the same command again to go on."
        )

    def _execute(self, store: JobStore, done: list[SegmentRecord]) -> DecodeOutcome | None:
        """Process the remaining segments; None if a stop was requested."""
        num_done = sum(len(record.file.pts) for record in done)
        total = self._plan.num_frames
        progress = _Throttle(self._on_event, "enhancing", num_before=num_done, total=total)
        self._num_enhanced = 0

        def on_frame() -> None:
            self._num_enhanced += 1
            progress(num_done + self._num_enhanced, total)

        anchor = next((record for record in reversed(done) if record.file.pts), None)
        executor: Executor = LocalExecutor(
            self._plan,
            store,
            self._place,
            self._stop,
            on_segment=self._on_segment,
            on_note=lambda text: self._on_event(Note(text=text)),
            on_frame=on_frame,
        )
        try:
            executor.start(SegmentTask(len(done), anchor))
            return executor.wait()
        finally:
            executor.close()

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
        receipt = self._place.media.do(verify, path, _Throttle(self._on_event, "verifying"))
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
        video = plan.source.video
        self._on_event(
            Started(
                input=printable(plan.source.path),
                output=printable(self._output),
                width=video.width,
                height=video.height,
                output_width=plan.output.size[0],
                output_height=plan.output.size[1],
                model=plan.model_name,
                engine=plan.engine.capabilities.name,
                engine_reason=plan.engine_reason,
                restore=plan.restore.value,
                restore_reason=plan.restore.reason,
                strength=plan.restore.strength,
                detail=plan.config.model.detail,
                codec=plan.output.codec,
                num_frames=plan.num_frames,
                num_frames_done=sum(len(record.file.pts) for record in done),
                is_resumed=self._is_resumed,
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
    """Reduces calls at every step to a few progress events per second, after one for the start."""

    def __init__(
        self, on_event: OnEvent, stage: Any, *, num_before: int = 0, total: int | None = None
    ) -> None:
        self._on_event, self._stage = on_event, stage
        self._before = num_before
        self._started = self._last = time.monotonic()
        on_event(Progress(stage=stage, done=num_before, total=total))

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


def _directory(output: Path, context: JobContext) -> Path:
    return context.directory or job_directory(output)


def _is_publishing(output: Path, context: JobContext) -> bool:
    """Return whether an unfinished job of `output` was killed while naming the output."""
    directory = _directory(output, context)
    if not directory.exists():
        return False
    with JobStore(output, directory=directory, open_folder=context.open_folder) as store:
        return bool(store.get("state") == "publishing")


def _differences(found: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> set[str]:
    """Return the dotted names of the entries in which two fingerprints differ."""
    names: set[str] = set()
    for key in found.keys() | wanted.keys():
        a, b = found.get(key), wanted.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            names |= _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            names.add(f"{prefix}{key}")
    return names
