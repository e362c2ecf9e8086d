"""Verifies an output that holds an excerpt of its source."""

from __future__ import annotations

from pathlib import Path

from srstream.config import JobConfig, SourceConfig
from srstream.jobs.planning.plan import time_window
from srstream.media.read.probe import probe
from srstream.media.read.scan import scan_packets
from srstream.media.receipt import Receipt
from srstream.media.verify import verify


def verify_excerpt(
    source: Path,
    output: Path,
    *,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    sample: int | None = None,
) -> Receipt:
    """Compare an output with the part of its source between two times.

    Args:
        start_seconds, end_seconds: as a job was given them, from the first video frame; None: the
            source's beginning or end.
        sample: compare the pixels of this many frames, spread evenly; None compares all.

    Raises:
        MediaError, UsageError, RefusedError: one of the files cannot be read, or there is no such
            part.
    """
    if start_seconds is None and end_seconds is None:
        return verify(source, output, sample=sample)
    part = SourceConfig(start_seconds=start_seconds, end_seconds=end_seconds)
    info = probe(source, part)
    index = scan_packets(source, info.video)
    window = time_window(info.video, index, JobConfig(source=part))
    return verify(source, output, window=window, sample=sample)
