"""The daemons that the tests of the control socket share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.service import control
from tests.support.service.control import Daemon


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with control.daemon(tmp_path / "run") as started:
        yield started


@pytest.fixture(scope="package")
def shared_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon for tests that do not depend on what others have left in it."""
    with control.daemon(tmp_path_factory.mktemp("run")) as started:
        yield started
