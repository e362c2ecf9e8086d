"""Reads the color description of a decoded frame from libav as H.273 code points."""

from __future__ import annotations

import re
import struct
from fractions import Fraction

import av
from av.video.frame import VideoFrame

from srstream.frame import ColorSpec
from srstream.media.layouts import is_full_range_name

CHROMA_LOCATIONS = {
    "unspecified": 0,
    "left": 1,
    "center": 2,
    "topleft": 3,
    "top": 4,
    "bottomleft": 5,
    "bottom": 6,
}
"""AVChromaLocation values by libav's names."""


def frame_color(frame: VideoFrame, default: ColorSpec) -> ColorSpec:
    """Return the color description of a frame; `default` supplies what the frame does not state."""
    # libav's H.264 decoder may keep a full-range format name after the range becomes limited.
    is_full_name = is_full_range_name(frame.format.name)
    unsaid = True if is_full_name else default.full_range
    full_range = {1: False, 2: True}.get(int(frame.color_range), unsaid)
    matrix = int(frame.colorspace)
    if frame.format.is_rgb or frame.format.name == "pal8":
        matrix = 0
    elif matrix in (2, 3):
        matrix = default.matrix if default.matrix else 2
    return ColorSpec(
        primaries=known_code(int(frame.color_primaries), default.primaries),
        transfer=known_code(int(frame.color_trc), default.transfer),
        matrix=matrix,
        full_range=full_range,
        chroma_location=default.chroma_location,
    )


def known_code(code: int, default: int) -> int:
    """Return `code`, or `default` if `code` is one of H.273's reserved or unspecified values."""
    return default if code in (0, 2, 3) else code


def chroma_location(frame: VideoFrame) -> int:
    """Return the AVChromaLocation of a frame; 0 if unspecified.

    PyAV has no attribute for it; libavfilter's showinfo logs it (`cl:left`).
    """
    level = av.logging.get_level()
    graph = av.filter.Graph()
    try:
        graph.threads = 1
        source = graph.add(
            "buffer",
            video_size=f"{frame.width}x{frame.height}",
            pix_fmt=frame.format.name,
            time_base=str(frame.time_base or Fraction(1, 1000)),
        )
        show = graph.add("showinfo", "checksum=0:udu_sei_as_ascii=1")
        graph.link_nodes(source, show, graph.add("buffersink")).configure()
        av.logging.set_level(av.logging.INFO)
        with av.logging.Capture() as logs:
            graph.vpush(frame)
            graph.vpull()
    except (av.FFmpegError, ValueError):
        return 0
    finally:
        av.logging.set_level(level)
    found = re.search(r"\bcl:(\w+)", "".join(text for _, _, text in logs))
    return CHROMA_LOCATIONS.get(found.group(1), 0) if found else 0


def mastering_display(data: bytes) -> str | None:
    """Format the bytes of an AVMasteringDisplayMetadata (SMPTE ST 2086) as x265 writes them.

    The input holds red, green, blue and white as x, y rationals, then the minimum and maximum
    luminance.
    """
    if len(data) < 88:
        return None
    numbers = struct.unpack_from("=22i", data)
    if not (numbers[20] and numbers[21]) or not all(numbers[1:20:2]):
        return None
    values = [Fraction(numbers[2 * n], numbers[2 * n + 1]) for n in range(10)]
    red, green, blue, white = (
        f"({round(values[n] * 50000)},{round(values[n + 1] * 50000)})" for n in (0, 2, 4, 6)
    )
    least, greatest = round(values[8] * 10000), round(values[9] * 10000)
    return f"G{green}B{blue}R{red}WP{white}L({greatest},{least})"
