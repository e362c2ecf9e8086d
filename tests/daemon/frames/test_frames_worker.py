"""The data socket in an engine worker, beside a job on the same engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from srstream.client.frames import FrameStream
from srstream.config import EncodeConfig, EngineConfig, JobConfig, ReuseConfig
from srstream.daemon.settings import LogSettings, SecuritySettings, SocketSettings
from srstream.daemon.workers.link import (
    MESSAGE,
    Beat,
    Command,
    Ended,
    Exit,
    JobOrder,
    Ready,
    Setup,
    Start,
    WorkerMessage,
)
from srstream.engines.openvino.engine import OpenVinoEngine
from srstream.enhancer.enhancer import Enhancer
from srstream.errors import SrstreamError
from srstream.frame import ColorSpec, Frame, PlaneLayout
from srstream.models.registry import resolved
from srstream.models.table import model_spec
from srstream.sandbox.child import start_child
from tests.support.clips import cfr, picture, write_clip

WIDTH, HEIGHT = 96, 64
LAYOUT = PlaneLayout("yuv", 8, 1, 1)
ENGINE = EngineConfig(name="openvino", threads=1)


class WorkerProcess:
    """A real engine worker, which the test commands as the supervisor does."""

    def __init__(self, folder: Path, max_frame_sessions: int) -> None:
        self.messages: list[WorkerMessage] = []
        self.sockets = SocketSettings(runtime_dir=folder / "run")
        setup = Setup(
            name="engine-0",
            device="cpu",
            security=SecuritySettings(read_roots=(folder,), write_roots=(folder,)),
            sockets=self.sockets,
            defaults=JobConfig(engine=ENGINE),
            max_frame_sessions=max_frame_sessions,
            logs=LogSettings(form="console"),
        )
        self._child = start_child("srstream.daemon.workers.main", setup)
        self.process = self._child.process

    def send(self, command: Command) -> None:
        self._child.channel.send(command)

    def wait_for(
        self, is_it: Callable[[WorkerMessage], bool], seconds: float = 60.0
    ) -> WorkerMessage:
        """Wait for the next message for which `is_it` holds."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            content = self._child.channel.receive(0.1)
            if content is not None:
                message = MESSAGE.validate_json(content)
                self.messages.append(message)
                if is_it(message):
                    return message
        raise AssertionError(f"not within {seconds} s; came: {self.messages[-5:]}")

    def wait_for_sessions(self, number: int) -> None:
        self.wait_for(lambda m: isinstance(m, Beat) and m.counts.frame_sessions == number)

    def kill(self) -> None:
        self._child.end()


@contextmanager
def running_worker(folder: Path, *, max_frame_sessions: int) -> Iterator[WorkerProcess]:
    """A worker that is ready."""
    worker = WorkerProcess(folder, max_frame_sessions)
    try:
        worker.wait_for(lambda m: isinstance(m, Ready))
        yield worker
    finally:
        worker.kill()


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[WorkerProcess]:
    with running_worker(tmp_path, max_frame_sessions=2) as worker:
        yield worker


def frames(count: int) -> list[Frame]:
    generator = np.random.default_rng(5)
    still = [
        generator.integers(16, 236, LAYOUT.plane_shape(i, WIDTH, HEIGHT), np.uint8)
        for i in range(3)
    ]
    made = []
    for number in range(count):
        planes = [plane.copy() for plane in still]
        planes[0][: number % 9] = 16 + number % 200  # a part changes, so that the rest is reused
        made.append(
            Frame(
                tuple(planes),
                LAYOUT,
                WIDTH,
                HEIGHT,
                1001 * number,
                Fraction(1, 30000),
                color=ColorSpec(1, 1, 1, False, 1),
            )
        )
    return made


def enhanced_here(given: list[Frame], stream: FrameStream) -> list[Frame]:
    model = resolved(JobConfig().model).model_copy(update={"restore": 0.0})
    engine = OpenVinoEngine(ENGINE, model, model_spec("fast"))
    stage = Enhancer(engine, stream.form, stream.form.scaled(4), reuse=ReuseConfig())
    made = [out for frame in given for out in stage.push(frame)] + stage.drain()
    stage.close()
    engine.close()
    return made


def open_stream(worker: WorkerProcess, **options: object) -> FrameStream:
    address = f"ipc://{worker.sockets.frames_path}"
    color = ColorSpec(1, 1, 1, False, 1)
    return FrameStream(WIDTH, HEIGHT, color=color, address=address, **options)  # type: ignore[arg-type]


def still_frames() -> list[Frame]:
    """Many equal frames, more than may be under way at once, a change, and as many again."""
    before, after = frames(3)[1:]
    pictures = [before] * 100 + [after] * 100
    return [replace(picture, pts=1001 * number) for number, picture in enumerate(pictures)]


@pytest.mark.parametrize("is_still", [False, True], ids=["moving", "still"])
def test_frames_and_a_job_share_an_engine(
    is_still: bool, worker: WorkerProcess, tmp_path: Path
) -> None:
    if is_still:
        clip = write_clip(tmp_path / "clip.mp4", [picture(3)] * 100, gop=12)
    else:
        clip = cfr(tmp_path / "clip.mp4", frames=60)
    output = tmp_path / "clip_4x.mp4"
    order = JobOrder(
        id="job00001",
        input=clip,
        output=output,
        overwrite=False,
        config=JobConfig(engine=ENGINE, encode=EncodeConfig(preset="ultrafast")),
        priority=0,
        directory=tmp_path / "work" / "job00001",
    )
    worker.send(Start(order=order))
    given = still_frames() if is_still else frames(40)
    with open_stream(worker) as stream:
        results = list(stream.enhance(given))
        expected = enhanced_here(given, stream)
        worker.wait_for_sessions(1)
    assert [(f.pts, f.time_base) for f in results] == [(f.pts, f.time_base) for f in given]
    for result, wanted in zip(results, expected, strict=True):
        for plane, other in zip(result.planes, wanted.planes, strict=True):
            np.testing.assert_array_equal(plane, other)
    worker.wait_for_sessions(0)
    if not any(isinstance(message, Ended) for message in worker.messages):
        worker.wait_for(lambda m: isinstance(m, Ended))
    ended = next(message for message in worker.messages if isinstance(message, Ended))
    assert ended.outcome == "done", ended.text
    assert output.exists()


def test_what_there_is_not_is_refused_and_the_worker_goes_on(worker: WorkerProcess) -> None:
    with pytest.raises(SrstreamError, match="no such weights"):
        open_stream(worker, model="unheard-of")
    with open_stream(worker), open_stream(worker):
        with pytest.raises(SrstreamError, match="sessions are open"):
            open_stream(worker)
        worker.wait_for_sessions(2)
    worker.wait_for_sessions(0)


def test_an_exit_tells_clients_and_leaves_no_socket(worker: WorkerProcess) -> None:
    stream = open_stream(worker, timeout_seconds=20.0)
    results = stream.enhance(frames(3000))
    next(results)
    worker.send(Exit())
    with pytest.raises(SrstreamError, match="daemon"):
        for _ in results:
            pass
    stream.close()
    assert worker.process.wait(20) == 0
    assert not worker.sockets.frames_path.exists()
