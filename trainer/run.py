"""What `srtrain train` and `srtrain evaluate` do between their arguments and the training loop."""

from __future__ import annotations

from pathlib import Path

from srstream.errors import UsageError
from srstream.models.checkpoint import load_weights
from srstream.models.onnx_graph import onnx_metadata
from srstream.models.table import model_spec, weights_path
from trainer.clips import degraded_pairs
from trainer.config import TrainConfig
from trainer.data import Pair, load_pairs
from trainer.evaluate import (
    Score,
    Upscaler,
    bicubic_upscaler,
    load_test_set,
    model_upscaler,
    network_upscaler,
    score,
)
from trainer.export import load_run, openvino_planes
from trainer.networks import TrainedSpec, spec_of
from trainer.preflight import check_data, check_features, check_room
from trainer.state import Progress
from trainer.train import train
from trainer.validation import SetValidation

CLIPS_DIR = "clips"
"""In a run's folder: the degraded clips, so that a resumed run sees the same."""


def start_run(
    config: TrainConfig,
    data_dir: Path,
    run_dir: Path,
    *,
    base: Path | None = None,
    validation_dir: Path | None = None,
    resume: bool = False,
) -> Progress:
    """Checks everything, loads the pictures and trains; see `train` for what comes of it."""
    config.check_lengths()
    check_data(config, data_dir, validation_dir)
    check_room(run_dir)
    check_features(config)
    spec = spec_of(config)
    base_weights = None if base is None else load_weights(base)
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
    if config.degradation is None:
        return load_pairs(
            data_dir,
            spec,
            config.data.patch_size,
            subsampled_chroma=config.data.subsampled_chroma,
        )
    return degraded_pairs(
        data_dir,
        spec,
        config.degradation,
        patch_size=config.data.patch_size,
        seed=config.seed,
        cache_dir=run_dir / CLIPS_DIR,
    )


def measure(model: str, test_sets: list[Path]) -> dict[str, tuple[Score, Score]]:
    """A shipped model, an exported file or a run's averaged weights on each set, and bicubic."""
    upscale, scale = upscaler_of(model)
    scores = {}
    for folder in test_sets:
        pictures = load_test_set(folder, scale)
        baseline = score(bicubic_upscaler(scale), pictures, scale)
        scores[folder.name] = (score(upscale, pictures, scale), baseline)
    return scores


def upscaler_of(model: str) -> tuple[Upscaler, int]:
    """The upscaler that a name, an `.onnx` file or a run's folder stands for, and its scale."""
    if Path(model).is_dir():
        network = load_run(Path(model)).network
        return network_upscaler(network), network.spec.scale
    path = Path(model) if model.endswith(".onnx") else weights_path(model)
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    content = path.read_bytes()
    spec = model_spec(onnx_metadata(content, str(path))["model"])
    return model_upscaler(openvino_planes(content), spec), spec.scale
