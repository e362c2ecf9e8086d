"""What a training run may be told: one class per table of the TOML file."""

import tomllib
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from srstream.errors import ConfigError


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSection(Section):
    """Which patches the network sees."""

    patch_size: int = Field(
        default=48, ge=8, le=512, description="side of a low-resolution patch, in pixels"
    )
    batch_size: int = Field(default=16, ge=1, le=1024, description="patches per iteration")


class PixelSection(Section):
    """The pixel-loss stage: how the network is fitted to the originals."""

    loss: Literal["l1"] = Field(default="l1", description="mean absolute difference on luma / 255")
    hours: float | None = Field(
        default=None, gt=0, le=1000, description="wall-clock length of the run; or give iterations"
    )
    iterations: int | None = Field(
        default=None, ge=1, description="length of the run in iterations: reproducible bit for bit"
    )
    learning_rate: float = Field(default=1e-3, gt=0, le=1, description="peak of the cosine cycle")
    final_learning_rate: float = Field(
        default=1e-6, ge=0, le=1, description="end of the cosine cycle"
    )
    warmup: float = Field(
        default=0.01,
        ge=0,
        le=0.5,
        description="fraction of the run in which the rate rises to its peak",
    )
    beta1: float = Field(default=0.9, ge=0, lt=1, description="Adam: decay of the gradient's mean")
    beta2: float = Field(
        default=0.999, ge=0, lt=1, description="Adam: decay of the gradient's square"
    )
    clip_norm: float = Field(
        default=1.0, gt=0, description="gradients longer than this are shortened"
    )
    ema: float = Field(
        default=0.999,
        ge=0,
        lt=1,
        description="decay of the averaged weights, which are what is exported",
    )

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.hours is not None and self.iterations is not None:
            raise ValueError("give hours or iterations, not both")
        return self


class RunSection(Section):
    """How the run keeps house."""

    num_threads: int = Field(default=2, ge=1, le=256, description="threads PyTorch computes with")
    log_seconds: float = Field(default=30.0, gt=0, description="seconds between lines of log.jsonl")
    checkpoint_minutes: float = Field(default=5.0, gt=0, description="minutes between checkpoints")
    checkpoint_iterations: int | None = Field(
        default=None, ge=1, description="checkpoint every so many iterations as well"
    )
    validate_minutes: float = Field(default=10.0, gt=0, description="minutes between validations")


class TrainConfig(Section):
    """A whole training run."""

    model: str = Field(description="name of the model, as srstream's model table has it")
    seed: int = Field(
        default=1, ge=0, lt=2**32, description="of the initial weights and the patches"
    )
    data: DataSection = DataSection()
    pixel: PixelSection = PixelSection()
    run: RunSection = RunSection()


def load_config(path: Path) -> TrainConfig:
    """The checked config, or `ConfigError` saying which fields are wrong and why."""
    try:
        return TrainConfig.model_validate(tomllib.loads(path.read_text()))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, item['loc'])) or 'file'}: {item['msg']}" for item in error.errors()
        )
        raise ConfigError(f"{path}: {problems}") from error
