"""The errors that srstream raises. Every message says what, where, when and what to do."""

from __future__ import annotations

from typing import ClassVar


class SrstreamError(Exception):
    """The base of all errors that srstream raises on purpose. Their text is meant for the user."""

    exit_code: ClassVar[int] = 1


class UsageError(SrstreamError):
    """The request is invalid: a bad option, a missing input, or an existing output."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration value or file is wrong."""


class RefusedError(UsageError):
    """The request is valid but cannot be fulfilled; it is refused before any work is done."""


class BusyError(RefusedError):
    """The request cannot be accepted now, but may be later."""


class FolderGoneError(BusyError):
    """A configured folder is not there at present, but may come back."""


class NoSpaceError(RefusedError):
    """The disk has too little free space for the job to begin."""


class ServiceError(SrstreamError):
    """The daemon is not running, does not answer, or cannot start its service."""


class NoDaemonError(ServiceError):
    """No daemon listens at the address, or none answers."""

    exit_code = 5


class MediaError(SrstreamError):
    """The input could not be opened, read or decoded."""


class TruncatedError(MediaError):
    """The input ends earlier than its header says; `--salvage` keeps the good part."""


class DecodeError(MediaError):
    """Too many packets in a row could not be decoded; `--salvage` keeps what came before."""


class HostileInputError(MediaError):
    """The process that reads the input died several times at the same place."""


class EncodeError(SrstreamError):
    """The encoder or the muxer failed."""


class VerifyError(SrstreamError):
    """The output does not contain what the source contains."""


class EngineError(SrstreamError):
    """The inference engine is missing, cannot be opened, or failed."""


class EngineMemoryError(EngineError):
    """The device has too little memory for tiles of this size; smaller tiles may fit."""


class DeviceFaultError(EngineError):
    """A GPU failed, and with it everything else that this process computes on it; a new process
    can use the GPU again."""


class WeightsError(SrstreamError):
    """Weights are missing, damaged or of the wrong shape."""


class JobError(SrstreamError):
    """The job's own store is damaged or held by another process."""


class ResumeMismatchError(JobError):
    """An unfinished job of this output has another source or other settings."""

    exit_code = 3


class DamagedError(JobError):
    """The job's own store is damaged; the job can only begin again."""


class QueueDamagedError(JobError):
    """The daemon's queue is damaged, and nothing is left to restore it from."""

    exit_code = 2


class DiskFullError(JobError):
    """The disk is full; the job is paused and can be resumed."""


class StalledError(JobError):
    """The job no longer makes progress; it can be resumed."""


class InterruptedJobError(JobError):
    """The user interrupted the job; it can be resumed."""

    exit_code = 130


def first_line(error: BaseException) -> str:
    """Return the first nonblank line of an error's text, or the error's class if there is none."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def error_named(name: str) -> type[SrstreamError] | None:
    """Return the error class of this name, or None."""
    found = globals().get(name)
    return found if isinstance(found, type) and issubclass(found, SrstreamError) else None


def error_to_wire(error: BaseException) -> tuple[str, str]:
    """Return an error in a form that another process can read: its class's name and its text."""
    return type(error).__name__, str(error)


def error_from_wire(kind: str, text: str, otherwise: type[SrstreamError]) -> SrstreamError:
    """Return the error that another process reported; `otherwise` if `kind` is unknown."""
    return (error_named(kind) or otherwise)(text)
