"""How srstream is installed: its version, and the command that installs optional packages."""

from __future__ import annotations

import re
import shlex
import sys
from importlib import metadata
from pathlib import Path

_INDEXES = {"tensorrt": "--extra-index-url https://pypi.nvidia.com "}
_AFTER_NAME = re.compile(r"[^\w.-]")
_REPOSITORY = Path(__file__).resolve().parents[1]


def own_version() -> str:
    """Return srstream's version; "unknown" where it runs from a checkout that was not installed."""
    try:
        return metadata.version("srstream")
    except metadata.PackageNotFoundError:
        return "unknown"


def install_command(extra: str, package: str = "") -> str:
    """Return the command for what an extra of `pyproject.toml` needs, or for one package of it.

    It lists the packages themselves, since srstream need not be in any index: it may have been
    installed from a checkout that is gone.
    """
    try:
        required = metadata.requires("srstream") or []
    except metadata.PackageNotFoundError:
        required = []
    wanted = [
        requirement.partition(";")[0].strip()
        for requirement in required
        if f"extra == '{extra}'" in requirement.replace('"', "'")
        and package in ("", _AFTER_NAME.split(requirement)[0])
    ] or [package or f"{_REPOSITORY}[{extra}]"]
    python = shlex.quote(sys.executable or "python3")
    return f"{python} -m pip install {_INDEXES.get(extra, '')}{shlex.join(wanted)}"
