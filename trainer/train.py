"""A training run, read downward: setup, loop, checkpoint."""

import copy
import json
import logging
import math
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from srstream.errors import SrstreamError, UsageError
from srstream.models.networks import fold, training_network
from srstream.models.table import model_spec
from trainer.config import PixelSection, TrainConfig
from trainer.data import PatchSampler, load_pairs
from trainer.evaluate import load_test_set, network_upscaler, score
from trainer.state import CHECKPOINT_NAME, Progress, load_state, restore, save_state

log = logging.getLogger(__name__)


def train(
    config: TrainConfig,
    data_dir: Path,
    run_dir: Path,
    *,
    validation_dir: Path | None = None,
    resume: bool = False,
) -> Progress:
    """Runs the pixel-loss stage to its end, or until SIGTERM or SIGINT, and leaves a checkpoint.

    `run_dir` receives `checkpoint.safetensors` and `log.jsonl`. With `resume` the run goes on
    from the checkpoint there, if there is one; without, a checkpoint there is a `UsageError`.
    """
    # --- setup -----------------------------------------------------------------------------
    checkpoint_path = run_dir / CHECKPOINT_NAME
    resumed = None
    if checkpoint_path.exists():
        if not resume:
            raise UsageError(f"{checkpoint_path} exists; use --resume to go on from it")
        resumed = load_state(checkpoint_path)
        config = resumed_config(config, TrainConfig.model_validate(resumed[1]["config"]))
    progress, stage, spec = Progress(), config.pixel, model_spec(config.model)
    fraction_done(progress, stage)  # without a length, say so before the pictures are read
    torch.set_num_threads(config.run.num_threads)
    torch.manual_seed(config.seed)

    pairs = load_pairs(data_dir, spec.scale, config.data.patch_size)
    pictures = [pair.path.relative_to(data_dir).as_posix() for pair in pairs]
    sampler = PatchSampler(
        pairs,
        scale=spec.scale,
        patch_size=config.data.patch_size,
        batch_size=config.data.batch_size,
        seed=config.seed,
    )
    validation_set = load_test_set(validation_dir, spec.scale) if validation_dir else []
    network = training_network(spec)
    average = copy.deepcopy(network).requires_grad_(False)
    optimiser = torch.optim.Adam(
        network.parameters(), lr=stage.learning_rate, betas=(stage.beta1, stage.beta2)
    )
    if resumed:
        tensors, metadata = resumed
        if metadata["pictures"] != pictures:
            raise UsageError(f"{data_dir} no longer holds the pictures that the run began with")
        restore(tensors, network, average, optimiser)
        sampler.set_state(metadata["sampler"])
        progress = Progress(metadata["iteration"], metadata["elapsed_seconds"])

    run_dir.mkdir(parents=True, exist_ok=True)
    journal = Journal(run_dir / "log.jsonl", progress)
    clock = Clock(progress.elapsed_seconds)
    checkpoint_timer = Timer(config.run.checkpoint_minutes * 60)
    validation_timer = Timer(config.run.validate_minutes * 60)
    log_timer = Timer(config.run.log_seconds)

    def checkpoint() -> None:
        header = {"config": config.model_dump(mode="json"), "pictures": pictures}
        save_state(checkpoint_path, network, average, optimiser, sampler.state(), progress, header)

    def validate() -> None:
        reached = score(network_upscaler(fold(average)), validation_set, spec.scale)
        journal.write("validate", psnr_db=round(reached.psnr_db, 3), ssim=round(reached.ssim, 4))

    # --- loop ------------------------------------------------------------------------------
    journal.write("start", model=spec.name, num_pictures=len(pairs))
    loss_sum, num_summed = 0.0, 0
    with StopFlag() as should_stop:
        while (done := fraction_done(progress, stage)) < 1.0 and not should_stop:
            rate = learning_rate(done, stage)
            loss = step(network, optimiser, *sampler.next_batch(), rate, stage.clip_norm)
            if not math.isfinite(loss):
                raise SrstreamError(
                    f"iteration {progress.iteration}: the loss is {loss}; the last checkpoint is "
                    "kept. Start again with a lower learning_rate or clip_norm."
                )
            update_average(average, network, decay=stage.ema, iteration=progress.iteration)
            progress.iteration += 1
            progress.elapsed_seconds = clock.elapsed_seconds()
            loss_sum, num_summed = loss_sum + loss, num_summed + 1

            # --- checkpoint ---------------------------------------------------------------
            if log_timer.is_due():
                journal.write("train", loss=round(loss_sum / num_summed, 6), learning_rate=rate)
                loss_sum, num_summed = 0.0, 0
            if validation_set and validation_timer.is_due():
                validate()
            every = config.run.checkpoint_iterations
            if checkpoint_timer.is_due() or (every and progress.iteration % every == 0):
                checkpoint()

    checkpoint()
    if validation_set:
        validate()
    journal.write("finish" if fraction_done(progress, stage) >= 1.0 else "stop")
    return progress


