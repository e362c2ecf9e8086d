"""The inbox with real folders and the real queue: killed at any step, it loses nothing."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from srstream.config import EncodeConfig, JobConfig, ScaleConfig
from srstream.daemon.inbox import files as inbox_files
from srstream.daemon.inbox import folders
from srstream.daemon.inbox import forget as inbox_forget
from srstream.daemon.inbox.folders import Inbox
from srstream.daemon.queue import JobQueue
from srstream.daemon.settings import InboxFolder
from srstream.errors import BusyError, ConfigError, RefusedError, UsageError
from srstream.protocol.control import JobInfo, Submit

SETTLE_SECONDS = 0.02
RECEIPT = {"ok": True, "num_frames_in": 3}


class Killed(BaseException):
    """Raised where the daemon dies."""


class Service:
    """The queue of a daemon with an inbox folder; `restart` is what a new daemon begins with."""

    def __init__(self, home: Path, settle: float = SETTLE_SECONDS, **settings: Any) -> None:
        self.home, self._settle = home, settle
        self.folder, self.output = home / "in", home / "out"
        self.quarantine = home / "quarantine"
        self.folder.mkdir()
        self.entry = InboxFolder(
            folder=self.folder,
            output=self.output,
            quarantine=self.quarantine,
            settle_seconds=settle,
            **settings,
        )
        self.queue = JobQueue(home / "jobs.sqlite")
        self.refusal: Exception | None = None
        self.requests: list[Submit] = []
        self.num_released = 0
        self.restart()

    def restart(self, *entries: InboxFolder) -> None:
        self.inbox = Inbox(
            entries or [self.entry],
            self.submit,
            self.status,
            self.home / "w.sqlite",
            self.released,
            lambda changes: ScaleConfig(**changes.get("scaling", {})),
        )

    def released(self) -> None:
        self.num_released += 1

    async def submit(self, request: Submit) -> JobInfo:
        if self.refusal is not None:
            raise self.refusal
        self.requests.append(request)
        assert request.output is not None
        job, _ = self.queue.add(
            Path(request.input),
            Path(request.output),
            JobConfig(),
            names_model=False,
            overwrite=request.overwrite,
            priority=request.priority,
            submitter="watch",
            key=request.key,
            max_queued=100,
        )
        return job.info()

    def status(self, job: str) -> JobInfo | None:
        try:
            return self.queue.get(job).info()
        except UsageError:
            return None

    def another(self, name: str, **settings: Any) -> InboxFolder:
        """Make another inbox folder beside the first."""
        (self.home / name).mkdir()
        changes = {"folder": self.home / name, "output": self.home / f"{name}-out", **settings}
        return self.entry.model_copy(update=changes)

    def put(self, name: str, content: bytes = b"a video") -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def settle(self) -> None:
        """Look at the folder again and again, for as long as a file takes to settle."""
        for _ in range(2):
            asyncio.run(self.inbox.look(self.folder))
            time.sleep(self._settle)
        asyncio.run(self.inbox.look(self.folder))

    def end(self, state: Any, **columns: Any) -> None:
        """End every queued job, and tell the inbox."""
        for job in self.queue.jobs(("queued",)):
            if state == "done":
                job.output.write_bytes(b"a larger video")
                columns["result"] = {"receipt": RECEIPT}
            self.queue.change(job.id, state, **columns)
            asyncio.run(self.inbox.job_ended(self.queue.get(job.id).info()))

    def jobs(self) -> list[tuple[str, str]]:
        """Input and output of each job, relative, the oldest first."""
        found = self.queue.jobs()[::-1]
        return [
            (str(job.input.relative_to(self.folder)), str(job.output.relative_to(self.output)))
            for job in found
        ]

    def files(self) -> set[str]:
        return {str(p.relative_to(self.home)) for p in self.home.rglob("*") if p.is_file()} - {
            f"{name}.sqlite{suffix}" for name in ("w", "jobs") for suffix in ("", "-wal", "-shm")
        }


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path)


def test_the_size_that_the_folder_asks_for_is_in_the_name(tmp_path: Path) -> None:
    service = Service(tmp_path, config={"scaling": {"scale": 2}})
    for name in ("clip.mp4", "clip.avi", "clip.mkv"):
        service.put(name)
    service.settle()
    service.settle()
    assert sorted(service.jobs()) == [
        ("clip.avi", "clip_2x.mkv"),
        ("clip.mkv", "clip_mkv_2x.mkv"),
        ("clip.mp4", "clip_2x.mp4"),
    ]


def test_a_file_becomes_one_job_with_result_and_receipt(service: Service) -> None:
    service.put("clip.mp4")
    service.settle()
    service.settle()
    assert service.jobs() == [("clip.mp4", "clip_4x.mp4")]
    service.end("done")
    assert service.files() == {"in/clip.mp4", "out/clip_4x.mp4", "out/clip_4x.mp4.receipt.json"}
    assert json.loads((service.output / "clip_4x.mp4.receipt.json").read_text()) == RECEIPT
    service.restart()
    service.settle()
    assert len(service.jobs()) == 1


def test_what_is_taken_and_what_is_not(service: Service, tmp_path: Path) -> None:
    for name in ("A.MP4", "deep/er/b.Mkv", "c.avi"):
        service.put(name)
    for name in ("notes.txt", ".hidden.mp4", ".deep/d.mp4", "x.mp4.part"):
        service.put(name)
    service.put("empty.mp4", b"")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret.mp4").write_bytes(b"secret")
    (service.folder / "link.mp4").symlink_to(tmp_path / "elsewhere" / "secret.mp4")
    (service.folder / "folder").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(service.folder / "pipe.mp4")
    (service.folder / "folder.mp4").mkdir()
    service.settle()
    assert sorted(service.jobs()) == [
        ("A.MP4", "A_4x.MP4"),
        ("c.avi", "c_4x.mkv"),
        ("deep/er/b.Mkv", "deep/er/b_4x.Mkv"),
    ]


def test_a_growing_file_is_left_alone_until_it_is_whole(tmp_path: Path) -> None:
    service = Service(tmp_path, settle=0.5)
    path = service.put("clip.mp4", b"x")
    for _ in range(5):
        with path.open("ab") as file:
            file.write(b"x")
        asyncio.run(service.inbox.look(service.folder))
        time.sleep(0.15)
    assert service.jobs() == []
    service.settle()
    assert len(service.jobs()) == 1


def test_a_file_that_is_open_for_writing_is_left_alone(service: Service) -> None:
    path = service.put("clip.mp4")
    code = "import sys, time; f = open(sys.argv[1], 'ab'); print('open', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdin is not None
        writer.stdout.readline()
        service.settle()
        assert service.jobs() == []
        writer.stdin.write(b"\n")
    service.settle()
    assert len(service.jobs()) == 1


def test_a_new_version_is_a_new_job_that_replaces_the_result(service: Service) -> None:
    service.put("clip.mp4")
    service.settle()
    service.end("done")
    service.put("clip.mp4", b"a longer video")
    service.settle()
    assert service.jobs() == [("clip.mp4", "clip_4x.mp4")] * 2
    assert [request.overwrite for request in service.requests] == [False, True]


def test_two_inputs_never_share_an_output(service: Service) -> None:
    service.put("clip.avi")
    service.settle()
    service.put("clip.ts")
    service.settle()
    assert service.jobs() == [("clip.avi", "clip_4x.mkv"), ("clip.ts", "clip_ts_4x.mkv")]


def test_settings_of_the_folder_are_the_job_s(tmp_path: Path) -> None:
    service = Service(tmp_path, priority=3, config=JobConfig(encode=EncodeConfig(crf=30)))
    service.put("clip.mp4")
    service.settle()
    (request,) = service.requests
    assert (request.priority, request.config) == (3, {"encode": {"crf": 30.0}})


@pytest.mark.parametrize("state", ["failed", "quarantined"])
def test_a_failure_lies_in_the_quarantine_with_its_reason(service: Service, state: str) -> None:
    service.put("deep/clip.mp4")
    service.settle()
    service.end(state, error="rtsp://u:pw@host/clip.mp4: it ends at 3 s; send it again.")
    assert service.files() == {"quarantine/deep/clip.mp4", "quarantine/deep/clip.mp4.reason.txt"}
    reason = (service.quarantine / "deep/clip.mp4.reason.txt").read_text()
    assert reason == "rtsp://u:***@host/clip.mp4: it ends at 3 s; send it again.\n"


def test_what_is_put_back_is_tried_again(service: Service) -> None:
    path = service.put("clip.mp4")
    for number in (1, 2, 3):
        service.settle()
        assert len(service.jobs()) == number
        service.end("failed", error=f"failure {number}.")
        reason = service.quarantine / "clip.mp4.reason.txt"
        assert reason.read_text() == f"failure {number}.\n"
        (service.quarantine / "clip.mp4").rename(path)


def test_a_second_failure_of_a_name_leaves_the_first_one_where_it_is(service: Service) -> None:
    for content in (b"first", b"second"):
        service.put("clip.mp4", content)
        service.settle()
        service.end("failed", error=f"{content.decode()}.")
    assert (service.quarantine / "clip.mp4").read_bytes() == b"first"
    assert (service.quarantine / "clip.2.mp4").read_bytes() == b"second"
    assert (service.quarantine / "clip.2.mp4.reason.txt").read_text() == "second.\n"


def test_a_file_that_was_replaced_meanwhile_is_not_moved(service: Service) -> None:
    service.put("clip.mp4")
    service.settle()
    service.put("clip.mp4", b"another one by now")
    service.end("failed", error="damaged.")
    assert service.files() == {"in/clip.mp4", "quarantine/clip.mp4.reason.txt"}
    service.settle()
    assert len(service.jobs()) == 2


def test_a_folder_that_became_a_link_is_not_followed(service: Service, tmp_path: Path) -> None:
    path = service.put("deep/clip.mp4")
    service.settle()
    (tmp_path / "private").mkdir()
    path.rename(tmp_path / "private" / "clip.mp4")
    path.parent.rmdir()
    path.parent.symlink_to(tmp_path / "private")
    service.end("failed", error="damaged.")
    assert (tmp_path / "private" / "clip.mp4").exists()


def test_across_file_systems_it_is_copied_then_deleted(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def other_device(source: str, target: str, **folders: int) -> None:
        if folders["src_dir_fd"] != folders["dst_dir_fd"]:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, target, **folders)

    path = service.put("clip.mp4", b"content" * 1000)
    mtime = path.stat().st_mtime_ns
    service.settle()
    monkeypatch.setattr(inbox_files.os, "rename", other_device)  # type: ignore[attr-defined]
    service.end("failed", error="damaged.")
    moved = service.quarantine / "clip.mp4"
    assert moved.read_bytes() == b"content" * 1000
    assert moved.stat().st_mtime_ns == mtime
    assert service.files() == {"quarantine/clip.mp4", "quarantine/clip.mp4.reason.txt"}


def test_a_cancelled_job_s_file_stays_and_is_not_taken_again(service: Service) -> None:
    service.put("clip.mp4")
    service.settle()
    service.end("cancelled")
    service.restart()
    service.settle()
    assert service.files() == {"in/clip.mp4"}
    assert len(service.jobs()) == 1


def test_what_is_refused_goes_to_the_quarantine(service: Service) -> None:
    service.put("clip.mp4")
    service.refusal = RefusedError("this lies outside; move it.")
    service.settle()
    assert service.files() == {"quarantine/clip.mp4", "quarantine/clip.mp4.reason.txt"}


def test_a_full_queue_is_waited_for(service: Service) -> None:
    service.put("clip.mp4")
    service.refusal = BusyError("the queue is full.")
    service.settle()
    assert service.files() == {"in/clip.mp4"}
    service.refusal = None
    service.settle()
    assert len(service.jobs()) == 1


def test_a_name_that_is_no_text_is_refused(service: Service) -> None:
    service.put("ordinary.mp4")
    (service.folder / os.fsdecode(b"bad\xff.mp4")).write_bytes(b"a video")
    service.settle()
    assert [source for source, _ in service.jobs()] == ["ordinary.mp4"]
    assert (service.quarantine / os.fsdecode(b"bad\xff.mp4")).exists()
    reason = (service.quarantine / os.fsdecode(b"bad\xff.mp4.reason.txt")).read_text()
    assert "rename the file" in reason


def test_the_longest_names_work(service: Service) -> None:
    name = "ä" * 125 + ".mp4"
    service.put(name)
    service.settle()
    service.end("done")
    (output,) = service.output.glob("*.mp4")
    assert output.name.startswith("ä" * 100)
    assert list(service.output.glob("*.receipt.json"))


STEPS = [
    (folders.InboxJournal, "add"),  # type: ignore[attr-defined]
    (folders.InboxJournal, "change"),  # type: ignore[attr-defined]
    (folders, "write_atomically"),
    (folders, "move_away"),
    (inbox_files.os, "fsync"),  # type: ignore[attr-defined]
    (inbox_files.os, "rename"),  # type: ignore[attr-defined]
]


@pytest.mark.parametrize("state", ["done", "failed"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize(("owner", "name"), STEPS, ids=[name for _, name in STEPS])
def test_killed_at_any_step_it_is_done_once(
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    number: int,
    when: str,
    state: str,
) -> None:
    """The daemon dies at the n-th call of a step, and starts again."""
    original, calls = getattr(owner, name), 0

    def step(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number and when == "before":
            raise Killed
        result = original(*args, **kwargs)
        if calls == number:
            raise Killed
        return result

    monkeypatch.setattr(owner, name, step)
    service.put("clip.mp4")
    for work in (
        service.settle,
        lambda: service.end(state, error="damaged." if state == "failed" else None),
    ):
        try:
            work()
        except Killed:
            service.inbox.close()
            service.restart()
            service.settle()
    service.end(state, error="damaged." if state == "failed" else None)
    service.settle()
    assert len(service.jobs()) == 1
    if state == "done":
        wanted = {"in/clip.mp4", "out/clip_4x.mp4", "out/clip_4x.mp4.receipt.json"}
    else:
        wanted = {"quarantine/clip.mp4", "quarantine/clip.mp4.reason.txt"}
    assert service.files() == wanted


def test_a_job_that_ended_while_the_daemon_was_down_is_put_down(service: Service) -> None:
    service.put("clip.mp4")
    service.settle()
    (job,) = service.queue.jobs()
    job.output.write_bytes(b"a larger video")
    service.queue.change(job.id, "done", result={"receipt": RECEIPT})
    service.inbox.close()
    service.restart()
    service.settle()
    assert (service.output / "clip_4x.mp4.receipt.json").exists()


def test_a_receipt_that_cannot_be_written_now_is_written_later(service: Service) -> None:
    service.put("clip.mp4")
    service.settle()
    blocking = service.output / ".clip_4x.mp4.receipt.json.part"
    blocking.mkdir()
    service.end("done")
    assert not (service.output / "clip_4x.mp4.receipt.json").exists()
    blocking.rmdir()
    service.settle()
    assert (service.output / "clip_4x.mp4.receipt.json").exists()


def running(service: Service, check: Callable[[], Awaitable[None]]) -> None:
    """Run `check` while the inbox runs."""

    async def both() -> None:
        task = asyncio.create_task(service.inbox.run())
        try:
            await check()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(both())


def test_a_folder_that_is_not_there_yet_is_waited_for(service: Service) -> None:
    service.folder.rmdir()

    async def check() -> None:
        await asyncio.sleep(0.2)
        service.put("clip.mp4")
        deadline = time.monotonic() + 10
        while not service.jobs() and time.monotonic() < deadline:
            await asyncio.sleep(0.05)

    running(service, check)
    assert service.jobs() == [("clip.mp4", "clip_4x.mp4")]


def test_what_cannot_be_done_is_told_once_and_tried_again(
    service: Service, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "_FIRST_PAUSE_SECONDS", 0.2)
    service.put("clip.mp4")
    service.refusal = BusyError("the queue is full.")
    service.quarantine.write_text("in the way of the folder")

    async def check() -> None:
        await asyncio.sleep(1)
        service.refusal = RefusedError("it lies outside.")
        await asyncio.sleep(1)
        told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert len([text for text in told if "the queue is full" in text]) == 1
        assert len([text for text in told if "exists" in text or "directory" in text]) == 1, told
        service.quarantine.unlink()
        deadline = time.monotonic() + 10
        while not (service.quarantine / "clip.mp4").exists() and time.monotonic() < deadline:
            await asyncio.sleep(0.05)

    running(service, check)
    assert (service.quarantine / "clip.mp4").exists()


def test_results_below_the_watched_folder_are_not_taken(tmp_path: Path) -> None:
    service = Service(tmp_path)
    service.output = service.folder / "out"
    service.entry = service.entry.model_copy(
        update={"output": service.output, "quarantine": service.folder / "bad"}
    )
    service.restart()
    service.put("clip.mp4")
    service.settle()
    service.end("done")
    service.settle()
    assert service.jobs() == [("clip.mp4", "clip_4x.mp4")]


@pytest.mark.parametrize(
    ("output", "quarantine"), [("in", "q"), ("out", "in"), (".", "q"), ("link", "q")]
)
def test_results_that_would_become_inputs_are_refused(
    tmp_path: Path, output: str, quarantine: str
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "in")
    entry = InboxFolder(
        folder=tmp_path / "in", output=tmp_path / output, quarantine=tmp_path / quarantine
    )
    (tmp_path / "other").mkdir()
    service = Service(tmp_path / "other")
    with pytest.raises(ConfigError, match="keep them apart"):
        Inbox([entry], service.submit, service.status, tmp_path / "w.sqlite")
    assert not (tmp_path / "w.sqlite").exists()


async def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        await asyncio.sleep(0.02)


def test_folders_come_and_go_while_it_runs(service: Service) -> None:
    more = service.another("more", priority=4)

    async def check() -> None:
        service.inbox.reconfigure([])
        service.put("unwatched.mp4")
        service.inbox.reconfigure([more])
        (more.folder / "a.mp4").write_bytes(b"a video")
        await until(lambda: service.requests)
        service.inbox.reconfigure([])
        (more.folder / "b.mp4").write_bytes(b"a video")
        await asyncio.sleep(10 * SETTLE_SECONDS)
        (request,) = service.requests
        assert (request.input, request.priority) == (str(more.folder / "a.mp4"), 4)
        service.inbox.reconfigure([service.entry, more])
        await until(lambda: len(service.requests) == 3)

    running(service, check)
    names = sorted(Path(request.input).name for request in service.requests)
    assert names == ["a.mp4", "b.mp4", "unwatched.mp4"]


@pytest.mark.parametrize("is_restarted", [False, True])
@pytest.mark.parametrize("state", ["done", "failed"])
def test_what_was_taken_of_a_removed_folder_ends_well(
    service: Service, state: str, is_restarted: bool
) -> None:
    more = service.another("more")
    service.put("clip.mp4")
    service.settle()
    service.inbox.reconfigure([more])
    if is_restarted:
        service.inbox.close()
        service.restart(more)
    service.put("late.mp4")
    assert [entry.folder for entry in service.inbox.unfinished_entries()] == [service.folder]
    service.end(state, error="damaged." if state == "failed" else None)
    service.settle()
    assert (service.num_released, service.inbox.unfinished_entries()) == (1, [])
    assert len(service.jobs()) == 1
    if state == "done":
        wanted = {"in/clip.mp4", "out/clip_4x.mp4", "out/clip_4x.mp4.receipt.json"}
    else:
        wanted = {"quarantine/clip.mp4", "quarantine/clip.mp4.reason.txt"}
    assert service.files() == {"in/late.mp4", *wanted}
    service.inbox.reconfigure([service.entry])
    service.settle()
    assert [source for source, _ in service.jobs()] == ["clip.mp4", "late.mp4"]


def test_a_file_that_waits_keeps_the_settings_with_which_it_was_taken(service: Service) -> None:
    config = JobConfig(encode=EncodeConfig(crf=30))
    service.inbox.reconfigure([service.entry.model_copy(update={"priority": 3, "config": config})])
    service.refusal = BusyError("the queue is full.")
    service.put("clip.mp4")
    service.settle()
    moved = service.entry.model_copy(update={"output": service.home / "elsewhere"})
    service.inbox.reconfigure([moved])
    service.refusal = None
    service.put("later.mp4")
    service.settle()
    before, after = service.requests
    assert (before.priority, before.config) == (3, {"encode": {"crf": 30.0}})
    assert before.output == str(service.output / "clip_4x.mp4")
    assert (after.priority, after.config) == (0, {})
    assert after.output == str(service.home / "elsewhere" / "later_4x.mp4")
    assert service.output in {entry.output for entry in service.inbox.unfinished_entries()}


def prune(service: Service, *, jobs_too: bool = True) -> set[str]:
    """Make a whole round; returns the names of inputs that the journal still has."""
    if jobs_too:
        service.queue.forget_old(0)
    service.inbox.forget_old(0)
    service.settle()
    with sqlite3.connect(service.home / "w.sqlite") as journal:
        return {
            Path(os.fsdecode(path)).name for (path,) in journal.execute("SELECT path FROM taken")
        }


def test_the_journal_forgets_what_has_left_nothing_behind(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox_forget, "_NUM_ROWS", 2)
    paths = [service.put(f"{n}.mp4") for n in range(3)]
    service.settle()
    service.end("done")
    assert prune(service) == {"0.mp4", "1.mp4", "2.mp4"}
    for number in (0, 1):
        paths[number].unlink()
    (service.output / "0_4x.mp4").unlink()
    (service.output / "2_4x.mp4").unlink()
    assert prune(service, jobs_too=False) == {"1.mp4", "2.mp4"}
    assert len(service.requests) == 3


def test_a_job_that_is_remembered_keeps_its_file_in_the_journal(service: Service) -> None:
    path = service.put("clip.mp4")
    service.put("other.mp4")
    service.settle()
    service.end("failed", error="damaged.")
    assert not path.exists()
    assert prune(service, jobs_too=False) == {"clip.mp4", "other.mp4"}
    service.put("third.mp4")
    service.settle()
    assert prune(service) == {"third.mp4"}
    (service.quarantine / "clip.mp4").rename(path)
    service.settle()
    assert len(service.queue.jobs(("queued",))) == 2


def test_a_result_that_lies_there_stays_one_that_may_be_replaced(service: Service) -> None:
    service.put("other.mp4")
    for content in (b"first", b"second one"):
        path = service.put("clip.mp4", content)
        service.settle()
        service.end("done")
    path.unlink()
    assert prune(service) == {"clip.mp4", "other.mp4"}
    with sqlite3.connect(service.home / "w.sqlite") as journal:
        # The second version's row makes the first one unnecessary.
        assert journal.execute("SELECT count(*) FROM taken").fetchone() == (2,)
    service.put("clip.mp4", b"the third one")
    service.settle()
    assert service.requests[-1].overwrite


@pytest.mark.parametrize("is_restarted", [False, True])
def test_an_unmounted_folder_makes_the_journal_forget_nothing(
    service: Service, is_restarted: bool
) -> None:
    service.put("clip.mp4")
    service.settle()
    service.end("done")
    away = service.home / "away"
    away.mkdir()
    for folder in (service.folder, service.output):
        folder.rename(away / folder.name)
        folder.mkdir()
    if is_restarted:
        service.inbox.close()
        service.restart()
    assert prune(service) == {"clip.mp4"}
    for folder in (service.folder, service.output):
        folder.rmdir()
        (away / folder.name).rename(folder)
    service.settle()
    assert len(service.requests) == 1


OLD_JOURNAL = """
CREATE TABLE taken (
    key TEXT PRIMARY KEY, folder BLOB NOT NULL, path BLOB NOT NULL, size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL, inode TEXT NOT NULL, attempt INTEGER NOT NULL,
    output BLOB NOT NULL, state TEXT NOT NULL, job TEXT, reason TEXT, quarantined_as BLOB
) STRICT;
INSERT INTO taken SELECT key, folder, path, size, mtime_ns, inode, attempt, output, state, job,
    reason, quarantined_as FROM now.taken;
"""


def test_a_journal_of_an_older_version_is_gone_on_with(service: Service) -> None:
    """Ended rows count as ended now; an open one ends by its folder's settings."""
    ended = service.put("ended.mp4")
    service.settle()
    service.end("done")
    service.put("open.mp4")
    service.settle()
    service.inbox.close()
    (service.home / "w.sqlite").rename(service.home / "new.sqlite")
    with sqlite3.connect(service.home / "w.sqlite") as old:
        old.execute("ATTACH ? AS now", (str(service.home / "new.sqlite"),))
        old.executescript(OLD_JOURNAL)
    (service.home / "new.sqlite").unlink()
    began = time.time()
    service.restart()
    service.settle()
    assert len(service.requests) == 2
    with sqlite3.connect(service.home / "w.sqlite") as journal:
        rows = journal.execute("SELECT state, ended FROM taken ORDER BY rowid").fetchall()
    assert [state for state, _ in rows] == ["done", "submitted"]
    assert rows[0][1] >= began and rows[1][1] is None
    service.end("done")
    assert (service.output / "open_4x.mp4.receipt.json").exists()
    ended.unlink()
    (service.output / "ended_4x.mp4").unlink()
    assert prune(service) == {"open.mp4"}
