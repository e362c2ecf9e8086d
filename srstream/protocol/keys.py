"""CURVE keys as files: the daemon's own pair, and one file for each client that it lets in.

    keys/               mode 0700, as is every folder
      server.toml       mode 0600, as is every file: public, secret
      clients/NAME.toml public

A client has a file of its own, which `srstream keys new NAME` writes: name, public, secret, and the
server's public key. Keys are Z85 text.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import struct
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import zmq
from zmq.utils import z85

from srstream.errors import ConfigError, UsageError

logger = logging.getLogger(__name__)

_KEY_CHARS = 40
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_REREAD_SECONDS = 2.0


@dataclass(frozen=True)
class ClientKey:
    """What a client needs to speak over TCP; `read` takes it from its file."""

    name: str
    public: str
    secret: str
    server: str

    @classmethod
    def read(cls, path: Path) -> Self:
        """The key in a file that `srstream keys new` wrote.

        Raises:
            ConfigError: it is none, or others may read it.
        """
        _refuse_loose(path, 0o600)
        values = _read(path, ("name", "public", "secret", "server"))
        return cls(**values)


class KeyRing:
    """The folder of keys. Changes in it count from the next look-up on.

    Every method that reads or writes a file raises ConfigError, in one sentence, where a file is
    damaged or its permissions are loose.
    """

    def __init__(self, folder: Path) -> None:
        """Open it; the folder and the server's pair are made if they are missing."""
        self.folder = folder
        self._clients_dir = folder / "clients"
        self._make_folders()
        self._owner = folder.stat().st_uid
        self._is_told = False
        self.public, self.secret = self._server_pair()
        self._names: dict[str, str] = {}
        self._read_at = 0.0
        self._stamp = -1
        self.reload()

    def reload(self) -> None:
        """Check all permissions and read all clients again."""
        for path in (self.folder, self._clients_dir):
            _refuse_loose(path, 0o700, self._owner)
        stamp = self._clients_dir.stat().st_mtime_ns
        names = {}
        for path in [self.folder / "server.toml", *sorted(self._clients_dir.glob("*.toml"))]:
            _refuse_loose(path, 0o600, self._owner)
            if path.parent == self._clients_dir:
                names[_checked_key(_read(path, ("public",))["public"], path)] = path.stem
        self._names, self._stamp, self._read_at = names, stamp, time.monotonic()
        self._is_told = False

    def name_of(self, public: str) -> str | None:
        """The client whose public key this is; None: it is not let in."""
        self._refresh()
        return self._names.get(public)

    def is_allowed(self, name: str) -> bool:
        """Whether a client of this name is let in."""
        self._refresh()
        return name in self._names.values()

    def names(self) -> dict[str, str]:
        """Public keys by the names of their clients."""
        self._refresh()
        return {name: public for public, name in sorted(self._names.items(), key=lambda i: i[1])}

    def new(self, name: str) -> ClientKey:
        """Make a pair for a client and let it in."""
        public, secret = (key.decode() for key in zmq.curve_keypair())
        self.allow(name, public)
        return ClientKey(name, public, secret, self.public)

    def allow(self, name: str, public: str) -> None:
        """Let the holder of a key in.

        Raises:
            UsageError: the name is taken or is none, or the key is none or has another name.
        """
        path = self._path(name)
        _checked_key(public, public)
        other = self.name_of(public)
        if other is not None:
            raise UsageError(f"this key is allowed already, as {other}.")
        self._write(path, {"public": public})
        self.reload()

    def revoke(self, name: str) -> None:
        """Let a client in no more.

        Raises:
            UsageError: there is no such client.
        """
        try:
            self._path(name).unlink()
        except FileNotFoundError:
            known = ", ".join(self.names()) or "none"
            raise UsageError(f"no client is called {name}; there are: {known}.") from None
        self.reload()

    def _refresh(self) -> None:
        """Read again what has changed: at once where the folder tells, else every few seconds."""
        is_old = time.monotonic() - self._read_at > _REREAD_SECONDS
        try:
            if is_old or self._clients_dir.stat().st_mtime_ns != self._stamp:
                self.reload()
        except (OSError, ConfigError) as error:
            self._names = {}  # Whoever cannot be checked is not let in.
            self._stamp = -1
            self._tell(str(error))

    def _tell(self, reason: str) -> None:
        """Log it once."""
        if not self._is_told:
            told = {"reason": reason}
            logger.error("nobody is let in over TCP until the keys are in order", extra=told)
        self._is_told = True

    def _make_folders(self) -> None:
        for path in (self.folder, self._clients_dir):
            try:
                path.mkdir(mode=0o700, parents=True)
                if path == self._clients_dir:
                    _give_to_owner_of(self.folder, path)
            except FileExistsError:
                pass
            except OSError as error:
                raise ConfigError(f"{path}: the keys' folder: {error.strerror}.") from error
            _refuse_loose(path, 0o700, self.folder.lstat().st_uid)

    def _server_pair(self) -> tuple[str, str]:
        path = self.folder / "server.toml"
        if not path.exists():
            public, secret = (key.decode() for key in zmq.curve_keypair())
            self._write(path, {"public": public, "secret": secret})
        _refuse_loose(path, 0o600, self._owner)
        values = _read(path, ("public", "secret"))
        secret = _checked_key(values["secret"], path)
        if zmq.curve_public(secret.encode()).decode() != values["public"]:
            raise ConfigError(f"{path}: its public key does not belong to its secret one.")
        return values["public"], secret

    def _write(self, path: Path, values: dict[str, str]) -> None:
        _write_new(path, values, like=self.folder)

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"{name!r} is no name for a key: letters, digits, dots, dashes; 64 at most."
            )
        return self._clients_dir / f"{name}.toml"


