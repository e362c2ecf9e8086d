"""Deletes from the inbox's journal the files that ended long ago and have left nothing behind.

To delete a row too early does harm: its file would be taken again, or the result of its next
version refused. So a row stays while its file is where it was taken, while its result is where it
was put, and while the queue has its job. A folder counts as empty only if this daemon has seen one
of its files there, because a mount point without its mount is empty too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from srstream.daemon.inbox.files import Sight, look_at
from srstream.daemon.inbox.journal import InboxJournal, Taken
from srstream.daemon.settings import InboxFolder

_NUM_ROWS = 200
"""Rows in one step; on a slow network mount a step takes some tenths of a second in a thread."""


class Forgetter:
    """Goes through a folder's rows in small steps. All calls belong to the event loop.

    Args:
        is_known: returns whether the queue has a job.
    """

    def __init__(self, journal: InboxJournal, is_known: Callable[[str], bool]) -> None:
        self._journal, self._is_known = journal, is_known
        self._seen: dict[Path, tuple[int, int]] = {}
        """Identity of each folder when a file of the inbox was last seen in it."""
        self._under_way: dict[Path, tuple[float, int]] = {}
        """For each round: files that ended before this time are checked; the last row checked."""

    def begin(self, folders: Iterable[Path], before: float) -> None:
        """Have `go_on` check files that ended before a time; a round under way continues."""
        for folder in folders:
            self._under_way.setdefault(folder, (before, 0))

    async def saw(self, folder: Path, path: Path) -> None:
        """Remember a folder's identity, if the file that should be in it is there."""
        sight = await asyncio.to_thread(look_at, folder, path)
        if sight is not None and sight.signature is not None:
            self._seen[folder] = sight.identity

    async def go_on(self, entry: InboxFolder) -> None:
        """Make a step of the round through a folder's rows, if one is under way.

        Raises:
            sqlite3.Error: the journal cannot be written now.
        """
        if entry.folder not in self._under_way:
            return
        before, row = self._under_way[entry.folder]
        rows = self._journal.ended_ones(entry.folder, before, row, _NUM_ROWS)
        if not rows:
            del self._under_way[entry.folder]
            return
        sights = await asyncio.to_thread(_look_at_all, rows, entry.output)
        for taken, (source, result) in zip(rows, sights, strict=True):
            if source is not None and source.signature == taken.signature:
                self._seen[source.folder] = source.identity
            if taken.state == "done" and result is not None and result.signature is not None:
                self._seen[result.folder] = result.identity
        self._journal.forget(
            [
                taken.key
                for taken, (source, result) in zip(rows, sights, strict=True)
                if self._may_go(taken, source, result)
            ]
        )
        self._under_way[entry.folder] = before, rows[-1].row

    def _may_go(self, taken: Taken, source: Sight | None, result: Sight | None) -> bool:
        if taken.job is not None and self._is_known(taken.job):
            # By its key the job would be found again, and nothing would be done.
            return False
        is_replaced = source is not None and source.signature not in (None, taken.signature)
        if not is_replaced and not self._is_empty(source):
            return False
        # The row allows the next version's result to replace this one.
        return taken.state != "done" or self._is_empty(result) or self._journal.has_successor(taken)

    def _is_empty(self, sight: Sight | None) -> bool:
        """Return whether a path is known to have no file."""
        return (
            sight is not None
            and sight.signature is None
            and sight.identity == self._seen.get(sight.folder)
        )


def _look_at_all(rows: Sequence[Taken], output: Path) -> list[tuple[Sight | None, Sight | None]]:
    """Look at each row's file and its result; `output` is for rows without settings."""
    return [
        (
            look_at(taken.folder, taken.path),
            look_at(output if taken.entry is None else taken.entry.output, taken.output),
        )
        for taken in rows
    ]
