"""The time that exact reuse saves in the enhance stage, next to the share of unchanged tiles.

    python benchmarks/reuse.py [CLIP ...]

Each clip's first frames are resized to 320x180 and encoded with x264 at CRF 23 and 30; slides and
a repeated frame are generated. Figures are medians of three runs on one thread; the frames are
compared bit for bit. `unchanged` is the share of 32x32 tiles that equal the previous frame's,
including 8 pixels around them.

With a threshold the frames differ; `PSNR` then compares luma with the exact result, in dB.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path

import cv2
import numpy as np

from srstream.config import EngineConfig, JobConfig, ModelConfig, ReuseConfig
from srstream.enhancer.enhancer import Enhancer
from srstream.frame import Frame
from srstream.jobs.planning.plan import JobPlan, make_plan
from srstream.media.read.decode import Decoder
from srstream.quality import psnr
from trainer.data.clips import decoded_frames, frame_to_rgb
from trainer.data.codec import Yuv, encode, x264_at
from trainer.data.planes import Picture, as_yuv420

WIDTH, HEIGHT = 320, 180
TILE, HALO = 32, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("clips", nargs="*", type=Path, help="real video")
    parser.add_argument("--frames", type=int, default=40, help="frames of each clip")
    parser.add_argument("--threshold", type=int, default=0, help="same as --reuse-threshold")
    arguments = parser.parse_args()
    head = f"{'clip':42}{'unchanged':>10}{'computed':>10}{'saved':>8}{'speed-up':>10}"
    print(head + (f"{'PSNR':>8}" if arguments.threshold else ""))
    for clip in arguments.clips:
        pictures = [
            cv2.resize(frame_to_rgb(f), (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA).astype("u1")
            for f in islice(decoded_frames(clip), arguments.frames)
        ]
        for crf in (23.0, 30.0):
            frames = [as_yuv420(p) for p in pictures]
            report(f"{clip.stem}, CRF {crf:g}", frames, crf, arguments.threshold)
    report("slides, CRF 23", [as_yuv420(p) for p in slides(60)], 23.0, arguments.threshold)
    report("one frame repeated", [as_yuv420(next(slides(1)))] * 60, None, arguments.threshold)


def slides(count: int) -> Iterator[Picture]:
    """Yield a new page every 30 frames."""
    for number in range(count):
        page = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
        for line in range(6):
            place = (10, 30 + 25 * line)
            text = f"slide {number // 30}, line {line}"
            cv2.putText(page, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 60 * line), 1)
        yield page


def report(name: str, frames: list[Yuv], crf: float | None, threshold: int) -> None:
    """Print one line; raise `SystemExit` if exact reuse changed a single sample."""
    path = Path("reuse-benchmark.mp4")
    path.write_bytes(encode(frames, x264_at(20.0 if crf is None else crf)))
    config = JobConfig(model=ModelConfig(name="fast", restore=0.0), engine=EngineConfig(threads=1))
    try:
        plan = make_plan(path, Path("reuse-benchmark-out.mp4"), config)
        decoder = Decoder(path, plan.source.video, config.source)
        decoded = list(decoder.frames())
        decoder.close()
    finally:
        path.unlink()
    if crf is None:
        decoded = decoded[:1] * len(decoded)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(3):
        without = enhance(plan, decoded, ReuseConfig(enabled=False), seconds[False])[0]
        made, share = enhance(plan, decoded, ReuseConfig(threshold=threshold), seconds[True])
        for a, b in zip(made, without, strict=True):
            if not threshold and not all(map(np.array_equal, a.planes, b.planes)):
                raise SystemExit(f"{name}: a frame differs")
    quality = [
        psnr(a.planes[0].astype(float), b.planes[0].astype(float), 0)
        for a, b in zip(made, without, strict=True)
        if not np.array_equal(a.planes[0], b.planes[0])
    ]
    with_reuse, plain = (statistics.median(seconds[enabled]) for enabled in (True, False))
    print(
        f"{name:42}{unchanged(decoded):10.2f}{share:10.2f}{1 - with_reuse / plain:8.2f}"
        f"{plain / with_reuse:10.2f}" + (f"{np.mean(quality):8.1f}" if quality else ""),
        flush=True,
    )


def enhance(
    plan: JobPlan, frames: list[Frame], reuse: ReuseConfig, seconds: list[float]
) -> tuple[list[Frame], float]:
    """Enhance and time all frames but the first; return also the share of pixels computed."""
    enhancer = Enhancer(plan.engine, plan.source.video.form, plan.output.video.form, reuse=reuse)
    made = [*enhancer.push(frames[0]), *enhancer.drain()]
    before = enhancer.num_pixels_computed
    start = time.perf_counter()
    for frame in frames[1:]:
        made += enhancer.push(frame)
    made += enhancer.drain()
    seconds.append(time.perf_counter() - start)
    share = (enhancer.num_pixels_computed - before) / (enhancer.num_pixels - before)
    enhancer.close()
    return made, share


def unchanged(frames: list[Frame]) -> float:
    """Return the mean share of tiles whose luma, halo included, equals the previous frame's."""
    shares = []
    for a, b in pairwise(frames):
        differs = a.planes[0] != b.planes[0]
        tiles = [
            differs[max(y - HALO, 0) : y + TILE + HALO, max(x - HALO, 0) : x + TILE + HALO].any()
            for y in range(0, HEIGHT, TILE)
            for x in range(0, WIDTH, TILE)
        ]
        shares.append(1.0 - float(np.mean(tiles)))
    return float(np.mean(shares))


if __name__ == "__main__":
    main()
