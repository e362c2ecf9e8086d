"""`srtrain` as a person meets it: what it shows, how it stops, what it says without memory."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

from tests.support.paths import REPOSITORY
from trainer.coco import ARTICLE, COCO_PART, VGG_FILE, find_vgg, fitted
from trainer.config import load_config
from trainer.data.degrade import bicubic_resize
from trainer.data.pairs import load_pairs
from trainer.loop.train import train
from trainer.networks import spec_of
from trainer.state import CHECKPOINT_NAME, load_state

CONFIG = """
model = "fast"
[data]
patch_size = 12
batch_size = {batch_size}
[pixel]
iterations = {iterations}
[run]
num_threads = 1
tensorboard = false
"""

TRACE = "Traceback"


def write_pictures(folder, height=96, width=120, count=2):
    folder.mkdir(parents=True)
    random = np.random.default_rng(4)
    for n in range(count):
        rough = random.uniform(0, 255, (height // 6 + 1, width // 6 + 1, 3))
        picture = np.clip(bicubic_resize(rough, height, width), 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{n}.jpg"), picture)
    return folder


@pytest.fixture
def pictures(tmp_path):
    return write_pictures(tmp_path / "pictures")


def command(tmp_path, *, iterations=10**9, batch_size=2):
    config = tmp_path / "tiny.toml"
    config.write_text(CONFIG.format(iterations=iterations, batch_size=batch_size))
    return [
        *(sys.executable, "-m", "trainer.cli", "train", str(config)),
        *("--data", str(tmp_path / "pictures"), "--run-dir", str(tmp_path / "run")),
    ]


def start(arguments, **options):
    return subprocess.Popen(
        arguments, cwd=REPOSITORY, stderr=subprocess.PIPE, stdout=subprocess.PIPE, **options
    )


def read_until(stream, words, seconds=100):
    """What a process writes, as far as these words."""
    text, deadline = "", time.monotonic() + seconds
    while words not in text:
        assert select.select([stream], [], [], deadline - time.monotonic())[0], text
        piece = os.read(stream if isinstance(stream, int) else stream.fileno(), 65536)
        assert piece, text
        text += piece.decode()
    return text


def test_without_a_terminal_a_run_says_little_and_in_words(tmp_path, pictures):
    done = subprocess.run(
        command(tmp_path, iterations=40), cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
    first, *lines, last = done.stderr.splitlines()
    assert "training fast for 40 iterations on cpu: 2 pictures, batches of 2 patches" in done.stderr
    assert "finished at iteration 40 after" in last
    assert "{" not in done.stderr
    assert len([first, *lines]) <= 4  # a line every few seconds at most


def test_on_a_terminal_a_run_shows_a_bar(tmp_path, pictures):
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command(tmp_path), cwd=REPOSITORY, stdout=theirs, stderr=theirs, close_fds=True,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )  # fmt: skip
    os.close(theirs)
    shown = read_until(ours, "left, loss: pixel")
    assert "━" in shown
    assert re.search(r"iteration [\d,]+, [\d hmins]+ left", shown)
    process.send_signal(signal.SIGINT)
    shown = read_until(ours, "--resume goes on from it")
    assert "stopping after this iteration" in shown
    assert TRACE not in shown
    assert process.wait(timeout=60) == 0
    os.close(ours)


BUSY = """
import hashlib, os, signal
from trainer.console import Reporter
from trainer.loop.stop import StopFlag
with StopFlag(Reporter()) as was_stopped:
    print("ready", flush=True)
    # As PyTorch in a long iteration: Python's own signal handlers do not run meanwhile.
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""


