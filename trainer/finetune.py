"""`srtrain finetune`, from top to bottom: survey the footage, train, compare, keep or roll back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np

from srstream.errors import InterruptedJobError, SrstreamError, UsageError
from srstream.models.checkpoint import Weights, load_weights, safetensors_bytes
from srstream.models.networks import network_from_weights
from srstream.models.registry import find_model
from srstream.models.table import (
    MODELS,
    ModelSpec,
    ResidualGenerator,
    WeightSet,
    weights_path,
)
from trainer.config import (
    DataSection,
    DegradationSection,
    NetworkSection,
    PixelSection,
    RunSection,
    TrainConfig,
)
from trainer.console import Reporter
from trainer.data.clips import pairs_of_clip
from trainer.data.codec import PRESETS, CodecSettings, decode, encode, x264_at
from trainer.data.degrade import SCALE, downscale
from trainer.data.footage import MOMENT_FRAMES, Footage, frames_of, paired_frames, survey
from trainer.data.pairs import Pair
from trainer.data.planes import as_yuv420, decoded_input, target_planes
from trainer.judge.comparison import Comparison, Method
from trainer.judge.evaluate import (
    LowResolution,
    TestPicture,
    bicubic_upscaler,
    network_upscaler,
    score,
)
from trainer.judge.perceptual import PerceptualDistance
from trainer.judge.verdict import HELD_OUT, Outcome, outcome_of, verdict_of
from trainer.loop.journal import past_validations
from trainer.loop.recipe import fraction_done, recipe
from trainer.loop.train import BEST_NAME, Measures, train
from trainer.networks import TrainedNetwork, is_flat
from trainer.ship.report import Report, write_report
from trainer.state import Progress, write_atomically

log = logging.getLogger(__name__)

WINDOW = 640
"""Side of the window cut from each frame, in high-resolution pixels."""

NUM_VALIDATIONS = 12
PATIENCE = 4
"""The run ends after this many validations without an improvement."""

REPEATS = 2
"""How often each moment is degraded, each time differently."""


class NoGainError(SrstreamError):
    """Fine-tuning did not make the model better on held-out frames; nothing was written."""


@dataclass(frozen=True)
class FineTuning:
    """The request: what to fine-tune, on what, and for how long."""

    videos: tuple[Path, ...]
    base: str
    """Name of a model, of one of its sets (`fast.restore`), or a `.safetensors` file."""
    output: Path
    hours: float
    originals: tuple[Path, ...] = ()
    """High-resolution versions of the videos, in the same order, if available."""
    seed: int = 1
    num_threads: int = 2
    resume: bool = False

    @property
    def run_dir(self) -> Path:
        """The folder next to the output with the run's checkpoint, log and panels."""
        return self.output.with_suffix(".run")

    @property
    def report_path(self) -> Path:
        return self.output.with_suffix(".html")


@dataclass(frozen=True)
class Material:
    """The footage in the form that the trainer needs."""

    pairs: list[Pair]
    held_out: list[list[TestPicture]]
    footage: Footage
    patch_size: int
    how: str
    """A description of how the low resolution was degraded."""


