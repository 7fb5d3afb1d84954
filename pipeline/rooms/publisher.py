"""Tells other processes about events. What cannot be told now is told when Redis is back: late, not lost.

Everything that has gathered while one batch was on its way goes in the next, so that many events at once cost few
calls. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

import structlog
from redis.exceptions import AskError, ClusterDownError, ReadOnlyError, RedisError, ResponseError, TryAgainError

from pipeline.delays import retry_delays
from pipeline.link.channels import Channels
from pipeline.link.connection import CALL_SECONDS
from pipeline.link.nodes import Address
from pipeline.texts import cause_of

log = structlog.get_logger(__name__)

BATCH = 200
RETRY_SECONDS = (0.05, 5.0)
REFUSED_SECONDS = 5.0
# After that long with nothing to publish the server is asked whether it is still there, and a master.
CHECK_SECONDS = 4.0
# Far more than a process can have: without Redis it gets no new jobs.
MAX_OWED = 10_000
# The channel is elsewhere (a MovedError is an AskError) or will be. Any other refusal is about one message.
NOT_HERE = (AskError, ClusterDownError, ReadOnlyError, TryAgainError)


@dataclass(slots=True, eq=False)
class Owed:
    """A message that Redis does not have yet. published: done when it has."""

    channel: bytes
    message: bytes
    published: asyncio.Future[None]


class Publisher:
    """Publishes messages, those of one channel in the order they came, each at least once while the process lives."""

    def __init__(
        self, open_channels: Callable[[], Channels], probe: str, on_demoted: Callable[[Exception], None]
    ) -> None:
        """open_channels: returns a new set of connections.

        probe: a key that never exists.
        on_demoted: called when the server turns out to be a replica by now.
        """
        self._open_channels = open_channels
        self._on_demoted = on_demoted
        # A write that writes nothing. A server that became a replica refuses it; a PUBLISH it takes, and tells nobody.
        self._guard = ("PERSIST", probe)
        self._owed: deque[Owed] = deque(maxlen=MAX_OWED)
        self._refused: deque[Owed] = deque(maxlen=MAX_OWED)
        self._added = asyncio.Event()

    def publish(self, channel: bytes, message: bytes) -> asyncio.Future[None]:
        """Return a future that is done when Redis has the message; whoever waits for it keeps the time."""
        owed = Owed(channel, message, asyncio.get_running_loop().create_future())
        self._owed.append(owed)
        self._added.set()
        return owed.published

    async def run(self) -> None:
        """Publish for ever; after an exception it may be run again, and what was owed is still owed."""
        delays = retry_delays(*RETRY_SECONDS)
        failures = 0
        while True:
            channels = self._open_channels()
            try:
                await channels.connect()
                while True:
                    await self._publish(channels)
                    delays, failures = retry_delays(*RETRY_SECONDS), 0
                    with suppress(TimeoutError):
                        async with asyncio.timeout(CHECK_SECONDS):
                            await self._added.wait()
            except (RedisError, OSError) as error:
                failures += 1
                # A connection that died while idle is no news, and one line for an outage is enough.
                if failures == 2:
                    log.warning("publisher_disconnected", error=cause_of(error), owed=len(self._owed))
            finally:
                channels.close()
            await asyncio.sleep(next(delays))

    async def _publish(self, channels: Channels) -> None:
        # Outside a cluster the server is asked even when nothing is owed.
        parts: dict[Address, list[Owed]] = {} if channels.is_cluster else {channels.address: []}
        for each in islice(self._owed, BATCH):
            parts.setdefault(channels.address_of(each.channel), []).append(each)
        telling = [self._tell(channels, address, batch) for address, batch in parts.items()]
        failures = await asyncio.gather(*telling, return_exceptions=True)
        if not self._owed:
            self._added.clear()
        for failure in failures:
            if failure is not None:
                raise failure

    async def _tell(self, channels: Channels, address: Address, batch: Sequence[Owed]) -> None:
        """Publish what is owed to one server; RedisError, OSError or TimeoutError leaves it owed."""
        verb = "SPUBLISH" if channels.is_sharded else "PUBLISH"
        # In a cluster a replica sends us to its master.
        guards = [] if channels.is_cluster else [self._guard]
        async with asyncio.timeout(CALL_SECONDS):
            link = await channels.link_to(address)
            asked = link.ask_each([*guards, *((verb, each.channel, each.message) for each in batch)])
            replies: list[Any] = await asyncio.gather(*asked, return_exceptions=True)
        for reply in replies[: len(guards)]:
            if isinstance(reply, ReadOnlyError):
                channels.leave()
                self._on_demoted(reply)
                raise reply
        self._settle(batch, replies[len(guards) :])

    def _settle(self, batch: Sequence[Owed], replies: Sequence[Any]) -> None:
        failure = None
        settled = set()
        for each, reply in zip(batch, replies, strict=True):
            if isinstance(reply, ResponseError) and not isinstance(reply, NOT_HERE):
                self._refuse(each, reply)
            elif isinstance(reply, Exception):
                failure = failure or reply
                continue
            elif not each.published.done():
                each.published.set_result(None)
            settled.add(each)
        self._owed = deque((each for each in self._owed if each not in settled), MAX_OWED)
        if failure:
            raise failure

    def _refuse(self, refused: Owed, error: Exception) -> None:
        """Put a message aside, so that those behind it are told, and try it again later."""
        if not self._refused:
            log.warning("event_refused", error=cause_of(error))
            asyncio.get_running_loop().call_later(REFUSED_SECONDS, self._owe_refused)
        self._refused.append(refused)

    def _owe_refused(self) -> None:
        self._owed = deque((*self._refused, *self._owed), MAX_OWED)
        self._refused.clear()
        self._added.set()
