"""The inbox with real folders and the real queue: what is taken, and where everything ends up."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from srstream.config import EncodeConfig, JobConfig
from srstream.daemon.inbox import files as inbox_files
from srstream.errors import BusyError, RefusedError
from tests.support.service.inbox import RECEIPT, Service


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
