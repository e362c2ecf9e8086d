"""What a person sees on standard error while a job runs; on a terminal a bar, otherwise lines."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Self

from srstream.cli.stage_bar import StageBar
from srstream.jobs.events import (
    Done,
    Event,
    Failed,
    Note,
    Progress,
    SegmentDone,
    Started,
    Verified,
)
from srstream.media.players import sentence
from srstream.terminal import count, format_bytes, format_seconds, plain_console, show_json, tell

if TYPE_CHECKING:
    from collections.abc import Sequence

    from srstream.batch.inputs import LeftOut
    from srstream.jobs.planning.summary import PlanSummary
    from srstream.pictures.job import PicturePlan

_LINE_SECONDS = 5.0
_NUM_NAMES = 5


class JsonReporter:
    """One JSON object a line on standard output."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, event: Event) -> None:
        show_json(json.dumps(event.model_dump(mode="json", by_alias=True)))


class ConsoleReporter:
    """Sentences and progress on standard error; standard output stays free for data."""

    def __init__(self, *, is_verbose: bool = False) -> None:
        self._console = plain_console(stderr=True)
        self._is_verbose = is_verbose
        self._bar = StageBar(self._console)
        self.place = ""
        """What precedes the next video's first line, such as `[2/5] `."""
        self._last_line = 0.0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress):
            self._progress(event)
        elif isinstance(event, Started):
            self._started(event)
        elif isinstance(event, Note):
            self.say(event.text)
        elif isinstance(event, Verified):
            self.say(event.summary)
        elif isinstance(event, Done):
            self._done(event)
        elif isinstance(event, SegmentDone | Failed):
            pass  # Segments are bookkeeping; the error itself is printed by the command.

    def say(self, text: str) -> None:
        """One sentence."""
        self._console.print(text)

    def _started(self, event: Started) -> None:
        self.say(
            f"{self.place}{event.input}: {event.width}x{event.height} to "
            f"{event.output_width}x{event.output_height}, model {event.model}"
        )
        if self._is_verbose:
            self.say(f"encoder {event.codec}, engine {event.engine} ({event.engine_reason})")
            self.say(knobs(event.restore, event.strength, event.restore_reason, event.detail))
        for note in event.notes:
            self.say(f"note: {note}")
        for loss in event.losses:
            self.say(f"loss: {loss}")
        if event.is_resumed:
            self.say(f"resuming: {event.num_frames_done} of {event.num_frames} frames are done")

    def _progress(self, event: Progress) -> None:
        speed = ""
        if event.stage == "enhancing" and event.fps is not None:
            speed = f"{event.fps:.1f} fps, {format_seconds(event.eta_seconds)} left"
        if self._bar.show(event.stage, event.done, event.total, speed):
            return
        if speed and time.monotonic() - self._last_line > _LINE_SECONDS:
            self._last_line = time.monotonic()
            total = "?" if event.total is None else event.total
            self.say(f"{event.stage}: {event.done}/{total} frames, {speed}")

    def _done(self, event: Done) -> None:
        speed = "" if event.fps is None else f", {event.fps:.1f} fps over all"
        broken = ""
        if event.num_corrupt_packets:
            broken = (
                f"; {event.num_corrupt_packets} corrupt packets, "
                f"{event.num_concealed} frames concealed"
            )
        self.say(
            f"{event.output}: {event.num_frames} frames in "
            f"{format_seconds(event.seconds)}{speed}{broken}"
        )
        if event.exit_code:
            self.say("only a part of the input could be delivered (exit code 4)")


def print_error(text: str) -> None:
    """The one sentence with which a failed command ends."""
    tell(f"srstream: {text}")


def render_pictures(plans: Sequence[PicturePlan]) -> list[str]:
    """One line for each picture."""
    return [
        f"{plan.source}: {'x'.join(map(str, plan.size))} to "
        f"{plan.destination}: {'x'.join(map(str, plan.output_size))}"
        for plan in plans
    ]


