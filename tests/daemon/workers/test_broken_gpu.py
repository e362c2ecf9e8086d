"""A worker whose GPU breaks is replaced, and its jobs continue where they were."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.daemon.test_daemon import long_clip
from tests.support.jobs import video_times
from tests.support.paths import REPOSITORY
from tests.support.service.broken_gpu import MESSAGE
from tests.support.service.daemon import Daemon


class BreakingDaemon(Daemon):
    """Its first worker's GPU breaks in the first job."""

    def launch(self) -> subprocess.Popen[bytes]:
        worker = "if 'srstream.daemon.workers.main' in __import__('sys').orig_argv"
        imported = "from tests.support.service.broken_gpu import break_engines"
        customised = f"{worker}:\n    {imported}\n    break_engines()\n"
        (self.home / "sitecustomize.py").write_text(customised)
        paths = f"{self.home}:{REPOSITORY}"
        environment = {"PYTHONPATH": paths, "BREAK_ONCE": str(self.home / "broken")}
        with (self.home / "daemon.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "srstream", "serve", "--config", str(self.config)],
                stdout=log,
                stderr=log,
                env={**os.environ, **environment},
            )


@pytest.mark.long
def test_a_worker_whose_gpu_breaks_is_replaced_and_its_jobs_go_on(tmp_path: Path) -> None:
    """Neither job is blamed: the worker's context on the device is common to both."""
    with BreakingDaemon(tmp_path, "[defaults.engine]\nname = 'cuda'") as daemon:
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
