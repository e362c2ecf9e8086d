"""The daemon's own folder: locked, held open, and replaced where something took its place.

Whatever was accepted is on record in journals that are open. If their folder is deleted, renamed or
mounted over, they still have every row, and the rows go along into the folder that is there now.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import BinaryIO

from srstream.daemon.folders.held import HeldFolder, Sight
from srstream.errors import ConfigError, JobError
from srstream.files import take_lock, write_whole

QUEUE_NAME, INBOX_NAME = "jobs.sqlite", "watch.sqlite"
_JOURNALS = (QUEUE_NAME, INBOX_NAME)


class StateFolder:
    """The folder of the queue, of unfinished work, and of registered models.

    Raises:
        ConfigError: it cannot be made, or others may write in it.
        JobError: another daemon has it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock, self._folder = _taken(path)
        self._files: dict[str, tuple[int, int] | None] = {}
        self._folder_of_journals = self._folder

    @property
    def models(self) -> Path:
        return self.path / "models"

    def note_journals(self) -> None:
        """Note which files the open journals are."""
        self._files = {name: self._file(name) for name in _JOURNALS}
        self._folder_of_journals = self._folder

    def look(self) -> Sight:
        """Compare what the path leads to with what is held: the folder and its journals."""
        sight = self._folder.look()
        if sight.kind != "same":
            return sight
        for name, known in self._files.items():
            if self._file(name) != known:
                return Sight("other", f"has lost its {name}, which was deleted or replaced")
        return sight

    @property
    def has_journals(self) -> bool:
        """Whether the open journals are, or were, in the folder that is held."""
        return self._folder_of_journals is self._folder

    def renew(self) -> None:
        """Take the folder that the path leads to now, made if it is missing, with the models.

        Raises:
            ConfigError, JobError: that cannot be; the former folder is still held.
        """
        if self._folder.look().kind == "same":
            return
        lock, folder = _taken(self.path)
        former = Path(f"/proc/self/fd/{self._folder.descriptor}/models")
        with contextlib.suppress(OSError):  # the former folder may be deleted, or unmounted
            _copy_missing(former, self.models)
        self._lock.close()
        self._lock, self._folder = lock, folder

    def close(self) -> None:
        """Release the lock and the folder."""
        self._lock.close()
        self._folder.close()

    def _file(self, name: str) -> tuple[int, int] | None:
        try:
            found = os.stat(self.path / name)
        except OSError:
            return None
        return found.st_dev, found.st_ino


def check_private(folder: Path) -> None:
    """Check that only the daemon's user and group can put files into a folder.

    Raises:
        ConfigError: others can.
    """
    found = folder.stat()
    if found.st_uid not in (os.geteuid(), 0) or found.st_mode & stat.S_IWOTH:
        raise ConfigError(
            f"{folder}: belongs to another user, or everybody may write in it; nobody's sockets "
            "and queue are safe there. Name another folder, or change its owner and mode."
        )


def _taken(path: Path) -> tuple[BinaryIO, HeldFolder]:
    """Make the folder if it is missing, lock it and hold it."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = _locked(path / "lock")
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}.") from error
    try:
        check_private(path)
        return lock, HeldFolder(path)
    except BaseException:
        lock.close()
        raise


def _locked(path: Path) -> BinaryIO:
    """Lock the state folder; the lock is held while the returned file is open.

    Raises:
        JobError: another daemon has it.
    """
    try:
        file = path.open("ab")
        is_ours = take_lock(file)
    except OSError as error:
        raise JobError(f"{path}: it cannot be locked ({error.strerror}).") from error
    if not is_ours:
        file.close()
        raise JobError(
            f"{path.parent}: another srstream daemon works in this folder. Stop it first, or give "
            "this one another jobs.state_dir."
        )
    return file


def _copy_missing(source: Path, target: Path) -> None:
    """Copy the files of a folder that are not in the other one; weights before what names them."""
    target.mkdir(exist_ok=True)
    names = sorted(os.listdir(source), key=lambda name: name.endswith(".json"))
    for name in names:
        with contextlib.suppress(FileExistsError):
            write_whole(target / name, (source / name).read_bytes(), 0o644, overwrite=False)
