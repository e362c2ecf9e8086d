"""From a run's checkpoint to the three files that ship: ONNX, safetensors and the model card."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from srstream.engines.openvino import import_openvino
from srstream.errors import UsageError, WeightsError
from srstream.models.checkpoint import Weights, safetensors_bytes
from srstream.models.networks import UpscalingStack, fold, network_tensors, training_network
from srstream.models.onnx_graph import onnx_model
from srstream.models.table import model_spec
from srstream.quality import Plane
from trainer.card import model_card, picture_listing
from trainer.config import TrainConfig
from trainer.evaluate import Score, Upscaler, bicubic_upscaler, load_test_set, score
from trainer.state import CHECKPOINT_NAME, Progress, load_state, part, write_atomically
from trainer.train import fraction_done

PARITY_TOLERANCE = 1e-4
"""Largest difference between PyTorch and OpenVINO, on the scale 0 to 1."""


@dataclass(frozen=True)
class Run:
    """What a run has come to: its averaged weights, folded, and how they were made."""

    config: TrainConfig
    progress: Progress
    pictures: list[str]
    """Paths of the pictures trained on, relative to the data folder."""
    network: UpscalingStack

    def recipe(self) -> str:
        """One line: stage, length and settings, and that it is unfinished if it is."""
        stage, data = self.config.pixel, self.config.data
        done = fraction_done(self.progress, stage)
        state = "" if done >= 1.0 else f" (unfinished: {done:.0%} of the run)"
        return (
            f"pixel loss {stage.loss}, {self.progress.iteration} iterations in "
            f"{self.progress.elapsed_seconds / 3600:.2f} h{state}, {data.batch_size} patches of "
            f"{data.patch_size}x{data.patch_size}, Adam at {stage.learning_rate:g} and one cosine "
            f"cycle, average of the weights at {stage.ema:g}, seed {self.config.seed}"
        )


def load_run(run_dir: Path) -> Run:
    """The run's latest checkpoint."""
    path = run_dir / CHECKPOINT_NAME
    if not path.is_file():
        raise UsageError(f"{path} does not exist; has the run written its first checkpoint?")
    tensors, metadata = load_state(path)
    config = TrainConfig.model_validate(metadata["config"])
    network = training_network(model_spec(config.model))
    network.load_state_dict(part(tensors, "average"))
    progress = Progress(metadata["iteration"], metadata["elapsed_seconds"])
    return Run(config, progress, metadata["pictures"], fold(network))


def export(
    run_dir: Path, data_dir: Path, test_sets: list[Path], output_dir: Path
) -> dict[str, tuple[Score, Score]]:
    """Writes `NAME.onnx`, `.safetensors`, `.md` and `.pictures.txt`.

    Returns what the ONNX file reached on each test set, measured through OpenVINO, beside what
    bicubic reaches. Raises `WeightsError` if OpenVINO and PyTorch disagree.
    """
    run = load_run(run_dir)
    spec = run.network.spec
    weights = Weights(spec, network_tensors(run.network), run.recipe())
    onnx_bytes = onnx_model(weights).SerializeToString(deterministic=True)
    upscale = openvino_upscaler(onnx_bytes)
    check_parity(run.network, upscale)

    scores = {}
    for folder in test_sets:
        pictures = load_test_set(folder, spec.scale)
        baseline = score(bicubic_upscaler(spec.scale), pictures, spec.scale)
        scores[folder.name] = (score(upscale, pictures, spec.scale), baseline)

    output_dir.mkdir(parents=True, exist_ok=True)
    files = {
        f"{spec.name}.onnx": onnx_bytes,
        f"{spec.name}.safetensors": safetensors_bytes(weights),
        f"{spec.name}.pictures.txt": picture_listing(data_dir, run.pictures).encode(),
    }
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    card = model_card(weights, run.config, data_dir, run.pictures, scores, hashes)
    files[f"{spec.name}.md"] = card.encode()
    for name, content in files.items():
        write_atomically(output_dir / name, content)
    return scores


def openvino_upscaler(onnx_bytes: bytes) -> Upscaler:
    """The exported graph in OpenVINO, float32, picture by picture."""
    openvino = import_openvino()
    core = openvino.Core()
    model = core.read_model(onnx_bytes)
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def upscale(lr_HW: Plane) -> Plane:
        lr_11HW = (lr_HW / 255.0).astype(np.float32)[None, None]
        sr_11HW: NDArray[np.float32] = compiled([lr_11HW])[0]
        sr_HW: Plane = sr_11HW[0, 0].astype(np.float64) * 255.0
        return sr_HW

    return upscale


def check_parity(network: UpscalingStack, upscale: Upscaler) -> float:
    """The largest difference between both on a random picture of odd sides, on the scale 0 to 1."""
    lr_HW = np.random.default_rng(0).uniform(0.0, 255.0, (45, 67))
    with torch.no_grad():
        expected = network(torch.from_numpy(lr_HW / 255.0).float()[None, None])[0, 0].numpy()
    difference = float(np.abs(upscale(lr_HW) / 255.0 - expected).max())
    if not difference < PARITY_TOLERANCE:
        raise WeightsError(
            f"the ONNX graph of {network.spec.name} differs from PyTorch by {difference:.2e}, "
            f"more than {PARITY_TOLERANCE:g}; nothing was written"
        )
    return difference
