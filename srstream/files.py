"""Atomic, durable writes, locks, and file system limits."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
from pathlib import Path
from typing import IO

_NO_HARD_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


def fsync_path(path: Path) -> None:
    """Force a file or a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(
    path: Path,
    content: bytes,
    mode: int | None = None,
    *,
    overwrite: bool = True,
    owner: tuple[int, int] | None = None,
    partial: Path | None = None,
) -> None:
    """Write a file so that its name always stands for complete content, even after a crash.

    The content is written to a temporary file in the same folder, forced to disk, and renamed. If
    that fails, for instance on a full disk, the temporary file is deleted.

    Args:
        mode: exact permissions; None: 0o666 less the umask.
        owner: user and group; None: this process's.
        partial: name of the temporary file, if only one process writes `path`; the next write
            overwrites what a kill left behind. None: an unused name.

    Raises:
        FileExistsError: `path` exists and `overwrite` is False; nothing is changed.
        OSError: it cannot be written; `path` is as it was.
    """
    exclusive = os.O_TRUNC
    if partial is None:
        partial, exclusive = path.with_name(f".srstream-{secrets.token_hex(8)}"), os.O_EXCL
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | exclusive
    descriptor = os.open(partial, flags, 0o666 if mode is None else 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            if owner is not None:
                os.fchown(descriptor, *owner)
            if mode is not None:
                os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        give_name(partial, path, overwrite=overwrite)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise
    fsync_path(path.parent)


def give_name(
    source: str | Path,
    target: str | Path,
    *,
    overwrite: bool,
    source_folder: int | None = None,
    target_folder: int | None = None,
) -> None:
    """Rename a finished file; readers see the old file, or none, until they see this one.

    Without `overwrite` the file is named by a hard link, since a rename replaces an existing file.
    Some file systems (FAT, some network shares) have no hard links. There the name is looked up
    first, and a file that appears between the look-up and the rename is replaced.

    Args:
        source_folder, target_folder: descriptors against which relative names are resolved.

    Raises:
        FileExistsError: the name is taken and `overwrite` is False; nothing is changed.
    """
    if not overwrite:
        try:
            os.link(
                source,
                target,
                src_dir_fd=source_folder,
                dst_dir_fd=target_folder,
                follow_symlinks=False,
            )
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            if _exists(target, target_folder):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from error
        else:
            os.unlink(source, dir_fd=source_folder)
            return
    os.rename(source, target, src_dir_fd=source_folder, dst_dir_fd=target_folder)


def take_lock(file: int | IO[bytes]) -> bool:
    """Take the exclusive lock of an open file; return False if another process holds it.

    The lock is released when the file is closed or the process ends.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _exists(name: str | Path, folder: int | None) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


_FAT_BYTES = (1 << 32) - 1
_FATS = frozenset({"vfat", "msdos", "umsdos"})


def largest_file(folder: Path, mounts: Path = Path("/proc/self/mountinfo")) -> int | None:
    """Return the largest size of a file in a folder, in bytes; None if only the disk limits it.

    FAT counts a file's bytes in 32 bits. The type of the file system is read from
    /proc/self/mountinfo (proc(5)).
    """
    device = os.stat(folder).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        place, _, system = line.partition(" - ")
        if place.split()[2:3] == [number] and system.split()[:1]:
            return _FAT_BYTES if system.split()[0] in _FATS else None
    return None
