"""Files that are whole or not there."""

import os
from pathlib import Path

import pytest

from srstream.config import JobConfig, ModelConfig
from srstream.errors import NoSpaceError
from srstream.files import largest_file, write_whole
from srstream.jobs.plan import _fitted, make_plan
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
