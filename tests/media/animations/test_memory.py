"""The memory that an animation takes does not grow with its length."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import REPOSITORY

MOST_GROWTH_KB = 6000
"""Of the 70 frames by which the two runs differ, of 300 KB each, 20 would fit into this."""

SCRIPT = """
import resource, sys
from fractions import Fraction
from pathlib import Path
import numpy as np
from srstream.media.animations.apng_writer import write_apng
from srstream.media.animations.formats import Slot
from srstream.media.animations.gif_writer import write_gif
from srstream.media.animations.webp_reader import WebpAsPng
from srstream.media.animations.webp_writer import write_webp
import av

kind, path, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
rows, columns = np.mgrid[:240, :320]
picture = np.dstack([columns % 256, rows, rows // 2, 0 * rows + 255]).astype(np.uint8)
size = (320, 240)

def frames():
    for number in range(count):
        yield Slot(number, 4 * number, 4), np.roll(picture, 3 * number, 1)

if kind == "gif":
    write_gif(path, frames, size, 0, 4)
elif kind == "apng":
    write_apng(path, frames(), size, 0, 4, Fraction(1, 100), has_alpha=False)
else:
    write_webp(path, frames(), size, 0, has_alpha=False, is_lossless=False)
if kind == "read":
    with av.open(WebpAsPng(path), format="apng") as container:
        assert sum(1 for _ in container.decode(video=0)) == count
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.parametrize("kind", ["gif", "apng", "webp", "read"])
def test_memory_does_not_grow_with_the_length(tmp_path: Path, kind: str) -> None:
    peaks = []
    for count in (10, 80):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, kind, tmp_path / "out", str(count)],
            cwd=REPOSITORY, capture_output=True, text=True, check=True,
        )  # fmt: skip
        peaks.append(int(done.stdout))
    assert peaks[1] - peaks[0] < MOST_GROWTH_KB
