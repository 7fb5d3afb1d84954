"""Use case: a socket that may have missed events gets them from the asset store, before any later one.

The store has every result, so nothing needs to be kept for this: not through a wiped Redis, a deploy or a night
offline. Runs on the event loop.
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
# Missed events that are replayed to a connection: beyond that pages of the list of assets cost less.
MAX_REPLAY_EVENTS = 500
# After an outage thousands come back at once; the store is not asked for more than a few of them at a time.
PARALLEL_READS = 8
AGAIN_SECONDS = 1.0
# An event may leave after one that is later by its timestamp. Clocks differ by 5 s at most (clock.py), a commit or
# another notifier may take as long each; and what a killed process owed comes when its job's lease, on top of this, has
# run out.
TOLD_LATE_SECONDS = 15.0
# An instant of our own clocks is not so far ahead of any of them.
MAX_AHEAD = timedelta(seconds=5)
RESYNC = event_frame({"event": "resync"})


class Replay:
    """Reads what a user's sockets missed and, after the process has been cut off from others, gives it to them."""

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
        """max_events, max_bytes: what is replayed at most; beyond that clients read the list of their assets."""
        self._store = store
        self._rooms = rooms
        self._metrics = metrics
        self._urls = urls
        self._max_events = max_events
        self._throttled_log = ThrottledLog()
        self._max_bytes = max_bytes
        self._overlap = timedelta(seconds=TOLD_LATE_SECONDS + lease_seconds)
        self._reading = asyncio.Semaphore(PARALLEL_READS)
        self._behind: dict[Connection, datetime] = {}
        self._requested = asyncio.Event()

    async def read(self, user_id: str, since: datetime) -> list[bytes]:
        """Return frames with the user's events since then, oldest first, or one that says there are too many.

        A few older ones may be among them. DependencyUnavailable when the store cannot be read.
        """
        ahead = since - utc_now()
        if ahead > MAX_AHEAD:
            # Nothing is finished since then, and the client would take that for "nothing was missed".
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
            # An asset that was archived since has no event any more.
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
        """Let everyone in the room have its events since then, from before they joined excepted.

        Later events wait until they have: a client that had heard one would not ask for these any more.
        """
        for connection in self._rooms.members(room):
            connection.hold()
            earliest = min(since, self._behind.get(connection, since))
            self._behind[connection] = max(earliest, connection.joined_at)
        self._requested.set()

    async def run(self) -> None:
        """Do what was requested, until cancelled."""
        while True:
            await self._requested.wait()
            self._requested.clear()
            await asyncio.gather(*(self._catch_up(*each) for each in list(self._behind.items())))
            if self._behind:
                await asyncio.sleep(AGAIN_SECONDS)
                self._requested.set()

    async def _catch_up(self, connection: Connection, since: datetime) -> None:
        """Give the connection its events. It stays behind while it is being let in or the store cannot be read."""
        if connection.room is None:
            del self._behind[connection]
            return
        if not connection.is_started:
            return  # it is still being let in, by what the store had a moment ago
        del self._behind[connection]
        try:
            frames = await self.read(connection.room.removeprefix(ROOM_PREFIX), since)
        except DependencyUnavailable as error:
            cause = cause_of(error)
            self._throttled_log.write(log.warning, "replay_postponed", cause, error=cause)
            # Better out of order than not at all: events of this process need neither store nor Redis to arrive.
            frames = []
            self._behind.setdefault(connection, since)
        except Exception:
            # The border of one connection: it must not be held for ever, nor hold up the others.
            log.exception("replay_failed")
            frames = [RESYNC]
        connection.start(frames)