def resumed_config(config: TrainConfig, begun_with: TrainConfig) -> TrainConfig:
    """The config that a run goes on with: only its length and its housekeeping may be new.

    A length that isn't given is the one that the run began with.
    """
    length = config.pixel.model_dump(include={"hours", "iterations"})
    if set(length.values()) == {None}:
        length = begun_with.pixel.model_dump(include={"hours", "iterations"})
    pixel = begun_with.pixel.model_copy(update=length)
    allowed = begun_with.model_copy(update={"pixel": pixel, "run": config.run})
    given = config.model_copy(update={"pixel": config.pixel.model_copy(update=length)})
    if given != allowed:
        raise UsageError(
            "the run began with another model, seed, [data] or [pixel]; "
            "go on with its own config, or start a new run in another folder"
        )
    return allowed


def step(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    lr_B1HW: Tensor,
    hr_B1HW: Tensor,
    rate: float,
    clip_norm: float,
) -> float:
    """One iteration at a learning rate; the loss before it."""
    for group in optimiser.param_groups:
        group["lr"] = rate
    sr_B1HW = network(lr_B1HW.contiguous(memory_format=torch.channels_last))
    loss = functional.l1_loss(sr_B1HW, hr_B1HW)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), clip_norm)
    optimiser.step()
    return float(loss.detach())


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, *, decay: float, iteration: int) -> None:
    """Exponential moving average of the weights; short at first, so the start is forgotten."""
    decay = min(decay, (1 + iteration) / (10 + iteration))
    for mean, value in zip(average.parameters(), network.parameters(), strict=True):
        mean.lerp_(value, 1.0 - decay)


def fraction_done(progress: Progress, stage: PixelSection) -> float:
    """0 at the start of the run, 1 and more at its end."""
    if stage.iterations is not None:
        return progress.iteration / stage.iterations
    if stage.hours is not None:
        return progress.elapsed_seconds / (stage.hours * 3600)
    raise UsageError("how long to train? Use --hours, or hours or iterations in [pixel]")


def learning_rate(done: float, stage: PixelSection) -> float:
    """One cosine cycle after a linear warm-up (Loshchilov & Hutter, SGDR, ICLR 2017)."""
    if done < stage.warmup:
        return stage.learning_rate * max(done / stage.warmup, 1e-3)
    along = min((done - stage.warmup) / (1.0 - stage.warmup), 1.0)
    swing = 0.5 * (1.0 + math.cos(math.pi * along))
    return stage.final_learning_rate + (stage.learning_rate - stage.final_learning_rate) * swing


class StopFlag:
    """True once SIGTERM or SIGINT has come, so that the loop ends after its iteration."""

    def __init__(self) -> None:
        self._stopped = False

    def __enter__(self) -> Self:
        self._previous = {
            number: signal.signal(number, self._handle)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, _signal: int, _frame: FrameType | None) -> None:
        self._stopped = True

    def __bool__(self) -> bool:
        return self._stopped


class Clock:
    """Seconds of training, counted on from where the checkpoint left them."""

    def __init__(self, elapsed_seconds: float) -> None:
        self._zero = time.monotonic() - elapsed_seconds

    def elapsed_seconds(self) -> float:
        return time.monotonic() - self._zero


class Timer:
    """Due once in every interval."""

    def __init__(self, interval_seconds: float) -> None:
        self._interval_seconds = interval_seconds
        self._next = time.monotonic() + interval_seconds

    def is_due(self) -> bool:
        if time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + self._interval_seconds
        return True


@dataclass
class Journal:
    """`log.jsonl`: one JSON object per line, with the run's progress in each."""

    path: Path
    progress: Progress

    def write(self, event: str, **fields: Any) -> None:
        line = {
            "event": event,
            "iteration": self.progress.iteration,
            "elapsed_seconds": round(self.progress.elapsed_seconds, 1),
            **fields,
        }
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        log.info("%s", line)
