"""Where the daemon's sockets are when nobody names an address."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import platformdirs

CONTROL_NAME = "control.sock"
FRAMES_NAME = "frames.sock"

SYSTEM_RUNTIME_DIR = Path("/run/srstream")
"""Folder of the sockets of the daemon that runs as a system service."""


def folder_of_service(variable: str, fallback: Callable[[str], str]) -> Path:
    """The first folder that systemd names in `variable`; without systemd, this user's folder."""
    given = os.environ.get(variable, "").split(":")[0]
    return Path(given or fallback("srstream"))


def default_runtime_dir() -> Path:
    """Folder of the sockets of this user's daemon."""
    with warnings.catch_warnings():
        # Without XDG_RUNTIME_DIR it is a folder in /tmp, and platformdirs says so every time.
        warnings.simplefilter("ignore")
        return folder_of_service("RUNTIME_DIRECTORY", platformdirs.user_runtime_dir)


def default_address(name: str) -> str:
    """The address of this user's socket of that name; if there is none, the system service's."""
    path, system = default_runtime_dir() / name, SYSTEM_RUNTIME_DIR / name
    if not path.exists() and system.exists():
        path = system
    return f"ipc://{path}"
