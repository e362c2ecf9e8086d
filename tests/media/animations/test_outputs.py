"""An animation stays one: its frames, the time of each, how often it is shown, what is clear."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

import srstream
from srstream.config import EncodeConfig, JobConfig, ScaleConfig, SourceConfig
from srstream.errors import RefusedError
from srstream.jobs.events import Event, Started
from srstream.jobs.store import job_directory
from srstream.media.animations.formats import GIF, WEBP, slots
from srstream.media.animations.frames import turn_of, turned
from srstream.media.animations.hidden_colors import spread_colors
from srstream.media.output_checks import output_tables
from tests.jobs.test_disk_full import mount, small_disk  # noqa: F401 a fixture
from tests.media.animations import files
from tests.media.animations.files import DURATIONS
from tests.support import clips, ffmpeg
from tests.support.jobs import run

ENDINGS = ("gif", "png", "webp")
LONG = pytest.mark.long


def enhance(source: Path, output: Path, scale: float = 1.0, **part: float) -> list[str]:
    """Enhance in this process; return what was said beforehand."""
    config = JobConfig(scaling=ScaleConfig(scale=scale), source=SourceConfig(**part))
    said: list[str] = []

    def on_event(event: Event) -> None:
        if isinstance(event, Started):
            said.extend([*event.notes, *event.losses])

    result = srstream.enhance(source, output, config=config, overwrite=True, on_event=on_event)
    assert result.receipt is not None and result.receipt.ok
    assert not job_directory(output).exists()
    return said


def milliseconds(path: Path) -> list[int]:
    """The duration of each frame by ffprobe, of a WebP as its chunks state it."""
    if path.suffix == ".webp":
        return files.webp_durations(path)
    if path.suffix != ".gif":
        return [1000 * part // whole for part, whole in files.apng_delays(path)]
    frames = ffmpeg.probe(path, "-show_frames")["frames"]
    key = "duration_time" if "duration_time" in frames[0] else "pkt_duration_time"
    return [round(1000 * float(frame[key])) for frame in frames]


def plays(path: Path) -> int:
    """How often the file says that it is shown, 0 without end."""
    if path.suffix == ".webp":
        return files.webp_plays(path)
    if path.suffix != ".gif":
        return files.apng_control(path)[1]
    repetitions = files.gif_repetitions(path)
    return 1 if repetitions is None else repetitions + 1 if repetitions else 0


@ffmpeg.needs_ffmpeg
@pytest.mark.parametrize(
    ("source", "output", "num_plays", "scale"),
    [
        ("gif", "gif", 3, 4.0),
        ("gif", "webp", 0, 1.5),
        ("png", "apng", 1, 2.0),
        ("png", "gif", 0, 3.0),
        ("webp", "webp", 3, 2.0),
        ("webp", "gif", 1, 2.0),
        ("webp", "png", 0, 1.0),
    ],
)
def test_an_animation_stays_one(
    tmp_path: Path, source: str, output: str, num_plays: int, scale: float
) -> None:
    is_soft = source != "gif"
    frames = [files.ball(n, is_soft=is_soft) for n in range(5)]
    path = files.write(tmp_path / f"in.{source}", frames, DURATIONS, num_plays, files.LOSSLESS)
    target = tmp_path / f"out.{output}"
    enhance(path, target, scale)
    assert milliseconds(target) == DURATIONS
    assert plays(target) == num_plays
    made, _, _ = files.read(target)
    assert len(made) == 5
    for picture, original in zip(made, frames, strict=True):
        size = round(61 * scale), round(47 * scale)
        assert picture.shape == (size[1], size[0], 4)
        alpha = cv2.resize(original[..., 3], size, interpolation=cv2.INTER_LINEAR)
        assert (picture[..., 3] >= 128).mean() == pytest.approx((alpha >= 128).mean(), abs=0.02)
        if output == "gif":
            assert set(np.unique(picture[..., 3])) == {0, 255}
        seen = picture[..., 3] >= 128
        # The ball is red, and what is hidden is green: nothing of it may show at the edges.
        assert int(picture[seen][:, 1].max()) < 125
    receipt = srstream.verify(path, target)
    assert receipt.ok and receipt.num_frames_out == 5


def test_verify_finds_other_times_repetitions_and_pictures(tmp_path: Path) -> None:
    frames = [files.opaque(n) for n in range(5)]
    source = files.write(tmp_path / "in.webp", frames, DURATIONS, 3)
    large = [cv2.resize(frame, (4 * 61, 4 * 47)).astype(np.uint8) for frame in frames]
    for name in ("good.webp", "good.png"):
        good = files.write(tmp_path / name, large, DURATIONS, 3, files.LOSSLESS)
        assert srstream.verify(source, good).problems == []
    other = [70, 130, 40, 200, 130]
    faults: dict[str, tuple[list[files.Bgra], list[int], int]] = {
        "until 0.570 s": (large, other, 3),
        "shown 2 times": (large, DURATIONS, 2),
        "are there, the source has 5": (large[:4], DURATIONS, 3),
        "not shown at their times": (large, [80, 160, *DURATIONS[2:]], 3),
    }
    for ending in ("webp", "png"):
        for said, (pictures, durations, num_plays) in faults.items():
            bad = files.write(tmp_path / f"bad.{ending}", pictures, durations, num_plays)
            problems = srstream.verify(source, bad).problems
            assert any(said in problem for problem in problems) or (
                "not shown" in said and any("ms off" in problem for problem in problems)
            ), (said, problems)
    swapped = files.write(tmp_path / "bad.webp", [large[4], *large[1:]], DURATIONS, 3)
    assert srstream.verify(source, swapped).problems


@pytest.mark.parametrize("ending", ENDINGS)
def test_equal_frames_are_kept_apart(tmp_path: Path, ending: str) -> None:
    frames = [files.opaque(0), files.opaque(0), files.opaque(1), files.opaque(1), files.opaque(0)]
    source = tmp_path / "in.webp"
    parts = [files.Part(f, duration=d) for f, d in zip(frames, DURATIONS, strict=True)]
    files.write_webp(source, (61, 47), parts)
    target = tmp_path / f"out.{ending}"
    enhance(source, target)
    assert files.read(target)[1] == DURATIONS


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_animation_of_one_frame(tmp_path: Path, ending: str) -> None:
    source = files.write_webp(tmp_path / "in.webp", (61, 47), [files.Part(files.ball(1))], 1)
    target = tmp_path / f"out.{ending}"
    enhance(source, target)
    if ending == "png":  # libav writes a still one
        assert cv2.imread(str(target), cv2.IMREAD_UNCHANGED).shape == (47, 61, 4)
    else:
        frames, durations, _ = files.read(target)
        assert len(frames) == 1 and (ending == "gif" or durations == [100])


def test_a_lossless_webp_stays_lossless(tmp_path: Path) -> None:
    frames = [files.opaque(n) for n in range(3)]
    kinds = {}
    for name, options in (("lossless", files.LOSSLESS), ("lossy", (64, 80))):
        source = files.write(tmp_path / f"{name}.webp", frames, options=options)
        enhance(source, tmp_path / f"{name}_big.webp")
        data = (tmp_path / f"{name}_big.webp").read_bytes()
        kinds[name] = {kind for kind in (b"VP8L", b"VP8 ") if kind in data}
    assert kinds == {"lossless": {b"VP8L"}, "lossy": {b"VP8 "}}


# Videos


@ffmpeg.needs_ffmpeg
def test_a_fast_video_is_thinned_without_drift(tmp_path: Path) -> None:
    """60 frames in a second: a GIF's frame lasts 2/100 s at least."""
    source = clips.cfr(tmp_path / "in.mp4", frames=90, rate=60, width=32, height=24)
    target = tmp_path / "out.gif"
    said = enhance(source, target, 2.0, start_seconds=0.25, end_seconds=1.25)
    assert any("20 of 60 frames are left out: GIF shows at most 50 in" in text for text in said)
    found = milliseconds(target)
    assert len(found) == 40 and sum(found) == 1000 and set(found) <= {20, 30}
    assert plays(target) == 0


