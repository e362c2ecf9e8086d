"""The settings of a training run: one class per table of the TOML file."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from srstream.errors import UsageError
from trainer.config_file import Section, read_config


class NetworkSection(Section):
    """Deviations from the model's entry in the table, for comparisons.

    Weights trained with them are not weights of the model: `srtrain evaluate` reads the run, but
    `export` refuses it.
    """

    colour: Literal["luma", "yuv420", "rgb"] | None = Field(
        default=None, description="stacks: which planes are the input and the output"
    )
    widths: tuple[Annotated[int, Field(ge=1, le=512)], ...] | None = Field(
        default=None, min_length=1, description="stacks: channels of the hidden layers"
    )
    signed_input: bool | None = Field(
        default=None,
        description="srgan: the network is given [-1, 1] (article), not [0, 1] (paper); "
        "the one deviation that a weight file can record",
    )
    batch_norm: bool = Field(
        default=True,
        description="srgan: with BN, as drawn, or without; both fold to one network",
    )
    num_blocks: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="srgan: number of residual blocks, if not the table's; --base grows them later",
    )
    thin_tail: bool = Field(
        default=False,
        description="srgan: one 3x3 convolution in place of upsampling and tail, to train the body "
        "at half the cost; --base moves the body into the whole network",
    )
    flat: bool = Field(
        default=False,
        description="stacks: flat input comes out flat and unshifted by construction: the taps of "
        "the last convolution add up to zero; the inference network is the same",
    )

    def deviations(self) -> list[str]:
        """What distinguishes the network from the table's."""
        made_alike = {"batch_norm", "signed_input", "flat"}
        return [name for name in self.model_dump(exclude_defaults=True) if name not in made_alike]


class AugmentationSection(Section):
    """Variations that real files have and rounded photographs lack; shares are shares of patches.

    Planes stay in the networks' own form: luma is 16 to 235 of 255.
    """

    dark_share: float = Field(
        default=0.15, ge=0, le=1, description="black to white mapped to 1..24 to 32..120"
    )
    bright_share: float = Field(
        default=0.1, ge=0, le=1, description="black to white mapped to 120..208 to 225..254"
    )
    wide_share: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="black to white mapped to 1..16 to 235..254, beyond the nominal range",
    )
    full_range_share: float = Field(
        default=0.25, ge=0, le=1, description="low resolution rounded like full-range 8 bits"
    )
    ten_bit_share: float = Field(default=0.15, ge=0, le=1, description="rounded like 10 bits")
    unrounded_share: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="not rounded; the rest: like limited-range 8 bits",
    )

    @model_validator(mode="after")
    def _shares(self) -> Self:
        tones = self.dark_share + self.bright_share + self.wide_share
        roundings = self.full_range_share + self.ten_bit_share + self.unrounded_share
        if max(tones, roundings) > 1 + 1e-9:
            raise ValueError(
                "the shares of tones, or those of roundings, add up to more than the whole"
            )
        return self


class DataSection(Section):
    """The patches that the network sees."""

    patch_size: int = Field(
        default=48, ge=8, le=512, description="side of a low-resolution patch, in pixels"
    )
    batch_size: int = Field(default=16, ge=1, le=1024, description="patches per iteration")
    subsampled_chroma: bool = Field(
        default=False,
        description="RGB models: low resolution goes through 4:2:0, like nearly all video",
    )
    num_pictures: int | None = Field(
        default=None,
        ge=1,
        description="of the folder's pictures, evenly spaced in the order of their names; "
        "without it, all of them",
    )
    augmentation: AugmentationSection | None = Field(
        default=None, description="without it, patches are rounded like limited-range 8 bits"
    )


CodecName = Literal["libx264", "libx265", "mpeg2video", "libvpx-vp9"]


class DegradationSection(Section):
    """How low resolution is degraded: pictures become clips, which are encoded and decoded."""

    codecs: tuple[CodecName, ...] = Field(
        default=("libx264", "libx265", "mpeg2video", "libvpx-vp9"),
        min_length=1,
        description="drawn uniformly; one named twice is drawn twice as often",
    )
    min_crf: float = Field(default=18, ge=0, le=51, description="mildest CRF, on x264's scale")
    max_crf: float = Field(default=36, ge=0, le=51, description="harshest CRF, on x264's scale")
    clean_share: float = Field(
        default=0.2, ge=0, le=1, description="share of the clips that go through no codec"
    )
    clips_per_picture: int = Field(default=2, ge=1, le=100, description="camera moves per picture")
    frames_per_clip: int = Field(default=8, ge=2, le=100, description="encoded together")
    kept_frames: int = Field(
        default=2, ge=1, le=100, description="frames of a clip to train on; P and B before I"
    )
    window: int = Field(
        default=768, ge=256, le=4096, description="side of a clip, in high-resolution pixels"
    )
    blur_share: float = Field(default=0.2, ge=0, le=1, description="share of clips blurred first")
    max_blur: float = Field(
        default=1.2, gt=0, le=10, description="largest standard deviation, low-resolution pixels"
    )
    noise_share: float = Field(default=0.2, ge=0, le=1, description="share of clips with noise")
    max_noise: float = Field(default=6.0, gt=0, le=100, description="largest deviation, in levels")
    jpeg_share: float = Field(
        default=0.05, ge=0, le=1, description="share of clips whose frames are JPEG-coded first"
    )
    faithful_crf: float = Field(
        default=18, ge=0, le=51, description="sample_knob: up to this CRF, --restore 0 is right"
    )
    restore_crf: float = Field(
        default=36, ge=0, le=51, description="sample_knob: from this CRF on, --restore 1 is right"
    )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min_crf > self.max_crf or self.kept_frames > self.frames_per_clip:
            raise ValueError("min_crf above max_crf, or kept_frames above frames_per_clip")
        if self.faithful_crf >= self.restore_crf:
            raise ValueError("faithful_crf is not below restore_crf")
        return self

    def severity(self, crf: float) -> float:
        """Return the position of `--restore`, 0 to 1, that suits a CRF on x264's scale."""
        along = (crf - self.faithful_crf) / (self.restore_crf - self.faithful_crf)
        return min(max(along, 0.0), 1.0)


