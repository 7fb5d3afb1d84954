"""Receives the messages of a changing set of channels: one connection to each server that has some of them.

A server that fails affects only its own channels. redis-py's PubSub is not used: it reconnects by itself, so that the
messages it missed would go unnoticed. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any, NoReturn

import structlog
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from pipeline.delays import retry_delays
from pipeline.link.channels import Channels
from pipeline.link.connection import Link
from pipeline.link.nodes import Address
from pipeline.texts import cause_of

log = structlog.get_logger(__name__)

RETRY_SECONDS = (0.1, 3.0)


class Subscriptions:
    """The wanted channels, and a listener for each server that has some of them."""

    def __init__(
        self,
        channels: Channels,
        *,
        on_message: Callable[[bytes, bytes], None],
        on_confirmed: Callable[[bytes], None],
        on_lost: Callable[[Collection[bytes], float], None],
        health_seconds: float,
    ) -> None:
        """on_message: called with a channel and a message that was published to it
        on_confirmed: called with a channel when its server has confirmed the subscription
        on_lost: called with channels whose subscription is lost, and for how many seconds it may have been lost already
        health_seconds: a server that is silent this long is pinged, and given up after as long again
        """
        self.channels = channels
        self.on_message = on_message
        self.on_confirmed = on_confirmed
        self.on_lost = on_lost
        self.health_seconds = health_seconds
        self._wanted: set[bytes] = set()
        self._unassigned: set[bytes] = set()
        self._change = asyncio.Event()
        self._listeners: dict[Address, _Listener] = {}
        self._is_lost = False
        # Why the servers are not known, None when they are.
        self._failure: Exception | None = None
        channels.on_changed.append(self._assign_anew)

    def want(self, channel: bytes) -> None:
        """Subscribe to the channel."""
        if channel in self._wanted:
            return
        self._wanted.add(channel)
        if (listener := self._listener_of(channel)) is not None:
            listener.add(channel)
        else:
            self._unassigned.add(channel)
            self._change.set()

    def unwant(self, channel: bytes) -> None:
        """End the subscription of the channel."""
        self._wanted.discard(channel)
        self._unassigned.discard(channel)
        for listener in self._listeners.values():
            listener.remove(channel)

    def is_confirmed(self, channel: bytes) -> bool:
        """Whether every message to the channel arrives."""
        return any(listener.is_confirmed(channel) for listener in self._listeners.values())

    def is_lost(self, channel: bytes) -> bool:
        """Whether the channel's server has failed and is not back yet."""
        listener = self._listener_of(channel)
        return self._is_lost if listener is None else listener.is_lost

    def failure(self, channel: bytes) -> Exception | None:
        """Return why the channel's messages do not arrive, if that is known."""
        listener = self._listener_of(channel)
        return self._failure if listener is None else listener.failure

    def leave(self, address: Address, error: Exception, seconds: float) -> None:
        """Leave a server that is no master any more, perhaps for so many seconds already."""
        if (listener := self._listeners.get(address)) is not None:
            listener.leave(error, seconds)

    async def run(self) -> NoReturn:
        """Listen for ever. After an exception it may be called again; `on_lost` was called for all channels."""
        delays = retry_delays(*RETRY_SECONDS)
        self._unassigned = set(self._wanted)
        try:
            async with asyncio.TaskGroup() as group:
                while not self.channels.is_known:
                    try:
                        await self.channels.find(self.channels.searches)
                    except (RedisError, OSError) as error:
                        if not self._is_lost:
                            log.warning("fanout_disconnected", error=cause_of(error))
                        self._is_lost, self._failure = True, error
                        self.on_lost(self._unassigned, 0)
                        await asyncio.sleep(next(delays))
                while True:
                    self._assign(group)
                    self._is_lost = False
                    await self._change.wait()
                    self._change.clear()
        finally:
            self._listeners.clear()
            self._is_lost = True
            self.on_lost(self._wanted, 0)

    def _listener_of(self, channel: bytes) -> _Listener | None:
        if not self.channels.is_known:
            return None
        listener = self._listeners.get(self.channels.address_of(channel))
        return listener if listener and not listener.is_done else None

    def _assign(self, group: asyncio.TaskGroup) -> None:
        """Give each channel without a listener its listener."""
        for address, listener in list(self._listeners.items()):
            if listener.is_done:
                del self._listeners[address]
        while self._unassigned:
            channel = next(iter(self._unassigned))
            address = self.channels.address_of(channel)
            if address not in self._listeners:
                self._listeners[address] = listener = _Listener(self, address, is_lost=self._is_lost)
                group.create_task(listener.run())
            self._listeners[address].add(channel)
            self._unassigned.discard(channel)

    def _assign_anew(self) -> None:
        """Give channels that are on another server now a new listener; they may have missed messages there."""
        moved = set()
        for channel in self._wanted:
            listener = self._listener_of(channel)
            if listener is not None and listener.has(channel):
                continue
            for other in self._listeners.values():
                if other.is_confirmed(channel):
                    moved.add(channel)
                other.remove(channel)
            self._unassigned.add(channel)
        self.on_lost(moved, self.health_seconds)
        self._change.set()