def write_client_key(key: ClientKey, path: Path) -> None:
    """Write what a client needs into a new file that only its owner reads."""
    _write_new(
        path, {"name": key.name, "public": key.public, "secret": key.secret, "server": key.server}
    )


def public_key_of(text: str) -> tuple[str | None, str]:
    """The name (None: not told) and the public key that a file or the key itself stands for.

    Raises:
        UsageError: it is neither.
    """
    path = Path(text)
    try:
        is_file = path.is_file()
    except OSError:
        is_file = False
    if is_file:
        values = _read(path, ("public",))
        return values.get("name", path.stem), _checked_key(values["public"], path)
    if not _is_key(text):
        raise UsageError(f"{text}: neither a file nor a public key of {_KEY_CHARS} characters.")
    return None, text


def _is_key(text: str) -> bool:
    try:
        return len(text) == _KEY_CHARS and len(z85.decode(text)) == 32
    except (ValueError, KeyError, struct.error):  # the last: more than 32 bits in five characters
        return False


def _checked_key(text: str, where: Path | str) -> str:
    if not _is_key(text):
        raise ConfigError(f"{where}: no Z85 key of {_KEY_CHARS} characters.")
    return text


def _refuse_loose(path: Path, allowed: int, owner: int | None = None) -> None:
    """Only its owner may touch it: we, root, or for root the `owner` of the keys' folder."""
    try:
        found = path.lstat()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}.") from error
    if stat.S_ISLNK(found.st_mode):
        raise ConfigError(f"{path}: a link; keys are real files in a real folder.")
    owners = {os.geteuid(), 0} | ({owner} if os.geteuid() == 0 else set())
    if found.st_uid not in owners:
        raise ConfigError(f"{path}: belongs to another user; keys must be the daemon's own.")
    mode = stat.S_IMODE(found.st_mode)
    if mode & ~allowed:
        raise ConfigError(
            f"{path}: mode {mode:04o} lets others at the keys; chmod {allowed:o} it first."
        )


def _read(path: Path, names: tuple[str, ...]) -> dict[str, str]:
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: no key file: {error}.") from error
    missing = [name for name in names if not isinstance(values.get(name), str)]
    if missing:
        raise ConfigError(f"{path}: no key file: it has no {', '.join(missing)}.")
    return {name: value for name, value in values.items() if isinstance(value, str)}


def _give_to_owner_of(folder: Path, path: Path) -> None:
    """What root adds to the keys of a daemon must be that daemon's to read."""
    if os.geteuid() == 0:
        owner = folder.stat()
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def _write_new(path: Path, values: dict[str, str], like: Path | None = None) -> None:
    """A file appears whole and with its mode, or not at all; an existing one stays."""
    text = "".join(f'{name} = "{value}"\n' for name, value in values.items())
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if like is not None:
            _give_to_owner_of(like, partial)
        try:
            os.link(partial, path)
        finally:
            partial.unlink()
    except FileExistsError:
        raise UsageError(f"{path} exists already; revoke or remove it first.") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}.") from error
