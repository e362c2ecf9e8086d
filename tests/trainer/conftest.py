"""Pictures that the tests of training make on the spot."""

import cv2
import numpy as np
import pytest

from trainer.data.degrade import bicubic_resize


@pytest.fixture
def pictures(tmp_path):
    """Two pictures with detail, in a group, and one that is too small for a patch."""
    folder = tmp_path / "pictures" / "made"
    folder.mkdir(parents=True)
    random = np.random.default_rng(4)
    for name, height, width in [("a", 96, 120), ("b", 101, 83), ("small", 40, 200)]:
        rough = random.uniform(0, 255, (height // 6 + 1, width // 6 + 1, 3))
        picture = np.clip(bicubic_resize(rough, height, width), 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{name}.png"), picture)
    return folder.parent


@pytest.fixture
def validation_pictures(tmp_path):
    """Three others."""
    folder = tmp_path / "validation"
    folder.mkdir()
    random = np.random.default_rng(5)
    for name, height, width in [("c", 96, 120), ("d", 101, 83), ("e", 60, 204)]:
        rough = random.uniform(0, 255, (height // 6 + 1, width // 6 + 1, 3))
        picture = np.clip(bicubic_resize(rough, height, width), 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{name}.png"), picture)
    return folder
