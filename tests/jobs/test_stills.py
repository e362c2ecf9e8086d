"""Video that stands still, of which most frames cost nothing: whole jobs, with a limit of time.

That no order of speeds stops a job is shown in test_worker.py; here are real files, engines and
processes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from tests.support.clips import Rgb, picture, write_clip
from tests.support.jobs import command, video_times
from tests.support.paths import REPOSITORY
from tests.support.service.daemon import Daemon

LIMIT_SECONDS = 100
CAMERA_SECONDS = 25
NUM_FRAMES = 100
"""Several times what may be under way between decoder and engine."""
ENGINES = ["openvino", "ncnn", "pytorch"]
SIZES = {"fast": (160, 90), "balanced": (48, 28), "srgan": (32, 24)}
SAME_PICTURE = 8.0
"""Levels by which a frame made smaller may differ from its source, on average; other pictures
differ by more than twice that."""


def still(size: tuple[int, int]) -> list[Rgb]:
    return [picture(7, *size)] * NUM_FRAMES


def still_with_one_change(size: tuple[int, int]) -> list[Rgb]:
    changed = picture(7, *size).copy()
    changed[: size[1] // 2, : size[0] // 2] = 255 - changed[: size[1] // 2, : size[0] // 2]
    return [picture(7, *size)] * 60 + [changed] * 40


def still_then_cut(size: tuple[int, int]) -> list[Rgb]:
    """Two scenes that stand still, and one that moves."""
    moving = [255 - picture(number, *size) for number in range(3)]
    return [picture(7, *size)] * 60 + [255 - picture(40, *size)] * 37 + moving


CLIPS: dict[str, Callable[[tuple[int, int]], list[Rgb]]] = {
    "still": still,
    "one change": still_with_one_change,
    "cut": still_then_cut,
}


def write_still(path: Path, kind: str, size: tuple[int, int]) -> Path:
    """Keyframes stand close, so that segments are short."""
    frames = CLIPS[kind](size)
    options = {"crf": "12", "sc_threshold": "0"}
    return write_clip(path, frames, width=size[0], height=size[1], gop=12, options=options)


def decoded(path: Path, size: tuple[int, int]) -> list[np.ndarray]:
    """All frames as RGB, made as small as the source."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return [cv2.resize(frame, size, interpolation=cv2.INTER_AREA).astype(int) for frame in frames]


def check(source: Path, output: Path, size: tuple[int, int]) -> None:
    """Every frame is there, at its time, and shows what the source shows then."""
    assert video_times(output) == video_times(source)
    for number, (before, after) in enumerate(
        zip(decoded(source, size), decoded(output, size), strict=True)
    ):
        assert np.abs(before - after).mean() < SAME_PICTURE, f"frame {number}"


