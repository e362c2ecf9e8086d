"""A job survives SIGKILL at every step and at any moment, and the result is the same."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from srstream.frame import ColorSpec, PlaneLayout
from srstream.jobs.failpoints import STEPS
from srstream.jobs.planning.plan import MAX_SEGMENT_MACS, cut_segments, longest_segment
from srstream.jobs.store import job_directory
from srstream.media.types import PacketIndex, TimeWindow, VideoInfo
from srstream.models.table import model_spec
from tests.support.jobs import file_hash, run, start, video_times

NUM_FRAMES = 72
RATE = 12


def write_source(path: Path) -> Path:
    """Six seconds of moving texture at 64x48, a keyframe every two, with a sound track."""
    generator = np.random.default_rng(5)
    texture = generator.integers(30, 220, (24, 40, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=RATE)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.options = {"g": "24", "sc_threshold": "0", "bf": "2", "crf": "20"}
        audio = container.add_stream("aac", rate=44100, layout="mono")
        for number in range(NUM_FRAMES):
            view = np.ascontiguousarray(
                texture[number % 40 : number % 40 + 48, number : number + 64]
            )
            container.mux(video.encode(av.VideoFrame.from_ndarray(view, "rgb24")))
        for number in range(44100 * NUM_FRAMES // RATE // 1024):
            tone = np.sin(np.arange(1024) * 0.05 + number).astype(np.float32)[None] * 0.2
            sound = av.AudioFrame.from_ndarray(tone, "fltp", "mono")
            sound.sample_rate, sound.pts = 44100, number * 1024
            container.mux(audio.encode(sound))
        container.mux(video.encode())
        container.mux(audio.encode())
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("source") / "clip.mp4")


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Hash of the uninterrupted result."""
    output = tmp_path_factory.mktemp("whole") / "out.mp4"
    done = run("enhance", source, "-o", output, "--deterministic")
    assert done.returncode == 0, done.stderr
    assert video_times(output) == video_times(source)
    return file_hash(output)


@pytest.mark.parametrize("step", [*STEPS, "segment.journaled:2", "segment.renamed:3"])
def test_a_kill_at_any_step_of_the_journal_costs_nothing(
    step: str, source: Path, expected: str, tmp_path: Path
) -> None:
    output = tmp_path / "out.mp4"
    killed = run("enhance", source, "-o", output, "--deterministic", failpoint=step)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    if step != "job.done":
        again = run("enhance", source, "-o", output, "--deterministic")
        assert again.returncode == 0, again.stderr
    assert file_hash(output) == expected
    assert os.listdir(tmp_path) == ["out.mp4"]


