"""The decoder child, confined: it decodes all that it did before, and gets at nothing else."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import srstream
from srstream.config import SourceConfig
from srstream.errors import RefusedError
from srstream.media.read.decode import Decoder
from srstream.media.read.demux import open_source
from srstream.media.read.probe import probe
from srstream.sandbox.confine import landlock_abi
from srstream.sandbox.decoder import frame_hash, opened_source
from tests.support import clips, nasty_clips
from tests.support.decoding import decode_in_child

CONFIG = SourceConfig()
ATTACKS = """
import ctypes, json, os, signal, socket, sys, threading
import srstream.sandbox.decoder
from srstream.sandbox.confine import confine, seal

source, folder, elsewhere, port, abstract = json.loads(sys.argv[1])
readable = os.open(source, os.O_RDONLY)
writable = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
libc = ctypes.CDLL(None, use_errno=True)

def call(number, *arguments):
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "")

def connect(family, address):
    with socket.socket(family) as made:
        made.connect(address)

def in_thread(attack):
    failed = []
    def run():
        try:
            attack()
        except OSError as error:
            failed.append(error)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]

def spawn():
    if (child := os.fork()) == 0:
        os._exit(0)
    os.waitpid(child, 0)

attempts = {
    "read /etc/passwd": lambda: open("/etc/passwd").close(),
    "read in a thread": lambda: in_thread(lambda: open("/etc/passwd").close()),
    "list /etc": lambda: os.listdir("/etc"),
    "read a neighbour": lambda: open(elsewhere + "/secret").close(),
    "write a neighbour": lambda: open(elsewhere + "/secret", "a").close(),
    "write the source": lambda: open(f"/proc/self/fd/{readable}", "r+b").close(),
    "make a file": lambda: open(elsewhere + "/made", "w").close(),
    "delete": lambda: os.unlink(elsewhere + "/secret"),
    "change rights": lambda: os.chmod(elsewhere + "/secret", 0o777),
    "set times": lambda: os.utime(elsewhere + "/secret", (1, 1)),
    "read another's memory": lambda: open(f"/proc/{os.getppid()}/environ").close(),
    "TCP": lambda: connect(socket.AF_INET, ("127.0.0.1", port)),
    "UDP": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close(),
    "netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close(),
    "abstract socket": lambda: connect(socket.AF_UNIX, abstract),
    "fork": spawn,
    "run a program": lambda: os.posix_spawn("/bin/true", ["true"], {}),
    "signal the parent": lambda: os.kill(os.getppid(), 0),
    "ptrace": lambda: call(101, 16, os.getppid(), 0, 0),
    "mount": lambda: call(165, b"none", b"/tmp", b"tmpfs", 0, 0),
    "user namespace": lambda: call(272, 0x10000000),
    "io_uring": lambda: call(425, 4, bytes(256)),
    "bpf": lambda: call(321, 0, bytes(128), 128),
    # What must go on
    "read the source": lambda: open(f"/proc/self/fd/{readable}", "rb").close(),
    "write to its folder": lambda: open(f"/proc/self/fd/{writable}/made", "w").close(),
    "start a thread": lambda: in_thread(lambda: None),
    "import": lambda: __import__("wave"),
    "random numbers": lambda: open("/dev/urandom", "rb").close(),
    "open a unix socket": lambda: socket.socket(socket.AF_UNIX).close(),
}
def succeeded(attempt):
    try:
        attempt()
    except OSError:
        return False
    return True

before = {name: succeeded(attempt) for name, attempt in attempts.items() if name in (
    "read /etc/passwd", "list /etc", "TCP", "abstract socket", "fork", "run a program",
    "signal the parent", "read a neighbour", "UDP", "change rights")}
in_force = confine(readable=[readable], writable=[writable], memory_bytes=256 << 20)
after = {name: succeeded(attempt) for name, attempt in attempts.items()}
try:
    bytearray(1 << 30)
    after["a gigabyte"] = True
except MemoryError:
    after["a gigabyte"] = False