def finetune(task: FineTuning, reporter: Reporter | None = None) -> Outcome:
    """Fine-tune a model on the user's footage and verify the gain.

    Writes `OUTPUT` (weights for `srstream models add`), the report next to it (`.html`), and the
    run's folder.

    Raises:
        NoGainError: the tuned model is no better on held-out frames; the report says so too.
        UsageError: there is too little footage, or no such base.
        MediaError: a video cannot be read.
    """
    reporter = reporter or Reporter()
    _check_names(task)
    base = load_base(task.base)
    reporter.say(f"looking through {footage_of(task)} for scenes and sharp moments")
    material = prepare(task, base.spec)

    # --- train -----------------------------------------------------------------------------
    config = config_of(task, base, material)
    progress = train(
        config,
        material.pairs,
        task.run_dir,
        reporter=reporter,
        base=base,
        validate=_validation(material, reporter),
        should_stop=has_stopped_improving,
        resume=task.resume,
    )

    # --- compare ---------------------------------------------------------------------------
    held_out = frames_to_compare(task, config, material, progress, reporter)
    stated = f"{recipe(config, progress, base.recipe)}; on {footage_of(task)}"
    best = replace(load_weights(task.run_dir / BEST_NAME), recipe=stated)
    methods = methods_to_compare(base, best)
    comparison = Comparison(methods)
    judge = PerceptualDistance()
    comparison.add_sequences(HELD_OUT, held_out, SCALE, judge, reporter=reporter)
    outcome = outcome_of(comparison, len(material.held_out), task.output, task.report_path)
    verdict = verdict_of(outcome, task.base)
    reporter.say("writing the report")
    report = Report(
        title=task.output.stem,
        verdict=verdict,
        is_better=outcome.is_better,
        facts=facts(task, material, progress.iteration, progress.elapsed_seconds),
        rows=comparison.rows,
        methods=methods,
        pictures=[sequence[len(sequence) // 2] for sequence in material.held_out],
        log_path=task.run_dir / "log.jsonl",
    )
    write_report(report, task.report_path)

    # --- keep, or roll back ----------------------------------------------------------------
    if not outcome.is_better:
        raise NoGainError(f"{verdict} No weights were written; the report is {task.report_path}.")
    is_large = isinstance(best.spec.network, ResidualGenerator)
    write_atomically(task.output, safetensors_bytes(best, half=is_large))
    return outcome


def _check_names(task: FineTuning) -> None:
    if task.output.suffix != ".safetensors":
        raise UsageError(f"{task.output}: give the weights a name that ends in .safetensors")
    if task.run_dir.exists() and not task.resume:
        raise UsageError(
            f"{task.run_dir}: a run of this name is there; go on with --resume, remove it, or "
            "choose another -o"
        )


def _validation(material: Material, reporter: Reporter) -> Callable[[TrainedNetwork], Measures]:
    """Return the measure that decides when to stop: on two frames of each held-out moment."""
    pictures = few_frames(material)

    def validate(network: TrainedNetwork) -> Measures:
        shown = reporter.each("validating", pictures, len(pictures))
        reached = score(network_upscaler(network), shown, SCALE)
        return {"score": reached.psnr_db, "psnr_db": reached.psnr_db, "ssim": reached.ssim}

    return validate


def few_frames(material: Material) -> list[TestPicture]:
    """Return two frames of each held-out moment, in order."""
    few = [sequence[:: MOMENT_FRAMES // 2] for sequence in material.held_out]
    return [picture for sequence in few for picture in sequence]


def frames_to_compare(
    task: FineTuning,
    config: TrainConfig,
    material: Material,
    progress: Progress,
    reporter: Reporter,
) -> list[list[TestPicture]]:
    """Return all held-out moments, or a few single frames of them after a run that was stopped.

    Raises:
        InterruptedJobError: it was stopped before there was anything to compare.
    """
    if not (task.run_dir / BEST_NAME).exists():
        raise InterruptedJobError(
            f"stopped before the base was measured; {task.run_dir} goes on with --resume"
        )
    if not was_stopped(config, progress, task.run_dir):
        return material.held_out
    few = few_frames(material)
    reporter.say(
        f"comparing on {len(few)} held-out frames only, since the run was stopped; Ctrl-C cancels "
        "that, and --resume continues the training"
    )
    return [[picture] for picture in few]


def was_stopped(config: TrainConfig, progress: Progress, run_dir: Path) -> bool:
    """Whether a signal ended the run, not its length or the lack of any improvement."""
    if fraction_done(progress, config.stages[progress.stage]) >= 1.0:
        return False
    return not has_stopped_improving(past_validations(run_dir, progress.iteration))


def footage_of(task: FineTuning) -> str:
    """Return the videos' names."""
    return ", ".join(path.name for path in task.videos)


def load_base(name: str) -> Weights:
    """Load `NAME`, `NAME.SET`, a registered model or a file; `UsageError` if there is none."""
    path = Path(name)
    if path.suffix == ".safetensors":
        return load_weights(path)
    registered = find_model(name)
    if registered is not None:
        return load_weights(registered.weights_path)
    model, _, set_name = name.partition(".")
    sets = {weight_set: weight_set for weight_set in get_args(WeightSet)} | {"": "faithful"}
    if model not in MODELS or set_name not in sets:
        raise UsageError(
            f"--base {name}: neither a model ({', '.join(MODELS)}), nor one of its sets "
            "(fast.restore), nor a .safetensors file"
        )
    return load_weights(weights_path(model, ".safetensors", sets[set_name]))


def prepare(task: FineTuning, spec: ModelSpec) -> Material:
    """Choose moments and make pairs of them; the held-out ones stay whole clips."""
    if task.originals and len(task.originals) != len(task.videos):
        raise UsageError(
            f"--hr was given {len(task.originals)} times and --video {len(task.videos)} times; "
            "each video needs its own"
        )
    footage = survey(task.videos)
    side = footage.min_side if task.originals else min(footage.min_side, WINDOW) // SCALE
    patch_size = min(48, side // 4 * 4)
    if patch_size < 16:
        raise UsageError(
            f"{', '.join(path.name for path in task.videos)}: frames of {footage.min_side} pixels "
            f"are too small to learn {SCALE}x from; 64 are needed each way"
        )
    if task.originals:
        return _from_originals(task, spec, footage, patch_size)
    return _from_own_frames(task, spec, footage, patch_size)


def _from_own_frames(
    task: FineTuning, spec: ModelSpec, footage: Footage, patch_size: int
) -> Material:
    """Use the video's frames as originals; degrade low resolution as the video is degraded."""
    section = footage.degradation(WINDOW)
    random = np.random.Generator(np.random.PCG64(task.seed))
    pairs: list[Pair] = []
    for moment, frames in frames_of(footage.train, WINDOW):
        for number in range(REPEATS):
            pairs += pairs_of_clip(f"{moment.name} #{number}", frames, spec, section, random)
    held_out = []
    settings = typical_settings(section)
    for moment, frames in frames_of(footage.held_out, WINDOW):
        small = [as_yuv420(downscale(frame, SCALE)) for frame in frames]
        decoded = decode(encode(small, settings), len(small), settings)
        held_out.append(
            [
                TestPicture(moment.name, LowResolution.of_video(low.planes), rgb)
                for low, rgb in zip(decoded, frames, strict=True)
            ]
        )
    how = f"a quarter of the size, then {settings}"
    return Material(pairs, held_out, footage, patch_size, how)


def _from_originals(
    task: FineTuning, spec: ModelSpec, footage: Footage, patch_size: int
) -> Material:
    """Use the video as low resolution, and the frames of another video as the originals."""
    originals = dict(zip(task.videos, task.originals, strict=True))
    pairs = []
    for moment, low, high in paired_frames(footage.train, originals):
        for number in range(0, MOMENT_FRAMES, 2):
            lr = decoded_input(low[number], spec.color_form)
            targets = target_planes(high[number], spec.color_form)
            pairs.append(Pair(f"{moment.name} +{number}", ((1.0, lr),), targets))
    held_out = [
        [
            TestPicture(moment.name, LowResolution.of_video(planes), rgb)
            for planes, rgb in zip(low, high, strict=True)
        ]
        for moment, low, high in paired_frames(footage.held_out, originals)
    ]
    return Material(pairs, held_out, footage, patch_size, "the videos as they are")


def typical_settings(section: DegradationSection) -> CodecSettings:
    """Return the middle of a degradation's range, to evaluate at."""
    codec = section.codecs[0]
    crf = (section.min_crf + section.max_crf) / 2
    if codec == "libx264":
        return x264_at(crf)
    return CodecSettings(codec, crf, PRESETS[codec][-1], gop=250, b_frames=0)


def config_of(task: FineTuning, base: Weights, material: Material) -> TrainConfig:
    """Return a short pixel stage at a low rate with a dozen validations; flat weights stay flat."""
    return TrainConfig(
        model=base.spec.name,
        seed=task.seed,
        network=NetworkSection(flat=is_flat(base)),
        data=DataSection(patch_size=material.patch_size, batch_size=16),
        pixel=PixelSection(
            hours=task.hours, loss="mse", learning_rate=1e-4, warmup=0.03, ema=0.998
        ),
        run=RunSection(
            num_threads=task.num_threads,
            precision="auto",
            log_seconds=max(task.hours * 3600 / 60, 0.5),
            checkpoint_minutes=2.0,
            validate_minutes=task.hours * 60 / NUM_VALIDATIONS,
        ),
    )


def has_stopped_improving(history: Sequence[Measures]) -> bool:
    """Return whether the last few validations are no better than the best before them."""
    scores = [measures["score"] for measures in history]
    return len(scores) > PATIENCE and max(scores[-PATIENCE:]) <= max(scores[:-PATIENCE])


def methods_to_compare(base: Weights, tuned: Weights) -> list[Method]:
    """Return bicubic, the base and the tuned model."""
    return [
        Method("bicubic", bicubic_upscaler(SCALE)),
        method_of_weights("base", base),
        method_of_weights("tuned", tuned),
    ]


def method_of_weights(name: str, weights: Weights) -> Method:
    """Wrap folded weights as a method of a comparison."""
    size = sum(tensor.size for tensor in weights.tensors.values())
    upscale = network_upscaler(network_from_weights(weights))
    return Method(name, upscale, size, weights.spec.kmac_per_pixel, weights.recipe)


def facts(
    task: FineTuning, material: Material, iterations: int, seconds: float
) -> list[tuple[str, str]]:
    """Return what the report says about how the training was done."""
    footage = material.footage
    compression = ", ".join(
        f"{codec} at a quantizer of {quantizer:.0f}" for codec, quantizer in footage.compression
    )
    return [
        ("videos", ", ".join(path.name for path in task.videos)),
        ("compression found", compression),
        ("scenes", str(footage.num_scenes)),
        ("trained on", f"{len(footage.train)} moments, {len(material.pairs)} frames"),
        ("held out", ", ".join(moment.name for moment in footage.held_out)),
        ("low resolution", material.how),
        ("base", task.base),
        ("training", f"{iterations} iterations in {seconds / 60:.1f} minutes, seed {task.seed}"),
    ]
