"""The commands that talk to a daemon, as a user runs them, and what they print where."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from srstream.client.jobs import Client
from tests.support.jobs import command, run
from tests.support.paths import REPOSITORY
from tests.support.service.control import Daemon, daemon


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with daemon(tmp_path_factory.mktemp("run")) as it:
        yield it


@pytest.fixture
def client(running: Daemon) -> Iterator[Client]:
    with Client(running.address) as it:
        yield it


def ask(running: Daemon, *arguments: object, code: int = 0) -> str:
    """Standard output of a command of which the exit code is as expected."""
    done = run(*arguments, "--address", running.address)
    assert done.returncode == code, done.stderr
    return done.stdout.strip()


def test_submit_prints_the_id_and_sends_only_what_was_given(
    running: Daemon, client: Client, tmp_path: Path
) -> None:
    job = ask(running, "submit", tmp_path / "in.mp4", "-o", tmp_path / "out.mp4", "--priority", -3,
              "--model", "fast", "--crf", 20, "--no-reuse", "--max-memory", "2G")  # fmt: skip
    info = client.status(job)
    assert (info.input, info.output) == (str(tmp_path / "in.mp4"), str(tmp_path / "out.mp4"))
    assert info.priority == -3
    assert info.result == {
        "config": {
            "model": {"name": "fast"},  # given, so it holds whatever the daemon's default is
            "encode": {"crf": 20.0},
            "reuse": {"enabled": False},
            "engine": {"max_memory_bytes": 2 << 30},
        }
    }
    assert client.status(ask(running, "submit", "in.mp4")).result == {"config": {}}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--restore", "2"), "--restore 2: write a number from 0 to 1, or auto."),
        (("--max-memory", "2X"), "--max-memory 2X"),
        (("--scale", "99"), "--scale 99"),
        (("--engine", "abacus"), "abacus"),
    ],
)
def test_a_bad_option_never_reaches_the_daemon(
    running: Daemon, client: Client, arguments: tuple[str, ...], said: str
) -> None:
    before = client.health().num_queued
    done = run("submit", "in.mp4", *arguments, "--address", running.address)
    assert done.returncode == 2 and said in done.stderr
    assert client.health().num_queued == before


def test_submit_waits_where_it_is_asked_to(running: Daemon, client: Client) -> None:
    process = subprocess.Popen(
        command("submit", "/w.mp4", "--wait", "--json", "--address", running.address),
        stdout=subprocess.PIPE, text=True, cwd=REPOSITORY,
    )  # fmt: skip
    while not (found := [job for job in client.list() if job.input == "/w.mp4"]):
        assert process.poll() is None
        time.sleep(0.05)
    assert process.poll() is None
    client.resume(found[0].id)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 0 and json.loads(out)["state"] == "done"


def test_jobs_lists_and_shows(running: Daemon, client: Client) -> None:
    job = client.submit("/shown.mp4", priority=4)
    line = next(each for each in ask(running, "jobs").splitlines() if each.startswith(job.id))
    assert line.split() == [job.id, "queued", "4", "/shown.mp4"]
    assert job.id in {each["id"] for each in json.loads(ask(running, "jobs", "--json"))}
    assert json.loads(ask(running, "jobs", job.id, "--json")) == job.model_dump()
    assert "/shown.mp4" in ask(running, "jobs", job.id)
    client.cancel(job.id)
    cancelled = json.loads(ask(running, "jobs", "--state", "cancelled", "--json"))
    assert {each["state"] for each in cancelled} == {"cancelled"}
    ask(running, "jobs", "--state", "odd", code=2)
    ask(running, "jobs", "0000000000ff", code=2)


def test_a_job_reads_well(running: Daemon, client: Client) -> None:
    job = client.submit("/read.mp4")
    text = ask(running, "jobs", job.id)
    created = datetime.fromtimestamp(job.created).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    assert f"created        {created}" in text
    assert "{" not in text and "None" not in text


@pytest.mark.parametrize("job", ["nosuch", "No/Such", "00000000000000ff"])
def test_a_job_that_is_not_there_is_said(running: Daemon, job: str) -> None:
    for words in (["jobs", job], ["cancel", job], ["priority", job, 3], ["watch", job]):
        done = run(*words, "--json", "--address", running.address)
        assert done.returncode == 2
        error = json.loads(done.stdout)["error"]
        assert error["kind"] == "UsageError"
        assert job in error["text"] and job in done.stderr


def test_ctrl_c_on_a_waiting_submit_says_that_the_job_goes_on(
    running: Daemon, client: Client
) -> None:
    process = subprocess.Popen(
        command("submit", "/goes_on.mp4", "--wait", "--address", running.address),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY,
    )  # fmt: skip
    assert process.stdout is not None
    job = process.stdout.readline().strip()
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert f"the job goes on; srstream watch {job} follows it" in said
    assert client.status(job).state == "queued"


def test_what_can_be_done_to_a_job(running: Daemon, client: Client) -> None:
    job = client.submit("/in.mp4").id
    assert "paused" in ask(running, "pause", job)
    assert ask(running, "priority", job, -5) == f"{job}: priority -5"
    assert json.loads(ask(running, "cancel", job, "--json"))["state"] == "cancelled"
    assert json.loads(ask(running, "resume", job, "--json"))["state"] == "running"


def test_watch_ends_with_its_job(running: Daemon, client: Client) -> None:
    job = client.submit("/in.mp4").id
    process = subprocess.Popen(
        command("watch", job, "--json", "--after", 0, "--address", running.address),
        stdout=subprocess.PIPE, text=True, cwd=REPOSITORY,
    )  # fmt: skip
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["data"] == {"state": "queued"}
    client.resume(job)
    events = [json.loads(line) for line in process.stdout]
    assert process.wait(10) == 0
    assert [e["data"]["index"] for e in events if e["kind"] == "segment"] == list(range(20))
    assert events[-1]["data"] == {"state": "done"}
    assert ask(running, "watch", job) == ""  # it has ended, there is nothing to wait for


def test_health_is_an_exit_code(running: Daemon, client: Client, tmp_path: Path) -> None:
    assert ask(running, "health").startswith("well: ")
    assert json.loads(ask(running, "health", "--json"))["ok"] is True
    client.use_model("broken")
    try:
        lines = ask(running, "health", code=1).splitlines()
        assert any(line.startswith("problem: the default model is broken") for line in lines)
    finally:
        client.use_model("fast")
    gone = run("health", "--address", f"ipc://{tmp_path}/control.sock")
    assert (gone.returncode, gone.stderr.count("\n")) == (5, 1)
    assert "no daemon listens at" in gone.stderr


def test_models_of_the_service_and_reload(running: Daemon) -> None:
    assert ask(running, "models", "list", "--service").splitlines() == [
        "fast (default)",
        "balanced",
    ]
    assert "mine" in ask(running, "models", "add", "/w/mine.safetensors", "--service")
    assert ask(running, "models", "remove", "mine", "--service") == "mine: removed"
    assert "balanced" in ask(running, "models", "use", "balanced")
    assert (
        json.loads(ask(running, "models", "list", "--service", "--json"))["default"] == "balanced"
    )
    ask(running, "models", "use", "fast")
    assert ask(running, "reload") == "reloaded"


def test_keys_from_new_to_revoked(tmp_path: Path) -> None:
    folder = ("--keys-dir", tmp_path / "keys")
    made = run("keys", "new", "studio", "-o", tmp_path / "studio.key", *folder)
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "studio.key").stat().st_mode & 0o777 == 0o600
    again = run("keys", "new", "studio", "-o", tmp_path / "studio.key", *folder)
    assert again.returncode == 2 and "was not touched" in again.stderr
    known = json.loads(run("keys", "list", "--json", *folder).stdout)
    public = known["clients"]["studio"]
    assert run("keys", "revoke", "studio", *folder).returncode == 0
    allowed = run("keys", "allow", public, "--name", "other", "--json", *folder)
    assert json.loads(allowed.stdout) == {
        "name": "other", "public": public, "server": known["server"],
    }  # fmt: skip
    unknown = run("keys", "revoke", "studio", *folder)
    assert unknown.returncode == 2 and "there are: other" in unknown.stderr
    dashed = run("keys", "allow", "-" + 39 * "0", "--name", "dashed", *folder)
    assert dashed.returncode == 0, dashed.stderr
    nameless = run("keys", "allow", public, *folder)
    assert nameless.returncode == 2 and "--name" in nameless.stderr
    (tmp_path / "keys").chmod(0o755)
    loose = run("keys", "list", *folder)
    assert loose.returncode == 2 and "lets others at the keys" in loose.stderr


def test_the_other_commands_load_nothing_of_the_service() -> None:
    code = (
        "import sys, srstream.cli.main; heavy = {'zmq', 'structlog', 'pydantic_settings'}; "
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=False
    )
    assert done.stdout.strip() == "[]", done.stderr
