"""CURVE keys: who may connect over TCP, revocation, and files with loose permissions."""

from __future__ import annotations

import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from srstream.client.jobs import Client
from srstream.daemon.authentication import (
    ZapHandler,
    guard_curve,
)
from srstream.daemon.sockets import lock_socket
from srstream.errors import ConfigError, RefusedError, ServiceError, SrstreamError, UsageError
from srstream.protocol.keys import ClientKey, KeyRing, public_key_of, write_client_key
from tests.support.service.control import Daemon, daemon, start


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def keys_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys"


@pytest.fixture(scope="module")
def tcp(tmp_path_factory: pytest.TempPathFactory, keys_dir: Path) -> Iterator[tuple[Daemon, str]]:
    """A daemon with a TCP socket, and the socket's address."""
    KeyRing(keys_dir)
    address = f"tcp://127.0.0.1:{free_port()}"
    folder = tmp_path_factory.mktemp("run")
    with daemon(folder, "--tcp", address, "--keys", keys_dir) as running:
        yield running, address


def test_files_are_the_owners_alone(tmp_path: Path) -> None:
    ring = KeyRing(tmp_path / "keys")
    write_client_key(ring.new("studio"), tmp_path / "studio.key")
    for path in [tmp_path / "keys", *(tmp_path / "keys").rglob("*"), tmp_path / "studio.key"]:
        expected = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == expected, path
    assert ClientKey.read(tmp_path / "studio.key").server == KeyRing(tmp_path / "keys").public


@pytest.mark.parametrize("name", ["", "clients", "server.toml", "clients/studio.toml"])
def test_loose_permissions_are_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    KeyRing(tmp_path / "keys").new("studio")
    path = tmp_path / "keys" / name
    path.chmod(path.stat().st_mode | 0o040)
    with pytest.raises(ConfigError, match=r"mode 0[67]40 lets others"):
        KeyRing(tmp_path / "keys")
    process = start(tmp_path, "--keys", tmp_path / "keys")
    _, said = process.communicate(timeout=20)
    assert process.returncode == 2
    assert said.count("\n") == 1 and "lets others at the keys" in said


def test_links_and_other_users_keys_are_refused(tmp_path: Path) -> None:
    KeyRing(tmp_path / "keys").new("studio")
    secret = tmp_path / "keys" / "server.toml"
    secret.rename(tmp_path / "elsewhere.toml")
    secret.symlink_to(tmp_path / "elsewhere.toml")
    with pytest.raises(ConfigError, match="a link"):
        KeyRing(tmp_path / "keys")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_files_of_another_user_are_refused(tmp_path: Path) -> None:
    KeyRing(tmp_path / "keys").new("studio")
    os.chown(tmp_path / "keys" / "clients" / "studio.toml", 65534, 65534)
    with pytest.raises(ConfigError, match="belongs to another user"):
        KeyRing(tmp_path / "keys")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_adds_is_the_daemons_to_read(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    KeyRing(folder)
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, 65534, 65534)
    KeyRing(folder).new("studio")
    made = (folder / "clients" / "studio.toml").stat()
    assert (made.st_uid, stat.S_IMODE(made.st_mode)) == (65534, 0o600)


@pytest.mark.parametrize(
    "content", ["", "public = 3", "not toml [", 'public = "short"', "public = '" + "~" * 40 + "'"]
)
def test_damaged_files_are_refused(tmp_path: Path, content: str) -> None:
    KeyRing(tmp_path / "keys").new("studio")
    (tmp_path / "keys" / "clients" / "studio.toml").write_text(content)
    with pytest.raises(ConfigError, match=r"studio\.toml: no "):
        KeyRing(tmp_path / "keys")


