"""What once failed after the last frame: sources odd or damaged where nobody looks first."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from srstream.media.verify import verify
from tests.support import ffmpeg
from tests.support.outputs import make_output

pytestmark = ffmpeg.needs_ffmpeg

_TS_BYTES = 188
_AUDIO_PID = 0x101


def run_ffmpeg(*arguments: object) -> None:
    subprocess.run(["ffmpeg", "-v", "error", "-y", *map(str, arguments)], check=True)


def recording(path: Path, codec: str, seconds: float = 2) -> Path:
    """A clip with sound."""
    run_ffmpeg(
        *("-f", "lavfi", "-i", f"testsrc2=s=64x48:r=25:d={seconds}"),
        *("-f", "lavfi", "-i", f"sine=440:d={seconds}:r=48000", "-ac", 2),
        *("-c:v", "libx264", "-preset", "ultrafast", "-c:a", codec, "-strict", -2, path),
    )
    return path


def damage_sound(path: Path) -> None:
    """Overwrite three in ten of the packets of MPEG-TS that carry sound, behind the first third."""
    data, chance = bytearray(path.read_bytes()), random.Random(2)
    num_packets = len(data) // _TS_BYTES
    for number in range(num_packets // 3, num_packets):
        at = number * _TS_BYTES
        pid = (data[at + 1] & 0x1F) << 8 | data[at + 2]
        if pid == _AUDIO_PID and chance.random() < 0.3:
            data[at + 30 : at + _TS_BYTES] = chance.randbytes(_TS_BYTES - 30)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("codec", "ending"),
    [
        *[("aac", ending) for ending in (".mp4", ".mkv", ".webm")],
        *[("mp2", ending) for ending in (".mp4", ".mov", ".mkv", ".webm", ".ts")],
        *[("ac3", ending) for ending in (".mp4", ".mov", ".mkv", ".webm", ".ts")],
    ],
)
def test_damaged_sound_of_a_broadcast(tmp_path: Path, codec: str, ending: str) -> None:
    """MP4 and Matroska make their headers of AAC's, which a damaged packet lacks."""
    source = recording(tmp_path / "in.ts", codec, 3)
    damage_sound(source)
    made = make_output(source, tmp_path / f"out{ending}")
    receipt = verify(source, made.path, plan=made.plan)
    assert receipt.ok, receipt.problems
    if codec == "aac" and ending != ".webm":
        assert any("damaged packets are left out" in loss for loss in receipt.losses)
    packets = ffmpeg.probe(made.path, "-show_packets", "-select_streams", "a")["packets"]
    assert float(packets[-1]["pts_time"]) > 2.8


@pytest.mark.parametrize("codec", ["tta", "wavpack"])
@pytest.mark.parametrize("ending", [".mp4", ".webm"])
def test_packets_of_no_or_a_wrong_length(tmp_path: Path, codec: str, ending: str) -> None:
    source = recording(tmp_path / "in.mkv", codec, 0.6)
    made = make_output(source, tmp_path / f"out{ending}")
    receipt = verify(source, made.path, plan=made.plan)
    assert receipt.ok, receipt.problems


CHAPTERS = {
    "overlapping": [(0, 600), (200, 400), (300, 600)],
    "of no length": [(0, 0), (0, 600), (0, 600)],
    "beyond the end": [(0, 300), (5000, 90000)],
}


@pytest.mark.parametrize("ending", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("kind", CHAPTERS)
@pytest.mark.parametrize("container", ["mkv", "mp4"])
def test_odd_chapters(tmp_path: Path, kind: str, ending: str, container: str) -> None:
    lines = [";FFMETADATA1"]
    for number, (start, end) in enumerate(CHAPTERS[kind]):
        lines += ["[CHAPTER]", "TIMEBASE=1/1000", f"START={start}", f"END={end}"]
        lines += [f"title=chapter {number}"]
    (tmp_path / "chapters.txt").write_text("\n".join(lines) + "\n")
    plain, source = recording(tmp_path / "plain.mkv", "aac", 0.6), tmp_path / f"in.{container}"
    run_ffmpeg(
        *("-i", plain, "-i", tmp_path / "chapters.txt", "-map_metadata", 1, "-c", "copy", source)
    )
    made = make_output(source, tmp_path / f"out{ending}")
    receipt = verify(source, made.path, plan=made.plan)
    assert receipt.ok, receipt.problems
    assert receipt.num_chapters_out == len(CHAPTERS[kind])
