"""`srstream serve`: who gets in over TCP, and what prevents a start."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import srstream
from srstream.daemon.settings import load_settings
from srstream.daemon.supervisor import Supervisor
from srstream.errors import ConfigError, ServiceError, SrstreamError
from srstream.models.registry import REGISTRY_VARIABLE
from srstream.protocol.keys import ClientKey, KeyRing
from tests.support.jobs import command, run
from tests.support.paths import REPOSITORY


class Configured:
    """A folder with a configuration file."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.tcp = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        self.ipc = f"ipc://{folder}/run/control.sock"
        self.keys_dir = folder / "keys"
        self.path = folder / "srstream.toml"
        (folder / "media").mkdir()
        self.path.write_text(
            f'[sockets]\nruntime_dir = "{folder}/run"\ncontrol_tcp = "{self.tcp}"\n'
            f'[security]\nread_roots = ["{folder}/media"]\nwrite_roots = ["{folder}/media"]\n'
            f'[jobs]\nstate_dir = "{folder}/state"\n'
        )

    def key(self, name: str) -> ClientKey:
        return KeyRing(self.keys_dir).new(name)


@pytest.fixture
def configured(tmp_path: Path) -> Configured:
    return Configured(tmp_path)


@contextlib.contextmanager
def serving(configured: Configured) -> Iterator[subprocess.Popen[str]]:
    """Run the daemon, from its first answer to a clean end."""
    daemon = subprocess.Popen(
        command("serve", "--config", configured.path),
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ, PYTHONPATH=str(REPOSITORY)),
    )
    try:
        with srstream.Client(configured.ipc) as client:
            for _ in range(300):
                with contextlib.suppress(ServiceError):
                    client.health()
                    break
                assert daemon.poll() is None, daemon.stderr and daemon.stderr.read()
                time.sleep(0.1)
        yield daemon
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(60) == 0
    finally:
        daemon.kill()
        daemon.wait()


def test_an_allowed_key_gets_in_over_tcp_and_no_other(configured: Configured) -> None:
    key = configured.key("laptop")
    stranger = KeyRing(configured.path.parent / "elsewhere").new("stranger")
    with serving(configured):
        with srstream.Client(configured.tcp, key=key) as client:
            assert client.health().version == srstream.__version__
            late = configured.key("late")
        with srstream.Client(configured.tcp, key=late) as client:
            assert client.health().version == srstream.__version__
        forged = ClientKey("stranger", stranger.public, stranger.secret, key.server)
        with (
            srstream.Client(configured.tcp, key=forged, timeout_seconds=1) as client,
            pytest.raises(ServiceError, match="does not know the key"),
        ):
            client.health()


def test_loose_keys_keep_the_daemon_from_starting(configured: Configured) -> None:
    configured.key("laptop")
    (configured.keys_dir / "server.toml").chmod(0o640)
    process = run("serve", "--config", configured.path)
    assert process.returncode == 2
    assert process.stderr == (
        f"srstream: {configured.keys_dir}/server.toml: mode 0640 lets others at the keys; "
        "chmod 600 it first.\n"
    )


def test_a_reload_with_loose_keys_is_refused(configured: Configured) -> None:
    configured.key("laptop")
    with serving(configured), srstream.Client(configured.ipc) as client:
        configured.keys_dir.chmod(0o755)
        with pytest.raises(ConfigError, match="mode 0755 lets others at the keys"):
            client.reload()
        configured.keys_dir.chmod(0o700)
        client.reload()


@pytest.mark.parametrize("what_fails", ["the metrics' port", "an inbox folder", "the TCP socket"])
def test_a_start_that_fails_closes_all_that_was_opened(
    configured: Configured, monkeypatch: pytest.MonkeyPatch, what_fails: str
) -> None:
    """Nothing stays open, so another start in the same process fails for the same reason only."""
    monkeypatch.setenv(REGISTRY_VARIABLE, "")  # the daemon sets it
    folder, text = configured.path.parent, configured.path.read_text()
    gc.collect()
    before = descriptors()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        if what_fails == "the metrics' port":
            text += f"[metrics]\nport = {port}\n"
        elif what_fails == "the TCP socket":
            text = text.replace(configured.tcp, f"tcp://127.0.0.1:{port}")
        else:
            names = ("folder", "output", "quarantine")
            text += "[[watch]]\n" + "".join(f'{name} = "{folder}/{name}"\n' for name in names)
        configured.path.write_text(text)
        assert "another srstream daemon" not in failed_start(configured.path)
        assert "another srstream daemon" not in failed_start(configured.path)
    assert descriptors() == before
    assert not list((folder / "run").glob("*.sock"))


def failed_start(path: Path) -> str:
    """Start the daemon in this process, which must fail; returns the message."""
    # The collector would close descriptors that the daemon has left open.
    gc.disable()
    try:
        with pytest.raises(SrstreamError) as caught:
            asyncio.run(Supervisor(path, load_settings(path)).run())
        assert str(caught.value).count("\n") == 0
        return str(caught.value)
    finally:
        gc.enable()


def descriptors() -> set[str]:
    """The open descriptors of this process, without the one that lists them."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
    return found
