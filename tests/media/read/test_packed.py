"""Times that B pictures take along: packed as DivX and XviD do it, and at slow rates."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import pytest

from srstream.config import SourceConfig
from srstream.media.read.decode import Decoder
from srstream.media.read.demux import ReadFault, read_packets
from srstream.media.read.probe import probe, scan_packets
from tests.support import clips, ffmpeg
from tests.support.jobs import run

NOT_CODED = bytes.fromhex("000001b65000c07f")
"""A P picture that says that there is none: what fills the packet whose picture went ahead."""

VOP = b"\x00\x00\x01\xb6"


def is_b(packet: bytes) -> bool:
    return packet[packet.index(VOP) + 4] >> 6 == 2


def packed(source: Path, path: Path, skipped: tuple[int, ...] = ()) -> Path:
    """The same pictures with every B picture moved into the packet before it.

    AVI counts places: the packets of those in `skipped` are empty, the picture before stands on.
    """
    with av.open(str(source)) as container, av.open(str(path), "w", format="avi") as output:
        stream = container.streams.video[0]
        data = [bytes(p) for p in container.demux(stream) if p.size]
        made = output.add_stream_from_template(stream, opaque=True)
        made.time_base = Fraction(1, 25)
        joined: list[bytes] = []
        for number, one in enumerate(data):
            follows = data[number + 1] if number + 1 < len(data) else b""
            if is_b(one):
                joined.append(NOT_CODED)
            elif follows and is_b(follows):
                joined.append(one + follows)
            else:
                joined.append(one)
        place = 0
        for one in joined:
            place += place in skipped
            packet = av.Packet(one)
            packet.stream = made
            packet.time_base = Fraction(1, 25)
            packet.pts = packet.dts = place
            packet.is_keyframe = one[one.index(VOP) + 4] >> 6 == 0
            output.mux(packet)
            place += 1
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One B picture between two others, in AVI, not packed."""
    path = tmp_path_factory.mktemp("clips") / "plain.avi"
    return clips.write_clip(path, 24, codec="mpeg4", gop=9, options={"bf": "1", "b_strategy": "0"})


def decoded(path: Path, start_pts: int | None = None) -> list[tuple[Fraction, str]]:
    decoder = Decoder(path, probe(path, SourceConfig()).video, SourceConfig(), start_pts=start_pts)
    return [
        (f.pts * f.time_base, hashlib.md5(b"".join(p.tobytes() for p in f.planes)).hexdigest())
        for f in decoder.frames()
    ]


@ffmpeg.needs_ffmpeg
def test_packed_pictures_have_the_times_of_unpacked_ones(plain: Path, tmp_path: Path) -> None:
    expected = ffmpeg.frames(plain)
    assert len(expected) == 24
    path = packed(plain, tmp_path / "packed.avi")
    assert decoded(path) == expected
    scanned = scan_packets(path, probe(path, SourceConfig()).video)
    assert [pts * Fraction(1, 25) for pts in scanned.pts] == [time for time, _ in expected]


@ffmpeg.needs_ffmpeg
@pytest.mark.parametrize("gop", [1, 2, 3, 12])
@pytest.mark.parametrize("bf", [0, 1])
def test_any_rhythm_of_packed_pictures(tmp_path: Path, gop: int, bf: int) -> None:
    options = {"bf": str(bf), "b_strategy": "0"}
    plain = clips.write_clip(tmp_path / "plain.avi", 15, codec="mpeg4", gop=gop, options=options)
    assert decoded(packed(plain, tmp_path / "packed.avi")) == ffmpeg.frames(plain)


def test_a_resumed_decode_gives_the_same(plain: Path, tmp_path: Path) -> None:
    path = packed(plain, tmp_path / "packed.avi")
    whole = decoded(path)
    for number in (1, 2, 11, 23):
        time = whole[number][0]
        assert decoded(path, start_pts=int(time * 25)) == whole[number:]


def test_gaps_stay(plain: Path, tmp_path: Path) -> None:
    """A packet with nothing in it: the picture before it stands on."""
    path = packed(plain, tmp_path / "gap.avi", skipped=(9,))
    times = [int(time * 25) for time, _ in decoded(path)]
    assert len(times) == 24 and times[0] in (0, 1)
    steps = [b - a for a, b in pairwise(times)]
    assert sorted(steps) == [1] * 22 + [2]


def test_what_is_not_packed_stays_as_it_is(plain: Path) -> None:
    with av.open(str(plain)) as a, av.open(str(plain)) as b:
        raw = [(p.pts, p.dts, bytes(p)) for p in a.demux(video=0) if p.size]
        read = [(p.pts, p.dts, bytes(p)) for p in read_packets(b) if not isinstance(p, ReadFault)]
    assert read == raw


@ffmpeg.needs_ffmpeg
def test_a_packed_file_is_enhanced_in_step(plain: Path, tmp_path: Path) -> None:
    done = run("enhance", packed(plain, tmp_path / "in.avi"), "-o", tmp_path / "out.mp4")
    assert done.returncode == 0, done.stderr
    times = [time for time, _ in ffmpeg.frames(tmp_path / "out.mp4")]
    assert [time - times[0] for time in times] == [Fraction(n, 25) for n in range(24)]


@ffmpeg.needs_ffmpeg
@pytest.mark.parametrize("name", ["in.mkv", "in.mp4", "in.ts"])
@pytest.mark.parametrize("rate", [Fraction(1), Fraction(1, 4)])
def test_slow_frames_that_are_reordered_keep_their_times(
    tmp_path: Path, name: str, rate: Fraction
) -> None:
    """Matroska tells no decode time at first, so that times then seem to fall by seconds."""
    path = clips.write_clip(tmp_path / name, 9, rate=rate, options={"bf": "3", "b-adapt": "0"})
    expected = ffmpeg.frames(path)
    assert len(expected) == 9 and decoded(path) == expected
