"""`srstream verify` of an excerpt: right with the times it was made with, wrong with others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import clips
from tests.support.jobs import run

EXCERPT = ["--start", "0:00:01", "--end", "1.5"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A clip of two seconds, 25 frames each, and half a second of it."""
    folder = tmp_path_factory.mktemp("excerpt")
    source, output = clips.cfr(folder / "in.mp4", frames=50), folder / "out.mp4"
    done = run("enhance", source, *EXCERPT, "--preset", "ultrafast", "-o", output)
    assert done.returncode == 0, done.stderr
    return source, output


def test_an_excerpt_is_verified_by_its_times(made: tuple[Path, Path]) -> None:
    done = run("verify", *made, *EXCERPT)
    assert done.returncode == 0, done.stdout
    receipt = json.loads(done.stdout)
    # At 25 frames a second: those shown at 1.00 to 1.48 s.
    assert receipt["num_frames_in"] == receipt["num_frames_out"] == 13


@pytest.mark.parametrize("times", [[], ["--start", "0.5", "--end", "1"], ["--end", "0.5"]])
def test_other_times_do_not_fit(made: tuple[Path, Path], times: list[str]) -> None:
    done = run("verify", *made, *times)
    assert done.returncode == 1
    assert not json.loads(done.stdout)["ok"]


def test_times_that_cannot_be_read_are_said(made: tuple[Path, Path]) -> None:
    done = run("verify", *made, "--start", "soon")
    assert done.returncode == 2
    assert "--start soon: write seconds" in done.stderr
