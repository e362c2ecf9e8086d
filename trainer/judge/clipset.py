"""Clips as a test set: a video's own frames are the truth, their downscaled copies are encoded."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from srstream.config import SourceConfig
from srstream.media.read.probe import probe
from srstream.media.read.quantizer import measure_compression
from srstream.models.restore_auto import Restoration, restoration_for
from trainer.data.clips import video_frames
from trainer.data.codec import CodecSettings, decode, encode
from trainer.data.degrade import SCALE, downscale
from trainer.data.planes import as_yuv420
from trainer.judge.evaluate import LowResolution, TestPicture


@dataclass(frozen=True)
class TestClip:
    """Frames in order, and the file that their low resolution was decoded from."""

    pictures: list[TestPicture]
    encoded: bytes | None
    """None without a codec: low resolution is then clean 4:2:0."""


def load_test_clip(path: Path, settings: CodecSettings | None, num_frames: int) -> TestClip:
    """Load the first frames of a video, downscaled to a quarter, encoded together and decoded.

    Raises:
        MediaError: the video cannot be decoded.
        EncodeError: the codec failed.
    """
    originals = video_frames(path, num_frames)
    small = [as_yuv420(downscale(rgb, SCALE)) for rgb in originals]
    encoded = None
    if settings is not None:
        encoded = encode(small, settings)
        small = [frame.planes for frame in decode(encoded, len(small), settings)]
    pictures = [
        TestPicture(f"{path.stem} {number}", LowResolution.of_video(planes), rgb)
        for number, (planes, rgb) in enumerate(zip(small, originals, strict=True))
    ]
    return TestClip(pictures, encoded)


def automatic_restore(encoded: bytes, model: str) -> Restoration:
    """Return what `--restore auto` chooses for a file and a model."""
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        file.write(encoded)
        file.flush()
        path, config = Path(file.name), SourceConfig()
        found = measure_compression(path, probe(path, config).video, [], config)
    if found is None:
        return Restoration(restore=0.0, strength=1.0)
    return restoration_for(found.quantizer, found.detail, model)
