"""A training run, from top to bottom: setup, loop, checkpoint."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypeVar

import torch
import torch.distributed
from lightning_fabric import Fabric

from srstream.errors import UsageError
from srstream.models.checkpoint import Weights
from trainer.config import RunSection, StageSection, TrainConfig
from trainer.console import Reporter
from trainer.data.augment import Augmentation
from trainer.data.device_patches import DevicePatches
from trainer.data.pairs import Pair, PairStore, PatchSampler
from trainer.data.planes import Picture
from trainer.loop.display import Display, time_left
from trainer.loop.guards import Guard, check_finite
from trainer.loop.iteration import CudaCapture, Feed, HostFeed, Iteration, Readings
from trainer.loop.journal import (
    CLOCKS,
    Clock,
    Journal,
    Timer,
    past_validations,
)
from trainer.loop.recipe import fraction_done, recipe
from trainer.loop.stages import make_stage
from trainer.loop.steps import lay_out_fast
from trainer.loop.stop import StopFlag
from trainer.networks import (
    TrainedNetwork,
    folded,
    new_network,
    saved_network,
    spec_of,
    weights_bytes,
)
from trainer.state import (
    CHECKPOINT_NAME,
    Progress,
    load_state,
    part,
    restore,
    save_state,
    state_tensors,
    write_atomically,
)

BEST_NAME = "best.safetensors"
"""The folded, averaged network of the best validation."""

Measures = dict[str, float]
Validate = Callable[[TrainedNetwork], Measures]
"""The scores of the folded, averaged network; `score`, if present, determines the best."""


def train(
    config: TrainConfig,
    pairs: Sequence[Pair] | PairStore,
    run_dir: Path,
    *,
    reporter: Reporter | None = None,
    base: Weights | None = None,
    validate: Validate | None = None,
    panel: Callable[[TrainedNetwork], Picture] | None = None,
    should_stop: Callable[[list[Measures]], bool] | None = None,
    resume: bool = False,
    until: float | None = None,
) -> Progress:
    """Run the config's stages to the end, or until SIGTERM or SIGINT; leave a checkpoint.

    `run_dir` receives `checkpoint.safetensors`, `log.jsonl`, `tensorboard/`, and with `panel`
    pictures of the network's output. With `resume`, the run continues from the checkpoint there, if
    there is one; without, a checkpoint there is a `UsageError`. `should_stop` sees all validations
    so far and may end the run. SIGTERM or SIGINT gives up a validation that is going on, and after
    it there is none, unless there was none at all. `until`, as `time.monotonic` counts, stops the
    run like SIGTERM, but gives up no validation.

    Raises:
        TrainingCollapsedError: the output collapsed; the checkpoint is the last good one.
    """
    # --- setup -----------------------------------------------------------------------------
    checkpoint_path = run_dir / CHECKPOINT_NAME
    resumed = None
    if checkpoint_path.exists():
        if not resume:
            raise UsageError(f"{checkpoint_path} exists; use --resume to continue from it")
        resumed = load_state(checkpoint_path)
        config = resumed_config(config, TrainConfig.model_validate(resumed[1]["config"]))
    stages, run = config.stages, config.run
    config.check_lengths()
    fabric = start_fabric(run)
    device = fabric.device
    torch.set_num_threads(run.num_threads)
    torch.manual_seed(config.seed)

    if config.samples_knob and base is None and not resumed:
        raise UsageError(
            "sample_knob mixes the network with the weights that it starts from; use --base"
        )
    tones = config.data.augmentation
    augmentation = None if tones is None else Augmentation(tones, spec_of(config).color_form)
    sampler = PatchSampler(
        pairs,
        patch_size=config.data.patch_size,
        batch_size=config.data.batch_size,
        seed=config.seed + fabric.global_rank,
        shifts=any(section.steadiness_weight for section in stages),
        knobs=config.samples_knob,
        augmentation=augmentation,
    )
    names = [outline.name for outline in sampler.outlines]
    if resumed:
        network = saved_network(spec_of(config), config.network, part(resumed[0], "average"))
    else:
        network = new_network(spec_of(config), base, config.network)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # batches have one shape
        lay_out_fast(network)
    average = copy.deepcopy(network).requires_grad_(False).eval().to(device)
    progress = Progress.of(resumed[1]) if resumed else Progress()
    stage = make_stage(stages[progress.stage], fabric, network, average)
    if resumed:
        tensors, metadata = resumed
        if metadata["pictures"] != names:
            raise UsageError(f"{run_dir}: the pictures are no longer those that the run began with")
        modules = {"network": network, "average": average, **stage.modules}
        restore(tensors, modules, stage.optimizers)
        sampler.set_state(metadata["samplers"][fabric.global_rank])
    feed: Feed = HostFeed(sampler, fabric)
    if run.crops == "device":
        feed = DevicePatches(sampler, spec_of(config).color_form, device)

    no_graph = why_no_graph(run, device)

    def iterations() -> Iteration:
        capture = CudaCapture(device) if no_graph is None else None
        return Iteration(stage, feed, network, average, device, capture)

    run_dir.mkdir(parents=True, exist_ok=True)
    is_first = fabric.is_global_zero
    journal = Journal(run_dir, progress, tensorboard=run.tensorboard, is_silent=not is_first)
    reporter = reporter if reporter and is_first else Reporter(is_silent=not is_first)
    display = Display(reporter, config, run_dir)
    now = CLOCKS[run.clock]
    clock, readings = Clock(now), Readings(Guard())
    history = past_validations(run_dir, progress.iteration) if resumed else list[Measures]()
    checkpoint_timer = Timer(run.checkpoint_minutes * 60)
    validation_timer = Timer(run.validate_minutes * 60, now)
    log_timer = Timer(run.log_seconds)
    base_recipe = None if base is None else base.recipe
    if resumed:
        base_recipe = resumed[1].get("base")
    header = {"config": config.model_dump(mode="json"), "pictures": names, "base": base_recipe}

    def checkpoint() -> None:
        states = gathered(feed.state())
        modules = {"network": network, "average": average, **stage.modules}
        tensors = state_tensors(modules, stage.optimizers)
        check_finite(progress.iteration, tensors)
        if is_first:
            save_state(checkpoint_path, tensors, states, progress, header)

    def measure() -> None:
        plain = folded(average).cpu()
        if validate is not None:
            measures = validate(plain)
            history.append(measures)
            journal.write("validate", **{name: round(n, 4) for name, n in measures.items()})
            best = max(past.get("score", -math.inf) for past in history)
            display.validated(progress, measures, is_best=measures.get("score") == best)
            if is_first and measures.get("score") == best:
                made_by = recipe(config, progress, base_recipe)
                write_atomically(run_dir / BEST_NAME, weights_bytes(plain, made_by))
        if panel is not None:
            journal.panel(panel(plain))

    # --- loop ------------------------------------------------------------------------------
    journal.write("start", model=config.model, num_pictures=len(names))
    section, iteration = stages[progress.stage], iterations()
    with StopFlag(reporter, until) as was_stopped, reporter.task("training", len(stages)) as task:
        display.begin(len(names), progress, device.type)  # a stop counts from here on
        if device.type == "cuda" and no_graph is not None:
            reporter.say(f"an iteration is not one CUDA graph: {no_graph}")
        if base is not None and progress.iteration == 0:
            with was_stopped.interruptible():
                measure()
        while not agreed(bool(was_stopped)):
            section = stages[progress.stage]
            done = agreed(fraction_done(progress, section))
            if done >= 1.0 and progress.stage + 1 == len(stages):
                break
            if done >= 1.0:
                readings.read(iteration.names, progress.iteration)
                progress.next_stage()
                stage = make_stage(stages[progress.stage], fabric, network, average)
                iteration = iterations()
                continue
            factor = rate_factor(done, section)
            decay = average_decay(section.ema, progress.iteration)
            readings.add(iteration.run(factor=factor, done=done, decay=decay))
            progress.advance(clock.lap_seconds())
            every = run.checkpoint_iterations
            is_saved = agreed(checkpoint_timer.is_due()) or (
                every is not None and progress.iteration % every == 0
            )
            is_measured, is_logged = validation_timer.is_due(), log_timer.is_due()
            if is_saved or is_logged or progress.iteration % run.read_iterations == 0:
                losses = readings.read(iteration.names, progress.iteration)
                task.update(progress.stage + done, display.words(progress, section, losses))

            # --- checkpoint ---------------------------------------------------------------
            if is_logged:
                means = {name: round(mean, 6) for name, mean in readings.means().items()}
                rate, left = section.learning_rate * factor, time_left(progress, section)
                journal.write("train", **means, learning_rate=rate, left=left)
            if is_saved:
                checkpoint()
            if is_measured:
                with was_stopped.interruptible():
                    measure()
                if should_stop is not None and should_stop(history):
                    break

        is_stopped = agreed(bool(was_stopped))
        readings.read(iteration.names, progress.iteration)
        checkpoint()
        if not is_stopped or not history:
            with was_stopped.interruptible():
                measure()
    is_finished = progress.stage + 1 == len(stages) and fraction_done(progress, section) >= 1.0
    journal.write("finish" if is_finished else "stop")
    journal.close()
    display.ended(progress, is_finished=is_finished)
    return progress


def start_fabric(run: RunSection) -> Fabric:
    """Set up devices, precision and processes: one, or as many as `torchrun` started."""
    num_processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    fabric = Fabric(
        accelerator=run.accelerator,
        devices=num_processes,
        num_nodes=int(os.environ.get("GROUP_WORLD_SIZE", 1)),
        strategy="ddp" if int(os.environ.get("WORLD_SIZE", 1)) > 1 else "auto",
        precision=precision_of(run),
    )
    fabric.launch()
    return fabric


def precision_of(run: RunSection) -> Literal["32-true", "bf16-mixed", "16-mixed"]:
    """Return the section's precision; for `auto`, bf16 where convolutions gain from it."""
    if run.precision != "auto":
        return run.precision
    if run.accelerator != "cpu" and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    return "bf16-mixed" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "32-true"


