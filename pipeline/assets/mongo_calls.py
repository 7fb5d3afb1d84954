"""Calls of the MongoDB driver: their time limit, and the errors that stand for the driver's."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any, TypeVar

from bson.errors import BSONError
from pymongo.errors import DocumentTooLarge, DuplicateKeyError, OperationFailure, PyMongoError

from pipeline.errors import ConfigurationError, DependencyUnavailable, NotStorable
from pipeline.texts import clean, mask

# The server's codes for a document that is, or by this change would become, too large.
TOO_LARGE = {10334, 17419, 17420}
# The driver's errors about a document, before it sends anything.
UNSENDABLE = (BSONError, OverflowError, UnicodeEncodeError, DocumentTooLarge)
T = TypeVar("T")
PURGE_PAGE = 1000


@contextmanager
def refused_options() -> Iterator[None]:
    """Raise ConfigurationError for faults that the driver finds in MONGODB_URI when a client is made.

    The driver would only warn of an unknown option or a wrong value, and ignore it: tls=maybe is no TLS.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            # Without an installed compression the driver uses the next one or none: only slower.
            warnings.filterwarnings("default", "Wire protocol compression", UserWarning)
            yield
    except (PyMongoError, UserWarning, OSError, ValueError, TypeError) as error:
        raise ConfigurationError(f"MONGODB_URI: {mask(clean(str(error)))}") from None


# A driver whose calls have all failed for so long is replaced: once, after several faults at a time, one had no
# connection left and made none, although the database answered others.
RENEW_AFTER_SECONDS = 60.0
# How often a step is repeated that a simultaneous change can undo.
TRIES = 20


class Calls:
    """Awaits requests to the driver, each for at most timeout_seconds."""

    def __init__(self, timeout_seconds: float, renew: Callable[[], None]) -> None:
        """renew: makes a new client of the driver for later requests"""
        self._timeout_seconds = timeout_seconds
        self._renew = renew
        self._failing_since: float | None = None

    @property
    def has_failed(self) -> bool:
        """True when the last request did not reach the database."""
        return self._failing_since is not None

    async def call(self, request: Awaitable[T]) -> T:
        """Return the reply to the request.

        DependencyUnavailable: the database cannot be reached.
        NotStorable: the driver or the server refuses the document.
        DuplicateKeyError passes through.
        """
        try:
            # The driver's own limit starts only when one of Motor's few threads is free; in an outage that takes long.
            async with asyncio.timeout(self._timeout_seconds):
                answer = await request
            self._failing_since = None
            return answer
        except DuplicateKeyError:
            raise
        except UNSENDABLE as error:
            raise NotStorable(_why_not(error)) from error
        except (PyMongoError, OSError) as error:
            if isinstance(error, OperationFailure) and error.code in TOO_LARGE:
                raise NotStorable("it is too large") from error
            self._count_failure()
            raise DependencyUnavailable("The asset store cannot be reached") from error

    def _count_failure(self) -> None:
        now = monotonic()
        if self._failing_since is None:
            self._failing_since = now
        elif now - self._failing_since >= RENEW_AFTER_SECONDS:
            self._failing_since = now
            self._renew()


class MongoPart:
    """A part of MongoAssetStore, which sets its attributes."""

    _call: Callable[[Awaitable[Any]], Awaitable[Any]]

    async def _purge(self, collection: Any, old: dict[str, Any]) -> int:
        """Remove the documents that match, page by page and by `_id`; return how many."""
        purged = 0
        while True:
            page = await self._call(collection.find(old, {"_id": 1}).limit(PURGE_PAGE).to_list(PURGE_PAGE))
            if not page:
                return purged
            wanted = {"_id": {"$in": [found["_id"] for found in page]}} | old
            purged += (await self._call(collection.delete_many(wanted))).deleted_count


def _why_not(error: Exception) -> str:
    if isinstance(error, DocumentTooLarge):
        return "it is too large"
    if isinstance(error, OverflowError):
        return "a number is too large"
    return "a text is not valid Unicode" if isinstance(error, UnicodeEncodeError) else "a value is of no type it knows"
