"""Use case: sockets that want progress get frames about their user's unfinished photos.

The process that runs a job sends its events at once: to its own sockets and, over the fanout, to those of other
processes. The position in the queue, a hold, and events that got lost come from a snapshot of the queue, once a second,
which each process with such sockets reads. No frame is repeated or stored: GET /api/assets/{id} has the same state.
Runs on the event loop.

Many methods because events of jobs and snapshots of the queue update the same entries.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import orjson
import structlog

from pipeline.assets.asset import Asset, AssetStatus
from pipeline.assets.store import AssetStore
from pipeline.errors import DependencyUnavailable
from pipeline.queue.job import Job, JobState
from pipeline.queue.snapshot import Snapshot
from pipeline.rooms.fanout import RoomFanout
from pipeline.rooms.frames import encode, event_frame, text_frame
from pipeline.rooms.rooms import Rooms
from pipeline.texts import cause_of
from pipeline.usecases.progress import EVERY_SECONDS, Progress, Subject
from pipeline.usecases.replay import ROOM_PREFIX

log = structlog.get_logger(__name__)

# So many unfinished assets of one user get progress frames.
WATCHED_AT_MOST = 1000
# While no asset is unfinished the queue is still read so often, so that workers continue to send progress.
IDLE_SECONDS = 10.0
# After so many assets the event loop runs other work.
COMPARED_AT_ONCE = 200
PROCESSED = re.compile(rb'"assetId":"([0-9a-f]{24})"')
# For each state: its event, the members of the event, and the members whose change causes another frame.
EVENTS: Mapping[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "queued": ("asset_queued", ("position", "etaSeconds"), ("position",)),
    "running": ("asset_started", ("attempt", "provider"), ("attempt",)),
    "retrying": ("asset_retrying", ("attempt", "reason", "nextAt"), ("attempt",)),
    "held": ("asset_held", ("reason", "nextAt"), ("reason", "nextAt")),
}
STATES = {event: (state, counts) for state, (event, _, counts) in EVENTS.items()}


@dataclass(slots=True)
class _Watched:
    """An unfinished asset.

    sent: the state in the last frame, and the members whose change causes another frame
    sent_at: in loop time
    """

    subject: Subject
    sent: tuple[Any, ...] = ()
    sent_at: float = 0.0


class ProgressFrames:
    """The unfinished assets of users with sockets that want progress."""

    def __init__(self, store: AssetStore, rooms: Rooms, fanout: RoomFanout, progress: Progress) -> None:
        self._store = store
        self._rooms = rooms
        self._fanout = fanout
        self._progress = progress
        self._watched: dict[str, dict[str, _Watched]] = {}
        self._unread: set[str] = set()
        self._changed = asyncio.Event()
        rooms.on_progress_wanted = self._add_room
        rooms.on_progress_unwanted = self._remove_room
        rooms.on_event = self._forget_processed
        fanout.on_progress = self._take

    def queued(self, asset: Asset, *, elsewhere: bool) -> None:
        """Send that the asset's job is in the queue.

        elsewhere: sockets of other processes may want progress
        """
        event = {"event": "asset_queued", "assetId": asset.id, "position": None, "etaSeconds": None}
        self._send(asset.user_id, Subject.of(asset), event, elsewhere)

    def deleted(self, asset: Asset) -> None:
        """Send that the asset is deleted."""
        self._send(asset.user_id, Subject.of(asset), {"event": "asset_deleted", "assetId": asset.id}, True)

    def corrected(self, asset: Asset) -> None:
        """Send that a person corrected the asset."""
        known = asset.corrected_metadata
        metadata = {"brand": known.brand, "model": known.model, "colorway": known.colorway}
        event = {
            "event": "asset_corrected",
            "assetId": asset.id,
            "status": asset.status.value,
            "aiMetadata": metadata,
            "fields": sorted(asset.corrections),
        }
        self._send(asset.user_id, Subject.of(asset), event, True)

    def send(self, job: Job, event: Mapping[str, Any], elsewhere: bool) -> None:
        """Send an event of a job.

        elsewhere: see `queued`
        """
        data = {name: str(job.data.get(name, "")) for name in ("assetId", "userId", "category")}
        subject = Subject(data["assetId"], job.id, data["category"], job.attempt)
        self._send(data["userId"], subject, event, elsewhere)

    def _send(self, user_id: str, subject: Subject, event: Mapping[str, Any], elsewhere: bool) -> None:
        room = ROOM_PREFIX + user_id
        if room not in self._watched and not elsewhere:
            return
        with suppress(ValueError):  # a user id that cannot be encoded has no socket
            payload = encode(event)
            self._deliver(room, subject, event, payload)
            if elsewhere:
                self._fanout.offer(room, orjson.dumps([*subject]) + b"\n" + payload)

    def _take(self, room: str, message: bytes) -> None:
        """Handle a progress message of another process."""
        subject, _, payload = message.partition(b"\n")
        self._deliver(room, Subject(*orjson.loads(subject)), orjson.loads(payload), payload)

    def _deliver(self, room: str, subject: Subject, event: Mapping[str, Any], payload: bytes) -> None:
        watched = self._watched.get(room)
        if watched is None:
            return
        if event["event"] == "asset_deleted":
            watched.pop(subject.asset_id, None)
        else:
            self._update(watched, subject, event)
        self._rooms.offer(room, text_frame(payload))

    def _update(self, watched: dict[str, _Watched], subject: Subject, event: Mapping[str, Any]) -> None:
        if subject.asset_id not in watched and len(watched) >= WATCHED_AT_MOST:
            return
        entry = watched.setdefault(subject.asset_id, _Watched(subject))
        entry.subject = subject
        if (known := STATES.get(event["event"])) is not None:
            state, counts = known
            entry.sent = (state, *(event[name] for name in counts))
            entry.sent_at = asyncio.get_running_loop().time()
        self._changed.set()

    async def run(self) -> None:
        """Read snapshots while sockets want progress, for ever."""
        while True:
            if not self._watched:
                self._changed.clear()
                await self._changed.wait()
            snapshot = await self._progress.snapshot(self._job_ids(), insists=False)
            # Now: a room that is added meanwhile needs the next snapshot.
            taken_at = self._progress.taken_at
            self._changed.clear()
            await self._read_rooms()
            if snapshot is not None:
                await self._compare(snapshot, taken_at)
            if not any(self._watched.values()):
                with suppress(TimeoutError):
                    async with asyncio.timeout(IDLE_SECONDS):
                        await self._changed.wait()
            await asyncio.sleep(EVERY_SECONDS)

    def _add_room(self, room: str) -> None:
        if room not in self._watched:
            self._watched[room] = {}
            self._fanout.listen_for_progress(room)
        for entry in self._watched[room].values():
            entry.sent = ()  # the new socket has got no frame
        self._unread.add(room)
        self._changed.set()

    def _remove_room(self, room: str) -> None:
        self._watched.pop(room, None)
        self._unread.discard(room)
        self._fanout.ignore_progress(room)

    def _forget_processed(self, room: str, frame: bytes) -> None:
        if b'"asset_processed"' in frame and (match := PROCESSED.search(frame)):
            self._watched.get(room, {}).pop(match[1].decode(), None)

    def _job_ids(self) -> list[str]:
        return [entry.subject.job_id for watched in self._watched.values() for entry in watched.values()]

    async def _read_rooms(self) -> None:
        """Read the unfinished assets of new rooms from the store."""
        for room in list(self._unread):
            try:
                assets = await self._store.page(
                    room.removeprefix(ROOM_PREFIX), status=AssetStatus.PROCESSING, limit=WATCHED_AT_MOST
                )
            except DependencyUnavailable as error:
                log.warning("progress_postponed", cause=cause_of(error))
                return
            self._unread.discard(room)
            watched = self._watched.get(room, {})
            for asset in assets:
                watched.setdefault(asset.id, _Watched(Subject.of(asset)))

    async def _compare(self, snapshot: Snapshot, taken_at: float) -> None:
        compared = 0
        for room in list(self._watched):
            watched = self._watched.get(room, {})
            changes = [self._compare_one(watched, entry, snapshot, taken_at) for entry in list(watched.values())]
            if frames := [frame for frame in changes if frame]:
                self._rooms.offer(room, b"".join(frames))
            compared += len(changes)
            if compared >= COMPARED_AT_ONCE:
                compared = 0
                await asyncio.sleep(0)

    def _compare_one(
        self, watched: dict[str, _Watched], entry: _Watched, snapshot: Snapshot, taken_at: float
    ) -> bytes | None:
        """Return a frame if the asset's progress has changed, else None."""
        info = snapshot.info(entry.subject.job_id)
        if info is None or info.state is None or entry.sent_at >= taken_at:
            return None  # nothing is known, or a frame was sent after the snapshot
        if info.state in (JobState.COMPLETED, JobState.FAILED):
            watched.pop(entry.subject.asset_id, None)
            return None
        progress = self._progress.describe(entry.subject, snapshot)
        event, members, counts = EVENTS[progress["state"]]
        now = (progress["state"], *(progress[name] for name in counts))
        if now == entry.sent or now[0] == "running" and entry.sent == ("retrying", *now[1:]):
            return None
        entry.sent = now
        frame = {"event": event, "assetId": entry.subject.asset_id}
        return event_frame(frame | {name: progress[name] for name in members})
