"""Of clients' paths, those beneath the configured folders open, and no others."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from srstream.daemon.folders.roots import Roots
from srstream.errors import ConfigError, FolderGoneError, RefusedError


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Make in/ and out/, which are configured, and other/, which is not, each with a file."""
    for name in ("in", "in/deep", "out", "out/deep", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "clip.mp4").write_text(name)
    return tmp_path


@pytest.fixture
def roots(folders: Path) -> Iterator[Roots]:
    made = Roots([folders / "in"], [folders / "out"])
    yield made
    made.close()


def content(descriptor: int) -> str:
    with os.fdopen(descriptor) as file:
        return file.read()


def refusal(roots: Roots, path: Path | str) -> str:
    with pytest.raises(RefusedError) as refused:
        roots.open_source(Path(path))
    text = str(refused.value)
    assert "\n" not in text and text.endswith(".") and ";" in text
    return text


def test_a_file_beneath_a_root_opens_read_only_and_is_not_inherited(
    roots: Roots, folders: Path
) -> None:
    descriptor = roots.open_source(folders / "in/deep/clip.mp4")
    assert not os.get_inheritable(descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(descriptor, b"x")
    assert content(descriptor) == "in/deep"


def test_a_folder_beneath_a_write_root_opens_and_takes_files(roots: Roots, folders: Path) -> None:
    for path in (folders / "out", folders / "out/deep"):
        descriptor = roots.open_folder(path)
        Path(f"/proc/self/fd/{descriptor}/made").write_text("here")
        assert (path / "made").read_text() == "here"
        assert not os.get_inheritable(descriptor)
        os.close(descriptor)


def test_links_that_stay_beneath_are_followed(roots: Roots, folders: Path) -> None:
    (folders / "in/link.mp4").symlink_to("deep/clip.mp4")
    (folders / "in/deep/up.mp4").symlink_to("../clip.mp4")
    assert content(roots.open_source(folders / "in/link.mp4")) == "in/deep"
    assert content(roots.open_source(folders / "in/deep/up.mp4")) == "in"


@pytest.mark.parametrize("target", ["/etc/passwd", "../other/clip.mp4", "../in/clip.mp4", "/proc"])
def test_links_that_lead_out_are_refused(roots: Roots, folders: Path, target: str) -> None:
    (folders / "in/link").symlink_to(target)
    assert "outside the folders" in refusal(roots, folders / "in/link")
    (folders / "in/folder").symlink_to(folders / "other")
    assert "outside the folders" in refusal(roots, folders / "in/folder/clip.mp4")


def test_a_missing_file_behind_a_link_that_leads_out_reads_like_one_that_exists(
    roots: Roots, folders: Path
) -> None:
    (folders / "in/link").symlink_to("/etc/passwd")
    there = refusal(roots, folders / "in/link")
    (folders / "in/link").unlink()
    (folders / "in/link").symlink_to("/etc/no such file")
    assert refusal(roots, folders / "in/link") == there


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/etc/passwd", "outside the folders"),
        ("{}/other/clip.mp4", "outside the folders"),
        ("{}/in-not/clip.mp4", "outside the folders"),
        ("{}/out/clip.mp4", "outside the folders"),
        ("{}/in/../other/clip.mp4", "'..'"),
        ("{}/in/deep/../clip.mp4", "'..'"),
        ("{}/in/clip.mp4\0.mkv", "zero byte"),
        ("in/clip.mp4", "relative"),
        ("", "relative"),
        ("{}/in/absent.mp4", "does not exist"),
        ("{}/in/clip.mp4/x", "is none"),
        ("{}/in", "no regular file"),
        ("/proc/self/fd/0", "outside the folders"),
        ("//etc/passwd", "outside the folders"),
    ],
)
def test_other_paths_are_refused(roots: Roots, folders: Path, path: str, words: str) -> None:
    assert words in refusal(roots, path.format(folders))


def test_a_refusal_names_the_path_and_the_folders(roots: Roots, folders: Path) -> None:
    text = refusal(roots, "/etc/passwd")
    assert text.startswith("/etc/passwd: ") and f"{folders}/in" in text
    with pytest.raises(RefusedError, match="none are configured"):
        Roots([], []).open_source(folders / "in/clip.mp4")


def test_names_that_are_no_text_are_opened_and_shown(roots: Roots, folders: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(folders) + b"/in/\xff.mp4"))
    odd.write_text("odd")
    assert content(roots.open_source(odd)) == "odd"
    odd.unlink()
    assert refusal(roots, odd).encode()


