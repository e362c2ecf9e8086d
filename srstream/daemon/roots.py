"""Turns a client's path into a descriptor beneath a configured folder, or refuses it.

The kernel resolves the path (`openat2` with RESOLVE_BENEATH, Linux 5.6) from a descriptor of the
folder, so nobody can swap in another file between the check and the use.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from srstream.errors import ConfigError, RefusedError
from srstream.jobs.events import printable

_SYS_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_BENEATH = 0x08
_NUM_TRIES = 100


class _OpenHow(ctypes.Structure):
    """`struct open_how` of openat2(2)."""

    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class _Root:
    """One folder, held open. A path may name it as configured or with its links resolved."""

    descriptor: int
    names: tuple[Path, ...]

    def relative(self, path: Path) -> Path | None:
        """`path` relative to this folder; None if it lies elsewhere."""
        for name in self.names:
            if path.is_relative_to(name):
                return path.relative_to(name)
        return None


class Roots:
    """Holds the configured folders open, until `close` or until this object is collected.

    The methods return descriptors: as `/proc/self/fd/N`, a descriptor keeps meaning the same file.

    Raises:
        ConfigError: a folder is missing or cannot be opened, or the kernel has no openat2.
    """

    def __init__(self, read: Sequence[Path], write: Sequence[Path]) -> None:
        self._read: list[_Root] = []
        self._write: list[_Root] = []
        try:
            for roots, paths in ((self._read, read), (self._write, write)):
                roots.extend(_open_root(path) for path in paths)
        except BaseException:
            self.close()
            raise

    def open_source(self, path: Path) -> int:
        """Open a regular file beneath a read root; returns its descriptor, close-on-exec.

        Only regular files are opened, so a pipe cannot make this wait and a device is not touched.

        Raises:
            RefusedError: it lies elsewhere, is missing, is no regular file, or may not be read.
        """
        found = self._find(path, self._read, os.O_PATH, "read from")
        try:
            if not stat.S_ISREG(os.fstat(found).st_mode):
                raise RefusedError(
                    f"{printable(path)}: this is no regular file; give the path of a video file."
                )
            return _reopen(found, path, os.O_RDONLY)
        finally:
            os.close(found)

    def open_folder(self, path: Path) -> int:
        """Open an existing folder beneath a write root; returns its descriptor, close-on-exec.

        Raises:
            RefusedError: it lies elsewhere, is missing, or is no folder.
        """
        return self._find(path, self._write, os.O_RDONLY | os.O_DIRECTORY, "write to")

    def close(self) -> None:
        """Close the folders; nothing can be opened any more."""
        for roots in (self._read, self._write):
            for root in roots:
                os.close(root.descriptor)
            roots.clear()

    def __del__(self) -> None:
        # After a reload, jobs of a worker may still use the former folders.
        self.close()

    @staticmethod
    def _find(path: Path, roots: Sequence[_Root], flags: int, doing: str) -> int:
        _refuse_odd(path)
        places = [(root, root.relative(path)) for root in roots]
        beneath = [(root.descriptor, place) for root, place in places if place is not None]
        # Roots may lie within one another, and a link may leave only the inner one: try each.
        beneath.sort(key=lambda place: len(place[1].parts))
        failure: OSError | None = None
        for descriptor, place in beneath:
            try:
                return _open_beneath(descriptor, place, flags)
            except OSError as error:
                failure = failure or error
        raise RefusedError(_reason(path, roots, failure, doing)) from failure


def _open_root(path: Path) -> _Root:
    try:
        resolved = path.resolve(strict=True)
        descriptor = os.open(resolved, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(
            f"{path}: this folder cannot be opened ({error.strerror}); create it or take it out "
            "of the configuration."
        ) from error
    try:
        os.close(_open_beneath(descriptor, Path(), os.O_PATH | os.O_DIRECTORY))
    except OSError as error:
        os.close(descriptor)
        raise ConfigError(
            f"{path}: the kernel cannot confine paths to this folder (openat2: {error.strerror}); "
            "it takes Linux 5.6 or newer."
        ) from error
    return _Root(descriptor, tuple(dict.fromkeys((path.absolute(), resolved))))


def _refuse_odd(path: Path) -> None:
    """Refuse paths with two possible meanings, before the kernel is asked.

    `a/../b` does not mean `b` where `a` is a link, and a zero byte would end the name.
    """
    if not path.is_absolute():
        raise RefusedError(
            f"{printable(path)}: this path is relative; give it from the root on, with a leading /."
        )
    if ".." in path.parts or "\0" in str(path):
        raise RefusedError(
            f"{printable(path)}: this path holds '..' or a zero byte; give it without."
        )


def _open_beneath(folder: int, relative: Path, flags: int) -> int:
    """openat2(2): open `relative` without ever leaving `folder`.

    Links are followed while they stay beneath it. If something is renamed meanwhile, the kernel
    returns EAGAIN, and the call is repeated.
    """
    how = _OpenHow(
        flags=flags | os.O_CLOEXEC,
        mode=0,
        resolve=_RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS,
    )
    for _ in range(_NUM_TRIES):
        opened: int = _libc.syscall(
            ctypes.c_long(_SYS_OPENAT2),
            ctypes.c_int(folder),
            ctypes.c_char_p(os.fsencode(relative)),
            ctypes.byref(how),
            ctypes.c_size_t(ctypes.sizeof(how)),
        )
        if opened >= 0:
            return opened
        if ctypes.get_errno() not in (errno.EAGAIN, errno.EINTR):
            break
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number), os.fspath(relative))


def _reopen(descriptor: int, path: Path, flags: int) -> int:
    """Open the file behind an O_PATH descriptor."""
    try:
        return os.open(f"/proc/self/fd/{descriptor}", flags | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        raise RefusedError(
            f"{printable(path)}: the server cannot read this file ({error.strerror}); check its "
            "permissions."
        ) from error


def _reason(path: Path, roots: Sequence[_Root], failure: OSError | None, doing: str) -> str:
    shown = printable(path)
    # EXDEV: the path leads out; ELOOP: in circles, or through a link only the kernel can make.
    if failure is None or failure.errno in (errno.EXDEV, errno.ELOOP):
        names = ", ".join(printable(root.names[0]) for root in roots) or "none are configured"
        return (
            f"{shown}: this lies outside the folders that the server may {doing} ({names}); move "
            "it there, or have its folder added to the server's configuration."
        )
    if failure.errno == errno.ENOTDIR:
        return f"{shown}: this is no folder, or a part of its path is none; check the path."
    if failure.errno == errno.ENOENT:
        return f"{shown}: this does not exist; check the path, as the server sees it."
    return f"{shown}: the server cannot open this ({failure.strerror}); check its permissions."
