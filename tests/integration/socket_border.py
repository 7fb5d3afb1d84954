"""Parts for tests of the WebSocket border: log lines without errors, and events for a user."""

from __future__ import annotations

import logging
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import pytest
import structlog

from tests.sockets import Process, make_event

LogLines = list[MutableMapping[str, Any]]


@contextmanager
def lines_without_errors(caplog: pytest.LogCaptureFixture) -> Iterator[LogLines]:
    """Yield the log lines of the service; at the end, none may have error level, of the service or of a library."""
    with structlog.testing.capture_logs() as lines:
        yield lines
    errors = [line for line in lines if line["log_level"] in ("error", "critical")]
    errors += [record.getMessage() for record in caplog.get_records("call") if record.levelno >= logging.ERROR]
    assert errors == []


async def publish(process: Process, number: int, sub: str = "user-1") -> None:
    """Publish the event of this number to the user's room."""
    await process.fanout.publish(f"user:{sub}", make_event(number))
