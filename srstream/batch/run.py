"""Enhances many files one after another: a failure stops none of the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from srstream.batch.inputs import Found, Input
from srstream.config import JobConfig
from srstream.engines.contract import Engine
from srstream.engines.table import choose_engine
from srstream.errors import InterruptedJobError, SrstreamError, UsageError
from srstream.jobs.context import StopSignal
from srstream.jobs.events import SCHEMA, OnEvent, printable
from srstream.jobs.job import enhance_file
from srstream.media.write.containers import CONTAINERS
from srstream.models.registry import resolved
from srstream.models.table import model_spec
from srstream.naming import distinct_stem, mark_of, marked
from srstream.pictures.job import enhance_picture

_OUTPUT_SUFFIXES = {suffix for it in CONTAINERS.values() for suffix in it.extensions}

Status = Literal["done", "partial", "skipped", "failed"]


@dataclass(frozen=True, slots=True)
class FileResult:
    """How one file ended."""

    source: Path
    status: Status
    destination: Path | None = None
    error: SrstreamError | None = None

    def as_event(self) -> dict[str, Any]:
        """Return one line of `--json`."""
        return {
            "schema": SCHEMA,
            "event": "file",
            "input": printable(self.source),
            "output": None if self.destination is None else printable(self.destination),
            "status": self.status,
            "error": None if self.error is None else str(self.error),
        }


@dataclass(frozen=True, slots=True)
class Target:
    """Where the result of one input goes."""

    input: Input
    folder: Path
    stem: str
    suffix: str = ""
    """Empty for a video whose container is not chosen yet."""

    @property
    def path(self) -> Path:
        """Return the result's path, which may lack its suffix."""
        return self.folder / (self.stem + self.suffix)

    def existing(self) -> Path | None:
        """Return the result, if it is there already."""
        suffixes = [self.suffix] if self.suffix else sorted(_OUTPUT_SUFFIXES)
        paths = (self.folder / (self.stem + suffix) for suffix in suffixes)
        return next((path for path in paths if path.exists()), None)


@dataclass(slots=True)
class Batch:
    """A run over all inputs of a command.

    Args:
        output: the folder of all results; None: see `plan_targets`.
        skips_existing: leave alone what has a result already, instead of failing.
        on_file: called with the number of a file, from 1, and its input before it begins.
    """

    found: Found
    output: Path | None
    config: JobConfig
    overwrite: bool = False
    restart: bool = False
    skips_existing: bool = True
    on_event: OnEvent = lambda event: None
    on_file: Callable[[int, Input], None] = lambda number, entry: None
    stop: StopSignal = field(default_factory=StopSignal)
    _engine: Engine | None = None

    def run(self) -> Iterator[FileResult]:
        """Enhance one file after another and yield how each ended.

        Raises:
            UsageError: the folder of the results cannot be one.
            InterruptedJobError: a stop was requested; the same command goes on from there.
        """
        try:
            for number, target in enumerate(plan_targets(self.found, self.output, self.config), 1):
                if self.stop.is_requested():
                    raise InterruptedJobError("interrupted. Run the same command again to go on.")
                yield self._result(number, target)
        finally:
            if self._engine is not None:
                self._engine.close()

    def _result(self, number: int, target: Target | FileResult) -> FileResult:
        if isinstance(target, FileResult):
            return target
        source = target.input.path
        existing = target.existing()
        if existing is not None and self.skips_existing and not self.overwrite:
            return FileResult(source, "skipped", existing)
        self.on_file(number, target.input)
        try:
            return self._enhance(target)
        except InterruptedJobError:
            raise
        except SrstreamError as error:
            return FileResult(source, "failed", None, error)

    def _enhance(self, target: Target) -> FileResult:
        source = target.input.path
        if target.input.is_still:
            engine = self._picture_engine()
            enhance_picture(
                source, target.path, self.config, overwrite=self.overwrite, engine=engine
            )
            return FileResult(source, "done", target.path)
        _make_folder(target.folder)
        result = enhance_file(
            source,
            target.path if target.suffix else None,
            self.config,
            unsuffixed=target.path,
            overwrite=self.overwrite,
            restart=self.restart,
            on_event=self.on_event,
            stop=self.stop,
        )
        return FileResult(source, "partial" if result.exit_code else "done", result.output)

    def _picture_engine(self) -> Engine:
        """Return the engine that all pictures share."""
        if self._engine is None:
            model = resolved(self.config.model)
            self._engine, _ = choose_engine(self.config.engine, model, model_spec(model.name))
        return self._engine


def plan_targets(found: Found, output: Path | None, config: JobConfig) -> list[Target | FileResult]:
    """Decide where each result goes; a result that would be another's too has failed.

    What was named itself goes beside its source as `INPUT_4x`, what a folder holds to `FOLDER_4x`
    under its own name. With `output`, all of it goes there under its own name.

    Raises:
        UsageError: `output` is a file.
    """
    if output is not None and not output.is_dir() and (output.exists() or output.suffix):
        raise UsageError(f"{output}: there are several inputs; name a folder with -o.")
    targets: list[Target | FileResult] = []
    taken: dict[tuple[Path, str], Path] = {}
    for entry in found.inputs:
        target = _target(entry, _folder_of(entry, output, config), config)
        first = taken.get(_key(target))
        if first is not None and not entry.is_still and first.suffix != entry.path.suffix:
            target = replace(target, stem=distinct_stem(entry.path, config.scaling))
            first = taken.get(_key(target))
        if first is not None:
            error = UsageError(
                f"{entry.path}: {first} would become {target.path} too; enhance folder by folder, "
                "or rename one of them."
            )
            targets.append(FileResult(entry.path, "failed", None, error))
            continue
        taken[_key(target)] = entry.path
        targets.append(target)
    return targets


def _key(target: Target) -> tuple[Path, str]:
    """Return what no two targets may share; videos whatever their container."""
    name = target.stem + target.suffix if target.input.is_still else target.stem
    return target.folder.resolve(), name


def _target(entry: Input, folder: Path, config: JobConfig) -> Target:
    """Name a result: as its source, marked where the source lies in the same folder."""
    path = entry.path
    if folder.resolve() == path.resolve().parent:
        path = marked(path, config.scaling)
    if entry.is_still:
        return Target(entry, folder, path.stem, path.suffix)
    return Target(entry, folder, path.stem)


def _folder_of(entry: Input, output: Path | None, config: JobConfig) -> Path:
    if output is not None:
        return output / entry.below
    if entry.folder is None:
        return entry.path.parent
    folder = entry.folder if entry.folder.name not in ("", "..") else entry.folder.resolve()
    return folder.with_name(f"{folder.name}_{mark_of(config.scaling)}") / entry.below


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: this folder cannot be made ({error.strerror}).") from error
