"""Listening sockets that belong to one daemon only and are never open wider than they should be."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

from srstream.errors import ServiceError
from srstream.files import take_lock

_BACKLOG = 1024  # a connection beyond it is tried again by its client only after 0.1 s


def lock_socket(path: Path) -> int:
    """Lock a socket's name; the lock is held while the returned descriptor is open.

    Raises:
        ServiceError: another daemon holds the lock, or it cannot be made.
    """
    lock = path.with_name(f"{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        is_ours = take_lock(descriptor)
    except OSError as error:
        raise ServiceError(f"{lock}: {error.strerror}.") from error
    if not is_ours:
        os.close(descriptor)
        raise ServiceError(f"{path}: another srstream daemon serves this socket.")
    return descriptor


def listen_unix(path: Path, mode: int, group: str | None) -> socket.socket:
    """Make a socket that listens at `path` and is never open to more users than `mode` allows.

    Raises:
        ServiceError: it cannot be made.
    """
    listener = socket.socket(socket.AF_UNIX)
    try:
        os.fchmod(listener.fileno(), 0o600)  # so the file has this mode from the start
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        if group is not None:
            shutil.chown(path, group=group)
        path.chmod(mode)
        listener.listen(_BACKLOG)
    except LookupError:
        listener.close()
        raise ServiceError(f"{path}: there is no group {group}.") from None
    except OSError as error:
        listener.close()
        raise ServiceError(f"{path}: {error.strerror or error}.") from error
    return listener


def listen_tcp(address: str) -> socket.socket:
    """Make a socket that listens at tcp://HOST:PORT; `*` stands for every interface.

    Raises:
        ServiceError: it cannot be made.
    """
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    host = host.strip("[]")
    try:
        return socket.create_server(
            ("" if host == "*" else host, int(port)),
            family=socket.AF_INET6 if ":" in host else socket.AF_INET,
            backlog=_BACKLOG,
        )
    except (OSError, OverflowError) as error:
        raise ServiceError(f"{address}: {getattr(error, 'strerror', None) or error}.") from error
