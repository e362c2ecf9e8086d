"""A worker whose GPU breaks is replaced, and its jobs continue where they were."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.daemon.test_daemon import long_clip
from tests.support.jobs import video_times
from tests.support.service.broken_gpu import MESSAGE
from tests.support.service.daemon import Daemon

BREAK = "from tests.support.service.broken_gpu import break_engines; break_engines()"


@pytest.mark.long
def test_a_worker_whose_gpu_breaks_is_replaced_and_its_jobs_go_on(tmp_path: Path) -> None:
    """Neither job is blamed: the worker's context on the device is common to both."""
    breaking = Daemon(tmp_path, "[defaults.engine]\nname = 'cuda'", worker_code=BREAK)
    breaking.environment["BREAK_ONCE"] = str(tmp_path / "broken")
    with breaking as daemon:
        sources = [long_clip(daemon.inputs / f"{n}.mp4", seconds=2) for n in range(2)]
        jobs = [daemon.submit(source, f"{n}.mp4") for n, source in enumerate(sources)]
        for number, (job, source) in enumerate(zip(jobs, sources, strict=True)):
            ended = daemon.wait(job, 100)
            assert ended["state"] == "done", ended
            assert video_times(daemon.outputs / f"{number}.mp4") == video_times(source)
        (worker,) = daemon.result("health")["workers"]
        assert worker["num_restarts"] == 1
        said = [line for line in daemon.log().splitlines() if "ends and is replaced" in line]
        assert len(said) == 1 and MESSAGE in said[0]
        assert "Traceback" not in daemon.log()
