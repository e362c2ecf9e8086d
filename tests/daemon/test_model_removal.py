"""A model that a real daemon stores is removed when nothing needs it, with all of its files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from srstream.models.table import weights_path
from tests.daemon.test_daemon import long_clip
from tests.support import clips
from tests.support.paths import REPOSITORY
from tests.support.service.daemon import Daemon, wait_for


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(tmp_path, "max_running = 1") as made:
        weights = made.inputs / "mine.safetensors"
        shutil.copy(weights_path("fast", ".safetensors"), weights)
        made.result("models.add", weights=str(weights))
        yield made


def removal(daemon: Daemon, name: str = "mine") -> str:
    """What is said against removing a model; empty if it was removed."""
    reply = daemon.ask("models.remove", name=name)
    return "" if reply["ok"] else str(reply["error"]["text"])


def files(daemon: Daemon) -> set[str]:
    return {path.name for path in (daemon.state / "models").iterdir()}


def test_what_needs_a_model_keeps_it(daemon: Daemon) -> None:
    long = long_clip(daemon.inputs / "long.mp4", 12)
    short = clips.cfr(daemon.inputs / "short.mp4", frames=5)
    own = {"model": {"name": "mine"}}
    assert "ships with srstream" in removal(daemon, "fast")
    assert "no model 'other' is registered" in removal(daemon, "other")
    daemon.result("models.use", name="mine")
    assert "is the default" in removal(daemon)
    daemon.result("models.use", name="fast")
    running = daemon.submit(long, "long.mp4", config=own)
    wait_for(lambda: daemon.job(running)["state"] == "running")
    assert f"job {running} uses this model" in removal(daemon)
    waiting = daemon.submit(short, "short.mp4", config=own)
    daemon.result("pause", job=waiting)
    daemon.result("cancel", job=running)
    wait_for(lambda: daemon.job(running)["state"] == "cancelled")
    assert f"job {waiting} uses this model" in removal(daemon)
    daemon.result("resume", job=waiting)
    done = daemon.wait(waiting)
    assert done["state"] == "done" and done["model"] == "mine", done
    assert files(daemon) == {"mine.json", "mine.onnx", "mine.safetensors"}
    assert removal(daemon) == "" and files(daemon) == set()
    assert "mine" not in {model["name"] for model in daemon.result("models.list")["models"]}
    refused = daemon.ask("submit", input=str(short), config=own)
    assert "there are no such weights" in refused["error"]["text"]


def test_the_configuration_keeps_a_model(daemon: Daemon) -> None:
    for name in ("watched", "made", "bad"):
        (daemon.home / name).mkdir()
    daemon.configure(f"""
[[watch]]
folder = "{daemon.home}/watched"
output = "{daemon.home}/made"
quarantine = "{daemon.home}/bad"
config = {{ model = {{ name = "mine" }} }}
""")
    daemon.result("reload")
    assert f"the watch folder {daemon.home}/watched" in removal(daemon)
    daemon.configure()
    daemon.result("reload")
    assert removal(daemon) == ""


def test_the_command_removes_a_model(daemon: Daemon) -> None:
    command = [sys.executable, "-m", "srstream", "models", "remove", "mine", "--service"]
    address = f"ipc://{daemon.runtime}/control.sock"
    done = subprocess.run(
        [*command, "--address", address],
        cwd=REPOSITORY,
        env=dict(os.environ, PYTHONPATH=str(REPOSITORY)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "mine: removed\n"), done.stderr
    assert files(daemon) == set()
