"""Names, contents and leftovers at the edge of what users have."""

from __future__ import annotations

import itertools
import os
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import numpy.typing as npt
import pytest

import srstream
from srstream.config import JobConfig, SourceConfig
from srstream.errors import UsageError
from srstream.jobs.store import job_directory
from tests.support import clips, nasty_clips
from tests.support.jobs import run, video_times

Picture = npt.NDArray[np.uint8]


def checkerboard() -> Picture:
    board = np.indices((48, 64)).sum(0) % 2 * 255
    return np.repeat(board[..., None], 3, 2).astype(np.uint8)


def scan_lines() -> Picture:
    image = clips.picture(0)
    image[1::2] = 0
    return image


def stars() -> Picture:
    image = np.zeros((48, 64, 3), np.uint8)
    generator = np.random.default_rng(3)
    image[generator.integers(0, 48, 60), generator.integers(0, 64, 60)] = 255
    return image


@pytest.mark.parametrize("make", [checkerboard, scan_lines, stars])
def test_detail_of_single_pixels_is_delivered(make: object, tmp_path: Path) -> None:
    image = make()  # type: ignore[operator]
    source = clips.write_clip(tmp_path / "in.mp4", [image] * 2, options={"crf": "10"})
    assert srstream.enhance(source).exit_code == 0


@pytest.mark.parametrize(
    "name", ["12:30 clip.mp4", "concat:a.mp4", "-dash.mp4", "[bold]x.mp4", "zwei Wörter.mp4"]
)
def test_any_name_works(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    clips.cfr(Path("in.mp4")).rename(tmp_path / name)
    done = run("enhance", "--", name)
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir()) == sorted([name, f"{Path(name).stem}_4x.mp4"])


def test_a_name_that_is_no_utf8_works(tmp_path: Path) -> None:
    name = os.fsdecode(b"a\xff.mp4")
    clips.cfr(tmp_path / "in.mp4").rename(tmp_path / name)
    assert run("enhance", tmp_path / name).returncode == 0
    assert os.path.exists(tmp_path / os.fsdecode(b"a\xff_4x.mp4"))


def test_long_names(tmp_path: Path) -> None:
    source = clips.cfr(tmp_path / "in.mp4")
    longest = tmp_path / ("x" * 251 + ".mp4")
    assert run("enhance", source, "-o", longest).returncode == 0
    assert longest.exists() and not job_directory(longest).exists()
    for arguments in (["enhance", longest], ["plan", longest], ["enhance", "y" * 300 + ".mp4"]):
        refused = run(*arguments)
        assert refused.returncode == 2, refused.stderr
        assert "too long" in refused.stderr


def test_avi_with_b_frames_is_shown_at_a_constant_rate(tmp_path: Path) -> None:
    source = clips.write_clip(tmp_path / "in.avi", 16, options={"bf": "2"}, noise=8)
    result = srstream.enhance(source)
    times = video_times(result.output)
    steps = {later - time for time, later in itertools.pairwise(times)}
    assert len(times) == 16 and steps == {Fraction(1, 25)}


def test_pcm_of_matroska_goes_into_mp4_as_aac(tmp_path: Path) -> None:
    source = tmp_path / "in.mkv"
    picture = clips.write_clip(tmp_path / "video.mp4", 12)
    with av.open(str(picture)) as video, av.open(str(source), "w") as container:
        copied = container.add_stream_from_template(video.streams.video[0])
        sound = container.add_stream("pcm_s16le", rate=48000, layout="stereo")
        for packet in video.demux(video=0):
            if packet.size:
                packet.stream = copied
                container.mux(packet)
        samples = np.zeros((1, 2 * 24000), np.int16)
        frame = av.AudioFrame.from_ndarray(samples, "s16", "stereo")
        frame.sample_rate, frame.pts = 48000, 0
        container.mux([*sound.encode(frame), *sound.encode(None)])
    result = srstream.enhance(source, tmp_path / "out.mp4")
    with av.open(str(result.output)) as container:
        assert container.streams.audio[0].codec_context.name == "aac"


def test_two_pictures_never_share_one_output(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "x.png"), np.full((16, 16, 3), 90, np.uint8))
    with pytest.raises(UsageError, match="folder by folder"):
        srstream.enhance_pictures(tmp_path / "**" / "*.png", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["header", "pages"])
def test_a_damaged_journal_says_how_to_go_on(damage: str, tmp_path: Path) -> None:
    source = clips.cfr(tmp_path / "in.mp4")
    output = tmp_path / "out.mp4"
    run("enhance", source, "-o", output, failpoint="segment.journaled")
    folder = job_directory(output)
    for path in folder.glob("journal.sqlite-*"):
        path.unlink()
    journal = folder / "journal.sqlite"
    content = journal.read_bytes()
    keep = 0 if damage == "header" else 100
    journal.write_bytes(content[:keep] + os.urandom(max(4096, len(content)) - keep))
    refused = run("enhance", source, "-o", output)
    assert refused.returncode == 1 and "--restart" in refused.stderr, refused.stderr
    anew = run("enhance", source, "-o", output, "--restart")
    assert anew.returncode == 0, anew.stderr


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.mp4"
    os.mkfifo(pipe)
    refused = run("enhance", pipe)
    assert refused.returncode == 2 and "regular file" in refused.stderr


def test_an_output_that_cannot_be_published_is_refused_at_once(tmp_path: Path) -> None:
    source = clips.cfr(tmp_path / "in.mp4")
    folder = tmp_path / "out.mp4"
    folder.mkdir()
    link = tmp_path / "link.mp4"
    link.symlink_to(tmp_path / "nowhere.mp4")
    for output, options in ((folder, ["--overwrite"]), (link, [])):
        refused = run("enhance", source, "-o", output, *options)
        assert refused.returncode == 2, refused.stderr
        assert not job_directory(output).exists()


def test_no_number_is_no_time() -> None:
    with pytest.raises(ValueError, match="finite"):
        JobConfig(source=SourceConfig(start_seconds=float("inf")))


def test_options_that_the_chosen_encoder_lacks_do_not_stop_an_automatic_choice(
    tmp_path: Path,
) -> None:
    source = nasty_clips.alpha_ffv1(tmp_path / "in.mkv")
    done = run("enhance", source, "--preset", "ultrafast", "--crf", "20")
    assert done.returncode == 0, done.stderr
    assert "ffv1 has no --preset" in done.stderr and "ffv1 has no --crf" in done.stderr
