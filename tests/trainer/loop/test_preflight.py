"""Everything that would stop a run later is said before its first iteration, by name."""

import shutil

import cv2
import numpy as np
import pytest

from srstream.errors import UsageError
from trainer.config import TrainConfig
from trainer.loop.preflight import check_data, check_room

CONFIG = TrainConfig.model_validate({"model": "fast", "pixel": {"iterations": 1}})


@pytest.fixture
def folders(tmp_path):
    random = np.random.default_rng(0)
    for name in ("trained", "validated"):
        (tmp_path / name).mkdir()
        picture = random.integers(0, 255, (64, 80, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / name / "picture.png"), picture)
    return tmp_path / "trained", tmp_path / "validated"


def test_two_separate_folders_pass(folders):
    check_data(CONFIG, *folders)
    check_data(CONFIG, folders[0], None)


def test_a_picture_in_both_folders_is_named(folders):
    trained, validated = folders
    shutil.copy(trained / "picture.png", validated / "copied.png")
    with pytest.raises(UsageError, match=r"validated/copied\.png is also trained on, as .*trained"):
        check_data(CONFIG, trained, validated)


def test_an_unreadable_or_tiny_picture_of_the_validation_set_is_named(folders):
    trained, validated = folders
    (validated / "broken.png").write_bytes(b"no picture")
    with pytest.raises(UsageError, match=r"broken\.png: .*cannot be decoded"):
        check_data(CONFIG, trained, validated)
    cv2.imwrite(str(validated / "broken.png"), np.zeros((40, 90, 3), np.uint8))
    with pytest.raises(UsageError, match=r"broken\.png: 90x40 is too small"):
        check_data(CONFIG, trained, validated)


def test_an_empty_folder_is_named(folders, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="empty: holds no pictures"):
        check_data(CONFIG, tmp_path / "empty", folders[1])
    with pytest.raises(UsageError, match="empty: holds no pictures"):
        check_data(CONFIG, folders[0], tmp_path / "empty")


def test_a_full_disk_is_told_before_the_run(tmp_path, monkeypatch):
    check_room(tmp_path / "not" / "there" / "yet")
    usage = shutil.disk_usage(tmp_path)._replace(free=100 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UsageError, match="100 MiB are free, but a run needs 1024 MiB"):
        check_room(tmp_path)
