"""Turns decoded frames into numbers that are comparable whatever format they were stored in.

Shape legend: H, W are rows and columns of a plane.

Samples become float32: luma (or alpha) from 0 (black) to 1, and color differences from -0.5 to
0.5, scaled by the frame's own range, so frames of different range that look alike become alike.
"""

from __future__ import annotations

import re
import struct
import time
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, cast

import av
import cv2
import numpy as np
import numpy.typing as npt
from av.codec.context import CodecContext
from av.sidedata.sidedata import Type as SideData
from av.video.format import VideoFormat
from av.video.frame import VideoFrame

from srstream.media.side_data import side_data_of

Shape = tuple[int, int]
"""(rows, columns)."""

FloatPlane = npt.NDArray[np.float32]

LUMA_WEIGHTS = {
    1: (0.2126, 0.0722),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
    10: (0.2627, 0.0593),
}
"""Kr and Kb of H.273's matrix coefficients."""

_BAND_ROWS = 256
_RANGES = {1: False, 2: True}
_LOCATIONS = ("unspecified", "left", "center", "topleft", "top", "bottomleft", "bottom")
_SHAPES = {(0, 0): "444", (1, 0): "422", (1, 1): "420", (0, 1): "440", (2, 0): "411", (2, 2): "410"}


@dataclass(frozen=True, slots=True)
class Label:
    """A frame's description. Code points are H.273's; 2 is unspecified. `siting` is libav's number.

    `turn` is the display matrix without its scale, (a, b, c, d); (1, 0, 0, 1) is upright.
    """

    width: int
    height: int
    pix_fmt: str
    bits: int
    has_alpha: bool
    primaries: int
    transfer: int
    matrix: int
    full_range: bool | None
    siting: int
    aspect: Fraction
    turn: tuple[int, int, int, int]
    rotation: int
    mastering: str | None
    light: tuple[int, int] | None
    is_interlaced: bool = False

    @property
    def is_rgb(self) -> bool:
        return is_rgb(self.pix_fmt)

    @property
    def is_gray(self) -> bool:
        return self.pix_fmt.startswith(("gray", "mono", "ya"))

    @property
    def is_full(self) -> bool:
        """Whether its samples use the whole range; RGB does unless it says otherwise."""
        if self.full_range is None:
            return self.is_rgb
        return self.full_range


@dataclass(frozen=True, slots=True)
class Picture:
    """A frame's planes: luma (H, W), two color differences on their own grid (None if gray), alpha.

    Alpha (H, W) ranges from 0 to 1, or is None.

    `siting` is the position (x, y) of color sample 0 in luma samples from luma sample 0; `step` the
    distance between color samples. `shapes` are those of luma and color before downscaling.
    """

    luma: FloatPlane
    chroma: tuple[FloatPlane, FloatPlane] | None
    alpha: FloatPlane | None
    step: tuple[int, int]
    siting: tuple[float, float]
    shapes: tuple[Shape, Shape] | None = None


def is_rgb(pix_fmt: str) -> bool:
    """Return whether a pixel format holds red, green and blue; a palette does."""
    return VideoFormat(pix_fmt).is_rgb or pix_fmt in ("pal8", "xyz12le", "xyz12be")


def label_of(
    frame: VideoFrame, context: CodecContext, aspect: Fraction | None, default: Fraction | None
) -> Label:
    """Return a frame's description.

    What PyAV has no attribute for is read from libav's log (see `_said_by_libav`).

    Args:
        context: the stream's decoder, for what the frame does not state.
        aspect: the container's pixel aspect, which takes precedence over the frame's.
        default: applies if neither states one.
    """
    said = _said_by_libav(frame)
    name = frame.format.name
    defaults = cast(Any, context)
    color = (defaults.color_primaries, defaults.color_trc, defaults.colorspace)
    turn, rotation = _turn(frame)
    mastering, light = _hdr(frame)
    sar = re.search(r"\bsar:(\d+)/(\d+)", said)
    own = Fraction(int(sar[1]), int(sar[2])) if sar and int(sar[1]) and int(sar[2]) else None
    place = re.search(r"\bcl:(\w+)", said)
    label = Label(
        width=frame.width,
        height=frame.height,
        pix_fmt=name,
        bits=8,
        has_alpha=False,
        primaries=int(color[0]),
        transfer=int(color[1]),
        matrix=int(color[2]),
        full_range=_RANGES.get(int(defaults.color_range)),
        siting=_LOCATIONS.index(place[1]) if place and place[1] in _LOCATIONS else 0,
        aspect=aspect or own or default or Fraction(1),
        turn=turn,
        rotation=rotation,
        mastering=mastering,
        light=light,
    )
    return relabelled(label, frame, label.aspect)