def test_names_and_keys_are_checked(tmp_path: Path) -> None:
    ring = KeyRing(tmp_path / "keys")
    key = ring.new("studio")
    for name in ["", "..", "a/b", "../evil", ".hidden", "x" * 65, "a\n"]:
        with pytest.raises(UsageError, match="is no name for a key"):
            ring.allow(name, zmq.curve_keypair()[0].decode())
    with pytest.raises(UsageError, match="exists already"):
        ring.new("studio")
    with pytest.raises(UsageError, match="allowed already, as studio"):
        ring.allow("other", key.public)
    for name in ("local", "watch"):
        with pytest.raises(UsageError, match="clients without a key"):
            ring.new(name)
    with pytest.raises(UsageError, match="neither a file nor a public key"):
        public_key_of("nonsense")
    assert public_key_of(key.public) == (None, key.public)
    assert ring.names() == {"studio": key.public}


def test_a_client_with_a_key_is_known_by_its_name(
    tcp: tuple[Daemon, str], keys_dir: Path, tmp_path: Path
) -> None:
    path = tmp_path / "studio.key"
    write_client_key(KeyRing(keys_dir).new("studio-a"), path)
    with Client(tcp[1], key=path) as client:
        assert client.submit("/in.mp4").submitter == "studio-a"
    with Client(tcp[0].address) as client:
        assert client.submit("/in.mp4").submitter == "local"


def test_wrong_keys_get_no_answer(tcp: tuple[Daemon, str], keys_dir: Path) -> None:
    ring = KeyRing(keys_dir)
    public, secret = (key.decode() for key in zmq.curve_keypair())
    other_server = zmq.curve_keypair()[0].decode()
    good = ring.new("studio-b")
    for key in [
        ClientKey("nobody", public, secret, ring.public),
        ClientKey("studio-b", good.public, good.secret, other_server),
    ]:
        begun = time.monotonic()
        with (
            Client(tcp[1], key=key, timeout_seconds=0.5) as client,
            pytest.raises(ServiceError, match="does not know the key"),
        ):
            client.health()
        assert time.monotonic() - begun < 2
    with Client(tcp[1], key=good) as client:
        assert client.health().ok


def test_no_key_gets_no_answer(tcp: tuple[Daemon, str]) -> None:
    with pytest.raises(UsageError, match="TCP needs a key"):
        Client(tcp[1])
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context.socket(zmq.DEALER) as plain:
        plain.linger = 0
        plain.connect(tcp[1])
        plain.send(b'{"op": "health"}')
        assert not plain.poll(700)
    context.term()


def test_a_revoked_key_is_out_at_once(tcp: tuple[Daemon, str], keys_dir: Path) -> None:
    ring = KeyRing(keys_dir)
    key = ring.new("studio-c")
    with Client(tcp[1], key=key) as client:
        assert client.health().ok
        ring.revoke("studio-c")
        with pytest.raises(RefusedError, match="not allowed any more"):
            client.health()  # the connection is older than the revocation
    with (
        Client(tcp[1], key=key, timeout_seconds=0.5) as client,
        pytest.raises(ServiceError, match="does not know the key"),
    ):
        client.health()


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_revoked_keys_open_watch_ends_within_a_second(
    tcp: tuple[Daemon, str], keys_dir: Path, how: str
) -> None:
    ring = KeyRing(keys_dir)
    key = ring.new(f"studio-{how}")
    file = keys_dir / "clients" / f"studio-{how}.toml"
    told: list[tuple[float, str]] = []

    def follow() -> None:
        with Client(tcp[1], key=key) as client:
            try:
                for event in client.watch():
                    told.append((time.monotonic(), event.kind))
            except RefusedError as error:
                told.append((time.monotonic(), str(error)))

    thread = threading.Thread(target=follow)
    thread.start()
    with Client(tcp[0].address) as other:
        while not told:
            other.submit("/in.mp4")
            time.sleep(0.02)
        if how == "removed":
            ring.revoke(f"studio-{how}")
        else:
            file.write_text(f'public = "{zmq.curve_keypair()[0].decode()}"\n')
        revoked = time.monotonic()
        while time.monotonic() < revoked + 2:
            other.submit("/in.mp4")
            time.sleep(0.02)
    thread.join(5)
    assert not thread.is_alive()
    assert told[-1][1] == "this key is not allowed any more."
    assert told[-1][0] - revoked < 1.0
    file.unlink(missing_ok=True)