@ffmpeg.needs_ffmpeg
def test_rounded_times_do_not_add_up(tmp_path: Path) -> None:
    """30000/1001 frames in a second: each time is within half a unit of its own."""
    rate = Fraction(30000, 1001)
    source = clips.cfr(tmp_path / "in.mp4", frames=60, rate=rate, width=32, height=24)
    for ending, unit in (("gif", 10), ("webp", 1)):
        target = tmp_path / f"out.{ending}"
        enhance(source, target)
        times = np.cumsum([0, *milliseconds(target)])
        wanted = [1000 * n / rate for n in range(61)]
        assert max(abs(t - w) for t, w in zip(times.tolist(), wanted, strict=True)) <= unit / 2


@ffmpeg.needs_ffmpeg
def test_sound_is_left_out_and_said(tmp_path: Path) -> None:
    video = clips.cfr(tmp_path / "video.mp4", frames=10)
    source = ffmpeg.convert(
        video, tmp_path / "in.mp4", "-f", "lavfi", "-i", "sine=d=0.4", "-c:v", "copy"
    )
    for ending, label in (("gif", "GIF"), ("apng", "animated PNG"), ("webp", "animated WebP")):
        plan = srstream.plan(source, tmp_path / f"out.{ending}")
        (loss,) = (loss for loss in plan.losses if "audio" in loss)
        assert loss.endswith(f"is left out: {label} has no sound.")
        assert plan.codec == plan.container == ending
        assert plan.plays_in == ["browsers", "phones"]
    enhance(source, tmp_path / "out.gif")


