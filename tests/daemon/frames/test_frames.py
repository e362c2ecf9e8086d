"""The data socket returns exactly the enhancer's frames, and a bad client harms no other.

Server and clients are processes of their own over real sockets; the network is the shipped `fast`.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st
from zmq.auth.thread import ThreadAuthenticator

import srstream
from srstream.client.frames import CurveClient, FrameStream
from srstream.config import ReuseConfig
from srstream.daemon.frames.server import FramesServer
from srstream.daemon.frames.sockets import CurveServer
from srstream.daemon.settings import SocketSettings
from srstream.enhancer.enhancer import Enhancer
from srstream.errors import ConfigError, RefusedError, ServiceError, UsageError
from srstream.frame import ColorSpec, Frame, FrameForm, PlaneLayout, encode_frame
from srstream.media.layouts import extract_planes, layout_of
from srstream.protocol import addresses
from srstream.protocol.frames import (
    ProtocolError,
    check_samples,
    layout_named,
    read_frame,
)
from tests.support.frames_server import open_engine
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
            [sys.executable, "-m", "tests.support.frames_server", *arguments],
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


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("frames"))
    yield server
    server.close()


@pytest.fixture
def impatient(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path, idle_seconds=1.0, max_sessions=3)
    yield server
    server.close()


@pytest.fixture(scope="module")
def engine(isolated_home: Path) -> Any:
    return open_engine()


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


def lying_planes() -> list[bytes]:
    parts = frame_parts()
    return [*parts[:-1], parts[-1][:-1]]


def spoiled(layout: dict[str, Any]) -> list[bytes]:
    return frame_parts(layout=asdict(SMALL.layout) | layout)


BAD_FRAMES: dict[str, list[bytes]] = {
    "a plane is short": lying_planes(),
    "a plane is missing": frame_parts()[:-1],
    "a plane too many": [*frame_parts(), b""],
    "negative size": frame_parts(size=[-96, -56]),
    "huge size": frame_parts(size=[1 << 40, 1 << 40]),
    "another size": frame_parts(size=[56, 96]),
    "size is no number": frame_parts(size=["96", 56.0]),
    "wrong dtype": spoiled({"bits": 10}),
    "unknown kind": spoiled({"kind": "cmyk"}),
    "other layout": spoiled({"log2_chroma_h": 0}),
    "field too many": spoiled({"object": "os.system"}),
    "time base of zero": frame_parts(time_base=[1, 0]),
    "pts beyond 64 bits": frame_parts(pts=1 << 70),
    "pts is a list": frame_parts(pts=[]),
    "pickled header": [b"FRAME", pickle.dumps({"size": (96, 56)}), *frame_parts()[2:]],
    "deep header": [b"FRAME", b"[" * 4000, *frame_parts()[2:]],
    "long header": [b"FRAME", b" " * 100_000, *frame_parts()[2:]],
    "empty header": [b"FRAME", b"", *frame_parts()[2:]],
    "nothing": [b"FRAME"],
}


@pytest.mark.parametrize("parts", BAD_FRAMES.values(), ids=BAD_FRAMES)
def test_a_frame_that_lies_ends_its_session(server: Server, parts: list[bytes]) -> None:
    with Raw(server.address).opened() as client:
        client.send(*parts)
        answer = client.answer()
    assert answer is not None
    assert answer[0] == b"ERROR"
    assert answer[1]["kind"] == "ProtocolError"
    assert re.fullmatch(r"FRAME: .{5,300}\.", answer[1]["text"])
    server.wait_until(lambda condition: condition["num_sessions"] == 0, 5)


BAD_BEGINNINGS: dict[str, list[bytes]] = {
    "empty": [b""],
    "unknown": [b"GIVE", b"all"],
    "frame before hello": frame_parts(),
    "credit before hello": [b"CREDIT", b"1"],
    "bye before hello": [b"BYE"],
    "hello without content": [b"HELLO"],
    "pickled hello": [b"HELLO", pickle.dumps(SMALL)],
    "hello of another version": [b"HELLO", b'{"version": 2, "width": 8, "height": 8}'],
    "hello with a path": [
        b"HELLO",
        b'{"width": 8, "height": 8, "layout": "gray", "model": "../x"}',
    ],
    "hello without a size": [b"HELLO", b'{"layout": "gray"}'],
    "huge hello": [b"HELLO", b'{"width": 16384, "height": 16384, "layout": "gray"}'],
    "negative hello": [b"HELLO", b'{"width": -1, "height": -1, "layout": "gray"}'],
    "packed hello": [b"HELLO", b'{"width": 8, "height": 8, "layout": "rgb24"}'],
}


@pytest.mark.parametrize("parts", BAD_BEGINNINGS.values(), ids=BAD_BEGINNINGS)
def test_what_is_no_beginning_gets_an_error_and_no_session(
    server: Server, parts: list[bytes]
) -> None:
    with Raw(server.address) as client:
        client.send(*parts)
        answer = client.answer()
        assert answer is not None
        assert answer[0] == b"ERROR"
        assert answer[1]["kind"] in {"ProtocolError", "RefusedError"}
        assert "\n" not in answer[1]["text"] and "Traceback" not in answer[1]["text"]
        assert server.condition()["num_sessions"] == 0


@pytest.mark.parametrize(
    "then",
    [
        [b"HELLO", b'{"width": 8, "height": 8, "layout": "gray"}'],
        [b"CREDIT", b"-1"],
        [b"CREDIT", b"9" * 30],
        [b"CREDIT"],
        [b"x" * 1000],
        [b""] * 6,
        [b"x"] * 60,
    ],
    ids=["second hello", "negative", "large", "no number", "unknown", "empty parts", "many parts"],
)
def test_a_session_ends_at_what_is_not_in_the_protocol(
    server: Server, engine: Any, then: list[bytes]
) -> None:
    with Raw(server.address).opened() as client:
        client.send(*then)
        answer = client.answer()
    assert answer is not None
    assert answer[0] == b"ERROR"
    server.wait_until(lambda condition: condition["num_sessions"] == 0, 5)
    assert_serves(server, engine)


def test_very_many_parts_end_the_connection(server: Server, engine: Any) -> None:
    with Raw(server.address).opened() as client:
        monitor = client.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        client.send(*[b"x"] * 10_000)
        assert monitor.poll(5000)
        client.socket.disable_monitor()
        monitor.close()
        server.wait_until(lambda condition: condition["num_sessions"] == 0, 10)
    assert_serves(server, engine)


def test_samples_above_the_depth_are_refused(server: Server) -> None:
    form = FORMS["yuv422p10"]
    parts = frame_parts(form)
    parts[2] = b"\xff" * len(parts[2])
    with Raw(server.address).opened(form) as client:
        client.send(*parts)
        answer = client.answer()
    assert answer is not None and answer[0] == b"ERROR"
    assert "too large for 10 bits" in answer[1]["text"]


def test_more_frames_than_credit_end_the_session(server: Server) -> None:
    with Raw(server.address).opened() as client:
        for _ in range(200):
            client.send(*frame_parts())
        answer = client.answer()
    assert answer is not None and answer[0] == b"ERROR"
    assert "credit" in answer[1]["text"]


def test_a_part_that_is_too_large_is_never_held(server: Server, engine: Any) -> None:
    before = server.condition()["resident_bytes"]
    with Raw(server.address).opened() as client:
        client.send(b"FRAME", bytes(64 << 20))
        assert client.answer(1.0) is None  # the connection is cut
        assert server.condition()["resident_bytes"] < 1.1 * before
        assert_serves(server, engine)
    server.wait_until(lambda condition: condition["num_sessions"] == 0, 10)


def flood(server: Server, num_messages: int, num_parts: int) -> None:
    """Send every kind of bad message, again and again, then one of very many parts."""
    bad = [*BAD_FRAMES.values(), *BAD_BEGINNINGS.values()]
    bad = [parts for parts in bad if sum(map(len, parts)) < 200_000]
    for begin in range(0, num_messages, 50):  # after twice as many a connection is ended
        with Raw(server.address) as client:
            for number in range(begin, begin + 50):
                client.send(*bad[number % len(bad)])
                if number % 50 in (0, 49):
                    assert client.answer() is not None
                while client.socket.poll(0):
                    client.socket.recv_multipart()
    with Raw(server.address) as client:
        client.send(*[b"x"] * num_parts)
        while client.answer(1.0) is not None:
            pass


def assert_survives_floods(server: Server, engine: Any, num_messages: int, num_parts: int) -> None:
    flood(server, 500, num_parts)
    assert_serves(server, engine)
    before = server.condition()
    flood(server, num_messages, num_parts)
    assert_serves(server, engine)
    # A thread may end a moment after its session.
    server.wait_until(
        lambda now: not now["num_sessions"] and now["num_threads"] <= before["num_threads"], 5
    )
    assert server.condition()["resident_bytes"] < 1.1 * before["resident_bytes"]


def test_floods_of_nonsense_leave_no_trace(server: Server, engine: Any) -> None:
    assert_survives_floods(server, engine, 3000, 10_000)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_long_floods_of_nonsense_leave_no_trace(server: Server, engine: Any) -> None:
    assert_survives_floods(server, engine, 100_000, 100_000)


def seconds_for(server: Server, frames: list[Frame], form: FrameForm) -> float:
    with stream(server, form) as session:
        list(session.enhance(frames[:3]))
        started = time.monotonic()
        assert len(list(session.enhance(frames))) == len(frames)
        return time.monotonic() - started


def test_a_client_that_never_reads_hurts_only_itself(server: Server) -> None:
    frames = pictures(LARGE, 20)
    alone = min(seconds_for(server, frames, LARGE) for _ in range(2))
    with Raw(server.address).opened(LARGE) as greedy, Raw(server.address).opened(LARGE) as mute:
        for client, credit in ((greedy, b"100000"), (mute, b"0")):
            client.send(b"CREDIT", credit)
            for _ in range(24):
                client.send(*frame_parts(LARGE))
        time.sleep(2.0)  # time to compute as many frames of both as the limits allow
        beside = server.condition()
        assert beside["num_sessions"] == 2
        assert min(seconds_for(server, frames, LARGE) for _ in range(2)) < 1.5 * alone + 0.2
        time.sleep(0.5)
        after = server.condition()
        assert after["num_frames"] - beside["num_frames"] == 2 * (len(frames) + 3)
        assert after["resident_bytes"] < beside["resident_bytes"] * 1.1
    server.wait_until(lambda condition: condition["num_sessions"] == 0, 10)


CLIENT = """
import sys, numpy as np
from srstream import FrameStream
planes = [np.full(shape, 90, np.uint8) for shape in ((180, 320), (90, 160), (90, 160))]
def forever():
    while True:
        yield planes
