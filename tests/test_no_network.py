"""Nothing opens a connection that was not asked for: every socket call of every process, traced."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import clips
from tests.support.jobs import command
from tests.support.paths import REPOSITORY
from tests.support.service.daemon import Daemon, wait_for

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")


def traced(log: Path, *arguments: str) -> list[str]:
    return ["strace", "-f", "-qq", "-e", "trace=socket,connect,sendto", "-o", str(log), *arguments]


def internet_calls(log: Path) -> list[str]:
    """Calls that make or use a socket of the internet families."""
    calls = log.read_text().splitlines()
    assert any("AF_UNIX" in call for call in calls), "nothing was traced"
    return [call for call in calls if re.search(r"AF_INET|AF_PACKET", call)]


@needs_strace
def test_the_command_opens_no_connection(tmp_path: Path) -> None:
    source = clips.cfr(tmp_path / "in.mp4")
    log = tmp_path / "trace"
    done = subprocess.run(
        traced(log, *command("enhance", source, "-o", tmp_path / "out.mp4")),
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ, PYTHONPATH=str(REPOSITORY)),
    )
    assert done.returncode == 0, done.stderr
    assert internet_calls(log) == []


class TracedDaemon(Daemon):
    """A daemon under strace; the tracer is the process, the daemon its child."""

    def launch(self) -> subprocess.Popen[bytes]:
        serve = [sys.executable, "-m", "srstream", "serve", "--config", str(self.config)]
        return subprocess.Popen(
            traced(self.home / "trace", *serve),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=dict(os.environ, PYTHONPATH=str(REPOSITORY)),
        )


@needs_strace
def test_the_daemon_opens_no_connection(tmp_path: Path) -> None:
    with TracedDaemon(tmp_path) as daemon:
        source = clips.cfr(daemon.inputs / "a.mp4")
        assert daemon.wait(daemon.submit(source, "a.mp4"))["state"] == "done"
        (serving,) = daemon.children("serve")
        serving.send_signal(signal.SIGTERM)
        wait_for(lambda: not serving.is_running())
    assert internet_calls(tmp_path / "trace") == []
