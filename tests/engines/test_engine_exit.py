"""How a program ends: with tiles in the engine, as after an error, and by signals after engines."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.paths import REPOSITORY

PROGRAM = """
import sys
import numpy as np
from srstream.config import EngineConfig, ModelConfig
from srstream.engines.contract import TileFormat
from srstream.engines.table import choose_engine
from srstream.models.table import MODELS

engine, _ = choose_engine(
    EngineConfig(name=sys.argv[1], threads=2), ModelConfig(name="fast", restore=0.0), MODELS["fast"]
)
session = engine.open_session(TileFormat((96, 128), 8), lambda: None)
for _ in range(20):
    ticket = session.submit([np.zeros((96, 128), np.uint8)])
kept = [session, engine, ticket]
sys.exit(3)
"""


@pytest.mark.parametrize(
    "engine", ["openvino", "ncnn", pytest.param("pytorch", marks=pytest.mark.long)]
)
def test_a_program_may_end_with_tiles_under_way(engine: str) -> None:
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, engine],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=REPOSITORY,
        )
        assert (done.returncode, done.stderr) == (3, "")


SIGNALLED = """
import faulthandler, gc, os, signal, sys
from srstream.config import EngineConfig, ModelConfig
from srstream.engines.table import choose_engine
from srstream.models.table import MODELS

faulthandler.enable()  # as pytest does: the process has a signal stack of its own
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(3))
opened = [
    choose_engine(EngineConfig(name=sys.argv[1]), ModelConfig(name="fast"), MODELS["fast"])[0]
    for _ in range(2)
]
while opened:
    opened.pop(0).close()
    gc.collect()
os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.parametrize("engine", ["openvino", "ncnn", "pytorch"])
def test_a_signal_is_answered_when_engines_that_overlapped_are_gone(engine: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED, engine], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert (done.returncode, done.stderr) == (3, "")
