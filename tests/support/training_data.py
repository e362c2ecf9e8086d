"""Where the data sets are that some tests need."""

import os
from pathlib import Path

import pytest

from tests.support.paths import REPOSITORY

DATA = Path(os.environ.get("SRSTREAM_DATA", REPOSITORY.parent / "shared" / "data"))


def data_folder(name: str) -> Path:
    """A folder or file of the data sets; the test is skipped where it isn't there."""
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} isn't there; set SRSTREAM_DATA to the folder that holds {name}")
    return path
