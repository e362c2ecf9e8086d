"""Tells what plays an output without a program that its owner would have to install.

The table says what is usual and promises nothing. Browsers are Chrome, Edge, Firefox and Safari on
a computer; phones and televisions are those of the last eight years with their own players. They
decode H.264 up to level 5.2 (4096x2304) in 8 bits and 4:2:0, and HEVC up to level 6.2 (8192x4320)
in 8 or 10 bits and 4:2:0 (ITU-T H.264 and H.265, annex A).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from srstream.frame import PlaneLayout

_ANIMATED = frozenset({"gif", "apng", "webp"})
H264_MAX = (4096, 2304)
HEVC_MAX = (8192, 4320)
"""Largest (width, height) that decoders of devices take."""

_BROWSER_AUDIO = frozenset({"aac", "mp3", "opus", "vorbis", "flac"})
_BROWSER_VIDEO = {
    "mp4": frozenset({"h264", "av1", "vp9"}),
    "webm": frozenset({"vp8", "vp9", "av1"}),
}
_PHONE_CONTAINERS = frozenset({"mp4", "mov"})
_TV_CONTAINERS = frozenset({"mp4", "mov", "mkv", "ts"})


def players_of(
    container: str,
    codec: str,
    layout: PlaneLayout,
    size: tuple[int, int],
    audio: Collection[str] = (),
) -> tuple[str, ...]:
    """Return which of "browsers", "phones" and "TVs" usually play a file.

    Args:
        container: mp4, mov, mkv, webm or ts; gif, apng or webp.
        codec: the video's, by its canonical name.
        size: (width, height) in pixels.
        audio: canonical names of the codecs of all audio streams.
    """
    if container in _ANIMATED:
        return ("browsers", "phones")
    is_plain = layout.kind == "gray" or (
        layout.kind == "yuv" and (layout.log2_chroma_w, layout.log2_chroma_h) == (1, 1)
    )
    if not is_plain or layout.has_alpha:
        return ()
    is_device_video = (codec == "h264" and layout.bits == 8 and fits(size, H264_MAX)) or (
        codec == "hevc" and layout.bits in (8, 10) and fits(size, HEVC_MAX)
    )
    is_browser_video = codec in _BROWSER_VIDEO.get(container, ()) and (
        layout.bits == 8 or codec in ("av1", "vp9")
    )
    found = []
    if is_browser_video and set(audio) <= _BROWSER_AUDIO:
        found.append("browsers")
    if is_device_video and container in _PHONE_CONTAINERS:
        found.append("phones")
    if is_device_video and container in _TV_CONTAINERS:
        found.append("TVs")
    return tuple(found)


def fits(size: tuple[int, int], limit: tuple[int, int]) -> bool:
    """Return whether a picture is within a decoder's limit, upright or on its side."""
    return max(size) <= limit[0] and min(size) <= limit[1]


def sentence(players: Collection[str]) -> str:
    """Return what a plan says of them."""
    if not players:
        return "plays in VLC and mpv, but not in browsers or on phones and TVs"
    others = [name for name in ("browsers", "phones", "TVs") if name not in players]
    said = f"plays {_joined(players)}"
    return f"{said}, but not {_joined(others)}" if others else said


def _joined(names: Collection[str]) -> str:
    devices = " and ".join(name for name in names if name != "browsers")
    parts = ["in browsers" if "browsers" in names else "", f"on {devices}" if devices else ""]
    return " and ".join(part for part in parts if part)
