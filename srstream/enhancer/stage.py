"""The contract between the stage that enlarges frames and the loops that drive it."""

from __future__ import annotations

from typing import Protocol

from srstream.frame import Frame, FrameForm


class Stage(Protocol):
    """Enlarges frames: each frame that goes in yields one, in the same order.

    One thread drives a stage. A loop that also waits for other things asks `has_room`, pushes and
    collects, and never blocks; the maker of the stage tells the loop when to look again. A caller
    with nothing else to do pushes and drains.
    """

    @property
    def output(self) -> FrameForm:
        """The form of every frame that comes out."""
        ...

    def has_room(self) -> bool:
        """Return whether `push` would begin a frame at once.

        Ask only for a frame that is pushed as soon as there is room.
        """
        ...

    def push(self, frame: Frame) -> list[Frame]:
        """Begin a frame, and return the frames that are complete by now.

        This waits for tiles of earlier frames if `has_room` is False.

        Raises:
            EngineError: the engine failed, or a frame came out of it wrong.
        """
        ...

    def collect(self) -> list[Frame]:
        """Return the frames that are complete by now, without waiting.

        Raises:
            EngineError: the engine failed, or a frame came out of it wrong.
        """
        ...

    def drain(self) -> list[Frame]:
        """Wait for the frames in flight and return them. More may be pushed afterwards.

        Raises:
            EngineError: the engine failed, or a frame came out of it wrong.
        """
        ...

    def forget(self) -> None:
        """Compute the next frame as a whole, so that it does not depend on any frame before it."""
        ...

    def close(self) -> None:
        """Drop the frames in flight and free what the stage has opened."""
        ...
