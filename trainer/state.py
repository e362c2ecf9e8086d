"""All that a training run needs to go on exactly where it was, in one safetensors file.

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
    """Index of the stage that it is in; their number once all are done."""
    stage_iteration: int = 0
    stage_seconds: float = 0.0
    behind: list[tuple[int, float]] = field(default_factory=list)
    """Iterations and seconds of the stages before it."""

    @classmethod
    def of(cls, metadata: dict[str, Any]) -> Progress:
        """What a checkpoint says; those of runs with one stage say nothing of stages."""
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
        """One iteration more, after so many seconds."""
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
    """After a crash at any moment, `path` holds either the old content or the new."""
    write_whole(path, content, partial=path.with_name(path.name + ".partial"))


def state_tensors(
    modules: Mapping[str, nn.Module], optimisers: Mapping[str, Optimizer]
) -> dict[str, Tensor]:
    """All that a run has learnt, by part and name."""
    tensors = {
        f"{name}.{key}": value
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }
    for name, optimiser in optimisers.items():
        for index, moments in optimiser.state_dict()["state"].items():
            tensors |= {f"{name}.{index}.{key}": value for key, value in moments.items()}
    return tensors


def save_state(
    path: Path,
    tensors: Mapping[str, Tensor],
    sampler_states: Sequence[str],
    progress: Progress,
    header: dict[str, Any],
) -> None:
    """`header` is what a reader wants to know of the run: its config, model and data."""
    tensors = {**tensors, "random.torch": torch.get_rng_state()}
    metadata = {**asdict(progress), "samplers": list(sampler_states), **header}
    contiguous = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    write_atomically(path, save(contiguous, {"state": json.dumps(metadata)}))


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata as `save_state` wrote them; `WeightsError` if it isn't such a file."""
    try:
        content = path.read_bytes()  # once: the run may put a new checkpoint in its place meanwhile
        header_size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + header_size])
        return load(content), json.loads(header["__metadata__"]["state"])
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise WeightsError(f"{path}: not a training checkpoint: {error}") from error


def part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors of one part, without its prefix."""
    prefix = name + "."
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}


def restore(
    tensors: dict[str, Tensor],
    modules: Mapping[str, nn.Module],
    optimisers: Mapping[str, Optimizer],
) -> None:
    """Sets modules, optimizers and PyTorch's random state."""
    for name, module in modules.items():
        module.load_state_dict(part(tensors, name))
    for name, optimiser in optimisers.items():
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in part(tensors, name).items():
            index, moment = key.split(".", 1)
            moments.setdefault(int(index), {})[moment] = value
        groups = optimiser.state_dict()["param_groups"]
        optimiser.load_state_dict({"state": moments, "param_groups": groups})
    torch.set_rng_state(tensors["random.torch"])
