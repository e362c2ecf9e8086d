"""What the watch folders' journal forgets: files that ended long ago and have left nothing behind.

A row that is deleted too early does harm: its file would be taken once more, or the result of its
next version refused. So a row stays while its file lies where it was taken, while its result lies
where it was put, and while the queue remembers its job. That nothing lies there is only believed of
a folder in which this daemon has seen a file of its own: a mount point without its mount is empty
too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from srstream.daemon.inbox.files import Sight, look_at
from srstream.daemon.inbox.journal import InboxJournal, Taken
from srstream.daemon.settings import InboxFolder

_NUM_ROWS = 200
"""Looked at in one step; on a slow network mount that is some tenths of a second in a thread."""


class Forgetter:
    """Goes through a folder's rows in small steps. All calls belong to the event loop.

    Args:
        is_known: whether the queue remembers a job.
    """

    def __init__(self, journal: InboxJournal, is_known: Callable[[str], bool]) -> None:
        self._journal, self._is_known = journal, is_known
        self._seen: dict[Path, tuple[int, int]] = {}
        """Folders as they were when a file of ours was last seen in them."""
        self._under_way: dict[Path, tuple[float, int]] = {}
        """What ended before when is looked at, and the last row that was."""

    def begin(self, folders: Iterable[Path], before: float) -> None:
        """Have `go_on` look at what ended before a time; a round under way is gone on with."""
        for folder in folders:
            self._under_way.setdefault(folder, (before, 0))

    async def saw(self, folder: Path, path: Path) -> None:
        """A file of ours should lie in a folder: if so, this is how the folder looks."""
        sight = await asyncio.to_thread(look_at, folder, path)
        if sight is not None and sight.signature is not None:
            self._seen[folder] = sight.identity

    async def go_on(self, entry: InboxFolder) -> None:
        """A step of the round through a watched folder's rows, if one is under way.

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
            # Its job would be found again by the key, and nothing be done.
            return False
        is_replaced = source is not None and source.signature not in (None, taken.signature)
        if not is_replaced and not self._is_empty(source):
            return False
        # That it is ours allows the next version's result to replace it.
        return taken.state != "done" or self._is_empty(result) or self._journal.has_successor(taken)

    def _is_empty(self, sight: Sight | None) -> bool:
        """Whether a place is known to hold nothing."""
        return (
            sight is not None
            and sight.signature is None
            and sight.identity == self._seen.get(sight.folder)
        )


def _look_at_all(rows: Sequence[Taken], output: Path) -> list[tuple[Sight | None, Sight | None]]:
    """Where each row's file was taken, and where its result was put: in its `output`, or this."""
    return [
        (
            look_at(taken.folder, taken.path),
            look_at(output if taken.entry is None else taken.entry.output, taken.output),
        )
        for taken in rows
    ]
