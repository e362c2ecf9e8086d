"""The contract between a stage of enhancement and the loop that drives it."""

from __future__ import annotations

from typing import Protocol

from srstream.frame import Frame


class FrameStage(Protocol):
    """What the worker needs of the enhancer. Whoever makes one says when to look again."""

    def has_room(self) -> bool:
        """Whether `push` would begin a frame at once.

        Asked only for a frame that will be pushed as soon as there is room.
        """
        ...

    def push(self, frame: Frame) -> list[Frame]:
        """Begin a frame; those that are complete by now."""
        ...

    def collect(self) -> list[Frame]:
        """Those that are complete by now; waits for nothing."""
        ...

    def forget(self) -> None:
        """Have the next frame depend on none before it."""
        ...
