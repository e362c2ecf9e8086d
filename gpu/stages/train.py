"""The trainer of `gpu/train.py`: from cargo made of drawn pictures, home, and on from there.

The training itself is `gpu/train.py` with real cargo; see docs/gpu-checklist.md.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from gpu.stages.report import TREE, Report, has_gpu, run_stage

RUN = "fast"
MINUTES = 1.25 if has_gpu() else 2.0
"""On a GPU 35 seconds of training: the rest is kept for the way home."""

WAIT_SECONDS = 120
MAX_FILE_BYTES, MAX_FILES = 16 << 20, 8
"""What comes home from one call."""


def main(report: Report) -> None:
    data = report.work / "data"
    draw_pictures(data)
    first = train(report, "from shipped weights", data, None)
    again = train(report, "on from what came home", data, report.work / "home-0")
    if first is None or again is None:
        return
    if has_gpu():
        report.check("continued", again["iteration"] > first["iteration"], rows(first, again))
        report.figure("speed", f"{again['iteration'] / again['seconds']:.0f} iterations a second")
    else:
        # Three iterations finish it there, and what is finished is not done again.
        is_same = first["state"] == again["state"] == "finished" and first == again
        report.check("continued", is_same, rows(first, again))
        report.not_shown("speed")


def draw_pictures(data: Path) -> None:
    """Draw soft noise as training pictures and one to validate on."""
    for name, side in (("train/group/a", 288), ("train/group/b", 304), ("test/Set5/c", 96)):
        path = data / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(side).integers(0, 255, (side, side, 3), dtype=np.uint8)
        cv2.imwrite(str(path), cv2.GaussianBlur(noise, (0, 0), 3))


def train(report: Report, what: str, data: Path, state: Path | None) -> dict[str, Any] | None:
    """Pack, carry, train in the background, wait, and take home; return the run's row."""
    number = len(list(report.work.glob("home-*")))
    made, folder, home = (report.work / f"{name}-{number}" for name in ("made", "in", "home"))
    brought = [] if state is None else ["--state", state]
    packed = script("cargo", "--data", data, "--output", made, "--without-clips", *brought)
    if packed.returncode != 0:
        report.check(f"{what}, packed", False, said(packed))
        return None
    shutil.copytree(made / "call-1", folder)
    places = ["--in", folder, "--out", home]
    started = script("train", "--minutes", MINUTES, *places, "--order", RUN, "--detached")
    waited = script("train", "--wait", WAIT_SECONDS, *places)
    table = home / "train.json"
    if started.returncode or waited.returncode or not table.is_file():
        report.check(what, False, said(started if started.returncode else waited))
        return None
    sizes = [path.stat().st_size for path in home.iterdir()]
    is_small = max(sizes) <= MAX_FILE_BYTES and len(sizes) <= MAX_FILES
    value = f"{len(sizes)} files, {sum(sizes) / 2**20:.1f} MiB, the largest {max(sizes):,} bytes"
    report.check(f"{what}, taken home", is_small, value)
    (row,) = json.loads(table.read_text())["runs"]
    report.check(what, row["state"] in ("stopped", "finished"), rows(row))
    return dict(row)


def rows(*runs: dict[str, Any]) -> str:
    return ", then ".join(
        f"{run['state']} at {run['iteration']:,} of {run['of']:,}" for run in runs
    )


def script(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TREE / "gpu" / f"{name}.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def said(ran: subprocess.CompletedProcess[str]) -> str:
    return (ran.stdout + ran.stderr).strip()[-300:]


if __name__ == "__main__":
    run_stage(main)