def relabelled(label: Label, frame: VideoFrame, aspect: Fraction) -> Label:
    """Return the label of a later frame: its own values, else those of the earlier label."""
    name = frame.format.name
    matrix = _known(int(frame.colorspace), label.matrix, unknown=(2, 3))
    if is_rgb(name):
        matrix = 0
    elif matrix == 0:
        matrix = 2
    return replace(
        label,
        width=frame.width,
        height=frame.height,
        pix_fmt=name,
        bits=_bits(name),
        has_alpha=_has_alpha(frame),
        primaries=_known(int(frame.color_primaries), label.primaries),
        transfer=_known(int(frame.color_trc), label.transfer),
        matrix=matrix,
        # A decoder may keep a full-range name after frames become limited.
        full_range=_RANGES.get(int(frame.color_range), name.startswith("yuvj") or label.full_range),
        aspect=aspect,
        is_interlaced=bool(frame.interlaced_frame),
    )


def picture_of(
    frame: VideoFrame, label: Label, within: tuple[Shape, Shape] | None = None
) -> Picture:
    """Return what a frame shows.

    Args:
        within: shapes to which larger luma and color planes are averaged down, so that a large
            picture takes little memory.
    """
    name = _plain_name(frame)
    if name != frame.format.name:
        # With threads, swscale occasionally writes a wrong row in some formats.
        frame = frame.reformat(format=name, interpolation="POINT", threads=1)
    fmt = VideoFormat(name)
    bits = fmt.components[0].bits
    samples = [_samples(frame, n) for n in range(len(fmt.components))]
    shapes = samples[0].shape, samples[1 if len(samples) > 1 else 0].shape
    has_chroma = len(samples) > 2 and not name.startswith("gbr")
    planes = [
        _smaller(plane, within[1 if has_chroma and n in (1, 2) else 0]) if within else plane
        for n, plane in enumerate(samples)
    ]
    alpha = _scaled(planes.pop(), 0, (1 << bits) - 1) if fmt.components[-1].is_alpha else None
    full = label.is_full
    if name.startswith("gbr"):
        green, blue, red = (_scaled(plane, *_range(bits, full)) for plane in planes)
        luma, first, second = rgb_to_differences(red, green, blue)
        return Picture(luma, (first, second), alpha, (1, 1), (0.0, 0.0), shapes)
    luma = _scaled(planes[0], *_range(bits, full))
    chroma = None
    step = (1, 1)
    if len(planes) > 1:
        width, height = frame.width, frame.height
        step = (_step(width, shapes[1][1]), _step(height, shapes[1][0]))
        middle = 1 << (bits - 1)
        span = (1 << bits) - 1 if full else 224 << (bits - 8)
        chroma = (
            _scaled(planes[1], middle, middle + span),
            _scaled(planes[2], middle, middle + span),
        )
    return Picture(luma, chroma, alpha, step, chroma_place(label, step), shapes)


def rgb_to_differences(
    red: FloatPlane, green: FloatPlane, blue: FloatPlane, matrix: int = 1
) -> tuple[FloatPlane, FloatPlane, FloatPlane]:
    """Return luma and color differences of R'G'B' in [0, 1] (H.273, 8.3)."""
    kr, kb = LUMA_WEIGHTS.get(matrix, LUMA_WEIGHTS[1])
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    return luma, (blue - luma) / (2 - 2 * kb), (red - luma) / (2 - 2 * kr)


def differences_to_rgb(
    luma: FloatPlane, first: FloatPlane, second: FloatPlane, matrix: int
) -> tuple[FloatPlane, FloatPlane, FloatPlane]:
    """Invert `rgb_to_differences`, for planes of one size."""
    kr, kb = LUMA_WEIGHTS.get(matrix, LUMA_WEIGHTS[1])
    red, blue = luma + (2 - 2 * kr) * second, luma + (2 - 2 * kb) * first
    green = (luma - kr * red - kb * blue) / (1 - kr - kb)
    return cast(tuple[FloatPlane, FloatPlane, FloatPlane], (red, green, blue))


