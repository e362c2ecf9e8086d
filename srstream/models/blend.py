"""The two knobs, which decide what weight files an engine mixes, and in what shares.

All sets of a model's weights have the same shapes, so the weighted mean of their tensors is a
network between them (Wang et al., "Deep Network Interpolation", CVPR 2019). It is computed once,
when the weights are loaded.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from srstream.config import ModelConfig
from srstream.errors import UsageError, WeightsError
from srstream.models.onnx_file import check_self_contained
from srstream.models.table import ModelSpec, WeightSet, available_sets, weights_path


@dataclass(frozen=True)
class WeightFile:
    """One ONNX file and its share of a blend."""

    path: Path
    content: bytes
    share: float


@dataclass(frozen=True)
class Blend:
    """The weight files that make up a network. Their shares add up to one."""

    files: tuple[WeightFile, ...]

    @property
    def path(self) -> Path:
        """Return the path of the first file, which names the weights."""
        return self.files[0].path

    @property
    def mixes_sets(self) -> bool:
        """Whether a knob is turned, so that several sets are mixed."""
        return len(self.files) > 1

    @property
    def sha256(self) -> str:
        """SHA-256 of everything that determines the weights; of a single file, its own."""
        first, *others = self.files
        if not others:
            return hashlib.sha256(first.content).hexdigest()
        parts = [f"{hashlib.sha256(f.content).hexdigest()} {f.share!r}" for f in self.files]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def blend_of(model: ModelConfig, spec: ModelSpec) -> Blend:
    """Read the files for the knobs' values. An unresolved `auto` counts as 0.

    Raises:
        UsageError: a knob is turned, but the model has no such weights, or the weights are the
            user's own.
        WeightsError: a file is missing, cannot be read, or names further files for its weights.
    """
    turned = check_knobs(model, spec)
    if model.weights is not None:
        return Blend((_read(Path(model.weights), 1.0),))
    files = [_read(weights_path(spec.name), 1.0 - sum(turned.values()))]
    files += [
        _read(weights_path(spec.name, weight_set=weight_set), value)
        for weight_set, value in turned.items()
    ]
    return Blend(tuple(files))


def check_knobs(model: ModelConfig, spec: ModelSpec) -> dict[WeightSet, float]:
    """Return the knobs that are turned, by the sets of weights that they mix in.

    Raises:
        UsageError: the model has no such weights, or the weights are the user's own.
    """
    restore = 0.0 if model.restore == "auto" else model.restore
    knobs: dict[WeightSet, float] = {"restore": restore, "crisp": model.detail}
    turned = {weight_set: value for weight_set, value in knobs.items() if value}
    if model.weights is not None and turned:
        raise UsageError(
            "--restore and --detail mix the weights that ship with a model; they cannot be "
            f"turned with other weights ({model.weights})."
        )
    for weight_set in turned:
        if weight_set not in available_sets(spec.name):
            option = "--restore" if weight_set == "restore" else "--detail"
            raise UsageError(
                f"{option} {turned[weight_set]:g}: model {spec.name!r} has no {weight_set} "
                f"weights, only {', '.join(available_sets(spec.name))}."
            )
    return turned


def _read(path: Path, share: float) -> WeightFile:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror})") from error
    check_self_contained(content, path)
    return WeightFile(path, content, share)
