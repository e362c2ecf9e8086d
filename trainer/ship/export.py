"""Turns a run's checkpoint into the files that ship: ONNX, safetensors, card and listing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from srstream.config import Precision
from srstream.engines.openvino.engine import HINTS
from srstream.engines.openvino.int8 import SUFFIX, ranges_json
from srstream.engines.openvino.library import openvino_core
from srstream.errors import UsageError, WeightsError
from srstream.models.checkpoint import Weights, load_weights, safetensors_bytes
from srstream.models.networks import (
    Generator,
    Network,
    UpscalingStack,
    network_from_weights,
    network_tensors,
)
from srstream.models.onnx_graph import onnx_model
from srstream.models.table import ModelSpec, WeightSet, weights_stem
from trainer.config import TrainConfig
from trainer.data.codec import x264_at
from trainer.data.degrade import SCALE
from trainer.data.pairs import find_pictures
from trainer.judge.clipset import load_test_clip
from trainer.judge.evaluate import (
    PlaneFunction,
    Score,
    Upscaler,
    bicubic_upscaler,
    load_test_set,
    model_upscaler,
    score,
)
from trainer.loop.recipe import recipe
from trainer.networks import TrainedNetwork, folded, saved_network, spec_of
from trainer.ship.calibrate import activation_ranges, sample_pictures
from trainer.ship.card import model_card, picture_listing
from trainer.state import CHECKPOINT_NAME, Progress, load_state, part, write_atomically

PARITY_TOLERANCE = 1e-4
"""Largest allowed difference between PyTorch and OpenVINO, on a scale of 0 to 1."""


CLIP_CRFS = (18.0, 24.0, 30.0, 36.0)

CLIP_FRAMES = 16
"""Frames encoded together, of which four are measured."""


@dataclass(frozen=True)
class Run:
    """The state of a run: its averaged weights, folded, and how they were made."""

    config: TrainConfig
    progress: Progress
    pictures: list[str]
    """Names of the training files: paths relative to the data folder."""
    base: str | None
    """The recipe of the weights that it started from."""
    network: TrainedNetwork

    def recipe(self) -> str:
        return recipe(self.config, self.progress, self.base)


def load_run(run_dir: Path) -> Run:
    """Load the run's latest checkpoint; `UsageError` if there is none."""
    path = run_dir / CHECKPOINT_NAME
    if not path.is_file():
        raise UsageError(f"{path} does not exist; has the run written its first checkpoint?")
    tensors, metadata = load_state(path)
    config = TrainConfig.model_validate(metadata["config"])
    average = part(tensors, "average")
    network = saved_network(spec_of(config), config.network, average)
    network.load_state_dict(average)
    base = metadata.get("base")
    return Run(config, Progress.of(metadata), metadata["pictures"], base, folded(network))


def export(
    run_dir: Path,
    data_dir: Path,
    test_sets: list[Path],
    output_dir: Path,
    weight_set: WeightSet = "faithful",
    *,
    clips: Sequence[Path] = (),
    mix: Path | None = None,
    mix_share: float = 0.0,
    note: str = "",
) -> dict[str, tuple[Score, Score]]:
    """Write `STEM.onnx`, `.safetensors`, `.md` and `.pictures.txt`.

    Returns the scores of the ONNX file on each test set, and on each clip at each of `CLIP_CRFS`,
    measured through OpenVINO, next to those of bicubic. `mix_share` of the written weights comes
    from `mix`, the weights of a run that this one started from or that shares its starting point
    (Wang et al., "Deep Network Interpolation", CVPR 2019). `note` goes into the card.

    Raises:
        WeightsError: OpenVINO and PyTorch disagree, or `mix` belongs to another network.
    """
    run = load_run(run_dir)
    weights = _weights_of(run, run_dir, mix, mix_share)
    spec = weights.spec
    half = isinstance(run.network, Generator)
    onnx_bytes = onnx_model(weights, half=half).SerializeToString(deterministic=True)
    network = network_from_weights(weights)
    check_parity(network, openvino_planes(onnx_bytes))

    scores = _scores(model_upscaler(openvino_planes(onnx_bytes), spec), test_sets, clips)
    output_dir.mkdir(parents=True, exist_ok=True)
    stem = weights_stem(spec.name, weight_set)
    files = {
        f"{stem}.onnx": onnx_bytes,
        f"{stem}.safetensors": safetensors_bytes(weights, half=half),
        f"{stem}.pictures.txt": picture_listing(data_dir, run.pictures).encode(),
    }
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    card = model_card(weights, weight_set, run.config, data_dir, run.pictures, scores, hashes, note)
    files[f"{stem}.md"] = card.encode()
    # Bound to the graph by its hash; `srtrain calibrate` may rewrite it, so no card lists its hash.
    if isinstance(network, UpscalingStack):
        seen = sample_pictures(find_pictures(data_dir))
        ranges = activation_ranges(network, seen)
        files[f"{stem}{SUFFIX}"] = ranges_json(onnx_bytes, ranges, len(seen)).encode()
    for name, content in files.items():
        write_atomically(output_dir / name, content)
    return scores


