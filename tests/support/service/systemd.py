"""The units installed below a folder, and a real systemd to run them (`systemd.sh`)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import REPOSITORY

SYSTEM_PYTHON = "/usr/bin/python3"


def make(*arguments: str) -> None:
    done = subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=REPOSITORY,
        env={name: value for name, value in os.environ.items() if not name.startswith("MAKE")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def install_units(root: Path, profile: str = "cpu", prefix: Path = Path(sys.prefix)) -> Path:
    """Install the units for this environment; returns their folder."""
    make("install-units", f"DESTDIR={root}", f"PREFIX={prefix}", f"PROFILE={profile}")
    return root / "etc/systemd/system"


def can_make_an_environment() -> bool:
    code = "import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))"
    done = subprocess.run([SYSTEM_PYTHON, "-c", code], capture_output=True, check=False)
    return done.returncode == 0


PRELUDE = """
about() { systemctl show --value -p "$1" "${2:-srstream.service}"; }
note() { echo "$1: $2" >>/results/found; }
wait_for() { for _ in $(seq 240); do [ -e "$1" ] && return; sleep 0.5; done; return 1; }
"""


def skip_without_systemd() -> None:
    if os.geteuid() != 0 or not Path("/lib/systemd/systemd").exists():
        pytest.skip("it takes root, and an installed systemd")
    tried = subprocess.run(
        ["unshare", "-mpfCiu", "--propagation", "private", "mount", "-t", "proc", "proc", "/proc"],
        capture_output=True,
        check=False,
    )
    if tried.returncode != 0:
        pytest.skip("no namespaces can be made here")


def boot(layer: Path, results: Path, driver: str, *binds: Path) -> tuple[dict[str, str], str]:
    """What `driver` noted under a separate systemd (`systemd.sh`), and what it printed."""
    results.mkdir()
    (results / "driver.sh").write_text(PRELUDE + driver)
    subprocess.run(
        ["unshare", "-mpfCiu", "--propagation", "private", "bash"]
        + [str(REPOSITORY / "tests/support/service/systemd.sh"), str(layer), str(results)]
        + [str(path) for path in binds],
        capture_output=True,
        check=False,
    )
    found = dict(line.split(": ", 1) for line in (results / "found").read_text().splitlines())
    return found, (results / "driver.log").read_text()
