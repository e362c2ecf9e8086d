"""What can be known of a job without its source is said at once, and no job is made of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import clips
from tests.support.jobs import video_times
from tests.support.paths import REPOSITORY
from tests.support.service.daemon import Daemon


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = tmp_path_factory.mktemp("daemon")
    with Daemon(home) as made:
        clips.cfr(made.inputs / "a.mp4", frames=20)
        clips.cfr(made.inputs / "b.mp4", frames=20)
        yield made


REFUSALS: list[tuple[str, dict[str, Any], str]] = [
    ("a.avi", {}, "cannot write .avi; name an output that ends in one of"),
    ("a", {}, "its name has no extension"),
    ("a.png", {}, "a video becomes a video and no picture"),
    (f"{'x' * 252}.mp4", {}, "this name is too long"),
    (".mp4", {}, "its name has no extension"),
    ("a.mp4", {"encode": {"codec": "nonsense"}}, "no encoder 'nonsense'"),
    ("a.mp4", {"encode": {"codec": "aac"}}, "no encoder 'aac'"),
    ("a.webm", {"encode": {"codec": "h264"}}, "WebM cannot carry h264 video; name an output"),
    ("a.mov", {"encode": {"codec": "av1"}}, "MOV cannot carry av1 video"),
    ("a.mp4", {"encode": {"codec": "hevc", "crf": 60}}, "libx265 takes a --crf from 0 to 51"),
    ("a.mp4", {"encode": {"codec": "h264", "preset": "quick"}}, "no --preset 'quick'; there are"),
    ("a.mp4", {"engine": {"name": "nonsense"}}, "config.engine.name"),
    ("a.mp4", {"engine": {"name": "tensorrt"}}, "engine 'tensorrt' needs a package"),
    ("a.mp4", {"engine": {"name": "pytorch", "precision": "int8"}}, "openvino only"),
    ("a.mp4", {"scaling": {"scale": 2, "height": 720}}, "scale and height exclude each other"),
    ("a.mp4", {"source": {"start_seconds": 5, "end_seconds": 2}}, "2 s is not after 5 s"),
    ("a.mp4", {"model": {"name": "fast", "detail": 0.5}}, "model 'fast' has no crisp weights"),
    ("a.mp4", {"model": {"name": "nonsense"}}, "there are no such weights"),
]


@pytest.mark.parametrize(("name", "config", "words"), REFUSALS, ids=lambda value: str(value)[:40])
def test_it_is_refused_at_once(
    daemon: Daemon, name: str, config: dict[str, Any], words: str
) -> None:
    before = len(daemon.result("list")["jobs"])
    output = str(daemon.outputs / name)
    reply = daemon.ask("submit", input=str(daemon.inputs / "a.mp4"), output=output, config=config)
    assert not reply["ok"] and words in reply["error"]["text"], reply
    assert len(daemon.result("list")["jobs"]) == before


def test_the_input_is_no_output(daemon: Daemon) -> None:
    source = str(daemon.inputs / "a.mp4")
    reply = daemon.ask("submit", input=source, output=source, overwrite=True)
    assert "the output would be the input" in reply["error"]["text"]


def test_a_command_without_output_works_with_separate_folders(daemon: Daemon) -> None:
    """As a user types it, in the folder of the inputs."""
    command = [sys.executable, "-m", "srstream", "submit", "a.mp4", "--wait"]
    done = subprocess.run(
        [*command, "--address", f"ipc://{daemon.runtime}/control.sock"],
        cwd=daemon.inputs,
        env={"PYTHONPATH": str(REPOSITORY), "HOME": str(daemon.home), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    output = daemon.outputs / "a_4x.mp4"
    assert str(output) in done.stdout
    assert video_times(output) == video_times(daemon.inputs / "a.mp4")


def test_a_key_stays_with_its_input(daemon: Daemon) -> None:
    first = daemon.submit(daemon.inputs / "a.mp4", "k.mp4", key="k")
    assert daemon.submit(daemon.inputs / "a.mp4", "k.mp4", key="k") == first
    reply = daemon.ask(
        "submit", input=str(daemon.inputs / "b.mp4"), output=str(daemon.outputs / "l.mp4"), key="k"
    )
    assert reply["error"]["kind"] == "UsageError", reply
    assert first in reply["error"]["text"] and "choose another key" in reply["error"]["text"]
    daemon.result("cancel", job=first)


def test_outputs_go_to_the_folder_that_is_configured(daemon: Daemon) -> None:
    good = daemon.config.read_text()
    (daemon.outputs / "more").mkdir()
    for folder, fault in ((daemon.outputs / "more", ""), ("/x", "beneath none of the write_roots")):
        text = good.replace("[jobs]\n", f'[jobs]\noutput_dir = "{folder}"\n')
        daemon.config.write_text(text)
        reply = daemon.ask("reload")
        assert reply["ok"] != bool(fault) and fault in str(reply["error"])
    made = daemon.result("submit", input=str(daemon.inputs / "a.mp4"))
    daemon.result("cancel", job=made["id"])
    daemon.config.write_text(good)
    daemon.result("reload")
    assert made["output"] == str(daemon.outputs / "more" / "a_4x.mp4")


def test_an_output_is_beside_its_input_where_that_may_be_written(daemon: Daemon) -> None:
    source = clips.cfr(daemon.outputs / "c.mp4", frames=20)
    good = daemon.config.read_text()
    roots = f'["{daemon.inputs}", "{daemon.outputs}"]'
    daemon.config.write_text(
        good.replace(f'read_roots = ["{daemon.inputs}"]', f"read_roots = {roots}")
    )
    daemon.result("reload")
    made = daemon.result("submit", input=str(source))
    daemon.result("cancel", job=made["id"])
    daemon.config.write_text(good)
    daemon.result("reload")
    assert made["output"] == str(daemon.outputs / "c_4x.mp4")
