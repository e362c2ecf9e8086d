"""Frames cross a real socket unchanged, and never more than the credit allows."""

from __future__ import annotations

import json
import threading
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from srstream.errors import MediaError
from srstream.frame import ColorSpec, Frame, PlaneLayout, decode_frame, encode_frame
from srstream.sandbox.transport import END, FRAME, NOTE, FrameReceiver, FrameSender, endpoint


def make_frame(number: int, layout: PlaneLayout, width: int = 33, height: int = 17) -> Frame:
    generator = np.random.default_rng(number)
    planes = tuple(
        generator.integers(0, 1 << layout.bits, layout.plane_shape(i, width, height)).astype(
            layout.dtype
        )
        for i in range(layout.num_planes)
    )
    return Frame(
        planes=planes,
        layout=layout,
        width=width,
        height=height,
        pts=number * 1001 - 5,
        time_base=Fraction(1, 90000),
        duration=1001,
        color=ColorSpec(1, 1, 1, False, 1),
        is_key=number == 0,
    )


LAYOUTS = [
    PlaneLayout("yuv", 8, 1, 1),
    PlaneLayout("yuv", 10, 1, 0),
    PlaneLayout("yuv", 12, 0, 0, has_alpha=True),
    PlaneLayout("rgb", 8, has_alpha=True),
    PlaneLayout("gray", 16),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_frame_survives_the_wire(layout: PlaneLayout) -> None:
    frame = make_frame(3, layout)
    again = decode_frame([bytes(part) for part in encode_frame(frame)])
    for sent, received in zip(frame.planes, again.planes, strict=True):
        np.testing.assert_array_equal(sent, received)
    assert (again.pts, again.time_base, again.color) == (frame.pts, frame.time_base, frame.color)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda parts: parts[:-1],
        lambda parts: [*parts[:-1], parts[-1][:-1]],
        lambda parts: [b"no json", *parts[1:]],
        lambda parts: [parts[0].replace(b"33", b"34"), *parts[1:]],
        lambda parts: [],
    ],
)
def test_a_message_that_contradicts_its_header_is_refused(spoil) -> None:  # type: ignore[no-untyped-def]
    parts = [bytes(part) for part in encode_frame(make_frame(0, LAYOUTS[0]))]
    with pytest.raises(MediaError, match="frame message"):
        decode_frame(spoil(parts))


SPOILED_HEADERS = {
    "negative size": {"size": [-33, -17]},
    "no size": {"size": [0, 17]},
    "huge size": {"size": [1 << 40, 1 << 40]},
    "three sides": {"size": [33, 17, 1]},
    "a fractional size": {"size": [33.0, 17]},
    "a flag for a size": {"size": [True, 17]},
    "text for a size": {"size": "33x17"},
    "an unknown kind": {"layout": {"kind": "bgr"}},
    "an unknown field": {"layout": {"kind": "yuv", "stride": 1}},
    "a depth of 32": {"layout": {"bits": 32}},
    "negative chroma": {"layout": {"log2_chroma_w": -1}},
    "tiny chroma": {"layout": {"log2_chroma_w": 900}},
    "no time base": {"time_base": [0, 1]},
    "a time base of nothing": {"time_base": [1, 0]},
    "a time beyond 64 bits": {"pts": 1 << 63},
    "no time": {"pts": None},
    "text for a time": {"pts": "7"},
    "no number": {"duration": float("nan")},
    "a flag of 1": {"key": 1},
    "no colour": {"color": None},
    "a colour that is none": {"color": {"matrix": -1}},
}


@pytest.mark.parametrize("change", SPOILED_HEADERS.values(), ids=SPOILED_HEADERS.keys())
def test_a_header_is_believed_in_nothing(change) -> None:  # type: ignore[no-untyped-def]
    header, *planes = [bytes(part) for part in encode_frame(make_frame(0, LAYOUTS[0]))]
    fields = json.loads(header)
    for name, value in change.items():
        is_part = isinstance(value, dict) and isinstance(fields[name], dict)
        fields[name] = fields[name] | value if is_part else value
    with pytest.raises(MediaError, match="frame message"):
        decode_frame([json.dumps(fields).encode(), *planes])


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[]",
        b"7",
        b"null",
        b"{}",
        b"[" * 4000,
        b" " * 5000 + b"{}",
        b"\xff\xfe",
        b"\x80\x05K.",
    ],
    ids=[
        "nothing",
        "a list",
        "a number",
        "null",
        "no field",
        "deep",
        "long",
        "no UTF-8",
        "a pickle",
    ],
)
def test_what_is_no_header_at_all_is_refused(header: bytes) -> None:
    with pytest.raises(MediaError, match="frame message"):
        decode_frame([header])


def test_a_plane_at_an_odd_address_is_moved() -> None:
    frame = make_frame(1, LAYOUTS[1])
    header, *planes = [bytes(part) for part in encode_frame(frame)]
    odd = [memoryview(bytearray(b"\0" + plane))[1:] for plane in planes]
    again = decode_frame([header, *odd])
    assert all(plane.flags.aligned for plane in again.planes)
    for sent, received in zip(frame.planes, again.planes, strict=True):
        np.testing.assert_array_equal(sent, received)


def test_no_more_is_sent_than_the_consumer_granted(tmp_path: Path) -> None:
    frames = [make_frame(number, LAYOUTS[0]) for number in range(20)]
    receiver = FrameReceiver(tmp_path, window_bytes=3 * frames[0].num_bytes)
    sent: list[int] = []

    def produce() -> None:
        sender = FrameSender(endpoint(receiver.directory_descriptor))
        for frame in frames:
            sender.send(frame)
            sent.append(frame.pts)
        sender.end({"num_frames": len(frames)})
        sender.close()

    producer = threading.Thread(target=produce)
    producer.start()
    received: list[Frame] = []
    report = None
    while report is None:
        message = receiver.receive(0.5)
        if message is None:  # The producer waits for credit: it sent the window, not more.
            assert len(sent) - (len(received) - 3) <= 3
            receiver.release(received[len(received) - 1])
            continue
        kind, content = message
        if kind == FRAME and isinstance(content, Frame):
            received.append(content)
            if len(received) > 3:
                receiver.release(content)
        elif kind == END:
            report = content
        else:
            assert kind == NOTE
    producer.join()
    receiver.close()
    assert [frame.pts for frame in received] == [frame.pts for frame in frames]
    assert report == {"num_frames": 20}
    assert list(tmp_path.iterdir()) == []
