"""The systemd units are clean and tight, and are installed and uninstalled in place."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.service.systemd import (
    SYSTEM_PYTHON,
    can_make_an_environment,
    install_units,
    make,
)

MAX_EXPOSURE = {"cpu": 1.5, "gpu": 2.0}

needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze"
)


@needs_analyze
@pytest.mark.parametrize("profile", MAX_EXPOSURE)
def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path, profile: str) -> None:
    units = install_units(tmp_path, profile)
    names = ("srstream.service", "srstream.socket", "srstream-worker@1.service")
    done = subprocess.run(
        ["systemd-analyze", "verify", *(str(units / name) for name in names)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_analyze
@pytest.mark.parametrize(
    ("profile", "unit"),
    [
        ("cpu", "srstream.service"),
        ("gpu", "srstream.service"),
        ("gpu", "srstream-worker@1.service"),
    ],
)
def test_the_service_is_exposed_little(tmp_path: Path, profile: str, unit: str) -> None:
    units = install_units(tmp_path, profile)
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(units / unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert found is not None, done.stdout + done.stderr
    assert float(found[1]) <= MAX_EXPOSURE[profile]


def test_what_is_installed_can_be_uninstalled(tmp_path: Path) -> None:
    units = install_units(tmp_path, prefix=Path("/opt/elsewhere"))
    assert "ExecStart=/opt/elsewhere/bin/srstream serve" in (units / "srstream.service").read_text()
    config = tmp_path / "etc/srstream/srstream.toml"
    config.write_text("# mine")
    install_units(tmp_path, "gpu", prefix=Path("/opt/elsewhere"))
    assert config.read_text() == "# mine"
    (drop_in,) = (units / "srstream.service.d").iterdir()
    assert drop_in.name == "hardening-gpu.conf"
    make("uninstall", f"DESTDIR={tmp_path}", "PREFIX=/opt/elsewhere")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [config]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_staged_install_runs_where_it_is_moved_to(tmp_path: Path) -> None:
    if not Path(SYSTEM_PYTHON).exists() or not can_make_an_environment():
        pytest.skip(f"{SYSTEM_PYTHON} is no Python 3.11 that can make environments")
    stage, prefix = tmp_path / "stage", tmp_path / "prefix"
    make("install", f"DESTDIR={stage}", f"PREFIX={prefix}", f"PYTHON={SYSTEM_PYTHON}")
    shutil.move(f"{stage}{prefix}", prefix)
    for path in (prefix / "bin").iterdir():
        if path.is_file() and not path.is_symlink():
            assert str(stage).encode() not in path.read_bytes()
    done = subprocess.run(
        [prefix / "bin/srstream", "--version"], cwd="/", capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (stage / "etc/systemd/system/srstream.service").exists()