with FrameStream(320, 180, address=sys.argv[1]) as stream:
    for number, frame in enumerate(stream.enhance(forever())):
        print(number, flush=True)
"""


def test_a_killed_client_leaves_nothing(impatient: Server, engine: Any) -> None:
    def kill_one() -> None:
        client = subprocess.Popen(
            [sys.executable, "-c", CLIENT, impatient.address], stdout=subprocess.PIPE
        )
        assert client.stdout is not None
        for _ in range(5):
            assert client.stdout.readline()
        client.send_signal(signal.SIGKILL)
        client.wait()
        client.stdout.close()
        impatient.wait_until(lambda condition: condition["num_sessions"] == 0, 5)

    kill_one()
    assert_serves(impatient, engine)
    time.sleep(0.5)  # its connection ends a moment later
    before = impatient.condition()
    for _ in range(3):
        kill_one()
    assert_serves(impatient, engine)
    impatient.wait_until(lambda c: c["num_descriptors"] <= before["num_descriptors"], 5)
    impatient.wait_until(lambda condition: condition["reserved_bytes"] == 0, 5)
    impatient.wait_until(lambda c: c["num_threads"] <= before["num_threads"], 5)
    assert impatient.condition()["resident_bytes"] < 1.1 * before["resident_bytes"]


def test_a_silent_client_is_let_go_and_one_with_heartbeats_is_not(impatient: Server) -> None:
    with Raw(impatient.address).opened() as silent, stream(impatient, SMALL) as beating:
        for _ in range(10):
            time.sleep(0.25)
            beating.heartbeat()
        answer = silent.answer()
        assert answer is not None and answer[0] == b"ERROR"
        assert "was not heard of for 1 s" in answer[1]["text"]
        assert len(list(beating.enhance(pictures(SMALL, 3)))) == 3


def test_no_more_sessions_than_allowed_and_no_more_memory(impatient: Server) -> None:
    with Raw(impatient.address).opened(), Raw(impatient.address).opened():
        with Raw(impatient.address).opened(), pytest.raises(RefusedError, match="3 sessions"):
            stream(impatient, SMALL)
        impatient.wait_until(lambda condition: condition["num_sessions"] < 3, 10)
        with pytest.raises(RefusedError, match="MiB"):
            stream(impatient, replace(SMALL, width=1000, height=1000))


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


def no_stage(_: object) -> Any:
    raise AssertionError("nobody should come so far")


@pytest.fixture
def authenticator(tmp_path: Path) -> Iterator[tuple[Any, dict[str, tuple[bytes, bytes]]]]:
    """A ZAP handler that knows one client's key."""
    keys = {name: zmq.curve_keypair() for name in ("server", "friend", "stranger")}
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "friend.key").write_text(
        f'metadata\ncurve\n    public-key = "{keys["friend"][0].decode()}"\n'
    )
    context = zmq.Context()
    thread = ThreadAuthenticator(context)
    thread.start()
    thread.configure_curve(domain="frames", location=str(tmp_path / "keys"))
    yield context, keys
    thread.stop()
    context.term()


