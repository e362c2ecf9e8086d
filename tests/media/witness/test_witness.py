"""The receipt as a witness: an output is broken in one respect after the other, each is named.

Broken are the pipeline's own functions, the plan, the frames on their way, or a finished output
that is written anew with one thing changed. What is expected is known from what was broken.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

import srstream
from srstream.config import EncodeConfig, JobConfig
from srstream.enhancer.enhancer import Enhancer
from srstream.errors import VerifyError
from srstream.frame import Frame, PlaneLayout
from srstream.media.read.deinterlace import Deinterlacer
from srstream.media.read.skipped import SkippedPackets
from srstream.media.receipt import Receipt
from srstream.media.types import WHOLE, OutputPlan, TimeWindow
from srstream.media.verify import verify
from tests.media.read.test_cropping import SOME, _with_pixel_crop
from tests.support import clips
from tests.support.jobs import run
from tests.support.outputs import Change, make_output

SAMPLES = [None, 4]


def said(receipt: Receipt) -> str:
    return "\n".join(receipt.problems)


def check(source: Path, output: Path, words: str, sample: int | None = None) -> None:
    """The receipt is not good, and says so in these words."""
    receipt = verify(source, output, sample=sample)
    assert not receipt.ok
    assert words in said(receipt), receipt.problems


# The frames on their way


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 frames of 64x48 in which something moves, BT.709 in limited range."""
    folder = tmp_path_factory.mktemp("plain")
    return clips.write_clip(folder / "in.mp4", 24, gop=8, color=clips.BT709, noise=6)


def every(change: Callable[[Frame], Frame]) -> Change:
    return lambda number, frame: [change(frame)]


def one(number: int, change: Callable[[Frame], list[Frame]]) -> Change:
    return lambda n, frame: change(frame) if n == number else [frame]


def with_planes(frame: Frame, *planes: Any) -> Frame:
    made = [np.ascontiguousarray(plane, frame.layout.dtype) for plane in planes]
    return replace(frame, planes=tuple(made))


def swapped_frames() -> Change:
    """The pictures of frames 12 and 13 change places, their times do not."""
    held: list[Frame] = []

    def change(number: int, frame: Frame) -> Iterable[Frame]:
        if number == 12:
            held.append(frame)
            return []
        if number == 13:
            return [replace(held[0], planes=frame.planes), replace(frame, planes=held[0].planes)]
        return [frame]

    return change


def repeated_picture() -> Change:
    """Frame 13 shows what frame 12 shows."""
    held: list[Frame] = []

    def change(number: int, frame: Frame) -> Iterable[Frame]:
        if number == 12:
            held.append(frame)
        return [replace(frame, planes=held[0].planes) if number == 13 else frame]

    return change


def late_pictures() -> Change:
    """Each frame shows what the one before it should."""
    held: list[Frame] = []

    def change(number: int, frame: Frame) -> Iterable[Frame]:
        held.append(frame)
        return [replace(frame, planes=held[max(number - 1, 0)].planes)]

    return change


def rounded(frame: Frame) -> Frame:
    """Its time brought to thirtieths of a second."""
    seconds = Fraction(round(frame.pts * frame.time_base * 30), 30)
    return replace(frame, pts=round(seconds / frame.time_base))


def moved_colour(frame: Frame) -> Frame:
    """Chroma enlarged as if it lay in the middle: a quarter of the source's sample off."""
    luma, blue, red = frame.planes
    half = [(plane.astype(float) + np.roll(plane, -1, 1)) / 2 for plane in (blue, red)]
    return with_planes(frame, luma, *half)


def other_matrix(frame: Frame) -> Frame:
    """Codes of BT.601 where BT.709 is stated."""
    y, u, v = (plane.astype(float) for plane in frame.planes)
    y = (y - 16) / 219
    u, v = ((np.kron(plane - 128, np.ones((2, 2)))) / 224 for plane in (u, v))
    red, blue = y + 1.5748 * v, y + 1.8556 * u
    green = (y - 0.2126 * red - 0.0722 * blue) / 0.7152
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    small = [
        (128 + 224 * plane).reshape(48, 2, 64, 2).mean((1, 3))
        for plane in ((blue - luma) / 1.772, (red - luma) / 1.402)
    ]
    return with_planes(frame, np.clip(16 + 219 * luma, 0, 255), *np.clip(small, 0, 255))