class _Listener:
    """The connection to one server, for as long as it has wanted channels."""

    def __init__(self, owner: Subscriptions, address: Address, *, is_lost: bool) -> None:
        """is_lost: no server has been reached before"""
        self.is_lost = is_lost
        self.is_done = False
        self.failure: Exception | None = None
        self._owner = owner
        self._address = address
        self._wanted: set[bytes] = set()
        self._link: Link | None = None
        self._signal = asyncio.Event()
        # On this connection: requested channels, and the number of their requests that are not confirmed yet.
        self._requested: set[bytes] = set()
        self._unconfirmed: Counter[bytes] = Counter()
        self._delays = retry_delays(*RETRY_SECONDS)

    def add(self, channel: bytes) -> None:
        self._wanted.add(channel)
        self._signal.set()

    def remove(self, channel: bytes) -> None:
        if channel in self._wanted:
            self._wanted.discard(channel)
            self._signal.set()

    def has(self, channel: bytes) -> bool:
        return channel in self._wanted

    def is_confirmed(self, channel: bytes) -> bool:
        return channel in self._requested and not self._unconfirmed[channel]

    def leave(self, error: Exception, seconds: float) -> None:
        self._owner.on_lost(self._requested & self._wanted, seconds)
        if self._link is not None:
            self._link.close(error)

    async def run(self) -> None:
        """Listen until no channel is wanted on this server."""
        channels, found = self._owner.channels, -1
        try:
            while self._wanted:
                try:
                    if self.failure is not None:
                        # First: the channels of a cluster may be on another server by now.
                        await channels.find(found)
                    if self._wanted:
                        self._link = await channels.open(self._address)
                        await self._listen(self._link)
                    continue
                except (RedisError, OSError) as error:
                    found = channels.searches
                    channels.skip(self._address)
                    if not self.is_lost:
                        log.warning("fanout_disconnected", error=cause_of(error))
                    self.is_lost, self.failure = True, error
                finally:
                    self._close_link()
                await asyncio.sleep(next(self._delays))
        finally:
            self.is_done = True

    async def _listen(self, link: Link) -> None:
        """Return when no channel is wanted any more; raise what ended the connection."""
        link.on_lost = self._signal.set
        link.listen(self._take)
        health_seconds = self._owner.health_seconds
        while self._wanted:
            self._signal.clear()
            link.check(health_seconds)
            self._request(link)
            # One timer for many messages: a timer for each would be expensive.
            with suppress(TimeoutError):
                async with asyncio.timeout(health_seconds / 2):
                    await self._signal.wait()

    def _request(self, link: Link) -> None:
        """Subscribe to the new channels, and end the subscriptions of those that are not wanted any more."""
        added, removed = self._wanted - self._requested, self._requested - self._wanted
        self._requested |= added
        self._requested -= removed
        self._unconfirmed.update(added)
        shard = "S" if self._owner.channels.is_sharded else ""
        # One command for each channel: the channels of one sharded command have to be in one slot.
        commands = [(f"{shard}SUBSCRIBE", channel) for channel in added]
        commands += [(f"{shard}UNSUBSCRIBE", channel) for channel in removed]
        if commands:
            link.send(commands)

    def _take(self, reply: list[Any]) -> None:
        """Handle a message or a confirmation of the server."""
        if len(reply) != 3:
            return  # the answer to a ping
        kind, channel, content = reply
        if kind in (b"message", b"smessage"):
            self._owner.on_message(channel, content)
        elif kind in (b"subscribe", b"ssubscribe"):
            self._unconfirmed[channel] -= 1
            if self._unconfirmed[channel] <= 0:
                del self._unconfirmed[channel]
                self._owner.on_confirmed(channel)
                self._note_success()
        elif self.is_confirmed(channel):
            raise RedisConnectionError("the channel has moved to another server of the cluster")

    def _note_success(self) -> None:
        """Note a success when all channels are confirmed: the server may still refuse the last one."""
        if self._unconfirmed:
            return
        if self.is_lost:
            log.info("fanout_reconnected", channels=len(self._requested))
        self.is_lost, self.failure = False, None
        self._delays = retry_delays(*RETRY_SECONDS)

    def _close_link(self) -> None:
        link, self._link = self._link, None
        lost, self._requested = self._requested & self._wanted, set()
        self._unconfirmed.clear()
        if link is not None:
            link.close()
        if lost:
            self._owner.on_lost(lost, link.silent_seconds if link else 0)