in_force += seal()
after["open a unix socket, sealed"] = succeeded(attempts["open a unix socket"])
print(json.dumps([in_force, before, after]))
"""
GOES_ON = {
    "read the source",
    "write to its folder",
    "start a thread",
    "import",
    "random numbers",
    "open a unix socket",
}

needs_landlock = pytest.mark.skipif(landlock_abi() < 6, reason="needs Landlock ABI 6 (Linux 6.12)")


def attack(code: str, *arguments: Any) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_landlock
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of calls are x86-64's")
def test_a_child_that_tries_gets_at_nothing(tmp_path: Path) -> None:
    source = nasty_clips.one_frame(tmp_path / "in.mp4")
    (tmp_path / "own").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/secret").write_text("secret")
    name = f"\0srstream-test-{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(name)
        abstract.listen()
        in_force, before, after = attack(
            ATTACKS,
            str(source),
            str(tmp_path / "own"),
            str(tmp_path / "other"),
            tcp.getsockname()[1],
            name,
        )
    assert all(before.values()), before  # it is the confinement that refuses, not the machine
    assert {name for name, succeeded in after.items() if succeeded} == GOES_ON
    assert {"no_new_privs", "rlimits", "capabilities", "seccomp", "sealed"} < set(in_force)
    assert f"landlock {landlock_abi()}" in in_force
    assert (tmp_path / "other/secret").read_text() == "secret"
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["secret"]


@needs_landlock
def test_with_a_gpu_files_stay_open_and_it_is_said() -> None:
    code = (
        "import json; from srstream.sandbox.confine import confine\n"
        "names = confine(readable=[], memory_bytes=None, devices=True)\n"
        "open('/etc/passwd').close(); print(json.dumps(names))"
    )
    assert f"landlock {landlock_abi()} without files" in attack(code)


@needs_landlock
def test_threads_that_run_already_are_said() -> None:
    code = (
        "import json, threading; from srstream.sandbox.confine import confine\n"
        "event = threading.Event(); threading.Thread(target=event.wait).start()\n"
        "print(json.dumps(confine(readable=[], memory_bytes=None))); event.set()"
    )
    assert f"landlock {landlock_abi()} (not for 1 threads that ran already)" in attack(code)


def test_what_a_machine_lacks_is_left_out_and_not_fatal() -> None:
    code = (
        "import json; from srstream.sandbox import confine as sandbox\n"
        "sandbox.landlock_abi = lambda: 0; sandbox._libseccomp = lambda: None\n"
        "names = sandbox.confine(readable=[0], memory_bytes=None) + sandbox.seal()\n"
        "print(json.dumps(names))"
    )
    assert attack(code) == ["no_new_privs", "rlimits", "capabilities"]


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("in.mp4", clips.cfr),
        ("in.mkv", clips.cfr),
        ("in.ts", nasty_clips.wrapped_ts),
        ("10 bit.mp4", nasty_clips.hdr10),
        ("in.h264", nasty_clips.raw_h264),
        ("ffv1.mkv", nasty_clips.alpha_ffv1),
        ("alpha.webm", nasty_clips.alpha_webm),
        ("interlaced.mp4", nasty_clips.interlaced),
    ],
)
def test_the_confined_child_decodes_what_this_process_does(
    name: str, make: Any, tmp_path: Path
) -> None:
    path = make(tmp_path / name)
    decoder = Decoder(path, probe(path, CONFIG).video, CONFIG)
    expected = [frame_hash(frame) for frame in decoder.frames()]
    decoder.close()
    hashes, _, log = decode_in_child(path, tmp_path / "job", CONFIG, memory_bytes=1 << 30)
    assert hashes == expected and expected
    assert "no_new_privs" in log
    if landlock_abi():
        assert f"landlock {landlock_abi()}" in log


def test_errors_of_the_child_speak_of_the_file_and_not_of_a_descriptor(tmp_path: Path) -> None:
    path = nasty_clips.bit_flips(
        tmp_path / "broken.mkv", packets=range(12, 24), damage=100_000, codec="ffv1", options={}
    )
    _, said, _ = decode_in_child(path, tmp_path / "job", CONFIG)
    assert isinstance(said, str) and said.startswith("broken.mkv: 8 packets in a row failed")


def test_a_child_without_memory_ends_with_a_sentence_and_not_with_the_machine(
    tmp_path: Path,
) -> None:
    path = clips.write_clip(tmp_path / "large.mp4", frames=2, width=2048, height=2048)
    _, said, _ = decode_in_child(path, tmp_path / "job", CONFIG, memory_bytes=32 << 20)
    assert isinstance(said, str) and "\n" not in said and "large.mp4" in said


def test_a_source_that_is_a_list_is_refused_even_with_the_format_named(tmp_path: Path) -> None:
    path = tmp_path / "list.mp4"
    path.write_text("#EXTM3U\n/etc/passwd\n")
    with pytest.raises(RefusedError, match="list that names other files"):
        open_source(path, 1 << 20, container="hls")


def test_a_whole_job_runs_on_descriptors_alone(tmp_path: Path) -> None:
    """As the daemon does it: the source's name is gone, the output's folder is a descriptor."""
    path = clips.cfr(tmp_path / "in.mkv", frames=30)
    (tmp_path / "out").mkdir()
    folder = os.open(tmp_path / "out", os.O_RDONLY | os.O_DIRECTORY)
    try:
        with opened_source(path) as source:
            path.rename(tmp_path / "moved")
            result = srstream.enhance(
                f"/proc/self/fd/{source}", f"/proc/self/fd/{folder}/result.mkv"
            )
    finally:
        os.close(folder)
    assert [found.name for found in (tmp_path / "out").iterdir()] == ["result.mkv"]
    receipt = srstream.verify(tmp_path / "moved", tmp_path / "out/result.mkv")
    assert receipt.ok and receipt.num_frames_out == result.num_frames == 30
