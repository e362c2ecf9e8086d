"""Turns a client's path into a descriptor beneath a configured folder, or refuses it.

The kernel resolves the path (`openat2` with RESOLVE_BENEATH, Linux 5.6) from a descriptor of the
folder, so nobody can swap in another file between the check and the use. Before each use the folder
is compared with what its path leads to: one that was mounted over or made anew is opened anew, and
one that is gone refuses until it is back.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from srstream.daemon.folders.held import HeldFolder
from srstream.errors import ConfigError, FolderGoneError, RefusedError
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


OnChange = Callable[[Path, str], None]
"""Is called with the path of a root, and a sentence that says what became of it."""


class _Root:
    """One folder, held open. A path may name it as configured or with its links resolved."""

    def __init__(self, path: Path, on_change: OnChange, mount_point: Path | None) -> None:
        self.path, self._on_change, self._mount_point = path, on_change, mount_point
        self._folder: HeldFolder | None = None
        self.fault = ""
        """Why nothing can be opened beneath it now; empty if it is there."""

    def open(self) -> None:
        """Open the folder.

        Raises:
            ConfigError: it is missing, or the kernel has no openat2.
        """
        self._folder = _opened(self.path, self._mount_point)

    @property
    def names(self) -> tuple[Path, ...]:
        resolved = () if self._folder is None else (self._folder.resolved,)
        return tuple(dict.fromkeys((self.path.absolute(), *resolved)))

    @property
    def mount_point(self) -> Path | None:
        """Where the folder's file system is mounted."""
        return self._mount_point if self._folder is None else self._folder.mount_point

    def relative(self, path: Path) -> Path | None:
        """`path` relative to this folder; None if it lies elsewhere."""
        for name in self.names:
            if path.is_relative_to(name):
                return path.relative_to(name)
        return None

    def follow(self) -> HeldFolder:
        """The folder that the path leads to now, opened anew if it is another than before.

        Several threads may call this; then a change can be told twice.

        Raises:
            FolderGoneError: there is none.
        """
        shown = printable(self.path)
        if self._folder is None:
            return self._open_late()
        sight, fault = self._folder.look(), ""
        if sight.kind == "other":
            try:
                self._folder = _opened(self.path)
            except ConfigError as error:
                fault = str(error)
            else:
                self._on_change(self.path, f"{shown}: this folder {sight.reason}; it is used now.")
        elif sight.kind != "same":
            fault = f"{shown}: this folder {sight.reason}; bring it back, or reload."
        before, self.fault = self.fault, fault
        if fault and not before:
            self._on_change(self.path, fault)
        elif before and sight.kind == "same":
            self._on_change(self.path, f"{shown}: this folder is back.")
        if fault:
            raise FolderGoneError(fault)
        return self._folder

    def _open_late(self) -> HeldFolder:
        try:
            self.open()
        except ConfigError as error:
            self.fault = str(error)
            raise FolderGoneError(self.fault) from error
        return self.follow()


class Roots:
    """Holds the configured folders open, until `close` or until this object is collected.

    The methods return descriptors: as `/proc/self/fd/N`, a descriptor keeps meaning the same file.

    Args:
        on_change: is called when a folder is found to be another one, gone, or back.
        mount_points: see `mount_points`. If given, a folder that is missing is opened when it is
            there; None: all must be there, wherever they are mounted.

    Raises:
        ConfigError: a folder is missing or cannot be opened, or the kernel has no openat2.
    """

    def __init__(
        self,
        read: Sequence[Path],
        write: Sequence[Path],
        on_change: OnChange = lambda path, text: None,
        mount_points: Mapping[Path, Path] | None = None,
    ) -> None:
        places = mount_points or {}
        self._read = [_Root(path, on_change, places.get(path)) for path in read]
        self._write = [_Root(path, on_change, places.get(path)) for path in write]
        if mount_points is not None:
            return
        try:
            for root in (*self._read, *self._write):
                root.open()
        except BaseException:
            self.close()  # the exception's traceback would hold the folders
            raise

    def open_source(self, path: Path) -> int:
        """Open a regular file beneath a read root; returns its descriptor, close-on-exec.

        Only regular files are opened, so a pipe cannot make this wait and a device is not touched.

        Raises:
            RefusedError: it lies elsewhere, is missing, is no regular file, or may not be read.
            FolderGoneError: its root is not there at present.
        """
        found = self._find(path, self._read, os.O_PATH, "read from")
        try:
            if not stat.S_ISREG(os.fstat(found).st_mode):
                raise RefusedError(
                    f"{printable(path)}: this is no regular file; give the path of a file."
                )
            return _reopen(found, path, os.O_RDONLY)
        finally:
            os.close(found)

    def open_folder(self, path: Path) -> int:
        """Open an existing folder beneath a write root; returns its descriptor, close-on-exec.

        Raises:
            RefusedError: it lies elsewhere, is missing, or is no folder.
            FolderGoneError: its root is not there at present.
        """
        return self._find(path, self._write, os.O_RDONLY | os.O_DIRECTORY, "write to")

    def look(self) -> list[str]:
        """Compare every folder with what its path leads to; returns what is wrong with any.

        May wait for a network mount that does not answer.
        """
        faults = []
        for root in (*self._read, *self._write):
            try:
                root.follow()
            except FolderGoneError as error:
                faults.append(str(error))
        return list(dict.fromkeys(faults))

    @property
    def mount_points(self) -> dict[Path, Path]:
        """Where the file system of each folder is mounted, for another process's `Roots`."""
        found = ((root.path, root.mount_point) for root in (*self._read, *self._write))
        return {path: place for path, place in found if place is not None}

    @property
    def write_paths(self) -> list[Path]:
        """The folders that take outputs and are there, as configured."""
        return [root.path for root in self._write if not root.fault]

    def close(self) -> None:
        """Let the folders go; nothing can be opened any more."""
        self._read, self._write = [], []

    @staticmethod
    def _find(path: Path, roots: Sequence[_Root], flags: int, doing: str) -> int:
        _refuse_odd(path)
        places = [(root, root.relative(path)) for root in roots]
        beneath = [(root, place) for root, place in places if place is not None]
        # Roots may lie within one another, and a link may leave only the inner one: try each.
        beneath.sort(key=lambda place: len(place[1].parts))
        failure: OSError | None = None
        for root, place in beneath:
            folder = root.follow()
            try:
                return _open_beneath(folder.descriptor, place, flags)
            except OSError as error:
                failure = failure or error
        raise RefusedError(_reason(path, roots, failure, doing)) from failure


def _opened(path: Path, mount_point: Path | None = None) -> HeldFolder:
    try:
        folder = HeldFolder(path, mount_point)
    except OSError as error:
        raise ConfigError(
            f"{path}: this folder cannot be opened ({error.strerror}); create it or take it out "
            "of the configuration."
        ) from error
    try:
        os.close(_open_beneath(folder.descriptor, Path(), os.O_PATH | os.O_DIRECTORY))
    except OSError as error:
        raise ConfigError(
            f"{path}: the kernel cannot confine paths to this folder (openat2: {error.strerror}); "
            "it takes Linux 5.6 or newer."
        ) from error
    return folder


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
