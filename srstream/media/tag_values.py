"""Compares the values of metadata tags by meaning. Pure: text in, text out.

Containers store the same information differently: MP4 counts the seconds of `creation_time` since
1904, Matroska writes every key in capitals and calls a date DATE_RELEASED, QuickTime names its keys
like Java packages. Two tags are the same if they mean the same, however they are written.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from fractions import Fraction

from srstream.media.languages import spelled_language

FILE_KEYS = frozenset(
    {
        "major_brand", "minor_version", "compatible_brands", "encoder", "encoded_by",
        "encoding_tool", "software", "muxing_app", "writing_app", "duration", "vendor_id",
        "handler_name", "metadatacreator", "hasaudio", "hasvideo", "hasmetadata",
        "canseektoend", "has_keyframes", "gapless_playback", "hd_video", "media_type", "isomvers",
    }
)  # fmt: skip
"""Keys that describe the source file, not its content, and would be false in another file."""

_SYNONYMS = (
    {"creation_time", "creationdate", "date_digitized", "datetimeoriginal"},
    {"date", "year", "day", "date_released", "date_recorded", "release_date", "tyer", "tdrc"},
    {"comment", "comments", "description", "synopsis"},
    {"artist", "author", "performer"},
    {"album_artist", "albumartist"},
    {"track", "tracknumber", "track_number", "part_number"},
    {"disc", "discnumber", "disc_number"},
    {"location", "location-eng", "location.iso6709", "xyz"},
    {"encoder", "encoding_tool", "software", "encoded_by"},
    {"copyright", "rights"},
    {"language", "lang"},
)
"""Groups of keys that different containers use for the same thing."""

_PREFIXES = ("com.apple.quicktime.", "com.android.", "ia")
_NO_TIME = re.compile(r"(1970-01-01|1904-01-01|0000-00-00)")
"""Dates that a recorder without a clock writes."""

_TIME = re.compile(
    r"(\d{4})[-:/](\d{1,2})[-:/](\d{1,2})"
    r"(?:[T ]+(\d{1,2}):(\d{2})(?::(\d{2})(?:[.,](\d+))?)?\s*(Z|UTC|GMT|[+-]\d{2}:?\d{2})?)?",
    re.IGNORECASE,
)
_C_TIME = re.compile(  # AVI's IDIT: Sun Mar 09 12:00:00 2014
    r"(?:\w{3},? )?(\w{3}) +(\d{1,2}) (\d{2}):(\d{2}):(\d{2}) (\d{4})"
)
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?")


def plain_key(key: str) -> str:
    """Return a key in lower case without the prefixes that only some containers use.

    >>> plain_key("com.apple.quicktime.Title")
    'title'
    """
    low = key.strip().lower()
    for prefix in _PREFIXES[:2]:
        low = low.removeprefix(prefix)
    return low


def find_tag(key: str, tags: Mapping[str, str]) -> str | None:
    """Return the value of a key or of one of its synonyms; None if there is none."""
    wanted = plain_key(key)
    names = {wanted}.union(*(words for words in _SYNONYMS if wanted in words))
    by_name = {plain_key(name): value for name, value in tags.items()}
    if wanted in by_name:
        return by_name[wanted]
    return next((value for name, value in by_name.items() if name in names), None)


def same_tag(key: str, before: str, now: str) -> bool:
    """Return whether two values of a tag mean the same: as text, times, numbers or languages.

    >>> same_tag("creation_time", "2016-05-31 17:01:35", "2016-05-31T17:01:35.000000Z")
    True
    >>> same_tag("track", "01/12", "1")
    True
    """
    name = plain_key(key)
    if _plain_text(before) == _plain_text(now):
        return True
    if name in ("language", "lang"):
        return spelled_language(before) == spelled_language(now)
    times = as_time(before), as_time(now)
    if times[0] is not None and times[1] is not None:
        # MP4 counts whole seconds, and a bare date may have become a year.
        return abs(times[0] - times[1]) <= timedelta(seconds=1) or _same_date(before, now)
    if _same_date(before, now):
        return True
    if name in ("track", "disc", "part_number", "tracknumber", "discnumber"):
        return _number(before.split("/")[0]) == _number(now.split("/")[0]) is not None
    numbers = _number(before), _number(now)
    return numbers[0] is not None and numbers[0] == numbers[1]


def tag_losses(
    before: Mapping[str, str], now: Mapping[str, str], whose: str = "the tag"
) -> list[str]:
    """Return one sentence for each source tag that the output changes or lacks."""
    said = []
    for key, old in before.items():
        name = plain_key(key)
        if name in FILE_KEYS or name.startswith("_statistics") or not old.strip():
            continue
        if as_time(old) is None and _NO_TIME.match(old):
            continue
        new = find_tag(key, now)
        if new is None:
            said.append(f"{whose} {name} ({_short(old)}) is not there")
        elif not same_tag(key, old, new):
            said.append(f"{whose} {name} became {_short(new)}, the source says {_short(old)}")
    return said


def as_time(text: str) -> datetime | None:
    """Parse a date with a time of day, in UTC if no zone is given; None if it is not one.

    The epoch of a computer's or a container's clock (1970, 1904) does not count as a time.
    """
    text = text.strip()
    found = _C_TIME.fullmatch(text)
    if found is not None and found[1].lower() in _MONTHS:
        month = _MONTHS.index(found[1].lower()) + 1
        return _moment(int(found[6]), month, *(int(found[n]) for n in (2, 3, 4, 5)))
    found = _TIME.fullmatch(text)
    if found is None or found[4] is None or _NO_TIME.match(text):
        return None
    moment = _moment(*(int(found[n] or 0) for n in range(1, 7)))
    if moment is None:
        return None
    moment += timedelta(microseconds=int((found[7] or "0")[:6].ljust(6, "0")))
    zone = (found[8] or "Z").replace(":", "")
    if zone[0] in "+-":
        minutes = int(zone[1:3]) * 60 + int(zone[3:5])
        moment -= timedelta(minutes=minutes if zone[0] == "+" else -minutes)
    return moment


def iso_time(text: str) -> str:
    """Return a time in UTC as every muxer reads it; any other text unchanged.

    libavformat takes a time without a zone as the local time of the machine it runs on.
    """
    moment = as_time(text)
    if moment is None:
        return text
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _moment(
    year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0
) -> datetime | None:
    try:
        return datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError:
        return None


def _same_date(before: str, now: str) -> bool:
    """Return whether the shorter of two dates begins the other: 2014 and 2014-03-09."""
    parts = [re.match(r"(\d{4})(?:[-:/](\d{1,2})(?:[-:/](\d{1,2}))?)?(?!\d)", t.strip())
             for t in (before, now)]  # fmt: skip
    if parts[0] is None or parts[1] is None:
        return False
    if all(as_time(text) is not None for text in (before, now)):
        return False
    first, second = ([int(p) for p in found.groups() if p] for found in parts if found)
    length = min(len(first), len(second))
    return first[:length] == second[:length]


def _number(text: str) -> Fraction | None:
    text = text.strip()
    return Fraction(text) if _NUMBER.fullmatch(text) else None


def _plain_text(text: str) -> str:
    """Normalize what containers change in text: the ends of text and lines, and letter case."""
    text = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n")
    return "\n".join(line.rstrip() for line in text.strip("\0 \n\t").split("\n")).casefold()


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
