"""The data sockets that the tests of frames share, and the engine that they compare with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.service.frames import Server
from tests.support.service.frames_server import open_engine


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("frames"))
    yield server
    server.close()


@pytest.fixture
def impatient(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path, idle_seconds=1.0, max_sessions=3)
    yield server
    server.close()


@pytest.fixture(scope="package")
def engine(isolated_home: Path) -> Any:
    return open_engine()