def render_left_out(files: Sequence[LeftOut]) -> list[str]:
    """Return a line for each reason, with the names of the first files."""
    lines = []
    for reason in sorted({file.reason for file in files}):
        names = [file.path.name for file in files if file.reason == reason]
        shown = ", ".join(names[:_NUM_NAMES])
        more = f" and {len(names) - _NUM_NAMES} more" if len(names) > _NUM_NAMES else ""
        lines.append(f"left out ({reason}): {shown}{more}")
    return lines


def knobs(restore: float, strength: float, reason: str, detail: float) -> str:
    """What `--restore` and `--detail` came to, and why."""
    softened = "" if strength == 1.0 else f" at a strength of {strength:g}"
    return f"restore {restore:g}{softened} ({reason}), detail {detail:g}"


_CODEC_LABELS = {
    **dict.fromkeys(("libx264", "libx264rgb", "h264_nvenc"), "H.264"),
    **dict.fromkeys(("libx265", "hevc_nvenc"), "HEVC (H.265)"),
    "libsvtav1": "AV1",
    "libvpx-vp9": "VP9",
    "ffv1": "FFV1 (lossless)",
}
"""Names of encoders that people know."""


def render_summary(summary: PlanSummary, *, is_verbose: bool = False) -> list[str]:
    """Return the summary as readable lines; `is_verbose` adds engine, knobs and segments."""
    duration = format_seconds(summary.duration_seconds)
    time_needed = format_seconds(summary.estimated_seconds)
    speed = f"{time_needed} on this machine, {summary.estimated_fps:.1f} fps"
    disk = format_bytes(summary.estimated_output_bytes)
    memory = format_bytes(summary.estimated_memory_bytes)
    num_frames = count(summary.num_frames, "frame")
    size = f"{summary.width}x{summary.height}"
    output_size = f"{summary.output_width}x{summary.output_height}"
    woven = ", interlaced (will be deinterlaced)" if summary.is_interlaced else ""
    codec = summary.codec if is_verbose else _CODEC_LABELS.get(summary.codec, summary.codec)
    before = f" {summary.pix_fmt}" if is_verbose else ""
    after = f" {summary.output_pix_fmt}" if is_verbose else ""
    lines = [
        f"{summary.input}: {num_frames}, {duration}, {size}{before}{woven}",
        f"  to {summary.output} ({summary.container}): {output_size}{after}, {codec}",
        f"  {sentence(summary.plays_in)}",
        f"  model {summary.model}",
    ]
    if is_verbose:
        lines += [
            f"  engine {summary.engine} ({summary.engine_reason})",
            "  " + knobs(summary.restore, summary.strength, summary.restore_reason, summary.detail),
        ]
    lines += ["", "streams"]
    for stream in summary.streams:
        language = f" [{stream.language}]" if stream.language not in (None, "", "und") else ""
        what = stream.action
        if stream.output_codec and stream.output_codec != stream.codec:
            what += f" to {stream.output_codec}"
        reason = f": {stream.reason}" if stream.reason else ""
        lines.append(f"  {stream.index}  {stream.type} {stream.codec}{language}  {what}{reason}")
    if summary.num_chapters:
        lines.append(f"     {count(summary.num_chapters, 'chapter')}  copy")
    lines += [
        "",
        f"about {speed}",
        f"about {disk} on disk, {memory} of memory",
    ]
    if is_verbose:
        lines.append(f"{count(summary.num_segments, 'segment')}, each safe once written")
    if summary.device_prediction is not None:
        lines.append(summary.device_prediction)
    if not summary.is_whole_file_read:
        lines.append("the file is long: frames and time are those of the part read in a second")
    lines += [f"note: {note}" for note in summary.notes]
    lines += [f"loss: {loss}" for loss in summary.losses] or ["nothing of the file is lost"]
    return lines
