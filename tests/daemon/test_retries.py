"""What becomes of jobs that fail, crash or are stopped; the queue's records; fair turns."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from srstream import errors
from srstream.config import JobConfig
from srstream.daemon import retries
from srstream.daemon.queue import JobQueue
from srstream.daemon.settings import JobSettings
from srstream.daemon.storage.rows import QueuedJob
from srstream.enhancer.fair_queue import STEP, Round
from srstream.errors import RefusedError, SrstreamError, UsageError

SETTINGS = JobSettings(state_dir=Path("/nowhere"), retry_seconds=1.0)


def add(queue: JobQueue, name: str = "a", priority: int = 0, key: str | None = None) -> QueuedJob:
    return queue.add(
        Path(f"/in/{name}.mp4"),
        Path(f"/out/{name}.mp4"),
        JobConfig(),
        names_model=False,
        overwrite=False,
        priority=priority,
        submitter="local",
        key=key,
        max_queued=10_000,
    )[0]


def apply(queue: JobQueue, job: QueuedJob, verdict: retries.Verdict) -> QueuedJob:
    pause = verdict.pause_seconds
    queue.change(job.id, verdict.state, verdict.data, pause_seconds=pause, **verdict.columns)
    return queue.get(job.id)


@pytest.fixture
def queue(tmp_path: Path) -> JobQueue:
    return JobQueue(tmp_path / "jobs.sqlite")


@pytest.mark.parametrize(
    ("kind", "state"),
    [
        ("RefusedError", "failed"),
        ("MediaError", "failed"),
        ("TruncatedError", "failed"),
        ("WeightsError", "failed"),
        ("VerifyError", "failed"),
        ("HostileInputError", "quarantined"),
        ("EngineError", "queued"),
        ("JobError", "queued"),
        ("DiskFullError", "queued"),
        ("NoSpaceError", "queued"),
    ],
)
def test_only_what_may_pass_is_tried_again(queue: JobQueue, kind: str, state: str) -> None:
    verdict = retries.after_failure(add(queue), getattr(errors, kind), "why", SETTINGS)
    assert verdict.state == state
    assert verdict.columns["error"] == "why"
    assert (verdict.pause_seconds is not None) == (state == "queued")


def test_every_error_has_a_verdict(queue: JobQueue) -> None:
    job = add(queue)
    kinds = [SrstreamError, *SrstreamError.__subclasses__()]
    for kind in kinds:
        assert retries.after_failure(job, kind, "why", SETTINGS).state in (
            "failed",
            "queued",
            "quarantined",
        )


def test_three_failures_at_one_segment_put_a_job_aside_and_progress_forgives(
    queue: JobQueue,
) -> None:
    job = add(queue)
    for _ in range(2):
        job = apply(queue, job, retries.after_failure(job, errors.EngineError, "x", SETTINGS))
        assert job.state == "queued"
    queue.segment_done(job.id, 1, 3)
    job = queue.get(job.id)
    for _ in range(2):
        job = apply(queue, job, retries.after_failure(job, errors.EngineError, "x", SETTINGS))
    assert job.state == "queued"
    job = apply(queue, job, retries.after_failure(job, errors.EngineError, "x", SETTINGS))
    assert job.state == "quarantined" and job.ended is not None


def test_pauses_double_up_to_the_longest(queue: JobQueue) -> None:
    settings = SETTINGS.model_copy(update={"max_retry_seconds": 3.0})
    job, pauses = add(queue), []
    for _ in range(4):
        verdict = retries.after_crash(job, settings)
        pauses.append(verdict.pause_seconds)
        job = apply(queue, job, verdict)
    assert pauses == [None, 1.0, 2.0, 3.0]


def test_a_full_disk_counts_neither_as_an_attempt_nor_as_a_failure(queue: JobQueue) -> None:
    job = add(queue)
    for _ in range(30):
        job = apply(queue, job, retries.after_failure(job, errors.DiskFullError, "full", SETTINGS))
        assert job.state == "queued" and job.retry_at is not None
        assert 0 < job.retry_at - time.time() <= retries.SPACE_SECONDS
        assert queue.next_jobs(1) == []
    assert (job.attempts, job.failures) == (0, 0)


def test_a_job_under_which_workers_die_runs_alone_and_then_not_at_all(queue: JobQueue) -> None:
    job = add(queue)
    for _ in range(2):
        assert not retries.is_suspect(job)
        job = apply(queue, job, retries.after_crash(job, SETTINGS))
        assert job.state == "queued"
    for _ in range(2):
        assert retries.is_suspect(job)
        job = apply(queue, job, retries.after_crash(job, SETTINGS))
        assert job.state == "queued" and (job.retry_at or 0) > time.time()
    job = apply(queue, job, retries.after_crash(job, SETTINGS))
    assert job.state == "quarantined" and "alone" in (job.error or "")


@pytest.mark.parametrize(("wanted", "state"), [("cancel", "cancelled"), ("pause", "paused")])
def test_what_was_asked_for_meanwhile_is_done(queue: JobQueue, wanted: str, state: str) -> None:
    job = add(queue)
    queue.update(job.id, wanted=wanted)
    job = queue.get(job.id)
    assert retries.after_stop(job).state == state
    assert retries.after_crash(job, SETTINGS).state == state


def test_the_queue_survives_being_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    with JobQueue(path) as queue:
        job = add(queue, key="k")
        queue.change(job.id, "done", result={"num_frames": 3})
        last = queue.last_seq
    with JobQueue(path) as queue:
        assert queue.get(job.id).result == {"num_frames": 3}
        assert add(queue, key="k").id == job.id
        assert queue.last_seq == last
        kinds = [(event.seq, event.data["state"]) for event in queue.events_after(0, None, 10)]
        assert kinds == [(1, "queued"), (2, "done")]


def test_the_order_is_priority_then_age_and_pauses_are_kept(queue: JobQueue) -> None:
    low, first, second = add(queue, "a", -1), add(queue, "b"), add(queue, "c")
    waiting = add(queue, "d", 9)
    queue.change(waiting.id, "queued", pause_seconds=60)
    assert [job.id for job in queue.next_jobs(9)] == [first.id, second.id, low.id]
    queue.hurry([waiting.id])
    assert queue.next_jobs(1) == [queue.get(waiting.id)]
    queue.segment_done(low.id, 1, 3)
    assert queue.next_jobs(1, begun_first=True) == [queue.get(low.id)]


def test_two_jobs_never_write_one_output(queue: JobQueue) -> None:
    job = add(queue)
    with pytest.raises(RefusedError, match=job.id):
        add(queue)
    queue.change(job.id, "cancelled")
    assert add(queue).id != job.id
    with pytest.raises(UsageError, match="no such job"):
        queue.get("ffffffffffff")


def test_old_jobs_are_forgotten_and_running_ones_are_not(queue: JobQueue) -> None:
    old, running = add(queue, "a"), add(queue, "b")
    queue.change(old.id, "done", ended=time.time() - 10 * 86_400)
    queue.change(running.id, "running")
    assert queue.forget_old(time.time() - 5 * 86_400) == 1
    assert [job.id for job in queue.jobs()] == [running.id]


def test_turns_are_shared_by_weight_and_nobody_starves() -> None:
    """Members that always want the engine get time in proportion to their weights."""
    turns = Round()
    members = {priority: turns.join(priority) for priority in (0, 2)}
    spent = dict.fromkeys(members, 0.0)
    end = time.monotonic() + 2.0

    def work(priority: int) -> None:
        while time.monotonic() < end:
            with members[priority].turn():
                started = time.monotonic()
                time.sleep(0.005)
                spent[priority] += time.monotonic() - started

    threads = [threading.Thread(target=work, args=(priority,)) for priority in members]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert spent[2] / spent[0] == pytest.approx(STEP**2, rel=0.25)


def test_who_comes_late_has_saved_nothing_up() -> None:
    turns = Round()
    early = turns.join(0)
    for _ in range(20):
        with early.turn():
            time.sleep(0.002)
    late = turns.join(0)
    with late.turn():
        pass
    assert late.clock >= early.clock - 0.05
    late.close()
    with early.turn():
        pass
