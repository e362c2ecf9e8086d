"""Reports mid-stream changes of color tags and pixel aspect, and tracks each frame's aspect."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from fractions import Fraction

from av.packet import Packet
from av.stream import Stream
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

from srstream.color import same_matrix
from srstream.frame import ColorSpec, Frame
from srstream.media.types import VideoInfo

_MATRICES = {
    1: "BT.709",
    2: "unspecified",
    4: "FCC",
    5: "BT.601",
    6: "BT.601",
    7: "SMPTE 240M",
    8: "YCgCo",
    9: "BT.2020",
}
_SITINGS = ("unspecified", "left", "center", "top left", "top", "bottom left", "bottom")


class PictureAspects:
    """Tracks the pixel aspect of each decoded frame, for videos in which it may change.

    PyAV exposes it on the decoder only, for the packet decoded last. Decoders return frames late,
    so each frame carries the number of its packet.
    """

    def __init__(self, context: VideoCodecContext, video: VideoInfo) -> None:
        self._context = context
        self._usual = video.sample_aspect_ratio
        self._num_packets = 0
        self._changes: list[tuple[int, Fraction]] = []
        context.copy_opaque = True

    def before(self, packet: Packet[Stream]) -> None:
        """Call with each packet just before it is decoded."""
        packet.opaque = self._num_packets
        self._num_packets += 1

    def after(self) -> None:
        """Call after the packet is decoded."""
        aspect = self._context.sample_aspect_ratio or self._usual
        last = self._changes[-1][1] if self._changes else self._usual
        if aspect > 0 and aspect != last:
            self._changes.append((self._num_packets - 1, aspect))

    def of(self, frame: VideoFrame) -> Fraction | None:
        """Return the pixel aspect of a frame; None if it equals the video's."""
        number = frame.opaque if isinstance(frame.opaque, int) else self._num_packets
        index = bisect_right(self._changes, number, key=lambda change: change[0])
        aspect = self._changes[index - 1][1] if index else self._usual
        return None if aspect == self._usual else aspect


class Descriptions:
    """Follows the delivered frames and reports where their description changes."""

    def __init__(self, video: VideoInfo) -> None:
        self._video = video
        self._color, self._aspect = video.color, video.sample_aspect_ratio
        self._is_first = True

    def push(self, frame: Frame) -> Iterator[str]:
        """Yield a sentence for each property in which the frame differs from the one before it.

        The first frame is compared with the file's beginning.
        """
        color, aspect = frame.color, frame.sample_aspect_ratio or self._video.sample_aspect_ratio
        if (color, aspect) != (self._color, self._aspect):
            yield from self._changed(color, aspect, frame.pts_seconds)
        self._color, self._aspect, self._is_first = color, aspect, False

    def _changed(self, color: ColorSpec, aspect: Fraction, seconds: float) -> Iterator[str]:
        old, first = self._color, self._video.color
        if aspect != self._aspect:
            fate = "the picture is fitted into the shape of the beginning, with black around"
            fate = fate if aspect != self._video.sample_aspect_ratio else ""
            yield self._said("pixel aspect", _ratio(self._aspect), _ratio(aspect), seconds, fate)
        if _range(old) != _range(color):
            fate = "it is converted to that of the beginning" * (_range(color) != _range(first))
            yield self._said("range", _range(old), _range(color), seconds, fate)
        if matrix_fate(old.matrix, color.matrix):
            was, now = (_MATRICES.get(code, str(code)) for code in (old.matrix, color.matrix))
            fate = matrix_fate(first.matrix, color.matrix)
            yield self._said("color matrix", was, now, seconds, fate)
        if old.chroma_location != color.chroma_location:
            was, now = (_SITINGS[code] for code in (old.chroma_location, color.chroma_location))
            yield self._said("chroma siting", was, now, seconds, "")
        for name in ("primaries", "transfer"):
            code = getattr(color, name)
            if code != getattr(old, name):
                fate = "it is not converted, so colors are off there"
                fate = fate if code != getattr(first, name) else ""
                was, now = f"{getattr(old, name)} (ITU-T H.273)", str(code)
                yield self._said(f"color {name}", was, now, seconds, fate)

    def _said(self, what: str, was: str, now: str, seconds: float, fate: str) -> str:
        if self._is_first:
            text = f"At {seconds:.3f} s the {what} is {now}, at the beginning it is {was}"
        else:
            text = f"The {what} changes from {was} to {now} at {seconds:.3f} s"
        return f"{text}; {fate}." if fate else f"{text}."


def matrix_fate(old: int, new: int) -> str:
    """Return what is done about a changed matrix; "" if nothing needs to be done.

    Several code points mean BT.601, which an unspecified matrix is taken for.
    """
    same = same_matrix(old, new)
    if same is None:
        return "it cannot be converted, so colors are off there"
    return "" if same else "it is converted to that of the beginning"


def _ratio(aspect: Fraction) -> str:
    return f"{aspect.numerator}:{aspect.denominator}"


def _range(color: ColorSpec) -> str:
    return "full" if color.full_range else "limited"
