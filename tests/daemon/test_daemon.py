"""The daemon as a whole: real processes, real sockets, real kills, real files."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from srstream.engines.table import can_run
from tests.support import clips, nasty_clips
from tests.support.jobs import file_hash, run, video_times
from tests.support.service.daemon import FINAL, Daemon, wait_for

DETERMINISTIC = {"deterministic": True}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(tmp_path) as running:
        yield running


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that several tests ask, each with files of its own names."""
    with Daemon(tmp_path_factory.mktemp("shared")) as running:
        yield running


def long_clip(path: Path, seconds: int = 12) -> Path:
    """A clip of several segments, which takes some seconds."""
    return clips.cfr(path, frames=25 * seconds, gop=25, width=144, height=96, noise=40)


def test_a_job_is_done_as_the_command_would_do_it(daemon: Daemon, tmp_path: Path) -> None:
    source = clips.cfr(daemon.inputs / "a.mp4", frames=30)
    job = daemon.submit(source, "a.mp4", config=DETERMINISTIC)
    ended = daemon.wait(job)
    assert ended["state"] == "done", ended
    assert ended["result"]["num_frames"] == 30
    assert ended["result"]["receipt"]["problems"] == []
    assert len(ended["weights_sha256"]) == 64
    output = daemon.outputs / "a.mp4"
    assert video_times(output) == video_times(source)
    alone = tmp_path / "alone.mp4"
    assert run("enhance", source, "-o", alone, "--deterministic").returncode == 0
    assert file_hash(output) == file_hash(alone)
    assert list(daemon.work.iterdir()) == []
    assert sorted(path.name for path in daemon.outputs.iterdir()) == ["a.mp4"]


def test_the_supervisor_touches_no_media(daemon: Daemon) -> None:
    source = clips.cfr(daemon.inputs / "a.mp4")
    daemon.wait(daemon.submit(source, "a.mp4"))
    assert daemon.process is not None
    maps = Path(f"/proc/{daemon.process.pid}/maps").read_text()
    for library in ("libav", "numpy", "openvino", "torch", "cv2"):
        assert library not in maps, library


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("/etc/passwd", "folder"),
        ("{inputs}/../state/jobs.sqlite", "'..'"),
        ("{inputs}/none.mp4", "not"),
        ("{inputs}/link.mp4", "folder"),
        ("{inputs}", "regular file"),
    ],
)
def test_what_lies_outside_is_refused_in_one_sentence(shared: Daemon, path: str, word: str) -> None:
    link = shared.inputs / "link.mp4"
    link.unlink(missing_ok=True)
    link.symlink_to("/etc/passwd")
    given = path.format(inputs=shared.inputs)
    reply = shared.ask("submit", input=given, output=str(shared.outputs / "o.mp4"))
    assert not reply["ok"] and reply["error"]["kind"] == "RefusedError", reply
    assert "\n" not in reply["error"]["text"] and word in reply["error"]["text"].lower(), reply
    assert shared.result("health")["ok"]


def test_an_output_outside_or_in_the_way_is_refused(shared: Daemon) -> None:
    source = clips.cfr(shared.inputs / "way.mp4")
    outside = shared.ask("submit", input=str(source), output="/etc/a.mp4")
    assert outside["error"]["kind"] == "RefusedError", outside
    (shared.outputs / "there.mp4").write_bytes(b"mine")
    taken = shared.ask("submit", input=str(source), output=str(shared.outputs / "there.mp4"))
    assert "exists already" in taken["error"]["text"], taken
    assert (shared.outputs / "there.mp4").read_bytes() == b"mine"


def test_a_bad_file_fails_alone_and_says_why(shared: Daemon) -> None:
    text = shared.inputs / "text.mp4"
    text.write_text("not a video\n" * 100)
    playlist = shared.inputs / "list.m3u8"
    playlist.write_text("#EXTM3U\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n")
    giant = nasty_clips.giant(shared.inputs / "giant.mp4", 16000, 16000)
    good = clips.cfr(shared.inputs / "good.mp4")
    bad = [shared.submit(path, f"{path.stem}.mp4") for path in (text, playlist, giant)]
    fine = shared.submit(good, "good.mp4")
    for job in bad:
        ended = shared.wait(job)
        assert ended["state"] == "failed" and ended["attempts"] == 1, ended
        assert "\n" not in ended["error"] and "Traceback" not in ended["error"], ended
        assert "/proc/self/fd" not in ended["error"] and ".m" in ended["error"], ended
    assert shared.wait(fine)["state"] == "done"
    assert list(shared.work.iterdir()) == []


