"""Compares an output with its source from beginning to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np

from srstream.errors import MediaError
from srstream.media.errors import sentence
from srstream.media.receipt import Receipt
from srstream.media.tag_values import tag_losses
from srstream.media.witness.animations import (
    ANIMATED,
    LEEWAY,
    Thinning,
    as_shown,
    end_problems,
    exact_times,
    opaque_mask,
    opaque_only,
    play_problems,
    upright_label,
)
from srstream.media.witness.decode import Moment, Screen, Watcher
from srstream.media.witness.geometry import crop_of
from srstream.media.witness.labels import (
    compare_chapters,
    compare_labels,
    compare_shapes,
    picture_receipt,
)
from srstream.media.witness.likeness import (
    Crop,
    Frame,
    Likeness,
    Sight,
    Thumb,
    in_matrix_of,
    is_surely_other,
    luma_distance,
    nearest_field,
    sight_of,
    thumb_of,
)
from srstream.media.witness.packets import MAX_FAULTS
from srstream.media.witness.pictures import FloatPlane, Label, picture_of
from srstream.media.witness.streams import SILENT, Placing, Promises, compare_streams
from srstream.media.witness.survey import Seconds, Survey, num_videos_before, survey
from srstream.media.witness.times import Course

_MAX_CHANGES = 8
"""The most frames that are compared because the description changed with them."""
_MAX_STEPS = 1000


def testify(
    source_path: Path,
    output_path: Path,
    *,
    start_pts: int | None = None,
    end_pts: int | None = None,
    sample: int | None = None,
    promises: Promises | None = None,
) -> Receipt:
    """Compare an output with the source it was made from.

    Memory use grows only by a few bytes per packet.

    Args:
        start_pts, end_pts: the part of the source taken, in units of its video's clock.
        sample: compare the pixels of this many frames, spread evenly; None compares all.
        promises: what the plan announced, if there is a plan.

    Raises:
        MediaError, UsageError: one of the two files cannot be read.
    """
    source = survey(source_path)
    output = survey(output_path, is_output=True)
    base = source.streams[source.video].base
    window = tuple(None if pts is None else pts * base for pts in (start_pts, end_pts))
    return _Testimony(source, output, window, sample).receipt(promises)


def spread(length: int, number: int) -> list[int]:
    """Return at most `number` of `length` places, evenly spread, including the first and last."""
    if number >= length:
        return list(range(length))
    if number == 1:
        return [length // 2]
    return sorted({round(n * (length - 1) / (number - 1)) for n in range(number)})


def _median_step(times: Sequence[Fraction]) -> Fraction | None:
    steps = sorted(after - before for before, after in pairwise(times[:_MAX_STEPS]))
    return steps[len(steps) // 2] if steps else None


@dataclass(slots=True)
class _Times:
    """Result of pairing the frames by time, in the output's seconds."""

    shift: Fraction = Fraction(0)
    num_in: int = 0
    largest_error: Fraction = Fraction(0)
    worst: Fraction = Fraction(0)
    first_missing: Fraction = Fraction(0)
    num_missing: int = 0
    num_extra: int = 0

    def pair(self, wanted: Fraction, found: Fraction) -> None:
        self.num_in += 1
        error = abs(found - wanted)
        if error > self.largest_error:
            self.largest_error, self.worst = error, wanted

    def miss(self, wanted: Fraction) -> None:
        if not self.num_missing:
            self.first_missing = wanted
        self.num_in += 1
        self.num_missing += 1

    def find_extra(self, time: Fraction) -> None:
        if not self.num_missing and not self.num_extra:
            self.first_missing = time
        self.num_extra += 1


@dataclass(frozen=True, slots=True)
class _Looked:
    """A pair of frames that was compared, kept until the source's next frame is known."""

    seconds: float
    thumb: Thumb
    seen: Thumb
    before: Thumb | None


