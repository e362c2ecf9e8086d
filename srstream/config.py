"""The settings of a job, one class per section. A stage receives its own section and no more."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

EngineName = Literal["auto", "openvino", "pytorch", "tensorrt", "cuda", "ncnn"]
Precision = Literal["float32", "bfloat16", "int8"]
DecoderName = Literal["cpu", "nvdec", "auto"]


ENCODER_NAMES = {
    "h264": "libx264", "h.264": "libx264", "avc": "libx264", "avc1": "libx264", "x264": "libx264",
    "hevc": "libx265", "h265": "libx265", "h.265": "libx265", "hvc1": "libx265", "x265": "libx265",
    "av1": "libsvtav1", "av01": "libsvtav1", "svtav1": "libsvtav1", "svt-av1": "libsvtav1",
    "vp9": "libvpx-vp9", "libvpx_vp9": "libvpx-vp9", "vp8": "libvpx", "prores": "prores_ks",
    "nvenc": "h264_nvenc", "nvenc_h264": "h264_nvenc", "nvenc_hevc": "hevc_nvenc",
    "mpeg2": "mpeg2video",
}  # fmt: skip
"""Encoders by the names of their codecs and by other names in use. libav knows some of these names
too, but no table of settings in srstream does."""


class Section(BaseModel):
    """A frozen table of settings in which an unknown name is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(Section):
    """The network and its weights."""

    name: str = Field("fast", description="network; one of those with weights")
    weights: str | None = Field(
        None, description="path of an .onnx file instead of the shipped one"
    )
    restore: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = Field(
        "auto", description="how far to mend what a codec has damaged; auto reads the source"
    )
    detail: float = Field(
        0.0, ge=0, le=1, description="from the faithful (0) to the adversarially trained look (1)"
    )


class EngineConfig(Section):
    """Where the network runs."""

    name: EngineName = Field(
        "auto",
        description="inference engine; auto: tensorrt or else cuda where there is an NVIDIA GPU, "
        "else the model's fastest on a CPU",
    )
    precision: Precision = Field(
        "float32",
        description="what openvino computes in; the others are faster and less exact. "
        "cuda computes in float16 unless this is bfloat16",
    )
    threads: int = Field(0, ge=0, le=1024, description="CPU threads; 0 takes all available cores")
    max_memory_bytes: int | None = Field(
        None, ge=64 << 20, description="memory the whole job may use; chooses the tiles"
    )


class ReuseConfig(Section):
    """Reuse of parts of a frame that did not change since the last one."""

    enabled: bool = Field(True, description="copy what is the same; the result is the same")
    threshold: int = Field(
        0,
        ge=0,
        le=64,
        description="levels of 255 by which a sample may differ and still be the same",
    )


class ScaleConfig(Section):
    """The size of the output: the model's own unless one of these is given."""

    scale: float | None = Field(None, gt=0, le=64, description="factor on the source's size")
    height: int | None = Field(None, ge=2, le=65535, description="rows of the output")
    width: int | None = Field(None, ge=2, le=65535, description="columns of the output")
    fit: str | None = Field(
        None,
        pattern=r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$",
        description="the box that the output fills, such as 1920x1080",
    )

    @property
    def box(self) -> tuple[int, int] | None:
        """Return `fit` as (width, height)."""
        if self.fit is None:
            return None
        width, height = self.fit.split("x")
        return int(width), int(height)


class EncodeConfig(Section):
    """How the output's video is encoded."""

    codec: str = Field(
        "auto",
        description="encoder or codec (libx264 or h264, libx265, libsvtav1, ...); auto chooses",
    )
    crf: float | None = Field(None, ge=0, le=63, description="constant quality; codec's scale")
    preset: str | None = Field(None, description="encoder preset; codec's own names")
    chroma: Literal["auto", "keep"] = Field(
        "auto",
        description="resolution of color; auto: 4:2:0, which devices play, keep: the source's",
    )

    @field_validator("codec")
    @classmethod
    def _one_name(cls, codec: str) -> str:
        """Replace the name of a codec by that of its encoder."""
        name = codec.strip().lower()
        return ENCODER_NAMES.get(name, name)


class StreamsConfig(Section):
    """What becomes of the streams beside the enhanced video."""

    other_video: Literal["keep", "drop"] = Field(
        "keep", description="further videos: copied behind the enhanced one, or left out"
    )


class SourceConfig(Section):
    """Which part of the input is read, and how."""

    start_seconds: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="from the first video frame"
    )
    end_seconds: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="from the first video frame"
    )
    keep_start: bool = Field(
        False,
        description="begin when the source's clock does, such as a recorder's, instead of at zero",
    )
    salvage: bool = Field(False, description="deliver the good part of a broken input")
    decoder: DecoderName = Field(
        "cpu", description="what decodes; auto: nvdec where it opens, else cpu"
    )
    max_pixels: int = Field(
        16384 * 16384, ge=1, description="largest width x height that is decoded"
    )
    max_streams: int = Field(1000, ge=1, le=100_000, description="streams that a file may hold")
    max_duration_seconds: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="longest input, as its header says"
    )


class JobConfig(Section):
    """All settings of one enhancement job."""

    model: ModelConfig = ModelConfig()
    engine: EngineConfig = EngineConfig()
    reuse: ReuseConfig = ReuseConfig()
    scaling: ScaleConfig = ScaleConfig()
    encode: EncodeConfig = EncodeConfig()
    streams: StreamsConfig = StreamsConfig()
    source: SourceConfig = SourceConfig()
    deterministic: bool = Field(
        False, description="byte-reproducible result: one encoder thread, fixed inference order"
    )