def range_change(scale: float, offset: float) -> Callable[[Frame], Frame]:
    def change(frame: Frame) -> Frame:
        luma, *chroma = (plane.astype(float) for plane in frame.planes)
        spread = [128 + (plane - 128) * (224 / 255 if scale < 1 else 255 / 224) for plane in chroma]
        return with_planes(frame, np.clip(luma * scale + offset, 0, 255), *np.clip(spread, 0, 255))

    return change


FRAMES: dict[str, tuple[Change, str]] = {
    "a frame is dropped": (one(5, lambda f: []), "23 frames are there, the source has 24"),
    "the last is dropped": (one(23, lambda f: []), "23 frames are there, the source has 24"),
    "a frame is doubled": (
        one(5, lambda f: [f, replace(f, pts=f.pts + 200)]),
        "25 frames are there, the source has 24",
    ),
    "pictures are swapped": (swapped_frames(), "is that of the frame after it"),
    "a picture is repeated": (repeated_picture(), "is that of the frame before it"),
    "pictures are late": (late_pictures(), "is that of the frame before it"),
    "a time is moved": (one(5, lambda f: [replace(f, pts=f.pts + 3)]), "a frame is shown 0.2"),
    "times are moved by a frame": (
        lambda n, f: [replace(f, pts=f.pts + 512 * (n > 3))],
        "1 frames are not shown at their times, the first at 0.160 s",
    ),
    "times drift": (lambda n, f: [replace(f, pts=f.pts + n)], "a frame is shown 1.797 ms off"),
    "times are rounded": (every(rounded), "a frame is shown"),
    "black": (one(23, lambda f: [with_planes(f, f.planes[0] * 0 + 16, *f.planes[1:])]), "black"),
    "upside down": (every(lambda f: with_planes(f, *(p[::-1] for p in f.planes))), "upside down"),
    "mirrored": (every(lambda f: with_planes(f, *(p[:, ::-1] for p in f.planes))), "mirrored"),
    "turned": (
        every(lambda f: with_planes(f, *(p[::-1, ::-1] for p in f.planes))),
        "turned by 180 degrees",
    ),
    "moved by a column": (
        every(lambda f: with_planes(f, np.roll(f.planes[0], 1, 1), *f.planes[1:])),
        "the picture is moved by +0.5",
    ),
    "moved by a row": (
        every(lambda f: with_planes(f, np.roll(f.planes[0], -1, 0), *f.planes[1:])),
        "the picture is moved by",
    ),
    "colour off its siting": (every(moved_colour), "color is moved by -0.2"),
    "chroma planes swapped": (
        every(lambda f: with_planes(f, f.planes[0], f.planes[2], f.planes[1])),
        "has its color planes swapped",
    ),
    "no colour": (
        every(lambda f: with_planes(f, f.planes[0], *(p * 0 + 128 for p in f.planes[1:]))),
        "has no color",
    ),
    "another matrix": (every(other_matrix), "has the colors of another matrix"),
    "range squeezed": (every(range_change(219 / 255, 16)), "has its range squeezed"),
    "range stretched": (every(range_change(255 / 219, -16 * 255 / 219)), "range stretched"),
}


@pytest.mark.parametrize("name", FRAMES)
def test_broken_frames_are_named(tmp_path: Path, plain: Path, name: str) -> None:
    change, words = FRAMES[name]
    source = tmp_path / "in.mp4"
    source.symlink_to(plain)
    made = make_output(source, tmp_path / "out.mp4", change=change)
    check(source, made.path, words)


def test_an_unbroken_output_has_no_problem(tmp_path: Path, plain: Path) -> None:
    source = tmp_path / "in.mp4"
    source.symlink_to(plain)
    made = make_output(source, tmp_path / "out.mp4")
    for sample in SAMPLES:
        receipt = verify(source, made.path, sample=sample)
        assert receipt.problems == receipt.losses == []


# What is written about the picture


def altered(**video: Any) -> Callable[[OutputPlan], OutputPlan]:
    return lambda plan: replace(plan, video=replace(plan.video, **video))


