"""MovableStore: the asset store of a process, which `pipeline move --store` replaces by another one while it runs.

One store is in use at any moment: the old one until the move is decided, the new one from then on. A record in the old
store says how far the move is; each process reads it every second, and acts by its phase:

copying    before and after every write a note of it is written in the old store, so that usecases/store_moving.py can
           copy once more what has changed since it was copied
freezing   writes wait, reads go on; a process reports when its last write has ended
moved      the new store is in use

A process that has not read the record for LEASE_SECONDS reads it before it writes; so no process writes without knowing
of a move that began earlier. The decision is an idempotency key of the old store, because the first to claim it wins:
the command claims that the move is done; a process whose writes have waited for a command that is gone claims that it
is not.
Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, cast

import structlog

from pipeline.assets.asset import Asset
from pipeline.assets.store import IDENTITY, AssetStore, Record, KeyRecord
from pipeline.assets.store_move import (
    ARRIVED,
    ARRIVING,
    IS_MOVED,
    IS_THAWED,
    MOVE,
    NOTE,
    PROCESS,
    STORE,
    Move,
    Phase,
)
from pipeline.clock import utc_now
from pipeline.errors import ConfigurationError, DependencyUnavailable, OutcomeUnknown
from pipeline.texts import cause_of

log = structlog.get_logger(__name__)

LEASE_SECONDS = 5.0
IDLE_SECONDS, MOVING_SECONDS = 1.0, 0.2
# A command whose record has not changed for so long is taken for gone.
THAW_SECONDS = 10.0
BEAT_SECONDS = 1.0
HOPS_AT_MOST = 20
# The name of a thing that a write changes: asset ID, key KEY, keys ASSET_ID (all of that asset), kept KIND ID.
Subject = Sequence[str]


def _asset(asset_id: str, *_: Any, **__: Any) -> Sequence[Subject]:
    return [("asset", asset_id)]


def _whole_asset(asset: Asset, *_: Any) -> Sequence[Subject]:
    return [("asset", asset.id)]


# The writes, and the things that each one changes.
WRITES: Mapping[str, Callable[..., Sequence[Subject]]] = {
    "create": _whole_asset,
    "begin": _asset,
    "finish": _asset,
    "fail": _asset,
    "add_attempt": _asset,
    "correct": _whole_asset,
    "cancel": _asset,
    "refund_start": _asset,
    "requeue": _asset,
    "delete": _asset,
    "drop_original": _asset,
    "replace_image": _asset,
    "claim_key": lambda key, *_, **__: [("key", key)],
    "discard_keys": lambda asset_id: [("keys", asset_id)],
    "put_record": lambda record: [("kept", record.kind, record.id)],
    "insert_record": lambda record: [("kept", record.kind, record.id)],
    "delete_records": lambda kind, *ids: [("kept", kind, each) for each in ids],
}
# Writes without a name for the things they change. None is urgent: during a move the purges do nothing, and those of
# POSTPONED are refused.
PURGES = ("purge_keys", "purge_records")
POSTPONED = ("upgrade",)


class MovableStore:
    """An AssetStore: passes every call on to the store in use.

    Many methods because each phase of a move has its own.
    """

    def __init__(self, home: AssetStore, uri: str, opener: Callable[[str], AssetStore]) -> None:
        """home, uri: the store that the settings name, and its address. opener: makes the store of an address."""
        self.uri = uri
        self._store = home
        self._opener = opener
        self._opened = [home]
        self._id = secrets.token_hex(8)
        self._hop = ""  # the token of the move that led to this store
        self._move: Move | None = None
        self._is_frozen = False
        self._beaten_at = 0.0
        self._looked_at = float("-inf")
        self._looking = asyncio.Lock()
        self._under_way: dict[object, Sequence[Subject]] = {}
        self._acknowledged: tuple[str, float] = ("", 0.0)

    @property
    def current(self) -> AssetStore:
        """The store in use, as far as this process knows."""
        return self._store

    def as_asset_store(self) -> AssetStore:
        """Return it typed as AssetStore: its methods are those of the store in use."""
        return cast(AssetStore, self)

    def __getattr__(self, name: str) -> Any:
        if name in WRITES or name in PURGES or name in POSTPONED:
            return partial(self._write, name)
        return getattr(self._store, name)

    async def open(self) -> None:
        """Open the store that the settings name, and the one it has been moved to.

        ConfigurationError when the settings name a copy that is not finished.
        """
        await self._opened[-1].open()
        await self._refuse_half_a_copy(self._opened[0])
        await self.look()

    async def _refuse_half_a_copy(self, home: AssetStore) -> None:
        if await home.find_record(MOVE, ARRIVING) is None or await home.find_record(MOVE, STORE) is not None:
            return
        raise ConfigurationError(
            "MONGODB_URI: the asset store is a copy that is not finished; run `move --store` again, with the settings "
            "of before, until it is moved, or empty it"
        )

    async def close(self) -> None:
        """Release all connections."""
        if self._move is not None:
            with suppress(DependencyUnavailable):
                await self._store.delete_records(PROCESS, self._id)
        for store in self._opened:
            await store.close()

    async def run(self) -> None:
        """Follow moves for ever."""
        while True:
            try:
                await self.look()
            except DependencyUnavailable as error:
                log.debug("store_move_unknown", cause=cause_of(error))
            await asyncio.sleep(IDLE_SECONDS if self._move is None else MOVING_SECONDS)

    async def look(self) -> None:
        """Read the record of the move and act by its phase."""
        asked_at = time.monotonic()
        async with self._looking:
            if self._looked_at >= asked_at:
                return  # another task has looked since
            began_at = time.monotonic()
            for _ in range(HOPS_AT_MOST):
                if not await self._follow():
                    self._looked_at = began_at
                    return
            raise DependencyUnavailable("The asset store was moved in a circle")

    async def _follow(self) -> bool:
        """Read the record of the current store and act by it; True when it has led to another store."""
        move = Move.of(await self._store.find_record(MOVE, STORE))
        if move is not None and self._hop and await self._is_over(move):
            move = None
        if move is None:
            self._move, self._is_frozen = None, False
            return False
        if self._move is None or self._move.beat != move.beat or self._move.owner != move.owner:
            self._beaten_at = time.monotonic()
        is_new, self._move = self._move is None, move
        if is_new:
            # These writes began before this process knew of the move.
            for subjects in list(self._under_way.values()):
                await self._store.put_record(_note(subjects))
        if move.phase is not Phase.COPYING:
            decision = IS_MOVED if move.phase is Phase.MOVED else await self._decision(move)
            if decision == IS_MOVED:
                await self._switch(move)
                return True
            self._is_frozen = not decision
        else:
            self._is_frozen = False
        await self._acknowledge(move)
        return False

    async def _is_over(self, move: Move) -> bool:
        """Return whether the record is of an earlier move away from this store, which a move back has ended."""
        arrived = await self._store.find_record(MOVE, ARRIVED)
        if arrived is None or arrived.data["token"] != self._hop or arrived.data["ends"] != move.token:
            return False
        await self._store.delete_records(MOVE, STORE)
        return True

    async def _decision(self, move: Move) -> str:
        """Return the decision, "" when there is none; decide against a command that is gone."""
        record = await self._store.find_key(move.decision)
        if record is None and self._is_frozen and time.monotonic() - self._beaten_at > THAW_SECONDS:
            record = await self._store.claim_key(move.decision, KeyRecord("", IS_THAWED), utc_now())
            log.warning("store_move_interrupted", decision=record.fingerprint)
        return record.fingerprint if record is not None else ""

    async def _switch(self, move: Move) -> None:
        store = self._opener(move.to)
        try:
            await store.open()
            # On another machine the same address may lead to another store.
            identity = await store.find_record(IDENTITY, IDENTITY)
            if identity is None or identity.data["id"] != await self._store.identity():
                raise DependencyUnavailable("From here the address of the moved asset store leads to another one")
            # In case the command has died just after the decision.
            arriving = await store.find_record(MOVE, ARRIVING)
            if arriving is not None and arriving.data["owner"] == move.owner:
                await store.delete_records(MOVE, ARRIVING)
        except BaseException:
            await store.close()
            raise
        self._opened.append(store)
        self._store, self.uri, self._hop, self._move, self._is_frozen = store, move.to, move.token, None, False
        log.warning("store_moved", hint="The asset store was moved: set MONGODB_URI to where it is now, or unset it")

    async def _acknowledge(self, move: Move) -> None:
        """Report to the command that this process takes part, and when its last write has ended."""
        is_still = self._is_frozen and not self._under_way
        state = f"{move.token} {Phase.FREEZING if is_still else Phase.COPYING}"
        reported, reported_at = self._acknowledged
        if reported != state or time.monotonic() - reported_at > BEAT_SECONDS:
            data = {"said": state, "beat": secrets.token_hex(4)}
            await self._store.put_record(Record(PROCESS, self._id, utc_now(), data))
            self._acknowledged = state, time.monotonic()

    async def _write(self, name: str, *args: Any, **kwargs: Any) -> Any:
        move = self._move
        if move is not None and move.pace_seconds and time.monotonic() - self._beaten_at < THAW_SECONDS:
            await asyncio.sleep(move.pace_seconds)
        while self._is_frozen or time.monotonic() - self._looked_at > LEASE_SECONDS:
            await self.look()
            if self._is_frozen:
                await asyncio.sleep(MOVING_SECONDS)
        # From here until it is counted as under way no other task runs.
        store, is_moving, subjects = self._store, self._move is not None, WRITES.get(name, _nothing)(*args, **kwargs)
        write, mark = getattr(store, name), object()
        self._under_way[mark] = subjects
        try:
            if not is_moving:
                result = await write(*args, **kwargs)
                await self._check_it_counts(store)
                return result
            if name in PURGES:
                return 0
            if name in POSTPONED:
                raise DependencyUnavailable("The asset store is being moved")
            note = _note(subjects)
            await store.put_record(note)
            result = await write(*args, **kwargs)
            with suppress(DependencyUnavailable):
                await store.put_record(replace(note, data={**note.data, "isDone": True}))
            await self._check_it_counts(store)
            return result
        finally:
            del self._under_way[mark]

    async def _check_it_counts(self, store: AssetStore) -> None:
        """OutcomeUnknown when the store of a write that has just ended is not, or may not be, in use any more.

        A process that was suspended in the middle of a write was taken for dead, and the move did not wait for it.
        """
        if self._store is store and time.monotonic() - self._looked_at > LEASE_SECONDS:
            try:
                await self.look()
            except DependencyUnavailable as error:
                raise OutcomeUnknown(error.message) from error
        if self._store is not store:
            raise OutcomeUnknown("The asset store was moved in the middle of a write")


def _nothing(*_: Any, **__: Any) -> Sequence[Subject]:
    return ()


def _note(subjects: Sequence[Subject]) -> Record:
    data = {"subjects": [list(each) for each in subjects], "isDone": False}
    return Record(NOTE, secrets.token_hex(12), utc_now(), data)
