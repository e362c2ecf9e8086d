"""What a stage finds, as lines of JSON that are written at once: one that is killed leaves them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch

NO_GPU = "no GPU"
TREE = Path(__file__).resolve().parents[2]


class Report:
    """The findings of a stage."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.work = path.parent
        """A folder for scratch files; the carried packages lie beside it."""

    def figure(self, what: str, value: str) -> None:
        """Note what was measured; nothing says what it must be."""
        self._write(what, "measured", value)

    def check(self, what: str, is_right: bool, value: str) -> None:
        """Note what was found, and whether it is as it must be."""
        self._write(what, "right" if is_right else "WRONG", value)

    def not_shown(self, what: str, why: str = NO_GPU) -> None:
        """Note what this machine cannot show."""
        self._write(what, "not shown", why)

    def _write(self, what: str, state: str, value: str) -> None:
        print(f"{what}: {value} ({state})", flush=True)
        with self._path.open("a") as file:
            file.write(json.dumps({"what": what, "state": state, "value": value}) + "\n")


def has_gpu() -> bool:
    return torch.cuda.is_available()


def run_stage(stage: Callable[[Report], None]) -> None:
    """Run a stage in the process that `kit.py` starts for it, which names the file of its lines."""
    report = Report(Path(sys.argv[1]))
    stage(report)
    others = imported_from_elsewhere(report.work.parent)
    value = ", ".join(others[:3]) or "only from the tree, what is carried, and this Python"
    report.check("imports", not others, value)


def imported_from_elsewhere(work: Path) -> list[str]:
    """Return the files of modules that are neither carried nor this Python's own."""
    own = {Path(folder).resolve() for folder in (TREE, work, sys.prefix, sys.base_prefix)}
    files = {str(getattr(module, "__file__", None) or "") for module in [*sys.modules.values()]}
    paths = [Path(file).resolve() for file in sorted(files) if file.startswith("/")]
    return [str(path) for path in paths if not any(path.is_relative_to(folder) for folder in own)]
