"""A program that ends while tiles are in the engine, as after an error, keeps its exit code."""

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


@pytest.mark.parametrize("engine", ["openvino", "ncnn", "pytorch"])
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
