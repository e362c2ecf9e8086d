"""What Debian's ffmpeg and ffprobe say of a file: another version of libav than PyAV's."""

from __future__ import annotations

import json
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

needs_ffmpeg = pytest.mark.skipif(
    shutil.which("ffmpeg") is None or shutil.which("ffprobe") is None, reason="needs ffmpeg"
)


def frames(path: Path, *before: str, pix_fmt: str = "yuv420p") -> list[tuple[Fraction, str]]:
    """(time in seconds, MD5) of each frame of the first video, as ffmpeg decodes it."""
    done = subprocess.run(
        [
            *("ffmpeg", "-v", "error", *before, "-i", str(path), "-map", "0:v:0", "-copyts"),
            *("-fps_mode", "passthrough", "-enc_time_base", "-1", "-pix_fmt", pix_fmt),
            *("-f", "framemd5", "-"),
        ],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    base, found = Fraction(1), []
    for line in done.stdout.splitlines():
        if line.startswith("#tb 0:"):
            base = Fraction(line.split()[2])
        elif not line.startswith("#"):
            fields = [field.strip() for field in line.split(",")]
            found.append((int(fields[2]) * base, fields[5]))
    return found


def probe(path: Path, *what: str) -> dict[str, Any]:
    """ffprobe's JSON, for example of `-show_streams`."""
    done = subprocess.run(
        ["ffprobe", "-v", "error", *what, "-of", "json", str(path)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == "", done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def convert(source: Path, target: Path, *options: str) -> Path:
    """`ffmpeg -i source OPTIONS target`."""
    subprocess.run(
        ["ffmpeg", "-v", "error", "-y", "-i", str(source), *options, str(target)], check=True
    )
    return target
