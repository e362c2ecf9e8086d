"""`srtrain train` and `srtrain evaluate`, between argument parsing and the training loop."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Literal

from srstream.config import Precision
from srstream.errors import UsageError
from srstream.models.restore_auto import Restoration
from trainer.config import TrainConfig
from trainer.data.clips import degraded_pairs
from trainer.data.codec import x264_at
from trainer.data.degrade import SCALE
from trainer.data.footage import video_pairs
from trainer.data.pairs import Pair, find_training_files, load_pairs
from trainer.judge.clipset import automatic_restore, load_test_clip
from trainer.judge.comparison import Comparison, Method
from trainer.judge.evaluate import load_test_set
from trainer.judge.perceptual import Judge, PerceptualDistance
from trainer.loop.preflight import check_data, check_features, check_room
from trainer.loop.train import train
from trainer.loop.validation import SetValidation
from trainer.networks import TrainedSpec, load_base, spec_of
from trainer.ship.methods import BICUBIC, method_of
from trainer.state import Progress

CLIPS_DIR = "clips"
"""Folder of degraded clips in a run's folder, so that a resumed run sees the same ones."""


def start_run(
    config: TrainConfig,
    data_dir: Path,
    run_dir: Path,
    *,
    base: Path | None = None,
    validation_dir: Path | None = None,
    resume: bool = False,
) -> Progress:
    """Check everything, load the pictures and train; `train` describes the result."""
    config.check_lengths()
    check_data(config, data_dir, validation_dir)
    check_room(run_dir)
    check_features(config)
    spec = spec_of(config)
    base_weights = None if base is None else load_base(base, spec)
    validation = None if validation_dir is None else SetValidation(validation_dir, spec.scale)
    pairs = _pairs(config, data_dir, spec, run_dir)
    return train(
        config,
        pairs,
        run_dir,
        base=base_weights,
        validate=validation.measure if validation else None,
        panel=validation.panel if validation else None,
        resume=resume,
    )


def _pairs(config: TrainConfig, data_dir: Path, spec: TrainedSpec, run_dir: Path) -> list[Pair]:
    """Return the pairs of the folder's pictures and videos, in the order of their names."""
    pictures, videos = find_training_files(data_dir)
    section, data = config.degradation, config.data
    pairs: list[Pair] = []
    if pictures and section is None:
        pairs += load_pairs(data_dir, spec, data)
    elif pictures and section is not None:
        pairs += degraded_pairs(
            data_dir,
            spec,
            section,
            patch_size=data.patch_size,
            seed=config.seed,
            cache_dir=run_dir / CLIPS_DIR,
        )
    pairs += video_pairs(videos, data_dir, spec, section, data, seed=config.seed)
    if not pairs:
        raise UsageError(f"{data_dir}: no video there shows anything to train on")
    return pairs


def compare(
    names: Sequence[str],
    test_sets: Sequence[Path],
    clips: Sequence[Path],
    crfs: Sequence[float | None],
    *,
    num_frames: int = 24,
    restore: float | Literal["auto"] = 0.0,
    detail: float = 0.0,
    precision: Precision = "float32",
    subsampled: bool = False,
    judge: Judge | None = None,
) -> Comparison:
    """Measure every method, bicubic first, on every set and on every clip at every CRF.

    Raises:
        UsageError: there is nothing to measure on, or a name denotes no method.
    """
    if not test_sets and not clips:
        raise UsageError("nothing to measure on: give --test-set or --clip")
    names = [BICUBIC, *(name for name in names if name != BICUBIC)]

    def method(name: str, encoded: bytes | None) -> Method:
        chosen = Restoration(0.0 if restore == "auto" else restore, strength=1.0)
        if restore == "auto" and encoded is not None:
            chosen = automatic_restore(encoded, name)
        return method_of(
            name,
            restore=chosen.restore,
            strength=chosen.strength,
            detail=detail,
            precision=precision,
        )

    def methods(encoded: bytes | None = None) -> list[Method]:
        return [method(name, encoded) for name in names]

    fixed = methods()
    whole = Comparison(fixed, judge_name=PerceptualDistance.name if judge is None else judge.name)
    for folder in test_sets:
        pictures = load_test_set(folder, SCALE, subsampled=subsampled)
        whole.add(folder.name, pictures, SCALE, judge)
    for clip, crf in product(clips, crfs):
        settings = None if crf is None else x264_at(crf)
        frames = load_test_clip(clip, settings, num_frames)
        material = f"{clip.stem}, {'not encoded' if crf is None else f'CRF {crf:g}'}"
        part = Comparison(methods(frames.encoded) if restore == "auto" else fixed)
        part.add(material, frames.pictures, SCALE, judge, is_clip=True)
        whole.rows.extend(part.rows)
    return whole
