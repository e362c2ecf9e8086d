"""The ring of slots: random schedules, overlap, memcheck, and errors that are sorted right."""

from __future__ import annotations

import shutil
import subprocess
import sys

from gpu.stages.report import TREE, Report, has_gpu, run_stage
from tests.support.gpu.device_errors import DEVICE_ERRORS, sorted_error
from tests.support.gpu.ring import Outcome, overlap_on_gpu, stress_gpu, stress_host

NUM_SCHEDULES, NUM_ON_CPU = 5000, 500
NAMES = {"python": "an exception", "memory": "out of memory", "assert": "a device assert"}

MEMCHECK_SECONDS = 60
MEMCHECKED = (
    "from tests.support.gpu.ring import stress_gpu; print(stress_gpu(40).num_wrong, 'wrong')"
)


def main(report: Report) -> None:
    errors(report)
    if not has_gpu():
        schedules(report, "schedules on the CPU", NUM_ON_CPU, stress_host(NUM_ON_CPU))
        report.not_shown("schedules on real streams")
        report.not_shown("a stream that does not wait is found")
        report.not_shown("overlap of the streams")
        report.not_shown("memcheck")
        return
    outcome = stress_gpu(NUM_SCHEDULES)
    schedules(report, "schedules on real streams", NUM_SCHEDULES, outcome)
    for forgets, stream in ((1, "compute"), (2, "download")):
        wrong = stress_gpu(200, forgets=forgets).num_wrong
        what = f"a {stream} stream that does not wait is found"
        report.check(what, wrong > 0, f"{wrong} wrong tiles")
    overlapping, total = overlap_on_gpu()
    share = overlapping / total
    report.check("overlap of the streams", share >= 0.8, f"{share:.0%} of {total} pieces of work")
    memcheck(report)


def errors(report: Report) -> None:
    """Each in a process of its own: a device assert breaks the whole process's context."""
    for kind, expected in DEVICE_ERRORS.items():
        if kind == "assert" and not has_gpu():
            report.not_shown(NAMES[kind])
            continue
        said = sorted_error(kind, "cuda" if has_gpu() else "cpu")
        is_right = said == expected
        name, is_broken, is_next_right = expected.split()
        value = f"{name}, device broken: {is_broken}, next tile right: {is_next_right}"
        report.check(NAMES[kind], is_right, value if is_right else said)


def schedules(report: Report, what: str, count: int, outcome: Outcome) -> None:
    is_right = outcome.num_wrong == outcome.num_refused == 0 and outcome.most_under_way == 4
    report.check(
        what,
        is_right,
        f"{count:,} schedules, {outcome.num_tiles:,} tiles, {outcome.num_wrong} wrong, "
        f"{outcome.num_refused} refused, up to {outcome.most_under_way} at once",
    )


def memcheck(report: Report) -> None:
    if shutil.which("compute-sanitizer") is None:
        report.not_shown("memcheck", "compute-sanitizer is not there")
        return
    command = ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9"]
    try:
        ran = subprocess.run(
            [*command, sys.executable, "-c", MEMCHECKED],
            cwd=TREE,
            capture_output=True,
            text=True,
            timeout=MEMCHECK_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        report.not_shown("memcheck", f"it takes more than {MEMCHECK_SECONDS} s")
        return
    said = "; ".join(
        line.strip("= ")
        for line in ran.stdout.splitlines()
        if "ERROR SUMMARY" in line or "wrong" in line or "not supported" in line
    )
    if "not supported" in said:
        report.not_shown("memcheck", said)
        return
    is_clean = ran.returncode == 0 and "ERROR SUMMARY: 0 errors" in said and "0 wrong" in said
    report.check("memcheck", is_clean, said or (ran.stdout + ran.stderr)[-300:])


if __name__ == "__main__":
    run_stage(main)
