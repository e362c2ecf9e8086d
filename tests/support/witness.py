"""What a receipt says of an output, and copies of a file with one thing changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import av

from srstream.media.receipt import Receipt
from srstream.media.verify import verify


def said(receipt: Receipt) -> str:
    return "\n".join(receipt.problems)


def check(source: Path, output: Path, words: str, sample: int | None = None) -> None:
    """The receipt is not good, and says so in these words."""
    receipt = verify(source, output, sample=sample)
    assert not receipt.ok
    assert words in said(receipt), receipt.problems


Edit = Callable[[av.Packet], Iterable[av.Packet]]


def remuxed(
    source: Path,
    target: Path,
    *,
    extra: Path | None = None,
    drop: int | None = None,
    edits: dict[int, Edit] | None = None,
    languages: dict[int, str] | None = None,
    dispositions: dict[int, int] | None = None,
    fonts: Callable[[bytes], bytes | None] = lambda data: data,
    chapters: Callable[[list[Any]], list[Any]] = lambda found: found,
    tags: bool = True,
) -> Path:
    """A copy of a Matroska file in which one thing is otherwise."""
    edits = edits or {}
    with (
        av.open(str(source)) as before,
        av.open(str(target), "w", container_options={"avoid_negative_ts": "disabled"}) as now,
    ):
        kept = {}
        inputs = [before] if extra is None else [before, av.open(str(extra))]
        for container in inputs:
            for stream in container.streams:
                if stream.index == drop:
                    continue
                if isinstance(stream, av.stream.AttachmentStream):
                    data = fonts(bytes(stream.data))
                    if data is not None:
                        now.add_attachment(stream.name or "", stream.mimetype or "", data)
                    continue
                added = now.add_stream_from_template(stream, opaque=True)
                added.time_base = stream.time_base
                added.metadata.update(stream.metadata)
                if languages and stream.index in languages:
                    added.metadata["language"] = languages[stream.index]
                added.disposition = (dispositions or {}).get(stream.index, stream.disposition)
                kept[container, stream.index] = added
        if tags:
            now.metadata.update(before.metadata)
        now.set_chapters(chapters(before.chapters()))
        for container, packet in packets_of(inputs):
            index = packet.stream_index
            if (container, index) in kept:
                packet.stream = kept[container, index]
                for made in edits.get(index, lambda p: [p])(packet):
                    made.stream = kept[container, index]
                    now.mux(made)
    return target


def packets_of(inputs: list[Any]) -> Iterator[tuple[Any, av.Packet]]:
    for container in inputs:
        yield from ((container, packet) for packet in container.demux() if packet.size)


def with_data(packet: av.Packet, data: bytes) -> av.Packet:
    made = av.Packet(data)
    made.time_base, made.pts, made.dts = packet.time_base, packet.pts, packet.dts
    made.duration, made.is_keyframe = packet.duration, packet.is_keyframe
    return made
