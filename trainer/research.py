"""Imports `research/`, which lies next to `trainer/` in the repository but not in the wheel."""

from __future__ import annotations

import importlib
from types import ModuleType

from srstream.errors import UsageError

BASELINES = ("srcnn", "vdsr")
"""The networks of `research/baselines.py`, used for comparison; no engine runs them."""


def research_module(name: str, purpose: str) -> ModuleType:
    """Import `research.NAME`, which `purpose` needs.

    Raises:
        UsageError: the program was installed without `research/`.
    """
    try:
        return importlib.import_module(f"research.{name}")
    except ModuleNotFoundError as error:
        if error.name not in ("research", f"research.{name}"):
            raise
        raise UsageError(
            f"{purpose} needs research/{name}.py, which is not installed: "
            "run `python -m trainer.cli` in a clone of the repository"
        ) from None
