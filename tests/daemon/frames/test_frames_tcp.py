"""Frames over TCP to a real daemon: an allowed key gets in, a revoked one does not."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import zmq

from srstream.client.frames import CurveClient, FrameStream
from srstream.errors import ServiceError
from srstream.frame import ColorSpec, Frame, PlaneLayout
from srstream.protocol.keys import ClientKey, KeyRing
from tests.support.daemon import Daemon

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


def test_keys_decide_who_pushes_frames_over_tcp(tmp_path: Path) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    with Daemon(tmp_path) as daemon:
        assert daemon.stop() == 0
        text = daemon.config.read_text().replace(
            "[sockets]", f'[sockets]\nframes_tcp = "{address}"'
        )
        daemon.config.write_text(text)
        keys = KeyRing(daemon.config.parent / "keys")
        friend = curve_of(keys.new("friend"))
        daemon.start()
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
