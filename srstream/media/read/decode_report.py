"""Counts and notes that a decode collects."""

from __future__ import annotations

from dataclasses import dataclass, field

MAX_NOTES = 100
"""The maximum number of notes per decode; a broken recording may change with every picture."""


@dataclass(slots=True)
class DecodeReport:
    """The events of a decode so far; updated as frames are taken.

    `num_frames` counts frames yielded, `num_concealed` those among them that repeat another,
    `num_damaged` those that the decoder itself patched. `stopped_at_seconds` is set if eight
    failures in a row ended a decode with `salvage`. `notes` are sentences for the user. After a
    resume the counts cover the resumed part.
    """

    num_frames: int = 0
    num_corrupt_packets: int = 0
    num_concealed: int = 0
    num_damaged: int = 0
    stopped_at_seconds: float | None = None
    notes: list[str] = field(default_factory=list)

    def clear(self) -> None:
        """Reset everything."""
        self.num_frames = self.num_corrupt_packets = 0
        self.num_concealed = self.num_damaged = 0
        self.stopped_at_seconds = None
        self.notes.clear()
