"""A folder that is held open, and knows whether its path still leads to it.

A descriptor keeps meaning the same folder when something is mounted above it, or when it is renamed
or deleted and made again. Then the path means another folder than the descriptor.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from srstream.jobs.events import printable


@dataclass(frozen=True, slots=True)
class Sight:
    """What a path leads to now: the folder that is held, another one, or none that may be used."""

    kind: Literal["same", "other", "missing", "gone"]
    """`missing`: there is nothing at the path, on the file system on which the folder was."""
    reason: str = ""
    """What happened, as a sentence without its subject; empty if nothing did."""


class HeldFolder:
    """A folder, open until this object is collected.

    While it is held, no other folder gets its inode number.

    Args:
        mount_point: where the folder's file system must be mounted; None: where it is now.

    Raises:
        OSError: there is no such folder.
    """

    def __init__(self, path: Path, mount_point: Path | None = None) -> None:
        self.path = path
        self.resolved = path.resolve(strict=True)
        self.descriptor = os.open(self.resolved, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        found = os.fstat(self.descriptor)
        self._identity = found.st_dev, found.st_ino
        self.mount_point = mount_point or _mount_point(self.resolved)

    def look(self) -> Sight:
        """Compare what the path leads to with the folder held; may wait for a network mount."""
        try:
            found = os.stat(self.path)
        except OSError as error:
            is_missing = error.errno in (errno.ENOENT, errno.ENOTDIR) and self._is_mounted()
            reason = f"cannot be reached any more ({error.strerror})"
            return Sight("missing" if is_missing else "gone", reason)
        is_same = (found.st_dev, found.st_ino) == self._identity
        if is_same and self._is_mounted():
            return Sight("same")
        if not os.path.isdir(self.path):
            return Sight("gone", f"is none any more ({os.strerror(errno.ENOTDIR)})")
        if self.path.resolve() != self.resolved:
            # Whoever can change a link must not be able to open any folder of the machine.
            return Sight("gone", "is named by a link that leads elsewhere now")
        if not self._is_mounted():
            place = printable(self.mount_point)
            return Sight("gone", f"lies on a file system that is not mounted at {place} now")
        return Sight("other", "is another one than before (mounted over, or made anew)")

    def _is_mounted(self) -> bool:
        """Return whether something is mounted where the folder's file system was."""
        return _mount_point(self.resolved).is_relative_to(self.mount_point)

    def close(self) -> None:
        """Let go of the folder."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            self.close()


def _mount_point(path: Path) -> Path:
    """Where the file system of a path is mounted, the path's parents being tried in turn."""
    while not os.path.ismount(path):
        path = path.parent
    return path
