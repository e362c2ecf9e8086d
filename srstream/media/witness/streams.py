"""Checks every stream besides the enhanced video: its presence, kind, packets and times."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil, floor

import numpy as np
from av.codec import Codec

from srstream.media.languages import spelled_language
from srstream.media.receipt import StreamReceipt
from srstream.media.witness.cues import READERS, cue_differences, shown_lines
from srstream.media.witness.stream_labels import (
    default_problems,
    label_losses,
    label_problems,
)
from srstream.media.witness.survey import Seconds, StreamFacts, Survey, Ticks

TEXTS = frozenset(READERS)
CLOCKS = {"mkv": Fraction(1, 1000), "webm": Fraction(1, 1000), "mpegts": Fraction(1, 90000)}
"""Units to which times are rounded."""

FROM_ZERO = frozenset({"mkv", "webm"})
"""Containers without negative times."""

SILENT = frozenset({"mpegts", "gif", "apng", "png_pipe", "webp"})
"""Containers that cannot hold chapters or a rotation."""

_PICTURES_ONLY = frozenset({"gif", "apng", "png_pipe", "webp"})

CARRIED = {
    "mp4": frozenset(
        {
            # MP3 at some rates only.
            *("aac", "ac3", "eac3", "mov_text", "dvd_subtitle"),
            *("h264", "hevc", "av1", "vp9", "mpeg4", "mpeg2video"),
        }
    ),
    "mov": frozenset({"aac", "ac3", "mp3", "alac", "pcm_s16le", "mov_text", "h264", "hevc"}),
    "webm": frozenset({"opus", "vorbis", "webvtt", "vp8", "vp9", "av1"}),
    "mpegts": frozenset({"aac", "ac3", "eac3", "mp2", "mp3", "h264", "hevc", "mpeg2video"}),
    "mkv": frozenset(
        {
            *("aac", "ac3", "eac3", "mp2", "mp3", "flac", "alac", "opus", "vorbis", "dts"),
            *("truehd", "pcm_s16le", "pcm_s24le", "subrip", "ass", "ssa", "webvtt"),
            *("hdmv_pgs_subtitle", "dvd_subtitle", "dvb_subtitle"),
            *("h264", "hevc", "av1", "vp8", "vp9", "mpeg4", "mpeg2video", "ffv1", "mjpeg"),
        }
    ),
}
"""What a container certainly takes unchanged; if such a stream is not copied, that is a fault."""

_TOLERANCE = Fraction(1, 1000)
_PRIMING, _PADDING = Fraction(1, 10), Fraction(1, 4)
"""Seconds by which re-encoded audio may begin and end differently."""

_MAX_EARLY = 1000
"""Number of packets searched for those before zero, or for the one that ends last."""

_LAYERS = {"mp1", "mp2", "mp3"}
"""MPEG audio layers share one number in MP4; only a decoder tells them apart."""


@dataclass(frozen=True, slots=True)
class Promise:
    """The plan for one stream: copy, convert (to `codec`), drop or enhance."""

    index: int
    action: str
    codec: str | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Promises:
    """The plan for all streams."""

    streams: tuple[Promise, ...]
    has_hdr: bool
    """Whether the encoder gets the static HDR metadata."""


@dataclass(frozen=True, slots=True)
class Placing:
    """A mapping of the source's seconds: those in [start, end), moved back by `shift`."""

    shift: Fraction
    start: Fraction | None
    end: Fraction | None


@dataclass(slots=True)
class Inventory:
    """The result of comparing the streams."""

    streams: list[StreamReceipt] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)
    largest_offset_change: Fraction = Fraction(0)


