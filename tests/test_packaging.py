"""The wheel holds what a user needs, and a fresh clone runs the demo."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import cv2
import pytest

from srstream.installing import own_version
from tests.support.paths import REPOSITORY

MAX_ENVIRONMENT_BYTES = 600_000_000
WEIGHTS = REPOSITORY / "srstream" / "models" / "weights"


def project() -> dict[str, object]:
    table: dict[str, object] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    return table


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
    )
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def metadata(wheel: zipfile.ZipFile, name: str) -> str:
    (path,) = (entry for entry in wheel.namelist() if entry.endswith(f".dist-info/{name}"))
    return wheel.read(path).decode()


def test_the_wheel_holds_the_weights_and_their_cards(wheel: zipfile.ZipFile) -> None:
    files = sorted(path for path in WEIGHTS.iterdir() if path.is_file())
    assert {path.suffix for path in files} >= {".onnx", ".safetensors", ".md", ".json"}
    for path in files:
        assert wheel.read(f"srstream/models/weights/{path.name}") == path.read_bytes()


def test_the_wheel_holds_both_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert {"srstream/py.typed", "srstream/cli/main.py", "trainer/cli.py"} <= names
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"srstream", "trainer"}
    assert not [name for name in names if name.endswith((".pt", ".pth", ".ckpt", ".pyc"))]


def test_the_base_package_needs_no_pytorch(wheel: zipfile.ZipFile) -> None:
    headers = Parser().parsestr(metadata(wheel, "METADATA"))
    base = [line for line in headers.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert not [line for line in base if line.startswith(("torch", "onnx"))]
    assert [line for line in base if line.startswith("opencv-python-headless")]
    assert headers["License-Expression"] == "Apache-2.0"


def test_the_wheel_has_the_commands(wheel: zipfile.ZipFile) -> None:
    scripts = metadata(wheel, "entry_points.txt")
    assert "srstream = srstream.cli.main:main" in scripts
    assert "srtrain = trainer:main" in scripts


def test_a_checkout_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: version(f"{name}-that-is-nowhere")
    )
    assert own_version() == "unknown"


def test_the_changelog_knows_this_version() -> None:
    assert f"## {project()['version']}" in (REPOSITORY / "CHANGELOG.md").read_text()


def test_the_sample_is_the_one_whose_origin_is_named(sample_clip: Path) -> None:
    digest = hashlib.sha256(sample_clip.read_bytes()).hexdigest()
    assert digest in (sample_clip.parent / "README.md").read_text()
    assert sample_clip.stat().st_size < 700_000


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_fresh_clone_runs_the_demo(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    ignored = shutil.ignore_patterns(".git", ".venv", "build", "dist", "__pycache__", ".*_cache")
    shutil.copytree(REPOSITORY, clone, ignore=ignored)
    # An outer make would have this one print the folders that it enters and leaves.
    done = subprocess.run(
        ["make", "--no-print-directory", "demo"],
        cwd=clone,
        env={name: value for name, value in os.environ.items() if not name.startswith("MAKE")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().splitlines()[-1].startswith("before/after picture")
    assert (clone / "build/demo/nasa_13013_4x.mp4").stat().st_size > 0
    picture = cv2.imread(str(clone / "build/demo/before_after.png"))
    assert picture is not None
    assert picture.std() > 10
    environment = clone / ".venv"
    sizes = (path.lstat().st_size for path in environment.rglob("*") if path.is_file())
    assert sum(sizes) < MAX_ENVIRONMENT_BYTES
    assert not list(environment.glob("lib/python*/site-packages/torch"))
