"""The Python client of the AI queue pipeline: uploads photos and receives every result, also over difficult networks.

`Client` is for asyncio, `BlockingClient` for programs without it, `Operator` for an admin's token. Installed alone this
is the package `pipeline_client`, which needs only aiohttp. The service has the same files as `pipeline.client`. The
client knows the service only from its contracts, and imports nothing of it.
"""

from .access import ClientError, Token, Unavailable
from .blocking import BlockingClient
from .client import Client
from .events import Frame, event_of
from .operating import Operator

__all__ = ["BlockingClient", "Client", "ClientError", "Frame", "Operator", "Token", "Unavailable", "event_of"]
