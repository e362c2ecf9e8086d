"""The container image, as far as it can be tried without an engine that builds it.

Its instructions are read, the package is built from what the build context holds, and its command
runs as its user, in its folders, with its environment and nothing else.
"""

from __future__ import annotations

import fnmatch
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import zmq

from tests.support import clips
from tests.support.paths import REPOSITORY

UID = 990


def instructions() -> list[tuple[str, str]]:
    """Of the Dockerfile, in order; lines that go on are joined."""
    lines = (REPOSITORY / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    words = [line.split(None, 1) for line in lines if line and not line.startswith("#")]
    return [(name, " ".join(rest.split())) for name, rest in words]


def of(name: str) -> list[str]:
    return [rest for found, rest in instructions() if found == name]


def copied() -> list[tuple[str, str]]:
    """What the image takes of the repository: source and target."""
    found = []
    for rest in of("COPY"):
        if rest.startswith("--from="):
            continue
        *sources, target = rest.split()
        found += [(source, target) for source in sources]
    return found


def in_context(source: str) -> bool:
    """Whether `.dockerignore`, which leaves out all and lets some in again, lets it in."""
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    return any(fnmatch.fnmatch(source, rule[1:]) for rule in rules if rule.startswith("!"))


def test_the_service_is_not_root_and_is_asked_how_it_is() -> None:
    assert of("USER") == ["srstream"]
    names = [name for name, _ in instructions()]
    assert names.index("USER") < names.index("ENTRYPOINT")
    (check,) = of("HEALTHCHECK")
    assert json.loads(check.partition(" CMD ")[2]) == ["srstream", "health"]
    assert json.loads(of("ENTRYPOINT")[0]) + json.loads(of("CMD")[0]) == [
        *("srstream", "serve", "--config", "/etc/srstream/srstream.toml")
    ]
    assert of("STOPSIGNAL") == ["SIGTERM"]
    assert not any(word in " ".join(of("RUN")) for word in ("curl", "wget", "sudo", "chmod 777"))


def test_everything_that_is_copied_exists_and_is_in_the_context() -> None:
    assert copied()
    for source, _ in copied():
        assert (REPOSITORY / source).exists(), source
        assert in_context(source), source


def test_the_package_builds_from_what_is_copied(tmp_path: Path) -> None:
    for source, target in copied():
        if target.startswith("/src"):
            to = tmp_path / target.removeprefix("/").rstrip("/")
            if (REPOSITORY / source).is_dir():
                skipped = shutil.ignore_patterns("__pycache__", "*.pyc")
                shutil.copytree(REPOSITORY / source, to, ignore=skipped)
            else:
                to.mkdir(parents=True, exist_ok=True)
                shutil.copy(REPOSITORY / source, to)
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "out")],
        cwd=tmp_path / "src",
        check=True,
        capture_output=True,
    )
    (wheel,) = (tmp_path / "out").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "srstream/daemon/supervisor.py" in names
    assert any(name.startswith("srstream/models/weights/") for name in names)


def environment() -> dict[str, str]:
    """What ENV sets, but for this interpreter in the image's place."""
    given = dict(word.split("=", 1) for word in shlex.split(of("ENV")[0]))
    return {**given, "PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY)}


def ask(root: Path, **request: str) -> dict[str, Any]:
    """The result of a request to the daemon whose root this is."""
    with zmq.Context() as context, context.socket(zmq.REQ) as link:
        link.setsockopt(zmq.LINGER, 0)
        link.connect(f"ipc://{root}/run/srstream/control.sock")
        link.send_json(request)
        assert link.poll(10_000), "no reply"
        reply = json.loads(link.recv())
    assert reply["ok"], reply
    result: dict[str, Any] = reply["result"]
    return result


@pytest.mark.skipif(os.getuid() != 0, reason="only root mounts folders and becomes another user")
def test_its_command_runs_as_its_user_in_its_folders(tmp_path: Path) -> None:
    """A mount namespace of its own gives it the folders of the image."""
    script = f"""
        set -e
        for folder in /mnt /run /var/lib; do mount -t tmpfs tmpfs $folder; done
        mkdir /var/lib/volumes  # of the disk that has the state, as is usual
        mount --bind /var/lib/volumes /srv
        for folder in etc root; do  # root's home may hold the interpreter: open to all in here
            mkdir -p /mnt/$folder/upper /mnt/$folder/work
            mount -t overlay overlay /$folder \
                -o lowerdir=/$folder,upperdir=/mnt/$folder/upper,workdir=/mnt/$folder/work
        done
        install -d -o {UID} -g {UID} /var/lib/srstream /run/srstream /etc/srstream
        install -d -o {UID} -g {UID} /srv/srstream/in /srv/srstream/out
        cp {REPOSITORY}/configs/srstream.toml /etc/srstream/
        cd /var/lib/srstream
        exec setpriv --reuid {UID} --regid {UID} --clear-groups --no-new-privs \\
            {sys.executable} -m srstream serve --config /etc/srstream/srstream.toml
    """
    with (tmp_path / "log").open("wb") as log:
        daemon = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "bash", "-c", script],
            env=environment(),
            stdout=log,
            stderr=log,
        )
    try:
        root = Path(f"/proc/{daemon.pid}/root")
        ready = root / "run/srstream/ready"
        deadline = time.monotonic() + 60
        while not ready.exists():
            assert daemon.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.1)
        status = Path(f"/proc/{daemon.pid}/status").read_text()
        assert f"Uid:\t{UID}\t{UID}" in status
        assert (root / "var/lib/srstream/jobs.sqlite").stat().st_uid == UID
        assert (root / "run/srstream/control.sock").is_socket()
        clips.cfr(root / "srv/srstream/in/a.mp4", frames=20)
        (root / "srv/srstream/in/a.mp4").chmod(0o644)
        paths = {"input": "/srv/srstream/in/a.mp4", "output": "/srv/srstream/out/a_4x.mp4"}
        job = ask(root, op="submit", **paths)
        while ask(root, op="status", job=job["id"])["state"] in ("queued", "running"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        ended = ask(root, op="status", job=job["id"])
        assert ended["state"] == "done", ended
        assert (root / "srv/srstream/out/a_4x.mp4").stat().st_uid == UID
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(30) == 0, (tmp_path / "log").read_text()
    finally:
        daemon.kill()
        daemon.wait()