def test_pipes_devices_and_sockets_are_refused_at_once(roots: Roots, folders: Path) -> None:
    os.mkfifo(folders / "in/pipe")
    names = ["pipe", "socket"]
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folders / "in/socket"))
    if os.geteuid() == 0:
        os.mknod(folders / "in/device", 0o600 | 0o020000, os.makedev(1, 5))
        names.append("device")
    started = time.monotonic()
    for name in names:
        assert "no regular file" in refusal(roots, folders / "in" / name)
    assert time.monotonic() - started < 1
    listener.close()


def test_a_file_is_no_output_folder(roots: Roots, folders: Path) -> None:
    for path, words in (
        (folders / "out/clip.mp4", "no folder"),
        (folders / "out/absent", "does not exist"),
        (folders / "in", "outside the folders that the server may write to"),
    ):
        with pytest.raises(RefusedError, match=words):
            roots.open_folder(path)


def test_a_root_may_be_named_through_a_link_and_without(folders: Path) -> None:
    (folders / "alias").symlink_to(folders / "in")
    roots = Roots([folders / "alias"], [])
    assert content(roots.open_source(folders / "alias/clip.mp4")) == "in"
    assert content(roots.open_source(folders / "in/clip.mp4")) == "in"
    # Whoever can change the link opens no other folder by that.
    (folders / "alias").unlink()
    (folders / "alias").symlink_to(folders / "other")
    with pytest.raises(FolderGoneError, match="a link that leads elsewhere now"):
        roots.open_source(folders / "alias/clip.mp4")
    roots.close()


def test_of_roots_within_one_another_any_may_hold_the_file(folders: Path) -> None:
    (folders / "in/deep/up.mp4").symlink_to("../clip.mp4")
    roots = Roots([folders / "in", folders / "in/deep"], [])
    assert content(roots.open_source(folders / "in/deep/clip.mp4")) == "in/deep"
    assert content(roots.open_source(folders / "in/deep/up.mp4")) == "in"
    roots.close()


def test_a_root_that_is_missing_is_an_error_of_the_configuration(folders: Path) -> None:
    before = os.listdir("/proc/self/fd")
    for wrong in ("absent", "in/clip.mp4"):
        with pytest.raises(ConfigError, match="cannot be opened"):
            Roots([folders / "in", folders / wrong], [])
    assert os.listdir("/proc/self/fd") == before


def test_folders_that_nobody_needs_any_more_are_closed(folders: Path) -> None:
    before = os.listdir("/proc/self/fd")
    roots = Roots([folders / "in"], [folders / "in"])
    assert len(os.listdir("/proc/self/fd")) == len(before) + 2
    del roots
    assert os.listdir("/proc/self/fd") == before


def test_links_swapped_in_at_the_last_moment_change_nothing(roots: Roots, folders: Path) -> None:
    """A thread swaps a file for a link that leads out, and back, as fast as it can."""
    done = threading.Event()
    num_swaps = 0

    def swap() -> None:
        nonlocal num_swaps
        (folders / "good").write_text("good")
        (folders / "in/link").symlink_to("/etc/passwd")
        (folders / "in/folder").symlink_to(folders / "in/deep")
        while not done.is_set():
            os.link(folders / "good", folders / "in/.next")
            os.replace(folders / "in/.next", folders / "in/name")
            os.symlink("../other/clip.mp4", folders / "in/.next")
            os.replace(folders / "in/.next", folders / "in/name")
            os.rename(folders / "in/deep", folders / "in/real")
            os.symlink(folders / "other", folders / "in/deep")
            os.unlink(folders / "in/deep")
            os.rename(folders / "in/real", folders / "in/deep")
            num_swaps += 1

    thread = threading.Thread(target=swap)
    thread.start()
    seen: dict[str, int] = {}
    begun = time.monotonic()
    try:
        # A busy machine needs this long for enough swaps.
        while time.monotonic() < begun + 2 or num_swaps <= 100:
            for name in ("name", "deep/clip.mp4"):
                try:
                    found = content(roots.open_source(folders / "in" / name))
                except RefusedError:
                    found = "refused"
                seen[found] = seen.get(found, 0) + 1
    finally:
        done.set()
        thread.join()
    assert seen.keys() == {"good", "in/deep", "refused"}, seen


def test_the_supervisor_needs_no_media_library_for_it() -> None:
    code = (
        "import sys, srstream.daemon.folders.roots;"
        "print(sorted({'av', 'numpy', 'cv2', 'zmq', 'torch', 'openvino'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
