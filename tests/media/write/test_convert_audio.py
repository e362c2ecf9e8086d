"""Sound that is encoded anew keeps its time against the picture, whatever the source does.

The clips hold short clicks; Debian's ffmpeg decodes the output, and where a click lies in its
samples, counted from time zero, is where it is heard.
"""

from __future__ import annotations

import random
import subprocess
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from srstream.media.verify import verify
from tests.support import clips, ffmpeg
from tests.support.outputs import make_output

pytestmark = ffmpeg.needs_ffmpeg


def clicks(path: Path) -> list[float]:
    """Seconds at which clicks are heard."""
    raw = subprocess.run(
        [
            *("ffmpeg", "-v", "error", "-copyts", "-i", str(path), "-map", "0:a"),
            *("-af", "aresample=48000:async=1:first_pts=0:min_hard_comp=0.001"),
            *("-ac", "1", "-f", "f32le", "-"),
        ],
        capture_output=True,
        check=True,
    ).stdout
    samples = np.frombuffer(raw, np.float32).copy()
    found = []
    while samples.size and samples.max() > 0.3:
        place = int(samples.argmax())
        found.append(place / 48000)
        samples[max(0, place - 4800) : place + 4800] = 0
    return sorted(found)


def clicking(path: Path, rate: int, gap: bool, start: float) -> list[float]:
    """PCM with clicks, in Matroska; with `gap`, the second from 1 to 2 s is missing."""
    wanted = [0.25, 0.75, 2.25, 2.75]
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = container.add_stream("pcm_s16le", rate=rate)
        audio.codec_context.layout = "mono"
        for number in range(80):
            frame = clips.to_frame(clips.picture(number), "yuv420p", None)
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        times = np.arange(int(3.2 * rate)) / rate
        wave = sum(0.8 * np.exp(-(((times - click) / 0.0005) ** 2)) for click in wanted)
        for first in range(0, len(times), 1024):
            if gap and 1.0 <= first / rate < 2.0:
                continue
            block = (np.asarray(wave)[first : first + 1024] * 32767).astype(np.int16)[None]
            sound = av.AudioFrame.from_ndarray(block, format="s16", layout="mono")
            sound.sample_rate, sound.time_base = rate, Fraction(1, rate)
            sound.pts = first + int(start * rate)
            container.mux(audio.encode(sound))
        container.mux(audio.encode(None))
    return [click + start for click in wanted]


@pytest.mark.parametrize("start", [0.0, 0.5])
@pytest.mark.parametrize("gap", [False, True])
@pytest.mark.parametrize(("rate", "ending"), [(192000, ".mp4"), (44100, ".webm")])
def test_clicks_stay_where_they_are(
    tmp_path: Path, rate: int, ending: str, gap: bool, start: float
) -> None:
    source = tmp_path / "in.mkv"
    wanted = clicking(source, rate, gap, start)
    made = make_output(source, tmp_path / f"out{ending}")
    assert [s.action for s in made.plan.streams if s.type == "audio"] == ["convert"]
    found = clicks(made.path)
    assert len(found) == len(wanted)
    # One tick of Matroska's clock, and what it rounded in the source.
    assert max(abs(a - b) for a, b in zip(found, wanted, strict=True)) <= 0.0011


def broadcast(path: Path, codec: str, channels: int, rate: int) -> bytes:
    """Two seconds of MPEG-TS."""
    subprocess.run(
        [
            *("ffmpeg", "-v", "error", "-y", "-f", "lavfi", "-i", "testsrc2=s=64x48:r=25:d=2"),
            *("-f", "lavfi", "-i", "sine=440:d=2", "-ac", str(channels), "-ar", str(rate)),
            *("-c:v", "libx264", "-preset", "ultrafast", "-bf", "0", "-g", "5"),
            *("-c:a", codec, "-f", "mpegts", str(path)),
        ],
        check=True,
    )
    return path.read_bytes()


@pytest.mark.parametrize(
    ("codec", "channels", "rates"),
    [("ac3", (2, 6), (48000, 48000)), ("aac", (1, 2), (48000, 48000)),
     ("mp2", (2, 1), (48000, 44100))],
)  # fmt: skip
def test_channels_and_rates_that_change_in_the_middle(
    tmp_path: Path, codec: str, channels: tuple[int, int], rates: tuple[int, int]
) -> None:
    source = tmp_path / "in.ts"
    parts = [
        broadcast(tmp_path / f"{n}.ts", codec, channels[n], rates[n]) for n in range(len(channels))
    ]
    source.write_bytes(b"".join(parts))
    made = make_output(source, tmp_path / "out.webm")
    (sound,) = ffmpeg.probe(made.path, "-show_streams", "-select_streams", "a")["streams"]
    assert (sound["codec_name"], sound["channels"]) == ("opus", channels[0])
    packets = ffmpeg.probe(made.path, "-show_packets", "-select_streams", "a")["packets"]
    assert 3.9 < float(packets[-1]["pts_time"]) - float(packets[0]["pts_time"]) < 4.2


def test_times_that_go_back_do_not_stop_a_job(tmp_path: Path) -> None:
    plain, source = tmp_path / "plain.mkv", tmp_path / "in.mkv"
    subprocess.run(
        [
            *("ffmpeg", "-v", "error", "-f", "lavfi", "-i", "testsrc2=s=64x48:r=25:d=2"),
            *("-f", "lavfi", "-i", "sine=440:d=2:r=48000", "-c:v", "libx264"),
            *("-preset", "ultrafast", "-c:a", "ac3", str(plain)),
        ],
        check=True,
    )
    waver = random.Random(1)
    with av.open(str(plain)) as before, av.open(str(source), "w") as now:
        streams = {s.index: now.add_stream_from_template(s, opaque=True) for s in before.streams}
        for packet in before.demux():
            if not packet.size:
                continue
            if packet.stream_index == 1:
                assert packet.pts is not None
                packet.pts = packet.dts = max(packet.pts + waver.randint(-60, 60), 0)
            packet.stream = streams[packet.stream_index]
            with suppress(av.FFmpegError):  # The muxer takes none that goes back, but overlaps.
                now.mux_one(packet)
    made = make_output(source, tmp_path / "out.webm")
    receipt = verify(source, made.path, plan=made.plan)
    assert receipt.ok, receipt.problems