class StageSection(Section):
    """The settings common to all stages: length and optimizer."""

    hours: float | None = Field(
        default=None, gt=0, le=1000, description="length, by the run's clock; or give iterations"
    )
    iterations: int | None = Field(
        default=None, ge=1, description="length in iterations: reproducible bit for bit"
    )
    learning_rate: float = Field(default=1e-3, gt=0, le=1, description="peak of the cosine cycle")
    final_learning_rate: float = Field(
        default=1e-6, ge=0, le=1, description="end of the cosine cycle"
    )
    warmup: float = Field(
        default=0.01,
        ge=0,
        le=0.5,
        description="fraction of the stage in which the rate rises to its peak",
    )
    beta1: float = Field(default=0.9, ge=0, lt=1, description="Adam: decay of the gradient's mean")
    beta2: float = Field(
        default=0.999, ge=0, lt=1, description="Adam: decay of the gradient's square"
    )
    clip_norm: float = Field(
        default=1.0, ge=0, description="gradients are clipped to this norm; 0: not clipped"
    )
    ema: float = Field(
        default=0.999,
        ge=0,
        lt=1,
        description="decay of the averaged weights, which are the ones exported",
    )
    chroma_weight: float = Field(
        default=0.5,
        ge=0,
        le=10,
        description="weight of the loss on U and V, if the model has them",
    )
    colour_weight: float = Field(
        default=0.0,
        ge=0,
        le=100,
        description="RGB models: weight of the loss on U and V of the result, added to that on RGB",
    )
    steadiness_weight: float = Field(
        default=0.0,
        ge=0,
        le=100,
        description="weight of the disagreement between two crops that are offset by 0 to 3 pixels",
    )

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.hours is not None and self.iterations is not None:
            raise ValueError("give hours or iterations, not both")
        return self


class PixelSection(StageSection):
    """The pixel-loss stage, which fits the network to the originals."""

    loss: Literal["l1", "mse"] = Field(
        default="l1", description="mean absolute or mean squared difference of code values / 255"
    )
    sample_knob: bool = Field(
        default=False,
        description="with [degradation] and --base: in each batch, fit the mean of the network "
        "and the base at a drawn position of --restore, on damage of that severity",
    )


class AdversarialSection(StageSection):
    """The stage in which a discriminator and perceptual features judge the network's pictures."""

    learning_rate: float = Field(default=1e-4, gt=0, le=1, description="peak of the cosine cycle")
    discriminator: Literal["srgan", "unet"] = Field(
        default="srgan", description="the paper's, or a U-Net that judges each pixel"
    )
    discriminator_width: int = Field(
        default=64, ge=4, le=256, description="channels of the discriminator's first convolution"
    )
    discriminator_norm: Literal["batch", "spectral"] = Field(
        default="batch", description="normalization of the paper's discriminator"
    )
    discriminator_crop: int | None = Field(
        default=None,
        ge=16,
        le=1024,
        description="the only crop that its dense layer accepts, in high-resolution pixels; "
        "without it, features are pooled and any crop works",
    )
    discriminator_learning_rate: float = Field(
        default=1e-4, gt=0, le=1, description="the discriminator's learning rate; same cycle"
    )
    adversary: Literal["standard", "relativistic"] = Field(
        default="standard",
        description="binary cross-entropy, or that of real pictures against the mean of made ones",
    )
    perceptual: Literal["vgg19", "vgg16", "random_vgg", "efficientnet_lite2", "discriminator"] = (
        Field(default="vgg19", description="the network whose features the content loss compares")
    )
    perceptual_layers: tuple[str, ...] = Field(
        default=("conv5_4",), min_length=1, description="layers of VGG, taken after their ReLU"
    )
    perceptual_weights: Path | None = Field(
        default=None, description="file with the feature network's ImageNet weights"
    )
    perceptual_form: Literal["squared", "unit"] = Field(
        default="squared",
        description="distance of features: the paper's squared error, or that of unit features "
        "(LPIPS without learned weights)",
    )
    content_weight: float = Field(default=1.0, ge=0, description="weight of the content loss")
    adversarial_weight: float = Field(
        default=1e-3, ge=0, description="weight of the generator's adversarial loss"
    )
    pixel_weight: float = Field(
        default=0.0, ge=0, description="weight of the mean absolute difference, to stabilize color"
    )
    ldl_weight: float = Field(
        default=0.0,
        ge=0,
        description="weight of locally discriminative learning (Liang, 2022)",
    )
    grid_weight: float = Field(
        default=0.0, ge=0, description="weight of the pattern that PixelShuffle's phases leave"
    )
    texture_weight: float = Field(
        default=0.0,
        ge=0,
        description="weight of the error in the local strength of detail, wherever it lies",
    )
    ramp: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="fraction of the stage in which the adversarial weight rises from zero",
    )


