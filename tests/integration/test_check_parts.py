"""Single checks of `run.py check`, without a process for each case."""

from __future__ import annotations

import asyncio
import resource
from pathlib import Path

import pytest

from pipeline.commands.checks.findings import Finding, Mark, reason
from pipeline.commands.checks.machine import MachineChecks
from pipeline.commands.checks.redis import RedisChecks
from pipeline.commands.checks.redis_rights import acl_rules
from pipeline.errors import ConfigurationError, DependencyUnavailable
from pipeline.handlers.server import RESERVED_FILES
from pipeline.metrics import Metrics
from pipeline.settings import Settings
from tests.certificates import Authority, running_handshake_server
from tests.redis_server import RedisServer


def findings(url: str) -> list[Finding]:
    """Return the findings that are not ok; ConfigurationError when the server cannot be used."""

    async def collect() -> list[Finding]:
        return [each async for each in RedisChecks(Settings(redis_url=url), Metrics()).external()]

    return [each for each in asyncio.run(collect()) if each.mark is not Mark.OK]


def refusal(url: str) -> str:
    with pytest.raises(ConfigurationError) as raised:
        findings(url)
    return raised.value.message


@pytest.mark.fault("O7")
def test_check_names_the_rights_that_a_redis_user_lacks() -> None:
    """Missing rights fail the check; a user without the right to INFO gets a warning.

    The user of docs/operations.md has all rights.
    """
    with RedisServer() as server:
        url, acl = f"redis://one:word@127.0.0.1:{server.port}/0", server.client().execute_command
        acl("ACL", "SETUSER", "one", "on", ">word", *acl_rules("pipeline"))
        assert findings(url) == []
        acl("ACL", "SETUSER", "one", "-lpos", "-zmscore", "-script|load")
        (found,) = findings(url)
        assert found.mark is Mark.FAILED
        assert found.detail == "its user lacks rights (NOPERM): +lpos +zmscore +script|load"
        acl("ACL", "SETUSER", "one", "+lpos", "+zmscore", "+script|load", "resetkeys", "~other:*")
        assert "~pipeline:*" in findings(url)[0].detail
        acl("ACL", "SETUSER", "one", "~pipeline:*", "-info")
        (found,) = findings(url)
        assert found.mark is Mark.WARNING and "has no right to INFO" in found.detail
        assert server.client().keys() == []


@pytest.mark.fault("O7")
def test_check_refuses_replicas() -> None:
    """A replica is refused, also one that accepts writes and one whose user has no right to INFO."""
    with RedisServer() as server, RedisServer("--replicaof", "127.0.0.1", str(server.port)) as replica:
        assert "it is a replica" in refusal(replica.url)
        replica.client().config_set("replica-read-only", "no")
        assert "it is a replica" in refusal(replica.url)
        replica.client().config_set("replica-read-only", "yes")
        acl = replica.client().execute_command
        acl("ACL", "SETUSER", "one", "on", ">word", *acl_rules("pipeline"), "-info")
        assert "it is a read-only replica" in refusal(f"redis://one:word@127.0.0.1:{replica.port}/0")


@pytest.mark.fault("O7")
def test_check_names_a_url_with_the_wrong_tls_scheme(tmp_path: Path) -> None:
    """The driver reports only a timeout or a lost connection; the check names the scheme to set."""
    with RedisServer() as server:
        assert "set redis:// instead of rediss://" in refusal(server.url.replace("redis:", "rediss:"))
    with running_handshake_server(Authority(tmp_path, "authority").server_context("127.0.0.1")) as port:
        assert "set rediss:// instead of redis://" in refusal(f"redis://127.0.0.1:{port}/0")


@pytest.mark.fault("O7")
@pytest.mark.parametrize(
    ("limit", "mark", "words"),
    [
        (64, Mark.FAILED, "the limit is 64"),
        (RESERVED_FILES + 999, Mark.WARNING, "999 connections, and MAX_SOCKETS is 1000"),
        (RESERVED_FILES + 1000, Mark.OK, "enough"),
        (resource.RLIM_INFINITY, Mark.OK, "enough"),
    ],
)
def test_check_compares_the_limit_of_open_files(
    limit: int, mark: Mark, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit without a connection for clients fails, a limit under MAX_SOCKETS warns; the hard limit counts."""
    monkeypatch.setattr(resource, "getrlimit", lambda what: (64, limit))

    async def collect() -> list[Finding]:
        return [each async for each in MachineChecks(Settings(max_sockets=1000)).open_files()]

    (found,) = asyncio.run(collect())
    assert found.mark is mark and words in found.detail
    assert mark is Mark.OK or f"set ulimit -n {RESERVED_FILES + 1000}" in found.remedy


@pytest.mark.fault("E26")
def test_finding_names_a_cause_without_a_text() -> None:
    """When the cause has no text, the reason contains the name of its error: only that names a timeout."""
    error = DependencyUnavailable("The keys cannot be read")
    error.__cause__ = TimeoutError()
    assert reason(error) == "The keys cannot be read; TimeoutError"
