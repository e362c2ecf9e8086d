"""The open connections of a ROUTER, known by their descriptors, and which of them must end.

libzmq cannot end a single connection, so it is shut down from outside, through its descriptor.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass


@dataclass(slots=True)
class Connection:
    """A connection. `inode` shows whether its descriptor was closed and reused."""

    inode: int
    identity: bytes | None = None
    """The peer's name in libzmq; None until its first message."""
    user: str | None = None
    """The public key of its holder, over CURVE."""


class Connections:
    """Connections in the order in which they were accepted, at most `most` of them.

    A connection from which no message has come is silent. Beyond the limit the oldest silent one is
    ended: a stranger without a key stays silent, so strangers take no place from clients.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: dict[int, Connection] = {}

    def __len__(self) -> int:
        return len(self._open)

    def descriptors(self) -> set[int]:
        return set(self._open)

    def clear(self) -> None:
        self._open.clear()

    def __contains__(self, descriptor: int) -> bool:
        return descriptor in self._open

    @property
    def has_room(self) -> bool:
        """Whether the newest connection, which is already counted, is within the limit."""
        if len(self._open) > self._most:
            self._forget_ended()
        return len(self._open) <= self._most

    def accept(self, descriptor: int) -> None:
        """Note a new connection, and end the oldest silent one if there are too many."""
        self._open.pop(descriptor, None)
        self._open[descriptor] = Connection(inode_of(descriptor))
        if len(self._open) > self._most:
            self._end_silent(descriptor)

    def disconnect(self, descriptor: int) -> None:
        """Note that a connection has ended."""
        self._open.pop(descriptor, None)

    def saw_message(self, descriptor: int, identity: bytes, user: str | None) -> None:
        """Note who has sent a message."""
        connection = self._open.get(descriptor)
        if connection is not None:
            connection.identity, connection.user = identity, user

    def of_users(self, is_meant: Callable[[str], bool]) -> list[tuple[int, Connection]]:
        """The connections of the users for whom `is_meant` returns True."""
        meant = {
            user: is_meant(user) for user in {each.user for each in self._open.values()} if user
        }
        return [(d, each) for d, each in self._open.items() if each.user and meant[each.user]]

    def end(self, descriptor: int) -> None:
        """End a connection; libzmq notices and cleans up."""
        connection = self._open.pop(descriptor, None)
        if connection is not None:
            shut_down(descriptor, connection.inode)

    def _forget_ended(self) -> None:
        """Forget the connections whose descriptors are closed or reused."""
        self._open = {
            descriptor: each
            for descriptor, each in self._open.items()
            if each.inode and inode_of(descriptor) == each.inode
        }

    def _end_silent(self, newest: int) -> None:
        for descriptor, connection in self._open.items():
            if connection.identity is None and descriptor != newest:
                self.end(descriptor)
                return


def inode_of(descriptor: int) -> int:
    """The inode of an open descriptor; 0 if it is closed."""
    with suppress(OSError):
        return os.fstat(descriptor).st_ino
    return 0


def shut_down(descriptor: int, inode: int) -> None:
    """End a connection, unless its descriptor was reused."""
    with suppress(OSError):
        if os.fstat(descriptor).st_ino == inode:
            with socket.socket(fileno=os.dup(descriptor)) as ours:
                ours.shutdown(socket.SHUT_RDWR)
