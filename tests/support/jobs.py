"""Shared by the tests that run whole jobs: the command as a real process, and what came out."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av

from tests.support.paths import REPOSITORY

TIMEOUT_SECONDS = 110


def command(*arguments: str | Path) -> list[str]:
    """The command line of `srstream` with these arguments."""
    return [sys.executable, "-m", "srstream.cli.main", *(str(argument) for argument in arguments)]


def run(*arguments: str | Path, failpoint: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command to its end; `failpoint` kills it at a step of the journal."""
    environment = dict(os.environ, PYTHONPATH=str(REPOSITORY))
    if failpoint is not None:
        environment["SRSTREAM_FAILPOINT"] = failpoint
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        env=environment,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )


def start(*arguments: str | Path) -> subprocess.Popen[bytes]:
    """Start the command in a process group of its own, silent."""
    return subprocess.Popen(
        command(*arguments),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=dict(os.environ, PYTHONPATH=str(REPOSITORY)),
        start_new_session=True,
    )


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def video_times(path: Path) -> list[Fraction]:
    """Exact times in seconds of all decoded frames of the first video stream."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.time_base is not None
        return [
            frame.pts * stream.time_base
            for frame in container.decode(stream)
            if frame.pts is not None
        ]
