"""Resident memory of a whole job, decoder included, on a short and on a long clip.

    python benchmarks/memory.py [--seconds 10 600] [--json]

The sample clip is encoded repeatedly until it is long enough. The output is the peak resident set
size (RSS) of the command and its child together, sampled five times a second, and the ratio of
the long clip's peak to the short one's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import psutil

SAMPLE = Path(__file__).parent.parent / "samples" / "nasa_13013.mp4"


def make_clip(path: Path, size: tuple[int, int], seconds: float) -> None:
    """Write the sample's small video repeatedly, resized once, until it lasts `seconds`."""
    with av.open(str(SAMPLE)) as source:
        pictures = [
            frame.reformat(*size, format="yuv420p", threads=1)
            for frame in source.decode(source.streams.video[0])
        ]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.options = {"preset": "ultrafast", "crf": "28", "g": "50"}
        for number in range(int(seconds * 25)):
            picture = pictures[number % len(pictures)]
            picture.pts, picture.time_base = number, Fraction(1, 25)
            picture.pict_type = 0
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def peak_bytes(source: Path, output: Path) -> int:
    """Enhance and return the peak memory of the process and its children."""
    process = psutil.Popen(
        [sys.executable, "-m", "srstream.cli.main", "enhance", str(source), "-o", str(output)],
        stderr=subprocess.PIPE,
        text=True,
    )
    peak = 0
    while process.poll() is None:
        total = 0
        for one in [process, *process.children(recursive=True)]:
            try:
                total += one.memory_info().rss
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        peak = max(peak, total)
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(process.stderr.read())
    return peak


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, nargs="+", default=[10, 600])
    parser.add_argument("--size", type=int, nargs=2, default=[320, 180], metavar=("W", "H"))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    peaks: dict[float, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seconds in arguments.seconds:
            clip, output = Path(folder) / f"{seconds:g}.mp4", Path(folder) / f"{seconds:g}_4x.mp4"
            make_clip(clip, tuple(arguments.size), seconds)
            peaks[seconds] = peak_bytes(clip, output)
            output.unlink()
            if not arguments.json:
                print(f"{seconds:6g} s  {peaks[seconds] / 2**20:7.1f} MiB", flush=True)
    first = peaks[arguments.seconds[0]]
    ratios = {seconds: peak / first for seconds, peak in peaks.items()}
    if arguments.json:
        print(json.dumps({"peak_bytes": peaks, "ratio": ratios}))
    else:
        print("ratio  " + "  ".join(f"{ratio:.3f}" for ratio in ratios.values()))


if __name__ == "__main__":
    main()
