"""What real processes write to standard error, read from real files and sockets."""

from __future__ import annotations

import json
import logging
import os
import pty
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from srstream.daemon.logs import MinuteQuota, Repeats, redacted
from tests.support import clips
from tests.support.service.daemon import Daemon

HEAD = """
import contextvars, logging, sys, threading, structlog
from pathlib import Path
from srstream.daemon.logs import configure, log_context
from srstream.daemon.settings import LogSettings
logger = logging.getLogger("srstream.test")
"""


def lines_of(code: str, **environment: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-c", HEAD + code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_off_a_terminal_lines_are_json_with_all_that_is_known() -> None:
    first, second, third = lines_of(
        """
configure(LogSettings(), worker="engine-0", device="cpu")
logger.debug("not this one")
with log_context(job="0123456789abcdef", segment=3):
    logger.info("frame %d of %s", 7, "clip.mkv", extra={"pid": 42})
    structlog.get_logger("srstream.other").warning("slow", fps=1.5)
logger.error("over")
"""
    )
    assert first["event"] == "frame 7 of clip.mkv"
    assert first["level"] == "info" and first["logger"] == "srstream.test"
    assert first["timestamp"].endswith("Z")
    assert (first["job"], first["segment"], first["pid"]) == ("0123456789abcdef", 3, 42)
    assert (first["worker"], first["device"]) == ("engine-0", "cpu")
    assert (second["event"], second["fps"], second["level"]) == ("slow", 1.5, "warning")
    assert (second["job"], second["worker"]) == ("0123456789abcdef", "engine-0")
    assert "job" not in third and third["worker"] == "engine-0"


def test_a_thread_with_a_copy_of_the_context_carries_the_job_s_name() -> None:
    """`EncoderThread` takes such a copy."""
    (line,) = lines_of(
        """
configure(LogSettings(form="json"))
with log_context(job="0123456789abcdef"):
    run = contextvars.copy_context().run
    thread = threading.Thread(target=run, args=(logger.info, "encoded"))
thread.start()
thread.join()
"""
    )
    assert line["job"] == "0123456789abcdef"


def test_an_exception_is_one_line_and_a_bad_line_no_exception() -> None:
    first, second, third = lines_of(
        """
configure(LogSettings(form="json", level="warning"))
try:
    raise ValueError("rtsp://cam:hunter2@10.0.0.1/live\\nand more")
except ValueError as error:
    logger.exception("it failed")
    logger.error("%r", error, exc_info=error)
logger.error("%d frames", "many")
"""
    )
    assert "Traceback" in first["exception"] and "ValueError" in second["exception"]
    assert "hunter2" not in json.dumps([first, second])
    assert "failed: TypeError" in third["event"]


def test_no_value_shows_a_password() -> None:
    (line,) = lines_of(
        """
configure(LogSettings(form="json"))
url = "rtsp://user:hunter2@cam/live?token=hunter2"
with log_context(source=url):
    logger.info("open %s", url, extra={
        "nested": {"urls": [url, (url,)]}, "path": Path("/x?password=hunter2"),
        "error": OSError(url),
    })
"""
    )
    assert "hunter2" not in json.dumps(line)
    assert line["source"] == "rtsp://user:***@cam/live?token=***"
    assert line["nested"]["urls"][0] == line["source"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rtsp://u:p@host/a", "rtsp://u:***@host/a"),
        ("rtsp://u:p@ss:w@host:554/a b", "rtsp://u:***@host:554/a b"),
        ("redis://:p@host", "redis://:***@host"),
        ("two http://a:b@c and srt://d:e@f?passphrase=g", None),
        ("https://h/x?a=1&access_token=abc&b=2", "https://h/x?a=1&access_token=***&b=2"),
        ("https://h/x?X-Amz-Signature=abc#key=d", "https://h/x?X-Amz-Signature=***#key=***"),
        ("https://h/x?PASSWORD=abc", "https://h/x?PASSWORD=***"),
        ("http://host:8080/path@2x.png", "http://host:8080/path@2x.png"),
        ("at 12:30: a@b.example", "at 12:30: a@b.example"),
        ("/videos/a:b@c.mp4", "/videos/a:b@c.mp4"),
        ("h:443?width=12", "h:443?width=12"),
    ],
)
def test_what_is_redacted(text: str, shown: str | None) -> None:
    wanted = "two http://a:***@c and srt://d:***@f?passphrase=***" if shown is None else shown
    assert redacted(text) == wanted
    assert redacted(wanted) == wanted