T = TypeVar("T")


def agreed(value: T) -> T:
    """Return the first process's value, so that all of them do the same."""
    if not torch.distributed.is_initialized():
        return value
    values = [value]
    torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def gathered(value: str) -> list[str]:
    """Return every process's value, in order of rank."""
    if not torch.distributed.is_initialized():
        return [value]
    values = [""] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def resumed_config(config: TrainConfig, begun_with: TrainConfig) -> TrainConfig:
    """Return the config to resume a run with: only lengths and housekeeping may change.

    A length that isn't given stays as the run began.
    """
    changes = {"run": config.run}
    for name in ("pixel", "adversarial"):
        given, begun = getattr(config, name), getattr(begun_with, name)
        if given is None or begun is None:
            continue
        length = given.model_dump(include={"hours", "iterations"})
        if set(length.values()) == {None}:
            length = begun.model_dump(include={"hours", "iterations"})
        changes[name] = begun.model_copy(update=length)
        config = config.model_copy(update={name: given.model_copy(update=length)})
    allowed = begun_with.model_copy(update=changes)
    if config != allowed:
        raise UsageError(
            "the run began with another model, seed, data or stage settings; "
            "resume it with its own config, or start a new run in another folder"
        )
    return allowed


def why_no_graph(run: RunSection, device: torch.device) -> str | None:
    """Return why an iteration is no CUDA graph; None where it is one."""
    if device.type != "cuda":
        return "it is not on CUDA"
    if run.crops != "device":
        return 'the host cuts the patches; crops = "device" in [run] changes that'
    if not run.cuda_graph:
        return "cuda_graph in [run] is false"
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        return "several processes train together"
    return "16-mixed scales losses" if precision_of(run) == "16-mixed" else None


def average_decay(decay: float, iteration: int) -> float:
    """Return the decay of the average; its window starts short, to forget the start."""
    return min(decay, (1 + iteration) / (10 + iteration))


def rate_factor(done: float, section: StageSection) -> float:
    """Return the share of the peak rate: a cosine after a linear warm-up (SGDR, ICLR 2017)."""
    if done < section.warmup:
        return max(done / section.warmup, 1e-3)
    along = min((done - section.warmup) / (1.0 - section.warmup), 1.0)
    last = section.final_learning_rate / section.learning_rate
    return last + (1.0 - last) * 0.5 * (1.0 + math.cos(math.pi * along))
