"""Every shipped model in half precision against true float32, in tiles, and against itself."""

from __future__ import annotations

import torch

from gpu.stages.report import Report, has_gpu, run_stage
from srstream.config import EngineConfig, ModelConfig
from srstream.engines.cuda.engine import CudaEngine
from srstream.engines.pytorch import PyTorchEngine
from srstream.models.table import ModelSpec, available_models, model_spec
from tests.support.gpu.parity import (
    agreement,
    num_different_repeats,
    picture,
    through,
    tile_format,
    tiles_against_whole,
)

DEPTHS = (8, 10, 16)
HOST = torch.device("cpu")


def main(report: Report) -> None:
    for name in available_models():
        spec, model = model_spec(name), ModelConfig(name=name)
        engine = CudaEngine(EngineConfig(), model, spec, None if has_gpu() else HOST)
        # The truth shares nothing with the card: it is computed on the CPU.
        truth = PyTorchEngine(EngineConfig(), model, spec, HOST)
        depths(report, engine, truth, spec)
        tiles_and_repeats(report, engine, spec)
        engine.close()


def depths(report: Report, engine: CudaEngine, truth: PyTorchEngine, spec: ModelSpec) -> None:
    shape = (180, 320) if has_gpu() else (40, 48) if is_slow(spec) else (48, 64)
    for bits in DEPTHS:
        tile = tile_format(spec, shape, bits)
        planes = picture(shape, spec.form.num_input_planes, bits)
        found = agreement(through(engine, tile, planes), through(truth, tile, planes), bits)
        report.check(
            f"{spec.name}, {bits} bits",
            found.is_close,
            f"PSNR {found.psnr_db:.1f} dB, worst {found.worst} codes, "
            f"{found.share_beyond_one:.4%} of the samples off by more than one",
        )


def tiles_and_repeats(report: Report, engine: CudaEngine, spec: ModelSpec) -> None:
    if is_slow(spec):
        report.not_shown(f"{spec.name}, tiles")
        report.not_shown(f"{spec.name}, repeats")
        return
    same, wrong = tiles_against_whole(engine, spec, (200, 320) if has_gpu() else (64, 96))
    value = f"{same:.4%} of the samples are as in the whole, {wrong} off by more than one"
    report.check(f"{spec.name}, tiles", wrong == 0, value)
    different = num_different_repeats(engine, spec, (180, 320) if has_gpu() else (16, 24), 100)
    report.check(f"{spec.name}, repeats", different == 0, f"{different} of 100 differ")


def is_slow(spec: ModelSpec) -> bool:
    """Return whether a network takes too long for a CPU."""
    return spec.name == "srgan" and not has_gpu()


if __name__ == "__main__":
    run_stage(main)
