"""What is known of a source and an output before any frame is decoded. Plain data, no libav."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Literal

from srstream.frame import ColorSpec, FrameForm, PlaneLayout

_RGB = {False: "rgb24", True: "rgba"}

StreamType = Literal["video", "audio", "subtitle", "data", "attachment"]
Action = Literal["enhance", "copy", "convert", "drop"]


@dataclass(frozen=True, slots=True)
class AudioForm:
    """The input of an audio encoder: sample rate, channel layout, sample format."""

    rate: int
    layout: str
    sample_format: str


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """One stream of the source, as its container describes it. `audio` is its decoded form."""

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
    """Static HDR side data, in the form that the options of x265 and x264 take.

    `mastering_display` is `G(x,y)B(x,y)R(x,y)WP(x,y)L(max,min)` in units of 0.00002 (primaries)
    and 0.0001 cd/m2 (luminance); `content_light_level` is (MaxCLL, MaxFALL) in cd/m2.
    """

    mastering_display: str | None = None
    content_light_level: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Crop:
    """Columns and rows of decoded pictures that the container hides, in luma samples."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0

    def __bool__(self) -> bool:
        return bool(self.left or self.top or self.right or self.bottom)

    def size_of(self, width: int, height: int) -> tuple[int, int]:
        """Return the (width, height) that remain of a picture."""
        return width - self.left - self.right, height - self.top - self.bottom


WHOLE = Crop()


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """The video stream to enhance.

    `width` and `height` are those of the visible picture, after `crop`. `rotation_degrees` is
    counter-clockwise, as in libav, and `display_matrix` holds the nine 16.16/2.30 fixed-point
    numbers behind it. All `pts` of the job count in `time_base`. `frame_rate` is only an estimate,
    for display and for streams without timestamps.
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
    """What `plan` shows of a source. Times in seconds are for display; `pts` are exact."""

    path: Path
    container: str
    size_bytes: int
    duration_seconds: float | None
    video: VideoInfo
    streams: tuple[StreamInfo, ...]
    num_chapters: int = 0
    warnings: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    """Names of the file's tags, except those that only describe the file itself."""
    num_plays: int | None = None
    """How often an animated picture is shown, 0 without end; None for what is none."""
    is_lossless_webp: bool = False


@dataclass(frozen=True, slots=True)
class PacketIndex:
    """The result of one pass over the source's packets, without decoding.

    `pts` are the display times of the video's packets, sorted, in the video's time base;
    `key_pts` those of its keyframes. Both are empty where packets carry no times (`has_timestamps`
    is False); frame n is then shown at n / frame_rate. `num_packets` counts the video packets to
    be shown (respecting edit lists). `truncated_at_seconds` is set when the source ends earlier
    than its header says or a read failed. `sha256` is of the whole file. `is_complete` is False
    when a deadline ended the pass early. `starts` has the earliest time of each other stream, in
    seconds.
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
    """The planned enhanced video stream: everything an encoder needs besides frames."""

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
    """What happens to one source stream. `reason` is a sentence unless the action is copy.

    `form` is the input of the encoder for converted audio.
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
    """What happens to a source's streams after a trial, and which of them the trial changed."""

    streams: tuple[StreamPlan, ...]
    changed: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class OutputPlan:
    """Where the result goes and in what form; `losses` are announced before the start."""

    path: Path
    container: str
    video: OutputVideo
    streams: tuple[StreamPlan, ...]
    losses: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    keeps_start: bool = False
    """Whether the output begins at the source's start time instead of at zero."""
    earliest_other: Fraction | None = None
    """When the earliest of the output's other streams begins, in seconds of the source."""
    is_animation: bool = False
    """Whether it is an animated picture, which is made of the segments, stored without loss."""
    size: tuple[int, int] = (0, 0)
    """(width, height) as the file states them: of an animated picture those of the turned one."""

    @property
    def codec(self) -> str:
        """The codec of the file's video, by its encoder's name."""
        return self.container if self.is_animation else self.video.codec

    @property
    def pix_fmt(self) -> str:
        """The pixel format of the file's video, by libav's name."""
        if not self.is_animation:
            return self.video.pix_fmt
        return "pal8" if self.container == "gif" else _RGB[self.video.layout.has_alpha]


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
