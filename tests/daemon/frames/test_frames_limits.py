"""Clients of the data socket that do not read, that die, that are silent or too many.

Each costs the server no more than its limits allow, and no other client its frames.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import pytest

from srstream.errors import RefusedError
from srstream.frame import Frame, FrameForm
from tests.support.service.frames import (
    LARGE,
    SMALL,
    Raw,
    Server,
    assert_serves,
    frame_parts,
    pictures,
    stream,
)


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
