"""What is known of a source and of an output before a frame is decoded. Plain data, no libav."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Literal

from srstream.frame import ColorSpec, FrameForm, PlaneLayout

StreamType = Literal["video", "audio", "subtitle", "data", "attachment"]
Action = Literal["enhance", "copy", "convert", "drop"]


@dataclass(frozen=True, slots=True)
class AudioForm:
    """What an audio encoder is given: samples a second, layout of the channels, sample format."""

    rate: int
    layout: str
    sample_format: str


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """One stream of the source, as its container describes it. `audio` is what it decodes to."""

    index: int
    type: StreamType
    codec: str
    language: str | None = None
    title: str | None = None
    is_attached_picture: bool = False
    detail: str = ""
    audio: AudioForm | None = None


@dataclass(frozen=True, slots=True)
class HdrMetadata:
    """Static HDR side data, in the form that x265's and x264's options take.

    `mastering_display` is `G(x,y)B(x,y)R(x,y)WP(x,y)L(max,min)` in units of 0.00002 (primaries)
    and 0.0001 cd/m2 (luminance); `content_light_level` is (MaxCLL, MaxFALL) in cd/m2.
    """

    mastering_display: str | None = None
    content_light_level: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Crop:
    """Columns and rows of decoded pictures that the container hides, in samples of luma."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0

    def __bool__(self) -> bool:
        return bool(self.left or self.top or self.right or self.bottom)

    def size_of(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of what is left of a picture."""
        return width - self.left - self.right, height - self.top - self.bottom


WHOLE = Crop()


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """The video stream that is enhanced.

    `width` and `height` are those of what is shown, without what `crop` takes from each picture.
    `rotation_degrees` is counter-clockwise as libav gives it and `display_matrix` holds the nine
    16.16/2.30 fixed-point numbers behind it. `time_base` is the one in which all `pts` of the job
    count. `frame_rate` is only an estimate for show and for streams without timestamps.
    """

    index: int
    codec: str
    pix_fmt: str
    width: int
    height: int
    layout: PlaneLayout
    color: ColorSpec
    time_base: Fraction
    frame_rate: Fraction | None
    sample_aspect_ratio: Fraction
    rotation_degrees: int = 0
    display_matrix: tuple[int, ...] | None = None
    is_interlaced: bool = False
    hdr: HdrMetadata = field(default_factory=HdrMetadata)
    bit_rate: int | None = None
    crop: Crop = WHOLE

    @property
    def form(self) -> FrameForm:
        """The form of the stream's frames."""
        return FrameForm(self.width, self.height, self.layout, self.color, self.sample_aspect_ratio)


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """All that `plan` shows of a source. Times in seconds are for show; `pts` are exact."""

    path: Path
    container: str
    size_bytes: int
    duration_seconds: float | None
    video: VideoInfo
    streams: tuple[StreamInfo, ...]
    num_chapters: int = 0
    warnings: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    """Names of those of the whole file, but of what only tells of the file itself."""


@dataclass(frozen=True, slots=True)
class PacketIndex:
    """One pass over the source's packets, without decoding.

    `pts` are the display times of the video's packets, sorted, in the video's time base;
    `key_pts` those of its keyframes. Both are empty where the packets carry no time
    (`has_timestamps` False); then frame n is shown at n / frame_rate. `num_packets` counts video
    packets that are to be shown (edit lists respected). `truncated_at_seconds` is set when the
    source ends earlier than its header says or a read failed. `sha256` is of the whole file.
    `is_complete` is False when a deadline ended the pass early. `starts` has the earliest time of
    each other stream, in seconds.
    """

    pts: tuple[int, ...]
    key_pts: tuple[int, ...]
    num_packets: int
    has_timestamps: bool
    truncated_at_seconds: float | None
    sha256: str
    is_complete: bool = True
    starts: dict[int, Fraction] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OutputVideo:
    """What the enhanced video stream will be; everything that an encoder needs besides frames."""

    codec: str
    pix_fmt: str
    layout: PlaneLayout
    width: int
    height: int
    color: ColorSpec
    time_base: Fraction
    frame_rate: Fraction | None
    sample_aspect_ratio: Fraction
    options: dict[str, str]
    hdr: HdrMetadata = field(default_factory=HdrMetadata)
    display_matrix: tuple[int, ...] | None = None

    @property
    def form(self) -> FrameForm:
        """The form of the stream's frames."""
        return FrameForm(self.width, self.height, self.layout, self.color, self.sample_aspect_ratio)


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """What becomes of one source stream. `reason` is a sentence where the action is not copy.

    `form` is what the encoder of converted audio is given.
    """

    index: int
    type: StreamType
    codec: str
    action: Action
    output_codec: str | None = None
    reason: str = ""
    form: AudioForm | None = None


@dataclass(frozen=True, slots=True)
class Tried:
    """What becomes of a source's streams after a trial, and which of them it changed."""

    streams: tuple[StreamPlan, ...]
    changed: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class OutputPlan:
    """Where the result goes and in which form; `losses` are announced before the start."""

    path: Path
    container: str
    video: OutputVideo
    streams: tuple[StreamPlan, ...]
    losses: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    keeps_start: bool = False
    """The output begins when the source does, not at zero."""
    earliest_other: Fraction | None = None
    """When the first of the other streams begins that the output has, in seconds of the source."""


@dataclass(frozen=True, slots=True)
class SegmentFile:
    """One encoded segment on disk; `pts` are the source's, sorted, in the video's time base."""

    path: Path
    pts: tuple[int, ...]
    last_duration: int


@dataclass(frozen=True, slots=True)
class TimeWindow:
    """`--start/--end`, in pts of the video: start included, end excluded; None is unbounded."""

    start_pts: int | None = None
    end_pts: int | None = None