def test_tcp_needs_a_key_that_is_known(tmp_path: Path, engine: Any, authenticator: Any) -> None:
    context, keys = authenticator
    public, secret = keys["server"]
    address = f"tcp://127.0.0.1:{free_port()}"
    server = FramesServer(
        SocketSettings(runtime_dir=tmp_path / "run", frames_tcp=address),
        open_stage=lambda hello: Enhancer(engine, hello.form, hello.form.scaled(4)),
        curve=CurveServer(public, secret, b"frames"),
        context=context,
    )
    server.bind()
    thread = threading.Thread(target=server.run)
    thread.start()
    frames = pictures(SMALL, 3)
    expected = in_process(engine, SMALL, frames)
    options: dict[str, Any] = {"layout": SMALL.layout, "color": SMALL.color, "timeout_seconds": 1.0}
    try:
        friend = CurveClient(public, *keys["friend"])
        for where, curve in ((address, friend), (tmp_path / "run" / "frames.sock", None)):
            with FrameStream(96, 56, address=where, curve=curve, **options) as session:
                assert_same(list(session.enhance(frames)), expected)
        stranger = CurveClient(public, *keys["stranger"])
        wrong_server = CurveClient(keys["friend"][0], *keys["friend"])
        for curve in (stranger, wrong_server, None):
            with pytest.raises(ServiceError, match="said nothing"):
                FrameStream(96, 56, address=address, curve=curve, **options)
    finally:
        server.close()
        thread.join()


