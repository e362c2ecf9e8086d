"""The order of work on a machine with a GPU, on the CPU, from the carried files alone."""

import fcntl
import importlib
import json
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest

from tests.support.paths import REPOSITORY
from trainer.ship.export import load_run
from trainer.state import CHECKPOINT_NAME, load_state

MIB = 1 << 20


def gpu(script, *arguments):
    command = [sys.executable, REPOSITORY / "gpu" / f"{script}.py", *arguments]
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)


def write_picture(path, height, width):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.random.default_rng(height).integers(0, 255, (height, width, 3), dtype=np.uint8)
    cv2.imwrite(str(path), cv2.GaussianBlur(picture, (0, 0), 3))


@pytest.fixture
def cargo(tmp_path):
    """What `make gpu-train` makes of three pictures, as it arrives there."""
    for name, side in [("a", 288), ("b", 304), ("c", 320)]:
        write_picture(tmp_path / "data" / "train" / "group" / f"{name}.jpg", side, side)
    write_picture(tmp_path / "data" / "test" / "Set5" / "one.png", 64, 80)
    given = ["--data", tmp_path / "data", "--output", tmp_path / "made", "--without-clips"]
    made = gpu("cargo", *given)
    assert made.returncode == 0, made.stderr
    shutil.copytree(tmp_path / "made" / "call-1", tmp_path / "in")
    return tmp_path / "in"


@pytest.mark.long
def test_the_order_of_work_runs_and_travels_home_and_back(tmp_path, cargo):
    """A run waits for the one that it starts from; what is finished is not done again."""
    home, runs = tmp_path / "home", ["fast", "fast_restore"]
    early = gpu("train", "--minutes", 5, "--in", cargo, "--out", home, "--order", "fast_restore")
    assert early.returncode != 0
    assert "starts from the weights of fast, which are not finished" in early.stderr
    done = gpu("train", "--minutes", 5, "--in", cargo, "--out", home, "--order", *runs)
    assert done.returncode == 0, done.stderr
    assert "no CUDA device" in done.stdout
    table = json.loads((home / "train.json").read_text())
    assert [(row["run"], row["state"], row["iteration"]) for row in table["runs"]] == [
        ("fast", "finished", 3),
        ("fast_restore", "finished", 3),
    ]
    assert all(path.stat().st_size <= 16 * MIB for path in home.iterdir())
    assert len(list(home.iterdir())) <= 8

    # A fresh machine: the cargo again, with what came home.
    again = tmp_path / "again"
    given = ["--data", tmp_path / "data", "--output", tmp_path / "made", "--without-clips"]
    assert gpu("cargo", *given, "--state", home).returncode == 0
    shutil.copytree(tmp_path / "made" / "call-1", again)
    done = gpu("train", "--minutes", 5, "--in", again, "--out", home, "--order", *runs)
    assert done.returncode == 0, done.stderr
    assert "--- fast" not in done.stderr  # nothing was left to do
    before, _ = load_state(cargo / "runs" / "fast" / CHECKPOINT_NAME)
    after, metadata = load_state(again / "runs" / "fast" / CHECKPOINT_NAME)
    assert metadata["iteration"] == 3
    assert after.keys() == {name for name in before if name.startswith("average.")}
    assert all(bool((before[name] == value).all()) for name, value in after.items())
    assert load_run(again / "runs" / "fast").pictures == ["group/a.jpg", "group/b.jpg"]


def test_what_did_not_arrive_is_refused_with_what_to_do(tmp_path, cargo):
    given = ["--minutes", 5, "--in", cargo, "--out", tmp_path / "home"]
    (cargo / "pictures" / "group" / "b.jpg").write_bytes(b"cut")
    damaged = gpu("train", *given)
    assert "b.jpg: missing or damaged; carry call 1 again" in damaged.stderr
    listed = json.loads((cargo / "call-1.json").read_text())
    (cargo / "call-1.json").write_text(json.dumps(listed | {"of": 2}))
    assert "call 2 of 2 has not arrived" in gpu("train", *given).stderr
    assert not (tmp_path / "home").exists()


@pytest.mark.long
def test_a_training_in_the_background_is_waited_for(tmp_path, cargo):
    given = ["--in", cargo, "--out", tmp_path / "home"]
    started = gpu("train", "--minutes", 5, *given, "--order", "fast", "--detached")
    assert started.returncode == 0, started.stderr
    ended = gpu("train", "--wait", 300, *given)
    assert ended.returncode == 0, ended.stderr
    assert "fast: finished, 3 of 3 iterations" in ended.stdout
    assert (tmp_path / "home" / "train.json").is_file()


def test_one_training_goes_on_at_a_time(tmp_path, cargo):
    """The lock is the test's here, since a real training may end before the second begins."""
    given = ["--in", cargo, "--out", tmp_path / "home"]
    with (cargo / "train.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused = gpu("train", "--minutes", 5, *given)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert "a training goes on there; see --wait" in refused.stderr
        assert gpu("train", "--wait", 0, *given).returncode == 3
    assert gpu("train", "--wait", 0.1, *given).returncode == 0


def test_no_run_begins_when_no_time_is_left(tmp_path, cargo):
    done = gpu("train", "--minutes", 1, "--in", cargo, "--out", tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("not begun") == 6


def test_cargo_is_cut_into_calls(tmp_path, monkeypatch):
    """As few as the sizes allow, none too large, every file in one of them."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "gpu"))
    module = importlib.import_module("cargo")
    monkeypatch.setattr(module, "CALL_BYTES", 100)
    files = {}
    for name, num_bytes in [("a", 70), ("b", 60), ("x/c", 40), ("d", 30)]:
        files[name] = tmp_path / name.replace("/", "_")
        files[name].write_bytes(bytes(num_bytes))
    calls = module.write_calls(files, tmp_path / "out")
    assert [(sorted(names), num_bytes) for _, names, num_bytes in calls] == [
        (["a", "d"], 100),
        (["b", "x/c"], 100),
    ]
    assert (tmp_path / "out" / "call-2" / "x" / "c").stat().st_size == 40
