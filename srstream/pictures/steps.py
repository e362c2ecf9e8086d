"""The steps of a picture's job that read its source or write what comes of it (`sandbox/steps.py`).

Pixels cross in files of the job's folder, rows of interleaved samples without a header.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, TypeAdapter

from srstream.errors import MediaError
from srstream.pictures import files as picture_files
from srstream.pictures.files import Format, Header
from srstream.sandbox.steps import OnProgress, Step

PICTURE_CHILD = "srstream.pictures.child"
"""The module that does these steps in a child."""


@dataclass(frozen=True, slots=True)
class PixelFile:
    """Pixels in a file: (height, width) gray, with 3 channels BGR, with 4 BGRA."""

    path: Path
    height: int
    width: int
    channels: Literal[1, 3, 4]
    bits: Literal[8, 16]

    @classmethod
    def write(cls, path: Path, pixels: Any) -> PixelFile:
        """Write pixels, (H, W) or (H, W, C), uint8 or uint16."""
        path.write_bytes(np.ascontiguousarray(pixels).data)  # NumPy's errors lack the errno
        height, width, *channels = pixels.shape
        return cls(path, height, width, (*channels, 1)[0], 8 * pixels.dtype.itemsize)

    def read(self) -> Any:
        """Return the pixels as they were written.

        Raises:
            MediaError: the file has another size.
        """
        num_bytes = self.height * self.width * self.channels * self.bits // 8
        if self.path.stat().st_size != num_bytes:
            raise MediaError(f"{self.path}: has other than {num_bytes} bytes.")
        pixels = np.fromfile(self.path, np.uint8 if self.bits == 8 else np.uint16)
        shape = (self.height, self.width, self.channels)
        return pixels.reshape(shape[:2] if self.channels == 1 else shape)


class ReadHeader(Step[Header]):
    step: Literal["header"] = "header"
    reply = TypeAdapter(Header)

    def perform(self, source: Path, on_progress: OnProgress | None) -> Header:
        return picture_files.read_header(source, picture_files.read_content(source))


class DecodePicture(Step[PixelFile]):
    step: Literal["decode"] = "decode"
    reply = TypeAdapter(PixelFile)
    destination: Path

    def perform(self, source: Path, on_progress: OnProgress | None) -> PixelFile:
        samples = picture_files.decode(source, picture_files.read_content(source))
        return PixelFile.write(self.destination, samples.pixels)


class EncodePicture(Step[None]):
    """Write the enlarged picture, with the metadata of the source."""

    step: Literal["encode"] = "encode"
    reply = TypeAdapter(None)
    pixels: PixelFile
    form: Format
    header: Header
    destination: Path

    def perform(self, source: Path, on_progress: OnProgress | None) -> None:
        content, samples = picture_files.read_content(source), None
        if not picture_files.copies_metadata(self.form, self.header):
            samples = picture_files.decode(source, content)
        data = picture_files.encode(self.pixels.read(), self.form, content, self.header, samples)
        self.destination.write_bytes(data)


AnyStep = ReadHeader | DecodePicture | EncodePicture
STEP: TypeAdapter[AnyStep] = TypeAdapter(Annotated[AnyStep, Field(discriminator="step")])
"""A step as a message to the child."""
