"""The driver of MongoAssetStore: PyMongo's asyncio client or, on request, Motor, whose calls have the same names.
The only file to import Motor.

Motor is at its end of life and makes each call in a thread, which costs a fifth of the CPU of a call.
"""

from __future__ import annotations

import asyncio
import inspect
from contextlib import suppress
from typing import Any, cast
from urllib.parse import parse_qsl, urlsplit

from pymongo import AsyncMongoClient

MOTOR = "motor"
DEFAULT_DRIVER = "pymongo"
# Further calls wait for a connection: with a hundred at once each takes longer than with a few at a time. Motor's
# threads happen to have the same bound.
CONNECTIONS_AT_MOST = 16
# Longer than a call takes that finds no server.
CLOSE_SECONDS = 6.0


def open_client(driver: str, uri: str, **options: Any) -> AsyncMongoClient[dict[str, Any]]:
    """Return a client that has yet to connect. driver: `motor` or `pymongo`. options: see PyMongo's MongoClient."""
    if driver == MOTOR:
        from motor.motor_asyncio import AsyncIOMotorClient

        client: Any = AsyncIOMotorClient(uri, **options)
        return cast(AsyncMongoClient[dict[str, Any]], client)
    given = {name.lower() for name, _ in parse_qsl(urlsplit(uri).query)}
    if "maxpoolsize" not in given:
        options["maxPoolSize"] = CONNECTIONS_AT_MOST
    return AsyncMongoClient(uri, **options)


async def close_client(client: Any) -> None:
    """Close the client's connections.

    A client without a free connection cannot tell the server that its sessions end: it is left after CLOSE_SECONDS.
    """
    closed = client.close()
    # Motor's close returns nothing to wait for.
    if inspect.isawaitable(closed):
        with suppress(TimeoutError):
            await asyncio.wait_for(closed, CLOSE_SECONDS)