def _weights_of(run: Run, run_dir: Path, mix: Path | None, mix_share: float) -> Weights:
    """Return the averaged weights of a run that an engine can run, rounded as they are written."""
    if deviations := run.config.network.deviations():
        raise UsageError(
            f"{run_dir}: a network with [network] {', '.join(deviations)} is for comparisons and "
            f"isn't {run.config.model!r}; a run may go on from its weights with --base"
        )
    if not isinstance(run.network, UpscalingStack | Generator):
        raise UsageError(f"{run_dir}: {run.config.model} is a baseline, which no engine runs")
    spec = run.network.spec
    weights = Weights(spec, network_tensors(run.network), run.recipe())
    if mix is not None:
        weights = mixed(weights, load_weights(mix, spec), mix_share)
    if isinstance(run.network, Generator):  # 1.5 million weights: 3 MB instead of 6
        rounded = {n: t.astype(np.float16).astype(np.float32) for n, t in weights.tensors.items()}
        weights = replace(weights, tensors=rounded)
    return weights


def _scores(
    upscale: Upscaler, test_sets: list[Path], clips: Sequence[Path]
) -> dict[str, tuple[Score, Score]]:
    """Score a network on test sets, and on clips at each of `CLIP_CRFS`, next to bicubic."""
    bicubic = bicubic_upscaler(SCALE)
    scores = {}
    for folder in test_sets:
        pictures = load_test_set(folder, SCALE)
        scores[folder.name] = (
            score(upscale, pictures, SCALE), score(bicubic, pictures, SCALE),
        )  # fmt: skip
    for clip, crf in product(clips, CLIP_CRFS):
        frames = load_test_clip(clip, x264_at(crf), CLIP_FRAMES).pictures[:: CLIP_FRAMES // 4]
        name = f"{clip.stem}, CRF {crf:g}"
        scores[name] = (score(upscale, frames, SCALE), score(bicubic, frames, SCALE))
    return scores


def mixed(weights: Weights, others: Weights, share: float) -> Weights:
    """Return the mean of two sets of weights of one network, with `share` of the others."""
    tensors = {
        name: ((1.0 - share) * tensor + share * others.tensors[name]).astype(np.float32)
        for name, tensor in weights.tensors.items()
    }
    recipe = f"{share:g} of ({others.recipe}) and {1.0 - share:g} of ({weights.recipe})"
    return Weights(weights.spec, tensors, recipe)


def openvino_planes(onnx_bytes: bytes) -> PlaneFunction:
    """Run the exported graph in OpenVINO, float32, one picture at a time."""
    core = openvino_core()
    return compiled_planes(core, core.read_model(onnx_bytes))


def compiled_planes(core: Any, model: Any, precision: Precision = "float32") -> PlaneFunction:
    """Return an OpenVINO network as a function; for int8 it must be quantized."""
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": HINTS[precision]})

    def run(lr_1CHW: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        results = compiled([lr_1CHW])
        return [np.array(results[index]) for index in range(len(compiled.outputs))]

    return run


def check_parity(network: Network, run: PlaneFunction) -> float:
    """Return the largest difference between both on a random odd-sized picture, scale 0 to 1."""
    spec: ModelSpec = network.spec
    shape = (1, spec.form.num_input_planes, 45, 67)
    lr_1CHW = np.random.default_rng(0).random(shape, np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(lr_1CHW))
    difference = max(
        float(np.abs(made - true.numpy()).max())
        for made, true in zip(run(lr_1CHW), expected, strict=True)
    )
    if not difference < PARITY_TOLERANCE:
        raise WeightsError(
            f"the ONNX graph of {spec.name} differs from PyTorch by {difference:.2e}, "
            f"more than {PARITY_TOLERANCE:g}; nothing was written"
        )
    return difference
