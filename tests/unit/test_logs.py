"""Log lines: their shape, their masked secrets, and that a failed write raises no error."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from pipeline.logs import REPEAT_SECONDS, MAX_KINDS, ThrottledLog, configure
from pipeline.settings import LogFormat

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ1c2VyLTEifQ.dGhlLXNpZ25hdHVyZQ"


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """Restore the logging configuration, which a process has only once."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    logging.captureWarnings(False)
    root.handlers[:], root.level = handlers, level


@pytest.fixture
def stream() -> io.StringIO:
    """The stream that gets JSON lines of level INFO and above."""
    stream = io.StringIO()
    configure(LogFormat.JSON, "INFO", stream)
    return stream


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    """Return the lines of the stream as dictionaries."""
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_log_line_starts_with_time_level_and_event(stream: io.StringIO) -> None:
    """An event is one JSON line: timestamp in UTC milliseconds, level, event, then its fields."""
    structlog.get_logger().info("job_claimed", assetId="65b9", attempt=1, durationMs=12)
    (line,) = lines(stream)
    assert list(line) == ["timestamp", "level", "event", "assetId", "attempt", "durationMs"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("timestamp"))
    assert line == {"level": "info", "event": "job_claimed", "assetId": "65b9", "attempt": 1, "durationMs": 12}


@pytest.mark.spec("T055")
def test_log_line_contains_the_bound_fields(stream: io.StringIO) -> None:
    """Each line has the fields that a request or job has bound, until the request or job ends."""
    with structlog.contextvars.bound_contextvars(requestId="r-1", jobId="ai-processing:1"):
        structlog.get_logger().info("job_claimed")
    structlog.get_logger().info("service_stopped")
    claimed, stopped = lines(stream)
    assert (claimed["requestId"], claimed["jobId"]) == ("r-1", "ai-processing:1")
    assert "requestId" not in stopped


def test_log_exception_is_one_structured_field(stream: io.StringIO) -> None:
    """An exception stays on its line, with its cause and frames, but without the values of local variables."""
    local_value = "a local value"
    try:
        try:
            raise ConnectionError("refused")
        except ConnectionError as error:
            raise RuntimeError(f"no reply ({len(local_value)})") from error
    except RuntimeError:
        structlog.get_logger().error("request_failed", exc_info=True)
    (line,) = lines(stream)
    outer, inner = line["exception"]
    assert (outer["exc_type"], outer["exc_value"]) == ("RuntimeError", "no reply (13)")
    assert (inner["exc_type"], inner["is_cause"]) == ("ConnectionError", True)
    assert outer["frames"][-1]["name"] == "test_log_exception_is_one_structured_field"
    assert local_value not in stream.getvalue()


def test_log_of_libraries_has_the_same_form(stream: io.StringIO) -> None:
    """A warning of a library is a line like ours, with its logger; INFO lines of libraries are left out."""
    logging.getLogger("tornado.general").warning("Connect error on %s: %s", "fd 7", "redis://u:hidden@h:6379/0")
    logging.getLogger("httpx").info("HTTP Request: GET https://example.com")
    (line,) = lines(stream)
    assert (line["level"], line["logger"]) == ("warning", "tornado.general")
    assert line["event"] == "Connect error on fd 7: redis://u:***@h:6379/0"


def test_log_level_filters_own_events(stream: io.StringIO) -> None:
    """Events below the level are not written."""
    structlog.get_logger().debug("slot_idle")
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("text", "masked", "remark"),
    [
        ("redis://:hidden@redis:6379/0", "redis://:***@redis:6379/0", "no user"),
        ("mongodb://app:hidden@a,b/db", "mongodb://app:***@a,b/db", "several hosts"),
        ("mongodb://app:hid@den@a/db", "mongodb://app:***@a/db", "a password with an unescaped @"),
        ("cloudinary://123:hidden@cloud", "cloudinary://123:***@cloud", "key and secret"),
        (f"token was {JWT}", "token was eyJ***", "a JWT anywhere"),
        (f"jwt_{JWT}_", "jwt_eyJ***", "within a word"),
        (f"Authorization: Bearer {JWT}", "Authorization: Bearer ***", "a header"),
        ("Bearer opaque-hidden-token", "Bearer ***", "a token that is no JWT"),
        (f"bearer.{JWT}", "bearer.***", "the subprotocol"),
        ("Basic YXBwOmhpZGRlbg==", "Basic ***", "basic authentication"),
        ("/ws?token=hidden&since=1", "/ws?token=***&since=1", "in a query"),
        ("JWT_SECRET=hidden", "JWT_SECRET=***", "an environment variable"),
        ("{'password': 'hidden', 'n': 1}", "{'password': '***', 'n': 1}", "a repr"),
        ('{"api_key": "hidden"}', '{"api_key": "***"}', "JSON within the line"),
        ("Invalid token", "Invalid token", "words about tokens are no tokens"),
        ("https://host:8080/a/b:c@d", "https://host:8080/a/b:c@d", "a port is no password"),
        ("Authentication required", "Authentication required", "nothing to hide"),
    ],
)
def test_log_masks_secrets(stream: io.StringIO, text: str, masked: str, remark: str) -> None:
    """Passwords and tokens are masked anywhere in a line, and the line stays valid JSON."""
    structlog.get_logger().warning("check_failed", error=text, nested={"deep": [text]})
    structlog.get_logger().warning("check_failed", exc_info=ValueError(text))
    first, second = lines(stream)
    assert first["error"] == masked, remark
    assert first["nested"] == {"deep": [masked]}, remark
    assert second["exception"][0]["exc_value"] == masked, remark