def free_port() -> int:
    with zmq.Context() as context, context.socket(zmq.REP) as socket:
        return socket.bind_to_random_port("tcp://127.0.0.1")


def test_tcp_without_keys_or_without_a_handler_does_not_start(tmp_path: Path) -> None:
    settings_ = SocketSettings(runtime_dir=tmp_path, frames_tcp="tcp://127.0.0.1:7712")
    public, secret = zmq.curve_keypair()
    for curve, reason in ((None, "keys"), (CurveServer(public, secret, b"frames"), "ZAP")):
        server = FramesServer(settings_, open_stage=no_stage, curve=curve)
        with pytest.raises(ConfigError, match=reason):
            server.bind()
    assert [path.name for path in tmp_path.iterdir()] == ["frames.sock.lock"]


@pytest.mark.parametrize("name", ["yuv420p", "yuva444p10le", "yuv410p", "gbrp", "gbrap12", "gray"])
def test_layouts_are_libavs(name: str) -> None:
    known = name if name[-2:] not in ("12",) else f"{name}le"
    assert layout_named(name) == layout_of(known)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)
HEADER = json.loads(frame_parts()[1])
CHANGED = st.fixed_dictionaries({}, optional=dict.fromkeys(HEADER, JSON)).flatmap(
    lambda changes: st.sets(st.sampled_from(sorted(HEADER)), max_size=1).map(
        lambda gone: {k: v for k, v in (HEADER | changes).items() if k not in gone}
    )
)
NESTED = st.tuples(
    st.sampled_from(["layout", "color"]), st.dictionaries(st.text(max_size=8), JSON, max_size=2)
).map(lambda pair: HEADER | {pair[0]: HEADER[pair[0]] | pair[1]})


def assert_strict(header: bytes, planes: list[bytes]) -> None:
    """Any bytes are refused, or are a frame exactly as announced."""
    try:
        frame = read_frame([header, *planes], SMALL)
        check_samples(frame)
    except ProtocolError as error:
        assert "\n" not in str(error)
        return
    assert (frame.width, frame.height, frame.layout) == (96, 56, SMALL.layout)
    assert [plane.shape for plane in frame.planes] == [(56, 96), (28, 48), (28, 48)]
    assert type(frame.pts) is int and type(frame.duration) is int
    assert frame.time_base > 0


@settings(max_examples=300)
@given(header=CHANGED | NESTED | JSON)
def test_any_header_is_refused_or_right(header: Any) -> None:
    assert_strict(json.dumps(header).encode(), frame_parts()[2:])


@settings(max_examples=200)
@given(header=st.binary(max_size=200), planes=st.lists(st.binary(max_size=20), max_size=6))
def test_any_bytes_are_refused(header: bytes, planes: list[bytes]) -> None:
    with pytest.raises(ProtocolError):
        read_frame([header, *planes], SMALL)


@settings(max_examples=60)
@given(parts=st.lists(st.binary(max_size=40), min_size=1, max_size=8))
def test_any_message_gets_an_error(server: Server, parts: list[bytes]) -> None:
    with Raw(server.address) as client:
        client.send(*parts)
        answer = client.answer()
    assert answer is not None and answer[0] == b"ERROR"


class Bomb:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(REPOSITORY / "unpickled"),)


def test_nothing_unpickles(server: Server) -> None:
    bomb = pickle.dumps(Bomb())
    for parts in ([bomb], [b"HELLO", bomb], [b"FRAME", bomb, bomb, bomb], [b"CREDIT", bomb]):
        with Raw(server.address).opened() as client:
            client.send(*parts)
            answer = client.answer()
        assert answer is not None and answer[0] == b"ERROR"
    assert not (REPOSITORY / "unpickled").exists()


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
