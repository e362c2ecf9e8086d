"""Outputs are named by one rule, whoever names them."""

from __future__ import annotations

from pathlib import Path

import pytest

from srstream.config import ScaleConfig
from srstream.naming import mark_of, marked, unopened_output


@pytest.mark.parametrize(
    ("scaling", "mark"),
    [
        (ScaleConfig(), "4x"),
        (ScaleConfig(scale=2), "2x"),
        (ScaleConfig(scale=2.5), "2.5x"),
        (ScaleConfig(height=720), "720p"),
    ],
)
def test_the_size_marks_the_name(scaling: ScaleConfig, mark: str) -> None:
    assert mark_of(scaling) == mark
    assert marked(Path("/a/b.c.mp4"), scaling) == Path(f"/a/b.c_{mark}.mp4")
    assert marked(Path("b.avi"), scaling, ".mkv") == Path(f"b_{mark}.mkv")


@pytest.mark.parametrize(
    ("source", "output"), [("a.MP4", "a_4x.MP4"), ("a.avi", "a_4x.mkv"), ("a", "a_4x.mkv")]
)
def test_an_input_that_nobody_has_opened(source: str, output: str) -> None:
    assert unopened_output(Path(source), ScaleConfig()) == Path(output)