def recoloured(**color: Any) -> Callable[[OutputPlan], OutputPlan]:
    def alter(plan: OutputPlan) -> OutputPlan:
        return altered(color=replace(plan.video.color, **color))(plan)

    return alter


def without_hdr(plan: OutputPlan) -> OutputPlan:
    kept = [p for p in plan.video.options["x265-params"].split(":") if not p.startswith("max-cll")]
    options = plan.video.options | {"x265-params": ":".join(kept)}
    return altered(options=options)(plan)


def without_mastering(plan: OutputPlan) -> OutputPlan:
    params = plan.video.options["x265-params"].split(":")
    kept = [p for p in params if not p.startswith("master-display")]
    return altered(options=plan.video.options | {"x265-params": ":".join(kept)})(plan)


MIRRORED: tuple[int, ...] = (-65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)

LABELS: dict[str, tuple[Callable[[Path], Path], Callable[[OutputPlan], OutputPlan], str]] = {
    "primaries": (
        lambda p: clips.cfr(p, color=clips.BT709),
        recoloured(primaries=9),
        "color primaries became 9, the source says 1",
    ),
    "transfer": (
        lambda p: clips.cfr(p, color=clips.BT709),
        recoloured(transfer=13),
        "color transfer became 13, the source says 1",
    ),
    "matrix": (
        lambda p: clips.cfr(p, color=clips.BT709),
        recoloured(matrix=6),
        "color matrix became 6, the source says 1",
    ),
    "range": (
        lambda p: clips.cfr(p, color=clips.BT709),
        recoloured(full_range=True),
        "the range became full, the source's is limited",
    ),
    "siting": (clips.cfr, recoloured(chroma_location=3), "chroma siting became 3"),
    "pixel aspect": (
        clips.sar_and_rotation,
        altered(sample_aspect_ratio=Fraction(1)),
        "the pixel aspect became 1:1, the source's is 4:3",
    ),
    "rotation": (clips.sar_and_rotation, altered(display_matrix=None), "the rotation became 0"),
    "mirroring": (clips.cfr, altered(display_matrix=MIRRORED), "the rotation became"),
    "HDR mastering": (clips.hdr10, without_mastering, "HDR mastering metadata changed"),
    "HDR light level": (clips.hdr10, without_hdr, "HDR light levels changed"),
}


@pytest.mark.parametrize("name", LABELS)
def test_a_broken_description_is_named(tmp_path: Path, name: str) -> None:
    make, alter, words = LABELS[name]
    source = make(tmp_path / "in.mp4")
    config = JobConfig(encode=EncodeConfig(preset="ultrafast"))
    good = make_output(source, tmp_path / "good.mp4", config=config)
    assert verify(source, good.path, sample=2).problems == []
    made = make_output(source, tmp_path / "out.mp4", config=config, alter=alter)
    check(source, made.path, words, sample=2)


def test_a_lost_alpha_plane_is_named(tmp_path: Path) -> None:
    source = clips.alpha_ffv1(tmp_path / "in.mkv")
    good = make_output(source, tmp_path / "good.mkv")
    assert verify(source, good.path).problems == []
    layout = PlaneLayout("yuv", 8, 1, 1)
    made = make_output(
        source, tmp_path / "lost.mkv", alter=altered(layout=layout, pix_fmt="yuv420p")
    )
    check(source, made.path, "the alpha plane is not there")

    def opaque(number: int, frame: Frame) -> Iterable[Frame]:
        return [replace(frame, planes=(*frame.planes[:3], np.full_like(frame.planes[3], 255)))]

    made = make_output(source, tmp_path / "opaque.mkv", change=opaque)
    check(source, made.path, "mean of a color plane changes")


def test_a_lost_depth_is_named(tmp_path: Path) -> None:
    deep = clips.write_clip(tmp_path / "deep.mkv", 6, pix_fmt="yuv420p10le")
    flat = clips.write_clip(tmp_path / "flat.mkv", 6)
    assert verify(deep, make_output(deep, tmp_path / "good.mkv").path).problems == []
    check(deep, make_output(flat, tmp_path / "out.mkv").path, "10 bits became 8")


# The other streams


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


Edit = Callable[[av.Packet], Iterable[av.Packet]]