def chroma_place(label: Label, step: tuple[int, int]) -> tuple[float, float]:
    """Return the position (x, y) of color sample 0 in luma samples.

    Unspecified means left in limited range, as in MPEG, and center in full range, as in JPEG.
    """
    siting = label.siting or (2 if label.is_full else 1)
    x = 0.0 if siting in (1, 3, 5) else (step[0] - 1) / 2
    y = {3: 0.0, 4: 0.0, 5: step[1] - 1.0, 6: step[1] - 1.0}.get(siting, (step[1] - 1) / 2)
    return x, y


def resized(plane: FloatPlane, shape: tuple[int, int]) -> FloatPlane:
    """Resize a plane to (rows, columns), averaging if it becomes smaller."""
    if plane.shape == shape:
        return plane
    smaller = plane.shape[0] >= shape[0] and plane.shape[1] >= shape[1]
    how = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    return cast(FloatPlane, cv2.resize(plane, (shape[1], shape[0]), interpolation=how))


def field_of(picture: Picture, first: int) -> Picture:
    """Return one field: every other row from `first` (0 or 1) on, and interpolated rows between."""
    chroma = picture.chroma
    if chroma is not None:
        chroma = (_woven(chroma[0], first), _woven(chroma[1], first))
    alpha = None if picture.alpha is None else _woven(picture.alpha, first)
    return Picture(_woven(picture.luma, first), chroma, alpha, picture.step, picture.siting)


def _woven(plane: FloatPlane, first: int) -> FloatPlane:
    """Keep every other row from `first` on and interpolate those between."""
    if plane.shape[0] < 3:
        return plane
    rows = np.arange(plane.shape[0])
    kept = rows[first::2]
    above = np.clip(rows - (rows - first) % 2, kept[0], kept[-1])
    below = np.clip(rows + (rows - first) % 2, kept[0], kept[-1])
    return cast(FloatPlane, (plane[above] + plane[below]) / 2)


def _range(bits: int, full: bool) -> tuple[int, int]:
    """Return the codes of black and white."""
    return (0, (1 << bits) - 1) if full else (16 << (bits - 8), 235 << (bits - 8))


