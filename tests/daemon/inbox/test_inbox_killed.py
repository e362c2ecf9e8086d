"""The inbox, killed at any step, loses nothing and does nothing twice."""

from __future__ import annotations

from typing import Any

import pytest

from srstream.daemon.inbox import files as inbox_files
from srstream.daemon.inbox import folders
from tests.support.service.inbox import RECEIPT, Service


class Killed(BaseException):
    """Raised where the daemon dies."""


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
