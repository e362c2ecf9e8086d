"""The error tree of srstream. Every message says what, where, when and what to do."""

from __future__ import annotations

from typing import ClassVar


class SrstreamError(Exception):
    """Root of every error that srstream raises on purpose; its text is meant for the user."""

    exit_code: ClassVar[int] = 1


class UsageError(SrstreamError):
    """The request cannot mean anything: a bad option, a missing input, an output in the way."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration value or file is wrong."""


class RefusedError(UsageError):
    """The job was understood and cannot work; refused before any work was done."""


class BusyError(RefusedError):
    """It cannot be taken now; later it may be."""


class NoSpaceError(RefusedError):
    """The disk has too little space for the job to begin."""


class ServiceError(SrstreamError):
    """The daemon is not there, does not answer, or cannot begin its service."""


class MediaError(SrstreamError):
    """The input could not be opened, read or decoded."""


class TruncatedError(MediaError):
    """The input ends earlier than it says; `--salvage` keeps the good part."""


class DecodeError(MediaError):
    """Too many packets in a row could not be decoded; `--salvage` keeps what came before."""


class HostileInputError(MediaError):
    """Reading the input ended its process several times at the same place."""


class EncodeError(SrstreamError):
    """The encoder or the muxer failed."""


class VerifyError(SrstreamError):
    """The output does not hold what the source held."""


class EngineError(SrstreamError):
    """The inference engine is missing, cannot be opened, or failed."""


class EngineMemoryError(EngineError):
    """The device has no memory for tiles of this size; smaller ones may do."""


class WeightsError(SrstreamError):
    """Weights are missing, damaged or of the wrong shape."""


class JobError(SrstreamError):
    """The job's own store is damaged or held by another process."""


class ResumeMismatchError(JobError):
    """An unfinished job exists, made from another source or other settings."""

    exit_code = 3


class DiskFullError(JobError):
    """The disk is full; the job is paused and can be resumed."""


class StalledError(JobError):
    """Nothing moves in the job any more; it can be resumed."""


class InterruptedJobError(JobError):
    """The user interrupted the job; it can be resumed."""

    exit_code = 130


def error_named(name: str) -> type[SrstreamError] | None:
    """The error of this name, which came from another process; None if it is none of ours."""
    found = globals().get(name)
    return found if isinstance(found, type) and issubclass(found, SrstreamError) else None