def test_a_key_makes_a_repeated_submit_harmless(shared: Daemon) -> None:
    source = clips.cfr(shared.inputs / "key.mp4")
    first = shared.submit(source, "key.mp4", key="one")
    assert shared.submit(source, "key.mp4", key="one") == first
    shared.wait(first)
    assert shared.submit(source, "key.mp4", key="one", overwrite=True) == first


def test_priorities_decide_the_order(tmp_path: Path) -> None:
    with Daemon(tmp_path, "max_running = 1") as daemon:
        blocker = daemon.submit(long_clip(daemon.inputs / "long.mp4", 2), "long.mp4")
        wait_for(lambda: daemon.job(blocker)["state"] == "running")
        source = clips.cfr(daemon.inputs / "a.mp4")
        low = daemon.submit(source, "low.mp4", priority=-5)
        high = daemon.submit(source, "high.mp4", priority=5)
        raised = daemon.submit(source, "raised.mp4")
        daemon.result("priority", job=raised, priority=9)
        for job in (blocker, low, high, raised):
            daemon.wait(job)
        started = {
            name: daemon.job(job)["started"]
            for name, job in (("low", low), ("high", high), ("raised", raised))
        }
        assert started["raised"] < started["high"] < started["low"]


def test_pause_resume_and_cancel(daemon: Daemon) -> None:
    source = long_clip(daemon.inputs / "long.mp4")
    job = daemon.submit(source, "long.mp4", config=DETERMINISTIC)
    wait_for(lambda: daemon.job(job)["num_segments_done"] >= 1)
    daemon.result("pause", job=job)
    wait_for(lambda: daemon.job(job)["state"] == "paused")
    done = daemon.job(job)["num_segments_done"]
    time.sleep(1)
    assert daemon.job(job)["num_segments_done"] == done
    daemon.result("resume", job=job)
    other = daemon.submit(source, "other.mp4")
    wait_for(lambda: daemon.job(other)["state"] == "running")
    daemon.result("cancel", job=other)
    wait_for(lambda: daemon.job(other)["state"] == "cancelled", 10)
    ended = daemon.wait(job)
    assert ended["state"] == "done", ended
    assert video_times(daemon.outputs / "long.mp4") == video_times(source)
    assert sorted(path.name for path in daemon.outputs.iterdir()) == ["long.mp4"]
    assert list(daemon.work.iterdir()) == []


def test_sigterm_checkpoints_and_the_next_daemon_goes_on(daemon: Daemon) -> None:
    source = long_clip(daemon.inputs / "long.mp4")
    job = daemon.submit(source, "long.mp4")
    wait_for(lambda: daemon.job(job)["num_segments_done"] >= 1)
    assert daemon.stop() == 0
    daemon.start()
    assert daemon.job(job)["num_segments_done"] >= 1
    assert daemon.wait(job)["state"] == "done"
    assert video_times(daemon.outputs / "long.mp4") == video_times(source)


def test_children_die_with_their_parent(daemon: Daemon) -> None:
    job = daemon.submit(long_clip(daemon.inputs / "long.mp4"), "long.mp4")
    wait_for(lambda: daemon.job(job)["progress"] is not None)
    assert daemon.process is not None
    family = psutil.Process(daemon.process.pid).children(recursive=True)
    assert len(family) >= 2
    daemon.kill()
    psutil.wait_procs(family, timeout=5)
    assert not [child for child in family if child.is_running() and child.status() != "zombie"]


@pytest.mark.long
def test_a_worker_that_stops_answering_is_replaced(tmp_path: Path) -> None:
    with Daemon(tmp_path, "[workers]\nheartbeat_seconds = 2") as daemon:
        source = long_clip(daemon.inputs / "long.mp4", 6)
        job = daemon.submit(source, "long.mp4")
        wait_for(lambda: daemon.job(job)["state"] == "running")
        (worker,) = daemon.children("workers.main")
        worker.send_signal(signal.SIGSTOP)
        assert daemon.wait(job)["state"] == "done"
        assert daemon.result("health")["workers"][0]["num_restarts"] == 1
        assert video_times(daemon.outputs / "long.mp4") == video_times(source)


