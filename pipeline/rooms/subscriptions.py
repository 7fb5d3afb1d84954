"""Hears what is published to a set of channels that changes all the time: one connection to each server they live on.

A server that fails takes none of the others' channels with it. Not redis-py's PubSub: that one reconnects on its own,
and the gap would go unnoticed. Runs on the event loop.
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
    """Channels that are wanted, and the listeners that hear them."""

    def __init__(
        self,
        channels: Channels,
        *,
        on_message: Callable[[bytes, bytes], None],
        on_heard: Callable[[bytes], None],
        on_lost: Callable[[Collection[bytes], float], None],
        health_seconds: float,
    ) -> None:
        """on_message: called with a channel and what was published to it.

        on_heard: called with a channel when its server has confirmed it. on_lost: called with channels that are not
        heard any more, and for how many seconds they may not have been. health_seconds: a server silent this long is
        asked for a sign of life, and given up after as long again.
        """
        self.channels = channels
        self.on_message = on_message
        self.on_heard = on_heard
        self.on_lost = on_lost
        self.health_seconds = health_seconds
        self._wanted: set[bytes] = set()
        self._unassigned: set[bytes] = set()
        self._change = asyncio.Event()
        self._listeners: dict[Address, _Listener] = {}
        self._is_lost = False
        # Why the servers could not be found, if they could not.
        self._failure: Exception | None = None
        channels.on_changed.append(self._assign_anew)

    def want(self, channel: bytes) -> None:
        """Listen to it from now on."""
        if channel in self._wanted:
            return
        self._wanted.add(channel)
        if (listener := self._listener_of(channel)) is not None:
            listener.add(channel)
        else:
            self._unassigned.add(channel)
            self._change.set()

    def unwant(self, channel: bytes) -> None:
        """Listen to it no more."""
        self._wanted.discard(channel)
        self._unassigned.discard(channel)
        for listener in self._listeners.values():
            listener.remove(channel)

    def is_confirmed(self, channel: bytes) -> bool:
        """Whether all that is published to it arrives."""
        return any(listener.hears(channel) for listener in self._listeners.values())

    def is_lost(self, channel: bytes) -> bool:
        """Whether its server has failed and is not back yet."""
        listener = self._listener_of(channel)
        return self._is_lost if listener is None else listener.is_lost

    def failure(self, channel: bytes) -> Exception | None:
        """Return why it is not heard, if that is known."""
        listener = self._listener_of(channel)
        return self._failure if listener is None else listener.failure

    def leave(self, address: Address, error: Exception, seconds: float) -> None:
        """This server is no master any more, perhaps for so many seconds: others tell another one."""
        if (listener := self._listeners.get(address)) is not None:
            listener.leave(error, seconds)

    async def run(self) -> NoReturn:
        """Listen for ever. After an exception it may be called again; `on_lost` was told what is missing."""
        delays = retry_delays(*RETRY_SECONDS)
        self._unassigned = set(self._wanted)
        try:
            async with asyncio.TaskGroup() as group:
                while not self.channels.is_known:
                    try:
                        await self.channels.find(self.channels.found)
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
        """Give each channel without one its listener."""
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
        """Channels may live elsewhere now, and those that were heard until now may have missed something there."""
        moved = set()
        for channel in self._wanted:
            listener = self._listener_of(channel)
            if listener is not None and listener.has(channel):
                continue
            for other in self._listeners.values():
                if other.hears(channel):
                    moved.add(channel)
                other.remove(channel)
            self._unassigned.add(channel)
        self.on_lost(moved, self.health_seconds)
        self._change.set()


class _Listener:
    """The connection to one server, for as long as channels live there."""

    def __init__(self, owner: Subscriptions, address: Address, *, is_lost: bool) -> None:
        """is_lost: no server has been reached before."""
        self.is_lost = is_lost
        self.is_done = False
        self.failure: Exception | None = None
        self._owner = owner
        self._address = address
        self._wanted: set[bytes] = set()
        self._link: Link | None = None
        self._signal = asyncio.Event()
        # As of this connection: channels asked for, and requests for them that the server has not confirmed.
        self._asked: set[bytes] = set()
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

    def hears(self, channel: bytes) -> bool:
        return channel in self._asked and not self._unconfirmed[channel]

    def leave(self, error: Exception, seconds: float) -> None:
        self._owner.on_lost(self._asked & self._wanted, seconds)
        if self._link is not None:
            self._link.close(error)

    async def run(self) -> None:
        """Listen until no channel is wanted here."""
        channels, found = self._owner.channels, -1
        try:
            while self._wanted:
                try:
                    if self.failure is not None:
                        # Before anything else: a cluster's slots may be elsewhere, and a newer server knows more.
                        await channels.find(found)
                    if self._wanted:
                        self._link = await channels.open(self._address)
                        await self._listen(self._link)
                    continue
                except (RedisError, OSError) as error:
                    found = channels.found
                    channels.leave(self._address)
                    if not self.is_lost:
                        log.warning("fanout_disconnected", error=cause_of(error))
                    self.is_lost, self.failure = True, error
                finally:
                    self._hang_up()
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
            self._tell(link)
            # A timer for each message would be dear.
            with suppress(TimeoutError):
                async with asyncio.timeout(health_seconds / 2):
                    await self._signal.wait()

    def _tell(self, link: Link) -> None:
        """Let the server know which channels came and went."""
        came, left = self._wanted - self._asked, self._asked - self._wanted
        self._asked |= came
        self._asked -= left
        self._unconfirmed.update(came)
        shard = "S" if self._owner.channels.is_sharded else ""
        # One command each: those of one sharded command would have to be in one slot.
        commands = [(f"{shard}SUBSCRIBE", channel) for channel in came]
        commands += [(f"{shard}UNSUBSCRIBE", channel) for channel in left]
        if commands:
            link.send(commands)

    def _take(self, said: list[Any]) -> None:
        """Take in what the server sends."""
        if len(said) != 3:
            return  # a sign of life
        kind, channel, content = said
        if kind in (b"message", b"smessage"):
            self._owner.on_message(channel, content)
        elif kind in (b"subscribe", b"ssubscribe"):
            self._unconfirmed[channel] -= 1
            if self._unconfirmed[channel] <= 0:
                del self._unconfirmed[channel]
                self._owner.on_heard(channel)
                self._note_success()
        elif self.hears(channel):
            raise RedisConnectionError("the channel has moved to another server of the cluster")

    def _note_success(self) -> None:
        """Called when a channel is confirmed; only all of them are a success, as each try may be refused late."""
        if self._unconfirmed:
            return
        if self.is_lost:
            log.info("fanout_reconnected", channels=len(self._asked))
        self.is_lost, self.failure = False, None
        self._delays = retry_delays(*RETRY_SECONDS)

    def _hang_up(self) -> None:
        link, self._link = self._link, None
        lost, self._asked = self._asked & self._wanted, set()
        self._unconfirmed.clear()
        if link is not None:
            link.close()
        if lost:
            self._owner.on_lost(lost, link.silent_seconds if link else 0)
