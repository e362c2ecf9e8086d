"""Reports everything that would stop a run later, before its first iteration."""

from __future__ import annotations

import hashlib
import shutil
from collections import defaultdict
from pathlib import Path

import cv2

from srstream.errors import UsageError
from trainer.config import AdversarialSection, TrainConfig
from trainer.data.pairs import find_pictures, find_training_files

CHECKPOINT_BYTES = 1 << 30
"""Room for checkpoints: one of the paper's networks takes a third, and two exist during a write."""


def check_data(config: TrainConfig, data_dir: Path, validation_dir: Path | None) -> None:
    """Raise `UsageError` naming the file, split, size or scale that is wrong.

    A picture that can't be read, or is smaller than a patch, isn't an error here: it is named and
    left out as long as others remain.
    """
    pictures, _ = find_training_files(data_dir)
    if validation_dir is None:
        return
    _check_split(pictures, find_pictures(validation_dir))
    for path in find_pictures(validation_dir):
        picture = cv2.imread(str(path))
        if picture is None:
            raise UsageError(f"{path}: this picture of the validation set cannot be decoded")
        height, width = picture.shape[:2]
        if min(height, width) < MIN_VALIDATION_SIDE:
            raise UsageError(
                f"{path}: {width}x{height} is too small to validate on; "
                f"{MIN_VALIDATION_SIDE} pixels are needed each way"
            )


MIN_VALIDATION_SIDE = 48
"""A quarter of it is 12 pixels, and SSIM's window is 11 wide."""


def check_room(run_dir: Path) -> None:
    """Raise `UsageError` if the disk can't hold the run's checkpoints."""
    folder = run_dir
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < CHECKPOINT_BYTES:
        raise UsageError(
            f"{folder}: {free >> 20} MiB are free, but a run needs {CHECKPOINT_BYTES >> 20} MiB "
            "for its checkpoints"
        )


def check_features(config: TrainConfig) -> None:
    """Load the feature network once, to report missing weights before loading the pictures."""
    stage = config.adversarial
    if isinstance(stage, AdversarialSection) and stage.perceptual != "discriminator":
        from trainer.judge.features import feature_network

        feature_network(stage.perceptual, stage.perceptual_layers, weights=stage.perceptual_weights)


def _check_split(trained: list[Path], validated: list[Path]) -> None:
    by_size = defaultdict(list)
    for path in trained:
        by_size[path.stat().st_size].append(path)
    for path in validated:
        for twin in by_size[path.stat().st_size]:
            if _digest(twin) == _digest(path):
                raise UsageError(
                    f"{path} is also trained on, as {twin}: the run would be judged by what it was "
                    "shown. Take it out of one of the two folders."
                )


def _digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()
