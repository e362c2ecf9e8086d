"""`srtrain train` and `srtrain evaluate`, between argument parsing and the training loop."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Literal

from srstream.config import Precision
from srstream.errors import UsageError
from srstream.models.restore_auto import Restoration
from trainer.config import TrainConfig
from trainer.console import Reporter
from trainer.data.clips import degraded_pairs
from trainer.data.codec import x264_at
from trainer.data.degrade import SCALE
from trainer.data.footage import video_pairs
from trainer.data.pairs import (
    Pair,
    evenly_chosen,
    find_training_files,
    loaded_pairs,
    none_is_large_enough,
)
from trainer.data.picture_cache import CachedPairs, measured_pictures, planes_bytes
from trainer.judge.clipset import automatic_restore, load_test_clip
from trainer.judge.comparison import Comparison, Method
from trainer.judge.evaluate import load_test_set
from trainer.judge.perceptual import Judge, PerceptualDistance
from trainer.loop.preflight import check_data, check_features, check_room
from trainer.loop.train import train
from trainer.loop.validation import SetValidation
from trainer.memory import memory_in_words
from trainer.networks import TrainedSpec, load_base, spec_of
from trainer.ship.methods import BICUBIC, method_of
from trainer.state import Progress

CLIPS_DIR = "clips"
"""Folder of degraded clips in a run's folder, so that a resumed run sees the same ones."""

PLANES_DIR = "planes"
"""In a run's folder: pictures that memory does not hold; it may be deleted at any time."""


def start_run(
    config: TrainConfig,
    data_dir: Path,
    run_dir: Path,
    *,
    base: Path | None = None,
    validation_dir: Path | None = None,
    resume: bool = False,
    until: float | None = None,
    reporter: Reporter | None = None,
) -> Progress:
    """Check everything, load the pictures and train; `train` describes the result."""
    is_first = int(os.environ.get("RANK", 0)) == 0
    reporter = reporter if reporter and is_first else Reporter(is_silent=not is_first)
    config.check_lengths()
    check_data(config, data_dir, validation_dir)
    check_room(run_dir)
    check_features(config)
    spec = spec_of(config)
    base_weights = None if base is None else load_base(base, spec)
    validation = None
    if validation_dir is not None:
        validation = SetValidation(validation_dir, spec.scale, reporter)
    with memory_in_words(advice_of(config)):
        pairs = _pairs(config, data_dir, spec, run_dir, reporter)
        return train(
            config,
            pairs,
            run_dir,
            reporter=reporter,
            base=base_weights,
            validate=validation.measure if validation else None,
            panel=validation.panel if validation else None,
            resume=resume,
            until=until,
        )


def advice_of(config: TrainConfig) -> str:
    """What to do where a run takes more memory than there is."""
    data, run = config.data, config.run
    return (
        f"Batches of {data.batch_size} patches of {data.patch_size}x{data.patch_size} are too much "
        "here: make batch_size or patch_size in [data] smaller, or memory_mib in [run], which is "
        f"{run.memory_mib}"
    )


def _pairs(
    config: TrainConfig, data_dir: Path, spec: TrainedSpec, run_dir: Path, reporter: Reporter
) -> Sequence[Pair] | CachedPairs:
    """Return the pairs of the folder's pictures and videos, in the order of their names."""
    pictures, videos = find_training_files(data_dir)
    section, data, run = config.degradation, config.data, config.run
    pictures = evenly_chosen(pictures, data.num_pictures)
    if videos:
        reporter.say(f"looking through {len(videos)} videos for sharp and varied moments")
    of_videos = list(video_pairs(videos, data_dir, spec, section, data, seed=config.seed))
    num_bytes = 0 if section is not None else planes_bytes(pictures, spec, data)
    if num_bytes > run.memory_mib << 20:
        reading = measured_pictures(pictures, spec, data)
        measured = list(reporter.each("looking at the pictures", reading, len(pictures)))
        return CachedPairs(
            data_dir,
            [found for found in measured if found is not None],
            spec,
            data,
            cache_dir=run_dir / PLANES_DIR,
            max_memory_bytes=run.memory_mib << 20,
            max_disk_bytes=int(run.cache_gib * (1 << 30)),
            others=of_videos,
        )
    pairs: list[Pair] = []
    if section is None:
        reading_all = loaded_pairs(pictures, data_dir, spec, data)
        found = reporter.each("reading the pictures", reading_all, len(pictures))
        pairs += [pair for pair in found if pair is not None]
        if pictures and not pairs:
            raise none_is_large_enough(data_dir, spec, data)
    elif pictures:
        pairs += degraded_pairs(
            data_dir,
            spec,
            section,
            patch_size=data.patch_size,
            seed=config.seed,
            num_pictures=data.num_pictures,
            cache_dir=run_dir / CLIPS_DIR,
            reporter=reporter,
        )
    pairs += of_videos
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
