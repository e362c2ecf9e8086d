"""`enhance` and `plan` with many inputs, as a home user types them: real commands on tiny clips."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.support import clips
from tests.support.jobs import command, run
from tests.support.paths import REPOSITORY

QUICK = ("--preset", "ultrafast")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two videos of one stem, one of another, a picture, text, and a folder with a video."""
    home = tmp_path / "vids"
    (home / "sub").mkdir(parents=True)
    clips.cfr(home / "a.mp4", frames=3)
    clips.cfr(home / "a.mkv", frames=3)
    clips.cfr(home / "b.c.mp4", frames=3)
    clips.cfr(home / "sub" / "d.mov", frames=3)
    cv2.imwrite(str(home / "p.png"), np.full((20, 30, 3), 90, np.uint8))
    (home / "notes.txt").write_text("no video")
    return home


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_folder_of_videos_and_pictures_is_enhanced_and_the_rest_said(folder: Path) -> None:
    done = run("enhance", folder, *QUICK)
    assert done.returncode == 0, done.stderr
    made = folder.with_name("vids_4x")
    assert names(made) == {"a.mkv", "a_mp4_4x.mp4", "b.c.mp4", "p.png"}
    assert "4 done" in done.stderr
    assert "left out (neither a video nor a picture by its name): notes.txt" in done.stderr
    assert "(a folder; --recursive looks into it): sub" in done.stderr

    again = run("enhance", folder, "--recursive", *QUICK)
    assert again.returncode == 0, again.stderr
    assert names(made) == {"a.mkv", "a_mp4_4x.mp4", "b.c.mp4", "p.png", "sub/d.mov"}
    assert "1 done, 4 skipped" in again.stderr


def test_named_files_go_beside_and_own_outputs_are_not_enlarged_again(folder: Path) -> None:
    before = names(folder)
    files = sorted(folder.glob("*.mp4"))
    assert run("enhance", *files, *QUICK).returncode == 0
    assert names(folder) - before == {"a_4x.mp4", "b.c_4x.mp4"}
    planned = run("plan", str(folder / "*.mp4"))
    assert planned.returncode == 0
    assert (
        "(enlarged already; named by itself it is enlarged again): a_4x.mp4, b.c_4x.mp4"
        in planned.stdout
    )
    assert planned.stdout.count("64x48 to ") == 2


def test_odd_entries_of_a_folder_stop_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "v"
    (folder / "dir.mp4").mkdir(parents=True)
    clips.cfr(folder / "we[i]rd *?.mp4", frames=2)
    (folder / "link.mp4").symlink_to("we[i]rd *?.mp4")
    (folder / "loop").symlink_to("loop")
    (folder / "empty.mp4").touch()
    os.mkfifo(folder / "pipe.mp4")
    done = run("enhance", folder, *QUICK)
    assert "error inside srstream" not in done.stderr, done.stderr
    assert names(tmp_path / "v_4x") in ({"we[i]rd *?.mp4"}, {"link.mp4"})
    assert f"1 done, 1 failed: {folder / 'empty.mp4'}" in " ".join(done.stderr.split())
    assert "left out (a folder; --recursive looks into it): dir.mp4" in done.stderr
    assert "left out (no regular file): loop, pipe.mp4" in done.stderr


def test_results_inside_the_folder_are_no_inputs(folder: Path) -> None:
    out = folder / "big"
    assert run("enhance", folder, "--recursive", "-o", out, *QUICK).returncode == 0
    again = run("enhance", folder, "--recursive", "-o", out, *QUICK)
    assert again.returncode == 0
    assert "srstream: 5 skipped" in again.stderr
    assert not list(out.rglob("big"))


def test_a_size_in_a_film_s_own_name_is_no_sign_of_an_output(tmp_path: Path) -> None:
    clips.cfr(tmp_path / "film_720p.mp4", frames=1)
    assert "film_720p.mp4: 64x48 to" in run("plan", str(tmp_path / "*.mp4")).stdout
    clips.cfr(tmp_path / "film.mp4", frames=1)
    planned = run("plan", str(tmp_path / "*.mp4")).stdout
    assert "left out (enlarged already" in planned and "): film_720p.mp4\n" in planned


def test_a_failure_stops_no_other_and_decides_the_exit_code(folder: Path, tmp_path: Path) -> None:
    (folder / "a.mkv").write_bytes(b"no video")
    (folder / "a.mp4").write_bytes((folder / "a.mp4").read_bytes()[:700])
    out = tmp_path / "out"
    missing = folder / "gone.mp4"
    done = run("enhance", folder / "a.mkv", missing, folder / "b.c.mp4", "-o", out, *QUICK)
    assert done.returncode == 1
    assert names(out) == {"b.c.mp4"}
    assert f"1 done, 2 failed: {folder / 'a.mkv'}, {missing}" in " ".join(done.stderr.split())


def test_names_that_would_collide_are_told_apart_or_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        clips.cfr(tmp_path / name / "a.mp4", frames=2)
    out = tmp_path / "out"
    sources = [tmp_path / "one" / "a.mp4", tmp_path / "two" / "a.mp4"]
    done = run("enhance", *sources, "-o", out, *QUICK)
    assert done.returncode == 2
    assert names(out) == {"a.mp4"}
    assert f"{sources[0]} would become {out / 'a'} too" in " ".join(done.stderr.split())


def test_events_of_many_files_are_json(folder: Path) -> None:
    done = run("enhance", folder / "a.mp4", folder / "p.png", folder / "none.mp4", "--json", *QUICK)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    ended = [(e["input"], e["status"]) for e in events if e["event"] == "file"]
    assert ended == [
        (str(folder / "a.mp4"), "done"),
        (str(folder / "p.png"), "done"),
        (str(folder / "none.mp4"), "failed"),
    ]
    assert done.returncode != 0


def test_one_file_may_go_to_a_folder(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert run("enhance", folder / "a.mp4", "-o", out, *QUICK).returncode == 0
    assert names(out) == {"a.mp4"}
    again = run("enhance", folder / "a.mp4", "-o", out, *QUICK)
    assert again.returncode == 2
    assert "exists already" in again.stderr


@pytest.mark.parametrize("name", ["empty", "*.mp4"])
def test_nothing_to_enhance_is_said(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    done = run("enhance", tmp_path / name)
    assert done.returncode == 2
    assert done.stderr.count("\n") <= 3


def test_ctrl_c_answers_in_two_seconds_and_the_batch_goes_on_where_it_was(tmp_path: Path) -> None:
    for name in ("a", "b"):
        # Keyframes every 12 frames: segments of 2 s.
        clips.cfr(tmp_path / f"{name}.mp4", frames=300, width=144, height=96)
    sources = [tmp_path / "a.mp4", tmp_path / "b.mp4"]
    process = subprocess.Popen(
        command("enhance", *sources, "--json", *QUICK),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ, PYTHONPATH=str(REPOSITORY)),
    )
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["event"] == "segment":
            break
    asked = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - asked < 2.0
    assert process.returncode == 130
    assert "frames are kept. Run the same command again to go on." in said

    done = run("enhance", *sources, *QUICK)
    assert done.returncode == 0, done.stderr
    assert "resuming: " in done.stderr
    assert "2 done" in done.stderr
