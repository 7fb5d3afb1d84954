"""Use case: a socket that may have missed events gets them from the asset store, before any later event.

The asset store has every result, so no event is stored for this: a replay works after a wiped Redis, a deploy or a
night offline. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta

import structlog

from pipeline.assets.asset import Asset
from pipeline.assets.events import asset_processed
from pipeline.assets.store import AssetStore
from pipeline.clock import utc_now
from pipeline.errors import DependencyUnavailable
from pipeline.logs import ThrottledLog
from pipeline.metrics import Metrics
from pipeline.rooms.frames import event_frame, join_frames
from pipeline.rooms.rooms import Connection, Rooms
from pipeline.texts import cause_of
from pipeline.usecases.image_urls import ImageUrls

log = structlog.get_logger(__name__)

ROOM_PREFIX = "user:"
# Missed events that are replayed to a connection; for more than that, pages of the list of assets cost less.
MAX_REPLAY_EVENTS = 500
# After an outage thousands of clients reconnect at once; the store is read for a few of them at a time.
PARALLEL_READS = 8
RETRY_SECONDS = 1.0
# An event may be sent after one with a later timestamp. Clocks differ by 5 s at most (clock.py), and a commit or
# another notifier may take as long each. In addition, the event of a killed process is sent when its job's lease has
# ended.
LATE_EVENT_SECONDS = 15.0
# The clocks of this service differ by less.
MAX_AHEAD = timedelta(seconds=5)
RESYNC = event_frame({"event": "resync"})


class Replay:
    """Reads the events that a user's sockets missed, and sends them when a gap of its room has ended."""

    def __init__(
        self,
        store: AssetStore,
        rooms: Rooms,
        metrics: Metrics,
        *,
        urls: ImageUrls,
        max_events: int = MAX_REPLAY_EVENTS,
        max_bytes: int,
        lease_seconds: float,
    ) -> None:
        """max_events, max_bytes: bounds of a replay; beyond them clients have to read the list of their assets
        lease_seconds: of a job
        """
        self._store = store
        self._rooms = rooms
        self._metrics = metrics
        self._urls = urls
        self._max_events = max_events
        self._throttled_log = ThrottledLog()
        self._max_bytes = max_bytes
        self._overlap = timedelta(seconds=LATE_EVENT_SECONDS + lease_seconds)
        self._reading = asyncio.Semaphore(PARALLEL_READS)
        # Connections that wait for their missed events, and since when they miss events.
        self._behind: dict[Connection, datetime] = {}
        self._requested = asyncio.Event()

    async def read(self, user_id: str, since: datetime) -> list[bytes]:
        """Return frames with the user's events since then, oldest first, or a resync frame when there are too many.

        A few older ones may be among them. DependencyUnavailable when the store cannot be read.
        """
        ahead = since - utc_now()
        if ahead > MAX_AHEAD:
            # Without a resync, the client would believe that it missed nothing.
            seconds = round(ahead.total_seconds(), 1)
            self._throttled_log.write(log.warning, "since_in_future", user_id, userId=user_id, aheadSeconds=seconds)
            self._metrics.replays.labels("resync").inc()
            return [RESYNC]
        async with self._reading:
            try:
                assets = await self._assets(user_id, since)
            except DependencyUnavailable:
                self._metrics.replays.labels("unavailable").inc()
                raise
            # An asset that was archived since has no event.
            finished = [asset for asset in assets or () if asset.is_finished]
            urls = await self._urls.of_images(asset.processed for asset in finished if asset.processed)
            frames = [
                event_frame(asset_processed(each, each.processed.url_among(urls) if each.processed else None))
                for each in finished
            ]
        if assets is None or sum(map(len, frames)) > self._max_bytes:
            self._metrics.replays.labels("resync").inc()
            return [RESYNC]
        self._metrics.replays.labels("complete").inc()
        self._metrics.events_replayed.inc(len(frames))
        return join_frames(frames)

    async def _assets(self, user_id: str, since: datetime) -> Sequence[Asset] | None:
        """Return the finished assets, or None when there are too many even without the overlap."""
        try:
            instants = (since - self._overlap, since)
        except OverflowError:
            instants = (since, since)
        for instant in instants:
            assets = await self._store.finished_since(user_id, instant, limit=self._max_events + 1)
            if len(assets) <= self._max_events:
                return assets
        return None

    def request(self, room: str, since: datetime) -> None:
        """Send the room's events since then to its connections, except events from before a connection joined.

        Later events wait until then: a client that got a later event would not ask for the earlier ones any more.
        """
        for connection in self._rooms.members(room):
            connection.pause()
            earliest = min(since, self._behind.get(connection, since))
            self._behind[connection] = max(earliest, connection.joined_at)
        self._requested.set()

    async def run(self) -> None:
        """Send the requested events, for ever."""
        while True:
            await self._requested.wait()
            self._requested.clear()
            await asyncio.gather(*(self._catch_up(*each) for each in list(self._behind.items())))
            if self._behind:
                await asyncio.sleep(RETRY_SECONDS)
                self._requested.set()

    async def _catch_up(self, connection: Connection, since: datetime) -> None:
        """Send the connection its events; tried again later while it is joining or the store cannot be read."""
        if connection.room is None:
            del self._behind[connection]
            return
        if not connection.is_started:
            return  # it is still joining, with events that were read a moment ago
        del self._behind[connection]
        try:
            frames = await self.read(connection.room.removeprefix(ROOM_PREFIX), since)
        except DependencyUnavailable as error:
            cause = cause_of(error)
            self._throttled_log.write(log.warning, "replay_postponed", cause, error=cause)
            # Better out of order than not at all: events of this process need neither the store nor Redis.
            frames = []
            self._behind.setdefault(connection, since)
        except Exception:
            # The border of one connection: it must not wait for ever, nor delay the other connections.
            log.exception("replay_failed")
            frames = [RESYNC]
        connection.start(frames)
