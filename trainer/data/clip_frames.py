"""The frames of damaged clips that are trained on, as a file: what costs an encoding to make again.

It holds each frame as it came out of its codec, losslessly compressed, and how the camera stood.
The original is seen anew from the picture, so the file is small enough to travel.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from trainer.data.planes import Picture, Yuv
from trainer.state import write_atomically

log = logging.getLogger(__name__)


class Camera(NamedTuple):
    """Where a camera stands over a picture."""

    picture: str
    """Its path in the folder of pictures."""
    side: int
    """Of what it sees, (side, side), in pixels."""
    matrix: NDArray[np.float64]
    """(2, 3), from what it sees to the picture."""

    def sees(self, rgb_HW3: Picture) -> Picture:
        """Return (side, side, 3) of the picture; beyond its edges, they are mirrored."""
        flags = cv2.INTER_LANCZOS4 | cv2.WARP_INVERSE_MAP
        size = (self.side, self.side)
        frame = cv2.warpAffine(
            rgb_HW3, self.matrix, size, flags=flags, borderMode=cv2.BORDER_REFLECT
        )
        return np.asarray(frame, np.uint8)


class LowFrame(NamedTuple):
    """A frame of a clip, at low resolution and as its codec left it."""

    name: str
    """What is shown, and what was done to it."""
    number: int
    """In the clip."""
    severity: float
    """The codec's damage, as the position of `--restore` that suits it."""
    planes: Yuv


class ClipFrame(NamedTuple):
    """A frame of a camera move over a picture."""

    low: LowFrame
    camera: Camera


def write_frames(path: Path, frames: Sequence[ClipFrame]) -> None:
    """Write the frames, so that `path` never holds a part of them."""
    tensors = {str(number): _packed(low.planes) for number, (low, _) in enumerate(frames)}
    told = [
        [low.name, low.number, low.severity, camera.picture, camera.side, camera.matrix.tolist()]
        for low, camera in frames
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, save(tensors, {"frames": json.dumps(told)}))


def read_frames(path: Path) -> list[ClipFrame] | None:
    """Read what was kept; None if there is nothing, or, with a line in the log, it is damaged."""
    if not path.is_file():
        return None
    try:
        tensors = load_file(path)
        with safe_open(path, framework="np") as file:
            told = json.loads(file.metadata()["frames"])
        return [
            ClipFrame(
                LowFrame(name, place, severity, _unpacked(tensors[str(number)])),
                Camera(picture, side, np.array(matrix)),
            )
            for number, (name, place, severity, picture, side, matrix) in enumerate(told)
        ]
    except (OSError, KeyError, ValueError, SafetensorError, cv2.error) as error:
        log.warning("%s: the kept clips cannot be read (%s); making them again", path, error)
        return None


def _packed(planes: Yuv) -> NDArray[np.uint8]:
    """Return the planes as one PNG: luma, and below it U and V side by side."""
    _, content = cv2.imencode(".png", np.vstack([planes[0], np.hstack(planes[1:])]))
    return np.asarray(content, np.uint8).ravel()


def _unpacked(content: NDArray[np.uint8]) -> Yuv:
    together = cv2.imdecode(content, cv2.IMREAD_GRAYSCALE)
    if together is None:
        raise ValueError("a frame is no PNG")
    grey = np.asarray(together, np.uint8)
    height, width = grey.shape[0] * 2 // 3, grey.shape[1]
    u, v = np.ascontiguousarray(np.split(grey[height:], [width // 2], axis=1))
    return grey[:height], u, v