def remuxed(
    source: Path,
    target: Path,
    *,
    extra: Path | None = None,
    drop: int | None = None,
    edits: dict[int, Edit] | None = None,
    languages: dict[int, str] | None = None,
    dispositions: dict[int, int] | None = None,
    fonts: Callable[[bytes], bytes | None] = lambda data: data,
    chapters: Callable[[list[Any]], list[Any]] = lambda found: found,
    tags: bool = True,
) -> Path:
    """A copy of a Matroska file in which one thing is otherwise."""
    edits = edits or {}
    with (
        av.open(str(source)) as before,
        av.open(str(target), "w", container_options={"avoid_negative_ts": "disabled"}) as now,
    ):
        kept = {}
        inputs = [before] if extra is None else [before, av.open(str(extra))]
        for container in inputs:
            for stream in container.streams:
                if stream.index == drop:
                    continue
                if isinstance(stream, av.stream.AttachmentStream):
                    data = fonts(bytes(stream.data))
                    if data is not None:
                        now.add_attachment(stream.name or "", stream.mimetype or "", data)
                    continue
                added = now.add_stream_from_template(stream, opaque=True)
                added.time_base = stream.time_base
                added.metadata.update(stream.metadata)
                if languages and stream.index in languages:
                    added.metadata["language"] = languages[stream.index]
                added.disposition = (dispositions or {}).get(stream.index, stream.disposition)
                kept[container, stream.index] = added
        if tags:
            now.metadata.update(before.metadata)
        now.set_chapters(chapters(before.chapters()))
        for container, packet in _packets(inputs):
            index = packet.stream_index
            if (container, index) in kept:
                packet.stream = kept[container, index]
                for made in edits.get(index, lambda p: [p])(packet):
                    made.stream = kept[container, index]
                    now.mux(made)
    return target


def _packets(inputs: list[Any]) -> Iterator[tuple[Any, av.Packet]]:
    for container in inputs:
        yield from ((container, packet) for packet in container.demux() if packet.size)


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
    return [_copy(packet, b"another line")]


def corrupted(packet: av.Packet) -> list[av.Packet]:
    data = bytearray(bytes(packet))
    data[-1] ^= 0x55
    return [_copy(packet, bytes(data))]


def _copy(packet: av.Packet, data: bytes) -> av.Packet:
    made = av.Packet(data)
    made.time_base, made.pts, made.dts = packet.time_base, packet.pts, packet.dts
    made.duration, made.is_keyframe = packet.duration, packet.is_keyframe
    return made


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
        clips._write_sine(container, clips._add_audio(container, tmp_path / "a.mkv"), 440.0, 0.5)
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


# The pipeline's own functions


def test_a_crop_that_is_lost_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = _with_pixel_crop(tmp_path / "in.mkv", SOME)
    assert verify(source, make_output(source, tmp_path / "good.mkv").path).problems == []
    monkeypatch.setattr("srstream.media.read.probe.container_crop", lambda *what: WHOLE)
    check(source, make_output(source, tmp_path / "out.mkv").path, "the crop is not there")


def test_fields_that_stay_woven_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = clips.interlaced(tmp_path / "in.mp4")
    assert verify(source, make_output(source, tmp_path / "good.mp4").path).problems == []
    monkeypatch.setattr(Deinterlacer, "push", lambda self, frame: iter([(frame, frame)]))
    check(source, make_output(source, tmp_path / "out.mp4").path, "is not deinterlaced")


