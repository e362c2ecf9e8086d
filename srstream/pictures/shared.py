"""One picture as a job beside others: its source is read elsewhere, and its engine is shared.

`job.py` does the same in one process, with an engine of its own.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from srstream.config import JobConfig, ModelConfig
from srstream.errors import InterruptedJobError, MediaError, SrstreamError, UsageError
from srstream.frame import Frame
from srstream.jobs.context import JobContext, StopSignal
from srstream.jobs.events import OnEvent, Progress, SegmentDone, Started, printable
from srstream.jobs.failpoints import failpoint
from srstream.jobs.job import Result
from srstream.jobs.store import JobStore, disk_errors
from srstream.jobs.wakeup import Wakeup
from srstream.models.registry import resolved
from srstream.models.table import model_spec
from srstream.pictures.files import SUFFIXES
from srstream.pictures.job import PicturePlan, frame_of, interleaved, open_enhancer, plan_of
from srstream.pictures.steps import DecodePicture, EncodePicture, PixelFile, ReadHeader
from srstream.pictures.stills import check_still_output
from srstream.sandbox.life import cpu_seconds

_WAIT_SECONDS = 0.2
_COPIES = 5
"""How many times the size of its pixels a picture takes in memory while it is encoded."""
_LARGE_BYTES = 512 << 20
"""Memory that every process which reads a source has."""
_BEAT_SECONDS, _COMPUTING_SECONDS = 1.0, 600.0
"""For so long computing counts as life although no tile is completed."""


def enhance_shared(
    source: Path,
    output: Path,
    config: JobConfig,
    context: JobContext,
    *,
    overwrite: bool,
    on_event: OnEvent,
    stop: StopSignal,
) -> Result:
    """Enhance one picture; the output appears complete or not at all.

    A picture is a job of one segment: a stop that need not be at once comes before the network or
    after the output.

    Args:
        context: must name the folder of the unfinished job.

    Raises:
        SrstreamError: one of the tree in `srstream.errors`, its text meant for the user.
    """
    return _Job(source, output, config, context, overwrite, on_event, stop).run()


@dataclass(frozen=True, slots=True)
class _Job:
    """The steps of one job, in the order of `run`."""

    _source: Path
    _output: Path
    _config: JobConfig
    _place: JobContext
    _overwrite: bool
    _on_event: OnEvent
    _stop: StopSignal

    def run(self) -> Result:
        store = JobStore(
            self._output, directory=self._directory, open_folder=self._place.open_folder
        )
        try:
            if not store.was_published():
                self._make(store)
                store.publish(overwrite=self._overwrite)
            self._on_event(SegmentDone(number=0, num_segments=1, num_frames=1, start_seconds=0.0))
        finally:
            for path in (self._decoded_path, self._enlarged_path, store.assembled_path):
                path.unlink(missing_ok=True)
            store.close()
        return Result(self._output, num_frames=1, exit_code=0, receipt=None)

    @property
    def _directory(self) -> Path:
        assert self._place.directory is not None
        return self._place.directory

    @property
    def _decoded_path(self) -> Path:
        return self._directory / "decoded.pixels"

    @property
    def _enlarged_path(self) -> Path:
        return self._directory / "enlarged.pixels"

    def _make(self, store: JobStore) -> None:
        """Make the output's file in the job's folder."""
        self._check_output_is_free()
        self._tell("reading", 0)
        header = self._place.media.do(ReadHeader(), self._source)
        plan = plan_of(header, self._source, self._output, self._config)
        frame = frame_of(plan, self._decoded(plan))
        self._tell("enhancing", 0)
        with _Pulse(self._place.on_alive) as pulse:
            pixels = self._enlarged(plan, frame, pulse)
            with disk_errors("storing the enlarged picture", self._directory):
                enlarged = PixelFile.write(self._enlarged_path, pixels)
        del frame, pixels
        self._tell("enhancing", 1)
        self._tell("assembling", 0)
        encode = EncodePicture(
            pixels=enlarged,
            form=SUFFIXES[self._output.suffix.lower()],
            header=header,
            destination=store.assembled_path,
        )
        num_bytes = _COPIES * self._enlarged_path.stat().st_size
        if num_bytes > _LARGE_BYTES:
            self._place.media.allow_more(num_bytes)
        self._place.media.do(encode, self._source)
        failpoint("output.assembled")

    def _check_output_is_free(self) -> None:
        check_still_output(self._source, self._output)
        if os.path.lexists(self._output) and (not self._overwrite or self._output.is_dir()):
            raise UsageError(
                f"{self._output}: exists already and was not touched. "
                "Use --overwrite to replace it, or -o for another name."
            )

    def _decoded(self, plan: PicturePlan) -> Any:
        decode = DecodePicture(destination=self._decoded_path)
        found = self._place.media.do(decode, self._source)
        if (found.path, found.width, found.height) != (self._decoded_path, *plan.size):
            raise MediaError(
                f"{self._source}: its header says {plan.header.width}x{plan.header.height}, it "
                f"holds {found.width}x{found.height}."
            )
        with disk_errors("reading the decoded picture", self._directory):
            pixels = found.read()
            self._decoded_path.unlink()
        return pixels

    def _enlarged(self, plan: PicturePlan, frame: Frame, pulse: _Pulse) -> Any:
        model, place = _without_restore(resolved(self._config.model)), self._place
        engine, reason = place.open_engine(self._config.engine, model, model_spec(model.name))
        self._announce(plan, model, engine.capabilities.name, reason)
        with Wakeup() as wakeup:
            enhancer = open_enhancer(plan, frame, self._config, engine, wakeup.wake)
            stage = place.share(enhancer, wakeup.wake)
            try:
                self._check_stop(self._stop.is_requested())
                while not stage.has_room():
                    self._wait(wakeup, pulse)
                made = stage.push(frame)
                while not made:
                    self._wait(wakeup, pulse)
                    made = stage.collect()
            except InterruptedJobError:
                raise
            except SrstreamError as error:
                raise type(error)(f"{self._source}: {error}") from error
            finally:
                stage.close()
        return interleaved(made[0])

    def _check_stop(self, is_stopped: bool) -> None:
        if is_stopped:
            raise InterruptedJobError(f"{self._output}: interrupted; the picture begins anew.")

    def _wait(self, wakeup: Wakeup, pulse: _Pulse) -> None:
        """Wait until something may have happened.

        Raises:
            InterruptedJobError: the job is to end at once.
        """
        self._check_stop(self._stop.is_aborted())
        if wakeup.wait((), _WAIT_SECONDS):
            pulse.moved()
            self._place.on_alive()

    def _tell(self, stage: Any, done: int) -> None:
        self._on_event(Progress(stage=stage, done=done, total=1))

    def _announce(self, plan: PicturePlan, model: ModelConfig, engine: str, reason: str) -> None:
        assert not isinstance(model.restore, str)
        self._on_event(
            Started(
                input=printable(self._source),
                output=printable(self._output),
                width=plan.header.width,
                height=plan.header.height,
                output_width=plan.width,
                output_height=plan.height,
                model=self._config.model.name,
                engine=engine,
                engine_reason=reason,
                restore=model.restore,
                restore_reason="as asked for" if model.restore else "pictures are not mended",
                strength=1.0,
                detail=model.detail,
                codec=SUFFIXES[self._output.suffix.lower()],
                num_frames=1,
                num_frames_done=0,
                losses=[],
                notes=[],
            )
        )


class _Pulse:
    """Says from a thread that the job lives while this process computes, for a limited time.

    What is done to a large picture before and after the network takes long, and tells nothing.

    Args:
        on_alive: called about once a second.
    """

    def __init__(self, on_alive: Callable[[], None]) -> None:
        self._on_alive = on_alive
        self._moved_at = time.monotonic()
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._has_ended.set()
        self._thread.join()

    def moved(self) -> None:
        """Note that a tile was completed, or that the engine may be free."""
        self._moved_at = time.monotonic()

    def _beat(self) -> None:
        used_before = cpu_seconds("self")
        while not self._has_ended.wait(_BEAT_SECONDS):
            used = cpu_seconds("self")
            if used > used_before and time.monotonic() - self._moved_at < _COMPUTING_SECONDS:
                self._on_alive()
            used_before = used


def _without_restore(model: ModelConfig) -> ModelConfig:
    """Return the model as other jobs have it too, so that they share its engine."""
    return model.model_copy(update={"restore": 0.0}) if model.restore == "auto" else model
