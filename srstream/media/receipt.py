"""The fidelity receipt: the result of comparing an output with its source."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, computed_field

SCHEMA = "srstream.receipt/1"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StreamReceipt(_Part):
    """One stream of the source and what represents it in the output."""

    index: int = Field(description="number in the source")
    type: str
    codec: str = Field(description="codec in the source")
    language: str | None
    action: str = Field(description="enhance, copy, convert or drop")
    output_index: int | None = Field(description="number in the output; null if it is not there")
    output_codec: str | None
    output_language: str | None
    num_packets: int
    num_output_packets: int
    offset_change_seconds: float | None = Field(
        description="how far it moved relative to the video; null where that does not apply"
    )


class PictureReceipt(_Part):
    """The source's and the output's descriptions of the video."""

    width: int
    height: int
    pix_fmt: str
    bits: int
    has_alpha: bool
    primaries: int = Field(description="H.273 code point, 2 is unspecified")
    transfer: int
    matrix: int
    full_range: bool | None
    chroma_location: int = Field(description="libav's AVChromaLocation")
    sample_aspect_ratio: str
    rotation_degrees: int
    mastering_display: str | None
    content_light_level: tuple[int, int] | None


class ColorReceipt(_Part):
    """Pixel differences, after area averaging scales the output down to the source's size.

    Errors are in 8-bit levels, whatever the depth, and refer to the source's own planes.
    """

    num_frames_compared: int
    mean_error: float = Field(description="mean of |output - source|, over planes and frames")
    largest_mean_error: float = Field(description="that of the worst plane of the worst frame")
    largest_shift: float = Field(description="largest change of a plane's mean in any frame")
    largest_local_shift: float = Field(description="the same within any cell of an 8 x 8 grid")
    num_black_frames: int = Field(description="black in the output but not in the source")
    num_nan_frames: int = Field(description="with NaN values (float formats)")


class Receipt(_Part):
    """The complete result; `ok` unless something is missing that was not announced."""

    schema_version: str = Field(SCHEMA, serialization_alias="schema")
    source: str
    output: str
    problems: list[str]
    losses: list[str] = Field(description="what the output's container or codec cannot hold")
    num_frames_in: int
    num_frames_out: int
    largest_time_error_seconds: float
    time_tolerance_seconds: float = Field(description="half a tick of the output's clock")
    time_shift_seconds: float = Field(description="by which all times were moved on purpose")
    largest_offset_change_seconds: float = Field(description="of any audio against the video")
    num_chapters_in: int
    num_chapters_out: int
    streams: list[StreamReceipt]
    video_in: PictureReceipt
    video_out: PictureReceipt
    color: ColorReceipt

    @computed_field  # type: ignore[prop-decorator]
    @property
    def ok(self) -> bool:
        """Whether the comparison found no problem."""
        return not self.problems

    @computed_field  # type: ignore[prop-decorator]
    @property
    def summary(self) -> str:
        """The result in one printable line."""
        if self.problems:
            more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
            return f"not verified: {self.problems[0]}{more}"
        kept = sum(stream.action != "drop" for stream in self.streams)
        return (
            f"verified: {self.num_frames_out} of {self.num_frames_in} frames, "
            f"{kept} of {len(self.streams)} streams, "
            f"times off by at most {self.largest_time_error_seconds * 1000:.3g} ms, "
            f"colors by {self.color.mean_error:.2f} of 255 levels in the mean"
        )