class RunSection(Section):
    """The settings of the run itself: checkpoints, logs, validation."""

    num_threads: int = Field(default=2, ge=1, le=256, description="threads PyTorch computes with")
    accelerator: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto uses CUDA if available, otherwise the CPU"
    )
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = Field(
        default="32-true",
        description="for the forward and backward pass; auto uses bf16 where the machine computes "
        "with it",
    )
    crops: Literal["host", "device"] = Field(
        default="host",
        description="where patches are cut; device: all planes lie there, for a GPU that would "
        "wait for the host; the batches are the same",
    )
    cuda_graph: bool = Field(
        default=True,
        description="with CUDA and crops on the device: an iteration is one CUDA graph",
    )
    read_iterations: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="losses are looked at every so many iterations; a GPU is waited for each time",
    )
    clock: Literal["wall", "cpu"] = Field(
        default="wall",
        description="clock for a stage's hours and the validations; cpu: time on a core, "
        "to compare runs of one thread on a busy machine",
    )
    log_seconds: float = Field(default=30.0, gt=0, description="seconds between lines of log.jsonl")
    checkpoint_minutes: float = Field(default=5.0, gt=0, description="minutes between checkpoints")
    checkpoint_iterations: int | None = Field(
        default=None, ge=1, description="also write a checkpoint every so many iterations"
    )
    validate_minutes: float = Field(default=10.0, gt=0, description="minutes between validations")
    memory_mib: int = Field(
        default=4096,
        ge=0,
        description="MiB of memory for the planes of pictures; where they take more, each is read "
        "when a patch of it is drawn, and kept on disk in the run's folder",
    )
    cache_gib: float = Field(
        default=20.0, ge=0, description="GiB on disk for the planes that memory does not hold"
    )
    tensorboard: bool = Field(default=True, description="write scalars and pictures for it")


class TrainConfig(Section):
    """A whole training run, with its stages in the order of the fields."""

    model: str = Field(description="name of the model in srstream's model table")
    seed: int = Field(
        default=1, ge=0, lt=2**32, description="seed of the initial weights and the patches"
    )
    network: NetworkSection = NetworkSection()
    data: DataSection = DataSection()
    degradation: DegradationSection | None = Field(
        default=None, description="without it, low resolution is clean"
    )
    pixel: PixelSection | None = None
    adversarial: AdversarialSection | None = None
    run: RunSection = RunSection()

    @property
    def stages(self) -> tuple[StageSection, ...]:
        """The stages of the run, in order."""
        return tuple(stage for stage in (self.pixel, self.adversarial) if stage is not None)

    @property
    def samples_knob(self) -> bool:
        """Whether batches are for drawn positions of `--restore`."""
        return self.pixel is not None and self.pixel.sample_knob

    def with_hours(self, hours: float) -> Self:
        """Return the same run with another length, split evenly among its stages."""
        names = [name for name in ("pixel", "adversarial") if getattr(self, name) is not None]
        length = {"hours": hours / len(names), "iterations": None}
        return self.model_copy(
            update={name: getattr(self, name).model_copy(update=length) for name in names}
        )

    def check_lengths(self) -> None:
        """Raise `UsageError` if a stage has no length."""
        for stage in self.stages:
            if stage.hours is None and stage.iterations is None:
                raise UsageError(
                    "how long to train? Use --hours, or hours or iterations in each stage"
                )

    @model_validator(mode="after")
    def _something_to_do(self) -> Self:
        if not self.stages:
            raise ValueError("a run needs a [pixel] or an [adversarial] stage")
        return self

    @model_validator(mode="after")
    def _knob_has_damage(self) -> Self:
        if self.samples_knob and self.degradation is None:
            raise ValueError("sample_knob needs a [degradation] table: damage of every severity")
        return self

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        stage = self.adversarial
        crop = None if stage is None else stage.discriminator_crop
        if crop is not None and crop != 4 * self.data.patch_size:
            raise ValueError(
                f"discriminator_crop is {crop}, but patches of {self.data.patch_size} are "
                f"{4 * self.data.patch_size} in high resolution"
            )
        return self


def load_config(path: Path) -> TrainConfig:
    """Return the checked config of a run, or raise `ConfigError` naming the faulty fields."""
    return read_config(path, TrainConfig)
