"""Copies tags and chapters from one container to another."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

from av.container import InputContainer
from av.stream import Stream

from srstream.media.languages import spelled_language, three_letters
from srstream.media.tag_values import iso_time
from srstream.media.types import SourceInfo
from srstream.media.write.containers import Container

if TYPE_CHECKING:
    from av.container.core import Chapter

ITUNES_KEYS = frozenset(
    {
        "album", "album_artist", "artist", "comment", "composer", "compilation", "copyright",
        "creation_time", "date", "description", "disc", "episode_id", "episode_sort", "genre",
        "grouping", "hd_video", "keywords", "language", "lyrics", "media_type", "network",
        "rating", "season_number", "show", "synopsis", "timecode", "title", "track", "location",
        "purchase_date", "gapless_playback", "encoder",
    }
)  # fmt: skip
"""Tags for which MP4 has boxes; others need its free-form list."""

_ABOUT_THE_FILE = frozenset(
    {"major_brand", "minor_version", "compatible_brands", "encoder", "software", "duration"}
)
"""Tags that describe the source's file or encoder and would be false in the output."""

_ABOUT_THE_STREAM = frozenset(
    {"bps", "duration", "number_of_frames", "number_of_bytes", "vendor_id", "alpha_mode"}
)


def tags_of_content(container: InputContainer) -> set[str]:
    """Return the names of the source's own tags, in lower case, without those about its file."""
    names = {key.lower() for key in container.metadata} - _ABOUT_THE_FILE
    return {name for name in names if not name.startswith("location-")}


def container_tags(container: InputContainer, kind: Container) -> dict[str, str]:
    """Return the source's own tags, without those about its file."""
    tags = {k: v for k, v in container.metadata.items() if k.lower() not in _ABOUT_THE_FILE}
    tags = _with_clear_times(tags)
    if kind.name in ("mp4", "mov"):
        # libav repeats a location for each of its languages.
        tags = {k: v for k, v in tags.items() if not k.startswith("location-")}
        return {k.lower() if k.lower() in ITUNES_KEYS else k: v for k, v in tags.items()}
    return tags


def needs_free_tags(tags: dict[str, str]) -> bool:
    """Return whether MP4 must use its free-form list, which fewer players show."""
    return any(key.lower() not in ITUNES_KEYS for key in tags)


def stream_tags(
    template: Stream, source: SourceInfo, kind: Container, *, is_enhanced: bool
) -> dict[str, str]:
    """Return the tags of a source's stream, except for statistics that the output makes false."""
    tags: dict[str, str] = {}
    for key, value in template.metadata.items():
        low = key.lower()
        if low == "duration" or low.startswith("_statistics"):
            continue
        if is_enhanced and (low in _ABOUT_THE_STREAM or low == "encoder"):
            continue
        tags[key] = value
    if kind.name == "mov" and "language" in tags:
        tags["language"] = spelled_language(tags["language"])
    elif kind.name in ("mp4", "ts") and "language" in tags:
        tags["language"] = three_letters(tags["language"])
    title = tags.get("title") or tags.get("TITLE")
    if kind.name in ("mp4", "mov") and title and "handler_name" not in tags:
        # MP4 tracks have no title; all tools show the handler's name as one.
        tags["handler_name"] = title
    if kind.name == "mkv" and "mov" in source.container.split(","):
        handler = tags.pop("handler_name", "")
        if handler and not title and not _is_standard_handler(handler):
            tags["title"] = handler
    return _with_clear_times(tags)


def _with_clear_times(tags: dict[str, str]) -> dict[str, str]:
    return {k: iso_time(v) if k.lower() == "creation_time" else v for k, v in tags.items()}


def chapters_in_window(
    container: InputContainer, shift: Fraction, start: Fraction | None, end: Fraction | None
) -> list[Chapter]:
    """Return the source's chapters, cut to [start, end) seconds and moved back by `shift`."""
    kept: list[Chapter] = []
    for chapter in container.chapters():
        base = chapter["time_base"] or Fraction(1, 1000)
        first, last = chapter["start"] * base, chapter["end"] * base
        if start is not None:
            first = max(first, start)
        if end is not None:
            last = min(last, end)
        if first >= last and (start is not None or end is not None):
            continue
        moved: Chapter = {
            "id": chapter["id"],
            "start": round((first - shift) / base),
            "end": round((last - shift) / base),
            "time_base": base,
            "metadata": dict(chapter["metadata"]),
        }
        if moved["end"] >= 0 or not kept:
            moved["start"] = max(moved["start"], 0)
            kept.append(moved)
    return kept


def _is_standard_handler(name: str) -> bool:
    """Return whether a handler's name is a muxer's default rather than a title."""
    return not name.strip() or name.replace(" ", "").lower() in {
        "videohandler", "soundhandler", "subtitlehandler", "videohandle", "soundhandle",
        "core media video", "coremediavideo", "coremediaaudio", "datahandler", "mediahandler",
    }  # fmt: skip
