"""Finds the files of the inbox, moves them, and writes files beside them.

Below a watched folder no symbolic link is followed, not even one that is swapped in meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import signal
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from srstream.daemon.settings import InboxFolder
from srstream.files import give_name, write_whole
from srstream.pictures.stills import has_picture_name, is_still

_MAX_NAME_BYTES = 240
"""File systems allow 255; temporary names are slightly longer than final ones."""
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Signature:
    """Properties of a file that change with its content."""

    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> Signature:
        return cls(status.st_size, status.st_mtime_ns, status.st_ino)


@dataclass(frozen=True, slots=True)
class Found:
    """A file in a watched folder."""

    path: Path
    signature: Signature


@dataclass(frozen=True, slots=True)
class Sight:
    """A path in a folder, and the folder itself, at one moment."""

    folder: Path
    identity: tuple[int, int]
    """The folder's device and inode."""
    signature: Signature | None
    """None: there is no such file."""


def look_at(folder: Path, path: Path) -> Sight | None:
    """Look at a path in a folder; None if it cannot be read."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        about, signature = os.fstat(descriptor), None
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            name = path.relative_to(folder)
            signature = Signature.of(os.stat(name, dir_fd=descriptor, follow_symlinks=False))
        return Sight(folder, (about.st_dev, about.st_ino), signature)
    except (OSError, ValueError):
        return None
    finally:
        os.close(descriptor)


def find_files(entry: InboxFolder, excluded: tuple[Path, ...]) -> list[Found]:
    """Find regular, non-empty, visible files whose names match a pattern, in subfolders too.

    Args:
        excluded: folders to leave out, under whatever name they are reached.

    Raises:
        OSError: the folder itself cannot be read; unreadable subfolders are left out.
    """
    os.close(os.open(entry.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    apart = set(_identities(excluded))
    patterns = [pattern.lower() for pattern in entry.patterns]
    found = []
    for top, folders, names, descriptor in os.fwalk(entry.folder):
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and _identity(name, descriptor) not in apart
        ]
        for name in names:
            if name.startswith(".") or not any(fnmatchcase(name.lower(), p) for p in patterns):
                continue
            with contextlib.suppress(OSError):
                status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                if stat.S_ISREG(status.st_mode) and status.st_size > 0:
                    found.append(Found(Path(top, name), Signature.of(status)))
    return found


def is_being_written(path: Path) -> bool:
    """Return whether a process of this machine is known to have a file open for writing.

    The kernel grants the file's owner a read lease if no process has it open for writing. Where
    leases are not available, the answer is no.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # If a process opens the file for writing while the lease is held, the kernel signals us.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    finally:
        os.close(descriptor)
    return False


def becomes_picture(path: Path) -> bool:
    """Return whether a file becomes a picture, not a video."""
    if not has_picture_name(path):
        return False
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        return is_still(path, descriptor)
    finally:
        os.close(descriptor)


def move_away(folder: Path, source: Path, target: Path, signature: Signature) -> bool:
    """Move a file out of a watched folder; across file systems, copy it, then delete it.

    Returns False, and does nothing, if the file is gone or has changed. After a crash, another call
    completes the move.

    Raises:
        OSError: it cannot be moved.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        source_folder = _open_folder(folder, source.parent)
    except OSError:
        return False
    target_folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(source.name, dir_fd=source_folder, follow_symlinks=False)
            if stat.S_ISREG(status.st_mode) and Signature.of(status) == signature:
                _move(source.name, source_folder, target.name, target_folder)
                os.fsync(target_folder)
                return True
        return False
    finally:
        os.close(source_folder)
        os.close(target_folder)


def write_atomically(path: Path, content: str) -> None:
    """Write a file so that it exists whole or not at all; an existing one is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    write_whole(path, content.encode(errors="backslashreplace"), partial=partial)


def beside(path: Path, suffix: str) -> Path:
    """`path` with `suffix` after its name, which is cut if it would be too long."""
    name, room = os.fsencode(path.name), _MAX_NAME_BYTES - len(suffix)
    kept = path.name if len(name) <= room else name[:room].decode(errors="ignore")
    return path.with_name(kept + suffix)


def free_names(path: Path) -> Iterator[Path]:
    """Of `clip.mp4`, `clip.2.mp4`, `clip.3.mp4` ..., the names that no file has."""
    number = 1
    while True:
        name = path if number == 1 else path.with_name(f"{path.stem}.{number}{path.suffix}")
        if not os.path.lexists(name):
            yield name
        number += 1


def _open_folder(root: Path, folder: Path) -> int:
    """Open a folder at or below `root`; no link below it is followed."""
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for name in folder.relative_to(root).parts:
        try:
            inner = os.open(name, _FOLDER_FLAGS, dir_fd=descriptor)
        finally:
            os.close(descriptor)
        descriptor = inner
    return descriptor


def _move(name: str, folder: int, target_name: str, target_folder: int) -> None:
    try:
        give_name(
            name, target_name, overwrite=True, source_folder=folder, target_folder=target_folder
        )
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy(name, folder, target_name, target_folder)
        os.unlink(name, dir_fd=folder)


def _copy(name: str, folder: int, target_name: str, target_folder: int) -> None:
    """Copy a file with its times; it gets its name only when it is whole."""
    partial = f".{target_name}.part"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    reading = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    with (
        os.fdopen(reading, "rb") as source,
        os.fdopen(os.open(partial, flags, 0o640, dir_fd=target_folder), "wb") as target,
    ):
        shutil.copyfileobj(source, target, 1 << 20)
        target.flush()
        status = os.fstat(source.fileno())
        os.utime(target.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))
        os.fsync(target.fileno())
    give_name(
        partial,
        target_name,
        overwrite=True,
        source_folder=target_folder,
        target_folder=target_folder,
    )


def _identities(folders: tuple[Path, ...]) -> Iterator[tuple[int, int]]:
    for folder in folders:
        with contextlib.suppress(OSError):
            status = folder.stat()
            yield status.st_dev, status.st_ino


def _identity(name: str, folder: int) -> tuple[int, int] | None:
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return None
    return status.st_dev, status.st_ino
