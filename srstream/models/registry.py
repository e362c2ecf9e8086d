"""The registry of the user's own models: weights found by name, like those that ship.

A registered model consists of three files in the registry's folder, `NAME.onnx`, `NAME.safetensors`
and `NAME.json`. The last one is written last and removed first: without it, the model does not
exist.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from platformdirs import user_data_dir

from srstream.config import ModelConfig
from srstream.errors import UsageError, WeightsError
from srstream.files import write_whole
from srstream.installing import install_command
from srstream.models.table import MODELS, available_models

REGISTRY_VARIABLE = "SRSTREAM_MODELS"
"""Environment variable that names another folder for the registry, such as a service's."""

_OTHER_WEIGHTS = frozenset({".onnx", ".pth", ".pt", ".ckpt", ".bin"})
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


@dataclass(frozen=True)
class RegisteredModel:
    """A model in the registry."""

    name: str
    network: str
    """The name of the network in the model table."""
    recipe: str
    added: str
    """The time at which it was added, ISO 8601 in UTC."""
    sha256: str
    """SHA-256 of the weights file that was added."""

    @property
    def onnx_path(self) -> Path:
        """The graph that an engine runs."""
        return registry_dir() / f"{self.name}.onnx"

    @property
    def weights_path(self) -> Path:
        """The weights file that was added."""
        return registry_dir() / f"{self.name}.safetensors"


def registry_dir() -> Path:
    """Return the registry's folder: `SRSTREAM_MODELS`, or one in the user's data folder."""
    return Path(os.environ.get(REGISTRY_VARIABLE) or Path(user_data_dir("srstream")) / "models")


def add_model(source: Path, name: str | None = None, *, replace: bool = False) -> RegisteredModel:
    """Register a `.safetensors` file of folded weights under a name; None means the file's name.

    Raises:
        UsageError: the name is taken, belongs to a model that ships, or is not allowed, or a
            package is missing.
        WeightsError: the file is missing or damaged, or holds no weights of a known network.
    """
    from srstream.models.checkpoint import load_weights
    from srstream.models.table import ResidualGenerator

    name = source.stem if name is None else name
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be a model's name; use --name with lower-case letters, digits, "
            "dots, dashes and underscores."
        )
    if name in MODELS:
        raise UsageError(f"{name!r} is a model that ships with srstream; use another --name.")
    if find_model(name) is not None and not replace:
        raise UsageError(f"a model {name!r} is registered already; use --replace, or --name.")
    if not source.is_file():
        raise WeightsError(f"{source}: there is no such file")
    check_weights_name(source)
    weights = load_weights(source)
    try:
        from srstream.models.onnx_graph import onnx_model
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{source}: adding a model needs the package onnx, which is not installed; install it "
            f"with: {install_command('train', 'onnx')}"
        ) from error
    content = source.read_bytes()
    half = isinstance(weights.spec.network, ResidualGenerator)
    graph = onnx_model(weights, half=half).SerializeToString(deterministic=True)
    added = datetime.now(UTC).isoformat(timespec="seconds")
    digest = hashlib.sha256(content).hexdigest()
    model = RegisteredModel(name, weights.spec.name, weights.recipe, added, digest)
    folder = registry_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(model.weights_path, content, 0o644)
        write_whole(model.onnx_path, graph, 0o644)
        about = json.dumps(asdict(model), indent=1).encode()
        write_whole(folder / f"{name}.json", about, 0o644)
    except OSError as error:
        raise UsageError(f"{folder}: the registry cannot be written ({error.strerror})") from error
    return model


def check_weights_name(source: Path) -> None:
    """Check that a file is not named as one of weights that cannot be added.

    Raises:
        WeightsError: it is.
    """
    if source.suffix.lower() in _OTHER_WEIGHTS:
        raise WeightsError(
            f"{source}: a model is added from a .safetensors file, as `srtrain finetune` writes "
            f"it; {source.suffix} is not read."
        )


def registered_models() -> list[RegisteredModel]:
    """Return all registered models by name, without those that cannot be read."""
    found = (find_model(path.stem) for path in sorted(registry_dir().glob("*.json")))
    return [model for model in found if model is not None]


def find_model(name: str) -> RegisteredModel | None:
    """Return the registered model of this name, or None."""
    if not _NAME.fullmatch(name):
        return None
    try:
        stated = json.loads((registry_dir() / f"{name}.json").read_text())
        model = RegisteredModel(**stated)
    except (OSError, ValueError, TypeError):
        return None
    known = model.network in MODELS and model.name == name
    return model if known and model.onnx_path.is_file() else None


def remove_model(name: str) -> RegisteredModel:
    """Remove a model and delete its files.

    Raises:
        UsageError: no model of this name is registered, or a file cannot be deleted.
    """
    model = find_model(name)
    if model is None:
        raise UsageError(f"no model {name!r} is registered; {_what_there_is()}")
    try:
        for suffix in (".json", ".onnx", ".safetensors", ".int8.json"):
            (registry_dir() / f"{name}{suffix}").unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(
            f"{error.filename}: this file cannot be deleted ({error.strerror})."
        ) from error
    return model


def resolved(model: ModelConfig) -> ModelConfig:
    """Replace a registered name in the settings with its network and its weights.

    Raises:
        UsageError: there are no weights of this name, or the settings name other weights too.
    """
    registered = find_model(model.name)
    if registered is None:
        if model.name in available_models() or (model.weights and model.name in MODELS):
            return model
        raise UsageError(f"--model {model.name}: there are no such weights; {_what_there_is()}")
    if model.weights is not None:
        raise UsageError(f"--model {model.name}: has weights of its own; leave the others out.")
    weights = str(registered.onnx_path)
    return model.model_copy(update={"name": registered.network, "weights": weights})


def _what_there_is() -> str:
    names = [*available_models(), *(model.name for model in registered_models())]
    return f"there are: {', '.join(names)}."
