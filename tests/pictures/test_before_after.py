"""The before/after picture shows the same place of both, in the right colors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import numpy.typing as npt
import pytest

from srstream.errors import UsageError
from srstream.pictures.before_after import GAP, STRIP_HEIGHT, side_by_side
from tests.support import clips, nasty_clips

Maker = Callable[[Path], Path]


def enlarge(source: Path, output: Path) -> None:
    """What srstream would deliver, but at 4x by libswscale."""
    with av.open(str(source)) as before, av.open(str(output), "w") as after:
        original = before.streams.video[0]
        stream = after.add_stream("ffv1", rate=25)
        stream.width, stream.height = original.width * 4, original.height * 4
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = original.time_base
        for frame in before.decode(original):
            large = frame.reformat(stream.width, stream.height, interpolation="LANCZOS")
            large.pts, large.time_base = frame.pts, frame.time_base
            after.mux(stream.encode(large))
        after.mux(stream.encode())


def halves(picture: Path) -> tuple[npt.NDArray[np.int_], npt.NDArray[np.int_]]:
    sheet = cv2.imread(str(picture))
    assert sheet is not None
    width = (sheet.shape[1] - GAP) // 2
    body = sheet[STRIP_HEIGHT:, :, ::-1].astype(int)
    return body[:, :width], body[:, -width:]


@pytest.mark.parametrize("make", [clips.cfr, nasty_clips.vfr, nasty_clips.late_start])
def test_both_halves_show_the_same(make: Maker, tmp_path: Path) -> None:
    source, output, picture = (tmp_path / name for name in ("in.mp4", "out.mkv", "pair.png"))
    make(source)
    enlarge(source, output)
    side_by_side(source, output, picture)
    left, right = halves(picture)
    assert left.shape == right.shape
    assert left.shape[2] == 3
    assert np.abs(left - right).mean() < 3


def test_colours_are_those_of_the_tags(tmp_path: Path) -> None:
    source, picture = tmp_path / "in.mp4", tmp_path / "pair.png"
    nasty_clips.full_range_601(source)
    side_by_side(source, source, picture, at_seconds=0.0)
    left, _ = halves(picture)
    wanted = clips.picture(0)[: left.shape[0] // 2, : left.shape[1] // 2]
    assert np.abs(left[::2, ::2].mean((0, 1)) - wanted.mean((0, 1))).max() < 4


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    source = clips.cfr(tmp_path / "in.mp4")
    with pytest.raises(UsageError, match="no such file"):
        side_by_side(source, tmp_path / "out.mp4", tmp_path / "pair.png")