def _smaller(plane: npt.NDArray[Any], shape: Shape) -> npt.NDArray[Any]:
    """Average samples down to a shape, as float; unchanged if that is not smaller.

    If rows divide evenly, it works in bands, which gives the same result and takes less memory.
    """
    if plane.shape[0] < shape[0] or plane.shape[1] < shape[1] or plane.shape == shape:
        return plane
    step = plane.shape[0] // shape[0] if plane.shape[0] % shape[0] == 0 else plane.shape[0]
    num_bands = shape[0] if step < plane.shape[0] else 1
    height = max(_BAND_ROWS // step, 1) if num_bands > 1 else 1
    bands = []
    for first in range(0, num_bands, height):
        part = plane[first * step : (first + height) * step].astype(np.float32)
        rows = part.shape[0] // step if num_bands > 1 else shape[0]
        bands.append(cv2.resize(part, (shape[1], rows), interpolation=cv2.INTER_AREA))
    return np.concatenate(bands)


def _scaled(plane: npt.NDArray[Any], zero: int, one: int) -> FloatPlane:
    scaled: FloatPlane = (plane.astype(np.float32) - np.float32(zero)) / np.float32(one - zero)
    return scaled


def _samples(frame: VideoFrame, component: int) -> npt.NDArray[Any]:
    """Return plane `component` of a planar little-endian frame as a view of its memory."""
    plane = frame.planes[component]
    raw = np.frombuffer(cast(Any, plane), dtype=np.uint8)
    raw = raw[: plane.height * plane.line_size].reshape(plane.height, plane.line_size)
    if frame.format.components[0].bits <= 8:
        return cast(npt.NDArray[Any], raw[:, : plane.width])
    wide = np.ascontiguousarray(raw[:, : 2 * plane.width])
    return cast(npt.NDArray[Any], wide.view("<u2"))


def _plain_name(frame: VideoFrame) -> str:
    """Return the planar format that holds what the frame's does; it may be the frame's own."""
    name = frame.format.name
    is_plain = re.fullmatch(r"(yuvj?a?4\d\dp|gbra?p|gray)((9|1\d)le)?", name) is not None
    if is_plain and all(plane.line_size > 0 for plane in frame.planes):
        return name
    bits = 8 if _bits(name) <= 8 else 16
    # A format stored upside down is read through another, which swscale flips.
    bits = 16 if is_plain else bits
    depth = "" if bits == 8 else f"{bits}le"
    alpha = "a" if _has_alpha(frame) else ""
    if is_rgb(name) or name.startswith("bayer"):
        return f"gbr{alpha}p{depth}"
    if name.startswith(("gray", "mono", "ya")) and not alpha:
        return f"gray{depth}"
    fmt = VideoFormat(name)
    shape = (_log2(64, fmt.chroma_width(64)), _log2(64, fmt.chroma_height(64)))
    if alpha and name.startswith(("ya", "gray")):
        return f"yuva444p{depth}"
    if alpha:
        return f"yuva{_SHAPES.get(shape, '444') if shape[0] < 2 else '444'}p{depth}"
    return f"yuv{_SHAPES.get(shape, '444') if bits == 8 or shape[0] < 2 else '444'}p{depth}"


def _bits(name: str) -> int:
    if name == "pal8":
        return 8
    deepest = max(component.bits for component in VideoFormat(name).components)
    return min(max(deepest, 8), 16)


def _has_alpha(frame: VideoFrame) -> bool:
    """Return whether any part of the frame may be transparent."""
    if frame.format.name == "pal8":
        entries = np.frombuffer(cast(Any, frame.planes[1]), dtype=np.uint32)
        return bool((entries >> 24 < 255).any())
    return any(component.is_alpha for component in frame.format.components)


def _log2(whole: int, part: int) -> int:
    return (whole // max(part, 1)).bit_length() - 1


def _step(luma: int, chroma: int) -> int:
    return 1 << max(round(np.log2(luma / chroma)), 0)


def _known(code: int, default: int, unknown: tuple[int, ...] = (0, 2, 3)) -> int:
    if code not in unknown:
        return code
    return 2 if default in unknown else default


def _turn(frame: VideoFrame) -> tuple[tuple[int, int, int, int], int]:
    for data in side_data_of(frame):
        if data.type == SideData.DISPLAYMATRIX:
            numbers = struct.unpack_from("=9i", bytes(data))
            a, b, c, d = (numbers[n] for n in (0, 1, 3, 4))
            if a * d - b * c:
                largest = max(abs(n) for n in (a, b, c, d))
                turn = tuple(round(n / largest) for n in (a, b, c, d))
                rotation = 0 if turn == (1, 0, 0, 1) else frame.rotation
                return cast(tuple[int, int, int, int], turn), rotation
    return (1, 0, 0, 1), 0


def _hdr(frame: VideoFrame) -> tuple[str | None, tuple[int, int] | None]:
    """Return SMPTE ST 2086 data as x265 writes it, and (MaxCLL, MaxFALL)."""
    mastering, light = None, None
    for data in side_data_of(frame):
        if data.type == SideData.CONTENT_LIGHT_LEVEL:
            light = struct.unpack_from("=2I", bytes(data))
        elif data.type == SideData.MASTERING_DISPLAY_METADATA and len(bytes(data)) >= 80:
            mastering = _mastering(struct.unpack_from("=20i", bytes(data)))
    return mastering, light


def _mastering(numbers: tuple[int, ...]) -> str | None:
    """Format ten rationals: x, y of red, green, blue and white, minimum and maximum luminance."""
    if not all(numbers[1::2]):
        return None
    values = [Fraction(a, b) for a, b in zip(numbers[::2], numbers[1::2], strict=True)]
    places = [round(value * 50000) for value in values[:8]]
    red, green, blue, white = (f"({x},{y})" for x, y in zip(places[::2], places[1::2], strict=True))
    least, greatest = (round(value * 10000) for value in values[8:])
    return f"G{green}B{blue}R{red}WP{white}L({greatest},{least})"


def _said_by_libav(frame: VideoFrame) -> str:
    """Return the line that libav's showinfo logs about a frame: what PyAV has no attribute for.

    Capturing the log needs the interpreter's lock: waiting for a decoder thread that is just
    logging would deadlock.
    """
    level = av.logging.get_level()
    graph = av.filter.Graph()
    try:
        graph.threads = 1
        source = graph.add(
            "buffer",
            video_size=f"{frame.width}x{frame.height}",
            pix_fmt=frame.format.name,
            time_base="1/1000",
        )
        show = graph.add("showinfo", "checksum=0:udu_sei_as_ascii=1")
        graph.link_nodes(source, show, graph.add("buffersink")).configure()
        av.logging.set_level(av.logging.INFO)
        with av.logging.Capture() as lines:
            graph.vpush(frame)
            graph.vpull()
    except (av.FFmpegError, ValueError):
        return ""
    finally:
        av.logging.set_level(level)
        time.sleep(0.001)  # A decoder thread that was about to log gets the lock and finishes.
    return "".join(text for _, _, text in lines)