@pytest.mark.long
def test_a_worker_that_answers_but_does_not_advance_is_replaced(tmp_path: Path) -> None:
    with Daemon(tmp_path, "[workers]\nstall_seconds = 3") as daemon:
        source = long_clip(daemon.inputs / "long.mp4", 6)
        job = daemon.submit(source, "long.mp4")
        wait_for(lambda: daemon.children("sandbox.decoder"))
        daemon.children("sandbox.decoder")[0].send_signal(signal.SIGSTOP)
        ended = daemon.wait(job)
        assert ended["state"] == "done", ended
        assert daemon.result("health")["workers"][0]["num_restarts"] >= 1
        assert video_times(daemon.outputs / "long.mp4") == video_times(source)


@pytest.mark.skipif(can_run("cuda"), reason="there is a GPU")
@pytest.mark.parametrize(
    ("lines", "engine"),
    [
        ("devices = ['cuda:0']", "cuda"),
        pytest.param("[defaults.engine]\nname = 'tensorrt'", "tensorrt", marks=pytest.mark.long),
    ],
    ids=["device", "engine"],
)
def test_an_engine_that_cannot_start_ends_the_daemon(
    tmp_path: Path, lines: str, engine: str
) -> None:
    """The named engine and device are used, and never another."""
    daemon = Daemon(tmp_path, f"[workers]\nmax_restarts = 1\n{lines}")
    process = daemon.launch()
    assert process.wait(60) not in (0, None)
    assert f"engine '{engine}' needs" in daemon.log()
    assert "Traceback" not in daemon.log()


def test_a_bad_configuration_is_refused_and_the_old_one_kept(daemon: Daemon) -> None:
    good = daemon.config.read_text()
    daemon.config.write_text(good + "\nnonsense = 1\n")
    reply = daemon.ask("reload")
    assert reply["error"]["kind"] == "ConfigError" and "nonsense" in reply["error"]["text"], reply
    source = clips.cfr(daemon.inputs / "a.mp4")
    assert daemon.wait(daemon.submit(source, "a.mp4"))["state"] == "done"
    more = daemon.home / "more"
    more.mkdir()
    daemon.config.write_text(good.replace("read_roots = [", f'read_roots = ["{more}", '))
    assert daemon.result("reload") == {"needs_restart": []}
    other = clips.cfr(more / "b.mp4")
    assert daemon.wait(daemon.submit(other, "b.mp4"))["state"] == "done"


def test_a_second_daemon_is_refused(daemon: Daemon, tmp_path: Path) -> None:
    second = daemon.launch()
    assert second.wait(30) not in (0, None)
    assert "another srstream daemon" in daemon.log()
    assert daemon.result("health")["ok"]


def test_a_symlink_swapped_in_changes_nothing(daemon: Daemon, tmp_path: Path) -> None:
    """The output's folder is replaced by a link to another place while the job runs."""
    folder, elsewhere = daemon.outputs / "sub", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    source = long_clip(daemon.inputs / "long.mp4", 4)
    job = daemon.submit(source, "sub/a.mp4")
    wait_for(lambda: daemon.children("sandbox.decoder"))
    folder.rename(daemon.outputs / "moved")
    folder.symlink_to(elsewhere)
    ended = daemon.wait(job)
    assert list(elsewhere.iterdir()) == []
    assert ended["state"] == "done", ended
    assert (daemon.outputs / "moved" / "a.mp4").is_file()


