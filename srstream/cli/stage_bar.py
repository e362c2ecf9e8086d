"""The progress bar of a job: its stage, how far it is, and how fast; on a terminal only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class StageBar:
    """A bar on one of `plain_console`, from the first `show` to `stop`."""

    def __init__(self, console: Any) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Take the terminal, if there is one."""
        if not self._console.is_terminal:
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}", markup=False),
            console=self._console,
            transient=True,
        )
        self._bar.start()

    def stop(self) -> None:
        """Give the terminal back."""
        if self._bar is not None:
            self._bar.stop()

    def show(self, stage: str, done: int, total: int | None, speed: str) -> bool:
        """Show how far a stage is; False where there is no terminal."""
        if self._bar is None:
            return False
        if self._task is not None and total is None:
            # Rich forgets no total of a task. Without one, the bar moves by itself.
            self._bar.remove_task(self._task)
            self._task = None
        if self._task is None:
            self._task = self._bar.add_task(stage, total=total, speed=speed)
        self._bar.update(self._task, description=stage, completed=done, total=total, speed=speed)
        return True
