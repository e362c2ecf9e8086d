"""The cache of compiled networks: a file serves its own key only; faults are logged."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest

from srstream.engines.cache import MAGIC, MAX_FILES, EngineCache

KEY = {
    "model": "fast", "weights_sha256": "ab" * 32, "dtype": "float16", "batch": 1, "max_side": 384,
    "device": "NVIDIA L4", "compute_capability": "8.9", "torch": "2.13.0",
    "torch_tensorrt": "2.13.0", "tensorrt": "10.14",
}  # fmt: skip
ENGINE = bytes(range(256)) * 40 + b"\n" + MAGIC


@pytest.fixture
def cache(tmp_path):
    return EngineCache(tmp_path / "deep" / "tensorrt")


def counting(built=ENGINE):
    calls = []

    def build():
        calls.append(1)
        return built

    return build, calls


def test_an_engine_is_built_once(cache, caplog):
    build, calls = counting()
    assert cache.get(KEY, build) == cache.get(KEY, build) == ENGINE
    assert len(calls) == 1
    assert not caplog.records
    assert [path.suffix for path in cache.folder.iterdir()] == [".engine"]


@pytest.mark.parametrize("name", KEY)
def test_whatever_decides_an_engine_is_part_of_its_key(cache, name):
    cache.save(KEY, ENGINE)
    other = {**KEY, name: "another" if isinstance(KEY[name], str) else KEY[name] + 1}
    assert cache.load(other) is None
    build, calls = counting(b"other")
    assert cache.get(other, build) == b"other"
    assert calls
    assert cache.load(KEY) == ENGINE


@pytest.mark.parametrize("name", ["device", "tensorrt", "weights_sha256"])
def test_a_file_that_was_moved_from_another_machine_says_what_differs(cache, name, caplog):
    cache.save({**KEY, name: "foreign"}, ENGINE)
    os.replace(cache.path({**KEY, name: "foreign"}), cache.path(KEY))
    build, calls = counting(b"new")
    assert cache.get(KEY, build) == b"new"
    assert f"built for another {name}; the engine is built anew" in caplog.text
    assert calls
    assert cache.load(KEY) == b"new"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda c: b"", "not an engine"),
        (lambda c: b"\x80\x04pickle", "not an engine"),
        (lambda c: c[: len(c) // 2], "cut short"),
        (lambda c: c[:-5] + b"\0" + c[-4:], "cut short or damaged"),
        (lambda c: c + b"more", "cut short or damaged"),
        (lambda c: c.replace(b'"key"', b'"kez"', 1), "header is damaged"),
        (lambda c: MAGIC + b"[]\n" + ENGINE, "header is damaged"),
        (lambda c: MAGIC, "header is damaged"),
    ],
)
def test_a_damaged_file_is_never_used(cache, damage, said, caplog):
    cache.save(KEY, ENGINE)
    path = cache.path(KEY)
    path.write_bytes(damage(path.read_bytes()))
    build, calls = counting()
    assert cache.get(KEY, build) == ENGINE
    assert said in caplog.text
    assert str(path) in caplog.text
    assert calls
    assert cache.load(KEY) == ENGINE


def test_a_folder_that_cannot_be_written_costs_time_only(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    cache = EngineCache(tmp_path / "file" / "sub")
    build, calls = counting()
    with caplog.at_level(logging.WARNING):
        assert cache.get(KEY, build) == cache.get(KEY, build) == ENGINE
    assert len(calls) == 2
    assert "cannot be kept" in caplog.text


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from srstream.engines.cache import EngineCache

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
EngineCache(Path(sys.argv[1])).save({"model": "fast"}, bytes(1 << 20))
"""


def test_a_write_that_fails_midway_leaves_nothing_behind(cache):
    """The kernel accepts 4096 bytes and refuses the rest, as it does when the disk is full."""
    cache.save(KEY, ENGINE)
    command = [sys.executable, "-c", FULL_DISK, str(cache.folder)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "cannot be kept" in ended.stderr
    assert list(cache.folder.iterdir()) == [cache.path(KEY)]


def test_only_the_newest_files_are_kept(cache):
    keys = [{**KEY, "max_side": number} for number in range(MAX_FILES + 3)]
    for number, key in enumerate(keys):
        cache.save(key, b"engine")
        os.utime(cache.path(key), (1e9 + number, 1e9 + number))
    cache.save(KEY, ENGINE)
    assert sum(1 for _ in cache.folder.iterdir()) == MAX_FILES
    assert cache.load(KEY) == ENGINE
    assert cache.load(keys[0]) is None
    assert cache.load(keys[-1]) == b"engine"


def test_forgetting(cache):
    cache.save(KEY, ENGINE)
    cache.forget(KEY)
    cache.forget(KEY)
    assert cache.load(KEY) is None


needs_users = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="files have no owner here")


@needs_users
def test_the_cache_is_this_user_s_alone(cache):
    cache.save(KEY, ENGINE)
    assert cache.folder.stat().st_mode & 0o777 == 0o700
    assert cache.path(KEY).stat().st_mode & 0o777 == 0o600


@needs_users
def test_a_folder_to_which_others_could_write_is_taken_from_them(cache):
    """A group's folder is what an older version made under a umask of 002."""
    cache.save(KEY, ENGINE)
    cache.folder.chmod(0o775)
    assert cache.load(KEY) == ENGINE
    assert cache.folder.stat().st_mode & 0o777 == 0o700


@needs_users
def test_a_file_to_which_others_could_write_is_not_believed(cache, caplog):
    cache.save(KEY, ENGINE)
    cache.path(KEY).chmod(0o666)
    assert cache.load(KEY) is None
    assert "others may write to it" in caplog.text


@needs_users
def test_a_folder_of_somebody_else_s_is_not_used(cache, caplog, monkeypatch):
    cache.save(KEY, ENGINE)
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    assert cache.load(KEY) is None
    cache.save({**KEY, "model": "balanced"}, ENGINE)
    assert caplog.text.count("belongs to another user") == 2
    assert len(list(cache.folder.iterdir())) == 1
