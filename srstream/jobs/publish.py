"""Gives the finished output of a job its name, in one atomic step.

Everything is relative to a descriptor of the output's folder, so replacing the folder in the
meantime cannot redirect anything.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from srstream.errors import JobError
from srstream.files import give_name
from srstream.jobs.failpoints import failpoint

_Entry = tuple[str, int | None]
"""A name, and a descriptor of its folder; None: the name is a full path."""


def part_name(directory: Path) -> str:
    """Return the name of the output's copy next to it, if the job's folder is elsewhere."""
    return f".{directory.name}.srstream-part"


def identity(name: str, folder: int | None) -> list[int] | None:
    """Return the device and inode of an entry, without following links; None if there is none."""
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return [found.st_dev, found.st_ino]


OpenFolder = Callable[[], int]
"""Opens the folder of an output and returns a descriptor, which the caller closes."""


@contextlib.contextmanager
def output_folder(output: Path, open_folder: OpenFolder | None) -> Iterator[int]:
    """Yield a descriptor of the output's folder, from `open_folder` or opened by its path."""
    if open_folder is None:
        folder = os.open(output.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    else:
        folder = open_folder()
    try:
        yield folder
    finally:
        os.close(folder)


def publish(
    assembled: Path,
    output: Path,
    folder: int,
    *,
    part_name: str,
    before_naming: Callable[[list[int]], None],
    overwrite: bool,
) -> None:
    """Give the assembled file the name of the output; replace an existing file if `overwrite`.

    If the file cannot be moved from the job's folder, it is first copied next to its final name:
    across file systems, and across two mounts of one, as containers and systemd create them.

    Args:
        part_name: the name of that copy.
        before_naming: called with the file's identity right before it gets the name.

    Raises:
        JobError: another file has the name.
    """
    try:
        _name((os.fspath(assembled), None), output, folder, before_naming, overwrite=overwrite)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copy = _copied_beside(assembled, part_name, folder)
        _name(copy, output, folder, before_naming, overwrite=overwrite)
    os.fsync(folder)


def _name(
    ready: _Entry,
    output: Path,
    folder: int,
    before_naming: Callable[[list[int]], None],
    *,
    overwrite: bool,
) -> None:
    found = os.stat(ready[0], dir_fd=ready[1])
    before_naming([found.st_dev, found.st_ino])
    source, source_folder = ready
    try:
        give_name(
            source,
            output.name,
            overwrite=overwrite,
            source_folder=source_folder,
            target_folder=folder,
        )
    except FileExistsError as error:
        raise JobError(
            f"{output}: a file of this name appeared while the job ran; nothing was replaced. "
            "Move it away or add --overwrite, and run the same command again."
        ) from error


def _copied_beside(assembled: Path, name: str, folder: int) -> _Entry:
    """Copy the assembled file into the output's folder."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with (
            assembled.open("rb") as source,
            open(os.open(name, flags, 0o666, dir_fd=folder), "wb") as copy,
        ):
            shutil.copyfileobj(source, copy, 1 << 20)
            copy.flush()
            os.fsync(copy.fileno())
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=folder)
        raise
    failpoint("output.copied")
    return name, folder
