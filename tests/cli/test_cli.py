"""The command line as a user meets it: real processes, what they print where, how they end."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest

import srstream
from srstream.cli.options import JOB_OPTIONS, JobOptions, parse_bytes
from srstream.config import JobConfig, ModelConfig
from srstream.errors import UsageError
from srstream.media.read.demux import nvdec_fault
from srstream.models import table
from srstream.models.table import weights_path
from tests.support import clips, nasty_clips
from tests.support.jobs import command, run
from tests.support.paths import REPOSITORY


def test_progress_and_result_go_to_standard_error_alone(tmp_path: Path) -> None:
    source = clips.cfr(tmp_path / "in.mp4")
    done = run("enhance", source)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "in_4x.mp4" in done.stderr and "12 frames" in done.stderr
    assert (tmp_path / "in_4x.mp4").exists()


def test_json_events_follow_one_another_on_standard_output(tmp_path: Path) -> None:
    done = run("enhance", clips.cfr(tmp_path / "in.mp4", audio=1), "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert {event["schema"] for event in events} == {"srstream.events/1"}
    kinds = [event["event"] for event in events]
    assert kinds.index("started") < kinds.index("segment") < kinds.index("verified")
    assert kinds[-1] == "done" and events[-1]["exit_code"] == 0
    assert events[kinds.index("verified")]["ok"] is True
    assert done.stderr == ""


def test_a_failure_is_an_event_too(tmp_path: Path) -> None:
    failed = run("enhance", nasty_clips.truncated(tmp_path / "in.mp4"), "--json")
    assert failed.returncode == 1
    last = json.loads(failed.stdout.splitlines()[-1])
    assert (last["event"], last["exit_code"]) == ("failed", 1)
    assert "--salvage" in last["text"]


def test_a_terminal_gets_a_bar(tmp_path: Path) -> None:
    source = clips.cfr(tmp_path / "in.mp4", frames=60)
    parent, child = pty.openpty()
    process = subprocess.Popen(
        command("enhance", source),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=child,
        env=dict(os.environ, PYTHONPATH=str(REPOSITORY), TERM="xterm-256color", COLUMNS="120"),
    )
    os.close(child)
    screen = b""
    while True:
        try:
            block = os.read(parent, 4096)
        except OSError:
            break
        if not block:
            break
        screen += block
    assert process.wait(60) == 0
    assert b"fps" in screen and b"left" in screen and "━".encode() in screen


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["enhance"], "Missing argument"),
        (["enhance", "in.mp4", "--scale", "99"], "--scale"),
        (["enhance", "in.mp4", "--model", "best"], "--model"),
        (["enhance", "in.mp4", "--end", "-1"], "--end"),
        (["enhance", "in.mp4", "--scale", "2", "--height", "90"], "exclude"),
        (["enhance", "in.mp4", "--start", "2", "--end", "1"], "not after"),
        (["enhance", "in.mp4", "--start", "100"], "behind the last frame"),
        (["enhance", "in.mp4", "--max-memory", "lots"], "--max-memory"),
        (["enhance", "in.mp4", "--codec", "libnothing"], "libnothing"),
        (["enhance", "in.mp4", "-o", "in.mp4"], "input itself"),
        (["enhance", "in.mp4", "-o", "nowhere/out.mp4"], "no such folder"),
        (["enhance", "in.mp4", "-o", "out.webm", "--codec", "libx264"], "WebM"),
        (["plan", "missing.mp4"], "missing.mp4"),
        (["plan", "in.mp4", ".none"], ".none"),
    ],
)
def test_what_cannot_work_ends_with_a_sentence_and_code_2(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    clips.cfr(tmp_path / "in.mp4")
    failed = subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        env=dict(os.environ, PYTHONPATH=str(REPOSITORY)),
        check=False,
    )
    assert failed.returncode == 2, failed.stderr
    assert words in failed.stderr and "Traceback" not in failed.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4"]


def test_a_model_without_weights_names_those_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(weights_path("fast"), tmp_path)
    source = clips.cfr(tmp_path / "in.mp4")
    monkeypatch.setattr(table, "WEIGHTS_DIR", tmp_path)
    with pytest.raises(UsageError, match=r"--model srgan: .* there are: fast\."):
        srstream.enhance(source, config=JobConfig(model=ModelConfig(name="srgan")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fast.onnx", "in.mp4"]


def test_an_excerpt_of_a_file_with_two_videos_is_verified(
    tmp_path: Path, sample_clip: Path
) -> None:
    """The second video, which is copied, begins without a keyframe; it is not looked at."""
    done = run(
        *("enhance", sample_clip, "-o", tmp_path / "out.mkv"),
        *("--model", "fast", "--start", "4", "--end", "4.4"),
    )
    assert done.returncode == 0, done.stderr
    assert "verified: 12 of 12 frames, 6 of 6 streams" in done.stderr


def test_plan_says_all_and_writes_nothing(tmp_path: Path) -> None:
    source = clips.many_streams(tmp_path / "in.mkv")
    planned = run("plan", source)
    assert planned.returncode == 0, planned.stderr
    for words in (
        "50 frames",
        "256x192",
        "H.264",
        "[deu]",
        "copy",
        "nothing of the file is lost",
    ):
        assert words in planned.stdout
    as_json = json.loads(run("plan", source, "--json").stdout)
    assert as_json["schema"] == "srstream.plan/1"
    assert as_json["num_frames"] == 50 and as_json["estimated_fps"] > 0
    assert [stream["action"] for stream in as_json["streams"]].count("enhance") == 1
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("command", ["enhance", "plan"])
def test_an_excerpt_of_a_picture_is_refused(tmp_path: Path, command: str) -> None:
    source = tmp_path / "in.png"
    source.write_bytes((REPOSITORY / "tests" / "docs" / "photo.png").read_bytes())
    refused = run(command, source, "--start", "1")
    assert refused.returncode == 2
    assert f"{source}: this is a picture; leave --start and --end out." in refused.stderr
    assert list(tmp_path.iterdir()) == [source]


def test_verify_prints_the_receipt_and_tells_by_its_exit_code(tmp_path: Path) -> None:
    source = clips.cfr(tmp_path / "in.mp4", frames=20)
    assert run("enhance", source).returncode == 0
    good = run("verify", source, tmp_path / "in_4x.mp4")
    assert good.returncode == 0 and json.loads(good.stdout)["ok"] is True
    other = clips.cfr(tmp_path / "other.mp4", frames=19)
    bad = run("verify", other, tmp_path / "in_4x.mp4")
    receipt = json.loads(bad.stdout)
    assert bad.returncode == 1 and receipt["ok"] is False and receipt["problems"]


def test_pictures_give_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "album"
    folder.mkdir()
    for name in ("a.png", "b.jpg", "c.webp"):
        cv2.imwrite(
            str(folder / name), np.random.default_rng(1).integers(0, 255, (24, 32, 3), np.uint8)
        )
    planned = run("plan", folder / "a.png")
    assert planned.returncode == 0 and "a_4x.png: 128x96" in planned.stdout, planned.stderr
    one = run("enhance", folder / "a.png")
    assert one.returncode == 0, one.stderr
    picture = cv2.imread(str(folder / "a_4x.png"))
    assert picture is not None and picture.shape == (96, 128, 3)
    (folder / "a_4x.png").unlink()
    assert run("enhance", folder).returncode == 0
    made = sorted(path.name for path in (tmp_path / "album_4x").iterdir())
    assert made == ["a.png", "b.jpg", "c.webp"]


@pytest.mark.parametrize("arguments", [["--help"], ["enhance", "--help"], ["plan", "--help"]])
def test_help_reads_well(arguments: list[str]) -> None:
    helped = run(*arguments)
    assert helped.returncode == 0 and "Usage" in helped.stdout
    if arguments[0] == "enhance":
        for option in ("--overwrite", "--crf", "--salvage", "--deterministic", "--max-memory"):
            assert option in helped.stdout


def test_the_daemon_takes_the_options_of_enhance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")

    def told(command: str) -> list[str]:
        """All that --help says of the options of a job."""
        lines = run(command, "--help").stdout.splitlines()
        said: list[str] = []
        for first, last in (("│ --model", "│ --salvage"), ("Rarely needed", "--deterministic")):
            begin = next(n for n, line in enumerate(lines) if first in line)
            end = next(n for n, line in enumerate(lines) if last in line)
            said += [" ".join(line.split()) for line in lines[begin : end + 1]]
        return said

    text = "\n".join(told("enhance"))
    assert all("--" + name.replace("_", "-") in text for name in JOB_OPTIONS)
    assert told("submit") == told("enhance")


def test_the_defaults_that_help_tells_are_those_of_a_job() -> None:
    shown = {name: option.parameter(name).default for name, option in JOB_OPTIONS.items()}
    assert JobOptions(shown).config() == JobOptions({}).config() == JobConfig()


@pytest.mark.parametrize(
    ("name", "value"), [("threads", 5000), ("reuse_threshold", 65), ("start", "-1"), ("codec", 7)]
)
def test_an_option_that_is_wrong_is_named(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"^--{name.replace('_', '-')} {value}: "):
        JobOptions({"model": "fast", name: value}).config()


def test_completion_is_offered() -> None:
    # Without detection: the shell around a test run is not always one that Typer knows.
    environment = dict(os.environ, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    shown = subprocess.run(
        command("--show-completion", "bash"),
        capture_output=True,
        text=True,
        env=dict(environment, PYTHONPATH=str(REPOSITORY)),
        check=False,
    )
    assert shown.returncode == 0 and "complete" in shown.stdout, shown.stderr


@pytest.mark.parametrize(("text", "num_bytes"), [("2G", 2 << 30), ("800m", 800 << 20), ("5", 5)])
def test_sizes(text: str, num_bytes: int) -> None:
    assert parse_bytes(text) == num_bytes


def test_a_size_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="2G"):
        parse_bytes("2X")


def test_a_gpu_decoder_that_is_not_there(tmp_path: Path) -> None:
    """Asked for, it is refused beforehand; with auto the CPU decodes, and the plan says so."""
    source = clips.cfr(tmp_path / "in.mp4")
    if nvdec_fault(source, 1 << 28, 100) is None:
        pytest.skip("NVDEC works here")
    refused = run("enhance", source, "--decoder", "nvdec")
    assert refused.returncode == 2
    assert "NVDEC cannot be opened on this machine" in refused.stderr
    assert "--decoder cpu" in refused.stderr
    assert not list(tmp_path.glob("*4x*"))
    done = run("enhance", source, "--decoder", "auto")
    assert done.returncode == 0, done.stderr
    assert (
        "Decoded on the CPU: NVDEC cannot be opened"
        in run("plan", source, "--decoder", "auto", "-o", tmp_path / "other.mp4").stdout
    )
