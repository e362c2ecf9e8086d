"""Tags that say the same in other words, by examples from files and from the containers' rules."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from srstream.media.languages import spelled_language
from srstream.media.tag_values import find_tag, same_tag, tag_losses
from srstream.media.verify import verify
from tests.support import clips
from tests.support.outputs import make_output

TIME = "2016-05-31T17:01:35.000000Z"


@pytest.mark.parametrize(
    ("key", "before", "now"),
    [
        ("creation_time", "2016-05-31 17:01:35", TIME),
        ("creation_time", "2016-05-31T17:01:35Z", TIME),
        ("creation_time", "2016-05-31T17:01:35.987654Z", TIME),  # MP4 counts whole seconds
        ("creation_time", "2016-05-31T19:01:35+0200", TIME),
        ("creation_time", "2016-05-31T11:31:35-05:30", TIME),
        ("creation_time", "2016:05:31 17:01:35", TIME),  # Exif
        ("creation_time", "Tue May 31 17:01:35 2016", TIME),  # AVI's IDIT
        ("date", "2014-03-09", "2014"),
        ("date", "2014", "2014-03-09"),
        ("track", "1/12", "1"),
        ("track", "01", "1/12"),
        ("compilation", "1", "1.0"),
        ("language", "en", "eng"),
        ("language", "en-US", "eng"),
        ("language", "deu", "ger"),
        ("language", "fr", "fre"),
        ("title", "Caf\u00e9", "Cafe\u0301"),
        ("title", " A title ", "a title"),
        ("comment", "two\r\nlines", "two\nlines"),
    ],
)
def test_the_same_in_other_words(key: str, before: str, now: str) -> None:
    assert same_tag(key, before, now)
    assert same_tag(key, now, before)
    assert tag_losses({key: before}, {key.upper(): now}) == []


@pytest.mark.parametrize(
    ("key", "before", "now"),
    [
        ("creation_time", "2016-05-31 17:01:35", "2016-05-31T15:01:35.000000Z"),
        ("creation_time", "2016-05-31 17:01:35", "2017-05-31T17:01:35.000000Z"),
        ("date", "2014-03-09", "2015"),
        ("track", "1/12", "2"),
        ("language", "eng", "deu"),
        ("title", "One", "Two"),
        ("title", "2016", "20161"),
    ],
)
def test_another_meaning(key: str, before: str, now: str) -> None:
    assert not same_tag(key, before, now)
    (loss,) = tag_losses({key: before}, {key: now})
    assert key in loss
    assert before in loss


def test_other_names_of_a_key() -> None:
    assert find_tag("date", {"DATE_RELEASED": "2014"}) == "2014"
    assert find_tag("com.apple.quicktime.title", {"title": "x"}) == "x"
    assert find_tag("creation_time", {"com.apple.quicktime.creationdate": TIME}) == TIME
    assert find_tag("title", {"artist": "x"}) is None


def test_what_tells_of_the_file_alone_is_no_loss() -> None:
    old = {"major_brand": "isom", "ENCODER": "Lavf60", "creation_time": "1970-01-01T00:00:00Z"}
    assert tag_losses(old, {}) == []
    assert tag_losses({"title": "gone"}, {}) == ["the tag title ('gone') is not there"]


@pytest.mark.parametrize(
    ("language", "spelled"),
    [("en", "eng"), ("DEU", "ger"), ("zh-Hans", "chi"), ("eng,deu", "eng"), (None, "und")],
)
def test_one_spelling_of_a_language(language: str | None, spelled: str) -> None:
    assert spelled_language(language) == spelled


@pytest.mark.parametrize("ending", [".mp4", ".mov", ".mkv", ".webm"])
def test_a_time_without_a_zone_is_kept_and_verified(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FLV and AVI write times in a form that libav would take for the machine's local time."""
    plain = clips.write_clip(tmp_path / "plain.mkv", 6)
    source = tmp_path / "in.flv"
    tags = [f"creation_time={TIME}", "title=A Title", "date=2014"]
    options = [word for tag in tags for word in ("-metadata", tag)]
    subprocess.run(
        ["ffmpeg", "-v", "error", "-i", plain, *options, "-c", "copy", source], check=True
    )
    written = source.read_bytes()
    assert TIME.encode() in written
    # The same length without a zone, so that no size in the file changes.
    source.write_bytes(written.replace(TIME.encode(), b"2016-05-31 17:01:35.0000000"))
    monkeypatch.setenv("TZ", "America/New_York")
    output = tmp_path / f"out{ending}"
    make_output(source, output)
    receipt = verify(source, output)
    assert receipt.ok, receipt.problems
    assert not [loss for loss in receipt.losses if "tag" in loss]
    shown = subprocess.run(
        ["ffprobe", "-v", "error", "-show_entries", "format_tags", "-of", "flat", str(output)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "2016-05-31T17:01:35.000000Z" in shown, shown
    assert "A Title" in shown
