"""`srstream enhance` and `srstream plan`: one video, one picture, or many of both."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from srstream.batch.inputs import Found, Input, find_inputs
from srstream.batch.run import Batch, FileResult, Target, plan_targets
from srstream.cli.console import (
    ConsoleReporter,
    JsonReporter,
    print_error,
    render_left_out,
    render_pictures,
    render_summary,
)
from srstream.config import JobConfig
from srstream.errors import InterruptedJobError, SrstreamError, UsageError, error_to_wire
from srstream.jobs.context import StopSignal
from srstream.jobs.events import Failed, Note, Progress, printable
from srstream.jobs.job import enhance_file
from srstream.jobs.planning.summary import PlanSummary, plan_summary
from srstream.media.write.containers import VIDEO_SUFFIXES
from srstream.pictures.job import PicturePlan, enhance_picture, plan_picture
from srstream.terminal import format_bytes, format_seconds, show, show_json, tell

_GRACE_SECONDS = 1.2
"""What a job has to end by itself after Ctrl-C, before it is ended wherever it is."""


def enhance(
    sources: Sequence[Path],
    output: Path | None,
    config: JobConfig,
    *,
    is_recursive: bool = False,
    overwrite: bool = False,
    restart: bool = False,
    skips_existing: bool = True,
    as_json: bool = False,
    is_verbose: bool = False,
) -> int:
    """Enhance all that the command names and return its exit code.

    Raises:
        SrstreamError: of a single file, what went wrong.
    """
    stop = StopSignal()
    reporter = JsonReporter() if as_json else ConsoleReporter(is_verbose=is_verbose)
    try:
        found = find_inputs(sources, is_recursive=is_recursive, output=output)
    except SrstreamError as error:
        kind, text = error_to_wire(error)
        code = error.exit_code
        reporter(Failed(kind=kind, text=text, exit_code=code, resumable=False))
        raise
    with reporter, _signals(stop):
        if found.is_several or _is_folder(output):
            batch = Batch(
                found,
                output,
                config,
                overwrite=overwrite,
                restart=restart,
                skips_existing=skips_existing and found.is_several,
                on_event=reporter,
                stop=stop,
            )
            return _enhance_several(batch, reporter, as_json)
        (entry,) = found.inputs
        if entry.is_still:
            if isinstance(reporter, ConsoleReporter):
                reporter(Progress(stage="enhancing", done=0, total=None))
            return _enhance_still(entry.path, output, config, overwrite, as_json)
        result = enhance_file(
            entry.path,
            output,
            config,
            overwrite=overwrite,
            restart=restart,
            on_event=reporter,
            stop=stop,
        )
        return result.exit_code


def _is_folder(output: Path | None) -> bool:
    """Return whether `-o` names a folder for results; one called like a video is a mistake."""
    return output is not None and output.is_dir() and output.suffix.lower() not in VIDEO_SUFFIXES


def _enhance_still(
    source: Path, output: Path | None, config: JobConfig, overwrite: bool, as_json: bool
) -> int:
    """Enhance one picture."""
    _check_no_excerpt(source, config)
    (target,) = plan_targets(find_inputs([source]), None, config)
    assert isinstance(target, Target)
    destination = output or target.path
    enhance_picture(source, destination, config, overwrite=overwrite)
    _tell_result(FileResult(source, "done", destination), as_json)
    return 0


def _check_no_excerpt(source: Path, config: JobConfig) -> None:
    """Refuse an excerpt of a picture that is named by itself; among videos it means those."""
    if config.source.start_seconds is not None or config.source.end_seconds is not None:
        raise UsageError(f"{source}: this is a picture; leave --start and --end out.")


def _enhance_several(batch: Batch, reporter: Any, as_json: bool) -> int:
    """Enhance one file after another; say at the end how many are done, and which are not."""
    for line in render_left_out(batch.found.left_out):
        reporter(Note(text=line))
    total = len(batch.found.inputs)
    videos = {entry.path for entry in batch.found.inputs if not entry.is_still}

    def say_which(number: int, entry: Input) -> None:
        if as_json and total > 1 and not entry.is_still:
            reporter(Note(text=f"[{number}/{total}] {entry.path}"))
        elif not as_json:
            reporter.place = f"[{number}/{total}] " if total > 1 else ""
            reporter(
                Progress(stage="enhancing" if entry.is_still else "reading", done=0, total=None)
            )

    batch.on_file = say_which
    counts: Counter[str] = Counter()
    failures: list[FileResult] = []
    exit_code = 0
    for result in batch.run():
        counts[result.status] += 1
        if result.error is not None:
            failures.append(result)
            exit_code = exit_code or result.error.exit_code
        elif result.status == "partial":
            exit_code = exit_code or 4
        _tell_result(result, as_json, is_told=result.source in videos)
    if not as_json and total > 1:
        tell(_summary(counts, failures))
    return exit_code


def _tell_result(result: FileResult, as_json: bool, *, is_told: bool = False) -> None:
    """Report a result; `is_told`: the job of a video has reported its success already."""
    if as_json:
        show_json(json.dumps(result.as_event()))
    if result.error is not None:
        print_error(str(result.error))
    elif not as_json and result.status == "skipped":
        tell(f"{result.source}: skipped, since {result.destination} is there already")
    elif not as_json and not is_told and result.status == "done":
        tell(f"{result.source} -> {result.destination}")


def _summary(counts: Counter[str], failures: Sequence[FileResult]) -> str:
    """Say how many files ended in which way: `3 done, 1 skipped, 1 failed (a.mp4)`."""
    words = {
        "done": "done",
        "partial": "done in part",
        "skipped": "skipped (--overwrite replaces their results)",
        "failed": "failed",
    }
    parts = [f"{counts[status]} {word}" for status, word in words.items() if counts[status]]
    text = ", ".join(parts)
    if failures:
        names = ", ".join(str(result.source) for result in failures[:5])
        more = f" and {len(failures) - 5} more" if len(failures) > 5 else ""
        text += f": {names}{more}"
    return f"srstream: {text}"


def plan(
    sources: Sequence[Path],
    output: Path | None,
    config: JobConfig,
    *,
    is_recursive: bool = False,
    device: str | None = None,
    as_json: bool = False,
    is_verbose: bool = False,
) -> int:
    """Say what `enhance` would do with all that the command names; return the exit code.

    Raises:
        SrstreamError: of a single file, why it cannot be enhanced.
    """
    found = find_inputs(sources, is_recursive=is_recursive, output=output)
    if not found.is_several and not _is_folder(output):
        (entry,) = found.inputs
        made = _plan_one(entry, output, config, device)
        if as_json:
            show_json(json.dumps([_as_json(made)] if entry.is_still else _as_json(made), indent=2))
        else:
            show(*_whole(made, is_verbose))
        return 0
    return _plan_several(found, output, config, device, as_json)


def _plan_several(
    found: Found, output: Path | None, config: JobConfig, device: str | None, as_json: bool
) -> int:
    entries: list[dict[str, Any]] = []
    seconds, num_bytes, exit_code = 0.0, 0, 0
    for target in plan_targets(found, output, config):
        try:
            if isinstance(target, FileResult):
                assert target.error is not None
                raise target.error
            made = _plan_target(target, config, device)
        except SrstreamError as error:
            print_error(str(error))
            exit_code = exit_code or error.exit_code
            continue
        entries.append(_as_json(made))
        if isinstance(made, PlanSummary):
            seconds += made.estimated_seconds
            num_bytes += made.estimated_output_bytes
        if not as_json:
            show(*_line(made))
    entries += [entry.as_json() for entry in found.left_out]
    if as_json:
        show_json(json.dumps(entries, indent=2))
        return exit_code
    if found.left_out:
        show(*render_left_out(found.left_out))
    if num_bytes:
        show(f"about {format_seconds(seconds)} on this machine, {format_bytes(num_bytes)} on disk")
    return exit_code


def _plan_target(target: Target, config: JobConfig, device: str | None) -> Any:
    if target.input.is_still:
        return plan_picture(target.input.path, target.path, config)
    # The folder of the results need not exist yet, so the plan is made beside the source.
    made = plan_summary(target.input.path, None, config, device=device)
    suffix = target.suffix or Path(made.output).suffix
    name = printable(target.folder / (target.stem + suffix))
    return made.model_copy(update={"output": name})


def _plan_one(entry: Input, output: Path | None, config: JobConfig, device: str | None) -> Any:
    if not entry.is_still:
        return plan_summary(entry.path, output, config, device=device)
    _check_no_excerpt(entry.path, config)
    (target,) = plan_targets(Found((entry,), (), is_several=False), None, config)
    assert isinstance(target, Target)
    return plan_picture(entry.path, output or target.path, config)


def _as_json(made: PlanSummary | PicturePlan) -> dict[str, Any]:
    if isinstance(made, PlanSummary):
        return made.model_dump(mode="json", by_alias=True)
    return made.as_json()


def _whole(made: PlanSummary | PicturePlan, is_verbose: bool) -> list[str]:
    """Return all lines of a plan."""
    if isinstance(made, PlanSummary):
        return render_summary(made, is_verbose=is_verbose)
    return render_pictures([made])


def _line(made: PlanSummary | PicturePlan) -> list[str]:
    """Return a plan in one line, for one of several files."""
    if not isinstance(made, PlanSummary):
        return render_pictures([made])
    sizes = f"{made.width}x{made.height}", f"{made.output_width}x{made.output_height}"
    time = format_seconds(made.estimated_seconds)
    return [f"{made.input}: {sizes[0]} to {made.output}: {sizes[1]}, about {time}"]


@contextmanager
def _signals(stop: StopSignal) -> Iterator[None]:
    """Ctrl-C ends the job within two seconds; a second one, or SIGTERM, at once.

    What is not asked to stop by `stop`, such as copying streams, is ended by an alarm.
    """

    def at_once(number: int, frame: FrameType | None) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise InterruptedJobError("interrupted. Run the same command again to go on.")

    def soon(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, at_once)
        stop.request_now()
        signal.setitimer(signal.ITIMER_REAL, _GRACE_SECONDS)
        tell("srstream: stopping; what is finished is kept")

    former = {
        signal.SIGINT: signal.signal(signal.SIGINT, soon),
        signal.SIGTERM: signal.signal(signal.SIGTERM, at_once),
        signal.SIGALRM: signal.signal(signal.SIGALRM, at_once),
    }
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in former.items():
            signal.signal(number, handler)
        if stop.is_requested():  # The command is ending; a further Ctrl-C has nothing to end.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
