"""What a person sees while a command works: on a terminal a bar, otherwise a line now and then."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.progress import BarColumn, SpinnerColumn, TaskID, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Column

from srstream.terminal import plain_console

LINE_SECONDS = 5.0
"""Least time between two lines of progress where there is no terminal."""

CONSOLE = plain_console(stderr=True)
"""Shared with the log, whose lines otherwise tear the bar."""

T = TypeVar("T")


class Task:
    """A part of the work whose end is known."""

    def __init__(self, reporter: Reporter, name: str, total: float, bar: TaskID | None) -> None:
        self._reporter, self._name, self._total, self._bar = reporter, name, total, bar
        self._done = 0.0

    def advance(self, note: str = "") -> None:
        """One more of the total is done."""
        self.update(self._done + 1, note)

    def update(self, done: float, note: str = "") -> None:
        """Show how much of the total is done, and a few words beside it."""
        self._done = done
        share = done / self._total if self._total else 1.0
        self._reporter.show(self._name, share, note, self._bar)


class Reporter:
    """Progress and sentences on standard error; a silent one shows nothing."""

    def __init__(self, *, is_silent: bool = False) -> None:
        self._is_silent = is_silent
        self._bar: Bar | None = None
        self._num_tasks = 0
        self._last_line = -LINE_SECONDS

    def say(self, text: str) -> None:
        """Print one line."""
        if not self._is_silent:
            CONSOLE.print(text)

    @contextmanager
    def task(self, name: str, total: float) -> Iterator[Task]:
        """Show a part of the work; one within another is shown below it."""
        number = None
        if CONSOLE.is_terminal and not self._is_silent:
            self._bar = self._bar or _new_bar()
            if not self._num_tasks:
                self._bar.start()
            number = self._bar.add_task(name, total=1.0, note="")
        self._num_tasks += 1
        try:
            yield Task(self, name, total, number)
        finally:
            self._num_tasks -= 1
            if self._bar is not None and number is not None:
                self._bar.remove_task(number)
                if not self._num_tasks:
                    self._bar.stop()
                    self._bar = None

    def each(self, name: str, items: Iterable[T], total: int) -> Iterator[T]:
        """The items, with a task that shows how many of them are done."""
        with self.task(name, total) as task:
            for item in items:
                yield item
                task.advance()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def show(self, name: str, share: float, note: str, number: TaskID | None) -> None:
        """Move a task's bar, or print a line where it is time for one."""
        if self._bar is not None and number is not None:
            self._bar.update(number, completed=min(share, 1.0), note=note)
            return
        now = time.monotonic()
        if self._is_silent or now - self._last_line < LINE_SECONDS:
            return
        self._last_line = now
        CONSOLE.print(f"{name}: {share:.0%}{', ' if note else ''}{note}")


@contextmanager
def reporting() -> Iterator[Reporter]:
    """A reporter that leaves no bar behind, whatever ends the work."""
    reporter = Reporter()
    try:
        yield reporter
    finally:
        reporter.close()


def _new_bar() -> Bar:
    return Bar(
        SpinnerColumn(),  # moves while the share does not, as during a CPU's long iteration
        TextColumn("{task.description}", markup=False, table_column=Column(min_width=8)),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TextColumn("{task.fields[note]}", markup=False, table_column=Column(no_wrap=True, ratio=1)),
        expand=True,
        console=CONSOLE,
        transient=True,
    )