def children(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        yield from (int(child) for child in task.read_text().split())


def wait_for(condition: object, timeout_seconds: float = 60) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "the awaited state did not come"
        time.sleep(0.01)


def test_a_killed_decoder_is_replaced_and_the_result_is_the_same(
    source: Path, expected: str, tmp_path: Path
) -> None:
    output = tmp_path / "out.mp4"
    process = start("enhance", source, "-o", output, "--deterministic")
    wait_for(lambda: list(children(process.pid)))
    time.sleep(0.3)
    os.kill(next(children(process.pid)), signal.SIGKILL)
    assert process.wait(90) == 0
    assert file_hash(output) == expected


def test_the_decoder_dies_with_its_parent(source: Path, tmp_path: Path) -> None:
    process = start("enhance", source, "-o", tmp_path / "out.mp4")
    wait_for(lambda: list(children(process.pid)))
    child = next(children(process.pid))
    time.sleep(0.5)
    process.kill()
    process.wait()
    wait_for(lambda: not is_running(child), 60)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def kill_at(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """SIGKILL after `seconds`; False if the job was done before."""
    try:
        process.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True


@pytest.mark.parametrize(
    "num_kills", [3, pytest.param(30, marks=[pytest.mark.long, pytest.mark.timeout(900)])]
)
def test_kills_at_random_moments(
    num_kills: int, source: Path, expected: str, tmp_path: Path
) -> None:
    generator = random.Random(num_kills)
    output = tmp_path / "out.mp4"
    kills = 0
    while kills < num_kills:
        killed = kill_at(
            start("enhance", source, "-o", output, "--deterministic"), generator.uniform(0.2, 4.5)
        )
        kills += killed
        if not killed:
            assert file_hash(output) == expected
            output.unlink()
    if not output.exists() or job_directory(output).exists():
        again = run("enhance", source, "-o", output, "--deterministic")
        assert again.returncode == 0, again.stderr
    assert file_hash(output) == expected
    assert os.listdir(tmp_path) == ["out.mp4"]


def test_other_settings_or_another_source_are_refused(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    run("enhance", source, "-o", output, failpoint="segment.journaled")
    other_crf = run("enhance", source, "-o", output, "--crf", "30")
    assert other_crf.returncode == 3
    assert "differs in: --crf, " in other_crf.stderr and "--restart" in other_crf.stderr
    other_source = tmp_path / "other.mp4"
    other_source.write_bytes(source.read_bytes() + b"\0\0\0\x08free")
    changed = run("enhance", other_source, "-o", output)
    assert changed.returncode == 3 and "source" in changed.stderr
    anew = run("enhance", source, "-o", output, "--crf", "30", "--restart")
    assert anew.returncode == 0, anew.stderr


def test_the_first_interrupt_ends_at_once_and_the_job_resumes(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    process = start("enhance", source, "-o", output, "--deterministic")
    journal = job_directory(output) / "journal.sqlite"
    wait_for(lambda: journal.exists() and list(children(process.pid)))
    process.send_signal(signal.SIGINT)
    asked = time.monotonic()
    assert process.wait(60) == 130
    assert time.monotonic() - asked < 2
    assert not output.exists()
    again = run("enhance", source, "-o", output, "--deterministic")
    assert again.returncode == 0 and "resuming" in again.stderr, again.stderr


def test_two_interrupts_end_at_once(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    process = start("enhance", source, "-o", output)
    wait_for(lambda: list(children(process.pid)))
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    assert run("enhance", source, "-o", output).returncode == 0


def test_an_existing_output_is_not_touched(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    output.write_bytes(b"mine")
    refused = run("enhance", source, "-o", output)
    assert refused.returncode == 2 and "--overwrite" in refused.stderr
    killed = run("enhance", source, "-o", output, "--overwrite", failpoint="output.publishing")
    assert killed.returncode == -signal.SIGKILL
    assert output.read_bytes() == b"mine"
    assert run("enhance", source, "-o", output, "--overwrite").returncode == 0
    assert video_times(output) == video_times(source)


@pytest.mark.parametrize(
    ("model", "size", "seconds"),
    [
        ("fast", (1920, 1080), 10),  # as long as they may be
        (
            "srgan",
            (320, 180),
            MAX_SEGMENT_MACS / (1e3 * model_spec("srgan").kmac_per_pixel * 320 * 180 * 25),
        ),
        ("srgan", (1920, 1080), 1),
    ],
)
def test_the_slower_the_network_the_less_a_kill_costs(model, size, seconds):
    base = Fraction(1, 1000)
    layout, color = PlaneLayout("yuv", 8, 1, 1), ColorSpec(1, 1, 1, False, 1)
    width, height = size
    video = VideoInfo(
        0, "raw", "raw", width, height, layout, color, base, Fraction(25), Fraction(1)
    )
    pts = tuple(range(0, 60_000, 40))
    index = PacketIndex(pts, (0,), len(pts), True, None, "")
    longest = longest_segment(video, model_spec(model))
    assert longest == pytest.approx(seconds)
    starts = cut_segments(video, index, TimeWindow(None, None), longest).starts
    assert starts == tuple(range(0, 60_000, int(1000 * seconds)))
    # Where the source has keyframes, segments begin at them, and none is longer.
    index = PacketIndex(pts, pts[::37], len(pts), True, None, "")
    starts = cut_segments(video, index, TimeWindow(None, None), longest).starts
    assert max(np.diff(starts)) <= 1000 * seconds
    if seconds > 2:  # or else keyframes, 1.48 s apart, are not reached
        assert set(starts) <= set(pts[::37])


def test_what_differs_is_named_as_the_user_writes_it(tmp_path: Path) -> None:
    source = write_source(tmp_path / "in.mp4")
    output = ["-o", tmp_path / "out.mp4"]
    killed = run("enhance", source, *output, "--crf", "20", failpoint="segment.journaled")
    assert killed.returncode != 0
    changes = ["--crf", "24", "--other-video", "drop", "--fit", "80x80"]
    done = run("enhance", source, *output, *changes)
    assert done.returncode == 3
    said = " ".join(done.stderr.split())
    assert "that differs in: --crf, --fit, --other-video, " in said
    assert "settings." not in said
