"""Over TCP the data socket asks for a key, and without keys it does not start."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from zmq.auth.thread import ThreadAuthenticator

from srstream.client.frames import CurveClient, FrameStream
from srstream.daemon.frames.server import FramesServer
from srstream.daemon.frames.sockets import CurveServer
from srstream.daemon.settings import SocketSettings
from srstream.enhancer.enhancer import Enhancer
from srstream.errors import ConfigError, ServiceError
from tests.support.service.frames import SMALL, assert_same, in_process, no_stage, pictures


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
        is_allowed=lambda key: key == keys["friend"][0].decode(),
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
