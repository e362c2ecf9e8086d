"""What all tests share: data, the sample clip, the user's caches left alone, CUDA or not."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.support.paths import REPOSITORY

# Several threads for networks this small, on cores that are busy, wait for each other a hundred
# times longer than they compute. Set before anything imports PyTorch; started processes inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Hundreds of tests start processes. Each would compile the package anew, for half a second.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import pytest
from hypothesis import settings

from srstream.media.thread_priority import same_scheduling

DATA = Path(os.environ.get("SRSTREAM_DATA", REPOSITORY.parent / "shared" / "data"))
NUM_CORES = len(os.sched_getaffinity(0))

# A helper's assertion says what it compared, as a test's does.
for helpers in (REPOSITORY / "tests" / "support").rglob("*.py"):
    if helpers.stem != "paths":  # imported by now, and without any
        name = helpers.relative_to(REPOSITORY).with_suffix("").parts
        pytest.register_assert_rewrite(".".join(name))

# A busy machine is no failure; pytest's own timeout ends what hangs.
settings.register_profile("srstream", deadline=None)
settings.load_profile("srstream")


@pytest.fixture(scope="session", autouse=True)
def isolated_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home of the session's own, for child processes too: no test reads or fills the user's."""
    home = tmp_path_factory.mktemp("home")
    patch = pytest.MonkeyPatch()
    patch.setenv("HOME", str(home))
    for name in ("CACHE", "CONFIG", "DATA", "STATE"):
        patch.setenv(f"XDG_{name}_HOME", str(home / name.lower()))
    yield home
    patch.undo()


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> Iterator[None]:
    """Ctrl-C reaches started processes, even where a shell began the tests in the background."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session", autouse=True)
def limited_threads() -> None:
    """PyTorch counts the machine's cores, not those that this process may use."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(NUM_CORES)


@pytest.fixture(autouse=True)
def ordinary_scheduling() -> Iterator[None]:
    """A test that makes a clip with SVT-AV1 itself would leave root a real-time process."""
    with same_scheduling():
        yield


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The data sets: `SRSTREAM_DATA`, or `shared/data` beside the repository."""
    if not DATA.is_dir():
        pytest.skip(NO_DATA)
    return DATA


@pytest.fixture(scope="session")
def sample_clip() -> Path:
    """The real clip that ships with the repository."""
    return REPOSITORY / "samples" / "nasa_13013.mp4"


NO_DATA = f"{DATA} isn't there; set SRSTREAM_DATA to the data folder"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what the machine cannot run; FAIL_WITHOUT_CUDA=1 makes a missing GPU a failure."""
    if item.get_closest_marker("needs_data") and not DATA.is_dir():
        pytest.skip(NO_DATA)
    if (
        item.get_closest_marker("needs_tensorrt")
        and importlib.util.find_spec("torch_tensorrt") is None
    ):
        if os.environ.get("FAIL_WITHOUT_TENSORRT") == "1":
            pytest.fail(
                "FAIL_WITHOUT_TENSORRT=1 is set, torch-tensorrt is not there", pytrace=False
            )
        pytest.skip("torch-tensorrt is not installed: make test-tensorrt")
    if item.get_closest_marker("needs_cuda") and not _has_cuda():
        if os.environ.get("FAIL_WITHOUT_CUDA") == "1":
            pytest.fail("FAIL_WITHOUT_CUDA=1 is set and there is no CUDA device", pytrace=False)
        pytest.skip("there is no CUDA device")


def _has_cuda() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()
