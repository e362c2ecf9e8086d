"""Comparing what an output holds besides its pixels: streams, tags, chapters, description."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from av.container import InputContainer
from av.sidedata.sidedata import Type as SideDataType
from av.stream import AttachmentStream, Disposition, Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from srstream.errors import MediaError
from srstream.frame import ColorSpec
from srstream.media.color import chroma_location, frame_color, mastering_display
from srstream.media.containers import (
    CONTAINERS,
    Container,
    canonical_codec,
    describe,
    family_of,
    losses_of,
    plan_streams,
)
from srstream.media.demux import Clock, ReadFault, is_picture, open_source, read_packets
from srstream.media.errors import sentence
from srstream.media.languages import QUICKTIME_LANGUAGES, spelled_language
from srstream.media.layouts import layout_of
from srstream.media.meaning import same_tag, tag_losses
from srstream.media.mux import Placing
from srstream.media.receipt import PictureReceipt, StreamReceipt
from srstream.media.siting import same_siting, states_siting
from srstream.media.types import SourceInfo, StreamInfo, StreamPlan

MAX_PIXELS = 2**31 - 1

DEPTH_LIMITS = {"h264": 10, "hevc": 12, "av1": 10, "vp9": 8, "ffv1": 16, "prores": 10}
ALPHA_CODECS = frozenset({"ffv1"})
FIXED_MATRICES = {"vp8": 5, "mjpeg": 5}
"""BT.601's, where a codec knows no other (RFC 6386, 9.2; JFIF)."""

_PRIMING_SECONDS = Fraction(1, 10)
_KEPT_DISPOSITIONS = {
    "mkv": Disposition.default
    | Disposition.forced
    | Disposition.hearing_impaired
    | Disposition.visual_impaired
    | Disposition.original
    | Disposition.comment,
    "mov": Disposition(0),
    "mp4": Disposition.hearing_impaired | Disposition.visual_impaired,
    "webm": Disposition.default | Disposition.forced,
}
"""Dispositions that a container can say; MP4 has a box for few of them."""


@dataclass(slots=True)
class StreamFacts:
    """What a pass over a file's packets tells of one stream. Times in seconds."""

    num_packets: int = 0
    num_bytes: int = 0
    num_before_zero: int = 0
    first: Fraction | None = None
    first_after_zero: Fraction | None = None


@dataclass(slots=True)
class Inventory:
    """The comparison of two files' streams."""

    streams: list[StreamReceipt] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)
    largest_offset_change: Fraction = Fraction(0)


def output_container(source: SourceInfo, output: SourceInfo) -> Container:
    """Which of our containers the output is in."""
    names = output.container.split(",")
    if "matroska" in names:
        return CONTAINERS["webm" if _is_webm(output.path) else "mkv"]
    if "mov" in names:
        return CONTAINERS["mov" if _is_quicktime(output.path) else "mp4"]
    return family_of(source)


def enhanced_index(source: SourceInfo, output: InputContainer) -> int:
    """The number of the enhanced video in the output: as many videos lie before it."""
    before = [
        s
        for s in source.streams
        if s.type == "video" and not s.is_attached_picture and s.index < source.video.index
    ]
    videos = [s for s in output.streams.video if not is_picture(s)]
    if not videos:
        raise MediaError(sentence(source.path, "the output holds no video"))
    # A video before it may not be carried by the output's container.
    return videos[min(len(before), len(videos) - 1)].index


def count_packets(path: Path, video_index: int, placing: Placing | None) -> dict[int, StreamFacts]:
    """One pass over the packets that are not of the main video; `placing` moves and cuts them."""
    facts: dict[int, StreamFacts] = {}
    clocks: dict[int, Clock] = {}
    with open_source(path, MAX_PIXELS) as container:
        streams = [s for s in container.streams if s.index != video_index]
        for stream in streams:
            facts[stream.index] = StreamFacts()
            clocks[stream.index] = Clock(stream.time_base or Fraction(1, 1000))
        for packet in read_packets(container, *streams) if streams else ():
            if isinstance(packet, ReadFault):
                continue
            clocks[packet.stream_index].correct(packet)
            stamp = packet.pts if packet.pts is not None else packet.dts
            found = facts[packet.stream_index]
            if stamp is None:
                found.num_packets += is_picture(packet.stream)
                continue
            base = Fraction(packet.time_base)
            moment, end = stamp * base, (stamp + (packet.duration or 0)) * base
            if placing is not None:
                if placing.start is not None and moment < placing.start:
                    continue
                if placing.end is not None and moment >= placing.end:
                    continue
                moment, end = moment - placing.shift, end - placing.shift
            found.num_packets += 1
            found.num_bytes += packet.size
            found.num_before_zero += end <= 0
            found.first = moment if found.first is None else min(found.first, moment)
            if end > 0 and found.first_after_zero is None:
                found.first_after_zero = moment
    return facts


