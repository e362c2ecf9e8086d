"""What `srstream models list` and `show` print."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from srstream.errors import UsageError
from srstream.models.checkpoint import load_weights
from srstream.models.registry import RegisteredModel, registered_models
from srstream.models.table import (
    MODELS,
    ModelSpec,
    available_models,
    available_sets,
    weights_path,
    weights_stem,
)
from srstream.terminal import rendered

Entry = dict[str, Any]
"""One model, as `--json` prints it."""

_USES = {
    "fast": "video; the default",
    "balanced": "video; sharper, slower",
    "srgan": "pictures; very slow on video",
}
_WIDTH = 110


def model_entries() -> list[Entry]:
    """Return the models that ship, in the table's order, then the user's own."""
    shipped = [_shipped(MODELS[name]) for name in available_models()]
    return shipped + [_registered(model) for model in registered_models()]


def model_entry(name: str) -> Entry:
    """One of them, or `UsageError` naming all."""
    for entry in model_entries():
        if entry["name"] == name:
            return entry
    names = ", ".join(entry["name"] for entry in model_entries())
    raise UsageError(f"there is no model {name!r}; there are: {names}.")


def as_table(entries: list[Entry]) -> str:
    """A line each."""
    table = Table("name", "for", "network", "sets of weights", box=None)
    for entry in entries:
        use = _USES.get(entry["name"], "your own")
        table.add_row(entry["name"], use, entry["network"], ", ".join(entry["sets"]))
    return rendered(table, width=_WIDTH)


def describe(entry: Entry) -> str:
    """All of it, and where the card of a model that ships lies."""
    table = Table(box=None, show_header=False)
    for key, value in entry.items():
        shown = ", ".join(value) if isinstance(value, list) else str(value)
        table.add_row(key.replace("_", " ").replace("colour", "color"), shown)
    return rendered(table, width=_WIDTH)


def _shipped(spec: ModelSpec) -> Entry:
    recipe = load_weights(weights_path(spec.name, ".safetensors")).recipe
    sets = available_sets(spec.name)
    card = weights_path(spec.name).with_name(f"{weights_stem(spec.name)}.md")
    return _entry(spec.name, spec, list(sets), recipe) | {"card": str(card)}


def _registered(model: RegisteredModel) -> Entry:
    entry = _entry(model.name, MODELS[model.network], ["own"], model.recipe)
    return entry | {
        "added": model.added, "weights": str(model.weights_path), "sha256": model.sha256,
    }  # fmt: skip


def _entry(name: str, spec: ModelSpec, sets: list[Any], recipe: str) -> Entry:
    return {
        "name": name, "network": spec.name, "colour": spec.color_form, "scale": spec.scale,
        "kmac_per_pixel": spec.kmac_per_pixel, "sets": sets, "recipe": recipe,
    }  # fmt: skip
