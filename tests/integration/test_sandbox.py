"""Calls in real child processes: values, errors, limits, and what a child has access to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from pipeline.errors import PermanentJobError, RetryableJobError, SandboxLimit
from pipeline.sandbox.pool import Pool, SandboxError
from tests import sandboxed
from tests.integration.sandbox_pools import IN_TIME, LINUX, MEMORY_MB, wait_gone
from tests.integration.sandbox_pools import open_pool, pool  # noqa: F811

__all__ = ["open_pool", "pool"]


@pytest.mark.gen_test
async def test_values_arrive_and_return_unchanged(pool: Pool) -> None:
    """JSON values and bytes, also large and nested ones, return as they were sent; tuples return as lists."""
    values = [None, True, 7, 0.1, "ä\ud800", b"\0\xff", [], {"a": [b"x", {"b": b""}]}, bytes(9_000_000)]
    assert await pool.run(sandboxed.echo, *values, (1, b"2"), **IN_TIME) == [*values, [1, b"2"]]


@pytest.mark.gen_test
async def test_value_that_cannot_be_sent_ends_no_child(pool: Pool) -> None:
    """An argument or a result that is neither JSON nor bytes is an error of the call; the child stays."""
    first = await pool.run(sandboxed.pid, **IN_TIME)
    with pytest.raises(TypeError, match="set cannot be sent"):
        await pool.run(sandboxed.echo, {1}, **IN_TIME)
    with pytest.raises(RetryableJobError) as caught:
        await pool.run(sandboxed.unsendable, **IN_TIME)
    assert "set cannot be sent" in str(caught.value.__cause__)
    assert await pool.run(sandboxed.pid, **IN_TIME) == first


@pytest.mark.gen_test
async def test_only_functions_that_a_child_can_import_are_accepted(pool: Pool) -> None:
    """A child could not import a lambda or a method."""
    for function in (lambda: 1, pool.close):
        with pytest.raises(ValueError, match="could not import it"):
            await pool.run(function, **IN_TIME)


@pytest.mark.parametrize(
    ("function", "kind", "message"),
    [
        (sandboxed.fail_permanently, PermanentJobError, "The photo is a drawing"),
        (sandboxed.fail_for_now, RetryableJobError, "The photo is not there yet"),
        (sandboxed.fail_unexpectedly, RetryableJobError, "Reading the photo failed"),
    ],
)
@pytest.mark.gen_test
async def test_exceptions_are_raised_by_run(pool: Pool, function: Any, kind: type[Exception], message: str) -> None:
    """A job error is raised as it is, another error is the cause of a retryable error; the child stays."""
    first = await pool.run(sandboxed.pid, **IN_TIME)
    with pytest.raises(kind, match=message) as caught:
        await pool.run(function, **IN_TIME)
    if function is sandboxed.fail_unexpectedly:
        assert isinstance(caught.value.__cause__, SandboxError)
        assert str(caught.value.__cause__) == "KeyError: 'no such thing'"
    assert await pool.run(sandboxed.pid, **IN_TIME) == first


LIMITS: list[tuple[Any, tuple[Any, ...], dict[str, float], str, str]] = [
    (sandboxed.spin, (), {"cpu_seconds": 0.5}, "cpu", "cpu"),
    (sandboxed.spin, (), {"seconds": 0.3}, "time", "time"),
    (sandboxed.spin_within, (0.5,), {"cpu_seconds": 1000}, "cpu", "cpu"),
    (sandboxed.spin_within, (1000,), {"cpu_seconds": 0.5}, "cpu", "cpu"),
    (sandboxed.allocate, (2 * MEMORY_MB,), {}, "memory", "memory"),
    (sandboxed.crash, (), {}, "crash", "Aborted"),
    (sandboxed.exit_process, (), {}, "crash", "exit code 3"),
]


@pytest.mark.parametrize(("function", "args", "limits", "limit", "why"), LIMITS, ids=lambda value: str(value)[:20])
@pytest.mark.gen_test(timeout=30)
async def test_limit_ends_the_call_and_only_that(
    pool: Pool, function: Any, args: Any, limits: dict[str, float], limit: str, why: str
) -> None:
    """A call over a limit raises SandboxLimit and is logged, and the next call gets a new child."""
    first = await pool.run(sandboxed.pid, **IN_TIME)
    with capture_logs() as logs, pytest.raises(SandboxLimit) as caught:
        await pool.run(function, *args, **IN_TIME | limits)
    assert (caught.value.limit, caught.value.spends_attempt) == (limit, True)
    (line,) = (each for each in logs if each["event"] == "sandbox_child_ended")
    assert (line["why"], line["function"], line["pid"]) == (why, f"tests.sandboxed:{function.__name__}", first)
    assert 0 <= line["seconds"] < 25
    assert await pool.run(sandboxed.pid, **IN_TIME) != first
    wait_gone(first)


@pytest.mark.gen_test
async def test_memory_below_the_limit_is_given_each_time(pool: Pool) -> None:
    """Memory that one call used and freed does not count for the next call."""
    first = await pool.run(sandboxed.pid, **IN_TIME)
    for _ in range(20):
        assert await pool.run(sandboxed.allocate, MEMORY_MB - 20, **IN_TIME) > 0
    assert await pool.run(sandboxed.pid, **IN_TIME) == first


@pytest.mark.gen_test
async def test_child_writes_no_files(pool: Pool, tmp_path: Path) -> None:
    """A write to a file fails in a child, so that no photo can fill the disk."""
    with pytest.raises(RetryableJobError) as caught:
        await pool.run(sandboxed.write_file, str(tmp_path / "file"), **IN_TIME)
    assert "File too large" in str(caught.value.__cause__)


@LINUX
@pytest.mark.gen_test
async def test_child_sees_nothing_of_the_service(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child has only the variables that programs need, no file except its socket, and cannot get more rights."""
    for name in ("JWT_SECRET", "REDIS_URL", "PLUGIN_OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "PYTHONSTARTUP"):
        monkeypatch.setenv(name, "a secret")
    seen = await pool.run(sandboxed.environment, **IN_TIME)
    needed = {"PATH", "HOME", "LANG", "PYTHONPATH", "TMPDIR", "TZ", "LD_LIBRARY_PATH"}
    assert {n for n in seen["variables"] if not n.startswith(("LC_", "MALLOC_", "OPENBLAS_", "OMP_"))} <= needed
    assert "a secret" not in str(seen)
    assert [name for name in seen["files"] if name != "/dev/null" and not name.startswith("/proc/")] == [
        name for name in seen["files"] if name.startswith("socket:")
    ]
    assert sum(name.startswith("socket:") for name in seen["files"]) == 1
    assert seen["NoNewPrivs"] == "1"


@pytest.mark.parametrize(
    "kind",
    ["pickle", "pickled header", "huge header", "huge reply", "nested", "no object", "bytes that are not there"],
)
@pytest.mark.gen_test
async def test_hostile_reply_ends_only_its_own_call(pool: Pool, kind: str) -> None:
    """A child under the control of a photo can make its own call fail, and nothing else."""
    with pytest.raises(SandboxLimit) as caught:
        await pool.run(sandboxed.write_hostile_reply, kind, **IN_TIME)
    assert caught.value.limit == "crash"
    assert await pool.run(sandboxed.echo, 1, **IN_TIME) == [1]


@pytest.mark.gen_test
async def test_child_that_sends_more_than_its_reply_is_not_used_for_the_next_call(pool: Pool) -> None:
    """The extra bytes would be read as the reply to the next call."""
    assert await pool.run(sandboxed.write_hostile_reply, "reply and more", **IN_TIME) == 1
    assert await pool.run(sandboxed.echo, 2, **IN_TIME) == [2]
