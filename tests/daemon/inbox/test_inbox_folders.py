"""The folders of an inbox that runs: missing, in the way of each other, added and removed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from srstream.config import EncodeConfig, JobConfig
from srstream.daemon.inbox import folders
from srstream.daemon.inbox.folders import Inbox
from srstream.daemon.settings import InboxFolder
from srstream.errors import BusyError, ConfigError, RefusedError
from tests.support.service.inbox import SETTLE_SECONDS, Service


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
