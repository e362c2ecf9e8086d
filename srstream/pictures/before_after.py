"""A before/after picture: the bicubically enlarged source on the left, the output on the right.

It is for viewing; `verify` gives the figures.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import numpy.typing as npt
import typer
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Interpolation
from av.video.stream import VideoStream

from srstream.config import SourceConfig
from srstream.errors import MediaError, SrstreamError
from srstream.frame import ColorSpec
from srstream.media.color_tags import frame_color
from srstream.media.errors import libav_errors, sentence
from srstream.media.read.demux import (
    ReadFault,
    has_timestamps,
    is_picture,
    open_decoder,
    open_source,
    read_packets,
)
from srstream.media.read.probe import probe
from srstream.media.types import WHOLE, Crop, VideoInfo
from srstream.terminal import show, tell

Rgb = npt.NDArray[np.uint8]
"""(H, W, 3), full range, upright."""

CROP_WIDTH, CROP_HEIGHT = 320, 240
MAGNIFICATION = 2
STRIP_HEIGHT = 36
GAP = 8
NUM_MOMENTS = 5
MAX_APART_SECONDS = 0.5
SEEK_MARGIN_SECONDS = 2

_INK, _PAPER = (235, 235, 235), (24, 24, 24)
_MAX_PIXELS = 16384 * 16384
_ACCURATE = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
# The matrix coefficients of ITU-T H.273, and libswscale's numbers for them.
_BT601 = 6
_SWSCALE_MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}


def side_by_side(
    source: Path, output: Path, picture: Path, at_seconds: float | None = None
) -> None:
    """Write `picture` (PNG): the same crop of `source`, enlarged bicubically, and of `output`.

    The crop is the one in which the output has the most detail beyond bicubic. The two must share a
    clock: an excerpt made with `--start` starts again at 0 and does not match its source.

    Args:
        at_seconds: moment on the output's clock; None tries five moments and takes the best.

    Raises:
        UsageError: a file is missing.
        MediaError: a file cannot be read, or the two have no frame at the same time.
        SrstreamError: the picture cannot be written.
    """
    video = probe(source, SourceConfig()).video
    moments = _moments(output) if at_seconds is None else [at_seconds]
    crops = [_richest_crop(*_pair(source, video, output, moment)) for moment in moments]
    _, bicubic, enhanced = max(crops, key=lambda crop: crop[0])
    sheet = _sheet(bicubic, enhanced)
    if not cv2.imwrite(str(picture), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR)):
        raise SrstreamError(f"{picture}: the picture cannot be written. Does its folder exist?")


def _moments(output: Path) -> list[float]:
    with open_source(output, _MAX_PIXELS) as container:
        stream = _enhanced_stream(output, container)
        start = float((stream.start_time or 0) * (stream.time_base or 0))
        length = float((stream.duration or 0) * (stream.time_base or 0))
        if not length:
            length = (container.duration or 0) / 1_000_000
    return [start + length * (n + 0.5) / NUM_MOMENTS for n in range(NUM_MOMENTS)]


def _enhanced_stream(output: Path, container: InputContainer) -> VideoStream:
    """Return the largest video stream: others are copied and keep their size."""
    videos = [stream for stream in container.streams.video if not is_picture(stream)]
    if not videos:
        raise MediaError(sentence(output, "holds no video", advice="Name an enhanced file."))
    return max(videos, key=lambda stream: stream.width * stream.height)


def _pair(source: Path, video: VideoInfo, output: Path, moment: float) -> tuple[Rgb, Rgb]:
    """Return the frames of both at one moment, at the output's size: bicubic, enhanced."""
    with open_source(output, _MAX_PIXELS) as container:
        stream = _enhanced_stream(output, container)
        seconds, after = _frame_at(output, container, stream, moment)
    with open_source(source, _MAX_PIXELS) as container:
        stream = container.streams.video[0]
        for candidate in container.streams.video:
            stream = candidate if candidate.index == video.index else stream
        source_seconds, before = _frame_at(source, container, stream, seconds)
    if abs(source_seconds - seconds) > MAX_APART_SECONDS:
        what = f"{source.name} has no frame at {seconds:.3f} s, the time of the one to compare"
        raise MediaError(sentence(output, what))
    color = video.color if video.color.matrix != 2 else replace(video.color, matrix=_BT601)
    enhanced = _upright_rgb(after, color)
    height, width = enhanced.shape[:2]
    small = _upright_rgb(before, color, video.crop)
    bicubic = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.asarray(bicubic, dtype=np.uint8), enhanced


