"""Files that are whole or not there."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from srstream.config import JobConfig, ModelConfig
from srstream.errors import NoSpaceError
from srstream.files import largest_file, take_lock, write_whole
from srstream.jobs.planning.plan import _fitted, make_plan
from tests.support import clips


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, b"old" * 1000)
    write_whole(path, b"new", 0o644)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = tmp_path / "taken"
    folder.mkdir()
    with pytest.raises(IsADirectoryError):
        write_whole(folder, b"new")
    assert list(tmp_path.iterdir()) == [folder]


def test_a_file_has_the_permissions_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "file", b"new")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("number", [None, errno.EPERM, errno.EOPNOTSUPP])
def test_nothing_is_replaced_unasked_with_and_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int | None
) -> None:
    """link(2): FAT answers EPERM, some network shares and FUSE EOPNOTSUPP."""

    def refuse(*_: object, **__: object) -> None:
        assert number is not None
        raise OSError(number, os.strerror(number))

    if number is not None:
        monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "file"
    write_whole(path, b"first", overwrite=False)
    with pytest.raises(FileExistsError):
        write_whole(path, b"second", overwrite=False)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]
    write_whole(path, b"third")
    assert path.read_bytes() == b"third"
    assert list(tmp_path.iterdir()) == [path]


WITHOUT_ROOM = """
import resource, sys
from pathlib import Path
from srstream.files import write_whole
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
path = Path(sys.argv[1])
for partial in (None, path.with_name(".partial")):
    try:
        write_whole(path, bytes(100_000), partial=partial)
    except OSError as error:
        print(error.strerror)
"""


def test_where_there_is_no_room_no_part_of_a_file_is_left(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    command = [sys.executable, "-c", WITHOUT_ROOM, path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "File too large\n" * 2
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_kill_left_is_overwritten(tmp_path: Path) -> None:
    path, partial = tmp_path / "file", tmp_path / ".file.part"
    partial.write_bytes(b"half of a longer content")
    write_whole(path, b"new", partial=partial)
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_lock_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("ab") as first, path.open("ab") as second:
        assert take_lock(first)
        assert not take_lock(second)
        first.close()
        assert take_lock(second)


@pytest.mark.parametrize(("system", "limit"), [("vfat", 4294967295), ("ext4", None)])
def test_the_file_system_of_a_folder_limits_its_files(
    tmp_path: Path, system: str, limit: int | None
) -> None:
    """proc(5): the third field is the device, the type comes behind a dash of its own."""
    device = os.stat(tmp_path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "22 28 0:999 / /else rw - ext4 /dev/sda rw\n"
        f"36 35 {number} / /here rw,noatime shared:1 - {system} /dev/sdb1 rw\n"
    )
    assert largest_file(tmp_path, mounts) == limit
    assert largest_file(tmp_path) is None  # Tests run on no memory stick.


def test_an_output_that_a_file_system_cannot_hold_is_refused_or_said(tmp_path: Path) -> None:
    source = clips.cfr(tmp_path / "in.mp4")
    plan = make_plan(source, None, JobConfig(model=ModelConfig(name="fast")))
    assert _fitted(plan, None) == _fitted(plan, plan.typical_bytes) == plan
    assert any("FAT" in note for note in _fitted(plan, plan.low_bytes).output.notes)
    with pytest.raises(NoSpaceError, match="FAT"):
        _fitted(plan, plan.low_bytes - 1)
