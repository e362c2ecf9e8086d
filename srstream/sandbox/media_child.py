"""The child process that probes, assembles and verifies untrusted media.

Run as `python -m srstream.sandbox.media_child` by `InChild`.
"""

from __future__ import annotations

import sys

from srstream.media.errors import show_as
from srstream.sandbox.media_steps import STEP
from srstream.sandbox.step_child import run_child, source_path
from srstream.sandbox.steps import Opening


def _name_source(opening: Opening) -> None:
    show_as(source_path(opening), opening.source)


if __name__ == "__main__":
    sys.exit(run_child(STEP, _name_source))
