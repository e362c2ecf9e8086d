"""Writes the log: JSON lines for the journal, readable text for a terminal, each by one write.

The supervisor and the engine workers share standard error. Loggers of `logging` and of structlog
pass through the same chain.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from srstream.daemon.settings import LogSettings
from srstream.terminal import visible

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_PRIORITIES = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
    (logging.NOTSET, 7),
)
"""Priorities of syslog, each with the lowest level that has it; see sd-daemon(3)."""

_FADING = ("segment",)
"""Fields that a line leaves out while they have no value."""

_Said = tuple[str, int, str, Any]
_MAX_SAID = 256

_HIDDEN = "***"
# Both begin at a fixed text and stop at a character that cannot begin another match, so that time
# is linear in the length: clients choose some of the text that is logged.
_PASSWORD = re.compile(r"(://[^/\s:@?#]*):[^\s/?#]*@")
_SECRET = re.compile(
    r"([?&;#][\w.-]*(?:token|passw(?:or)?d|passphrase|pwd|pass|secret|key|auth|sig|signature)=)"
    r"[^&;#\s\"'<>]+",
    re.IGNORECASE,
)


def configure(settings: LogSettings, **fields: str) -> None:
    """Send this process's log to standard error as configured. A reload calls it again.

    Args:
        fields: values that every line of this process has, such as `worker` and `device`.
    """
    is_json = settings.form == "json" or (settings.form == "auto" and not os.isatty(2))
    before: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _called,
        _with(fields),
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True)
        if is_json
        else structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
    ]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *before],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            _redact_values,
            *_rendering(is_json),
        ],
    )
    handler = _LineHandler(has_priority=_is_journal())
    handler.setFormatter(formatter)
    root = logging.getLogger()
    # In one assignment: other threads log meanwhile.
    root.handlers = [handler]
    root.setLevel(_LEVELS[settings.level])
    logging.getLogger("asyncio").setLevel(max(root.level, logging.INFO))
    logging.captureWarnings(True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *before,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def log_context(**fields: object) -> AbstractContextManager[None]:
    """Give fields, such as job and segment, to every line that this thread or task logs within.

    A field that is a function is called for each line, so that its value may change.
    """
    return structlog.contextvars.bound_contextvars(**fields)


def redacted(text: str) -> str:
    """The text with the passwords and tokens of its URLs hidden."""
    return _SECRET.sub(rf"\1{_HIDDEN}", _PASSWORD.sub(rf"\1:{_HIDDEN}@", text))


class MinuteQuota:
    """Limits how often something that clients cause is logged: so many times a minute."""

    def __init__(self, num_a_minute: int = 1) -> None:
        self._num_a_minute = num_a_minute
        self._minute_ends = 0.0
        self._num_asked = 0

    def admit(self) -> int | None:
        """Ask for a line; None: leave it out.

        Otherwise how many lines were left out in the minute that has ended; 0 within a minute.
        """
        now, num_left_out = time.monotonic(), 0
        if now >= self._minute_ends:
            num_left_out = max(0, self._num_asked - self._num_a_minute)
            self._minute_ends, self._num_asked = now + 60.0, 0
        self._num_asked += 1
        return num_left_out if self._num_asked <= self._num_a_minute else None


class FewLines(logging.Filter):
    """Limits all lines of a logger to so many a minute, and says how many were left out.

    Errors always pass.
    """

    def __init__(self, num_a_minute: int) -> None:
        super().__init__()
        self._quota = MinuteQuota(num_a_minute)

    def filter(self, record: logging.LogRecord) -> bool:
        num_left_out = self._quota.admit()
        if num_left_out:
            record.msg = f"{record.msg} ({num_left_out} lines before it were left out)"
        return record.levelno >= logging.ERROR or num_left_out is not None


class Repeats:
    """Holds back warnings and errors that say again what was said less than a minute ago.

    They are counted, and the count is logged after the minute, with the next line of whatever kind
    or when the log is closed.
    """

    def __init__(self, seconds: float = 60.0) -> None:
        self._seconds = seconds
        self._said: dict[_Said, list[Any]] = {}
        """For each line: when it was logged, the record, and how often it was held back since."""

    def admit(self, record: logging.LogRecord) -> Iterator[logging.LogRecord]:
        """Yield what is to be logged now: counts that are due, and the record unless it repeats."""
        yield from self.due()
        if record.levelno < logging.WARNING:
            yield record
            return
        try:
            key = (record.name, record.levelno, record.getMessage(), vars(record).get("job"))
        except Exception:  # the handler says which line is wrong
            yield record
            return
        said = self._said.get(key)
        if said is not None:
            said[2] += 1
            return
        while len(self._said) >= _MAX_SAID:
            del self._said[next(iter(self._said))]
        self._said[key] = [time.monotonic(), record, 0]
        yield record

    def due(self, *, all_: bool = False) -> Iterator[logging.LogRecord]:
        """Yield a record with its count for each line that was held back a minute long."""
        now = time.monotonic()
        for key, (at, record, num) in list(self._said.items()):
            if not all_ and now - at < self._seconds:
                continue
            self._said.pop(key, None)
            if num:
                summary = logging.makeLogRecord({**vars(record), "exc_info": None})
                summary.msg = f"{record.getMessage()} ({num} more times in {now - at:.0f} s)"
                summary.args, summary.created = None, time.time()
                yield summary


class _LineHandler(logging.Handler):
    """Writes each record to descriptor 2 at once, so that lines of processes do not mix.

    Where the reader is gone or the disk full, lines are lost and nothing else happens.
    """

    def __init__(self, *, has_priority: bool) -> None:
        super().__init__()
        self._has_priority = has_priority
        self._repeats = Repeats()

    def emit(self, record: logging.LogRecord) -> None:
        for admitted in self._repeats.admit(record):
            self._write(admitted)

    def close(self) -> None:
        for summary in self._repeats.due(all_=True):
            self._write(summary)
        super().close()

    def _write(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except Exception as error:
            where = f"{record.pathname}:{record.lineno}"
            text = json.dumps({"event": f"a log line of {where} failed: {type(error).__name__}"})
        if self._has_priority:
            priority = next(number for level, number in _PRIORITIES if record.levelno >= level)
            text = "".join(f"<{priority}>{line}\n" for line in text.splitlines())
        else:
            text += "\n"
        with contextlib.suppress(OSError):
            os.write(2, text.encode(errors="backslashreplace"))


def _rendering(is_json: bool) -> list[Processor]:
    if is_json:
        return [_message_first, structlog.processors.JSONRenderer(ensure_ascii=True)]
    return [
        _without_control_characters,
        structlog.dev.ConsoleRenderer(
            colors=os.isatty(2) and "NO_COLOR" not in os.environ,
            exception_formatter=structlog.dev.plain_traceback,
        ),
    ]


def _message_first(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Put time, level and message first, as people read a line."""
    first = {name: event[name] for name in ("timestamp", "level", "event") if name in event}
    return {**first, **event}


def _with(fields: Mapping[str, str]) -> Processor:
    def add(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        for name, value in fields.items():
            event.setdefault(name, value)
        return event

    return add


def _called(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Replace functions by their present values, such as the segment that a job is at."""
    now = {name: value() if callable(value) else value for name, value in event.items()}
    return {name: value for name, value in now.items() if value is not None or name not in _FADING}


def _redact_values(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    return {name: _redacted_value(value) for name, value in event.items()}


def _redacted_value(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(name): _redacted_value(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_redacted_value(item) for item in value]
    return redacted(str(value))


def _without_control_characters(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Make control characters visible: a file's name must not steer the terminal."""
    return {
        name: visible(value) if isinstance(value, str) and name != "exception" else value
        for name, value in event.items()
    }


def _is_journal() -> bool:
    """Return whether standard error goes to journald, which reads `<3>` as a line's priority.

    JOURNAL_STREAM is set even where standard error was redirected, so the device is compared.
    """
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        about = os.fstat(2)
    except OSError:
        return False
    return (device, inode) == (str(about.st_dev), str(about.st_ino))
