"""The user's video as training data: its scenes, its sharp and varied moments, its compression.

A moment is a run of consecutive frames within a scene. The last scenes are held out: they are not
trained on, and they decide whether a model has improved.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from srstream.config import SourceConfig
from srstream.errors import MediaError, UsageError
from srstream.media.read.probe import probe
from srstream.media.read.quantizer import measure_compression
from srstream.media.read.scan import scan_packets
from trainer.config import CodecName, DataSection, DegradationSection
from trainer.data.clips import SIDE_MULTIPLE, decoded_frames, frame_to_rgb, pairs_of_clip
from trainer.data.degrade import SCALE
from trainer.data.pairs import Pair, clean_pair
from trainer.data.planes import Picture, Yuv, as_yuv420
from trainer.networks import TrainedSpec

log = logging.getLogger(__name__)

THUMBNAIL = (32, 18)
"""(width, height) of the thumbnails by which frames are compared."""

MOMENT_FRAMES = 8
"""Frames encoded together, so that there are P and B frames."""

CUT_LEVELS, CUT_RATIO = 12.0, 4.0
"""A scene ends where the thumbnail changes by this many levels and this multiple of the usual."""

MIN_CONTRAST = 4.0
"""Standard deviation of a thumbnail, in levels, below which a frame is black, white or fog."""

HELD_OUT_SHARE = 0.2

MOMENTS_PER_VIDEO = 24
"""Moments taken from each video in a folder of training data."""

WINDOW = 768
"""Side of the window cut from a frame, in high-resolution pixels, unless told otherwise."""

CODECS: dict[str, CodecName] = {
    "h264": "libx264",
    "hevc": "libx265",
    "mpeg1video": "mpeg2video", "mpeg2video": "mpeg2video", "mpeg4": "mpeg2video",
    "vp8": "libvpx-vp9", "vp9": "libvpx-vp9", "av1": "libvpx-vp9",
}  # fmt: skip
"""For each source codec, the encoder whose damage is most similar; H.264 for all others."""

CRF_BELOW_QUANTIZER = 4.0
"""How far x264's mean quantizer exceeds its CRF on ordinary footage."""

CRF_SPREAD = 4.0
"""Half the CRF range of the degradation, since quiet and lively scenes differ."""


@dataclass(frozen=True)
class Moment:
    """`MOMENT_FRAMES` frames of a video from `first_frame`, counted in display order."""

    video: Path
    first_frame: int
    scene: int
    seconds: float
    sharpness: float
    """Variance of the Laplacian of its middle frame's luma."""
    thumbnail: NDArray[np.float32]

    @property
    def name(self) -> str:
        """Return the file and the time for people to read."""
        return f"{self.video.name} at {self.seconds:.1f} s"


@dataclass(frozen=True)
class Footage:
    """The moments chosen from all videos."""

    train: list[Moment]
    held_out: list[Moment]
    num_scenes: int
    compression: tuple[tuple[str, float], ...]
    """Codec and quantizer, on x264's scale, of each video."""
    min_side: int
    """The shorter side of the smallest frame, in pixels."""

    def degradation(self, window: int) -> DegradationSection:
        """Return the degradation that damages low resolution as these videos are damaged."""
        codecs = tuple(CODECS.get(codec, "libx264") for codec, _ in self.compression)
        crfs = [quantizer - CRF_BELOW_QUANTIZER for _, quantizer in self.compression]
        return DegradationSection(
            codecs=codecs,
            min_crf=min(max(min(crfs) - CRF_SPREAD, 8.0), 44.0),
            max_crf=min(max(max(crfs) + CRF_SPREAD, 12.0), 48.0),
            clean_share=0.1,
            frames_per_clip=MOMENT_FRAMES,
            kept_frames=3,
            window=window,
            blur_share=0.0,
            noise_share=0.0,
            jpeg_share=0.0,
        )


def survey(videos: Sequence[Path], *, num_train: int = 48, num_held_out: int = 8) -> Footage:
    """Look through all videos once and choose what to train on and what to hold out.

    Raises:
        MediaError: a video cannot be read.
        UsageError: there is too little footage, or its frames are too small.
    """
    train: list[Moment] = []
    held_out: list[Moment] = []
    num_scenes, compression, sides = 0, [], []
    for video in videos:
        config = SourceConfig()
        info = probe(video, config).video
        sides.append(min(info.width, info.height))
        index = scan_packets(video, info)
        found = measure_compression(video, info, index.key_pts, config)
        compression.append((info.codec, 23.0 if found is None else found.quantizer))
        moments = list(_moments(video))
        early, late = _split(moments)
        train += early
        held_out += late
        num_scenes += len({moment.scene for moment in moments})
    train, held_out = _sharper(train), _sharper(held_out)
    if len(train) < 3 or not held_out:
        needed = 6 * MOMENT_FRAMES
        raise UsageError(
            f"{', '.join(path.name for path in videos)}: too little to learn from: of "
            f"{len(train) + len(held_out)} moments that show something, {len(train)} would be left "
            f"to train on and {len(held_out)} to judge by; give more video ({needed} frames at "
            "least)."
        )
    return Footage(
        _varied(train, num_train),
        _varied(held_out, num_held_out),
        num_scenes,
        tuple(compression),
        min(sides),
    )


