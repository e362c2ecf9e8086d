"""Checks whether an output holds everything that its source held, and writes the receipt."""

from __future__ import annotations

from pathlib import Path

from srstream.media.read.demux import MAX_PIXELS, open_source
from srstream.media.receipt import Receipt as Receipt
from srstream.media.types import HdrMetadata, OutputPlan, TimeWindow
from srstream.media.witness.compare import spread as spread
from srstream.media.witness.compare import testify
from srstream.media.witness.streams import Promise, Promises


def verify(
    source_path: Path,
    output_path: Path,
    *,
    window: TimeWindow | None = None,
    sample: int | None = None,
    plan: OutputPlan | None = None,
) -> Receipt:
    """Compare an output with the source it was made from. See `srstream.media.witness`.

    Args:
        window: the part of the source that was processed.
        sample: compare the pixels of this many frames, spread evenly; None compares all.
        plan: what was announced for each stream; without it the witness applies its own rules.

    Raises:
        MediaError, UsageError, RefusedError: one of the two files cannot be read.
    """
    for path in (source_path, output_path):
        open_source(path, MAX_PIXELS).close()  # raises a clear error for a bad file
    window = window or TimeWindow()
    promises = None
    if plan is not None:
        promises = Promises(
            tuple(Promise(s.index, s.action, s.output_codec, s.reason) for s in plan.streams),
            has_hdr=plan.video.hdr != HdrMetadata(),
        )
    return testify(
        source_path,
        output_path,
        start_pts=window.start_pts,
        end_pts=window.end_pts,
        sample=sample,
        promises=promises,
    )
