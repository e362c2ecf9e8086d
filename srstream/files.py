"""Files that are whole or not there, and that outlast a power cut."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def fsync_path(path: Path) -> None:
    """Force a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, content: bytes, mode: int = 0o600) -> None:
    """The file has this content and mode, or it is as it was before, and nothing else is left."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    fsync_path(path.parent)


_FAT_BYTES = (1 << 32) - 1
_FATS = frozenset({"vfat", "msdos", "umsdos"})


def largest_file(folder: Path, mounts: Path = Path("/proc/self/mountinfo")) -> int | None:
    """Bytes that a file in a folder can have; None where the disk's size is the only limit.

    FAT counts them in 32 bits (proc(5) tells the type of a folder's file system).
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