def video_pairs(
    videos: Sequence[Path],
    folder: Path,
    spec: TrainedSpec,
    section: DegradationSection | None,
    data: DataSection,
    *,
    seed: int,
) -> Iterator[Pair]:
    """Yield pairs of the sharp and varied moments of all videos; clean ones without a `section`.

    A video that cannot be read or is smaller than a patch is named in the log and left out.
    """
    window = WINDOW if section is None else section.window
    patch_size = data.patch_size
    for number, video in enumerate(videos):
        random = np.random.Generator(np.random.PCG64([seed, number]))
        try:
            info = probe(video, SourceConfig()).video
            if min(info.width, info.height, window) < patch_size * SCALE + SIDE_MULTIPLE:
                log.warning("%s: smaller than a patch of %d; left out", video, patch_size * SCALE)
                continue
            moments = _varied(_sharper(list(_moments(video))), MOMENTS_PER_VIDEO)
            for moment, frames in frames_of(moments, window):
                name = f"{video.relative_to(folder).as_posix()}@{moment.first_frame}"
                if section is None:
                    middle = frames[MOMENT_FRAMES // 2]
                    yield clean_pair(name, middle, spec, data)
                else:
                    yield from pairs_of_clip(name, frames, spec, section, random)
        except MediaError as error:
            log.warning("%s; left out", error)


def frames_of(moments: Sequence[Moment], window: int) -> Iterator[tuple[Moment, list[Picture]]]:
    """Yield each moment's frames as RGB, sides multiples of 8 and at most `window`, by video.

    The window lies where the moment's middle frame has most detail.
    """
    ordered = sorted(moments, key=lambda moment: (str(moment.video), moment.first_frame))
    for video, group in groupby(ordered, key=lambda moment: moment.video):
        waiting = list(group)
        open_moments: list[tuple[Moment, list[Picture]]] = []
        for number, frame in enumerate(decoded_frames(video)):
            while waiting and waiting[0].first_frame == number:
                open_moments.append((waiting.pop(0), []))
            if open_moments:
                rgb = frame_to_rgb(frame)
                for _, pictures in open_moments:
                    pictures.append(rgb)
                if len(open_moments[0][1]) == MOMENT_FRAMES:
                    moment, pictures = open_moments.pop(0)
                    yield moment, _windowed(pictures, window)
            if not waiting and not open_moments:
                break


def paired_frames(
    moments: Sequence[Moment], originals: Mapping[Path, Path]
) -> Iterator[tuple[Moment, list[Yuv], list[Picture]]]:
    """Yield each moment's frames with those of the original video, frame by frame.

    Raises:
        UsageError: an original isn't 4 times the size, or ends before its video does.
    """
    for video in dict.fromkeys(moment.video for moment in moments):
        chosen = sorted(
            (m for m in moments if m.video == video), key=lambda moment: moment.first_frame
        )
        wanted = {n for m in chosen for n in range(m.first_frame, m.first_frame + MOMENT_FRAMES)}
        last, original = max(wanted), originals[video]
        both: dict[int, tuple[Yuv, Picture]] = {}
        high = decoded_frames(original)
        for number, low in enumerate(decoded_frames(video)):
            large = next(high, None)
            if large is None:
                raise UsageError(f"{original}: ends after {number} frames, {video} has more")
            if (large.width, large.height) != (SCALE * low.width, SCALE * low.height):
                raise UsageError(
                    f"{original}: {large.width}x{large.height} is not {SCALE} times "
                    f"{video.name}'s {low.width}x{low.height}"
                )
            if number in wanted:
                yuv = as_yuv420(_even(frame_to_rgb(low)))
                rows, columns = (SCALE * side for side in yuv[0].shape)
                both[number] = yuv, frame_to_rgb(large)[:rows, :columns]
            if number == last:
                break
        for moment in chosen:
            frames = [both[moment.first_frame + n] for n in range(MOMENT_FRAMES)]
            yield moment, [yuv for yuv, _ in frames], [rgb for _, rgb in frames]


def _even(rgb_HW3: Picture) -> Picture:
    height, width = (side // 2 * 2 for side in rgb_HW3.shape[:2])
    return rgb_HW3[:height, :width]


def _moments(video: Path) -> Iterator[Moment]:
    """Yield every run of frames within a scene that shows something, back to back."""
    scene, first_seconds = 0, None
    usual: list[float] = []
    before: NDArray[np.float32] | None = None
    run: list[tuple[float, NDArray[np.float32], float]] = []
    for number, frame in enumerate(decoded_frames(video)):
        luma = frame.planes[0]
        scaled = luma if luma.dtype == np.uint8 else luma.astype(np.float32)
        small = cv2.resize(scaled, THUMBNAIL, interpolation=cv2.INTER_AREA).astype(np.float32)
        thumbnail = small / np.float32(1 << (frame.layout.bits - 8))
        seconds = float(frame.pts * frame.time_base)
        first_seconds = seconds if first_seconds is None else first_seconds
        change = 0.0 if before is None else float(np.abs(thumbnail - before).mean())
        if change > CUT_LEVELS and change > CUT_RATIO * (np.median(usual) if usual else 0.0):
            scene += 1
            run.clear()
            usual.clear()
        else:
            usual = [*usual[-23:], change]
        before = thumbnail
        is_middle = len(run) == MOMENT_FRAMES // 2
        run.append((seconds - first_seconds, thumbnail, _sharpness(luma) if is_middle else 0.0))
        if len(run) < MOMENT_FRAMES:
            continue
        at, shown, sharpness = run[MOMENT_FRAMES // 2]
        if shown.std() >= MIN_CONTRAST:
            yield Moment(video, number + 1 - MOMENT_FRAMES, scene, at, sharpness, shown)
        run.clear()


def _sharpness(luma_HW: NDArray[np.generic]) -> float:
    plane = luma_HW.astype(np.float32)
    return float(cv2.Laplacian(plane / max(float(plane.max()), 1.0), cv2.CV_32F).var())


def _split(moments: Sequence[Moment]) -> tuple[list[Moment], list[Moment]]:
    """Return the moments to train on and those held out: the last scenes, with a fifth of all.

    With a single scene, one moment between the two is left out, since it resembles both.
    """
    scenes = [list(group) for _, group in groupby(moments, key=lambda moment: moment.scene)]
    if not scenes:
        return [], []
    held_out: list[Moment] = []
    while len(scenes) > 1 and len(held_out) < HELD_OUT_SHARE * len(moments):
        if held_out and len(scenes[-1]) > len(moments) / 2:
            break
        held_out = scenes.pop() + held_out
    train = [moment for scene in scenes for moment in scene]
    if len(train) >= len(held_out) and held_out:
        return train, held_out
    count = max(1, round(HELD_OUT_SHARE * len(moments)))
    return list(moments[: -count - 1]), list(moments[-count:])


def _sharper(moments: Sequence[Moment]) -> list[Moment]:
    """Drop the blurriest third of each video: panning and refocusing teach little."""
    kept = []
    for _, group in groupby(moments, key=lambda moment: moment.video):
        in_video = list(group)
        bound = np.quantile([moment.sharpness for moment in in_video], 1 / 3)
        kept += [m for m in in_video if m.sharpness >= bound or len(in_video) < 6]
    return kept


def _varied(moments: Sequence[Moment], count: int) -> list[Moment]:
    """Return the sharpest, then repeatedly the one least like those chosen (farthest-point)."""
    if len(moments) <= count:
        return list(moments)
    thumbnails = np.stack([moment.thumbnail.ravel() for moment in moments])
    chosen = [int(np.argmax([moment.sharpness for moment in moments]))]
    distances = np.full(len(moments), np.inf)
    while len(chosen) < count:
        distances = np.minimum(distances, np.abs(thumbnails - thumbnails[chosen[-1]]).mean(axis=1))
        chosen.append(int(distances.argmax()))
    return [moments[index] for index in sorted(chosen)]


def _windowed(pictures: list[Picture], window: int) -> list[Picture]:
    height, width = pictures[0].shape[:2]
    rows, columns = (min(side, window) // SIDE_MULTIPLE * SIDE_MULTIPLE for side in (height, width))
    luma = pictures[len(pictures) // 2].mean(axis=2, dtype=np.float32)
    detail = cv2.boxFilter(np.abs(cv2.Laplacian(luma, cv2.CV_32F)), -1, (columns, rows))
    middle_rows = detail[rows // 2 : height - (rows - 1) // 2]
    inside = middle_rows[:, columns // 2 : width - (columns - 1) // 2]
    top, left = np.unravel_index(inside.argmax(), inside.shape)
    # The original's chroma is subsampled by two: stay on its grid.
    top, left = int(top) // 2 * 2, int(left) // 2 * 2
    return [picture[top : top + rows, left : left + columns] for picture in pictures]