@pytest.mark.parametrize("part", ["://", "://a:", "?a", "?", "://:@", "?token", "a", ":", "@"])
def test_redacting_takes_time_in_proportion(part: str) -> None:
    text = part * (1_000_000 // len(part))
    began = time.process_time()
    redacted(text)
    assert time.process_time() - began < 2


def test_on_a_terminal_lines_are_for_people_and_cannot_steer_it() -> None:
    supervisor, worker = pty.openpty()
    code = 'configure(LogSettings())\nlogger.info("clip \\x1b[2J.mp4", extra={"job": "j1"})'
    subprocess.run([sys.executable, "-c", HEAD + code], stderr=worker, check=True)
    os.close(worker)
    text = os.read(supervisor, 65536).decode()
    os.close(supervisor)
    assert "clip" in text and "job" in text and "{" not in text
    assert "\x1b[2J" not in text


def test_the_journal_is_told_the_priority() -> None:
    reading, writing = socket.socketpair()
    about = os.fstat(writing.fileno())
    code = """
configure(LogSettings())
logger.info("a")
logger.warning("b")
logger.error("c")
"""
    subprocess.run(
        [sys.executable, "-c", HEAD + code],
        stderr=writing,
        env={**os.environ, "JOURNAL_STREAM": f"{about.st_dev}:{about.st_ino}"},
        check=True,
    )
    writing.close()
    with reading.makefile() as lines:
        found = [(line[:3], json.loads(line[3:])["event"]) for line in lines]
    assert found == [("<6>", "a"), ("<4>", "b"), ("<3>", "c")]


def test_another_journal_s_stream_gets_no_priorities() -> None:
    (line,) = lines_of('configure(LogSettings())\nlogger.info("a")', JOURNAL_STREAM="1:1")
    assert line["event"] == "a"


def test_lines_of_processes_do_not_mix(tmp_path: Path) -> None:
    code = """
configure(LogSettings(form="json"), worker=sys.argv[1])
for number in range(300):
    logger.info("x" * 3000, extra={"number": number})
"""
    path = tmp_path / "log"
    with path.open("ab") as log:
        processes = [
            subprocess.Popen([sys.executable, "-c", HEAD + code, str(n)], stderr=log)
            for n in range(3)
        ]
        assert [process.wait() for process in processes] == [0, 0, 0]
    found = [json.loads(line) for line in path.read_text().splitlines()]
    for worker in "012":
        assert [line["number"] for line in found if line["worker"] == worker] == list(range(300))


def test_a_reader_that_is_gone_harms_nobody() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    code = 'configure(LogSettings())\nlogger.info("a")\nprint("still here")'
    done = subprocess.run(
        [sys.executable, "-c", HEAD + code], stderr=writing, stdout=subprocess.PIPE, check=False
    )
    os.close(writing)
    assert done.stdout == b"still here\n"


def test_the_value_of_what_changes_is_that_of_the_line() -> None:
    before, after = lines_of(
        """
configure(LogSettings(form="json"))
state = {"segment": None}
with log_context(job="0123456789abcdef", segment=lambda: state["segment"]):
    logger.info("a")
    state["segment"] = 4
    logger.info("b")
"""
    )
    assert "segment" not in before and after["segment"] == 4


def test_the_lines_of_a_daemon_are_json_and_name_job_and_worker(tmp_path: Path) -> None:
    with Daemon(tmp_path, "[logs]\nlevel = 'debug'") as daemon:
        good = daemon.submit(clips.cfr(daemon.inputs / "a.mp4"), "a.mp4")
        (daemon.inputs / "b.mp4").write_text("no video")
        bad = daemon.submit(daemon.inputs / "b.mp4", "b.mp4")
        assert daemon.wait(good)["state"] == "done"
        assert daemon.wait(bad)["state"] == "failed"
        daemon.stop()
        lines = [json.loads(line) for line in daemon.log().splitlines()]
    of_good = [line for line in lines if line.get("job") == good]
    assert {"job started", "job done"} <= {line["event"] for line in of_good}
    assert any(line["level"] == "warning" and line.get("job") == bad for line in lines)
    assert any(line.get("worker") == "engine-0" and line.get("device") for line in lines)
    for line in lines:
        assert line["timestamp"] and line["level"] and line["logger"], line
        named = good in line["event"] or bad in line["event"]
        assert "job" in line or not named, line


def test_lines_are_left_out_beyond_so_many_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    quota = MinuteQuota(2)
    assert [quota.admit() for _ in range(5)] == [0, 0, None, None, None]
    now[0] += 60.0
    assert [quota.admit() for _ in range(3)] == [3, 0, None]


REPEATING = """
import logging, sys
from srstream.daemon import logs
from srstream.daemon.settings import LogSettings
logs.configure(LogSettings(form="json"))
log = logging.getLogger("srstream.test")
for _ in range(730):
    log.error("the disk is full")
    log.warning("it failed", extra={"job": "a"})
log.warning("it failed", extra={"job": "b"})
for _ in range(2):
    log.info("job done")
"""


def test_a_repeated_line_is_logged_once_with_its_count() -> None:
    done = subprocess.run(
        [sys.executable, "-c", REPEATING], capture_output=True, text=True, check=True
    )
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    said = [line["event"] for line in lines]
    assert said[:5] == ["the disk is full", "it failed", "it failed", "job done", "job done"]
    assert [event.split(" in ")[0] for event in said[5:]] == [
        "the disk is full (729 more times",
        "it failed (729 more times",
    ]
    assert [line.get("job") for line in lines[1:3]] == ["a", "b"] and lines[-1]["job"] == "a"


def test_counts_are_logged_when_the_minute_is_over() -> None:
    repeats = Repeats(seconds=0.2)
    record = logging.makeLogRecord({"levelno": logging.ERROR, "levelname": "ERROR", "msg": "full"})
    admitted = [line.getMessage() for _ in range(4) for line in repeats.admit(record)]
    assert admitted == ["full"]
    time.sleep(0.3)
    admitted = [line.getMessage() for line in repeats.admit(record)]
    assert admitted == ["full (3 more times in 0 s)", "full"]
