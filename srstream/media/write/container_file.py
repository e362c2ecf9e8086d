"""Opens an output container with its options, tags and chapters; pads a short file."""

from __future__ import annotations

from fractions import Fraction
from math import lcm
from pathlib import Path

import av
from av.container import InputContainer, OutputContainer

from srstream.media.types import OutputPlan, SourceInfo
from srstream.media.write.containers import CONTAINERS
from srstream.media.write.segments import SegmentCheck
from srstream.media.write.tags import chapters_in_window, container_tags, needs_free_tags
from srstream.media.write.timeline import Placing

_MIN_PACKETS = 64
"""Minimum number of packets from which a reader recognizes an MPEG-TS by itself."""
TS_PACKET_BYTES = 188
_NULL_PACKET = b"\x47\x1f\xff\x10" + bytes([0xFF]) * (TS_PACKET_BYTES - 4)
_MAX_TIMESCALE = 2**31 - 1
_MAX_FASTSTART_BYTES = 8 << 30
_TS_DELAY_US = 700_000
_TS_TAGS = frozenset({"title", "service_name", "service_provider"})
"""Tags from which the muxer derives an MPEG-TS service name."""


def open_output(
    destination: Path,
    source: SourceInfo,
    plan: OutputPlan,
    container: InputContainer,
    check: SegmentCheck,
    first_pts: int,
) -> OutputContainer:
    """Open the output with its options, tags and chapters, but without streams."""
    kind = CONTAINERS[plan.container]
    options = {"fflags": "+bitexact"}
    tags = container_tags(container, kind)
    if kind.name == "ts":
        return _open_ts(destination, plan, tags, first_pts * plan.video.time_base)
    if kind.name in ("mp4", "mov"):
        flags = []
        if check.size_bytes <= _MAX_FASTSTART_BYTES:
            flags.append("faststart")
        if needs_free_tags(tags):
            flags.append("use_metadata_tags")
        if flags:
            options["movflags"] = "+" + "+".join(flags)
        options |= _timescales(plan, container)
    else:
        # Times stay unchanged; Matroska stores no decode times, and only those may be negative.
        options |= {"avoid_negative_ts": "disabled", "write_crc32": "0"}
        options["default_mode"] = "passthrough"
    output = av.open(str(destination), "w", format=kind.muxer, container_options=options)
    output.metadata.update(tags)
    return output


def _open_ts(
    destination: Path, plan: OutputPlan, tags: dict[str, str], begins: Fraction
) -> OutputContainer:
    """Open an MPEG-TS, or M2TS (for discs and cameras), which adds an arrival time to every packet.

    Decoders get 0.7 s to fill their buffers before the first picture, so the muxer moves everything
    by twice that, unless the source's clock is kept and leaves enough room.
    """
    begins = min(begins, begins if plan.earliest_other is None else plan.earliest_other)
    is_kept = plan.keeps_start and begins * 1_000_000 >= 4 * _TS_DELAY_US
    options = {
        "max_delay": str(_TS_DELAY_US),
        "mpegts_copyts": str(int(is_kept)),
        "mpegts_m2ts_mode": str(int(plan.path.suffix.lower() in (".m2ts", ".mts"))),
    }
    output = av.open(str(destination), "w", format="mpegts", container_options=options)
    output.metadata.update({k: v for k, v in tags.items() if k.lower() in _TS_TAGS})
    return output


def _timescales(plan: OutputPlan, container: InputContainer) -> dict[str, str]:
    """Return MP4 timescales in which a late start of any stream is exact (in the movie's clock)."""
    wanted = [plan.video.time_base.denominator]
    if wanted[0] > _MAX_TIMESCALE:
        return {}
    options = {"video_track_timescale": str(wanted[0])}
    wanted += [s.codec_context.sample_rate for s in container.streams.audio if s.codec_context]
    movie = 1
    for scale in wanted:
        if scale and lcm(movie, scale) <= _MAX_TIMESCALE:
            movie = lcm(movie, scale)
    # Thousandths are included if there is room, for the streams that count in milliseconds.
    if lcm(movie, 1000) <= _MAX_TIMESCALE:
        movie = lcm(movie, 1000)
    return options | {"movie_timescale": str(movie)}


def set_chapters(output: OutputContainer, container: InputContainer, placing: Placing) -> None:
    """Write the source's chapters, cut to the window and shifted with it."""
    chapters = chapters_in_window(container, placing.shift, placing.start, placing.end)
    if chapters:
        output.set_chapters(chapters)


def fill_up(path: Path) -> None:
    """Append null packets, which readers skip, to a file of very few packets."""
    with path.open("r+b") as file:
        head = file.read(4)
        prefix = b"" if head[:1] == b"\x47" else head
        num_packets = file.seek(0, 2) // (TS_PACKET_BYTES + len(prefix))
        file.write((prefix + _NULL_PACKET) * (_MIN_PACKETS - num_packets))
