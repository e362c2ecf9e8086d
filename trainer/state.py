"""All that a training run needs to go on exactly where it was, in one safetensors file.

Tensors are named by part (`network.…`, `average.…`, `optimiser.3.exp_avg`); numbers and random
states are JSON in the header. No pickle is written or read.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer

from srstream.errors import WeightsError

CHECKPOINT_NAME = "checkpoint.safetensors"


@dataclass
class Progress:
    """How far a run has come."""

    iteration: int = 0
    elapsed_seconds: float = 0.0


def write_atomically(path: Path, content: bytes) -> None:
    """After a crash at any moment, `path` holds either the old content or the new."""
    temporary = path.with_name(path.name + ".partial")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def save_state(
    path: Path,
    network: nn.Module,
    average: nn.Module,
    optimiser: Optimizer,
    sampler_state: str,
    progress: Progress,
    header: dict[str, Any],
) -> None:
    """`header` is what a reader wants to know of the run: its config, model and data."""
    tensors = {f"network.{key}": value for key, value in network.state_dict().items()}
    tensors |= {f"average.{key}": value for key, value in average.state_dict().items()}
    for index, moments in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{key}": value for key, value in moments.items()}
    tensors["random.torch"] = torch.get_rng_state()
    metadata = {
        "iteration": progress.iteration,
        "elapsed_seconds": progress.elapsed_seconds,
        "sampler": sampler_state,
        **header,
    }
    contiguous = {key: value.contiguous() for key, value in tensors.items()}
    write_atomically(path, save(contiguous, {"state": json.dumps(metadata)}))


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata as `save_state` wrote them; `WeightsError` if it isn't such a file."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})["state"])
            return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise WeightsError(f"{path}: not a training checkpoint: {error}") from error


def part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors of one part, without its prefix."""
    prefix = name + "."
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}


def restore(
    tensors: dict[str, Tensor], network: nn.Module, average: nn.Module, optimiser: Optimizer
) -> None:
    """Sets the networks, the optimiser and PyTorch's random state."""
    network.load_state_dict(part(tensors, "network"))
    average.load_state_dict(part(tensors, "average"))
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in part(tensors, "optimiser").items():
        index, name = key.split(".", 1)
        moments.setdefault(int(index), {})[name] = value
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": moments, "param_groups": groups})
    torch.set_rng_state(tensors["random.torch"])
