"""The cache of compiled networks, with one file for each network, tile format and device.

A compiled network is tied to its weights, shapes and settings, to the versions of the libraries
and to one kind of device; anywhere else it fails at best. Libraries do not notice damage either:
OpenVINO loads a network with a flipped bit and reports nothing. So a file is used only if its key
equals the requested one, value by value, and its bytes match the checksum next to the key.
Otherwise the network is compiled again.

A compiled network is machine code, and a checksum beside it proves nothing against someone who can
write both. So the folder and its files must belong to this user, and nobody else may write to them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

from srstream.files import write_whole

logger = logging.getLogger(__name__)

MAGIC = b"srstream engine 1\n"
SUFFIX = ".engine"

MAX_FILES = 200
"""Maximum number of files in a folder, so that pictures of all sizes do not fill the disk."""

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH

Key = Mapping[str, str | int]
"""The inputs and the target of a compilation, by name."""


class EngineCache:
    """A folder of compiled networks. It is created when the first is saved.

    A file holds `MAGIC`, a line of JSON with the key and the SHA-256 of what follows, and the
    library's own form of the network.

    Args:
        log_level: level at which a network that cannot be saved is logged. If compiling takes only
            a moment, the user need not know.
    """

    def __init__(self, folder: Path, *, log_level: int = logging.WARNING) -> None:
        self.folder, self._log_level = folder, log_level

    def path(self, key: Key) -> Path:
        """Return the path for the network of this key."""
        digest = hashlib.sha256(_canonical(key).encode()).hexdigest()
        return self.folder / f"{key.get('model', 'engine')}-{digest[:24]}{SUFFIX}"

    def load(self, key: Key) -> bytes | None:
        """Return the compiled network; None if there is none or, which is logged, it is faulty."""
        path = self.path(key)
        try:
            if path.exists():
                private_folder(self.folder)
            with path.open("rb") as file:
                _check_owner(path, os.fstat(file.fileno()))
                content = file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            logger.warning("%s: cannot be read (%s); the engine is built anew", path, error)
            return None
        try:
            return _checked(content, key)
        except _FaultError as fault:
            logger.warning("%s: %s; the engine is built anew", path, fault)
            return None

    def save(self, key: Key, compiled: bytes) -> None:
        """Keep a compiled network.

        If the folder cannot be written to, the network is compiled again the next time; nothing
        else changes.
        """
        header = {"key": dict(key), "sha256": hashlib.sha256(compiled).hexdigest()}
        path = self.path(key)
        try:
            private_folder(self.folder)
            write_whole(path, MAGIC + _canonical(header).encode() + b"\n" + compiled, 0o600)
            self._prune()
        except OSError as error:
            logger.log(self._log_level, "%s: the built engine cannot be kept (%s)", path, error)

    def forget(self, key: Key) -> None:
        """Delete a network that its library does not accept."""
        self.path(key).unlink(missing_ok=True)

    def get(self, key: Key, build: Callable[[], bytes]) -> bytes:
        """Return the saved network, or compile one now and save it."""
        compiled = self.load(key)
        if compiled is None:
            compiled = build()
            self.save(key, compiled)
        return compiled

    def _prune(self) -> None:
        """Delete the oldest files beyond `MAX_FILES`."""
        written = []
        for path in self.folder.iterdir():
            try:
                written.append((path.stat().st_mtime, path))
            except FileNotFoundError:  # another process deleted it
                continue
        for _, path in sorted(written)[:-MAX_FILES]:
            path.unlink(missing_ok=True)


def private_folder(folder: Path) -> None:
    """Create a folder that only this user can write to, or check that an existing one is such.

    If others may write to this user's own folder, that is taken from them.

    Raises:
        OSError: the folder cannot be created, or belongs to somebody else.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    state = folder.stat()
    if _is_own(state) and state.st_mode & OTHERS_WRITE:
        folder.chmod(0o700)
        state = folder.stat()
    _check_owner(folder, state)


def _is_own(state: os.stat_result) -> bool:
    return not hasattr(os, "geteuid") or state.st_uid == os.geteuid()


def _check_owner(path: Path, state: os.stat_result) -> None:
    if not _is_own(state):
        raise PermissionError(f"it belongs to another user: {path}")
    if hasattr(os, "geteuid") and state.st_mode & OTHERS_WRITE:
        raise PermissionError(f"others may write to it: {path}")


class _FaultError(Exception):
    """A defect of a cached file."""


def _canonical(value: Mapping[str, object]) -> str:
    return json.dumps(value, sort_keys=True, default=dict)


def _checked(content: bytes, key: Key) -> bytes:
    """Return the compiled network in a file if it has this key, or raise `_FaultError`."""
    if not content.startswith(MAGIC):
        raise _FaultError("damaged, or not an engine of this version of srstream")
    line, separator, compiled = content[len(MAGIC) :].partition(b"\n")
    try:
        header = json.loads(line)
        stored, digest = header["key"], header["sha256"]
    except (ValueError, KeyError, TypeError):
        raise _FaultError("its header is damaged") from None
    if stored != dict(key):
        names = sorted(name for name in {*stored, *key} if stored.get(name) != key.get(name))
        raise _FaultError(f"built for another {', '.join(names)}")
    if not separator or hashlib.sha256(compiled).hexdigest() != digest:
        raise _FaultError("cut short or damaged")
    return compiled