def check_chaos(daemon: Daemon, num_jobs: int, num_kills: int, seed: int) -> None:
    """Three clients' jobs and random kills: every result equals that of an undisturbed run."""
    randomly = random.Random(seed)
    sources = [
        clips.cfr(daemon.inputs / f"{n}.mp4", frames=20 + 10 * n, gop=10, noise=20 * n)
        for n in range(4)
    ]
    with ThreadPoolExecutor(3) as clients:
        jobs = list(
            clients.map(
                lambda n: daemon.submit(
                    sources[n % 4],
                    f"out-{n}.mp4",
                    config=DETERMINISTIC,
                    priority=n % 3,
                    key=f"job {n}",
                ),
                range(num_jobs),
            )
        )
    for _ in range(num_kills):
        time.sleep(randomly.uniform(0.2, 2.0))
        victim = randomly.choice(["daemon", "workers.main", "sandbox.decoder", "steps_child"])
        if victim == "daemon":
            daemon.kill()
            daemon.start()
        elif found := daemon.children(victim):
            randomly.choice(found).kill()
    wait_for(lambda: all(daemon.job(job)["state"] in FINAL for job in jobs), 30 * num_jobs)
    states = {job: daemon.job(job) for job in jobs}
    assert {job["state"] for job in states.values()} == {"done"}, states
    alone = {}
    for n, source in enumerate(sources):
        output = daemon.home / f"alone-{n}.mp4"
        assert run("enhance", source, "-o", output, "--deterministic").returncode == 0
        alone[n] = file_hash(output)
    for n in range(num_jobs):
        assert file_hash(daemon.outputs / f"out-{n}.mp4") == alone[n % 4], n
    assert list(daemon.work.iterdir()) == []
    assert {path.suffix for path in daemon.outputs.iterdir()} == {".mp4"}


@pytest.mark.long
def test_kills_at_random_cost_no_job(daemon: Daemon) -> None:
    check_chaos(daemon, num_jobs=8, num_kills=5, seed=1)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_200_jobs_survive_20_kills(daemon: Daemon) -> None:
    check_chaos(daemon, num_jobs=200, num_kills=20, seed=2)


@pytest.mark.long
def test_running_jobs_keep_their_weights_until_told_otherwise(daemon: Daemon) -> None:
    source = long_clip(daemon.inputs / "long.mp4", 8)
    first = daemon.submit(source, "first.mp4")
    wait_for(lambda: daemon.job(first)["num_segments_done"] >= 1)
    weights = daemon.job(first)["weights_sha256"]
    daemon.result("models.use", name="balanced")
    later = daemon.submit(clips.cfr(daemon.inputs / "b.mp4"), "later.mp4")
    assert daemon.wait(later)["model"] == "balanced"
    assert daemon.wait(first, 90)["model"] == "fast"
    assert daemon.job(first)["weights_sha256"] == weights
    assert daemon.job(later)["weights_sha256"] != weights
    daemon.result("models.use", name="fast")
    second = daemon.submit(source, "second.mp4")
    wait_for(lambda: daemon.job(second)["num_segments_done"] >= 1)
    changed = daemon.result("models.use", name="balanced", running=True)
    assert changed["jobs"] == [second]
    ended = daemon.wait(second, 90)
    assert ended["state"] == "done" and ended["model"] == "balanced", ended
    assert video_times(daemon.outputs / "second.mp4") == video_times(source)


@pytest.mark.long
def test_registered_weights_are_pinned(daemon: Daemon) -> None:
    from srstream.models.table import weights_path

    for name, weight_set in (("one", "faithful"), ("two", "restore")):
        shutil.copy(
            weights_path("fast", ".safetensors", weight_set),  # type: ignore[arg-type]
            daemon.inputs / f"{name}.safetensors",
        )
    daemon.result("models.add", weights=str(daemon.inputs / "one.safetensors"), name="mine")
    names = {model["name"] for model in daemon.result("models.list")["models"]}
    assert {"mine", "fast", "balanced"} <= names
    source = long_clip(daemon.inputs / "long.mp4", 6)
    job = daemon.submit(source, "long.mp4", config={"model": {"name": "mine"}, **DETERMINISTIC})
    wait_for(lambda: daemon.job(job)["num_segments_done"] >= 1)
    weights = daemon.job(job)["weights_sha256"]
    two = str(daemon.inputs / "two.safetensors")
    daemon.result("models.add", weights=two, name="mine", replace=True)
    daemon.kill()
    daemon.start()
    ended = daemon.wait(job)
    assert ended["state"] == "done" and ended["weights_sha256"] == weights, ended
    pickled = daemon.inputs / "bad.safetensors"
    pickled.write_bytes(b"\x80\x04\x95" + bytes(100))
    refused = daemon.ask("models.add", weights=str(pickled), name="bad")
    assert not refused["ok"] and "\n" not in refused["error"]["text"], refused
