"""The kit for a machine with a GPU, on the CPU, from the carried files alone (gpu/kit.py)."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import REPOSITORY

MIB = 1 << 20
STAGES = ["facts", "ring", "parity", "nvdec", "speed", "whole", "tests", "train"]


@pytest.fixture(scope="module")
def carried(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `gpu/pack.sh` makes for this interpreter; quickly, so it is larger than need be."""
    if not (REPOSITORY / ".git").exists():
        pytest.skip("needs a clone: git says what travels")
    folder = tmp_path_factory.mktemp("carried") / "gpu-kit"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    made = subprocess.run(
        [REPOSITORY / "gpu" / "pack.sh", folder, version],
        env={**os.environ, "PYTHON": sys.executable, "LEVEL": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    return folder


@pytest.mark.long
@pytest.mark.alone
def test_what_is_carried_fits_into_one_call(carried: Path) -> None:
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=REPOSITORY, check=True, capture_output=True).stdout
    tree = [REPOSITORY / os.fsdecode(name) for name in names.split(b"\0")[:-1]]
    files = [path for path in [*tree, *carried.rglob("*")] if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 64 * MIB


@pytest.mark.long
@pytest.mark.alone
def test_the_kit_runs_from_what_is_carried_alone(carried: Path, tmp_path: Path) -> None:
    """In an environment of only those packages that the machine has, in under three minutes.

    They are minutes of one core, which no neighbor on the machine makes longer.
    """
    command = [sys.executable, REPOSITORY / "gpu" / "rehearse.py", tmp_path / "there", carried]
    out = tmp_path / "out"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ran = subprocess.run(
        [*map(str, command), "all", "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-5000:] + ran.stderr[-2000:]
    stages = json.loads((out / "kit.json").read_text())["stages"]
    assert list(stages) == STAGES
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 180
    findings = {(name, each["what"]): each for name in STAGES for each in stages[name]["findings"]}
    states = [each["state"] for each in findings.values()]
    assert set(states) == {"right", "measured", "not shown"}
    assert all(findings[name, "imports"]["state"] == "right" for name in STAGES)
    assert findings["facts", "packages that no list names"]["value"] == "none"
    # What only a GPU can show is never said to be right.
    for name, what in [
        ("facts", "card and driver"),
        ("ring", "schedules on real streams"),
        ("ring", "a device assert"),
        ("nvdec", "AV1, NVDEC"),
        ("speed", "fast, 48x32, graph"),
        ("whole", "fast, GPU busy"),
        ("tests", "on the GPU"),
        ("train", "speed"),
    ]:
        assert findings[name, what]["state"] == "not shown", (name, what)
    table = (out / "kit.txt").read_text()
    assert table in ran.stdout
    assert f"{states.count('right')} right, 0 WRONG" in table.splitlines()[-1]
    assert sorted(path.name for path in out.iterdir()) == ["kit-log.txt", "kit.json", "kit.txt"]
    assert all(path.stat().st_size <= 16 * MIB for path in out.iterdir())


def test_a_stage_that_fails_or_hangs_ends_alone(tmp_path: Path) -> None:
    """What it had found by then is kept, and the table says how it ended."""
    tree = tmp_path / "tree"
    (tree / "gpu" / "stages").mkdir(parents=True)
    source = (REPOSITORY / "gpu" / "kit.py").read_text()
    assert '"ring": 150' in source
    (tree / "gpu" / "kit.py").write_text(source.replace('"ring": 150', '"ring": 10'))
    found = """
import json, sys
with open(sys.argv[1], "a") as file:
    print(json.dumps({"what": "first", "state": "right", "value": "yes"}), file=file)
"""
    stages = {
        "facts": found + "raise RuntimeError('a broken driver')",
        "ring": found + "import time; time.sleep(60)",
        "parity": found,
    }
    (tree / "gpu" / "stages" / "__init__.py").touch()  # or those of an installed checkout are found
    for name, code in stages.items():
        (tree / "gpu" / "stages" / f"{name}.py").write_text(code)
    (tmp_path / "work" / "site-packages").mkdir(parents=True)
    command = [sys.executable, tree / "gpu" / "kit.py", *stages, "--out", tmp_path / "out"]
    ran = subprocess.run(
        [*map(str, command), "--work", str(tmp_path / "work")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1, ran.stderr
    found = json.loads((tmp_path / "out" / "kit.json").read_text())["stages"]
    values = {name: [each["value"] for each in found[name]["findings"]] for name in stages}
    assert values["parity"] == ["yes"]
    assert values["facts"] == ["yes", "it ended with exit code 1: RuntimeError: a broken driver"]
    assert values["ring"][0] == "yes" and "its limit of 10 s" in values["ring"][1]
    assert ran.stdout.endswith("3 right, 2 WRONG, 0 measured, 0 not shown\n")


def test_what_was_not_carried_is_said(tmp_path: Path) -> None:
    (tmp_path / "gpu").mkdir()
    (tmp_path / "gpu" / "kit.py").write_text((REPOSITORY / "gpu" / "kit.py").read_text())
    command = [sys.executable, tmp_path / "gpu" / "kit.py", "facts", "--work", tmp_path / "work"]
    ran = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "make it with `gpu/pack.sh` and carry it" in ran.stderr