def compare_streams(
    source: Survey, output: Survey, placing: Placing, promises: Promises | None
) -> Inventory:
    """Pair the streams by kind and order, and compare each pair.

    Args:
        promises: those of the plan, if known; else each stream must be kept as `CARRIED` says.
    """
    result = Inventory()
    pairs = _pairs(source, output)
    said = {} if promises is None else {promise.index: promise for promise in promises.streams}
    result.problems += default_problems(output)
    for before in source.streams:
        index = pairs.get(before.index)
        now = None if index is None else output.streams[index]
        action, moved = "enhance", None
        if before.index != source.video:
            action = _fate(result, source, output, before, now, said.get(before.index), placing)
            if now is not None:
                moved = _compare(result, before, now, placing, action, output.brand)
        elif now is not None:
            result.problems += label_problems(before, now, output.brand)
            result.losses += label_losses(before, now, output.brand)
        if moved is not None and before.kind == "audio":
            result.largest_offset_change = max(result.largest_offset_change, abs(moved))
        result.streams.append(_receipt(before, now, action, moved, placing))
    taken = set(pairs.values())
    for facts in output.streams:
        if facts.index not in taken and facts.kind != "data":
            result.problems.append(f"{facts.name()} of the output is not in the source")
    return result


def _fate(
    result: Inventory,
    source: Survey,
    output: Survey,
    before: StreamFacts,
    now: StreamFacts | None,
    promise: Promise | None,
    placing: Placing,
) -> str:
    """Determine what happened to a stream; note it as a loss if planned, else as a problem."""
    brand = output.brand
    if now is None:
        if promise is not None and promise.action == "drop":
            result.losses.append(f"{before.name()} is left out: {promise.reason}.")
        elif promise is None and _may_lack(before, brand):
            result.losses.append(f"{before.name()} is left out: {_why(brand)}.")
        elif before.kind == "data":
            return "convert"  # chapter titles, which are compared as chapters
        elif not _is_empty(before, placing):
            result.problems.append(f"{before.name()} is missing")
        return "drop"
    if _same_codec(before, now):
        return "copy"
    wanted = before.codec if promise is None else _canonical(promise.codec or before.codec)
    surely = brand in CARRIED and before.codec in CARRIED[brand] and before.is_described
    meant = not surely if promise is None else promise.action == "convert" and now.codec == wanted
    meant &= before.kind == "audio" or (before.codec in TEXTS and now.codec in TEXTS)
    if not meant:
        result.problems.append(f"{before.name()} became {now.codec}")
    elif before.kind == "audio" or before.codec in ("ass", "ssa"):
        reason = promise.reason if promise is not None and promise.reason else _why(brand)
        result.losses.append(f"{before.name()} becomes {now.codec}: {reason}.")
    return "convert"


def _canonical(encoder: str) -> str:
    """Return the codec's own name for that of an encoder (libopus is opus)."""
    for mode in ("w", "r"):
        with contextlib.suppress(ValueError):
            return Codec(encoder, mode).canonical_name
    return encoder


def _may_lack(facts: StreamFacts, brand: str) -> bool:
    """Return whether a container may omit such a stream."""
    if brand in _PICTURES_ONLY:
        return True
    if facts.kind == "attachment":
        return brand != "mkv"
    if facts.kind == "data" or facts.codec == "unknown" or not facts.is_described:
        return True
    if facts.kind == "picture":
        return brand not in ("mkv", "mp4") or (
            brand == "mp4" and facts.codec not in ("mjpeg", "png", "bmp")
        )
    if facts.kind == "audio" or facts.codec in TEXTS:
        return brand == "mpegts" and facts.kind != "audio"
    return facts.codec not in CARRIED.get(brand, ())


def _why(brand: str) -> str:
    names = {"mp4": "MP4", "mov": "MOV", "mkv": "Matroska", "webm": "WebM", "gif": "GIF"}
    name = "an animation" if brand in _PICTURES_ONLY else "the container"
    return f"{names.get(brand, name)} cannot carry it"


