"""The configuration in force: its settings, and the folders that it opens to jobs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from srstream.daemon.folders.roots import OnChange, Roots
from srstream.daemon.settings import MAX_ROOTS, InboxFolder, SecuritySettings, ServiceSettings
from srstream.errors import ConfigError

_FIXED = ("sockets", "workers", "ready_file")
"""Settings that, with `jobs.state_dir`, take effect at the next start."""


class Configuration:
    """The settings in force and the folders opened for them; a reload replaces both.

    Args:
        path: the configuration file; None: the default one.
        unfinished: the inbox folders as they were when files were taken whose jobs have not ended.
            They stay open to jobs although a reload may have removed them.
        on_change: see `Roots`.

    Raises:
        ConfigError: a folder cannot be opened.
    """

    def __init__(
        self,
        path: Path | None,
        settings: ServiceSettings,
        unfinished: Callable[[], Sequence[InboxFolder]],
        on_change: OnChange,
    ) -> None:
        self.path, self.settings = path, settings
        self._unfinished, self._on_change = unfinished, on_change
        self.roots = self.opened(settings)

    @property
    def security(self) -> SecuritySettings:
        """The security settings in force, with the inbox folders among the roots."""
        return self._secured(self.settings)

    @property
    def work_dir(self) -> Path:
        """The folder of unfinished work; each job has a folder in it, named by its id."""
        return self.settings.jobs.state_dir / "work"

    def opened(self, settings: ServiceSettings) -> Roots:
        """The folders that these settings open to jobs; the caller closes them.

        Raises:
            ConfigError: a folder cannot be opened.
        """
        security = self._secured(settings)
        return Roots(security.read_roots, security.write_roots, self._on_change)

    def use(self, settings: ServiceSettings, roots: Roots) -> None:
        """Put settings and the folders opened for them in force; the former folders are closed."""
        self.roots.close()
        self.settings, self.roots = settings, roots

    def close(self) -> None:
        """Close the folders."""
        self.roots.close()

    def _secured(self, settings: ServiceSettings) -> SecuritySettings:
        unfinished = [
            entry for entry in self._unfinished() if entry.folder.is_dir() and entry.output.is_dir()
        ]
        return with_inbox(settings.security, (*settings.watch, *unfinished))


def with_inbox(security: SecuritySettings, entries: Sequence[InboxFolder]) -> SecuritySettings:
    """The settings with inbox folders as further read roots, and their outputs as write roots."""
    return security.model_copy(
        update={
            "read_roots": _each_once(security.read_roots, [entry.folder for entry in entries]),
            "write_roots": _each_once(security.write_roots, [entry.output for entry in entries]),
        }
    )


def _each_once(roots: Sequence[Path], more: Sequence[Path]) -> tuple[Path, ...]:
    # The settings allow no more; any beyond these are folders that are no longer watched.
    return tuple(dict.fromkeys((*roots, *more)))[:MAX_ROOTS]


def check_roots(settings: ServiceSettings, path: Path | None) -> None:
    """Check that jobs can read and write somewhere.

    Raises:
        ConfigError: no job could be done.
    """
    security = with_inbox(settings.security, settings.watch)
    if not security.read_roots or not security.write_roots:
        raise ConfigError(
            f"{path or 'the configuration'}: name the folders that jobs may read and write: "
            "read_roots and write_roots in [security]."
        )


def needing_restart(running: ServiceSettings, wanted: ServiceSettings) -> list[str]:
    """The names of settings that differ and take effect only at the next start."""
    names = [name for name in _FIXED if getattr(running, name) != getattr(wanted, name)]
    if running.jobs.state_dir != wanted.jobs.state_dir:
        names.append("jobs.state_dir")
    return names


def until_restart(running: ServiceSettings, wanted: ServiceSettings) -> ServiceSettings:
    """The wanted settings, with the running daemon's where only a restart changes them."""
    fixed = {name: getattr(running, name) for name in _FIXED}
    jobs = wanted.jobs.model_copy(update={"state_dir": running.jobs.state_dir})
    return wanted.model_copy(update={**fixed, "jobs": jobs})
