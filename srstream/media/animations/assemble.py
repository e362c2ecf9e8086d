"""Makes an animated picture of the enhanced segments: the last step of its job."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from srstream.media.animations.apng_writer import write_apng
from srstream.media.animations.formats import ANIMATIONS, GIF, WEBP, Slot, slots
from srstream.media.animations.frames import Rgba, shown_frames
from srstream.media.animations.gif_writer import write_gif
from srstream.media.animations.header import FOREVER
from srstream.media.animations.webp_writer import write_webp
from srstream.media.types import OutputPlan, SegmentFile, SourceInfo
from srstream.media.write.segments import check_segments

OnProgress = Callable[[int, int | None], None]


def assemble_animation(
    source: SourceInfo,
    plan: OutputPlan,
    segments: Sequence[SegmentFile],
    destination: Path,
    on_progress: OnProgress | None = None,
) -> None:
    """Write the animation; the caller fsyncs and renames it. Memory does not grow with the length.

    Args:
        on_progress: called with the number of frames read and their total.

    Raises:
        EncodeError: a segment is invalid, or the file cannot be written.
        DiskFullError, OSError: no space is left.
    """
    check_segments(segments)
    form, video = ANIMATIONS[plan.container], plan.video
    pts = tuple(moment for segment in segments for moment in segment.pts)
    places = slots(form, pts, segments[-1].last_duration, video.time_base)
    progress = _Progress(on_progress, len(places) * (2 if form is GIF else 1))

    def frames() -> Iterator[tuple[Slot, Rgba]]:
        for shown in shown_frames(segments, video, places):
            yield shown
            progress.step()

    size = plan.size
    plays = FOREVER if source.num_plays is None else source.num_plays
    alpha, last = video.layout.has_alpha, places[-1].length
    if form is GIF:
        write_gif(destination, frames, size, plays, last)
    elif form is WEBP:
        lossless = source.is_lossless_webp
        write_webp(destination, frames(), size, plays, has_alpha=alpha, is_lossless=lossless)
    else:
        base = video.time_base
        write_apng(destination, frames(), size, plays, last, base, has_alpha=alpha)


class _Progress:
    def __init__(self, on_progress: OnProgress | None, total: int) -> None:
        self._on_progress, self._total, self._done = on_progress, total, 0

    def step(self) -> None:
        self._done += 1
        if self._on_progress is not None:
            self._on_progress(self._done, self._total)
