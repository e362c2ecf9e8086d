"""Compares how the two files label a stream: its language, title and disposition."""

from __future__ import annotations

from av.stream import Disposition

from srstream.media.languages import spelled_language
from srstream.media.tag_values import same_tag
from srstream.media.witness.survey import StreamFacts, Survey

KEPT_DISPOSITIONS = {
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
"""Dispositions that a container can store; MP4 has boxes for few of them."""


def label_problems(before: StreamFacts, now: StreamFacts, brand: str) -> list[str]:
    found = []
    old, new = spelled_language(before.language), spelled_language(now.language)
    if before.kind != "attachment" and "und" not in (old, new) and old != new:
        # A changed language is a different stream; a missing one only lacks a label.
        found.append(f"{before.name()}: its language became {new}, the source says {old}")
    mask = KEPT_DISPOSITIONS.get(brand, Disposition(0))
    if before.kind == "picture":
        mask = Disposition.attached_pic
    if before.kind == "video":
        mask &= ~Disposition.default  # `default_problems` looks at that.
    was, is_now = Disposition(before.disposition) & mask, Disposition(now.disposition) & mask
    if before.kind != "attachment" and was != is_now:
        found.append(
            f"stream {before.index}: its disposition became {is_now!r}, the source says {was!r}"
        )
    return found


def default_problems(output: Survey) -> list[str]:
    """Find out whether a player would show another video than the enhanced one."""
    videos = [s for s in output.streams if s.kind == "video"]
    if len(videos) < 2 or output.brand not in KEPT_DISPOSITIONS:
        return []
    return [
        f"stream {s.index} of the output is a second video that players show by default"
        for s in videos
        if s.index != output.video and Disposition(s.disposition) & Disposition.default
    ]


def label_losses(before: StreamFacts, now: StreamFacts, brand: str) -> list[str]:
    """Return the labels that a stream has lost, which are no reason to refuse it."""
    found = []
    language = spelled_language(before.language)
    if before.kind != "attachment" and language != "und" == spelled_language(now.language):
        found.append(f"{before.name()}: its language is not there")
    if (
        brand == "mkv"
        and before.kind != "attachment"
        and before.title
        and not same_tag("title", before.title, now.title or "")
    ):
        found.append(f"{before.name()}: its title became {now.title!r}")
    return found