@ffmpeg.needs_ffmpeg
@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_turned_video_is_upright(tmp_path: Path, degrees: int) -> None:
    plain = clips.cfr(tmp_path / "plain.mp4", frames=5, width=48, height=32)
    source = ffmpeg.convert(
        plain, tmp_path / "in.mp4", "-c", "copy", "-metadata:s:v", f"rotate={degrees}"
    )
    upright = ffmpeg.convert(source, tmp_path / "upright.png", "-frames:v", "1")  # ffmpeg turns it
    target = tmp_path / "out.apng"
    enhance(source, target, 2.0)
    wanted = cv2.imread(str(upright))
    made = cv2.cvtColor(files.read(target)[0][0], cv2.COLOR_BGRA2BGR)
    assert made.shape[:2] == (2 * wanted.shape[0], 2 * wanted.shape[1])
    small = cv2.resize(made, wanted.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - wanted).mean() < 8


@ffmpeg.needs_ffmpeg
def test_pixels_become_square(tmp_path: Path) -> None:
    plain = clips.cfr(tmp_path / "plain.mp4", frames=3, width=48, height=32)
    source = ffmpeg.convert(plain, tmp_path / "in.mp4", "-vf", "setsar=4/3", "-c:v", "libx264")
    said = enhance(source, tmp_path / "out.gif", 2.0)
    assert any("Pixels become square" in text for text in said)
    (stream,) = ffmpeg.probe(tmp_path / "out.gif", "-show_streams")["streams"]
    assert (stream["width"], stream["height"]) == (128, 64)


# What is refused, and what is left behind


def test_what_an_animation_cannot_have_is_refused(tmp_path: Path) -> None:
    source = files.write(tmp_path / "in.gif", [files.opaque(n) for n in range(2)])
    video = clips.cfr(tmp_path / "in.mp4", frames=3)
    wide = JobConfig(scaling=ScaleConfig(width=17000))
    for path, name, config, said in (
        (source, "out.gif", encoded(codec="h264"), "--codec cannot be chosen for GIF"),
        (source, "out.webp", encoded(crf=9), "--crf cannot be chosen for animated WebP"),
        (source, "out.webp", wide, "at most 16383 pixels a side"),
        (source, "out.jpg", JobConfig(), r"or in \.gif, \.webp or \.apng for an animation"),
        (video, "out.png", JobConfig(), "a video becomes a video and no picture"),
    ):
        with pytest.raises(RefusedError, match=said):
            srstream.plan(path, tmp_path / name, config=config)


def encoded(**settings: Any) -> JobConfig:
    return JobConfig(encode=EncodeConfig(**settings))


def test_a_plan_says_how_to_get_an_animation(tmp_path: Path) -> None:
    source = files.write(tmp_path / "in.webp", [files.opaque(n) for n in range(2)])
    hint = "To keep it an animation, name an output that ends in .gif, .webp or .apng (-o)."
    assert hint in srstream.plan(source).notes
    assert hint not in srstream.plan(source, tmp_path / "out.gif").notes
    assert hint not in srstream.plan(clips.cfr(tmp_path / "in.mp4", frames=3)).notes


