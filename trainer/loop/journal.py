"""A run's clock, and its records: `log.jsonl` and TensorBoard."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch.utils.tensorboard import SummaryWriter

from trainer.data.planes import Picture
from trainer.state import Progress

LOG_NAME, PANEL_DIR = "log.jsonl", "panels"


CLOCKS: dict[str, Callable[[], float]] = {"wall": time.monotonic, "cpu": time.process_time}


class Clock:
    """Measures the seconds since the last call."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._last = now, now()

    def lap_seconds(self) -> float:
        last, self._last = self._last, self._now()
        return self._last - last


class Timer:
    """A timer that is due once per interval."""

    def __init__(self, interval_seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._interval_seconds = now, interval_seconds
        self._next = now() + interval_seconds

    def is_due(self) -> bool:
        if self._now() < self._next:
            return False
        self._next = self._now() + self._interval_seconds
        return True


class Journal:
    """Writes one JSON line with the progress per event; scalars and panels go to TensorBoard.

    A process other than the run's first writes nothing.
    """

    def __init__(
        self, run_dir: Path, progress: Progress, *, tensorboard: bool, is_silent: bool = False
    ) -> None:
        self._run_dir, self._progress, self._is_silent = run_dir, progress, is_silent
        self._writer = None
        if tensorboard and not is_silent:
            self._writer = SummaryWriter(
                str(run_dir / "tensorboard"), purge_step=progress.iteration
            )

    def write(self, event: str, **fields: Any) -> None:
        if self._is_silent:
            return
        line = {
            "event": event,
            "iteration": self._progress.iteration,
            "elapsed_seconds": round(self._progress.elapsed_seconds, 1),
            **fields,
        }
        with (self._run_dir / LOG_NAME).open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self._writer is not None:
            for name, value in fields.items():
                if isinstance(value, float):
                    self._writer.add_scalar(f"{event}/{name}", value, self._progress.iteration)

    def panel(self, picture_HW3: Picture) -> None:
        """Save a picture of the network's output as a PNG file and for TensorBoard."""
        if self._is_silent:
            return
        folder = self._run_dir / PANEL_DIR
        folder.mkdir(exist_ok=True)
        path = folder / f"{self._progress.iteration:07d}.png"
        cv2.imwrite(str(path), cv2.cvtColor(picture_HW3, cv2.COLOR_RGB2BGR))
        if self._writer is not None:
            self._writer.add_image(
                "panel", np.ascontiguousarray(picture_HW3), self._progress.iteration, None, "HWC"
            )

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def past_validations(run_dir: Path, iteration: int) -> list[dict[str, float]]:
    """Return the `validate` lines of a run's log up to `iteration`; torn lines are ignored."""
    path, found = run_dir / LOG_NAME, []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if line["event"] == "validate" and line["iteration"] <= iteration:
            known = {"event", "iteration", "elapsed_seconds"}
            found.append({name: n for name, n in line.items() if name not in known})
    return found


def duration(seconds: float) -> str:
    """Return a duration in words: `2 h 05 min`, `3 min 20 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
