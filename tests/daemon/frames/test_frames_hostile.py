"""Whatever bytes a client sends to the data socket, it gets an error and harms no other."""

from __future__ import annotations

import json
import os
import pickle
import re
from dataclasses import asdict
from typing import Any

import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from srstream.protocol.frames import ProtocolError, check_samples, read_frame
from tests.support.paths import REPOSITORY
from tests.support.service.frames import FORMS, SMALL, Raw, Server, assert_serves, frame_parts


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
@pytest.mark.alone
@pytest.mark.timeout(600)
def test_long_floods_of_nonsense_leave_no_trace(server: Server, engine: Any) -> None:
    assert_survives_floods(server, engine, 100_000, 100_000)


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
