"""The tests of what only a GPU can show; on a CPU, those of the same code without one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence

from gpu.stages.report import TREE, Report, has_gpu, run_stage

ON_GPU = ("tests/engines/test_cuda.py", "tests/engines/cuda", "tests/engines/test_faults.py")
ON_CPU = (
    "tests/engines/cuda/test_device.py",
    "tests/engines/cuda/test_availability.py",
    "tests/engines/cuda/test_spare.py",
)
"""A part: in CI all of them run anyway."""


def main(report: Report) -> None:
    if has_gpu():
        run(report, "on the GPU", ON_GPU, {"FAIL_WITHOUT_CUDA": "1"})
    else:
        run(report, "on the CPU", ON_CPU, {})
        report.not_shown("on the GPU")


def run(report: Report, what: str, paths: Sequence[str], variables: Mapping[str, str]) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-rfEs", "-p", "no:cacheprovider", *paths]
    environment = {**os.environ, **variables}
    ran = subprocess.run(
        command, cwd=TREE, env=environment, capture_output=True, text=True, check=False
    )
    print(ran.stdout[-20_000:], ran.stderr[-5_000:])
    lines = ran.stdout.strip().splitlines() or [ran.stderr.strip()[-300:]]
    report.check(what, ran.returncode == 0 and "passed" in lines[-1], lines[-1])
    for line in lines:
        if line.startswith(("FAILED ", "ERROR ")):
            report.check(line.split()[1], False, line[:300])
    for number, why in re.findall(r"^SKIPPED \[(\d+)\] \S+ (.*)$", ran.stdout, re.MULTILINE):
        report.not_shown(f"{number} tests", why)


if __name__ == "__main__":
    run_stage(main)