def palette_video(path: Path, frames: int = 12) -> Path:
    """Raw video of a palette, which AVI sends with the first packet only."""
    palette = np.random.default_rng(3).integers(60, 255, (256, 4), dtype=np.uint8)
    palette[:, 0] = 255  # opaque
    with av.open(str(path), "w") as container:
        stream = container.add_stream("rawvideo", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "pal8"
        for n in range(frames):
            codes = (np.arange(64) // 8 + np.arange(48)[:, None] // 8 * 8 + n).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray((codes, palette), format="pal8")
            frame.pts, frame.time_base = n, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_a_still_chart_of_two_fields_is_no_moved_picture(codec: str, tmp_path: Path) -> None:
    """Rows that the deinterlacer makes of their neighbors may seem moved by a part of a row."""
    source, output = tmp_path / "in.mkv", tmp_path / "out.mkv"
    chart = ["-f", "lavfi", "-i", "testsrc2=s=176x144:r=25:d=0.2", "-vf", "setfield=tff"]
    fields = ["-c:v", codec, "-flags", "+ilme+ildct", "-b:v", "4M"]
    subprocess.run(["ffmpeg", "-v", "error", *chart, *fields, source], check=True)
    done = run("enhance", source, "-o", output)
    assert done.returncode == 0, done.stderr
    assert "deinterlaced" in done.stderr


def test_a_palette_that_is_skipped_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault of old: every frame of an excerpt black, and the receipt saw black as well."""
    source = palette_video(tmp_path / "in.avi", 24)
    window = TimeWindow(start_pts=14)
    good = make_output(source, tmp_path / "good.mkv", window=window)
    assert verify(source, good.path, window=window, sample=4).problems == []
    monkeypatch.setattr(SkippedPackets, "give", lambda self, packet: packet)
    made = make_output(source, tmp_path / "out.mkv", window=window)
    receipt = verify(source, made.path, window=window, sample=4)
    assert "are black that are not black in the source" in said(receipt)


def two_parts(path: Path, first: dict[str, Any], second: dict[str, Any]) -> Path:
    """A transport stream whose second half is described otherwise."""
    parts = []
    for number, how in enumerate((first, second)):
        part = path.with_suffix(f".{number}.ts")
        pts = [number * 10 + n for n in range(10)]
        clips.write_clip(part, 10, pts=pts, gop=5, options={"bf": "1"}, format="mpegts", **how)
        parts.append(part.read_bytes())
    path.write_bytes(b"".join(parts))
    return path


PARTS: dict[str, tuple[dict[str, Any], dict[str, Any], Callable[[Any, Any], Any], str]] = {
    "pixel aspect": (
        {"sar": Fraction(12, 11)},
        {"sar": Fraction(16, 11)},
        lambda self, frame: replace(frame, sample_aspect_ratio=None),
        "another pixel aspect or size than the first, and is shown in its shape",
    ),
    "range": (
        {"color": clips.BT709},
        {"color": replace(clips.BT709, range=2)},
        lambda self, frame: replace(frame, color=replace(frame.color, full_range=False)),
        "has its range stretched",
    ),
    "matrix": (
        {"color": clips.BT709},
        {"color": replace(clips.BT709, matrix=6)},
        lambda self, frame: replace(frame, color=replace(frame.color, matrix=1)),
        "has the colors of another matrix",
    ),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_change_in_mid_stream_that_is_lost_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    first, second, lose, words = PARTS[name]
    source = two_parts(tmp_path / "in.ts", first, second)
    config = JobConfig.model_validate({"model": {"name": "fast", "restore": 0}})
    good = srstream.enhance(source, tmp_path / "good.mp4", config=config)
    assert verify(source, good.output).problems == []
    push = Enhancer.push
    monkeypatch.setattr(Enhancer, "push", lambda self, frame: push(self, lose(self, frame)))
    with pytest.raises(VerifyError, match=words):
        srstream.enhance(source, tmp_path / "out.mp4", config=config)


def test_cues_that_are_late_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault of old: cues that overlap were put one behind the other in MP4."""
    source = clips.write_clip(tmp_path / "plain.mkv", 50, subtitles=("eng",))

    def three(packet: av.Packet) -> list[av.Packet]:
        made = []
        for number, (start, length) in enumerate([(100, 900), (400, 300), (600, 1000)]):
            cue = _copy(packet, f"line {number}".encode())
            cue.pts = cue.dts = start
            cue.duration = length
            made.append(cue)
        return made

    source = remuxed(source, tmp_path / "in.mkv", edits={1: three})
    good = make_output(source, tmp_path / "good.mp4")
    assert verify(source, good.path).problems == []

    def in_a_row(cues: Any) -> Iterator[Any]:
        free = 0
        for cue in sorted(cues, key=lambda cue: cue.start):
            start = max(cue.start, free)
            free = start + cue.end - cue.start
            yield replace(cue, start=start, end=free)

    monkeypatch.setattr("srstream.media.write.mux.one_at_a_time", in_a_row)
    made = make_output(source, tmp_path / "out.mp4")
    check(source, made.path, "the text 'line 1' (and 1 more) is shown from 1.000 to 1.300 s")
