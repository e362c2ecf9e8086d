"""The child process that decodes all frames, so that a crash of the decoder costs no output.

Run as `python -m srstream.sandbox.decoder`; its order is a `DecodeRequest`. Frames, notes, the
outcome and errors go back over ZeroMQ. It dies with its parent. Before it reads the source,
which it inherits as a descriptor, it gives up every right that it does not need (`confine.py`).
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from pydantic import BaseModel, ConfigDict

from srstream.config import SourceConfig
from srstream.errors import MediaError, ResumeMismatchError, SrstreamError, UsageError
from srstream.frame import Frame
from srstream.media.errors import sentence, show_as
from srstream.media.read.decode import Decoder
from srstream.media.types import TimeWindow, VideoInfo
from srstream.sandbox.child import CONFINED, Child, start_child, take_order, write_log
from srstream.sandbox.confine import confine, seal
from srstream.sandbox.transport import FrameSender, endpoint


class DecodeRequest(BaseModel):
    """The order of the decoder: what to decode and where to send the frames.

    `anchor_pts` and `anchor_hash` identify the last frame of the finished part. The child sends the
    frames after it only if it decodes exactly that frame again.

    `source_descriptor` is the source, opened by the parent; `path` is then only its name in
    messages. `memory_bytes` bounds the child's address space beyond its own code.
    """

    model_config = ConfigDict(frozen=True)

    path_hex: str
    source_descriptor: int | None = None
    container: str | None = None
    video: VideoInfo
    config: SourceConfig
    window: TimeWindow
    directory_descriptor: int
    anchor_pts: int | None = None
    anchor_hash: str | None = None
    memory_bytes: int | None = None

    @property
    def path(self) -> Path:
        """The path of the source; it crosses as hexadecimal bytes, since it need not be UTF-8."""
        return Path(os.fsdecode(bytes.fromhex(self.path_hex)))

    @property
    def opened_path(self) -> Path:
        """The path by which the child opens the source."""
        if self.source_descriptor is None:
            return self.path
        return Path(f"/proc/self/fd/{self.source_descriptor}")


class DecodeOutcome(BaseModel):
    """What the decoder reports at the end of the input.

    `stopped_at_seconds` is set if a decode with `salvage` ended early.
    """

    model_config = ConfigDict(frozen=True, from_attributes=True)

    num_corrupt_packets: int = 0
    num_concealed: int = 0
    stopped_at_seconds: float | None = None


@contextmanager
def opened_source(path: Path, given: int | None = None) -> Iterator[int]:
    """Open the source for the child to inherit, unless its descriptor is `given`.

    Raises:
        UsageError: the source cannot be opened.
    """
    if given is not None:
        yield given
        return
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        text = sentence(path, f"cannot be opened ({error.strerror})", advice="Check the path.")
        raise UsageError(text) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def frame_hash(frame: Frame) -> str:
    """Return the BLAKE2b hash of a frame's time and planes."""
    digest = hashlib.blake2b(str(frame.pts).encode(), digest_size=16)
    for plane in frame.planes:
        digest.update(np.ascontiguousarray(plane).data)
    return digest.hexdigest()


def start_decoder(request: DecodeRequest, log: BinaryIO) -> Child:
    """Start the child; its frames arrive at the receiver whose folder the request names.

    `log` receives what the child and libav write to standard error.
    """
    descriptors = [request.directory_descriptor]
    if request.source_descriptor is not None:
        descriptors.append(request.source_descriptor)
    return start_child(
        "srstream.sandbox.decoder", request, descriptors=descriptors, log=log, variables=CONFINED
    )


def frames_from(decoder: Decoder, request: DecodeRequest) -> Iterator[Frame]:
    """Yield the frames of the window after the anchor.

    Raises:
        LookupError: the anchor is not among the frames.
    """
    awaited = request.anchor_pts
    for frame in decoder.frames():
        if awaited is not None:
            if frame.pts < awaited:
                continue
            if frame.pts != awaited or frame_hash(frame) != request.anchor_hash:
                raise LookupError("the frame before the resume point is a different one")
            awaited = None
            continue
        if request.window.start_pts is not None and frame.pts < request.window.start_pts:
            continue
        if request.window.end_pts is not None and frame.pts >= request.window.end_pts:
            return
        yield frame
    if awaited is not None:
        raise LookupError("the frame before the resume point was not found")


def run(request: DecodeRequest, sender: FrameSender) -> None:
    """Decode and send the frames; if the anchor is not met, decode again from the beginning."""
    start_pts = request.window.start_pts if request.anchor_pts is None else request.anchor_pts
    for attempt in (start_pts, None):
        decoder = Decoder(
            request.opened_path,
            request.video,
            request.config,
            start_pts=attempt,
            container=request.container,
        )
        num_notes = 0
        try:
            for frame in frames_from(decoder, request):
                for note in decoder.report.notes[num_notes:]:
                    sender.note(note)
                num_notes = len(decoder.report.notes)
                sender.send(frame)
            for note in decoder.report.notes[num_notes:]:
                sender.note(note)
            sender.end(DecodeOutcome.model_validate(decoder.report).model_dump())
            return
        except LookupError:
            if attempt is None:
                raise
        finally:
            decoder.close()


def _confine(request: DecodeRequest) -> tuple[str, ...]:
    """Give up all rights except to the source; return the names of the measures in force."""
    show_as(request.opened_path, request.path)
    with opened_source(request.path, request.source_descriptor) as source:
        return confine(
            readable=[source],
            memory_bytes=request.memory_bytes,
            devices=request.config.decoder != "cpu",
        )


def main() -> int:
    """Entry point of the child."""
    channel, request = take_order(DecodeRequest)
    in_force = _confine(request)
    sender = FrameSender(endpoint(request.directory_descriptor))
    sender.wait_until_connected()
    in_force += seal()
    write_log(f"confined: {', '.join(in_force)}")
    try:
        run(request, sender)
    except SrstreamError as error:
        sender.fail(error)
    except LookupError:
        sender.fail(
            ResumeMismatchError(
                f"{request.path}: decoding it again gave other frames than before. "
                "Use --restart to start over."
            )
        )
    except MemoryError:
        sender.fail(MediaError(f"{request.path}: decoding it needs more memory than there is."))
    finally:
        sender.close()
        channel.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
