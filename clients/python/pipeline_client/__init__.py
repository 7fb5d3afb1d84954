"""The Python client of the AI queue pipeline: uploads photos and gets every result, over whatever network there is.

`Client` is for asyncio, `BlockingClient` for all else, `Operator` for an admin's token. Installed by itself this is
the package `pipeline_client` and needs only aiohttp; the service has the same files as `pipeline.client`. Knows the
service only from its contracts, and imports nothing of it.
"""

from .access import ClientError, Token, Unavailable
from .blocking import BlockingClient
from .client import Client
from .events import Frame, event_of
from .operating import Operator

__all__ = ["BlockingClient", "Client", "ClientError", "Frame", "Operator", "Token", "Unavailable", "event_of"]
