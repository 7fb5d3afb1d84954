"""Where Redis can be reached: at the address of the URL and, in a Redis Cluster, at each node seen so far.

The first connection goes to the node whose turn it is; a node that fails gives its turn to the next. More addresses in
one URL, or those that a Sentinel names, are more nodes of this list. Runs on the event loop.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from redis.asyncio import SSLConnection
from redis.exceptions import ResponseError

from pipeline.link.connection import Link, connect

# None: that of the URL, which may be a name that stands for another server by now, or a Unix socket.
Address = tuple[str, int] | None


class SlotRange(NamedTuple):
    """Slots of a cluster up to `last`, from where the range before ends, and the address of their master."""

    last: int
    master: Address


class Nodes:
    """Opens connections. Keeps no time: callers do, as redis-py's own timeouts can swallow a cancellation."""

    def __init__(self, url: str) -> None:
        pool = connect(url).connection_pool
        self._connection_class = pool.connection_class
        self._options: dict[str, Any] = pool.connection_kwargs | {"socket_timeout": None}
        self.database = int(self._options.get("db") or 0)
        self._known: list[Address] = [None]
        self._tls: Any = None

    async def find(self, address: Address = None) -> tuple[Link, Address, list[SlotRange]]:
        """Return a connection, where it leads, and the ranges of the cluster in order, [] when there is no cluster.

        address: where to go instead of the node whose turn it is.
        """
        address = address or self._known[0]
        link: Link | None = None
        try:
            link = await self.open(address)
            return link, address, await self._slots(link)
        except BaseException:
            self.leave(address)
            if link is not None:
                link.close()
            raise

    async def open(self, address: Address) -> Link:
        """Return a new connection."""
        where = {"host": address[0], "port": address[1]} if address else {}
        connection = self._connection_class(**self._options | where)
        # One TLS context for all: making one takes up to 300 ms.
        if isinstance(connection, SSLConnection):
            self._tls = connection.ssl_context = self._tls or connection.ssl_context
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            return Link(connection)
        except BaseException:
            await connection.disconnect(nowait=True)
            raise

    def leave(self, address: Address) -> None:
        """A connection to this node failed, or the node is no master any more: it is the next one's turn."""
        if self._known[0] == address:
            self._known.append(self._known.pop(0))

    async def _slots(self, link: Link) -> list[SlotRange]:
        try:
            slots = await link.ask("CLUSTER", "SLOTS")
        except ResponseError:
            return []
        # [first slot, last slot, [host, port, ...] of the master, the same of each replica...] each. A node that does
        # not know its own name is the one that was asked.
        servers = [[(server[0] or link.host, server[1]) for server in nodes] for _first, _last, *nodes in slots]
        # The URL's own stays: when all nodes have got new addresses, its name still leads to them.
        seen = [address for addresses in servers for address in addresses]
        self._known = list(dict.fromkeys([self._known[0], *seen, None]))
        return sorted(SlotRange(each[1], addresses[0]) for each, addresses in zip(slots, servers, strict=True))
