"""MPEG-TS as a file: packets of 188 bytes (ISO/IEC 13818-1, 2.4.3), or of 192 in M2TS."""

from __future__ import annotations

from pathlib import Path

_MIN_PACKETS = 64
"""A reader that is not told the format wants to see the rhythm of so many to believe it."""

_SIZE = 188
_NULL = b"\x47\x1f\xff\x10" + bytes([0xFF]) * (_SIZE - 4)


def fill_up(path: Path) -> None:
    """Append null packets, which readers pass over, to a file of very few packets."""
    with path.open("r+b") as file:
        head = file.read(4)
        prefix = b"" if head[:1] == b"\x47" else head
        num_packets = file.seek(0, 2) // (_SIZE + len(prefix))
        file.write((prefix + _NULL) * (_MIN_PACKETS - num_packets))