def test_a_revoked_keys_idle_connection_is_ended(tcp: tuple[Daemon, str], keys_dir: Path) -> None:
    ring = KeyRing(keys_dir)
    key = ring.new("studio-idle")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.curve_publickey, socket.curve_secretkey = key.public.encode(), key.secret.encode()
        socket.curve_serverkey = ring.public.encode()
        monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        socket.connect(tcp[1])
        socket.send(b'{"op": "health"}')
        assert socket.poll(5000) and b'"ok":true' in socket.recv()
        ring.revoke("studio-idle")
        assert monitor.poll(1000), "the connection is open still"
        assert b"not allowed any more" in socket.recv(zmq.NOBLOCK)
        monitor.close()
        socket.disable_monitor()
    context.term()


def test_a_daemon_whose_keys_get_loose_lets_nobody_in_until_they_are_not(
    tcp: tuple[Daemon, str], keys_dir: Path
) -> None:
    key = KeyRing(keys_dir).new("studio-d")
    (keys_dir / "clients").chmod(0o755)
    time.sleep(2.2)
    with Client(tcp[1], key=key, timeout_seconds=0.5) as client, pytest.raises(SrstreamError):
        client.health()
    (keys_dir / "clients").chmod(0o700)
    with Client(tcp[1], key=key) as client:
        assert client.health().ok


def test_a_storm_of_wrong_keys_is_told_of_once_and_hurts_nobody(
    tmp_path: Path, keys_dir: Path
) -> None:
    key = KeyRing(keys_dir).new("studio-e")
    address = f"tcp://127.0.0.1:{free_port()}"
    log = (tmp_path / "log").open("w+")
    process = start(
        tmp_path, "--tcp", address, "--keys", keys_dir, stdout=log, stderr=log
    )  # fmt: skip
    stop = threading.Event()

    def storm() -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        while not stop.is_set():
            sockets = [context.socket(zmq.DEALER) for _ in range(20)]
            for each in sockets:
                each.linger = 0
                each.curve_publickey, each.curve_secretkey = zmq.curve_keypair()
                each.curve_serverkey = KeyRing(keys_dir).public.encode()
                each.connect(address)
            time.sleep(0.1)
            for each in sockets:
                each.close()
        context.term()

    thread = threading.Thread(target=storm)
    thread.start()
    try:
        time.sleep(1.5)
        with Client(address, key=key) as client:
            slowest = 0.0
            for _ in range(30):
                begun = time.monotonic()
                assert client.health().ok
                slowest = max(slowest, time.monotonic() - begun)
        assert slowest < 0.5  # the first one makes the connection
    finally:
        stop.set()
        thread.join()
        process.terminate()
        process.wait(10)
    log.seek(0)
    assert log.read().count("connections refused") == 1


def test_tcp_without_keys_or_without_a_handler_does_not_start(tmp_path: Path) -> None:
    process = start(tmp_path, "--tcp", f"tcp://127.0.0.1:{free_port()}")
    _, said = process.communicate(timeout=20)
    assert process.returncode == 1 and said.count("\n") == 1 and "TCP needs keys" in said
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    other = context.socket(zmq.REP)
    other.bind("inproc://zeromq.zap.01")
    with pytest.raises(ServiceError, match="nobody would check who connects"):
        ZapHandler(context, None, lambda domain: True)
    other.close()
    context.term()


def test_a_guarded_socket_without_a_handler_lets_nobody_in(tmp_path: Path) -> None:
    ring = KeyRing(tmp_path / "keys")
    key = ring.new("studio")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router = context.socket(zmq.ROUTER)
    guard_curve(router, ring)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    with (
        Client(f"tcp://127.0.0.1:{port}", key=key, timeout_seconds=0.5) as client,
        pytest.raises(ServiceError, match="does not know the key"),
    ):
        client.health()
    assert not router.poll(0)
    router.close()
    context.term()


def test_the_lock_is_one_daemons(tmp_path: Path) -> None:
    held = lock_socket(tmp_path / "control.sock")
    with pytest.raises(ServiceError, match="another srstream daemon"):
        lock_socket(tmp_path / "control.sock")
    os.close(held)
    os.close(lock_socket(tmp_path / "control.sock"))
