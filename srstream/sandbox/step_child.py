"""What a child process that does steps on an untrusted file has to do.

`InChild` starts it; its order is an `Opening`. Every later message is a step, answered by progress
messages and one reply. It dies with its parent.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from srstream.errors import DiskFullError, MediaError, SrstreamError, error_to_wire
from srstream.sandbox.child import Channel, take_order, write_log
from srstream.sandbox.confine import confine, seal
from srstream.sandbox.steps import Answer, Opening, Step
from srstream.sqlite import is_disk_full

PROGRESS_SECONDS = 0.25


class _Progress:
    """Sends at most a few progress messages per second."""

    def __init__(self, channel: Channel) -> None:
        self._channel, self._last = channel, 0.0

    def __call__(self, done: int, total: int | None) -> None:
        now = time.monotonic()
        if now - self._last >= PROGRESS_SECONDS:
            self._last = now
            self._channel.send(Answer(progress=(done, total)))


def source_path(opening: Opening) -> Path:
    """Return the path by which the child opens the source."""
    return Path(f"/proc/self/fd/{opening.source_descriptor}")


def serve(steps: TypeAdapter[Any], opening: Opening, channel: Channel) -> None:
    """Do one step after another until the parent closes the channel."""
    with suppress(EOFError):
        while (message := channel.receive()) is not None:
            channel.send(_answer(steps.validate_json(message), opening, channel))


def _answer(step: Step[Any], opening: Opening, channel: Channel) -> Answer:
    """Do a step; result and error name the source, not the descriptor's path."""
    source = source_path(opening)
    try:
        reply = step.perform(source, _Progress(channel))
    except SrstreamError as error:
        kind, text = error_to_wire(error)
        return Answer(error=(kind, text.replace(str(source), str(opening.source))))
    except MemoryError:
        text = f"{opening.source}: reading it needs more memory than is allowed."
        return Answer(error=error_to_wire(MediaError(text)))
    except Exception as error:
        if not is_disk_full(error):
            raise
        text = f"{opening.directory}: the disk became full ({error}). Free some space."
        return Answer(error=error_to_wire(DiskFullError(text)))
    content = step.reply.dump_json(reply, exclude_computed_fields=True).decode()
    name = json.dumps(str(opening.source), ensure_ascii=False)[1:-1]
    return Answer(reply=content.replace(str(source), name))


def run_child(
    steps: TypeAdapter[Any], prepare: Callable[[Opening], None] = lambda opening: None
) -> int:
    """Confine this process and do the steps that it is sent; the exit code.

    Args:
        prepare: called with the order once the process is confined.
    """
    channel, opening = take_order(Opening)
    directory = os.open(opening.directory, os.O_RDONLY | os.O_DIRECTORY)
    in_force = confine(
        readable=[opening.source_descriptor],
        writable=[directory],
        memory_bytes=opening.memory_bytes,
        devices=opening.devices,
    )
    os.close(directory)
    in_force += seal()
    write_log(f"confined: {', '.join(in_force)}")
    prepare(opening)
    serve(steps, opening, channel)
    return 0
