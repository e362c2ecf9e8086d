"""A description of a run, for its weight files and its card."""

from __future__ import annotations

from trainer.config import AdversarialSection, PixelSection, StageSection, TrainConfig
from trainer.state import Progress


def recipe(config: TrainConfig, progress: Progress, base: str | None) -> str:
    """Return one line: stages, lengths and settings, and whether the run is unfinished."""
    lengths = [*progress.behind, (progress.stage_iteration, progress.stage_seconds)]
    parts = [
        f"{losses(section)}, {iterations} iterations in {seconds / 3600:.2f} h{rates(section)}"
        for section, (iterations, seconds) in zip(config.stages, lengths, strict=False)
    ]
    data = config.data
    if config.network.flat:
        parts.append("flat input stays flat by construction")
    if data.augmentation is not None:
        shares = data.augmentation.model_dump().items()
        told = ", ".join(f"{name.removesuffix('_share')} {share:.0%}" for name, share in shares)
        parts.append(f"patches varied: {told.replace('_', ' ')}")
    if config.run.precision != "32-true":
        parts.append(f"precision {config.run.precision}")
    parts.append(
        f"{data.batch_size} patches of {data.patch_size}x{data.patch_size}, seed {config.seed}"
    )
    if config.degradation is not None:
        codecs = ", ".join(sorted(set(config.degradation.codecs)))
        parts.append(
            f"low resolution through {codecs} at CRF {config.degradation.min_crf:g} to "
            f"{config.degradation.max_crf:g}, {config.degradation.clean_share:.0%} clean"
        )
    if config.degradation is not None and config.samples_knob:
        parts.append(
            "trained as means with the weights it went on from, even at CRF "
            f"{config.degradation.faithful_crf:g} and whole at {config.degradation.restore_crf:g}"
        )
    done = fraction_done(progress, config.stages[progress.stage])
    if done < 1.0:
        parts.append(f"unfinished: {done:.0%} of stage {progress.stage + 1}")
    if base is not None:
        parts.append(f"going on from ({base})")
    return "; ".join(parts)


def losses(section: StageSection) -> str:
    """Describe the losses of a stage."""
    steadiness = section.steadiness_weight
    steady = f" + {steadiness:g} steadiness" if steadiness else ""
    if section.colour_weight:
        steady = f" + {section.colour_weight:g} colour{steady}"
    if isinstance(section, PixelSection):
        return f"pixel loss {section.loss}{steady}"
    assert isinstance(section, AdversarialSection)
    features: str = section.perceptual
    if section.perceptual.startswith("vgg"):
        features += f" {', '.join(section.perceptual_layers)}"
    features += ", at unit length" if section.perceptual_form == "unit" else ""
    if section.perceptual == "discriminator":
        features = "the discriminator's features"
    extras = {
        "pixel l1": section.pixel_weight, "LDL": section.ldl_weight, "grid": section.grid_weight,
        "texture": section.texture_weight,
    }  # fmt: skip
    added = "".join(f" + {weight:g} {name}" for name, weight in extras.items() if weight)
    return (
        f"{section.content_weight:g} content ({features}) + {section.adversarial_weight:g} "
        f"adversarial ({section.adversary}, {section.discriminator} discriminator of "
        f"{section.discriminator_width} channels, {section.discriminator_norm} norm){added}{steady}"
    )


def rates(section: StageSection) -> str:
    return (
        f", Adam at {section.learning_rate:g} and one cosine cycle, average of the weights at "
        f"{section.ema:g}"
    )


def fraction_done(progress: Progress, section: StageSection) -> float:
    """Return 0 at the start of the stage, 1 or more at its end."""
    if section.iterations is not None:
        return progress.stage_iteration / section.iterations
    assert section.hours is not None
    return progress.stage_seconds / (section.hours * 3600)
