"""The folders that the configuration opens to jobs, and those that must be the daemon's own."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from srstream.daemon.roots import Roots
from srstream.daemon.settings import MAX_ROOTS, SecuritySettings, ServiceSettings, WatchFolder
from srstream.errors import ConfigError


def open_roots(security: SecuritySettings) -> Roots:
    """The configured folders.

    Raises:
        ConfigError: one of them is not there.
    """
    return Roots(security.read_roots, security.write_roots)


def with_watched(security: SecuritySettings, watched: Sequence[WatchFolder]) -> SecuritySettings:
    """With what is watched among the folders to read, and where it goes among those to write."""
    return security.model_copy(
        update={
            "read_roots": _each_once(security.read_roots, [entry.folder for entry in watched]),
            "write_roots": _each_once(security.write_roots, [entry.output for entry in watched]),
        }
    )


def _each_once(roots: Sequence[Path], watched: Sequence[Path]) -> tuple[Path, ...]:
    # The settings allow no more; beyond are only those that are no longer watched.
    return tuple(dict.fromkeys((*roots, *watched)))[:MAX_ROOTS]


def check_roots(settings: ServiceSettings, path: Path | None) -> None:
    """`ConfigError` where no job could be done."""
    security = with_watched(settings.security, settings.watch)
    if not security.read_roots or not security.write_roots:
        raise ConfigError(
            f"{path or 'the configuration'}: name the folders that jobs may read and write: "
            "read_roots and write_roots in [security]."
        )


def check_private(folder: Path) -> None:
    """`ConfigError` where others than the daemon's user and group could put files into a folder."""
    found = folder.stat()
    if found.st_uid not in (os.geteuid(), 0) or found.st_mode & stat.S_IWOTH:
        raise ConfigError(
            f"{folder}: belongs to another user, or everybody may write in it; nobody's sockets "
            "and queue are safe there. Name another folder, or change its owner and mode."
        )
