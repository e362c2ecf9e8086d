"""Subtitles that overlap, in tracks that show one cue at a time: every line for its whole time.

What is expected is reckoned from the cues that a test writes, moment by moment; what is there is
read by Debian's ffmpeg.
"""

from __future__ import annotations

import re
import subprocess
from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srstream.media.subtitle_cues import Cue, one_at_a_time, with_ends
from srstream.media.types import TimeWindow
from srstream.media.verify import verify
from srstream.media.write.convert import _READERS, _WRITERS
from tests.support import clips
from tests.support.outputs import Made, make_output, packet_times

Written = tuple[int, int | None, str]
"""Start and end in milliseconds (None where no end is written), and the text."""

_TIMES = re.compile(r"(\d+):(\d+):(\d+),(\d+) --> (\d+):(\d+):(\d+),(\d+)")


def _write_source(path: Path, cues: Sequence[Written], codec: str = "subrip") -> Path:
    """Two seconds of video and the cues as packets, in the order given."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        texts = container.add_mux_stream(codec)
        texts.time_base = Fraction(1, 1000)
        for n in range(50):
            frame = clips.to_frame(clips.picture(n), "yuv420p", None)
            frame.pts, frame.time_base = n, Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        for number, (start, end, text) in enumerate(cues):
            if codec == "ass":
                text = f"{number},0,Default,,0,0,0,,{text}"
            packet = av.Packet(text.encode())
            packet.stream, packet.time_base = texts, Fraction(1, 1000)
            packet.pts = packet.dts = start
            packet.duration = 0 if end is None else end - start
            packet.is_keyframe = True
            container.mux(packet)
    return path


def _read(path: Path) -> list[tuple[int, int, list[str]]]:
    """(start, end, lines) of each cue, in milliseconds, by ffmpeg."""
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-map", "0:s:0", "-f", "srt", "-"]
    text = (
        subprocess.run(command, capture_output=True, check=True).stdout.decode().replace("\r", "")
    )
    found = []
    for block in text.strip().split("\n\n"):
        _, times, *lines = block.split("\n")
        numbers = [int(n) for n in _TIMES.fullmatch(times).groups()]
        start, end = (
            ((h * 60 + m) * 60 + s) * 1000 + ms for h, m, s, ms in (numbers[:4], numbers[4:])
        )
        found.append((start, end, lines))
    return found


def _shown(cues: Sequence[tuple[int, int, Sequence[str]]]) -> dict[str, set[int]]:
    """The milliseconds at which each line is on the screen."""
    shown: dict[str, set[int]] = defaultdict(set)
    for start, end, lines in cues:
        for line in lines:
            shown[line].update(range(start, end))
    return {line: times for line, times in shown.items() if times}


def _check(made: Made, wanted: Sequence[tuple[int, int, Sequence[str]]]) -> None:
    found = _read(made.path)
    for (_, end, _), (start, _, _) in pairwise(found):
        assert end <= start
    assert _shown(found) == _shown(wanted)


OVERLAPPING: list[Written] = [
    (0, 1800, "sign"),
    (100, 300, "one"),
    (200, 400, "two"),
    (400, 700, "three\r\nthree, second line"),
    (400, 700, "<i>at the same time</i>"),
    (900, 900 + 200, "alone"),
]
SHOWN = [
    (0, 1800, ["sign"]),
    (100, 300, ["one"]),
    (200, 400, ["two"]),
    (400, 700, ["three", "three, second line"]),
    (400, 700, ["at the same time"]),
    (900, 1100, ["alone"]),
]


@pytest.mark.parametrize("output", ["out.mp4", "out.mov"])
@pytest.mark.parametrize("codec", ["subrip", "ass"])
def test_each_line_is_shown_from_its_start_to_its_end(
    tmp_path: Path, codec: str, output: str
) -> None:
    cues = OVERLAPPING
    if codec == "ass":
        dressed = [(a, b, t.replace("\r\n", r"\N").replace("<i>", r"{\i1}")) for a, b, t in cues]
        cues = [(a, b, t.replace("</i>", r"{\i0}")) for a, b, t in dressed]
    _check(make_output(_write_source(tmp_path / "in.mkv", cues, codec), tmp_path / output), SHOWN)


def test_lines_stand_in_their_order_and_gaps_stay_empty(tmp_path: Path) -> None:
    cues: list[Written] = [(100, 900, "first"), (300, 500, "second"), (1200, 1500, "third")]
    made = make_output(_write_source(tmp_path / "in.mkv", cues), tmp_path / "out.mp4")
    assert _read(made.path) == [
        (100, 300, ["first"]),
        (300, 500, ["first", "second"]),
        (500, 900, ["first"]),
        (1200, 1500, ["third"]),
    ]


def test_a_cue_without_an_end_stays_until_the_next(tmp_path: Path) -> None:
    cues: list[Written] = [(100, None, "open"), (600, 800, "closed"), (1000, None, "last")]
    made = make_output(_write_source(tmp_path / "in.mkv", cues), tmp_path / "out.mp4")
    # Matroska's muxer of libav ends the last one with the film.
    _check(made, [(100, 600, ["open"]), (600, 800, ["closed"]), (1000, 2000, ["last"])])


def test_an_excerpt_cuts_cues_at_both_ends(tmp_path: Path) -> None:
    source = _write_source(tmp_path / "in.mkv", OVERLAPPING)
    window = TimeWindow(start_pts=200, end_pts=1000)  # Matroska counts in milliseconds
    made = make_output(source, tmp_path / "out.mp4", window=window)
    wanted = [(max(a, 200) - 200, min(b, 1000) - 200, lines) for a, b, lines in SHOWN]
    _check(made, [(a, b, lines) for a, b, lines in wanted if b > a])


def test_cues_that_come_before_their_time(tmp_path: Path) -> None:
    """As a tool may write them that sorts by speaker."""
    cues: list[Written] = [(0, 500, "a"), (600, 900, "b"), (700, 1900, "c"), (1400, 1700, "d")]
    source = _write_source(tmp_path / "in.mkv", cues)
    data = source.read_bytes()
    # Track 2, time in the cluster, no flags, text (RFC 9559, 10.1); b and d change places.
    first, second = (b"\x82%b\0" % time.to_bytes(2, "big") for time in (600, 1400))
    assert data.count(first + b"b") == data.count(second + b"d") == 1
    data = data.replace(first + b"b", b"later").replace(second + b"d", first + b"d")
    source.write_bytes(data.replace(b"later", second + b"b"))
    made = make_output(source, tmp_path / "out.mp4")
    wanted = [(0, 500, ["a"]), (600, 900, ["d"]), (700, 1900, ["c"]), (1400, 1700, ["b"])]
    _check(made, wanted)
    kept = make_output(source, tmp_path / "out.mkv")
    assert [round(1000 * time) for time in packet_times(kept.path, 1)] == [0, 600, 700, 1400]


@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.integers(0, 12), st.sampled_from(["a", "b", "c", ""])),
        max_size=12,
    )
)
def test_at_every_moment_the_lines_are_those_of_the_cues(
    drawn: list[tuple[int, int, str]],
) -> None:
    cues = [Cue(start, start + length, text) for start, length, text in drawn]
    swept = list(one_at_a_time(cues))
    for before, after in pairwise(swept):
        assert before.end is not None
        assert before.end <= after.start
    ordered = sorted(cues, key=lambda cue: cue.start)
    for moment in range(45):
        lines = [c.text for c in ordered if c.text and c.start <= moment < (c.end or 0)]
        now = [c.text for c in swept if c.start <= moment < (c.end or 0)]
        assert now == (["\n".join(dict.fromkeys(lines))] if lines else [])


def test_ends_that_are_not_said() -> None:
    cues = [Cue(50, None, "c"), Cue(10, None, "a"), Cue(10, None, "b"), Cue(60, None, "d")]
    assert [(c.start, c.end) for c in with_ends(cues, 100)] == [
        (10, 50),
        (10, 50),
        (50, 60),
        (60, 100),
    ]
    assert with_ends([Cue(200, None, "late")], 100)[0].end == 201


def test_drawings_are_no_text() -> None:
    read = _READERS["ass"]
    assert read(rb"0,0,S,,0,0,0,,{\p1}m 0 0 l 10 0 10 10{\p0}") == ""
    assert read(rb"0,0,S,,0,0,0,,left{\an7\p2}m 0 0{\p0\i1} right") == "left right"
    assert read(rb"0,0,S,,0,0,0,,{\pos(1,2)}kept{a remark}") == "kept"
    assert _WRITERS["mov_text"]("{laughs} {\\an8}ha") == b"\x00\x0b{laughs} ha"


def test_the_receipt_knows_drawings_too(tmp_path: Path) -> None:
    cues: list[Written] = [
        (100, 900, r"{\an7\p1}m 0 0 l 10 0 10 10{\p0}"),
        (300, 600, r"{\pos(1,2)}words"),
    ]
    made = make_output(_write_source(tmp_path / "in.mkv", cues, "ass"), tmp_path / "out.mp4")
    assert _read(made.path) == [(300, 600, ["words"])]
    assert not [text for text in verify(made.source.path, made.path).problems if "text" in text]


def test_a_text_too_long_for_a_sample_is_cut_between_letters() -> None:
    data = _WRITERS["mov_text"]("ä" * 40000)
    assert len(data) == 2 + 65534
    assert data[2:].decode() == "ä" * 32767
