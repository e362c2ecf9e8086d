"""Frames over TCP to a real daemon: an allowed key gets in, a revoked one does not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import zmq

from srstream.client.frames import CurveClient, FrameStream
from srstream.errors import ServiceError, SrstreamError
from srstream.frame import ColorSpec, Frame, PlaneLayout
from srstream.protocol.keys import ClientKey, KeyRing
from tests.support.service.daemon import Daemon, wait_for

LAYOUT = PlaneLayout("yuv", 8, 1, 1)


def free_port() -> int:
    with zmq.Context() as context, context.socket(zmq.REP) as socket:
        return socket.bind_to_random_port("tcp://127.0.0.1")


def frame(pts: int) -> Frame:
    shapes = ((64, 96), (32, 48), (32, 48))
    planes = tuple(np.full(shape, 90 + 10 * pts, np.uint8) for shape in shapes)
    return Frame(
        planes=planes,
        layout=LAYOUT,
        width=96,
        height=64,
        pts=pts,
        time_base=Fraction(1, 25),
        color=ColorSpec(),
    )


def curve_of(key: ClientKey) -> CurveClient:
    return CurveClient(key.server.encode(), key.public.encode(), key.secret.encode())


@contextmanager
def daemon_over_tcp(home: Path) -> Iterator[tuple[Daemon, str, KeyRing]]:
    """A daemon that takes frames over TCP, its address and its keys."""
    address = f"tcp://127.0.0.1:{free_port()}"
    daemon = Daemon(home)
    text = daemon.config.read_text().replace("[sockets]", f'[sockets]\nframes_tcp = "{address}"')
    daemon.config.write_text(text)
    keys = KeyRing(daemon.config.parent / "keys")
    with daemon:
        yield daemon, address, keys


def test_keys_decide_who_pushes_frames_over_tcp(tmp_path: Path) -> None:
    with daemon_over_tcp(tmp_path) as (daemon, address, keys):
        friend = curve_of(keys.new("friend"))
        frames = [frame(n) for n in range(3)]
        with FrameStream(96, 64, address=address, curve=friend, timeout_seconds=10) as stream:
            made = list(stream.enhance(frames))
        assert [(m.pts, m.width, m.height) for m in made] == [(n, 384, 256) for n in range(3)]
        public, secret = zmq.curve_keypair()
        stranger = CurveClient(friend.server_key, public, secret)
        keys.revoke("friend")
        for curve in (stranger, friend, None):
            with pytest.raises(ServiceError):
                FrameStream(96, 64, address=address, curve=curve, timeout_seconds=1.5)
        assert daemon.result("health")["ok"]


def test_a_revoked_keys_open_session_ends_within_a_second(tmp_path: Path) -> None:
    with daemon_over_tcp(tmp_path) as (daemon, address, keys):
        friend = curve_of(keys.new("friend"))
        other = curve_of(keys.new("other"))
        with (
            FrameStream(96, 64, address=address, curve=other, timeout_seconds=10) as others,
            FrameStream(96, 64, address=address, curve=friend, timeout_seconds=10) as stream,
        ):
            came: list[float] = []
            revoked = 0.0
            with pytest.raises(SrstreamError, match="not allowed any more"):
                for number, _ in enumerate(stream.enhance(frame(n % 16) for n in count())):
                    came.append(time.monotonic())
                    if number == 20:
                        keys.revoke("friend")
                        revoked = time.monotonic()
                    assert number < 20 or time.monotonic() < revoked + 5
            assert revoked and time.monotonic() - revoked < 1.0
            assert len(list(others.enhance(frame(n) for n in range(3)))) == 3
        wait_for(lambda: "its key was revoked" in daemon.log())


def test_a_revoked_keys_silent_session_ends_within_a_second(tmp_path: Path) -> None:
    with daemon_over_tcp(tmp_path) as (_, address, keys):
        friend = curve_of(keys.new("friend"))
        with FrameStream(96, 64, address=address, curve=friend, timeout_seconds=10) as stream:
            keys.revoke("friend")
            time.sleep(1)
            with pytest.raises(SrstreamError, match="not allowed any more"):
                list(stream.enhance([frame(0)]))
