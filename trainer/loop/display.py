"""What a person is told of a run while it goes on: sentences, and the words beside its bar."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from trainer.config import StageSection, TrainConfig
from trainer.console import Reporter
from trainer.loop.journal import LOG_NAME, duration
from trainer.loop.recipe import fraction_done
from trainer.state import CHECKPOINT_NAME, Progress

Measures = Mapping[str, float]

SHOWN_MEASURES = {"psnr_db": "PSNR {:.2f} dB", "ssim": "SSIM {:.4f}"}


class Display:
    """Words for what a run does; a silent reporter shows none of them."""

    def __init__(self, reporter: Reporter, config: TrainConfig, run_dir: Path) -> None:
        self._reporter, self._config, self._run_dir = reporter, config, run_dir

    def begin(self, num_pictures: int, progress: Progress, device: str) -> None:
        data, run_dir = self._config.data, self._run_dir
        patches = f"{data.batch_size} patch{'es' if data.batch_size > 1 else ''}"
        lengths = " and ".join(length_of(section) for section in self._config.stages)
        self._reporter.say(
            f"training {self._config.model} for {lengths} on {device}: {num_pictures:,} pictures, "
            f"batches of {patches} of {data.patch_size}x{data.patch_size}; the log "
            f"is {run_dir / LOG_NAME}"
        )
        if progress.iteration:
            self._reporter.say(
                f"going on from iteration {progress.iteration:,}, after "
                f"{duration(progress.elapsed_seconds)} of training"
            )

    def words(self, progress: Progress, section: StageSection, losses: Measures) -> str:
        """What stands beside the bar: iteration, losses and the time left of the stage."""
        count = f"iteration {progress.iteration:,}"
        if len(self._config.stages) > 1:
            count = f"stage {progress.stage + 1} of {len(self._config.stages)}, {count}"
        shown = ", ".join(f"{name} {loss:.4g}" for name, loss in losses.items())
        return f"{count}, {time_left(progress, section)} left, loss: {shown}"

    def validated(self, progress: Progress, measures: Measures, *, is_best: bool) -> None:
        figures = ", ".join(
            words.format(measures[name])
            for name, words in SHOWN_MEASURES.items()
            if name in measures
        )
        best = ", the best so far" if is_best else ""
        self._reporter.say(f"validation at iteration {progress.iteration:,}: {figures}{best}")

    def ended(self, progress: Progress, *, is_finished: bool) -> None:
        how = "finished" if is_finished else "stopped"
        after = f"{how} at iteration {progress.iteration:,} after " + duration(
            progress.elapsed_seconds
        )
        path = self._run_dir / CHECKPOINT_NAME
        rest = "" if is_finished else "; the same command with --resume goes on from it"
        self._reporter.say(f"{after}; the checkpoint is {path}{rest}")


def length_of(section: StageSection) -> str:
    """A stage's length in words."""
    if section.hours is not None:
        return duration(section.hours * 3600)
    return f"{section.iterations:,} iterations"


def time_left(progress: Progress, section: StageSection) -> str:
    """Return the time left of the stage, at its pace so far."""
    done = max(fraction_done(progress, section), 1e-9)
    return duration(progress.stage_seconds * max(1.0 - done, 0.0) / done)