def _compare(
    result: Inventory,
    before: StreamFacts,
    now: StreamFacts,
    placing: Placing,
    action: str,
    brand: str,
) -> Fraction | None:
    """Compare a stream with its partner; return by how much it moved, if that is known."""
    result.problems += label_problems(before, now, brand)
    result.losses += label_losses(before, now, brand)
    if before.kind in ("attachment", "picture"):
        if before.content != now.content or (
            before.kind == "picture" and before.checksum != now.checksum
        ):
            result.problems.append(f"{before.name()} holds other bytes than in the source")
        return None
    tolerance = _TOLERANCE + CLOCKS.get(brand, Fraction(0)) + before.base / 2 + now.base / 2
    if before.codec in TEXTS and now.codec in TEXTS:
        shown = shown_lines(before.cues, placing.shift, placing.start, placing.end)
        differences = cue_differences(
            shown, shown_lines(now.cues, Fraction(0), None, None), tolerance
        )
        result.problems += [f"{before.name()}: {text}" for text in differences]
        return None
    if before.num_damaged and action == "copy":
        result.losses.append(f"{before.name()}: {before.num_damaged} damaged packets are left out")
    if action == "convert":
        return _compare_converted(result, before, now, placing)
    return _compare_packets(result, before, now, placing, tolerance, brand)


def _compare_packets(
    result: Inventory,
    before: StreamFacts,
    now: StreamFacts,
    placing: Placing,
    tolerance: Fraction,
    brand: str,
) -> Fraction | None:
    wanted, ends = _placed(before, placing)
    found = Seconds(np.sort(np.array(now.starts, np.int64)), now.base)
    # Matroska has no negative times, and only packets that extend to zero are kept.
    early = sum(end <= 0 for end in ends[:_MAX_EARLY]) if brand in FROM_ZERO else 0
    if before.codec.startswith("pcm_") and len(found) != len(wanted) and found and wanted:
        # MOV joins adjacent packets of PCM: the first one and the number of bytes are compared.
        wanted, found = wanted[:1], found[:1]
        if before.num_bytes > now.num_bytes and placing.start is placing.end is None:
            result.problems.append(
                f"{before.name()} holds {now.num_bytes} bytes, the source {before.num_bytes}"
            )
    # An additional video that is cut between its keyframes begins with undecodable packets.
    is_torn = before.kind == "video" and placing.start is not None
    said = result.losses if is_torn or before.num_unframed else result.problems
    count = len(found) + now.num_unstamped
    if not len(wanted) - early <= count <= len(wanted):
        # Packets around a damaged one may be lost with it, or be parsed differently.
        lost = abs(len(wanted) - count) > early + 2 * before.num_unframed
        said = result.problems if lost else said
        said.append(f"{before.name()} holds {count} packets, the source {len(wanted)}")
        return None
    same_size = before.num_packets == now.num_packets and before.num_bytes == now.num_bytes
    if same_size and before.checksum != now.checksum:
        result.problems.append(f"{before.name()} holds other bytes than in the source")
    if before.num_jumps or not found:
        return None
    last = min(len(wanted), len(found))
    pairs = zip(wanted[len(wanted) - last :], found[len(found) - last :], strict=True)
    moved = max((time - start for start, time in pairs), key=abs)
    if abs(moved) > tolerance:
        said.append(f"{before.name()} is moved by {float(moved) * 1000:.1f} ms against the video")
    return moved


def _compare_converted(
    result: Inventory, before: StreamFacts, now: StreamFacts, placing: Placing
) -> Fraction | None:
    wanted, wanted_ends = _placed(before, placing)
    if not wanted:
        return None
    if not now.starts:
        result.problems.append(f"{before.name()} holds no packets, the source {len(wanted)}")
        return None
    first, last = max(wanted[0], Fraction(0)), max(wanted_ends[-_MAX_EARLY:])
    begins = max(min(now.starts) * now.base, Fraction(0))
    ends = max(now.ends) * now.base
    moved = begins - first
    # The first packets of some codecs (WMA) only prime the decoder.
    filling = 3 * (wanted_ends[0] - wanted[0])
    if abs(moved) > max(_PRIMING, min(filling, _PADDING)):
        result.problems.append(
            f"{before.name()} is moved by {float(moved) * 1000:.1f} ms against the video"
        )
    elif not before.num_jumps and not _may_end(ends, wanted[-1], last):
        result.problems.append(
            f"{before.name()} ends at {float(ends):.3f} s, the source's at {float(last):.3f} s"
        )
    return None


def _may_end(ends: Fraction, start: Fraction, last: Fraction) -> bool:
    """Return whether audio may end there: within its last packet if that has a length, or nearby.

    Matroska states no packet length for some codecs (WavPack), a full packet's for others (TTA).
    """
    return ends >= start - _PADDING and (last == start or ends <= last + _PADDING)


