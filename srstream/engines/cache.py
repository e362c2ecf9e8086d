"""The cache of what engines have compiled, one file for each network, tile format and device.

A compiled network belongs to its weights, shapes and settings, to the versions of the libraries and
to one kind of device; anywhere else it fails at best. Libraries do not notice damage either:
OpenVINO loads a network with a flipped bit and reports nothing. So a file is used only if the key
written in it is the one asked for, value by value, and its bytes have the checksum written beside
the key. Otherwise the network is compiled again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from srstream.files import write_whole

logger = logging.getLogger(__name__)

MAGIC = b"srstream engine 1\n"
SUFFIX = ".engine"

MAX_FILES = 200
"""Files that a folder keeps, so that pictures of all sizes do not fill the disk."""

Key = Mapping[str, str | int]
"""What a network was compiled from and for, by name."""


class EngineCache:
    """A folder of compiled networks. It is made when the first is kept.

    A file holds `MAGIC`, a line of JSON with the key and the SHA-256 of what follows, and the
    library's own form of the network.

    Args:
        log_level: at which a network that cannot be kept is logged. Where compiling takes a moment,
            the user need not know.
    """

    def __init__(self, folder: Path, *, log_level: int = logging.WARNING) -> None:
        self.folder, self._log_level = folder, log_level

    def path(self, key: Key) -> Path:
        """Return where the network of this key is kept."""
        digest = hashlib.sha256(_canonical(key).encode()).hexdigest()
        return self.folder / f"{key.get('model', 'engine')}-{digest[:24]}{SUFFIX}"

    def load(self, key: Key) -> bytes | None:
        """The compiled network; None if there is none or the file is faulty, which is logged."""
        path = self.path(key)
        try:
            content = path.read_bytes()
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

        If the folder cannot be written to, it is compiled again the next time, and nothing else
        happens.
        """
        header = {"key": dict(key), "sha256": hashlib.sha256(compiled).hexdigest()}
        path = self.path(key)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, MAGIC + _canonical(header).encode() + b"\n" + compiled, 0o600)
            self._prune()
        except OSError as error:
            logger.log(self._log_level, "%s: the built engine cannot be kept (%s)", path, error)

    def forget(self, key: Key) -> None:
        """Delete a network that its library does not accept."""
        self.path(key).unlink(missing_ok=True)

    def get(self, key: Key, build: Callable[[], bytes]) -> bytes:
        """The kept network, or one that is compiled now and kept."""
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


class _FaultError(Exception):
    """What is wrong with a cached file."""


def _canonical(value: Mapping[str, object]) -> str:
    return json.dumps(value, sort_keys=True, default=dict)


def _checked(content: bytes, key: Key) -> bytes:
    """The compiled network in a file that should hold this key's; `_FaultError` otherwise."""
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
