"""Calls: what a call of the MongoDB driver takes at most, and what its errors are called here."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from bson.errors import BSONError
from pymongo.errors import DocumentTooLarge, DuplicateKeyError, OperationFailure, PyMongoError

from pipeline.errors import ConfigurationError, DependencyUnavailable, NotStorable
from pipeline.texts import clean, mask

# What the server calls a document that is, or by this change would become, too large.
TOO_LARGE = {10334, 17419, 17420}
# What the driver raises of a document before it sends anything.
UNSENDABLE = (BSONError, OverflowError, UnicodeEncodeError, DocumentTooLarge)
T = TypeVar("T")
PURGE_PAGE = 1000


@contextmanager
def refused_options() -> Iterator[None]:
    """Make a ConfigurationError of what the driver does not like of MONGODB_URI when a client is made.

    An option it does not know, or whose value is wrong, the driver would warn of and leave out: tls=maybe is no TLS.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            # A kind of compression that is not installed is only slower: the driver takes the next one or none.
            warnings.filterwarnings("default", "Wire protocol compression", UserWarning)
            yield
    except (PyMongoError, UserWarning, OSError, ValueError, TypeError) as error:
        raise ConfigurationError(f"MONGODB_URI: {mask(clean(str(error)))}") from None


# How often a step is repeated that a change at the same moment can bring to nothing.
TRIES = 20


class Calls:
    """Awaits the driver's calls, none for longer than timeout_seconds."""

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        # Whether the last call did not reach the database.
        self.has_failed = False

    async def call(self, request: Awaitable[T]) -> T:
        """Return the reply to the request.

        DependencyUnavailable: the database is away, for whatever reason. NotStorable: the driver or the server refuses
        the document. A duplicate key is for the caller.
        """
        try:
            # The driver's clock starts only when one of Motor's few threads is free; in an outage that takes long.
            async with asyncio.timeout(self._timeout_seconds):
                answer = await request
            self.has_failed = False
            return answer
        except DuplicateKeyError:
            raise
        except UNSENDABLE as error:
            raise NotStorable(_why_not(error)) from error
        except (PyMongoError, OSError) as error:
            if isinstance(error, OperationFailure) and error.code in TOO_LARGE:
                raise NotStorable("it is too large") from error
            self.has_failed = True
            raise DependencyUnavailable("The asset store cannot be reached") from error


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
