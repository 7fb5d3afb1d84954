"""The log: one line per event on stderr; stdout is for the results of commands.

`configure` sets it up once per process. Events of the service and of libraries (logging, warnings) are written alike:
JSON, or colours on a terminal. Secrets are masked in the finished line, so that no field, repr or trace can show one.
Safe from any thread.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, MutableMapping, Sequence
from datetime import UTC, datetime
from io import StringIO
from typing import Any, TextIO, cast

import structlog
from structlog.typing import Processor

from pipeline.settings import LogFormat
from pipeline.texts import clean, mask

REPEAT_SECONDS = 60.0
MAX_KINDS = 100


def configure(log_format: LogFormat, log_level: str, stream: TextIO | None = None) -> None:
    """Write every log line of this process to the stream (default: stderr); replaces an earlier configuration.

    log_level: for events of the service; lines of libraries are always written from WARNING on.
    Each line has `timestamp` (UTC, milliseconds), `level`, `event`, then the fields; an exception is one field
    `exception`.
    """
    stream = stream or sys.stderr
    is_console = log_format is LogFormat.CONSOLE or (log_format is LogFormat.AUTO and stream.isatty())
    processors: list[Processor] = [structlog.contextvars.merge_contextvars, _head]
    if is_console:
        has_colors = stream.isatty() and not os.environ.get("NO_COLOR")
        processors.append(_clean_values)
        processors.append(structlog.dev.ConsoleRenderer(colors=has_colors, exception_formatter=_write_traceback))
    else:
        transformer = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        processors += [structlog.processors.ExceptionRenderer(transformer), structlog.processors.JSONRenderer()]
    processors.append(cast(Processor, _mask))
    level = logging.getLevelName(log_level)
    write = _line_writer(stream)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_name: _Output(write),
        cache_logger_on_first_use=True,
    )
    logging.captureWarnings(True)
    logging.basicConfig(handlers=[_Libraries(processors, write)], level=max(level, logging.WARNING), force=True)


class ThrottledLog:
    """Writes a line that an outage or a client may cause without end: at once, then once a minute.

    The field `repeated` of the next line is the number of lines left out. For one thread.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._written: dict[str, tuple[float, int]] = {}  # kind -> (time of the last line, lines left out since)

    def write(self, write: Callable[..., None], event: str, key: str = "", **fields: Any) -> bool:
        """Write the line unless one of its kind was written within REPEAT_SECONDS; return whether it was written.

        write: a method of a logger.
        key: together with the event the kind of the line, such as the cause. Beyond MAX_KINDS all lines of an event
            are one kind, so that endless different texts hide no other event.
        """
        kind, now = f"{event} {key}", self._clock()
        if kind not in self._written and len(self._written) >= MAX_KINDS:
            self._forget(now)
            if len(self._written) >= MAX_KINDS:
                kind = event
        written_at, left_out = self._written.get(kind, (-REPEAT_SECONDS, 0))
        if now - written_at < REPEAT_SECONDS:
            self._written[kind] = written_at, left_out + 1
            return False
        self._written[kind] = now, 0
        write(event, **fields, **({"repeated": left_out} if left_out else {}))
        return True

    def _forget(self, now: float) -> None:
        self._written = {
            kind: (at, left_out) for kind, (at, left_out) in self._written.items() if now - at < REPEAT_SECONDS
        }


class _Output:
    """The logger that structlog wraps: every level writes the finished line."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self.debug = self.info = self.warning = self.error = self.critical = write


class _Libraries(logging.Handler):
    """Sends records of the standard library's logging through the same processors."""

    def __init__(self, processors: Sequence[Processor], write: Callable[[str], None]) -> None:
        super().__init__()
        self._processors = processors
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        try:
            event: Any = {"event": record.getMessage(), "logger": record.name, "exc_info": record.exc_info}
            for processor in self._processors:
                event = processor(None, record.levelname.lower(), event)
            self._write(event)
        except Exception:  # a library's broken format string must not raise in the code that logs
            self.handleError(record)


def _line_writer(stream: TextIO) -> Callable[[str], None]:
    lock = threading.Lock()

    def write(line: str) -> None:
        try:
            with lock:
                stream.write(line + "\n")
                stream.flush()
        except (OSError, ValueError):
            pass  # the reader of the log has closed it; the service goes on

    return write


def _head(_logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Put the three fields of every line first."""
    timestamp = datetime.now(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
    return {"timestamp": timestamp, "level": method, "event": event.pop("event"), **event}


def _clean_values(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Remove terminal escapes from foreign texts. JSON, and the repr of a list, escape them anyway."""
    return {name: clean(value) if isinstance(value, str) else value for name, value in event.items()}


def _write_traceback(stream: TextIO, exc_info: Any) -> None:
    # Not structlog's default, which prints local variables, secrets among them.
    plain = StringIO()
    structlog.dev.plain_traceback(plain, exc_info)
    stream.write("\n".join(map(clean, plain.getvalue().split("\n"))))


def _mask(_logger: Any, _method: str, line: str) -> str:
    return mask(line)
