"""`--restore auto`: chooses the restoration strength by the source's compression and sharpness."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from srstream.config import JobConfig, ModelConfig
from srstream.errors import SrstreamError
from srstream.media.read.quantizer import Compression, measure_compression
from srstream.media.types import PacketIndex, VideoInfo
from srstream.models.restore_auto import restoration_for
from srstream.models.table import ModelSpec, available_sets


@dataclass(frozen=True, slots=True)
class RestoreChoice:
    """The value chosen for `--restore` and the reason for it."""

    value: float
    reason: str
    strength: float = 1.0
    """The share of the network's change over bicubic to apply; only `auto` goes below 1."""

    def applied(self, model: ModelConfig) -> ModelConfig:
        """Return the model's settings with the chosen value."""
        return model.model_copy(update={"restore": self.value})


def choose_restore(
    source: Path, video: VideoInfo, index: PacketIndex, config: JobConfig, spec: ModelSpec
) -> RestoreChoice:
    """Return the value asked for, or for `auto` the one that quantizer and sharpness call for."""
    asked = config.model.restore
    if asked != "auto":
        return RestoreChoice(asked, "as asked")
    if config.model.weights is not None:
        return RestoreChoice(0.0, "these weights have no knobs")
    if "restore" not in available_sets(spec.name):
        return RestoreChoice(0.0, f"model {spec.name} has no restore weights")
    try:
        found = measure_compression(source, video, index.key_pts, config.source)
    except SrstreamError:
        found = None  # the decoder reports what is wrong with the file
    if found is None:
        return RestoreChoice(0.0, "its compression could not be measured")
    chosen = restoration_for(found.quantizer, found.detail, spec.name)
    return RestoreChoice(chosen.restore, _reason(video.codec, found), chosen.strength)


def _reason(codec: str, found: Compression) -> str:
    return f"{_compression(codec, found)}; sharpness {found.detail.sharpness:.2f}"


def _compression(codec: str, found: Compression) -> str:
    if found.num_frames:
        return (
            f"{codec} at a mean quantizer of {found.quantizer:.0f} (x264's scale), "
            f"read from {found.num_frames} frames"
        )
    if found.quantizer == 0.0:
        return f"{codec} is lossless"
    return (
        f"{codec} with {found.bits_per_pixel:.3f} bits a pixel, about a quantizer of "
        f"{found.quantizer:.0f} on x264's scale"
    )
