"""The addresses of Redis: those of the URL, in a Redis Cluster each node seen so far, and with Sentinels the address of
the master that they name.

The first connection goes to the first node in order; a node that fails goes to the end. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple

from redis.asyncio import SSLConnection
from redis.exceptions import AuthenticationError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from pipeline.addresses import RedisServers, redis_servers
from pipeline.link.connection import Link, connect

# One of several servers that accepts a connection and sends nothing must not use up the time for all.
NODE_SECONDS = 1.5
# None: the address of the URL, which may be a name that leads to another server by now, or a Unix socket.
Address = tuple[str, int] | None


class SlotRange(NamedTuple):
    """The slots of a cluster from the end of the range before up to `last`, and the address of their master."""

    last: int
    master: Address


class Connector:
    """Opens connections with the login and the options of one URL."""

    def __init__(self, url: str) -> None:
        pool = connect(url).connection_pool
        self._connection_class = pool.connection_class
        # Callers limit the time: redis-py's own timeouts can swallow a cancellation.
        self._options: dict[str, Any] = pool.connection_kwargs | {"socket_timeout": None}
        self.database = int(self._options.get("db") or 0)
        self._tls_options = tuple((name, self._options[name]) for name in sorted(self._options) if name[:4] == "ssl_")

    async def open(self, address: Address) -> Link:
        """Return a new connection."""
        where = {"host": address[0], "port": address[1]} if address else {}
        connection = self._connection_class(**self._options | where)
        if isinstance(connection, SSLConnection):
            connection.ssl_context = tls_context(self._tls_options)
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            return Link(connection)
        except BaseException:
            await connection.disconnect(nowait=True)
            raise


@lru_cache(maxsize=8)
def tls_context(options: tuple[tuple[str, Any], ...]) -> Any:
    """Return the TLS context for these options of a URL, one for all connections: making it takes up to 300 ms."""
    return SSLConnection(**dict(options)).ssl_context


class NodeOrder:
    """Addresses in the order in which they are tried."""

    def __init__(self, *addresses: Address) -> None:
        self._given = addresses
        self.all: list[Address] = list(addresses)

    def learn(self, *addresses: Address) -> None:
        """Add addresses. Those of the URL stay: when all servers have new addresses, the names still lead to them."""
        self.all = list(dict.fromkeys([self.all[0], *addresses, *self._given]))

    def skip(self, address: Address) -> None:
        """Put the first address at the end, if it is this one."""
        if self.all[0] == address:
            self.all.append(self.all.pop(0))


class Sentinels:
    """The Sentinels, which name the master. https://redis.io/docs/latest/develop/reference/sentinel-clients/"""

    def __init__(self, servers: RedisServers) -> None:
        self._connector = Connector(servers.sentinel_url)
        self._shared_connector = Connector(servers.shared_url) if servers.shared_url else None
        self._order = NodeOrder(*servers.hosts)
        self._master_name = servers.master_name

    async def master(self) -> Address:
        """Return the address of the master from the first Sentinel that knows it; the last error when none does."""
        error: Exception = RedisConnectionError(f"No Sentinel knows a master named {self._master_name}")
        for address in list(self._order.all):
            try:
                async with asyncio.timeout(NODE_SECONDS):
                    if (master := await self._ask(address)) is not None:
                        return master
            except (RedisError, OSError) as failure:
                error = failure
            self._order.skip(address)
        raise error

    def skip_first(self) -> None:
        """The first Sentinel was wrong: the next one is asked first."""
        self._order.skip(self._order.all[0])

    async def _ask(self, address: Address) -> Address:
        try:
            return await self._ask_through(self._connector, address)
        except AuthenticationError:
            if self._shared_connector is None:
                raise
            return await self._ask_through(self._shared_connector, address)

    async def _ask_through(self, connector: Connector, address: Address) -> Address:
        link = await connector.open(address)
        try:
            master = await link.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._master_name)
            if not master:
                return None
            await self._learn(link)
            return master[0], int(master[1])
        finally:
            link.close()

    async def _learn(self, link: Link) -> None:
        """Ask for the other Sentinels: those of the URL may all be replaced while this process runs."""
        with suppress(ResponseError):
            described = await link.ask("SENTINEL", "SENTINELS", self._master_name)
            others = [dict(zip(each[::2], each[1::2], strict=True)) for each in described]
            self._order.learn(*((each["ip"], int(each["port"])) for each in others))


class Nodes:
    """Opens connections to the servers of a URL. Callers limit the time of one connection."""

    def __init__(self, url: str) -> None:
        servers = redis_servers(url)
        self._connector = Connector(servers.url)
        self.database = self._connector.database
        self._sentinels: Sentinels | None = None
        if servers.sentinel_url:
            self._sentinels = Sentinels(servers)
            self._order = NodeOrder(None)
        else:
            self._order = NodeOrder(*(servers.hosts or (None,)))

    async def find(self, address: Address = None) -> tuple[Link, Address, list[SlotRange]]:
        """Return a connection, its address, and the slot ranges of the cluster in order, [] when there is no cluster.

        address: the server to connect to. Without it each known node is tried once.
        """
        if self._sentinels is not None:
            try:
                return await self._find(address or await self._sentinels.master())
            except BaseException:
                self._sentinels.skip_first()
                raise
        addresses = [address] if address is not None else list(self._order.all)
        error: Exception | None = None
        for each in addresses:
            try:
                async with asyncio.timeout(NODE_SECONDS if len(addresses) > 1 else None):
                    return await self._find(each)
            except (RedisError, OSError) as failure:
                error = failure
        assert error is not None
        raise error

    async def open(self, address: Address) -> Link:
        """Return a new connection."""
        return await self._connector.open(address)

    def skip(self, address: Address) -> None:
        """A connection to this node failed, or the node is no master any more: the next node is tried first."""
        self._order.skip(address)

    async def _find(self, address: Address) -> tuple[Link, Address, list[SlotRange]]:
        link: Link | None = None
        try:
            link = await self.open(address)
            if self._sentinels is not None:
                await _check_master(link)
                return link, address, []
            return link, address, await self._slots(link)
        except BaseException:
            self.skip(address)
            if link is not None:
                link.close()
            raise

    async def _slots(self, link: Link) -> list[SlotRange]:
        try:
            slots = await link.ask("CLUSTER", "SLOTS")
        except ResponseError:
            return []
        # Of each range: [first slot, last slot, [host, port, ...] of the master, the same of each replica...]. A node
        # that does not know its own name is the node that was asked.
        servers = [[(server[0] or link.host, server[1]) for server in nodes] for _first, _last, *nodes in slots]
        self._order.learn(*(address for addresses in servers for address in addresses))
        return sorted(SlotRange(each[1], addresses[0]) for each, addresses in zip(slots, servers, strict=True))


async def _check_master(link: Link) -> None:
    """Refuse a server that is no master: Sentinels still name it for some seconds after it was demoted.

    A user who may not ask for the role is let through.
    """
    with suppress(ResponseError):
        if (await link.ask("ROLE"))[0] != "master":
            raise RedisConnectionError("The Sentinels name a server that is no master")
