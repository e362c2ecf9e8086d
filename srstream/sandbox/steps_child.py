"""The child process that looks at, assembles and verifies media which nobody trusts.

Run as `python -m srstream.sandbox.steps_child` by `InChild`: one JSON line says what it may touch,
every further line is a step, answered by lines of progress and one reply. It dies with its parent.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TextIO

from srstream.errors import SrstreamError
from srstream.media.errors import show_as
from srstream.sandbox.child import die_with_parent
from srstream.sandbox.confine import confine, seal
from srstream.sandbox.steps import STEP, Line, Opening

PROGRESS_SECONDS = 0.25


class _Progress:
    """Sends at most a few lines a second."""

    def __init__(self, output: TextIO) -> None:
        self._output, self._last = output, 0.0

    def __call__(self, done: int, total: int | None) -> None:
        now = time.monotonic()
        if now - self._last >= PROGRESS_SECONDS:
            self._last = now
            _send(self._output, Line(progress=(done, total)))


def source_path(opening: Opening) -> Path:
    """What the child opens."""
    return Path(f"/proc/self/fd/{opening.source_descriptor}")


def _send(output: TextIO, line: Line) -> None:
    print(line.model_dump_json(exclude_none=True), file=output, flush=True)


def serve(opening: Opening, steps: TextIO, output: TextIO) -> None:
    """Do step after step until the parent has no more."""
    source = source_path(opening)
    for text in steps:
        step = STEP.validate_json(text)
        try:
            reply = step.perform(source, _Progress(output))
        except SrstreamError as error:
            text = str(error).replace(str(source), str(opening.source))
            _send(output, Line(error=(type(error).__name__, text)))
        except MemoryError:
            text = f"{opening.source}: reading it needs more memory than is allowed."
            _send(output, Line(error=("MediaError", text)))
        else:
            content = step.reply.dump_json(reply, exclude_computed_fields=True).decode()
            name = json.dumps(str(opening.source), ensure_ascii=False)[1:-1]
            _send(output, Line(reply=content.replace(str(source), name)))


def main() -> int:
    """Entry point of the child."""
    opening = Opening.model_validate_json(sys.stdin.readline())
    die_with_parent(opening.parent_pid)
    directory = os.open(opening.directory, os.O_RDONLY | os.O_DIRECTORY)
    in_force = confine(
        readable=[opening.source_descriptor],
        writable=[directory],
        memory_bytes=opening.memory_bytes,
    )
    os.close(directory)
    in_force += seal()
    sys.stderr.write(f"confined: {', '.join(in_force)}\n")
    show_as(source_path(opening), opening.source)
    serve(opening, sys.stdin, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
