"""Shows on a machine with a GPU what only a GPU can show, from the carried files alone.

    python3 gpu/kit.py STAGE... [--out FOLDER] [--limit SECONDS]
    python3 gpu/kit.py all

Stages: facts, ring, parity, nvdec, speed, whole, tests, train. Each is a process of its own with a
limit of its own, and a failure ends that stage alone. A table comes last. FOLDER then holds it as
`kit.txt` and `kit.json`, and what the stages printed as `kit-log.txt`.

Without a GPU each stage runs what it can on the CPU, and says of the rest that it was not shown.
The exit code is 1 if anything was wrong. docs/gpu-checklist.md is the plan of the half hour there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any

TREE = Path(__file__).resolve().parents[1]
CARRIED = TREE / "build" / "gpu-kit" / "packages.tar.xz"

STAGES = {
    "facts": 60,
    "ring": 150,
    "parity": 150,
    "nvdec": 90,
    "speed": 200,
    "whole": 200,
    "tests": 200,
    "train": 280,
}
"""The stages in order, and the seconds that each may take."""

LOG_BYTES = 1 << 20
"""The end of a stage's output that is kept."""

Finding = dict[str, str]


def main() -> int:
    given = arguments()
    names = list(STAGES) if "all" in given.stages else given.stages
    packages = unpacked(given.work)
    deadline = time.monotonic() + given.limit
    found: dict[str, Any] = {}
    for name in names:
        limit = min(STAGES[name], deadline - time.monotonic())
        print(f"--- {name}, at most {max(limit, 0):.0f} s", flush=True)
        found[name] = run_stage(name, given.work, packages, limit)
        write(found, given.work, given.out)  # each time, since a later stage may be the last
    print((given.out / "kit.txt").read_text(), end="")
    return int(any(f["state"] == "WRONG" for stage in found.values() for f in stage["findings"]))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stages", nargs="+", choices=[*STAGES, "all"], metavar="STAGE")
    parser.add_argument("--out", type=Path, default=TREE / "build" / "gpu-kit-out")
    parser.add_argument("--limit", type=float, default=560.0, help="seconds for all stages")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path(tempfile.gettempdir()) / "srstream-kit",
        help="for unpacked packages, which stay for the next call, and scratch files",
    )
    given = parser.parse_args()
    given.out, given.work = given.out.resolve(), given.work.resolve()
    given.out.mkdir(parents=True, exist_ok=True)
    return given


def unpacked(work: Path) -> Path:
    """Return the folder of the carried packages, unpacked by this call or by one before."""
    packages = work / "site-packages"
    if packages.is_dir():
        return packages
    if not CARRIED.is_file():
        sys.exit(f"{CARRIED} is not there: make it with `gpu/pack.sh` and carry it")
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work) as folder, tarfile.open(CARRIED) as archive:
        archive.extractall(folder, filter="data")
        (Path(folder) / packages.name).rename(packages)
    return packages


def run_stage(name: str, work: Path, packages: Path, limit: float) -> dict[str, Any]:
    """Run a stage and return its findings; among them, if it did not end well, how it ended."""
    if limit <= 0:
        return {"seconds": 0.0, "findings": [finding("stage", "not shown", "no time was left")]}
    folder = work / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    lines, log = folder / "findings.jsonl", folder / "log.txt"
    lines.touch()
    environment = {
        **os.environ,
        "PYTHONPATH": f"{packages}{os.pathsep}{TREE}",
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    command = [sys.executable, "-m", f"gpu.stages.{name}", str(lines)]
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=TREE, env=environment, stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        ended = wait(process, limit)
    findings = [json.loads(line) for line in lines.read_text().splitlines()]
    if ended:
        said = [line for line in end_of(log).splitlines() if line.strip()]
        findings.append(finding("stage", "WRONG", f"{ended}: {said[-1] if said else 'no word'}"))
    for each in findings:
        print(f"{each['what']}: {each['value']} ({each['state']})", flush=True)
    return {"seconds": round(time.monotonic() - began, 1), "findings": findings}


def wait(process: subprocess.Popen[bytes], limit: float) -> str:
    """Wait for a stage; return how it ended, or nothing if it ended well."""
    try:
        status = process.wait(limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"it ran past its limit of {limit:.0f} s and was killed"
    return f"it ended with exit code {status}" if status else ""


def finding(what: str, state: str, value: str) -> Finding:
    return {"what": what, "state": state, "value": value}


def end_of(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - LOG_BYTES))
        return file.read().decode(errors="replace")


def write(found: dict[str, Any], work: Path, out: Path) -> None:
    """Write the table, the same as JSON, and the logs."""
    (out / "kit.json").write_text(json.dumps({"stages": found}, indent=1))
    (out / "kit.txt").write_text(table(found))
    logs = [(name, work / name / "log.txt") for name in found]
    texts = [f"--- {name}\n{end_of(log)}\n" for name, log in logs if log.is_file()]
    (out / "kit-log.txt").write_text("".join(texts))


def table(found: dict[str, Any]) -> str:
    """Return the findings as a table; a value goes on in lines of its own."""
    rows, counts = [], dict.fromkeys(("right", "WRONG", "measured", "not shown"), 0)
    for name, stage in found.items():
        rows.append(f"\n{name}, {stage['seconds']:.0f} s")
        for each in stage["findings"]:
            counts[each["state"]] += 1
            first, *more = textwrap.wrap(each["value"], 66) or [""]
            rows.append(f"  {each['state']:10}{each['what']:40.40}  {first}")
            rows += [" " * 54 + line for line in more]
    total = ", ".join(f"{count} {state}" for state, count in counts.items())
    return "\n".join([*rows, "", total, ""])


if __name__ == "__main__":
    sys.exit(main())
