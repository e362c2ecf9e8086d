"""One job of the daemon, done in a thread of an engine worker.

It does what `srstream enhance` does, but opens the source and the output's folder beneath the
configured roots, reads the source in confined child processes only, and shares its engine.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from srstream.config import EngineConfig, JobConfig, ModelConfig
from srstream.daemon.folders.roots import Roots
from srstream.daemon.settings import SecuritySettings
from srstream.daemon.workers.link import Ended, JobOrder
from srstream.engines.contract import Engine
from srstream.engines.pool import EnginePool, Lease
from srstream.enhancer.enhancer import Enhancer
from srstream.enhancer.fair_queue import Member, Round, SharedStage, SlicedStage
from srstream.enhancer.stage import Stage
from srstream.errors import (
    DamagedError,
    FolderGoneError,
    InterruptedJobError,
    RefusedError,
    ResumeMismatchError,
    SrstreamError,
    StalledError,
    error_to_wire,
)
from srstream.files import write_whole
from srstream.jobs.context import JobContext, StopSignal
from srstream.jobs.events import Event, Note, Progress, SegmentDone, Started, printable
from srstream.jobs.job import Result, enhance_file
from srstream.jobs.store import disk_errors
from srstream.models.registry import resolved
from srstream.models.table import ModelSpec
from srstream.pictures.shared import enhance_shared
from srstream.pictures.steps import PICTURE_CHILD
from srstream.pictures.stills import is_still
from srstream.protocol.control import JobProgress
from srstream.sandbox.media_steps import MEDIA_CHILD
from srstream.sandbox.steps import InChild

logger = logging.getLogger(__name__)

_PINNED_NAME = "weights.onnx"
_PINNED_MODEL_NAME = "model.json"


class RunningJob:
    """A job from its order to its end. The thread that calls `run` does it.

    Args:
        tell: is called with the job's events, from its threads.
        pinned: is called with the SHA-256 of the weights that the job uses.
    """

    def __init__(
        self,
        order: JobOrder,
        roots: Roots,
        security: SecuritySettings,
        pool: EnginePool,
        round_: Round,
        tell: Callable[[Event], None],
        pinned: Callable[[str], None],
    ) -> None:
        self.order = order
        self._roots, self._security, self._pool = roots, security, pool
        self._member: Member = round_.join(order.priority)
        self._tell, self._pinned = tell, pinned
        self._stop = StopSignal()
        self._enhancer: Enhancer | None = None
        self._stage, self._stage_since = "", time.monotonic()
        self.advance = 0
        """Grows with every sign of progress."""
        self.progress: JobProgress | None = None
        self.segment: int | None = None
        """Number of the segment under way; None before the first."""
        self._num_done = self._num_stored = 0
        """Frames of the output that are done, and those of them that are in segments on the disk,
        in earlier attempts too."""
        self.num_frames = self.num_pixels = self.num_pixels_computed = 0
        self.stage_seconds: dict[str, float] = {}

    def stop(self, *, now: bool) -> None:
        """End the job at the end of its segment, or `now`, within a second."""
        if now:
            self._stop.request_now()
        else:
            self._stop.request()

    def weigh(self, priority: int) -> None:
        """Give the job the share of the engine that a priority stands for."""
        self._member.weigh(priority)

    def run(self) -> Ended:
        """Do the job; the returned message says how it ended, whatever happened."""
        try:
            try:
                result = self._enhance(restart=False)
            except (ResumeMismatchError, DamagedError) as error:
                self._tell(Note(text=f"{error} The job begins anew."))
                result = self._enhance(restart=True)
        except InterruptedJobError as error:
            return self._ended("stopped", error)
        except Exception as error:
            if not self.order.directory.is_dir():
                return self._ended("failed", _work_gone(self.order.directory))
            if not isinstance(error, SrstreamError):
                logger.exception("an error inside srstream")
            return self._ended("failed", error)
        finally:
            self._enter_stage("")
            self._member.close()
        receipt = None if result.receipt is None else result.receipt.model_dump(mode="json")
        return Ended(
            job=self.order.id,
            outcome="done",
            result={
                "output": str(self.order.output),
                "num_frames": result.num_frames,
                "exit_code": result.exit_code,
                "receipt": receipt,
            },
        )

    def _ended(self, outcome: Any, error: Exception) -> Ended:
        kind, text = error_to_wire(error)
        if not isinstance(error, SrstreamError):
            text = f"an error inside srstream ({kind}: {error}); the log has more."
        return Ended(job=self.order.id, outcome=outcome, kind=kind, text=text)

    def _enhance(self, *, restart: bool) -> Result:
        order = self.order
        with disk_errors("creating the job's folder", order.directory):
            order.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        source = self._roots.open_source(order.input)
        try:
            folder = self._open_folder()
            try:
                if is_still(order.input, source):
                    return self._enhance_picture(source, folder)
                return self._enhance_video(source, folder, restart=restart)
            finally:
                os.close(folder)
        finally:
            os.close(source)

    def _enhance_video(self, source: int, folder: int, *, restart: bool) -> Result:
        order = self.order
        with self._opened(MEDIA_CHILD, SharedStage, source, folder) as context:
            return enhance_file(
                order.input,
                order.output,
                self._config(),
                overwrite=order.overwrite,
                restart=restart,
                on_event=self._on_event,
                stop=self._stop,
                context=context,
            )

    def _enhance_picture(self, source: int, folder: int) -> Result:
        order = self.order
        with self._opened(PICTURE_CHILD, SlicedStage, source, folder) as context:
            return enhance_shared(
                order.input,
                order.output,
                self._config(),
                context,
                overwrite=order.overwrite,
                on_event=self._on_event,
                stop=self._stop,
            )

    @contextmanager
    def _opened(
        self, child: str, stage: type[SharedStage | SlicedStage], source: int, folder: int
    ) -> Iterator[JobContext]:
        """Provide what the job needs, and free it.

        Args:
            child: the module of the process that reads the source.
            stage: the class that gives the job its share of the engine.
        """
        order = self.order
        media = InChild(
            child,
            order.input,
            source,
            order.directory,
            memory_bytes=self._security.decoder_memory_bytes,
            on_advance=self._advanced,
            is_aborted=self._stop.is_aborted,
        )
        try:
            with self._pool.lease() as lease:
                yield JobContext(
                    media=media,
                    open_engine=partial(self._open_engine, lease),
                    directory=order.directory,
                    open_folder=partial(self._open_folder, folder),
                    source_descriptor=source,
                    share=partial(self._share, stage),
                    on_alive=self._advanced,
                    on_death=partial(logger.warning, "%s"),
                    may_change_weights=order.may_change_weights,
                    keeps_directory=True,
                    decoder_memory_bytes=self._security.decoder_memory_bytes,
                )
        except StalledError:
            self._enhancer = None  # closing it would wait for the call that hangs
            raise
        finally:
            media.close()
            self._count()

    def _open_folder(self, opened: int | None = None) -> int:
        """Open the output's folder; a job whose folder is missing waits until it is there.

        Args:
            opened: the folder that the path led to when the job began. If the path leads nowhere
                any more, or out of the roots, this one takes the result, unless it is deleted.

        Raises:
            FolderGoneError: the folder is missing.
        """
        folder = self.order.output.parent
        try:
            return self._roots.open_folder(folder)
        except FolderGoneError:
            raise
        except RefusedError as error:
            if opened is not None and os.fstat(opened).st_nlink:
                return os.dup(opened)
            if os.path.lexists(folder):
                raise
            raise FolderGoneError(
                f"{printable(folder)}: this folder is missing; the job goes on when it is there."
            ) from error

    def _config(self) -> JobConfig:
        """The job's settings within the daemon's limits, with the weights that it began with."""
        config, security = self.order.config, self._security
        source = config.source.model_copy(
            update={
                "max_pixels": min(config.source.max_pixels, security.max_pixels),
                "max_streams": min(config.source.max_streams, security.max_streams),
                "max_duration_seconds": security.max_duration_seconds,
            }
        )
        model = pinned_model(
            config.model, self.order.directory, renew=self.order.may_change_weights
        )
        return config.model_copy(update={"source": source, "model": model})

    def _open_engine(
        self, lease: Lease, config: EngineConfig, model: ModelConfig, spec: ModelSpec
    ) -> tuple[Engine, str]:
        engine, reason = lease.open(config, model, spec)
        self._pinned(engine.capabilities.weights_sha256)
        return engine, reason

    def _share(
        self,
        stage: type[SharedStage | SlicedStage],
        enhancer: Enhancer,
        wake: Callable[[], None],
    ) -> Stage:
        self._count()
        self._enhancer = enhancer
        return stage(enhancer, self._member, wake)

    def _count(self) -> None:
        """Add the enhancer's counts to the job's, then close the enhancer."""
        enhancer, self._enhancer = self._enhancer, None
        if enhancer is not None:
            self.num_pixels += enhancer.num_pixels
            self.num_pixels_computed += enhancer.num_pixels_computed
            enhancer.close()

    def _advanced(self) -> None:
        self.advance += 1

    def _on_event(self, event: Event) -> None:
        self._advanced()
        if isinstance(event, Started):
            self._num_done = self._num_stored = event.num_frames_done
        if isinstance(event, SegmentDone):
            self.segment = event.number + 1
            self._num_stored += event.num_frames
            self._count_frames(max(self._num_done, self._num_stored))
        if not isinstance(event, Progress):
            self._tell(event)
            return
        self._enter_stage(event.stage)
        if event.stage == "enhancing":
            self._count_frames(event.done)
        self.progress = JobProgress(
            stage=event.stage, done=event.done, total=event.total, fps=event.fps
        )

    def _count_frames(self, num_done: int) -> None:
        """Count what was done since the last time; the number falls where work is done again."""
        self.num_frames += max(0, num_done - self._num_done)
        self._num_done = num_done

    def _enter_stage(self, stage: str) -> None:
        now = time.monotonic()
        if self._stage:
            spent = self.stage_seconds.get(self._stage, 0.0) + now - self._stage_since
            self.stage_seconds[self._stage] = spent
        self._stage, self._stage_since = stage, now


def _work_gone(directory: Path) -> FolderGoneError:
    return FolderGoneError(
        f"{directory}: the folder of the job's unfinished work is gone; the job begins anew."
    )


def pinned_model(model: ModelConfig, directory: Path, *, renew: bool) -> ModelConfig:
    """The model with weights that stay the same until the job ends, whatever is registered.

    Weights that ship are those of the installed version; others are copied into the job's folder.
    With `renew`, the weights registered now replace those that were pinned.
    """
    stated, weights = directory / _PINNED_MODEL_NAME, directory / _PINNED_NAME
    if stated.exists() and not renew:
        return ModelConfig.model_validate_json(stated.read_text())
    network = resolved(model)
    with disk_errors("keeping the job's weights", directory):
        if network.weights is not None:
            _copy_safely(Path(network.weights), weights)
            network = network.model_copy(update={"weights": str(weights)})
        write_whole(stated, network.model_dump_json().encode(), 0o600)
    return network


def _copy_safely(source: Path, target: Path) -> None:
    for suffix in ("", ".int8.json"):
        beside = source.with_suffix(suffix) if suffix else source
        if beside.is_file():
            name = target.with_suffix(suffix) if suffix else target
            write_whole(name, beside.read_bytes(), 0o600)
