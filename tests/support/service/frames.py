"""A data socket in a process of its own, clients of it, and frames to send through it.

`FrameStream` is the shipped client; `Raw` can send any message.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from srstream.client.frames import FrameStream
from srstream.config import ReuseConfig
from srstream.enhancer.enhancer import Enhancer
from srstream.frame import ColorSpec, Frame, FrameForm, PlaneLayout, encode_frame
from tests.support.paths import REPOSITORY

LIMITED = ColorSpec(1, 1, 1, False, 1)
SMALL = FrameForm(96, 56, PlaneLayout("yuv", 8, 1, 1), LIMITED)
LARGE = FrameForm(320, 180, PlaneLayout("yuv", 8, 1, 1), LIMITED)


class Server:
    """A process with a data socket."""

    def __init__(self, folder: Path, idle_seconds: float = 60.0, max_sessions: int = 8) -> None:
        self.folder = folder
        self.address = f"ipc://{folder}/frames.sock"
        arguments = [str(folder), str(idle_seconds), str(max_sessions)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.service.frames_server", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def condition(self) -> dict[str, float]:
        assert self.process.stdin is not None
        self.process.stdin.write("?\n")
        self.process.stdin.flush()
        content: dict[str, float] = json.loads(self._line())
        return content

    def wait_until(self, holds: Callable[[dict[str, float]], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not holds(condition := self.condition()):
            assert time.monotonic() < deadline, condition
            time.sleep(0.05)

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        assert self._line() == "closed"
        assert self.process.wait(20) == 0
        self.process.stdout.close()


def pictures(form: FrameForm, num_frames: int, seed: int = 0) -> list[Frame]:
    """Smooth noise; a third of the frames repeat the one before."""
    rng = np.random.default_rng(seed)
    frames: list[Frame] = []
    for number in range(num_frames):
        if number % 3 == 2:
            planes = frames[-1].planes
        else:
            peak = (1 << form.layout.bits) - 1
            planes = tuple(
                np.linspace(0.1 * peak, 0.9 * peak, rows * columns)
                .reshape(rows, columns)
                .__add__(rng.normal(0, 0.05 * peak, (rows, columns)))
                .clip(0, peak)
                .astype(form.layout.dtype)
                for rows, columns in (
                    form.layout.plane_shape(index, form.width, form.height)
                    for index in range(form.layout.num_planes)
                )
            )
        pts = number * 1001 - 7 + number % 2
        frames.append(
            Frame(
                planes,
                form.layout,
                form.width,
                form.height,
                pts,
                Fraction(1001, 90000),
                1001 + number,
                form.color,
                is_key=number == 0,
                concealed=number == 3,
            )
        )
    return frames


def in_process(engine: Any, form: FrameForm, frames: list[Frame]) -> list[Frame]:
    enhancer = Enhancer(engine, form, form.scaled(4), reuse=ReuseConfig())
    made = [done for frame in frames for done in enhancer.push(frame)] + enhancer.drain()
    enhancer.close()
    return made


def assert_same(received: list[Frame], expected: list[Frame]) -> None:
    assert len(received) == len(expected)
    for got, wanted in zip(received, expected, strict=True):
        assert replace(got, planes=()) == replace(wanted, planes=())
        for plane, other in zip(got.planes, wanted.planes, strict=True):
            assert plane.dtype == other.dtype
            np.testing.assert_array_equal(plane, other)


def stream(server: Server, form: FrameForm, **options: Any) -> FrameStream:
    return FrameStream(
        form.width,
        form.height,
        layout=form.layout,
        color=form.color,
        address=server.address,
        **options,
    )


FORMS = {
    "yuv420p": SMALL,
    "odd": FrameForm(71, 37, PlaneLayout("yuv", 8, 1, 1), ColorSpec()),
    "yuv422p10": FrameForm(96, 56, PlaneLayout("yuv", 10, 1, 0), LIMITED),
    "gbrap": FrameForm(64, 40, PlaneLayout("rgb", 8, has_alpha=True), ColorSpec(1, 13, 0, True, 0)),
    "gray16": FrameForm(50, 30, PlaneLayout("gray", 16), ColorSpec()),
}


class Raw:
    """A client that can send any message."""

    def __init__(self, address: str) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.SNDHWM, 0)
        self.socket.connect(address)

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close(linger=0)
        self.context.term()

    def send(self, *parts: bytes | memoryview) -> None:
        self.socket.send_multipart(parts)

    def hello(self, form: FrameForm = SMALL, **changes: Any) -> None:
        content = {
            "version": 1,
            "width": form.width,
            "height": form.height,
            "layout": asdict(form.layout),
            "color": asdict(form.color),
        }
        self.send(b"HELLO", json.dumps(content | changes).encode())

    def answer(self, seconds: float = 10.0) -> tuple[bytes, Any] | None:
        """The next message that is not a credit; None if none comes."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and self.socket.poll(int(1000 * left)):
            kind, *parts = self.socket.recv_multipart()
            if kind != b"CREDIT":
                return kind, json.loads(parts[0])
        return None

    def opened(self, form: FrameForm = SMALL) -> Raw:
        self.hello(form)
        answer = self.answer()
        assert answer is not None and answer[0] == b"READY", answer
        return self


def assert_serves(server: Server, engine: Any) -> None:
    frames = pictures(SMALL, 2)
    with stream(server, SMALL) as session:
        assert_same(list(session.enhance(frames)), in_process(engine, SMALL, frames))


def frame_parts(form: FrameForm = SMALL, **changes: Any) -> list[bytes]:
    header, *planes = [bytes(part) for part in encode_frame(pictures(form, 1)[0])]
    return [b"FRAME", json.dumps(json.loads(header) | changes).encode(), *planes]


def no_stage(_: object) -> Any:
    raise AssertionError("nobody should come so far")