@pytest.mark.parametrize("ending", ["gif", *(pytest.param(e, marks=LONG) for e in ENDINGS[1:])])
def test_an_existing_file_is_kept_and_a_kill_is_resumed(tmp_path: Path, ending: str) -> None:
    source = files.write(tmp_path / "in.gif", [files.opaque(n) for n in range(5)])
    target = tmp_path / f"out.{ending}"
    target.write_bytes(b"mine")
    command = ("enhance", source, "-o", target, "--scale", "4")
    refused = run(*command)
    assert refused.returncode == 2 and target.read_bytes() == b"mine"
    for failpoint in ("segment.journaled", "output.assembled"):
        killed = run(*command, "--overwrite", failpoint=failpoint)
        assert killed.returncode < 0 and target.read_bytes() == b"mine"
    enhance(source, target, 4.0)
    assert files.read(target)[1] == files.read(source)[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.gif", target.name]


@pytest.mark.parametrize("ending", ["webp", *(pytest.param(e, marks=LONG) for e in ENDINGS[:2])])
def test_a_full_disk_pauses_and_the_job_finishes_later(
    small_disk: Path,  # noqa: F811
    tmp_path: Path,
    ending: str,
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (6, 60, 80, 4), np.uint8)
    noise[..., 3] = 255
    durations = [50] * 6
    source = files.write(tmp_path / "in.webp", list(noise), durations, 0, files.LOSSLESS)
    target = small_disk / f"out.{ending}"
    assert mount("-o", "remount,size=720k", str(small_disk))
    full = run("enhance", source, "-o", target, "--scale", "2.5")
    assert full.returncode == 1 and "resumes" in full.stderr, full.stderr
    assert not target.exists()
    assert mount("-o", "remount,size=64m", str(small_disk))
    enhance(source, target, 2.5)
    assert [path.name for path in small_disk.iterdir()] == [target.name]


# Parts


def test_times_are_rounded_each_by_itself() -> None:
    base = Fraction(1, 30)
    made = slots(GIF, tuple(range(5, 35)), 1, base)
    starts = [slot.start for slot in made]
    assert starts == [round(100 * n / 30) for n in range(30)]
    assert made[-1].start + made[-1].length == 100
    assert all(b.start == a.start + a.length for a, b in pairwise(made))
    fast = slots(GIF, tuple(range(100)), 1, Fraction(1, 100))
    assert [slot.number for slot in fast] == list(range(0, 100, 2))
    assert [slot.length for slot in slots(WEBP, (0, 7), 9, Fraction(1, 1000))] == [7, 9]


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_turning_is_that_of_the_matrix(degrees: int) -> None:
    """Against OpenCV's; libav counts against the clock, and gives the matrix as 16.16 numbers."""
    cosine, sine = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    one = 1 << 16
    matrix = (cosine * one, sine * one, 0, -sine * one, cosine * one, 0, 0, 0, 1 << 30)
    picture = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    codes = {
        90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE,
    }  # fmt: skip
    wanted = cv2.rotate(picture, codes[degrees]) if degrees else picture
    assert np.array_equal(turned(picture, turn_of(matrix)), wanted)


def test_hidden_colors_become_those_beside_them() -> None:
    alpha = np.zeros((9, 60), np.uint8)
    alpha[:, :4] = 200
    color = np.full((9, 60), 7, np.uint8)
    color[:, :4] = 90
    filled, kept = spread_colors((color, alpha))
    assert np.array_equal(kept, alpha)
    assert (filled[:, :19] == 90).all() and (filled[:, 21:] == 7).all()
    assert spread_colors((color, alpha * 0))[0] is color


def test_the_names_of_outputs_are_those_of_the_daemon_too() -> None:
    tables = output_tables()
    for name in ("a.gif", "a.webp", "a.apng"):
        tables.check(Path(name), EncodeConfig())
        with pytest.raises(RefusedError, match="--codec cannot be chosen"):
            tables.check(Path(name), EncodeConfig(codec="h264"))
    tables.check(Path("a.png"), EncodeConfig(), Path("a.gif"))
    with pytest.raises(RefusedError, match="a video becomes a video and no picture"):
        tables.check(Path("a.png"), EncodeConfig(), Path("a.mp4"))


def test_an_animated_png_as_libav_reads_it(tmp_path: Path) -> None:
    """Another reader than the one that wrote it agrees about the frames."""
    source = files.write(tmp_path / "in.png", [files.ball(n, is_soft=True) for n in range(5)])
    enhance(source, tmp_path / "out.png")
    with av.open(str(tmp_path / "out.png")) as container:
        libav = [frame.to_ndarray(format="bgra") for frame in container.decode(video=0)]
    for one, other in zip(libav, files.read(tmp_path / "out.png")[0], strict=True):
        seen = other[..., 3] > 0
        assert np.array_equal(one[..., 3], other[..., 3])
        assert np.array_equal(one[seen], other[seen])