def test_log_to_a_terminal_has_colours() -> None:
    """On a terminal `auto` writes coloured lines with masked secrets, and traces without local variables."""
    leader, follower = os.openpty()
    hidden = "a local value"
    with open(follower, "w") as terminal, open(leader, "rb", buffering=0) as screen:
        configure(LogFormat.AUTO, "INFO", terminal)
        try:
            raise RuntimeError(len(hidden))
        except RuntimeError:
            structlog.get_logger().error("request_failed", url="redis://u:hidden@h", exc_info=True)
        shown = screen.read(65536).decode()
        structlog.reset_defaults()
    assert "\x1b[" in shown and "request_failed" in shown and "RuntimeError: 13" in shown
    assert "redis://u:***@h" in shown
    assert hidden not in shown


def test_log_to_a_closed_pipe_is_dropped() -> None:
    """If the reader of the log ends, the code that logs gets no error."""
    reader, writer = os.pipe()
    os.close(reader)
    stream = open(writer, "w")  # noqa: SIM115  the test closes it, which raises an error
    configure(LogFormat.JSON, "INFO", stream)
    structlog.get_logger().info("job_claimed")
    logging.getLogger("tornado.general").error("late")
    with pytest.raises(BrokenPipeError):
        stream.close()


def test_log_goes_only_to_stderr() -> None:
    """By default a process writes JSON lines to stderr, also for warnings, and writes nothing to stdout."""
    code = (
        "import logging, warnings, structlog\n"
        "from pipeline.logs import configure\n"
        "from pipeline.settings import LogFormat\n"
        "configure(LogFormat.AUTO, 'INFO')\n"
        "structlog.get_logger('a').info('service_started', port=1)\n"
        "warnings.warn('old')\n"
        "logging.getLogger('asyncio').error('broken %s', exc_info=ValueError('x'))\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == ""
    own, warning, asyncio_line = map(json.loads, ran.stderr.splitlines())
    assert (own["event"], own["port"]) == ("service_started", 1)
    assert (warning["level"], warning["logger"]) == ("warning", "py.warnings") and "old" in warning["event"]
    assert (asyncio_line["level"], asyncio_line["exception"][0]["exc_value"]) == ("error", "x")


@pytest.mark.fault("O15")
def test_repeated_line_is_written_once_a_minute_with_its_count() -> None:
    """Each cause is written once a minute; its next line has the number of lines that were left out."""
    written: list[dict[str, Any]] = []
    now = [0.0]
    throttled = ThrottledLog(lambda: now[0])

    def write(cause: str) -> None:
        throttled.write(lambda event, **fields: written.append({"event": event, **fields}), "away", cause, cause=cause)

    for _ in range(500):
        write("refused")
    write("timeout")
    assert written == [{"event": "away", "cause": "refused"}, {"event": "away", "cause": "timeout"}]
    now[0] = REPEAT_SECONDS
    write("refused")
    write("refused")
    assert written[2:] == [{"event": "away", "cause": "refused", "repeated": 499}]


@pytest.mark.fault("O15")
def test_kinds_of_repeated_lines_are_bounded() -> None:
    """Texts that always differ fill neither the log nor the memory, and hide no other event.

    Forgotten kinds make room for new ones.
    """
    written: list[tuple[str, int]] = []
    now = [0.0]
    throttled = ThrottledLog(lambda: now[0])

    def write(event: str, key: str) -> None:
        throttled.write(lambda event, repeated=0, **fields: written.append((event, repeated)), event, key)

    for number in range(10_000):
        write("away", str(number))
    # The additional line is for all texts beyond MAX_KINDS.
    assert written == [("away", 0)] * (MAX_KINDS + 1)
    written.clear()
    write("failed", "of another kind")
    write("failed", "of a third kind")
    assert written == [("failed", 0)]
    now[0] = REPEAT_SECONDS
    write("away", "new")
    assert written == [("failed", 0), ("away", 0)]