def _placed(facts: StreamFacts, placing: Placing) -> tuple[Seconds, Seconds]:
    """Return when the wanted packets begin and end, in the output's seconds, sorted by start.

    Audio that goes back a little, as in damaged recordings, is placed at the time of the packet
    before it: no muxer accepts it earlier.
    """
    starts, ends = (np.array(ticks, np.int64) for ticks in (facts.starts, facts.ends))
    if facts.kind == "audio" and not facts.num_jumps:
        latest: Ticks = np.maximum.accumulate(starts, dtype=np.int64)
        starts, ends = latest, ends + (latest - starts)
    wanted = np.ones(len(starts), bool)
    if placing.end is not None:
        wanted &= starts < ceil(placing.end / facts.base)
    if placing.start is not None:
        first = ceil(placing.start / facts.base)
        is_shown = facts.kind == "subtitle"  # a visible one stays visible
        wanted &= (starts >= first) | (is_shown & (ends > floor(placing.start / facts.base)))
        starts = np.maximum(starts, first)
    order = np.argsort(starts[wanted], kind="stable")
    starts, ends = starts[wanted][order], ends[wanted][order]
    return (
        Seconds(starts, facts.base, placing.shift),
        Seconds(ends, facts.base, placing.shift),
    )


def _is_empty(facts: StreamFacts, placing: Placing) -> bool:
    """Return whether a stream has no packets to keep; muxers omit such tracks."""
    return facts.kind not in ("attachment", "picture") and not _placed(facts, placing)[0]


def _same_codec(before: StreamFacts, now: StreamFacts) -> bool:
    if before.kind in ("attachment", "picture"):
        return True
    return before.codec == now.codec or {before.codec, now.codec} <= _LAYERS


def _pairs(source: Survey, output: Survey) -> dict[int, int]:
    """Map source index to output index: similar streams of one kind, in the order of both."""
    pairs = {source.video: output.video}
    for kind in ("video", "audio", "subtitle", "attachment", "picture"):
        before = [s for s in source.streams if s.kind == kind and s.index != source.video]
        now = [s for s in output.streams if s.kind == kind and s.index != output.video]
        pairs |= _aligned(before, now)
    return pairs


def _aligned(before: list[StreamFacts], now: list[StreamFacts]) -> dict[int, int]:
    """Return the ordered pairing of highest similarity (as in the longest common subsequence)."""
    best: list[list[tuple[int, dict[int, int]]]] = [[(0, {})] * (len(now) + 1)]
    for old in before:
        row: list[tuple[int, dict[int, int]]] = [(0, {})]
        for n, new in enumerate(now):
            score, pairs = best[-1][n]
            joined = (score + _alikeness(old, new), pairs | {old.index: new.index})
            row.append(max(joined, best[-1][n + 1], row[n], key=lambda item: item[0]))
        best.append(row)
    return best[-1][-1][1]


def _alikeness(before: StreamFacts, now: StreamFacts) -> int:
    return (
        1
        + 8 * _same_codec(before, now)
        + 4 * (spelled_language(before.language) == spelled_language(now.language))
        + 2 * (before.content == now.content and before.num_packets == now.num_packets)
        + 2 * (before.checksum == now.checksum)
        + (before.title == now.title)
    )


def _receipt(
    before: StreamFacts,
    now: StreamFacts | None,
    action: str,
    moved: Fraction | None,
    placing: Placing,
) -> StreamReceipt:
    language = None if before.language == "und" else before.language
    kind = "video" if before.kind == "picture" else before.kind
    return StreamReceipt(
        index=before.index,
        type=kind,
        codec=before.codec,
        language=language,
        action=action,
        output_index=None if now is None else now.index,
        output_codec=None if now is None else now.codec,
        output_language=None if now is None or now.language == "und" else now.language,
        num_packets=len(_placed(before, placing)[0])
        or before.num_packets * (before.kind == "picture"),
        num_output_packets=0 if now is None else now.num_packets,
        offset_change_seconds=None if moved is None else float(moved),
    )
