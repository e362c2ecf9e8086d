"""Crops of several methods' output from the same low resolution, next to the original, as PNG.

    python benchmarks/crops.py CLIP:20:120,80,160,120 ... -m bicubic -m srgan:detail=1 -o sheet.png

A place is a clip, a frame number, and x, y, width and height within the frame. The original is
downscaled to a quarter through 4:2:0, like video, and with `--crf` encoded by x264 together with
the frames before it. Each pixel is shown as 2x2.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from trainer.data.codec import x264_at
from trainer.data.planes import Picture
from trainer.judge.clipset import load_test_clip
from trainer.judge.comparison import Method
from trainer.judge.evaluate import TestPicture
from trainer.ship.methods import method_of

ZOOM, MARGIN, LABEL_HEIGHT = 2, 4, 22


@dataclass(frozen=True)
class Place:
    """A rectangle of a frame, in the original's pixels."""

    path: Path
    frame: int
    x: int
    y: int
    width: int
    height: int


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("places", nargs="+", type=place, metavar="FILE:FRAME:X,Y,WIDTH,HEIGHT")
    parser.add_argument(
        "-m", "--method", action="append", required=True, metavar="NAME[:KNOB=SHARE]"
    )
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--crf", type=float, help="x264's CRF for low resolution")
    arguments = parser.parse_args()
    methods = [method(name) for name in arguments.method]
    rows = [label_row([*(m.name for m in methods), "original"], arguments.places[0])]
    for where in arguments.places:
        shown = picture(where, arguments.crf)
        whole = [m.upscale(shown.lr).rgb_HW3() for m in methods]
        rows.append(row([*whole, shown.hr_HW3], where))
    width = max(r.shape[1] for r in rows)
    sheet = np.vstack([np.pad(r, ((0, 0), (0, width - r.shape[1]), (0, 0))) for r in rows])
    cv2.imwrite(str(arguments.output), sheet[..., ::-1])


def place(text: str) -> Place:
    path, frame, rectangle = text.rsplit(":", 2)
    return Place(Path(path), int(frame), *map(int, rectangle.split(",")))


def method(text: str) -> Method:
    name, _, knobs = text.partition(":")
    pairs = [knob.split("=") for knob in knobs.split(",") if knob]
    return method_of(name, **{knob: float(share) for knob, share in pairs})


def picture(where: Place, crf: float | None) -> TestPicture:
    settings = None if crf is None else x264_at(crf)
    return load_test_clip(where.path, settings, where.frame + 1).pictures[where.frame]


def row(pictures: list[Picture], where: Place) -> Picture:
    tiles = []
    for whole in pictures:
        crop = whole[where.y : where.y + where.height, where.x : where.x + where.width]
        shown = crop.repeat(ZOOM, axis=0).repeat(ZOOM, axis=1)
        tiles.append(np.pad(shown, ((0, MARGIN), (0, MARGIN), (0, 0)), constant_values=255))
    return np.hstack(tiles)


def label_row(names: list[str], where: Place) -> Picture:
    tiles = []
    for name in names:
        tile = np.full((LABEL_HEIGHT, ZOOM * where.width + MARGIN, 3), 255, np.uint8)
        cv2.putText(tile, name, (2, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
        tiles.append(tile)
    return np.hstack(tiles)


if __name__ == "__main__":
    main()
