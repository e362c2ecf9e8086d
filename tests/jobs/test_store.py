"""The journal: what it names is on disk, what it does not name is swept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from srstream.errors import JobError
from srstream.jobs.store import JobStore, job_directory
from srstream.media.types import SegmentFile


def commit(store: JobStore, number: int, content: bytes = b"packets") -> None:
    path = store.temporary_segment(number)
    path.write_bytes(content)
    file = SegmentFile(path=path, pts=(number * 10, number * 10 + 5), last_duration=5)
    store.commit_segment(number, file, ".seg", f"hash{number}")


def test_segments_come_back_as_they_were_committed(tmp_path: Path) -> None:
    with JobStore(tmp_path / "out.mp4") as store:
        commit(store, 0)
        commit(store, 1)
    with JobStore(tmp_path / "out.mp4") as store:
        records = store.segments()
    assert [record.file.pts for record in records] == [(0, 5), (10, 15)]
    assert [record.last_frame_hash for record in records] == ["hash0", "hash1"]
    assert records[1].file.path.read_bytes() == b"packets"


def test_a_missing_or_short_file_ends_the_list_and_the_rest_is_swept(tmp_path: Path) -> None:
    with JobStore(tmp_path / "out.mp4") as store:
        for number in range(4):
            commit(store, number)
        damaged = store.segments()[2].file.path
        damaged.write_bytes(b"pac")
        store.temporary_segment(9).write_bytes(b"half")
        store.sweep()
        assert len(store.segments()) == 2
        left = sorted(path.name for path in store.directory.glob("segment-*"))
    assert left == ["segment-000000.seg", "segment-000001.seg"]


def test_a_second_process_cannot_take_the_job(tmp_path: Path) -> None:
    with JobStore(tmp_path / "out.mp4"), pytest.raises(JobError, match="another srstream"):
        JobStore(tmp_path / "out.mp4")
    JobStore(tmp_path / "out.mp4").close()


def test_publishing_never_replaces_a_file_that_appeared_meanwhile(tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    with JobStore(output) as store:
        store.assembled_path.write_bytes(b"new")
        output.write_bytes(b"somebody's")
        with pytest.raises(JobError, match="appeared while the job ran"):
            store.publish(overwrite=False)
        assert output.read_bytes() == b"somebody's"
        store.publish(overwrite=True)
        assert output.read_bytes() == b"new"


def test_a_kill_between_publishing_and_tidying_is_noticed(tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    with JobStore(output) as store:
        store.assembled_path.write_bytes(b"new")
        assert not store.was_published()
        store.publish(overwrite=False)
    with JobStore(output) as store:
        assert store.was_published()
        store.remove()
    assert os.listdir(tmp_path) == ["out.mp4"]


PUBLISH = """
import sys
from pathlib import Path
from srstream.jobs.store import JobStore
output, directory = Path(sys.argv[1]), Path(sys.argv[2])
for content in (b"first", b"second"):
    with JobStore(output, directory=directory, fresh=True) as store:
        store.assembled_path.write_bytes(content)
        store.publish(overwrite=content == b"second")
        assert store.was_published()
        store.remove()
    assert output.read_bytes() == content
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts folders")
def test_publishing_into_another_mount_of_the_same_file_system(tmp_path: Path) -> None:
    """Nothing can be moved there although it is one device."""
    folder = tmp_path / "volume"
    folder.mkdir()
    subprocess.run(
        [
            *("unshare", "--mount", "--propagation", "private"),
            *("bash", "-c", 'mount --bind "$0" "$0" && exec "$@"', folder),
            *(sys.executable, "-c", PUBLISH, folder / "out.mp4", tmp_path / "job"),
        ],
        check=True,
    )
    assert [path.name for path in folder.iterdir()] == ["out.mp4"]
    assert (folder / "out.mp4").read_bytes() == b"second"


def test_an_older_output_is_not_taken_for_the_published_one(tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    output.write_bytes(b"older")
    with JobStore(output) as store:
        store.assembled_path.write_bytes(b"new")
        store.put("state", "publishing")
        assert not store.was_published()


def test_the_folder_belongs_to_its_owner_alone(tmp_path: Path) -> None:
    with JobStore(tmp_path / "out.mp4"):
        assert job_directory(tmp_path / "out.mp4").stat().st_mode & 0o077 == 0
