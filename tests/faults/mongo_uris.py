"""Databases on a MongoDB server that runs on this machine."""

from __future__ import annotations

import secrets

import pytest

from tests.mongo_server import MongoServer


@pytest.fixture
def local_uri(mongo_server: MongoServer) -> str:
    """The URI of a database on a local server; a test may put a simulated replica set in front of it."""
    return mongo_server.uri(f"test_{secrets.token_hex(6)}")
