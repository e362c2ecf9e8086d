"""Finds out whether a video uses its alpha: whether any visible pixel is not opaque."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import av
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from srstream.media.layouts import extract_planes, has_transparent_palette, layout_of
from srstream.media.read.demux import ReadFault, open_decoder, open_source, read_packets

ANIMATIONS = frozenset({"gif", "apng", "webp"})
"""Codecs that libav always decodes with alpha, used or not, and whose files are small."""

MAX_PIXELS_LOOKED_AT = 400_000_000
"""Total over all frames; decoding that many takes a second or two."""


def has_transparent_pixels(frame: VideoFrame) -> bool:
    """Return whether a frame shows a pixel that is not opaque."""
    if frame.format.name == "pal8":
        if not has_transparent_palette(frame):
            return False
    elif not layout_of(frame.format.name).has_alpha:
        return False
    layout, planes = extract_planes(frame, with_alpha=True)
    return int(planes[-1].min()) < (1 << layout.bits) - 1


def may_be_opaque(frame: VideoFrame, codec: str) -> bool:
    """Return whether alpha in the format implies nothing about the file: animations, palettes."""
    return codec in ANIMATIONS or frame.format.name == "pal8"


def is_opaque(path: Path, index: int, max_pixels: int) -> bool:
    """Return whether no frame of a video shows a transparent pixel.

    It also returns False where that is uncertain: for a long or damaged file.
    """
    num_pixels = 0
    with open_source(path, max_pixels) as container:
        stream = container.streams[index]
        assert isinstance(stream, VideoStream)
        context = open_decoder(stream, max_pixels)
        for packet in chain(read_packets(container, stream), [None]):
            if isinstance(packet, ReadFault):
                return False
            try:
                frames = context.decode(packet)
            except av.FFmpegError:
                return False
            for frame in frames:
                num_pixels += frame.width * frame.height
                if num_pixels > MAX_PIXELS_LOOKED_AT or has_transparent_pixels(frame):
                    return False
    return True
