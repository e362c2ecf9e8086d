"""Job after job on a running daemon: does its memory grow, does it leave files open?

    python benchmarks/soak.py --minutes 120 [--clip FILE] [--excerpt SECONDS] [--json FILE]

Starts `srstream serve` in its own folder, submits a clip repeatedly, and four times a minute
reads resident memory and open descriptors of supervisor and engine workers. The first tenth of
the time is warm-up; growth is the last tenth's median relative to the second's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from srstream import Client

SAMPLE_SECONDS = 15.0
REPOSITORY = Path(__file__).parent.parent
CLIP = REPOSITORY / "samples" / "nasa_13013.mp4"


def measure(process: psutil.Process) -> dict[str, float]:
    """Return MiB and descriptors of the daemon and of its workers."""
    workers = [
        child for child in process.children() if any("workers.main" in w for w in child.cmdline())
    ]
    return {
        "supervisor_mib": process.memory_info().rss / 2**20,
        "supervisor_descriptors": process.num_fds(),
        "workers_mib": sum(worker.memory_info().rss for worker in workers) / 2**20,
        "workers_descriptors": sum(worker.num_fds() for worker in workers),
    }


def soak(
    home: Path, clip: Path, minutes: float, excerpt: float
) -> tuple[list[dict[str, float]], int]:
    """Return the samples and the number of finished jobs."""
    for name in ("in", "out"):
        (home / name).mkdir()
    source = home / "in" / clip.name
    source.write_bytes(clip.read_bytes())
    config = home / "srstream.toml"
    config.write_text(
        f'[sockets]\nruntime_dir = "{home}/run"\n[security]\nread_roots = ["{home}/in"]\n'
        f'write_roots = ["{home}/out"]\n[jobs]\nstate_dir = "{home}/state"\n'
    )
    daemon = subprocess.Popen([sys.executable, "-m", "srstream", "serve", "--config", str(config)])
    samples, num_jobs = list[dict[str, float]](), 0
    try:
        with Client(f"ipc://{home}/run/control.sock") as client:
            _wait_until_ready(client)
            ends = time.monotonic() + 60 * minutes
            next_sample = 0.0
            while time.monotonic() < ends:
                job = client.submit(
                    source,
                    home / "out" / "out.mp4",
                    overwrite=True,
                    config={"source": {"end_seconds": excerpt}},
                )
                ended = client.wait(job.id)
                if ended.state != "done":
                    raise SystemExit(f"job {job.id}: {ended.state}: {ended.error}")
                num_jobs += 1
                if time.monotonic() >= next_sample:
                    next_sample = time.monotonic() + SAMPLE_SECONDS
                    samples.append(measure(psutil.Process(daemon.pid)))
    finally:
        daemon.terminate()
        daemon.wait(60)
    return samples, num_jobs


def _wait_until_ready(client: Client) -> None:
    for _ in range(200):
        try:
            if client.health().ok:
                return
        except Exception as error:
            print(error, file=sys.stderr)
        time.sleep(0.5)
    raise SystemExit("the daemon did not become ready")


def growth(samples: list[dict[str, float]], name: str) -> tuple[float, float]:
    """Return (median of the second tenth, median of the last tenth)."""
    tenth = max(1, len(samples) // 10)
    values = [sample[name] for sample in samples]
    return statistics.median(values[tenth : 2 * tenth]), statistics.median(values[-tenth:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--clip", type=Path, default=CLIP)
    parser.add_argument("--excerpt", type=float, default=2.0, help="seconds that a job enhances")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    os.environ.setdefault("PYTHONPATH", str(REPOSITORY))
    with tempfile.TemporaryDirectory(prefix="soak-") as home:
        samples, num_jobs = soak(Path(home), arguments.clip, arguments.minutes, arguments.excerpt)
    print(f"{num_jobs} jobs in {arguments.minutes:g} minutes, {len(samples)} samples")
    print("| of | second tenth | last tenth | growth |")
    print("| --- | ---: | ---: | ---: |")
    for name in samples[0]:
        first, last = growth(samples, name)
        print(f"| {name} | {first:.1f} | {last:.1f} | {last / first - 1:+.1%} |")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"num_jobs": num_jobs, "samples": samples}))


if __name__ == "__main__":
    main()
