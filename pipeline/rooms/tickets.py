"""Single-use tickets: they stand for a user in a URL, where a token must never be.

A browser's EventSource cannot send a header. A ticket is in Redis, so that every process can use it. Reading a ticket
removes it, so that it works once. Runs on the event loop.
"""

from __future__ import annotations

import json
import re
import secrets

from redis.exceptions import RedisError

from pipeline.auth import ADMIN_ROLE, Principal
from pipeline.errors import DependencyUnavailable
from pipeline.link.master import Master

TICKET_SECONDS = 30
TICKET_BYTES = 32
TICKET = re.compile(r"[A-Za-z0-9_-]{43}")


class Tickets:
    """Makes and redeems tickets. DependencyUnavailable while Redis is away."""

    def __init__(self, redis_url: str, *, prefix: str) -> None:
        self._master = Master(redis_url)
        # In one slot of a Redis Cluster, so that one connection is enough.
        self._prefix = f"{prefix}:{{tickets}}:"

    async def make(self, principal: Principal) -> str:
        """Return a ticket that works once, within TICKET_SECONDS."""
        ticket = secrets.token_urlsafe(TICKET_BYTES)
        text = json.dumps([principal.user_id, principal.role, principal.expires_at])
        await self._call("SET", self._prefix + ticket, text, "EX", TICKET_SECONDS)
        return ticket

    async def take(self, ticket: str) -> Principal | None:
        """Return the user of the ticket and remove it; None when it was used, is too old, or never was a ticket."""
        if not TICKET.fullmatch(ticket):
            return None
        text = await self._call("GETDEL", self._prefix + ticket)
        if not text:
            return None
        user_id, role, expires_at = json.loads(text)
        # A process of an older version writes True for an admin in place of the role.
        return Principal(user_id, ADMIN_ROLE if role is True else role or "", expires_at)

    async def close(self) -> None:
        """Close the connection."""
        self._master.close()

    async def _call(self, *command: str | int) -> str | None:
        try:
            reply: str | None = await self._master.call(lambda link: link.ask(*command))
            return reply
        except (RedisError, OSError) as error:
            raise DependencyUnavailable("Tickets cannot be had just now") from error