def test_a_stop_is_answered_within_an_iteration_and_a_second_does_not_wait_for_it():
    process = start([sys.executable, "-c", BUSY])
    read_until(process.stdout, "ready")
    process.send_signal(signal.SIGINT)
    read_until(process.stderr, "stopping after this iteration; a second Ctrl-C")
    process.send_signal(signal.SIGINT)  # a double press is not a second thought
    time.sleep(2.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert "given up; the last checkpoint stays" in process.stderr.read().decode()


def test_a_stop_gives_up_a_validation_and_makes_no_other(tmp_path, pictures):
    """The first one takes no time; the second is told to stop and would never end."""
    path = tmp_path / "tiny.toml"
    path.write_text(CONFIG.format(iterations=10**9, batch_size=2) + "validate_minutes = 0.001\n")
    config, asked = load_config(path), []

    def validate(_network):
        asked.append(1)
        if len(asked) > 1:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1000)
        return {"score": 1.0}

    pairs = load_pairs(pictures, spec_of(config), config.data)
    train(config, pairs, tmp_path / "run", validate=validate)
    assert len(asked) == 2
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").open()]
    assert [line["event"] for line in lines] == ["start", "validate", "stop"]
    assert load_state(tmp_path / "run" / CHECKPOINT_NAME)[1]["iteration"] > 0


def test_too_little_memory_is_a_sentence(tmp_path):
    """The bound that a user's shell sets stands in for a small machine."""
    write_pictures(tmp_path / "pictures", 960, 960)
    arguments = command(tmp_path, batch_size=256)
    path = tmp_path / "tiny.toml"
    path.write_text(path.read_text().replace("patch_size = 12", "patch_size = 200"))
    limited = ["bash", "-c", 'ulimit -d 2500000 && exec "$@"', "bash", *arguments]
    done = subprocess.run(limited, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert TRACE not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("srtrain: out of memory: ")
    assert "Batches of 256 patches of 200x200 are too much" in last
    assert "--resume goes on" in last


def test_a_child_may_not_take_more_than_the_machine_has():
    code = (
        "import resource, numpy; from srstream.memory import available_bytes;"
        "from trainer.memory import bound_memory;"
        "free = available_bytes(); bound_memory();"
        "soft, _ = resource.getrlimit(resource.RLIMIT_DATA); assert soft > free // 2, soft\n"
        "try: numpy.empty(2 * free, numpy.uint8)\n"
        "except MemoryError: print('refused')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.stdout == "refused\n", done.stderr


def test_the_article_s_config_is_the_one_that_ships():
    assert load_config(REPOSITORY / "configs" / "srgan_article.toml") == ARTICLE
    config, notes = fitted(
        has_gpu=True, batch_size=None, features=ARTICLE.adversarial.perceptual_weights,
        num_pictures=800,
    )  # fmt: skip
    assert (config, notes) == (ARTICLE, [])


def test_what_a_machine_lacks_is_changed_and_said(tmp_path, monkeypatch):
    config, notes = fitted(has_gpu=False, batch_size=None, features=None, num_pictures=0)
    assert type(config).model_validate(config.model_dump()) == config
    assert config.data.num_pictures is None
    assert config.adversarial.discriminator_crop is None
    assert "no GPU" in notes[0]
    assert "download.pytorch.org/models/vgg19" in notes[1]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    assert find_vgg(tmp_path / "pictures") is None
    (tmp_path / VGG_FILE).touch()
    assert find_vgg(tmp_path / "pictures") is not None


@pytest.mark.long
@pytest.mark.timeout(900)
def test_coco_begins_stops_and_goes_on(tmp_path):
    """The command as it is typed, on a folder as COCO has it; small pictures are left out."""
    folder, run = tmp_path / "coco", tmp_path / "run"
    write_pictures(folder / COCO_PART, 392, 400, count=3)
    write_pictures(folder / "val2017", 392, 400, count=1)
    write_pictures(folder / COCO_PART / "small", 200, 200, count=1)
    arguments = [sys.executable, "-m", "trainer.cli", "coco", str(folder), "--run-dir", str(run)]
    for extra in ([], ["--resume"]):
        process = start([*arguments, *extra])
        said = read_until(process.stderr, "the log is ")
        assert "training srgan for 3,000 iterations on " in said
        assert ": 3 pictures, batches of " in said
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=400)[1].decode()
        assert process.returncode == 0, said
        assert "stopped at iteration " in said
    assert len(load_state(run / CHECKPOINT_NAME)[1]["pictures"]) == 3