def enhance(source: Path, output: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The command, which is killed if it takes too long."""
    return subprocess.run(
        command("enhance", source, "-o", output, *options),
        env=dict(os.environ, PYTHONPATH=str(REPOSITORY)),
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )


ALL = [
    pytest.param(
        kind,
        model,
        engine,
        marks=() if (kind, engine) == ("cut", "openvino") else pytest.mark.long,
        id=f"{kind}-{model}-{engine}",
    )
    for kind in CLIPS
    for model in SIZES
    for engine in ENGINES
]


@pytest.mark.parametrize(("kind", "model", "engine"), ALL)
def test_the_command_ends(kind: str, model: str, engine: str, tmp_path: Path) -> None:
    source = write_still(tmp_path / "in.mp4", kind, SIZES[model])
    done = enhance(source, tmp_path / "out.mp4", "--model", model, "--engine", engine)
    assert done.returncode == 0, done.stderr
    check(source, tmp_path / "out.mp4", SIZES[model])


@pytest.mark.parametrize("num_frames", [100, 200])
def test_raw_video_ends(num_frames: int, tmp_path: Path) -> None:
    """It is decoded much faster than anything is enlarged."""
    source = write_clip(
        tmp_path / "in.y4m", [picture(7, 160, 90)] * num_frames, width=160, height=90,
        codec="wrapped_avframe",
    )  # fmt: skip
    done = enhance(source, tmp_path / "out.mp4")
    assert done.returncode == 0, done.stderr
    times = video_times(tmp_path / "out.mp4")
    assert times == [Fraction(number, CAMERA_SECONDS) for number in range(num_frames)]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("daemon")) as running:
        yield running


@pytest.mark.parametrize(
    ("model", "engine"),
    [
        pytest.param(
            model,
            engine,
            marks=() if (model, engine) == ("fast", "openvino") else pytest.mark.long,
        )
        for model in SIZES
        for engine in ENGINES
    ],
)
def test_jobs_of_the_daemon_end_side_by_side(daemon: Daemon, model: str, engine: str) -> None:
    """All kinds at once, so that they wait for their turns at one engine."""
    config = {"model": {"name": model}, "engine": {"name": engine}}
    jobs, size = {}, SIZES[model]
    for kind in CLIPS:
        name = f"{kind}-{model}-{engine}.mp4"
        source = write_still(daemon.inputs / name, kind, size)
        jobs[daemon.submit(source, name, config=config)] = name
    for job, name in jobs.items():
        ended = daemon.wait(job, LIMIT_SECONDS)
        assert ended["state"] == "done", ended
        check(daemon.inputs / name, daemon.outputs / name, size)
    assert daemon.result("health")["workers"][0]["num_restarts"] == 0


def test_an_engine_that_hangs_ends_the_command_with_a_sentence(tmp_path: Path) -> None:
    source = write_still(tmp_path / "in.mp4", "still", SIZES["fast"])
    script = (
        "import tests.support.service.hanging_engine\n"
        "from srstream.cli import main as cli\n"
        "cli.main()"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, "enhance", str(source), "-o", str(tmp_path / "out.mp4")],
        env=dict(os.environ, PYTHONPATH=str(REPOSITORY)),
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    assert ran.returncode == 1, ran.stderr
    assert "nothing has moved for 2 s" in ran.stderr
    assert "the decoder waits for credit" in ran.stderr
    assert "frames and finishes none" in ran.stderr
    assert enhance(source, tmp_path / "out.mp4").returncode == 0, "and it can be resumed"


@pytest.mark.long
def test_an_engine_that_hangs_costs_the_daemon_a_worker_and_no_job(tmp_path: Path) -> None:
    """Which it would otherwise be tried with again; the job goes on in the next one."""
    hanging = Daemon(tmp_path, worker_code="import tests.support.service.hanging_engine")
    hanging.environment["HANG_ONCE"] = str(tmp_path / "hung")
    with hanging as daemon:
        source = write_still(daemon.inputs / "in.mp4", "still", SIZES["fast"])
        job = daemon.submit(source, "out.mp4")
        assert daemon.wait(job, LIMIT_SECONDS)["state"] == "done"
        check(source, daemon.outputs / "out.mp4", SIZES["fast"])
        assert daemon.result("health")["workers"][0]["num_restarts"] == 1
        assert "nothing has moved for 2 s" in daemon.log()
        assert "The engine worker is replaced" in daemon.log()


SHORT_LIMIT = """
import functools
from srstream.cli import main as cli
from srstream.jobs import job
job.JobContext = functools.partial(job.JobContext, stall_seconds=0.5)
cli.main()
"""


@pytest.mark.long
@pytest.mark.parametrize("engine", ENGINES)
def test_a_tile_of_many_times_the_limit_is_waited_for(engine: str, tmp_path: Path) -> None:
    """The library's threads use the processor meanwhile: one tile takes a second and more."""
    frames = [picture(number, 192, 108) for number in range(2)]
    source = write_clip(tmp_path / "in.mp4", frames, width=192, height=108)
    arguments = ["-o", str(tmp_path / "out.mp4"), "--model", "srgan", "--engine", engine]
    ran = subprocess.run(
        [sys.executable, "-c", SHORT_LIMIT, "enhance", str(source), *arguments],
        env=dict(os.environ, PYTHONPATH=str(REPOSITORY)),
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert video_times(tmp_path / "out.mp4") == video_times(source)
