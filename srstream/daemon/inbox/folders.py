"""The inbox, which users know as watch folders: a file that has stopped growing becomes a job.

Folders are polled, so that network mounts work. Every step is journaled first (`journal.py`) and
may be repeated: whenever the daemon is killed, no file is submitted twice and none is forgotten. A
file keeps the settings with which it was taken, even when its folder is no longer watched.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import sqlite3
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from srstream.config import ScaleConfig
from srstream.daemon.inbox.files import (
    Found,
    Signature,
    becomes_picture,
    beside,
    find_files,
    free_names,
    is_being_written,
    move_away,
    write_atomically,
)
from srstream.daemon.inbox.forget import Forgetter
from srstream.daemon.inbox.journal import InboxJournal, Taken, TakenState
from srstream.daemon.logs import redacted
from srstream.daemon.settings import InboxFolder
from srstream.errors import BusyError, ConfigError, JobError, NoSpaceError, SrstreamError
from srstream.jobs.events import printable
from srstream.naming import distinct_stem, unopened_output
from srstream.protocol.control import FINAL_STATES, JobInfo, Submit

logger = logging.getLogger(__name__)

_MAY_PASS = (BusyError, NoSpaceError, JobError)
"""Errors for which a job is refused now but may be taken later."""
_MAX_REFUSALS = 10
"""Refusals in one pass after which no further file is submitted: the queue may be full."""
_SHORTEST_POLL_SECONDS, _LONGEST_POLL_SECONDS = 0.05, 2.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 2.0, 300.0


@dataclass(slots=True)
class _Sighting:
    """A file as it was last seen, and the time of its last change."""

    signature: Signature
    since: float
    is_taken: bool = False


class Inbox:
    """Watches all configured folders. All calls belong to the event loop.

    Args:
        entries: the folders; without any, only files that were taken before are processed.
        submit: submits a job, as a client's request does; a repeated key returns the first job.
        status: returns a job, or None if the queue has forgotten it.
        journal: path of the journal, which is created if it is missing.
        released: is called when a folder that is no longer watched is not needed any more.
        scaling: the size of outputs, given what a folder's entry changes of a job's defaults.

    Raises:
        ConfigError: results or failed files would be taken as inputs.
        JobError: the journal cannot be opened.
    """

    def __init__(
        self,
        entries: Sequence[InboxFolder],
        submit: Callable[[Submit], Awaitable[JobInfo]],
        status: Callable[[str], JobInfo | None],
        journal: Path,
        released: Callable[[], None] = lambda: None,
        scaling: Callable[[Mapping[str, Any]], ScaleConfig] = lambda changes: ScaleConfig(),
    ) -> None:
        check_apart(entries)
        self._scaling = scaling
        self._submit_job, self._status, self._released = submit, status, released
        self._journal = InboxJournal(journal)
        self._forgetter = Forgetter(self._journal, lambda job: status(job) is not None)
        open_ones = self._journal.open_ones()
        self._unsure = {taken.key for taken in open_ones}
        """Keys of submitted files whose jobs may have ended unnoticed."""
        self._untended = {taken.folder for taken in open_ones}
        self._tended: set[Path] = set()
        """Folders with a task; those in `_untended` are still to get one."""
        self._is_changed = asyncio.Event()
        self._settling = asyncio.Lock()
        self._sightings: dict[Path, dict[Path, _Sighting]] = {}
        self._told: dict[Path, set[str]] = {}
        self._troubles: dict[Path, set[str]] = {}
        """Problems of the present pass over each folder; `_told` has those of the last pass."""
        self._pauses: dict[str, tuple[float, float]] = {}
        """For files that cannot be moved: the time of the next attempt, and the pause before it."""
        self.reconfigure(entries)

    def reconfigure(self, entries: Sequence[InboxFolder]) -> None:
        """Watch these folders from now on, and no others; they must pass `check_apart`.

        Files that were taken before keep the settings of that time.
        """
        self._entries = {entry.folder: entry for entry in entries}
        self._excluded = tuple(
            folder for entry in entries for folder in (entry.output, entry.quarantine)
        )
        self._untended |= self._entries.keys() - self._tended
        self._is_changed.set()

    @property
    def notes(self) -> list[str]:
        """What was damaged and what became of it, for `health`."""
        return self._journal.notes

    def unfinished_entries(self) -> list[InboxFolder]:
        """The entries, present or former, of files whose jobs have not ended."""
        return self._journal.open_entries()

    def forget_old(self, before: float) -> None:
        """Begin to delete from the journal what ended before a time, where it is safe."""
        self._forgetter.begin(self._entries, before)

    async def run(self) -> None:
        """Watch until cancelled. A folder that hangs or is missing does not delay the others."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._is_changed.clear()
                while self._untended:
                    folder = self._untended.pop()
                    self._tended.add(folder)
                    group.create_task(self._tend(folder))
                await self._is_changed.wait()

    async def job_ended(self, info: JobInfo) -> None:
        """Write down a job's result or failure, if the job is for a file of the inbox.

        What cannot be done now, because a disk is full, is done later.
        """
        taken = self._journal.of_job(info.id)
        if taken is not None:
            self._unsure.add(taken.key)
            await self._try(taken.folder, lambda: self._settle(taken, info))

    async def look(self, folder: Path) -> None:
        """Make one pass over a folder: finish what was begun, then take files that have settled."""
        await self._go_on(folder)
        entry = self._entries.get(folder)
        if entry is None:
            if not self._journal.open_ones(folder):
                self._leave(folder)
            return
        await self._forgetter.go_on(entry)
        found = await asyncio.to_thread(find_files, entry, self._excluded)
        for file in self._settled(entry, found):
            await self._take(entry, file)

    def reopen(self, *, is_same_folder: bool) -> None:
        """Go on with the journal that its path leads to now; see `InboxJournal.reopen`."""
        self._journal.reopen(is_same_folder=is_same_folder)
        open_ones = self._journal.open_ones()
        self._unsure |= {taken.key for taken in open_ones}
        self._untended |= {taken.folder for taken in open_ones} - self._tended
        self._is_changed.set()

    def close(self) -> None:
        """Close the journal; `run` must have ended."""
        self._journal.close()

    async def _tend(self, folder: Path) -> None:
        """Make passes over a folder until it is no longer watched and nothing is left to do."""
        while True:
            await self._try(folder, lambda: self.look(folder))
            if folder not in self._tended:
                return
            self._told[folder] = self._troubles.pop(folder, set())
            await asyncio.sleep(self._pause(folder))

    def _pause(self, folder: Path) -> float:
        entry = self._entries.get(folder)
        if entry is None:
            return _LONGEST_POLL_SECONDS
        return min(max(entry.settle_seconds / 4, _SHORTEST_POLL_SECONDS), _LONGEST_POLL_SECONDS)

    def _leave(self, folder: Path) -> None:
        self._tended.discard(folder)
        for known in (self._sightings, self._told, self._troubles):
            known.pop(folder, None)

    async def _try(self, folder: Path, work: Callable[[], Awaitable[None]]) -> bool:
        """Do something; returns False if a full disk or a lost mount prevents it for now."""
        try:
            await work()
        except (OSError, sqlite3.Error, *_MAY_PASS) as error:
            self._tell_trouble(folder, str(error))
            return False
        return True

    def _tell_trouble(self, folder: Path, text: str) -> None:
        """Log a problem once, and not at every pass."""
        troubles = self._troubles.setdefault(folder, set())
        is_told = text in troubles or text in self._told.get(folder, ())
        troubles.add(text)
        if not is_told:
            logger.warning("watch folder %s: %s It is tried again.", printable(folder), text)

    # --- taking files ------------------------------------------------------------------------

    def _settled(self, entry: InboxFolder, found: Sequence[Found]) -> list[Found]:
        """The files that have not changed for long enough and were not taken before."""
        now, before = time.monotonic(), self._sightings.get(entry.folder, {})
        seen: dict[Path, _Sighting] = {}
        settled = []
        for file in found:
            sighting = before.get(file.path)
            if sighting is None or sighting.signature != file.signature:
                sighting = _Sighting(file.signature, now)
            seen[file.path] = sighting
            if not sighting.is_taken and now - sighting.since >= entry.settle_seconds:
                settled.append(file)
        self._sightings[entry.folder] = seen
        return settled

    async def _take(self, entry: InboxFolder, file: Found) -> None:
        sighting = self._sightings[entry.folder][file.path]
        last = self._journal.latest(file)
        # A failed file was moved away; if it is here again, someone wants another attempt.
        is_new = last is None or last.state == "failed"
        if is_new and await asyncio.to_thread(is_being_written, file.path):
            sighting.since = time.monotonic()
            return
        is_still = is_new and await asyncio.to_thread(becomes_picture, file.path)
        if self._entries.get(entry.folder) is not entry:
            # A reload came in between; the next pass decides.
            return
        if is_new:
            attempt = 0 if last is None else last.attempt + 1
            output = self._output(entry, file.path, is_still=is_still)
            taken = self._journal.add(entry, file, attempt, output)
            logger.info("watch folder: %s is taken", printable(file.path))
            sighting.is_taken = True
            await self._submit(taken)
        sighting.is_taken = True
        await self._forgetter.saw(entry.folder, file.path)

    def _output(self, entry: InboxFolder, path: Path, *, is_still: bool) -> Path:
        """The output's path: subfolders as in the input, and a name that no other input has."""
        scaling = self._scaling(_changes(entry))
        name = unopened_output(path.relative_to(entry.folder), scaling, is_still=is_still)
        default = entry.output / name
        default = beside(default.with_suffix(""), default.suffix)
        if self._journal.inputs_of(default) <= {path}:
            return default
        return beside(default.with_name(distinct_stem(path, scaling)), default.suffix)

    async def _submit(self, taken: Taken) -> bool:
        """Submit a journaled file; False if it has to wait."""
        entry = self._entry_of(taken)
        if entry is None:
            return False
        try:
            await asyncio.to_thread(taken.output.parent.mkdir, parents=True, exist_ok=True)
            info = await self._submit_job(self._request(entry, taken))
        except (OSError, sqlite3.Error, *_MAY_PASS) as error:
            self._tell_trouble(taken.folder, str(error))
            return False
        except ValidationError:
            name = printable(taken.path)
            await self._fail(taken, f"{name}: its name is too long or no UTF-8; rename the file.")
        except SrstreamError as error:
            await self._fail(taken, str(error))
        else:
            self._journal.change(taken.key, "submitted", job=info.id)
            # The job may have ended before its id was journaled.
            self._unsure.add(taken.key)
        return True

    def _request(self, entry: InboxFolder, taken: Taken) -> Submit:
        return Submit(
            input=str(taken.path),
            output=str(taken.output),
            config=_changes(entry),
            # Only a new version of a file replaces the result of the old one.
            overwrite=self._journal.has_made(taken.output),
            priority=entry.priority,
            key=taken.key,
        )

    # --- what becomes of them ----------------------------------------------------------------

    async def _go_on(self, folder: Path) -> None:
        """Finish what a crash, a full disk or a full queue has interrupted."""
        num_refusals = 0
        for taken in self._journal.open_ones(folder):
            if taken.state == "new":
                if num_refusals < _MAX_REFUSALS and not await self._submit(taken):
                    num_refusals += 1
            elif taken.state == "failing":
                await self._quarantine_again(taken)
            elif taken.key in self._unsure:
                await self._try(folder, lambda taken=taken: self._catch_up(taken))  # type: ignore[misc]

    async def _quarantine_again(self, taken: Taken) -> None:
        """Try again to move a failed file, after longer and longer pauses."""
        retry_at, pause = self._pauses.get(taken.key, (0.0, _FIRST_PAUSE_SECONDS / 2))
        if time.monotonic() < retry_at:
            # The problem remains, and is not logged again.
            told = self._told.get(taken.folder, set())
            self._troubles.setdefault(taken.folder, set()).update(told)
            return
        if await self._try(taken.folder, lambda: self._quarantine(taken)):
            self._pauses.pop(taken.key, None)
        else:
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
            self._pauses[taken.key] = time.monotonic() + pause, pause

    async def _catch_up(self, taken: Taken) -> None:
        assert taken.job is not None
        info = self._status(taken.job)
        if info is None:
            self._end(taken, "cancelled")
        elif info.state in FINAL_STATES:
            await self._settle(taken, info)
        self._unsure.discard(taken.key)

    async def _settle(self, taken: Taken, info: JobInfo) -> None:
        async with self._settling:
            taken = self._journal.get(taken.key)
            if taken.state != "submitted":
                pass
            elif info.state == "done":
                await self._write_receipt(taken, info)
                self._end(taken, "done")
            elif info.state in ("failed", "quarantined"):
                await self._fail(taken, info.error or f"job {info.id} failed.")
            elif info.state == "cancelled":
                self._end(taken, "cancelled")
        self._unsure.discard(taken.key)

    def _entry_of(self, taken: Taken) -> InboxFolder | None:
        """The entry with which a file was taken.

        None: an older version took the file, and its folder is no longer watched.
        """
        return taken.entry or self._entries.get(taken.folder)

    def _end(self, taken: Taken, state: TakenState, **columns: str) -> None:
        self._journal.change(taken.key, state, **columns)
        entry = self._entry_of(taken)
        needed = (*self._entries.values(), *self._journal.open_entries())
        if entry is not None and _places(entry) not in map(_places, needed):
            self._released()

    async def _write_receipt(self, taken: Taken, info: JobInfo) -> None:
        receipt = (info.result or {}).get("receipt")
        if receipt is not None:
            text = json.dumps(receipt, indent=2) + "\n"
            path = beside(taken.output, ".receipt.json")
            await asyncio.to_thread(write_atomically, path, text)
        if (entry := self._entry_of(taken)) is not None:
            await self._forgetter.saw(entry.output, taken.output)

    async def _fail(self, taken: Taken, reason: str) -> None:
        """Choose the place of a failed file in the quarantine, then move it there."""
        entry = self._entry_of(taken)
        if entry is None:
            logger.warning("%s: %s", printable(taken.path), reason)
            self._end(taken, "cancelled", reason=redacted(reason))
            return
        wanted = entry.quarantine / taken.path.relative_to(taken.folder)
        place = next(
            name
            for name in itertools.islice(free_names(wanted), 10_000)
            if not self._journal.is_promised(name)
        )
        text = redacted(reason).encode(errors="backslashreplace").decode()
        taken = self._journal.change(taken.key, "failing", reason=text, quarantined_as=place)
        await self._quarantine(taken)

    async def _quarantine(self, taken: Taken) -> None:
        """Write the reason, then move the file: a file there always has its reason beside it."""
        place = taken.quarantined_as
        assert place is not None
        reason = beside(place, ".reason.txt")
        await asyncio.to_thread(write_atomically, reason, f"{taken.reason}\n")
        await asyncio.to_thread(move_away, taken.folder, taken.path, place, taken.signature)
        self._end(taken, "failed")
        # If the file is put back at once, it is a new sighting.
        self._sightings.get(taken.folder, {}).pop(taken.path, None)
        logger.warning(
            "watch folder: %s went to %s: %s",
            printable(taken.path),
            printable(place),
            taken.reason,
            extra={"job": taken.job},
        )


def _places(entry: InboxFolder) -> tuple[Path, Path]:
    return entry.folder, entry.output


def check_apart(entries: Sequence[InboxFolder]) -> None:
    """Check that no result or failed file would be taken as an input.

    Raises:
        ConfigError: one would be, or a folder is named twice.
    """
    watched = [entry.folder.resolve() for entry in entries]
    if len(set(watched)) < len(watched):
        raise ConfigError("watch: a folder is named twice; name it once.")
    for entry in entries:
        for folder in (entry.output.resolve(), entry.quarantine.resolve()):
            for other in watched:
                if other == folder or other.is_relative_to(folder):
                    raise ConfigError(
                        f"watch: {folder} takes results or failures and holds the watched folder "
                        f"{other}; keep them apart, or put it below the watched one."
                    )


def _changes(entry: InboxFolder) -> dict[str, Any]:
    """What a folder's entry changes of a job's defaults."""
    return {} if entry.config is None else entry.config.model_dump(exclude_unset=True)
