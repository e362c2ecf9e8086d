"""Speaks with systemd: sd_notify(3), sd_listen_fds(3), and a readiness file.

These are two small protocols that systemd promises to keep, so no library is needed. Without
systemd nothing here has an effect.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import MutableMapping
from pathlib import Path

from srstream.protocol.control import HealthInfo

logger = logging.getLogger(__name__)

_FIRST_DESCRIPTOR = 3
_MAX_STATUS = 400
_STATUS_SECONDS = 5.0
_EXTENSION_SECONDS = 30.0
"""Time asked for once a second: systemd waits as long for the next sign of life."""


class Notifier:
    """Sends datagrams to the service manager. A failure is logged once and is no error.

    Args:
        environment: NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID are taken out of it, so that no
            child answers in the daemon's name.
    """

    def __init__(self, environment: MutableMapping[str, str] | None = None) -> None:
        found = os.environ if environment is None else environment
        self._address = _address(found.pop("NOTIFY_SOCKET", ""))
        self.watchdog_seconds = _watchdog_seconds(
            found.pop("WATCHDOG_USEC", ""), found.pop("WATCHDOG_PID", "")
        )
        """Longest time between calls of `watchdog`; None: systemd does not wait for it."""
        self._has_failed = False

    def ready(self, status: str = "") -> None:
        """Say that the daemon takes jobs, or that a reload has ended."""
        self._send("READY=1", _status(status))

    def status(self, text: str) -> None:
        """Set the line that `systemctl status` shows."""
        self._send(_status(text))

    def reloading(self) -> None:
        """Say that a reload has begun; `ready` ends it."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={now}")

    def stopping(self, status: str = "") -> None:
        """Say that the daemon has begun to stop."""
        self._send("STOPPING=1", _status(status))

    def watchdog(self) -> None:
        """Give the watchdog its sign of life."""
        if self.watchdog_seconds is not None:
            self._send("WATCHDOG=1")

    def extend_timeout(self, seconds: float) -> None:
        """Ask for more time to start or stop: `seconds` from now."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def _send(self, *assignments: str) -> None:
        if self._address is None:
            return
        message = "\n".join(filter(None, assignments)).encode()
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        try:
            with socket.socket(socket.AF_UNIX, kind) as link:
                link.sendto(message, self._address)
        except OSError as error:
            if not self._has_failed:
                logger.warning("systemd cannot be told how the daemon is (%s)", error.strerror)
            self._has_failed = True


class Readiness:
    """Tells the service manager and containers whether the daemon is ready, from start to stop.

    Args:
        ready_file: file that exists while the daemon takes jobs; one left by a crash is removed.
    """

    def __init__(self, notifier: Notifier, ready_file: Path | None) -> None:
        self._notifier, self._ready_file = notifier, ready_file
        self.is_ready = False
        self._told, self._told_at = "", 0.0
        self._remove_file()

    def tick(self, health: HealthInfo, fps: float, *, is_advancing: bool) -> None:
        """Report the daemon's condition. The main loop calls this once a second.

        Args:
            fps: frames a second of all jobs together.
            is_advancing: False withholds the watchdog's sign, so that systemd kills the daemon.
        """
        text = _summary(health, fps)
        if not self.is_ready and all(worker.state == "ready" for worker in health.workers):
            self.is_ready = True
            self._notifier.ready(text)
            self._create_file()
        if not self.is_ready:
            # Warming up may build an engine, which takes minutes on a GPU.
            self._notifier.extend_timeout(_EXTENSION_SECONDS)
            text = f"starting: {text}"
        elif is_advancing:
            self._notifier.watchdog()
        self._tell(text)

    def reloading(self) -> None:
        """Report that a reload has begun."""
        if self.is_ready:
            self._notifier.reloading()

    def reloaded(self) -> None:
        """Report that a reload has ended, whether it succeeded or not."""
        if self.is_ready:
            self._notifier.ready()

    def stopping(self) -> None:
        """Report that the daemon stops and takes no more jobs."""
        self._remove_file()
        self.is_ready = False
        self._notifier.stopping("stopping")
        self._told, self._told_at = "stopping", time.monotonic()

    def draining(self, num_running: int) -> None:
        """Report that segments still run; to be called at least once a second."""
        now = time.monotonic()
        if now - self._told_at >= 1.0:
            self._told_at = now
            self._notifier.extend_timeout(_EXTENSION_SECONDS)
            self._notifier.watchdog()
            self._notifier.status(f"stopping: {num_running} jobs end their segments")

    def _tell(self, text: str) -> None:
        now = time.monotonic()
        if text != self._told and now - self._told_at >= _STATUS_SECONDS:
            self._told, self._told_at = text, now
            self._notifier.status(text)

    def _create_file(self) -> None:
        if self._ready_file is None:
            return
        try:
            self._ready_file.write_text(f"{os.getpid()}\n")
        except OSError as error:
            logger.error("%s: cannot be created (%s)", self._ready_file, error.strerror)

    def _remove_file(self) -> None:
        if self._ready_file is None:
            return
        try:
            self._ready_file.unlink(missing_ok=True)
        except OSError as error:
            logger.error("%s: cannot be removed (%s)", self._ready_file, error.strerror)


def listen_fds(environment: MutableMapping[str, str] | None = None) -> dict[str, int]:
    """Descriptors, by name, that systemd has opened for this process; they become close-on-exec.

    Their variables are removed from the environment. Of several descriptors with one name, the
    first is returned and the others are closed.
    """
    found = os.environ if environment is None else environment
    number, pid, names = (
        found.pop(name, "") for name in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
    )
    if pid != str(os.getpid()) or not number.isdecimal():
        return {}
    given = [name or "unknown" for name in names.split(":")]
    descriptors: dict[str, int] = {}
    for place in range(int(number)):
        descriptor = _FIRST_DESCRIPTOR + place
        name = given[place] if place < len(given) else "unknown"
        os.set_inheritable(descriptor, False)
        if name in descriptors:
            logger.warning("systemd hands over two sockets named %s; one is closed", name)
            os.close(descriptor)
        else:
            descriptors[name] = descriptor
    return descriptors


def _address(given: str) -> str | None:
    """The address for `sendto`: a path, or an abstract name, which systemd writes with an `@`."""
    if given.startswith("@"):
        return "\0" + given[1:]
    return given if given.startswith("/") else None


def _watchdog_seconds(microseconds: str, pid: str) -> float | None:
    is_meant = pid in ("", str(os.getpid()))
    if not is_meant or not microseconds.isdecimal() or int(microseconds) == 0:
        return None
    return int(microseconds) / 1e6


def _status(text: str) -> str:
    """The status without line breaks, each of which would begin another assignment."""
    return f"STATUS={' '.join(text.split())[:_MAX_STATUS]}" if text else ""


def _summary(health: HealthInfo, fps: float) -> str:
    speed = f", {fps:.1f} fps" if health.num_running and fps else ""
    problems = "; ".join(health.problems)
    counts = f"{health.num_running} running, {health.num_queued} queued{speed}"
    return f"{counts} ({problems})" if problems else counts
