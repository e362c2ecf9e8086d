"""The receipt as a witness of the other streams: one is broken after the other, each is named.

A finished output is written anew with one thing changed. What is expected is known from that.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest

from srstream.media.verify import verify
from tests.support import clips
from tests.support.outputs import make_output
from tests.support.witness import Edit, check, remuxed, with_data


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A source with a second video, sound, text, a font and chapters, and its sound output."""
    folder = tmp_path_factory.mktemp("many")
    first = clips.many_streams(folder / "first.mkv")
    second = clips.write_clip(folder / "second.mkv", 50, width=32, height=24)
    source = remuxed(first, folder / "in.mkv", extra=second)
    made = make_output(source, folder / "out.mkv")
    receipt = verify(source, made.path, sample=2)
    assert receipt.problems == []
    assert [s.action for s in receipt.streams].count("copy") == len(receipt.streams) - 1
    return source, made.path


def moved(milliseconds: int, after: int = -1) -> Edit:
    def edit(packet: av.Packet) -> list[av.Packet]:
        if packet.pts > after:
            packet.pts += milliseconds
            packet.dts += milliseconds
        return [packet]

    return edit


def shortened(packet: av.Packet) -> list[av.Packet]:
    packet.duration = 150
    return [packet]


def renamed(packet: av.Packet) -> list[av.Packet]:
    return [with_data(packet, b"another line")]


def corrupted(packet: av.Packet) -> list[av.Packet]:
    data = bytearray(bytes(packet))
    data[-1] ^= 0x55
    return [with_data(packet, bytes(data))]


def chapter_edit(**changes: Any) -> Callable[[list[Any]], list[Any]]:
    def edit(chapters: list[Any]) -> list[Any]:
        base = chapters[1]["time_base"]
        times = {k: int(v / base) for k, v in changes.items() if isinstance(v, Fraction)}
        return [chapters[0], {**chapters[1], **changes, **times}]

    return edit


# Of the source: 0 the video, 1 and 2 sound, 3 and 4 text, 5 the second video, 6 a font.
STREAMS: dict[str, tuple[dict[str, Any], str]] = {
    "no sound": ({"drop": 2}, "Stream 2 (audio, aac) is missing"),
    "no text": ({"drop": 4}, "Stream 4 (subtitle, subrip, deu) is missing"),
    "late sound": ({"edits": {1: moved(40)}}, "Stream 1 (audio, aac) is moved by 40.0 ms"),
    "sound that drifts": ({"edits": {2: moved(25, after=1000)}}, "is moved by 25.0 ms"),
    "other sound": ({"edits": {1: corrupted}}, "Stream 1 (audio, aac) holds other bytes"),
    "less sound": (
        {"edits": {1: lambda p: [p] if p.pts < 1500 else []}},
        "Stream 1 (audio, aac) holds",
    ),
    "late text": ({"edits": {3: moved(300)}}, "Stream 3 (subtitle, subrip, eng): the text 'line 0"),
    "short text": ({"edits": {4: shortened}}, "is shown from 0.000 to 0.150 s, in the source from"),
    "other text": ({"edits": {3: renamed}}, "the text 'another line' is not in the source"),
    "no font": ({"fonts": lambda data: None}, "Stream 6 (attachment"),
    "another font": ({"fonts": lambda data: data[::-1]}, "holds other bytes"),
    "a language": (
        {"languages": {3: "fra"}},
        "its language became fra, the source says eng",
    ),
    "a disposition": ({"dispositions": {1: 64}}, "stream 1: its disposition became"),
    "no chapters": ({"chapters": lambda found: []}, "0 chapters are there, the source has 2"),
    "a chapter's title": (
        {"chapters": chapter_edit(metadata={"title": "Deux"})},
        "chapter 'Two' was renamed, to 'Deux'",
    ),
    "a chapter's start": (
        {"chapters": chapter_edit(start=Fraction(6, 5))},
        "chapter 'Two' begins at 1.2",
    ),
    "a chapter's end": (
        {"chapters": chapter_edit(end=Fraction(17, 10))},
        "chapter 'Two' ends at 1.7",
    ),
}


@pytest.mark.parametrize("name", STREAMS)
def test_a_broken_stream_is_named(tmp_path: Path, many: tuple[Path, Path], name: str) -> None:
    changes, words = STREAMS[name]
    source, output = many
    check(source, remuxed(output, tmp_path / "out.mkv", **changes), words, sample=2)


def test_a_second_video_that_is_missing_is_named(tmp_path: Path, many: tuple[Path, Path]) -> None:
    source, output = many
    with av.open(str(output)) as container:
        last = max(s.index for s in container.streams.video)
    check(source, remuxed(output, tmp_path / "out.mkv", drop=last), "(video, h264) is missing", 2)


def test_a_stream_too_many_is_named(tmp_path: Path, many: tuple[Path, Path]) -> None:
    source, output = many
    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        clips.write_sine(container, clips.add_audio(container, tmp_path / "a.mkv"), 440.0, 0.5)
    wrong = remuxed(output, tmp_path / "out.mkv", extra=tmp_path / "sound.mkv")
    check(source, wrong, "(audio, aac) of the output is not in the source", 2)


def test_sound_of_another_codec_is_named(tmp_path: Path, many: tuple[Path, Path]) -> None:
    source, output = many
    wrong = tmp_path / "out.mkv"
    with av.open(str(output)) as before, av.open(str(wrong), "w") as now:
        kept = {}
        for stream in before.streams:
            if not isinstance(stream, av.stream.AttachmentStream) and stream.index != 1:
                kept[stream.index] = now.add_stream_from_template(stream, opaque=True)
                if stream.index == 0:
                    sound = now.add_stream("flac", rate=48000, layout="mono")
        resampler = av.AudioResampler(sound.codec_context.format, "mono", 48000)
        for packet in before.demux():
            if packet.stream_index == 1:
                for frame in packet.decode():
                    for made in resampler.resample(frame):
                        now.mux(sound.encode(made))
            elif packet.size and packet.stream_index in kept:
                packet.stream = kept[packet.stream_index]
                now.mux(packet)
        now.mux(sound.encode(None))
    check(source, wrong, "Stream 1 (audio, aac) became flac", 2)


def test_a_tag_that_is_lost_is_said_and_no_reason_to_refuse(
    tmp_path: Path, many: tuple[Path, Path]
) -> None:
    source, output = many
    receipt = verify(source, remuxed(output, tmp_path / "out.mkv", tags=False), sample=2)
    assert receipt.problems == []
    assert "the tag title ('Many streams') is not there" in receipt.losses
