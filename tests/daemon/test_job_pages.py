"""Pages of `list`: what SQLite writes is what `status` says, in order, and bounded in size."""

from __future__ import annotations

import asyncio
import itertools
import json
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, get_args

import pytest

from srstream.client.jobs import Client
from srstream.config import JobConfig
from srstream.daemon.api.job_pages import MAX_PAGE_BYTES, JobPages
from srstream.daemon.queue import JobQueue
from srstream.daemon.storage.rows import QueuedJob
from srstream.errors import JobError
from srstream.protocol.control import JobProgress, JobState, List
from tests.support.service.daemon import Daemon

PROGRESS = JobProgress(stage="enhancing", done=3, total=None, fps=1 / 3)


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[JobQueue]:
    with JobQueue(tmp_path / "a queue?#%41.sqlite") as queue:
        yield queue


def add(queue: JobQueue, name: str = "in") -> QueuedJob:
    job, _ = queue.add(
        Path(f"/{name}.mp4"), Path(f"/out/{time.monotonic_ns()}"), JobConfig(), names_model=True,
        overwrite=False, priority=-3, submitter="studio", key=None, max_queued=10_000,
    )  # fmt: skip
    time.sleep(0.002)  # ids sort by milliseconds
    return job


def page(queue: JobQueue, progress: dict[str, JobProgress] | None = None, **asked: Any) -> Any:
    return json.loads(asyncio.run(JobPages(queue.path).read(List(**asked), progress or {})))


def test_a_page_says_of_each_job_what_status_says(queue: JobQueue) -> None:
    progress = {}
    for state, name in itertools.product(
        get_args(JobState), ["plain", "\"'\\ \u00e9\u2028\U0001f3ac"]
    ):
        job = add(queue, name)
        progress[job.id] = PROGRESS
        queue.change(
            job.id, state, error=f"{name}\n\t%!", started=time.time(), retry_at=0.1,
            result={"output": name, "receipt": {"numbers": [1, 0.1, None, True]}},
        )  # fmt: skip
    add(queue)
    shown = page(queue, progress)
    assert shown["jobs"] == [
        json.loads(job.info(progress.get(job.id)).model_dump_json()) for job in queue.jobs()
    ]
    assert shown["next"] is None and len(shown["jobs"]) == 15


def test_pages_follow_one_another_to_the_end(queue: JobQueue) -> None:
    ids = [add(queue).id for _ in range(7)][::-1]
    queue.change(ids[6], "done")
    first = page(queue, limit=3)
    second = page(queue, limit=3, before=first["next"])
    third = page(queue, limit=3, before=second["next"])
    found = [job["id"] for each in (first, second, third) for job in each["jobs"]]
    assert found == ids and third["next"] is None
    exact = page(queue, limit=6, states=["queued", "failed"])
    assert [job["id"] for job in exact["jobs"]] == ids[:6] and exact["next"] is None
    assert page(queue, states=["failed"]) == {"jobs": [], "next": None}


def test_a_page_is_bounded_whatever_its_jobs_hold(queue: JobQueue) -> None:
    large = {"text": "x" * (MAX_PAGE_BYTES // 3)}
    ids = [add(queue).id for _ in range(5)][::-1]
    for job in ids:
        queue.change(job, "done", result=large)
    huge = add(queue).id
    queue.change(huge, "done", result={"text": "x" * 2 * MAX_PAGE_BYTES})
    found, before = [], None
    while True:
        content = asyncio.run(JobPages(queue.path).read(List(before=before), {}))
        shown = json.loads(content)
        found.append([job["id"] for job in shown["jobs"]])
        assert len(content) <= MAX_PAGE_BYTES + 100 or found[-1] == [huge]
        before = shown["next"]
        if before is None:
            break
    assert found == [[huge], ids[:2], ids[2:4], ids[4:]]


def test_a_queue_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="cannot be read"):
        asyncio.run(JobPages(tmp_path / "none").read(List(), {}))


LISTER = """
import sys, zmq
socket = zmq.Context().socket(zmq.REQ)
socket.connect(sys.argv[1])
for line in sys.stdin:
    before, found = None, 0
    while True:
        socket.send_json({"op": "list", "limit": 1000, "before": before})
        result = socket.recv_json()["result"]
        found, before = found + len(result["jobs"]), result["next"]
        if before is None:
            break
    print(found, flush=True)
"""


def copy_job(path: Path, number: int) -> None:
    """Copy the only job of a queue, as ended ones."""
    with closing(sqlite3.connect(path)) as database, database:
        columns = [row[1] for row in database.execute("PRAGMA table_info(job)")]
        names = ", ".join(columns)
        values = ", ".join("?1" if name == "id" else name for name in columns)
        for each in range(number):
            database.execute(
                f"INSERT INTO job ({names}) SELECT {values} FROM job LIMIT 1", (f"{each:019x}",)
            )


@pytest.mark.long
@pytest.mark.alone
def test_nobody_waits_for_those_who_list_all_jobs(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon, ExitStack() as stack:
        (daemon.inputs / "in.mp4").write_bytes(b"no video")
        job = daemon.submit(daemon.inputs / "in.mp4", "out.mp4")
        daemon.wait(job)
        copy_job(daemon.state / "jobs.sqlite", 1999)
        address = f"ipc://{daemon.runtime}/control.sock"
        pipe = subprocess.PIPE
        listers = [
            stack.enter_context(
                subprocess.Popen([sys.executable, "-c", LISTER, address], stdin=pipe, stdout=pipe)
            )
            for _ in range(3)
        ]
        for lister in listers:
            assert lister.stdin is not None and lister.stdout is not None
            lister.stdin.write(b"\n" * 10)
            lister.stdin.close()
        waits = []
        with Client(address) as client:
            while any(lister.poll() is None for lister in listers):
                begun = time.monotonic()
                assert client.status(job).id == job
                waits.append(time.monotonic() - begun)
        for lister in listers:
            assert lister.stdout is not None
            assert lister.stdout.read().split() == [b"2000"] * 10
    # Milliseconds on an idle machine; a list made in the event loop took 300.
    assert statistics.median(waits) < 0.1