def compare_streams(
    source: SourceInfo,
    output: SourceInfo,
    video_shift: tuple[Fraction, Fraction],
    facts_in: dict[int, StreamFacts],
    facts_out: dict[int, StreamFacts],
    kind: Container,
    video_index: int,
    plans: tuple[StreamPlan, ...] | None = None,
) -> Inventory:
    """Pair the source's streams with the output's, by type and order, and compare each pair.

    Args:
        video_shift: (first video time expected, first video time found), in seconds.
        plans: what was announced; None: what the tables say.
    """
    result = Inventory()
    plans = plan_streams(source, kind) if plans is None else plans
    result.losses += losses_of(source, plans, kind)
    infos = {s.index: s for s in source.streams}
    wanted = [p for p in plans if p.action != "drop" and p.type != "data"]
    wanted = [p for p in wanted if _is_there(p, infos[p.index], facts_in, kind)]
    with (
        open_source(source.path, MAX_PIXELS) as before,
        open_source(output.path, MAX_PIXELS) as now,
    ):
        pairs = _pair(wanted, infos, output, video_index)
        for plan in plans:
            index = pairs.get(plan.index)
            info = infos[plan.index]
            fact_in = facts_in.get(plan.index, StreamFacts())
            fact_out = facts_out.get(index, StreamFacts()) if index is not None else StreamFacts()
            offset = _offset_change(plan, fact_in, fact_out, video_shift)
            result.streams.append(
                _stream_receipt(info, plan, index, output, fact_in, fact_out, offset)
            )
            if plan not in wanted:
                continue
            if index is None:
                result.problems.append(f"{describe(info)} is missing")
                continue
            partner = output.streams[index]
            result.problems += _differences(info, plan, partner)
            result.losses += _label_losses(info, plan, partner, kind)
            result.problems += _tag_differences(
                before.streams[plan.index], now.streams[index], kind
            )
            if plan.action == "copy" and plan.type in ("audio", "subtitle"):
                result.problems += _count_differences(info, fact_in, fact_out, kind)
            if offset is not None and plan.type == "audio":
                result.largest_offset_change = max(result.largest_offset_change, abs(offset))
        result.losses += tag_losses(before.metadata, now.metadata)
    return result


def describe_picture(
    container: InputContainer, stream: VideoStream, frame: VideoFrame
) -> PictureReceipt:
    """How the first frame and the container describe a video."""
    context = stream.codec_context
    default = ColorSpec(
        int(context.color_primaries),
        int(context.color_trc),
        int(context.colorspace),
        {1: False, 2: True}.get(int(context.color_range)),
        chroma_location(frame),
    )
    color = frame_color(frame, default)
    layout = layout_of(frame.format.name)
    mastering: str | None = None
    light: tuple[int, int] | None = None
    side_data: Iterable[Any] = frame.side_data
    for data in side_data:
        if data.type == SideDataType.MASTERING_DISPLAY_METADATA:
            mastering = mastering_display(bytes(data))
        elif data.type == SideDataType.CONTENT_LIGHT_LEVEL:
            first, second = struct.unpack_from("=2I", bytes(data))
            light = (first, second)
    aspect = stream.sample_aspect_ratio or Fraction(1)
    return PictureReceipt(
        width=frame.width,
        height=frame.height,
        pix_fmt=frame.format.name,
        bits=layout.bits,
        has_alpha=layout.has_alpha,
        primaries=color.primaries,
        transfer=color.transfer,
        matrix=color.matrix,
        full_range=color.full_range,
        chroma_location=color.chroma_location,
        sample_aspect_ratio=f"{aspect.numerator}:{aspect.denominator}",
        rotation_degrees=frame.rotation,
        mastering_display=mastering,
        content_light_level=light,
    )


def picture_of_source(source: SourceInfo) -> PictureReceipt:
    """A source's video as it was probed."""
    video = source.video
    aspect = video.sample_aspect_ratio
    return PictureReceipt(
        width=video.width,
        height=video.height,
        pix_fmt=video.pix_fmt,
        bits=video.layout.bits,
        has_alpha=video.layout.has_alpha,
        primaries=video.color.primaries,
        transfer=video.color.transfer,
        matrix=video.color.matrix,
        full_range=video.color.full_range,
        chroma_location=video.color.chroma_location,
        sample_aspect_ratio=f"{aspect.numerator}:{aspect.denominator}",
        rotation_degrees=video.rotation_degrees,
        mastering_display=video.hdr.mastering_display,
        content_light_level=video.hdr.content_light_level,
    )


