"""Built engines on disk, each under everything that decides what it is.

An engine belongs to weights, shapes, settings, library versions and one kind of device; given to
any other it fails at best. So a file is used only if the key written in it is the one that is asked
for, value by value, and its bytes are those that were written. Anything else is built anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

logger = logging.getLogger(__name__)

MAGIC = b"srstream engine 1\n"
SUFFIX = ".engine"

Key = Mapping[str, str | int]
"""What an engine was built from and for, by name."""


class EngineCache:
    """A folder of engines; made when the first is kept.

    A file: `MAGIC`, a line of JSON with the key and the SHA-256 of what follows, the engine.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: Key) -> Path:
        """Where the engine of this key is kept."""
        digest = hashlib.sha256(_canonical(key).encode()).hexdigest()
        return self.folder / f"{key.get('model', 'engine')}-{digest[:24]}{SUFFIX}"

    def load(self, key: Key) -> bytes | None:
        """The engine, or None where there is none or the file is not it; that is logged."""
        path = self.path(key)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            logger.warning("%s: cannot be read (%s); the engine is built anew", path, error)
            return None
        fault = _fault(content, key)
        if fault is not None:
            logger.warning("%s: %s; the engine is built anew", path, fault)
            return None
        return _engine_of(content)

    def save(self, key: Key, engine: bytes) -> None:
        """Keeps an engine; a folder that cannot be written to costs the time to build, no more."""
        header = {"key": dict(key), "sha256": hashlib.sha256(engine).hexdigest()}
        path = self.path(key)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.folder, delete=False) as file:
                try:
                    file.write(MAGIC + _canonical(header).encode() + b"\n" + engine)
                    file.flush()
                    os.replace(file.name, path)
                except BaseException:
                    Path(file.name).unlink(missing_ok=True)
                    raise
        except OSError as error:
            logger.warning("%s: the built engine cannot be kept (%s)", path, error)

    def forget(self, key: Key) -> None:
        """Throws an engine away that its library did not take."""
        self.path(key).unlink(missing_ok=True)

    def get(self, key: Key, build: Callable[[], bytes]) -> bytes:
        """The kept engine, or a new one, kept from now on."""
        engine = self.load(key)
        if engine is None:
            engine = build()
            self.save(key, engine)
        return engine


def _canonical(value: Mapping[str, object]) -> str:
    return json.dumps(value, sort_keys=True, default=dict)


def _fault(content: bytes, key: Key) -> str | None:
    """What is wrong with a file that should hold this key's engine."""
    if not content.startswith(MAGIC):
        return "not an engine of this version of srstream"
    line, separator, engine = content[len(MAGIC) :].partition(b"\n")
    try:
        header = json.loads(line)
        stored, digest = header["key"], header["sha256"]
    except (ValueError, KeyError, TypeError):
        return "its header is damaged"
    if stored != dict(key):
        names = sorted(name for name in {*stored, *key} if stored.get(name) != key.get(name))
        return f"built for another {', '.join(names)}"
    if not separator or hashlib.sha256(engine).hexdigest() != digest:
        return "cut short or damaged"
    return None


def _engine_of(content: bytes) -> bytes:
    return content[len(MAGIC) :].partition(b"\n")[2]
