"""Children of the daemon that are killed or stopped leave a line in the log and are replaced."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import psutil
import pytest

from srstream.daemon.workers.link import Beat, WorkerMessage
from tests.daemon.frames.test_frames_worker import WorkerProcess, frames, open_stream, worker
from tests.daemon.test_daemon import long_clip
from tests.support.service.daemon import Daemon, wait_for

__all__ = ["worker"]

NOTICED_SECONDS = 10.0


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("sandbox.decoder", "the decoder process ended unexpectedly (status -9)"),
        pytest.param(
            "sandbox.media_child",
            "the process that reads the source died (status -9)",
            marks=pytest.mark.long,
        ),
    ],
)
def test_a_killed_child_of_a_job_leaves_a_line_in_the_log(
    tmp_path: Path, module: str, said: str
) -> None:
    with Daemon(tmp_path) as daemon:
        job = daemon.submit(long_clip(daemon.inputs / "in.mp4", seconds=6), "out.mp4")
        wait_for(lambda: daemon.children(module))
        daemon.children(module)[0].kill()
        assert daemon.wait(job, 120)["state"] == "done"
        (line,) = [line for line in daemon.log().splitlines() if said in line]
        assert job in line and '"warning"' in line


def gate_of(worker: WorkerProcess) -> psutil.Process:
    def has_begun(child: psutil.Process) -> bool:
        return "srstream.daemon.frames.gate" in child.cmdline()

    children = psutil.Process(worker.process.pid).children()
    return next(child for child in children if has_begun(child))


@pytest.mark.long
@pytest.mark.parametrize(
    ("number", "said"),
    [(signal.SIGSTOP, "gave no sign of life"), (signal.SIGKILL, "died (status -9)")],
)
def test_a_gate_that_is_stopped_or_killed_is_noticed_and_replaced(
    worker: WorkerProcess, number: signal.Signals, said: str
) -> None:
    former = gate_of(worker)
    former.send_signal(number)
    hit = time.monotonic()

    def tells(message: WorkerMessage) -> bool:
        return isinstance(message, Beat) and said in message.problem

    worker.wait_for(tells, NOTICED_SECONDS)
    assert time.monotonic() - hit < NOTICED_SECONDS
    assert not former.is_running()
    worker.wait_for(lambda m: isinstance(m, Beat) and not m.problem, 60)
    assert gate_of(worker) != former
    with open_stream(worker) as stream:
        assert len(list(stream.enhance(frames(5)))) == 5


@pytest.mark.long
def test_a_stopped_gate_is_a_problem_that_health_and_log_tell(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon:
        wait_for(lambda: daemon.children("frames.gate"))
        daemon.children("frames.gate")[0].suspend()

        def problems() -> str:
            return " ".join(daemon.result("health")["problems"])

        wait_for(lambda: "gave no sign of life" in problems(), NOTICED_SECONDS)
        assert "the gate of the data socket gave no sign of life" in daemon.log()
        wait_for(lambda: daemon.result("health")["ok"], 60)