def compare_pictures(
    before: PictureReceipt, now: PictureReceipt, codec: str
) -> tuple[list[str], list[str]]:
    """(problems, losses) of the description of the video."""
    problems: list[str] = []
    losses: list[str] = []
    for name in ("primaries", "transfer", "matrix"):
        old, new = getattr(before, name), getattr(now, name)
        if old != new:
            message = f"colour {name} became {new}, the source says {old}"
            is_fixed = name == "matrix" and new == FIXED_MATRICES.get(codec)
            (losses if is_fixed else problems).append(message)
    is_rgb = layout_of(before.pix_fmt).kind == "rgb" == layout_of(now.pix_fmt).kind
    if bool(before.full_range) != bool(now.full_range) and not is_rgb:
        problems.append(
            f"the range became {_range(now.full_range)}, the source's is "
            f"{_range(before.full_range)}"
        )
    old, new, layout = before.chroma_location, now.chroma_location, layout_of(now.pix_fmt)
    if not same_siting(old, new, layout) and layout_of(before.pix_fmt).kind == "yuv":
        message = f"chroma siting became {new}, the source says {old}"
        (problems if states_siting(codec, layout, old) else losses).append(message)
    if not _same_aspect(before.sample_aspect_ratio, now.sample_aspect_ratio):
        problems.append(
            f"the pixel aspect became {now.sample_aspect_ratio}, the source's is "
            f"{before.sample_aspect_ratio}"
        )
    if before.rotation_degrees != now.rotation_degrees:
        problems.append(
            f"the rotation became {now.rotation_degrees}, the source's is {before.rotation_degrees}"
        )
    if now.bits < before.bits:
        message = f"{before.bits} bits became {now.bits}"
        (losses if now.bits >= DEPTH_LIMITS.get(codec, 8) else problems).append(message)
    if before.has_alpha and not now.has_alpha:
        (problems if codec in ALPHA_CODECS else losses).append("the alpha plane is not there")
    for name, label in (
        ("mastering_display", "HDR mastering metadata"),
        ("content_light_level", "HDR light levels"),
    ):
        if getattr(before, name) and getattr(before, name) != getattr(now, name):
            (problems if codec == "hevc" else losses).append(f"{label} changed or are not there")
    return problems, losses


def _range(full: bool | None) -> str:
    return "full" if full else "limited"


def _same_aspect(old: str, new: str) -> bool:
    a, b = (Fraction(*(int(part) for part in text.split(":"))) for text in (old, new))
    return abs(a / b - 1) < Fraction(1, 1000)


def _is_there(
    plan: StreamPlan, info: StreamInfo, facts: dict[int, StreamFacts], kind: Container
) -> bool:
    """Whether a stream must be in the output; MP4 leaves out tracks without a packet."""
    if kind.name not in ("mp4", "mov") or plan.action == "enhance" or info.is_attached_picture:
        return True
    return facts.get(plan.index, StreamFacts()).num_packets > 0


def _pair(
    wanted: list[StreamPlan],
    infos: dict[int, StreamInfo],
    output: SourceInfo,
    video_index: int,
) -> dict[int, int]:
    """Source index to output index. Streams pair by kind in order, after those that must be."""
    pairs: dict[int, int] = {}
    free = [s for s in output.streams if s.index != video_index]
    for plan in wanted:
        info = infos[plan.index]
        if plan.action == "enhance":
            pairs[plan.index] = video_index
            continue
        codec = canonical_codec(plan.output_codec or plan.codec)
        same_kind = [s for s in free if _kind(s) == _kind(info)]
        best = [s for s in same_kind if canonical_codec(s.codec) == codec] or same_kind
        left = sum(_kind(infos[p.index]) == _kind(info) for p in wanted if p.index >= plan.index)
        languages = [s for s in best if _language(s) == _language(info)]
        # One is missing: find out which by the language, where that tells.
        chosen = languages if len(same_kind) < left else best
        if chosen:
            pairs[plan.index] = chosen[0].index
            free.remove(chosen[0])
    return pairs


def _kind(stream: StreamInfo) -> str:
    return "picture" if stream.is_attached_picture else stream.type


def _language(stream: StreamInfo) -> str:
    return spelled_language(stream.language)


