"""Finds what would lack a registered model if it were removed."""

from __future__ import annotations

from srstream.daemon.queue import JobQueue
from srstream.daemon.settings import ServiceSettings
from srstream.errors import UsageError
from srstream.models.table import available_models


def check_removable(name: str, default: str, settings: ServiceSettings, queue: JobQueue) -> None:
    """Check that nothing needs a model any more.

    Args:
        default: the model of jobs that name none.

    Raises:
        UsageError: it ships with srstream, is a default, or an unfinished job uses it.
    """
    if name in available_models():
        raise UsageError(f"{name}: this model ships with srstream and cannot be removed.")
    if name == default:
        raise UsageError(
            f"{name}: this model is the default; choose another one first (models use)."
        )
    named = [("[defaults]", settings.defaults)]
    named += [
        (f"the watch folder {entry.folder}", entry.config)
        for entry in settings.watch
        if entry.config
    ]
    for where, config in named:
        if config.model.name == name:
            raise UsageError(
                f"{name}: {where} in the daemon's configuration names this model; change that, "
                "and reload, before you remove it."
            )
    job = queue.unfinished_with_model(name)
    if job is not None:
        raise UsageError(
            f"{name}: job {job} uses this model; wait for its end, or cancel it, before you "
            "remove it."
        )
