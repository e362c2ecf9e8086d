"""CURVE keys in files: the daemon's own pair, and one file for each client that may connect.

    keys/               mode 0700, as is every folder
      server.toml       mode 0600, as is every file: public, secret
      clients/NAME.toml public; role, if it is "admin"

The client's own file, which `srstream keys new NAME` writes, has its name, its public and secret
keys, and the server's public key. Keys are Z85 text.
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
from typing import Literal, Self, cast, get_args

import zmq
from zmq.utils import z85

from srstream.errors import ConfigError, UsageError
from srstream.files import write_whole

logger = logging.getLogger(__name__)

_KEY_CHARS = 40
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_REREAD_SECONDS = 0.5
_RESERVED = frozenset({"local", "watch"})
"""Names of submitters who hold no key: the daemon's own user, and the watch folders."""

Role = Literal["client", "admin"]
"""What a key's holder may do: a client changes its own jobs, an admin everybody's."""


@dataclass(frozen=True)
class ClientKey:
    """A client's keys for TCP; `read` takes them from its file."""

    name: str
    public: str
    secret: str
    server: str

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file that `srstream keys new` wrote.

        Raises:
            ConfigError: it is no such file, or other users may read it.
        """
        _refuse_loose(path, 0o600)
        values = _read(path, ("name", "public", "secret", "server"))
        return cls(**values)


@dataclass(frozen=True)
class AllowedKey:
    """A key on the daemon's side: whose it is, and what its holder may do."""

    name: str
    role: Role


class KeyRing:
    """The keys in a folder. The next look-up sees a change in it.

    Every method that reads or writes a file raises ConfigError if a file is damaged or its
    permissions are too open.
    """

    def __init__(self, folder: Path) -> None:
        """Read the folder; it and the server's pair are made if they are missing."""
        self.folder = folder
        self._clients_dir = folder / "clients"
        self._make_folders()
        self._owner = folder.stat().st_uid
        self._is_told = False
        self.public, self.secret = self._server_pair()
        self._allowed: dict[str, AllowedKey] = {}
        self._read_at = 0.0
        self._stamp = -1
        self.reload()

    def reload(self) -> None:
        """Check all permissions and read all clients again."""
        for path in (self.folder, self._clients_dir):
            _refuse_loose(path, 0o700, self._owner)
        stamp = self._clients_dir.stat().st_mtime_ns
        allowed = {}
        for path in [self.folder / "server.toml", *sorted(self._clients_dir.glob("*.toml"))]:
            _refuse_loose(path, 0o600, self._owner)
            if path.parent == self._clients_dir:
                public, key = _read_allowed(path)
                allowed[public] = key
        self._allowed, self._stamp, self._read_at = allowed, stamp, time.monotonic()
        self._is_told = False

    def find(self, public: str) -> AllowedKey | None:
        """The allowed key with these 40 characters; None if it is unknown or revoked."""
        self._refresh()
        return self._allowed.get(public)

    def names(self) -> dict[str, str]:
        """The allowed public keys, by the names of their clients."""
        self._refresh()
        pairs = sorted((key.name, public) for public, key in self._allowed.items())
        return dict(pairs)

    def admins(self) -> list[str]:
        """The names of the clients with the role `admin`."""
        self._refresh()
        return sorted(key.name for key in self._allowed.values() if key.role == "admin")

    def new(self, name: str, role: Role = "client") -> ClientKey:
        """Make a key pair for a client and allow it."""
        public, secret = (key.decode() for key in zmq.curve_keypair())
        self.allow(name, public, role)
        return ClientKey(name, public, secret, self.public)

    def allow(self, name: str, public: str, role: Role = "client") -> None:
        """Allow a public key under a name.

        Raises:
            UsageError: the name is taken or invalid, or the key is allowed under another name.
            ConfigError: the key is invalid.
        """
        path = self._path(name)
        if name in _RESERVED:
            raise UsageError(f"{name!r} stands for clients without a key; use another name.")
        _checked_key(public, public)
        other = self.find(public)
        if other is not None:
            raise UsageError(f"this key is allowed already, as {other.name}.")
        self._write(path, {"public": public} | ({"role": role} if role == "admin" else {}))
        self.reload()

    def revoke(self, name: str) -> None:
        """Remove a client's key, so that it can no longer connect.

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
        """Read changed keys: at once if the folder's time has changed, else twice a second."""
        is_old = time.monotonic() - self._read_at > _REREAD_SECONDS
        try:
            if is_old or self._clients_dir.stat().st_mtime_ns != self._stamp:
                self.reload()
        except (OSError, ConfigError) as error:
            self._allowed = {}  # A client that cannot be checked is not let in.
            self._stamp = -1
            self._tell(str(error))

    def _tell(self, reason: str) -> None:
        """Log the reason once."""
        if not self._is_told:
            told = {"reason": reason}
            logger.error("nobody is let in over TCP until the keys are in order", extra=told)
        self._is_told = True

    def _make_folders(self) -> None:
        for path in (self.folder, self._clients_dir):
            try:
                path.mkdir(mode=0o700, parents=True)
                if path == self._clients_dir and (owner := _owner_of(self.folder)) is not None:
                    os.chown(path, *owner, follow_symlinks=False)
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


def _read_allowed(path: Path) -> tuple[str, AllowedKey]:
    """Read the public key and the role in a client's file.

    Raises:
        ConfigError: the file is damaged.
    """
    if path.stem in _RESERVED:
        raise ConfigError(f"{path}: {path.stem} stands for clients without a key; rename the file.")
    values = _read(path, ("public",))
    role = values.get("role", "client")
    if role not in get_args(Role):
        raise ConfigError(f"{path}: role {role!r}: there are {', '.join(get_args(Role))}.")
    public = _checked_key(values["public"], path)
    return public, AllowedKey(path.stem, cast(Role, role))


def write_client_key(key: ClientKey, path: Path) -> None:
    """Write a client's keys into a new file that only its owner can read."""
    _write_new(
        path, {"name": key.name, "public": key.public, "secret": key.secret, "server": key.server}
    )


def public_key_of(text: str) -> tuple[str | None, str]:
    """The name, if known, and the public key in `text`, a file's path or the key itself.

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
    except (
        ValueError,
        KeyError,
        struct.error,
    ):  # struct.error: five characters of more than 32 bits
        return False


def _checked_key(text: str, where: Path | str) -> str:
    if not _is_key(text):
        raise ConfigError(f"{where}: no Z85 key of {_KEY_CHARS} characters.")
    return text


def _refuse_loose(path: Path, allowed: int, owner: int | None = None) -> None:
    """Check that only the daemon's user, root or, for root, `owner` can use a file.

    Raises:
        ConfigError: the file is missing, a link, another user's, or open to others.
    """
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


def _owner_of(folder: Path) -> tuple[int, int] | None:
    """As root, return a folder's user and group, so that the daemon can read its keys."""
    if os.geteuid() != 0:
        return None
    status = folder.stat()
    return status.st_uid, status.st_gid


def _write_new(path: Path, values: dict[str, str], like: Path | None = None) -> None:
    """Write a new file, which appears whole and with mode 0600 or not at all.

    Raises:
        UsageError: the file exists.
        ConfigError: it cannot be written.
    """
    text = "".join(f'{name} = "{value}"\n' for name, value in values.items())
    try:
        owner = None if like is None else _owner_of(like)
        write_whole(path, text.encode(), 0o600, overwrite=False, owner=owner)
    except FileExistsError:
        raise UsageError(f"{path} exists already; revoke or remove it first.") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}.") from error