def _stream_receipt(
    info: StreamInfo,
    plan: StreamPlan,
    index: int | None,
    output: SourceInfo,
    fact_in: StreamFacts,
    fact_out: StreamFacts,
    offset: Fraction | None,
) -> StreamReceipt:
    partner = output.streams[index] if index is not None else None
    return StreamReceipt(
        index=info.index,
        type=info.type,
        codec=info.codec,
        language=info.language,
        action=plan.action,
        output_index=index,
        output_codec=partner.codec if partner else None,
        output_language=partner.language if partner else None,
        num_packets=fact_in.num_packets,
        num_output_packets=fact_out.num_packets,
        offset_change_seconds=float(offset) if offset is not None else None,
    )


def _offset_change(
    plan: StreamPlan,
    fact_in: StreamFacts,
    fact_out: StreamFacts,
    video: tuple[Fraction, Fraction],
) -> Fraction | None:
    if plan.action != "copy":
        return None
    before, now = fact_in.first, fact_out.first
    if fact_in.num_packets != fact_out.num_packets:
        # Matroska lacks what lies before zero.
        before, now = fact_in.first_after_zero, fact_out.first_after_zero
    if before is None or now is None:
        return None
    return (now - video[1]) - (before - video[0])


def _differences(info: StreamInfo, plan: StreamPlan, partner: StreamInfo) -> list[str]:
    found = []
    wanted = canonical_codec(plan.output_codec or plan.codec)
    now = canonical_codec(partner.codec)
    # MP4 has one number for the layers of MPEG audio; only a decoder tells them apart.
    same = wanted == now or {wanted, now} <= {"mp1", "mp2", "mp3"}
    if plan.action != "enhance" and plan.type != "attachment" and not same:
        found.append(f"{describe(info)} became {now}")
    old, new = _language(info), _language(partner)
    if plan.type != "attachment" and "und" not in (old, new) and old != new:
        # Another language is another stream; none is only a label less.
        found.append(f"{describe(info)}: its language became {new}, the source says {old}")
    return found


def _label_losses(
    info: StreamInfo, plan: StreamPlan, partner: StreamInfo, kind: Container
) -> list[str]:
    """What a stream is no longer called; no reason to refuse it."""
    found = []
    language = _language(info)
    unsaid = kind.name == "mov" and language not in QUICKTIME_LANGUAGES  # announced as such
    if plan.type != "attachment" and language != "und" == _language(partner) and not unsaid:
        found.append(f"{describe(info)}: its language is not there")
    if kind.name == "mkv" and info.title and not same_tag("title", info.title, partner.title or ""):
        found.append(f"{describe(info)}: its title became {partner.title!r}")
    return found


def _tag_differences(before: Stream, now: Stream, kind: Container) -> list[str]:
    if isinstance(before, AttachmentStream) and isinstance(now, AttachmentStream):
        same = before.data == now.data and before.name == now.name
        return [] if same else [f"attachment {before.name} changed"]
    mask = _KEPT_DISPOSITIONS[kind.name]
    if is_picture(before):
        mask = Disposition.attached_pic
    old, new = before.disposition & mask, now.disposition & mask
    if old == new:
        return []
    return [f"stream {before.index}: its disposition became {new!r}, the source says {old!r}"]


def _count_differences(
    info: StreamInfo, before: StreamFacts, now: StreamFacts, kind: Container
) -> list[str]:
    if info.codec.startswith("pcm_") and before.num_bytes == now.num_bytes:
        return []  # MOV joins packets of PCM that lie side by side.
    # Of packets before zero, Matroska gets the last.
    least = before.num_packets - (before.num_before_zero if kind.clock is not None else 0)
    if least <= now.num_packets:
        return []
    return [f"{describe(info)} holds {now.num_packets} packets, the source {before.num_packets}"]


def compare_chapters(
    before: InputContainer, now: InputContainer, is_excerpt: bool
) -> tuple[int, int, list[str]]:
    """(chapters in, chapters out, problems)."""
    old, new = before.chapters(), now.chapters()
    if is_excerpt:
        return len(old), len(new), []
    if len(old) != len(new):
        return len(old), len(new), [f"{len(new)} chapters are there, the source has {len(old)}"]
    for a, b in zip(old, new, strict=True):
        if a["metadata"].get("title", "") != b["metadata"].get("title", ""):
            return len(old), len(new), [f"chapter {a['metadata'].get('title')!r} was renamed"]
    return len(old), len(new), []


def _is_webm(path: Path) -> bool:
    """Whether a Matroska file's header says WebM (its DocType)."""
    with path.open("rb") as file:
        return b"webm" in file.read(64)


def _is_quicktime(path: Path) -> bool:
    with open_source(path, MAX_PIXELS) as container:
        return container.metadata.get("major_brand", "").startswith("qt")
