"""What opening an encoder does to the scheduling of this process: nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from srstream.media.thread_priority import same_scheduling
from tests.support.paths import REPOSITORY

PROGRAM = """
import os, sys
from dataclasses import replace
from pathlib import Path
from srstream.config import EncodeConfig, JobConfig
from tests.support.encode import moving_frame, plan, source_info
from srstream.media.write.codecs import check_encoder
from srstream.media.write.encode import SegmentEncoder

config = JobConfig(encode=EncodeConfig(codec="libsvtav1"))
video = replace(plan(source_info(), Path("o.mkv"), config).video, width=64, height=64)
check_encoder(video)
encoder = SegmentEncoder(Path(sys.argv[1]), video, threads=2, deterministic=False)
for number in range(3):
    encoder.push(moving_frame(video, number, 512 * number))
print(len(os.listdir("/proc/self/task")), *{
    os.sched_getscheduler(int(thread)) for thread in os.listdir("/proc/self/task")
})
encoder.close()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="SVT-AV1 asks for it only if it is root's")
def test_av1_leaves_every_thread_what_it_was(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "0.part")],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
    )
    num_threads, *policies = map(int, done.stdout.split())
    assert num_threads > 3, "the encoder is at work"
    assert policies == [os.SCHED_OTHER]


@pytest.mark.skipif(os.geteuid() != 0, reason="real-time priorities are root's to give")
def test_what_is_changed_inside_is_changed_back() -> None:
    before = os.sched_getscheduler(0)
    with pytest.raises(ValueError), same_scheduling():
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
        raise ValueError
    assert os.sched_getscheduler(0) == before
