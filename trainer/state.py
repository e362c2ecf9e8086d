"""The state of a training run in one safetensors file, so that it resumes exactly where it was.

Tensors are named by part (`network.…`, `average.…`, `optimiser.3.exp_avg`); numbers and random
states are JSON in the header. No pickle is written or read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.optim import Optimizer

from srstream.errors import WeightsError
from srstream.files import write_whole

CHECKPOINT_NAME = "checkpoint.safetensors"


@dataclass
class Progress:
    """How far a run has come."""

    iteration: int = 0
    elapsed_seconds: float = 0.0
    stage: int = 0
    """Index of the current stage; the number of stages once all are done."""
    stage_iteration: int = 0
    stage_seconds: float = 0.0
    behind: list[tuple[int, float]] = field(default_factory=list)
    """Iterations and seconds of the stages before it."""

    @classmethod
    def of(cls, metadata: dict[str, Any]) -> Progress:
        """Return the progress in a checkpoint; those of runs with one stage record no stages."""
        iteration, seconds = metadata["iteration"], metadata["elapsed_seconds"]
        return cls(
            iteration,
            seconds,
            metadata.get("stage", 0),
            metadata.get("stage_iteration", iteration),
            metadata.get("stage_seconds", seconds),
            [(count, length) for count, length in metadata.get("behind", [])],
        )

    def advance(self, seconds: float) -> None:
        """Count one more iteration, which took so many seconds."""
        self.iteration += 1
        self.elapsed_seconds += seconds
        self.stage_iteration += 1
        self.stage_seconds += seconds

    def next_stage(self) -> None:
        self.behind.append((self.stage_iteration, self.stage_seconds))
        self.stage += 1
        self.stage_iteration = 0
        self.stage_seconds = 0.0


def write_atomically(path: Path, content: bytes) -> None:
    """Write so that after a crash at any moment `path` holds either the old or the new content."""
    write_whole(path, content, partial=path.with_name(path.name + ".partial"))


def state_tensors(
    modules: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer]
) -> dict[str, Tensor]:
    """Return everything that a run has learned, by part and name."""
    tensors = {
        f"{name}.{key}": value
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }
    for name, optimizer in optimizers.items():
        for index, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"{name}.{index}.{key}": value for key, value in moments.items()}
    return tensors


def save_state(
    path: Path,
    tensors: Mapping[str, Tensor],
    sampler_states: Sequence[str],
    progress: Progress,
    header: dict[str, Any],
) -> None:
    """Write a checkpoint; `header` describes the run to readers: its config, model and data."""
    tensors = {**tensors, "random.torch": torch.get_rng_state()}
    metadata = {**asdict(progress), "samplers": list(sampler_states), **header}
    write_atomically(path, state_bytes(tensors, metadata))


def state_bytes(tensors: Mapping[str, Tensor], metadata: dict[str, Any]) -> bytes:
    """Return the contents of a checkpoint, as `load_state` reads them."""
    contiguous = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    return save(contiguous, {"state": json.dumps(metadata)})


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and metadata as `save_state` wrote them; `WeightsError` for other files."""
    try:
        content = path.read_bytes()  # once: the run may replace its checkpoint meanwhile
        header_size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + header_size])
        return load(content), json.loads(header["__metadata__"]["state"])
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise WeightsError(f"{path}: not a training checkpoint: {error}") from error


def part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return the tensors of one part, without its prefix."""
    prefix = name + "."
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}


def restore(
    tensors: dict[str, Tensor],
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, Optimizer],
) -> None:
    """Restore the modules, the optimizers and PyTorch's random state."""
    for name, module in modules.items():
        module.load_state_dict(part(tensors, name))
    for name, optimizer in optimizers.items():
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in part(tensors, name).items():
            index, moment = key.split(".", 1)
            moments.setdefault(int(index), {})[moment] = value
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": moments, "param_groups": groups})
        for parameter, state in optimizer.state.items():
            for name, value in state.items():
                if value.shape == parameter.shape and value.stride() != parameter.stride():
                    state[name] = torch.empty_like(parameter).copy_(value)  # for fused kernels
    torch.set_rng_state(tensors["random.torch"])
