"""The data socket returns exactly the enhancer's frames, and its client says what is wrong.

Server and clients are processes of their own over real sockets; the network is the shipped `fast`.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

import srstream
from srstream.client.frames import FrameStream
from srstream.daemon.frames.server import FramesServer
from srstream.daemon.settings import SocketSettings
from srstream.errors import ServiceError, UsageError
from srstream.frame import ColorSpec, Frame, FrameForm
from srstream.media.layouts import extract_planes, layout_of
from srstream.protocol import addresses
from srstream.protocol.frames import ProtocolError, layout_named
from tests.support.paths import REPOSITORY
from tests.support.service.frames import (
    FORMS,
    LARGE,
    SMALL,
    Server,
    assert_same,
    assert_serves,
    in_process,
    no_stage,
    pictures,
    stream,
)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_socket_gives_what_the_enhancer_gives(
    server: Server, engine: Any, form: FrameForm
) -> None:
    frames = pictures(form, 9)
    with stream(server, form) as session:
        assert session.output == replace(form, width=4 * form.width, height=4 * form.height)
        received = list(session.enhance(frames))
    assert_same(received, in_process(engine, form, frames))


def test_a_stream_goes_on_after_a_pause_and_a_single_frame_comes_back_at_once(
    server: Server, engine: Any
) -> None:
    frames = pictures(SMALL, 6)
    with stream(server, SMALL) as session:
        received = [done for frame in frames for done in session.enhance([frame])]
    assert_same(received, in_process(engine, SMALL, frames))


def test_bare_planes_and_frames_of_pyav_are_taken(server: Server, engine: Any) -> None:
    frames = pictures(SMALL, 4)
    counted = [
        Frame(f.planes, f.layout, f.width, f.height, n, Fraction(1, 24), color=f.color)
        for n, f in enumerate(frames)
    ]
    expected = in_process(engine, SMALL, counted)
    pyav = [pyav_frame(frame) for frame in counted]
    for given_frames in ([f.planes for f in frames], pyav):
        with stream(server, SMALL, time_base=Fraction(1, 24)) as session:
            assert_same(list(session.enhance(given_frames)), expected)


def pyav_frame(frame: Frame) -> av.VideoFrame:
    picture = av.VideoFrame(frame.width, frame.height, "yuv420p")
    for target, plane in zip(picture.planes, frame.planes, strict=True):
        rows = np.zeros((plane.shape[0], target.line_size), np.uint8)
        rows[:, : plane.shape[1]] = plane
        target.update(rows.tobytes())
    picture.pts, picture.time_base = frame.pts, frame.time_base
    assert all(map(np.array_equal, extract_planes(picture)[1], frame.planes))
    return picture


def test_the_stream_is_part_of_the_package() -> None:
    assert srstream.FrameStream is FrameStream
    code = "import srstream, sys; print('zmq' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_without_a_daemon_of_this_user_the_system_s_socket_is_taken(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(addresses, "SYSTEM_RUNTIME_DIR", server.folder)
    frames = pictures(SMALL, 2)
    with FrameStream(SMALL.width, SMALL.height, layout=SMALL.layout, color=SMALL.color) as one:
        assert len(list(one.enhance(frames))) == 2
    (tmp_path / "frames.sock").touch()
    assert addresses.default_address("frames.sock") == f"ipc://{tmp_path}/frames.sock"


def test_two_clients_at_once_get_their_own(server: Server, engine: Any) -> None:
    forms = SMALL, replace(SMALL, width=128, height=72)
    frames = [pictures(form, 40, seed) for seed, form in enumerate(forms)]
    received: list[list[Frame]] = [[], []]

    def serve(number: int) -> None:
        with stream(server, forms[number]) as session:
            received[number] = list(session.enhance(frames[number]))

    threads = [threading.Thread(target=serve, args=[n]) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(2):
        assert_same(received[number], in_process(engine, forms[number], frames[number]))


def test_the_client_says_what_is_wrong_with_a_frame(server: Server) -> None:
    with stream(server, SMALL) as session:
        with pytest.raises(UsageError, match="are expected"):
            list(session.enhance(pictures(LARGE, 1)))
        unfinished = session.enhance(pictures(SMALL, 9))
        next(unfinished)
        with pytest.raises(UsageError, match="still on their way"):
            next(session.enhance([]))
    with pytest.raises(ProtocolError, match=r"Hello\.restore"):
        stream(server, SMALL, restore=2.0)
    with pytest.raises(UsageError, match="rgb24"):
        FrameStream(8, 8, layout="rgb24", address=server.address)


def test_nobody_there_is_said_in_time(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="said nothing"):
        FrameStream(8, 8, address=tmp_path / "frames.sock", timeout_seconds=0.2)


def test_the_socket_belongs_to_one_daemon(server: Server) -> None:
    assert (server.folder / "frames.sock").stat().st_mode & 0o777 == 0o660
    second = FramesServer(SocketSettings(runtime_dir=server.folder), open_stage=no_stage)
    with pytest.raises(ServiceError, match="another srstream daemon"):
        second.bind()
    with stream(server, SMALL) as session:
        assert len(list(session.enhance(pictures(SMALL, 1)))) == 1


def test_a_killed_daemon_leaves_nothing_in_the_way(tmp_path: Path, engine: Any) -> None:
    first = Server(tmp_path)
    with stream(first, SMALL, timeout_seconds=1.0) as session:
        list(session.enhance(pictures(SMALL, 1)))
        first.process.kill()
        first.process.wait()
        with pytest.raises(ServiceError, match="said nothing"):
            list(session.enhance(pictures(SMALL, 1)))
    for pipe in (first.process.stdin, first.process.stdout):
        assert pipe is not None
        pipe.close()
    second = Server(tmp_path)
    assert_serves(second, engine)
    second.close()
    assert [path.name for path in tmp_path.iterdir()] == ["frames.sock.lock"]


@pytest.mark.parametrize("name", ["yuv420p", "yuva444p10le", "yuv410p", "gbrp", "gbrap12", "gray"])
def test_layouts_are_libavs(name: str) -> None:
    known = name if name[-2:] not in ("12",) else f"{name}le"
    assert layout_named(name) == layout_of(known)


def test_the_example_of_the_documentation_runs(server: Server, engine: Any, tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "frames.md").read_text()
    (example,) = re.findall(r"```python\n(import json.*?)```", page, re.DOTALL)
    frames = pictures(SMALL, 5)
    (tmp_path / "in.yuv").write_bytes(b"".join(p.tobytes() for f in frames for p in f.planes))
    (tmp_path / "example.py").write_text(example)
    sizes = [str(SMALL.width), str(SMALL.height)]
    done = subprocess.run(
        [sys.executable, "-I", "example.py", server.address, *sizes, "in.yuv", "out.yuv"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    plain = [replace(f, color=ColorSpec()) for f in frames]
    expected = in_process(engine, replace(SMALL, color=ColorSpec()), plain)
    made = (tmp_path / "out.yuv").read_bytes()
    assert made == b"".join(p.tobytes() for f in expected for p in f.planes)