class _Testimony:
    """One run of `testify`."""

    def __init__(
        self,
        source: Survey,
        output: Survey,
        window: tuple[Fraction | None, ...],
        sample: int | None,
    ) -> None:
        self._source, self._output = source, output
        self._start, self._end = window
        self._screen = Screen(output)
        self._tolerance = self._screen.base / 2
        """Half a tick of the output's clock: the largest rounding error."""
        self._found: Sequence[Fraction] = Seconds(
            np.array(self._screen.times, np.int64), self._screen.base
        )
        if output.brand == "apng":
            self._found = exact_times(output.path) or self._found
        count = len(self._found)
        self._samples = range(count) if sample is None else set(spread(count, sample))
        self._watcher = Watcher(source, _median_step(self._found))
        first = self._found[0] if self._found else None
        self._course = Course(source, output.brand, first, self._start, self._end)
        self._times = _Times()
        self._likeness = Likeness(leeway=LEEWAY.get(output.brand, 1.0))
        self._frame = Frame(1, 1, Fraction(1))
        self._crop, self._out_crop = Crop(), Crop()
        self._first: Label | None = None
        self._last_label: Label | None = None
        self._out_label: Label | None = None
        self._is_seen_through = False
        self._looked: _Looked | None = None
        self._last_thumb: Thumb | None = None
        self._is_animated = output.brand in ANIMATED
        self._thinning = Thinning(output.brand, self._screen.base)
        self._ends_at = Fraction(0)
        self._num_changes = self._num_filled = 0
        self._num_headless = self._num_after_break = 0

    def receipt(self, promises: Promises | None) -> Receipt:
        """Compare both files and return the receipt."""
        source, output = self._source, self._output
        self._describe_output()
        try:
            self._watch()
        finally:
            self._screen.close()
        times = self._times
        if self._first is None or self._out_label is None:
            raise MediaError(sentence(source.path, "not one frame of its video can be decoded"))
        placing = Placing(times.shift, self._start, self._end)
        inventory = compare_streams(source, output, placing, promises)
        codec = output.streams[output.video].codec
        problems, losses = compare_labels(
            self._first,
            self._out_label,
            codec,
            brand=output.brand,
            is_seen_through=self._is_seen_through,
            has_hdr=None if promises is None else promises.has_hdr,
        )
        problems += compare_shapes(
            self._first,
            self._crop,
            self._out_label,
            self._out_crop,
            self._out_label.aspect / self._first.aspect,
        )
        chapters = compare_chapters(source, output, placing)
        (losses if output.brand in SILENT else problems).extend(chapters)
        return Receipt(
            source=str(source.path),
            output=str(output.path),
            problems=[
                *self._time_problems(),
                *self._animation_problems(),
                *inventory.problems,
                *problems,
                *self._likeness.problems(),
            ],
            losses=[
                *inventory.losses,
                *losses,
                *self._time_losses(),
                *tag_losses(source.tags, output.tags),
            ],
            num_frames_in=times.num_in,
            num_frames_out=len(self._found),
            largest_time_error_seconds=float(times.largest_error),
            time_tolerance_seconds=float(self._tolerance),
            time_shift_seconds=float(times.shift),
            largest_offset_change_seconds=float(inventory.largest_offset_change),
            num_chapters_in=len(source.chapters),
            num_chapters_out=len(output.chapters),
            streams=inventory.streams,
            video_in=picture_receipt(self._first),
            video_out=picture_receipt(self._out_label),
            color=self._likeness.receipt(),
        )

    # What the output says of itself

    def _describe_output(self) -> None:
        found = self._screen.label()
        if found is None:
            raise MediaError(
                sentence(self._output.path, "not one frame of its video can be decoded")
            )
        self._out_label = found
        size = (found.width, found.height)
        number = num_videos_before(self._output)
        self._out_crop = crop_of(self._output.path, self._output.brand, number, size)

    # Frame by frame

    def _watch(self) -> None:
        """Pair the source's frames with the output's by time, and compare some of them."""
        found, times = self._found, self._times
        at = 0
        for moment in self._watcher.moments():
            self._note_first(moment.label)
            wanted = self._course.place(moment, self._watcher)
            if self._course.is_over:
                break
            if wanted is None:
                continue
            self._ends_at = wanted + moment.duration
            if self._thinning.leaves_out(wanted):
                continue
            if moment.is_join and at < len(found):
                # The file does not state the interval across a join.
                wanted += self._course.settle(found[at] - wanted)
            slack = max(moment.duration / 2, self._tolerance)
            while at < len(found) and found[at] < wanted - slack:
                self._note_extra(found[at])
                at += 1
            if at < len(found) and found[at] <= wanted + slack:
                times.pair(wanted, found[at])
                self._look(moment, at)
                at += 1
            else:
                self._note_missing(moment, wanted, is_at_end=at >= len(found))
                self._finish_look(None)
        self._finish_look(None)
        for time in found[at:]:
            self._note_extra(time)
        times.shift = self._course.shift
        if self._is_animated and self._first is not None:
            self._first = upright_label(self._first)

    def _note_extra(self, time: Fraction) -> None:
        """Count a frame without a decoded counterpart: it may replace one that was lost."""
        if self._num_filled < self._watcher.num_lost and self._course.is_of_packet(time):
            self._num_filled += 1
            self._times.num_in += 1
        else:
            self._times.find_extra(time)

    def _note_missing(self, moment: Moment, wanted: Fraction, *, is_at_end: bool) -> None:
        if moment.is_headless and not self._times.num_in:
            self._num_headless += 1
        elif is_at_end and self._watcher.broken_at is not None:
            self._num_after_break += 1
        else:
            self._times.miss(wanted)

    def _note_first(self, label: Label) -> None:
        """Note the first frame's description; all others are fitted into its shape."""
        if self._first is None:
            self._first = label
            size = (label.width, label.height)
            number = num_videos_before(self._source)
            self._crop = crop = crop_of(self._source.path, self._source.brand, number, size)
            width, height = size[0] - crop.left - crop.right, size[1] - crop.top - crop.bottom
            self._frame = Frame(width, height, label.aspect)
            if self._is_animated and label.turn[0] == 0:
                self._frame = Frame(height, width, 1 / label.aspect)

    def _look(self, moment: Moment, at: int) -> None:
        """Compare the pixels of a pair if it is in the sample, and keep those of its neighbors."""
        label = moment.label
        if not moment.is_labelled_surely:
            self._finish_look(None)
            self._last_thumb = None
            return
        is_wanted = at in self._samples
        is_changed = self._last_label is not None and label != self._last_label
        self._last_label = label
        if is_changed and not is_wanted and self._num_changes < _MAX_CHANGES:
            self._num_changes += 1
            is_wanted = True
        if not is_wanted and at + 1 not in self._samples and self._looked is None:
            self._last_thumb = None
            return
        assert self._first is not None and self._out_label is not None
        is_first_size = (label.width, label.height) == (self._first.width, self._first.height)
        sight = sight_of(
            picture_of(moment.frame, label), label, self._crop if is_first_size else Crop()
        )
        if self._is_animated:
            sight = as_shown(sight, self._output.brand)
        mask = opaque_mask(sight.picture)
        sight = opaque_only(sight, mask)
        thumb = thumb_of(in_matrix_of(sight, self._out_label).picture)
        self._finish_look(thumb)
        if is_wanted:
            self._compare(sight, mask, thumb, at)
        self._last_thumb = thumb

    def _compare(self, sight: Sight, mask: FloatPlane | None, thumb: Thumb, at: int) -> None:
        assert self._out_label is not None
        seconds = float(self._found[at])
        frame = self._screen.frame_at(self._screen.times[at])
        if frame is None:
            self._likeness.see_instead("cannot be decoded", seconds)
            return
        shape = self._frame.height, self._frame.width
        chroma = sight.picture.chroma
        within = shape, shape if chroma is None else chroma[0].shape
        picture = picture_of(frame, self._out_label, None if self._out_crop else within)
        out = opaque_only(sight_of(picture, self._out_label, self._out_crop), mask)
        if sight.label.is_interlaced:
            sight, is_woven = nearest_field(sight, out)
            if is_woven:
                self._likeness.see_instead("is not deinterlaced", seconds)
        self._likeness.add(sight, out, self._frame, seconds)
        alpha = sight.picture.alpha
        self._is_seen_through |= alpha is not None and float(alpha.min()) < 1 - 1 / 255
        self._looked = _Looked(seconds, thumb, thumb_of(out.picture), self._last_thumb)

    def _finish_look(self, after: Thumb | None) -> None:
        """Check whether the last output picture shows a neighboring frame instead."""
        looked, self._looked = self._looked, None
        if looked is None:
            return
        error = luma_distance(looked.thumb, looked.seen)
        for other, which in ((looked.before, "before"), (after, "after")):
            if other is not None and is_surely_other(error, luma_distance(other, looked.seen)):
                self._likeness.see_instead(f"is that of the frame {which} it", looked.seconds)

    # What is said of the times

    def _time_problems(self) -> list[str]:
        times, problems = self._times, []
        if len(self._found) != times.num_in:
            problems.append(f"{len(self._found)} frames are there, the source has {times.num_in}")
        elif (times.num_missing or times.num_extra) and not self._is_of_damage():
            problems.append(self._said_missing())
        if times.largest_error > self._tolerance:
            problems.append(
                f"a frame is shown {float(times.largest_error) * 1000:.3f} ms off, at "
                f"{float(times.worst):.3f} s"
            )
        return problems

    def _animation_problems(self) -> list[str]:
        problems = play_problems(self._source, self._output)
        if self._is_animated and not self._watcher.num_lost and self._found:
            latest = 4 * self._tolerance
            problems += end_problems(self._output, self._found[-1], self._ends_at, latest)
        return problems

    def _is_of_damage(self) -> bool:
        """Return whether frames are shifted because some before them could not be decoded."""
        num_lost = self._watcher.num_lost
        return num_lost > 0 and 0 < self._times.num_missing <= num_lost + MAX_FAULTS

    def _said_missing(self) -> str:
        times = self._times
        return (
            f"{times.num_missing} frames are not shown at their times, the first at "
            f"{float(times.first_missing):.3f} s"
        )

    def _time_losses(self) -> list[str]:
        losses = []
        if len(self._found) == self._times.num_in and self._is_of_damage():
            losses.append(self._said_missing())
        if self._watcher.num_lost:
            losses.append(f"{self._watcher.num_lost} packets of the source cannot be decoded")
        if self._thinning.num_left_out:
            losses.append(
                f"{self._thinning.num_left_out} frames are left out that follow the one before "
                "sooner than such a file can say"
            )
        if self._num_headless:
            losses.append(f"{self._num_headless} frames before the first keyframe are left out")
        if self._num_after_break:
            losses.append(
                f"{self._num_after_break} frames are left out behind "
                f"{float(self._watcher.broken_at or 0):.3f} s, where the source is broken"
            )
        return losses
