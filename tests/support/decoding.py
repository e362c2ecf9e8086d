"""Decoding a file in the confined child, as a job does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from srstream.config import SourceConfig
from srstream.frame import Frame
from srstream.media.read.probe import probe
from srstream.media.types import TimeWindow
from srstream.sandbox.decoder import DecodeRequest, frame_hash, opened_source, start_decoder
from srstream.sandbox.transport import END, FrameReceiver


def decode_in_child(
    path: Path, folder: Path, config: SourceConfig, **more: Any
) -> tuple[list[str], dict[str, Any] | str, str]:
    """Return the hashes of the frames, the report or error, and what the child's log says.

    The file has another name meanwhile, which shows that the child does not open it by name.
    """
    folder.mkdir()
    info = probe(path, config)
    receiver = FrameReceiver(folder, window_bytes=64 << 20)
    with opened_source(path) as source, (folder / "log").open("wb") as log:
        request = DecodeRequest(
            path_hex=os.fsencode(path).hex(),
            source_descriptor=source,
            container=info.container,
            video=info.video,
            config=config,
            window=TimeWindow(),
            directory_descriptor=receiver.directory_descriptor,
            **more,
        )
        moved = path.rename(path.with_name("moved away"))
        child = start_decoder(request, log)
    hashes: list[str] = []
    try:
        while True:
            message = receiver.receive(20)
            assert message is not None, (folder / "log").read_text()
            kind, content = message
            if isinstance(content, Frame):
                hashes.append(frame_hash(content))
                receiver.release(content)
            elif not isinstance(content, str):
                said = content if kind == END else content["text"]
                return hashes, said, (folder / "log").read_text()
    finally:
        child.end()
        receiver.close()
        moved.rename(path)