def _frame_at(
    path: Path, container: InputContainer, stream: VideoStream, seconds: float
) -> tuple[float, VideoFrame]:
    """Return (its time, the frame) nearest to `seconds`; `container` must be fresh."""
    time_base = stream.time_base
    # A palette comes once, in a packet that a seek would skip.
    has_palette = stream.codec_context.pix_fmt == "pal8"
    if time_base and has_timestamps(container) and container.duration and not has_palette:
        with libav_errors(path, "cannot be searched", seconds):
            # libav seeks by decode time, which may precede the display time.
            wanted = int((seconds - SEEK_MARGIN_SECONDS) / time_base)
            container.seek(max(wanted, stream.start_time or 0), stream=stream)
    decoder = open_decoder(stream, _MAX_PIXELS)
    best: tuple[float, VideoFrame] | None = None
    num_frames = 0
    with libav_errors(path, "cannot be decoded", seconds):
        for packet in chain(read_packets(container, stream), [None]):
            if isinstance(packet, ReadFault):
                continue
            for frame in decoder.decode(packet):
                time = num_frames / float(stream.average_rate or 25)
                # The decoder's last frames, returned by a flush, have no time base.
                if frame.pts is not None and time_base is not None:
                    time = float(frame.pts * time_base)
                num_frames += 1
                if best is None or abs(time - seconds) < abs(best[0] - seconds):
                    best = (time, frame)
                if time >= seconds:
                    return best
    if best is None:
        raise MediaError(sentence(path, "no frame can be decoded", at_seconds=seconds))
    return best


def _upright_rgb(frame: VideoFrame, default: ColorSpec, crop: Crop = WHOLE) -> Rgb:
    color = frame_color(frame, default)
    matrix = _SWSCALE_MATRICES.get(color.matrix)
    picture = frame.reformat(
        format="rgb24",
        src_colorspace=matrix,
        dst_colorspace=matrix,
        src_color_range=ColorRange.JPEG if color.full_range else ColorRange.MPEG,
        dst_color_range=ColorRange.JPEG,
        interpolation=_ACCURATE,
    ).to_ndarray()
    width, height = crop.size_of(frame.width, frame.height)
    picture = picture[crop.top : crop.top + height, crop.left : crop.left + width]
    quarter_turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(picture, quarter_turns), dtype=np.uint8)


def _richest_crop(bicubic: Rgb, enhanced: Rgb) -> tuple[float, Rgb, Rgb]:
    """Return (gain, crop, crop) where the luma's mean absolute Laplacian gains most."""
    gain_HW = _detail(enhanced) - _detail(bicubic)
    height, width = gain_HW.shape
    rows, columns = min(CROP_HEIGHT, height), min(CROP_WIDTH, width)
    sums = cv2.integral(gain_HW)
    windows = sums[rows:, columns:] - sums[:-rows, columns:] - sums[rows:, :-columns]
    windows = (windows + sums[:-rows, :-columns]) / (rows * columns)
    top, left = (int(n) for n in np.unravel_index(np.argmax(windows), windows.shape))
    window = np.s_[top : top + rows, left : left + columns]
    return float(windows[top, left]), bicubic[window], enhanced[window]


def _detail(picture: Rgb) -> npt.NDArray[np.float32]:
    luma = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return np.abs(cv2.Laplacian(luma, cv2.CV_32F, ksize=3))


def _sheet(bicubic: Rgb, enhanced: Rgb) -> Rgb:
    """Draw both crops, magnified without smoothing, under a strip with their names."""
    gap = np.full((bicubic.shape[0] * MAGNIFICATION + STRIP_HEIGHT, GAP, 3), _PAPER, np.uint8)
    halves = _labelled(bicubic, "bicubic"), gap, _labelled(enhanced, "srstream")
    return np.concatenate(halves, axis=1)


def _labelled(crop: Rgb, label: str) -> Rgb:
    large = crop.repeat(MAGNIFICATION, axis=0).repeat(MAGNIFICATION, axis=1)
    strip = np.full((STRIP_HEIGHT, large.shape[1], 3), _PAPER, np.uint8)
    cv2.putText(strip, label, (12, 25), cv2.FONT_HERSHEY_SIMPLEX, 0.7, _INK, 1, cv2.LINE_AA)
    return np.concatenate([strip, large])


def main(
    source: Annotated[Path, typer.Argument(help="The original.")],
    output: Annotated[Path, typer.Argument(help="The output of `srstream enhance`.")],
    picture: Annotated[Path, typer.Argument(help="The PNG to write.")],
    at: Annotated[
        float | None, typer.Option("--at", help="Moment in seconds; the best of five if not given.")
    ] = None,
) -> None:
    """Write a before/after picture: bicubic on the left, srstream on the right."""
    try:
        side_by_side(source, output, picture, at)
    except SrstreamError as error:
        tell(f"srstream: {error}")
        sys.exit(error.exit_code)
    show(str(picture))


if __name__ == "__main__":
    typer.run(main)
