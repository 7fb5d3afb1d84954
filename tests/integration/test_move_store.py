"""The asset store goes to another one while it is written to: in one process, step by step, and as a command beside a
service that takes uploads.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from tornado.ioloop import IOLoop

from pipeline.assets import movable
from pipeline.assets.asset import AssetStatus
from pipeline.assets.mongo import MongoAssetStore
from pipeline.assets.movable import MovableStore
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.assets.store import IDENTITY, AssetStore, Record, KeyRecord
from pipeline.assets.store_move import MOVE, NOTE, PROCESS, STORE, Move, Phase
from pipeline.clock import utc_now
from pipeline.errors import ConfigurationError, Conflict, DependencyUnavailable, OutcomeUnknown, ValidationError
from pipeline.usecases import moving_processes, store_moving
from pipeline.usecases.outage_retry import OutageRetry
from pipeline.usecases.store_copying import Copied, StoreCopy
from pipeline.usecases.moving_processes import abandon
from pipeline.usecases.store_moving import StoreMove
from tests.factories import make_asset
from tests.integration.asset_stores import FOUND, NOON, damage
from tests.integration.test_moving import Uploads, command, read
from tests.service import ROOT, AiService, Service

pytestmark = pytest.mark.fault("U17")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is waited for longer than these tests need."""
    monkeypatch.setattr(movable, "LEASE_SECONDS", 0.2)
    monkeypatch.setattr(movable, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr(movable, "MOVING_SECONDS", 0.02)
    monkeypatch.setattr(store_moving, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(moving_processes, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(store_moving, "REST_SECONDS", 0.05)


class Scene:
    """A service's store, and the two databases between which it moves."""

    def __init__(self, old: str, new: str) -> None:
        self.old, self.new = old, new
        self.movable = MovableStore(self.opener(old), old, self.opener)
        self.store = self.movable.as_asset_store()

    @staticmethod
    def opener(uri: str) -> AssetStore:
        return MongoAssetStore(uri) if uri.startswith("mongodb") else SqliteAssetStore(Path(uri))

    async def move(
        self, old: str = "", new: str = "", on_phase: Callable[[str], None] = lambda words: None, **options: Any
    ) -> Copied:
        """Do what the command does."""
        stores = self.opener(old or self.old), self.opener(new or self.new)
        try:
            for store in stores:
                await store.open()
            slowdown = OutageRetry(longest_seconds=5)
            move = StoreMove(*stores, new or self.new, slowdown, on_phase=on_phase, lease_seconds=0.3, **options)
            copied = await move.run()
            await self.movable.look()
            return copied
        finally:
            for store in stores:
                await store.close()

    async def raw(self, uri: str, ask: Callable[[AssetStore], Awaitable[Any]]) -> Any:
        """Return what one of the databases says itself."""
        store = self.opener(uri)
        await store.open()
        try:
            return await ask(store)
        finally:
            await store.close()


@pytest.fixture(params=["sqlite", "mongo"])
def scene(request: pytest.FixtureRequest, tmp_path: Path, io_loop: IOLoop) -> Iterator[Scene]:
    """The other database is a second file, or a MongoDB."""
    new = str(tmp_path / "new.sqlite") if request.param == "sqlite" else request.getfixturevalue("mongo_uri")
    scene = Scene(str(tmp_path / "old.sqlite"), new)
    io_loop.run_sync(scene.movable.open)
    io_loop.run_sync(scene.store.identity)
    following = asyncio.ensure_future(scene.movable.run(), loop=io_loop.asyncio_loop)  # type: ignore[attr-defined]
    yield scene
    following.cancel()
    io_loop.run_sync(scene.movable.close)


only_files = pytest.mark.parametrize("scene", ["sqlite"], indirect=True)


class Load:
    """Writes of all kinds, one after the other, until it is left. expected: what each asset has to be then."""

    def __init__(self, store: AssetStore) -> None:
        self._store = store
        self.expected: dict[str, Any] = {}
        self.gone: list[str] = []
        self._is_over = False

    async def __aenter__(self) -> Load:
        self._task = asyncio.create_task(self._write())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._is_over = True
        await self._task

    async def _write(self) -> None:
        number = 0
        while not self._is_over:
            number += 1
            asset = make_asset()
            assert await self._store.create(asset)
            await self._store.claim_key(f"key-{asset.id}", KeyRecord(asset.id, "f"), utc_now())
            begun = await self._store.begin(asset.id, asset.user_id, asset.processing_job_id)
            assert begun is not None and begun.fence == 1
            found = await self._store.finish(
                asset.id,
                asset.processing_job_id,
                1,
                status=AssetStatus.ACTIVE,
                ai_metadata=FOUND,
                processed=None,
                finished_at=NOON,
            )
            assert found is not None
            await self._store.put_record(Record("letter", asset.id, NOON, {"n": number}))
            self.expected[asset.id] = found.to_document()
            if number % 4 == 0:
                await self._store.delete_records("letter", asset.id)
                await self._store.discard_keys(asset.id)
                assert await self._store.delete(asset.id, asset.user_id)
                self.gone.append(asset.id)
                del self.expected[asset.id]
            # More than any service writes, and less than a busy machine can copy at the same time.
            await asyncio.sleep(0.02)

    async def check(self, store: AssetStore) -> None:
        """Fail unless the store holds exactly what was written."""
        assert set(await store.all_ids(limit=100_000)) == set(self.expected)
        for asset_id, document in self.expected.items():
            asset = await store.get(asset_id)
            assert asset is not None and asset.to_document() == document
            assert await store.find_key(f"key-{asset_id}") == KeyRecord(asset_id, "f")
        letters = await store.records("letter", limit=100_000)
        assert {letter.id for letter in letters} == set(self.expected)
        for asset_id in self.gone:
            assert await store.find_key(f"key-{asset_id}") is None


@pytest.mark.gen_test(timeout=60)
async def test_all_that_is_written_beside_a_move_is_in_the_new_store(scene: Scene) -> None:
    """Also what is deleted meanwhile is gone there; and so it is back again, over what the first store still holds."""
    identity = await scene.store.identity()
    async with Load(scene.store) as load:
        copied = await scene.move()
        assert copied.late == [] and scene.movable.uri == scene.new
        back = await scene.move(scene.new, scene.old)
        assert back.late == [] and scene.movable.uri == scene.old
    await load.check(scene.store)
    await load.check(await _opened(scene.old))
    assert await scene.store.identity() == identity
    for kind in (NOTE, PROCESS):
        assert await scene.store.records(kind, limit=1) == []


_left_open: list[AssetStore] = []


async def _opened(uri: str) -> AssetStore:
    store = Scene.opener(uri)
    await store.open()
    _left_open.append(store)
    return store


@pytest.fixture(autouse=True)
def closes(io_loop: IOLoop) -> Iterator[None]:
    """Close what _opened has opened."""
    yield
    while _left_open:
        io_loop.run_sync(_left_open.pop().close)


@pytest.mark.gen_test(timeout=60)
@pytest.mark.parametrize("phase", ["Waiting", "Copying", "Copying what", "Copying the last"])
@only_files
async def test_move_that_ends_anywhere_goes_on_with_the_next_one(scene: Scene, phase: str) -> None:
    """What is written before, between and beside the two runs is in the new store."""

    class Killed(Exception):
        pass

    def die(words: str) -> None:
        if words.startswith(phase):
            raise Killed

    async with Load(scene.store) as load:
        with pytest.raises(Killed):
            await scene.move(on_phase=die)
        assert scene.movable.uri == scene.old
        await scene.move()
    await load.check(await _opened(scene.new))


@pytest.mark.gen_test(timeout=60)
@only_files
async def test_writes_wait_for_a_command_that_is_gone_no_longer_than_the_limit(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process decides against the move then; what the command claims later does not count, and it begins again."""
    monkeypatch.setattr(movable, "THAW_SECONDS", 0.3)
    gone = Move("t-1", Phase.FREEZING, scene.new, "nobody")
    await scene.store.put_record(gone.record())
    await scene.movable.look()
    assert await scene.store.create(make_asset())
    assert scene.movable.uri == scene.old
    stands = await scene.raw(scene.old, lambda store: store.claim_key(gone.decision, KeyRecord("", "moved"), NOON))
    assert stands.fingerprint == "thawed"
    await scene.move()
    assert scene.movable.uri == scene.new and len(await scene.store.all_ids(limit=9)) == 1


@pytest.mark.gen_test(timeout=60)
@only_files
async def test_reads_go_on_while_writes_wait(scene: Scene) -> None:
    """A write that waits is made in the new store."""
    asset = make_asset()
    await scene.store.create(asset)
    await scene.store.put_record(Move("t-1", Phase.FREEZING, scene.new, "nobody").record())
    await scene.movable.look()
    waiting = asyncio.create_task(scene.store.put_record(Record("letter", "1", NOON, {})))
    assert await scene.store.get(asset.id) is not None
    assert not waiting.done()
    identity = await scene.store.find_record(IDENTITY, IDENTITY)
    assert identity is not None
    await scene.raw(scene.new, lambda store: store.put_record(identity))
    await scene.raw(scene.old, lambda store: store.put_record(Move("t-1", Phase.MOVED, scene.new, "nobody").record()))
    await waiting
    assert await scene.raw(scene.new, lambda store: store.find_record("letter", "1")) is not None
    assert await scene.raw(scene.old, lambda store: store.find_record("letter", "1")) is None


class Slow:
    """A store whose creates begin and then wait until they may go on."""

    def __init__(self, store: AssetStore) -> None:
        self._store = store
        self.has_begun, self.may_end = asyncio.Event(), asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def create(self, asset: Any) -> bool:
        self.has_begun.set()
        await self.may_end.wait()
        return await self._store.create(asset)


@pytest.mark.gen_test(timeout=60)
@pytest.mark.parametrize("since", ["before the move", "during the move"])
async def test_write_under_way_is_waited_for(tmp_path: Path, since: str) -> None:
    """Nothing is decided before it has ended, and what it wrote is in the new store."""
    scene = Scene(str(tmp_path / "old.sqlite"), str(tmp_path / "new.sqlite"))
    slow = Slow(SqliteAssetStore(tmp_path / "old.sqlite"))
    scene.movable = MovableStore(slow, scene.old, scene.opener)
    store, phases, asset = scene.movable.as_asset_store(), asyncio.Queue[str](), make_asset()
    await scene.movable.open()
    following = asyncio.create_task(scene.movable.run())
    if since == "before the move":
        writing = asyncio.create_task(store.create(asset))
        await slow.has_begun.wait()
    moving = asyncio.create_task(scene.move(on_phase=phases.put_nowait))
    while await phases.get() != "Copying":
        pass
    if since == "during the move":
        writing = asyncio.create_task(store.create(asset))
        await slow.has_begun.wait()
    while await phases.get() != "Copying the last changes":
        pass
    waiting = asyncio.create_task(store.put_record(Record("letter", "1", NOON, {})))
    while not (move := await scene.raw(scene.old, lambda each: each.find_record(MOVE, STORE))).data["beat"] > 6:
        assert move.data["phase"] == "freezing" and not moving.done()
    slow.may_end.set()
    assert await writing
    await moving
    await waiting
    assert scene.movable.uri == scene.new and await store.get(asset.id) is not None
    following.cancel()
    await scene.movable.close()


@pytest.mark.gen_test(timeout=60)
@only_files
async def test_second_command_is_refused_while_the_first_one_lives(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one is not disturbed."""
    copying, goes_on = asyncio.Event(), asyncio.Event()
    catch_up = StoreMove._catch_up

    async def late_catch_up(self: StoreMove) -> None:
        await goes_on.wait()
        await catch_up(self)

    monkeypatch.setattr(StoreMove, "_catch_up", late_catch_up)
    first = asyncio.create_task(scene.move(on_phase=lambda words: copying.set()))
    await copying.wait()
    with pytest.raises(Conflict, match="is running"):
        await scene.move()
    with pytest.raises(Conflict, match="is running"):
        await scene.raw(scene.old, abandon)
    goes_on.set()
    await first
    assert scene.movable.uri == scene.new


@pytest.mark.gen_test(timeout=60)
@only_files
async def test_command_that_was_taken_for_dead_decides_nothing(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is stopped with all copied; another one takes over, is stopped too, and the first one goes on."""
    stopped, goes_on = asyncio.Event(), asyncio.Event()
    claim = StoreMove._claim

    async def late_claim(self: StoreMove, what: str, move: Move | None = None) -> str:
        if move is None and not stopped.is_set():
            stopped.set()
            await goes_on.wait()
        return await claim(self, what, move)

    async def no_beat(self: StoreMove) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(StoreMove, "_claim", late_claim)
    monkeypatch.setattr(StoreMove, "_beat", no_beat)
    first = asyncio.create_task(scene.move())
    await stopped.wait()
    second_copies = asyncio.Event()
    second = asyncio.create_task(scene.move(on_phase=lambda words: second_copies.set()))
    await second_copies.wait()
    goes_on.set()
    with pytest.raises(Conflict, match="taken over"):
        await first
    assert scene.movable.uri == scene.old
    await second
    assert scene.movable.uri == scene.new


@pytest.mark.gen_test(timeout=60)
@only_files
async def test_store_that_is_no_place_to_move_to_is_refused(scene: Scene) -> None:
    """The same one by another name, one that holds what is somebody else's; a damaged document stays where it is."""
    with pytest.raises(Conflict, match="there already"):
        await scene.move(new=str(Path(scene.old).parent / "." / ".." / Path(scene.old).parent.name / "old.sqlite"))

    async def settle(store: AssetStore) -> None:
        await store.identity()
        await store.create(make_asset())

    await scene.raw(str(Path(scene.old).parent / "other.sqlite"), settle)
    with pytest.raises(Conflict, match="not from here"):
        await scene.move(new=str(Path(scene.old).parent / "other.sqlite"))
    asset = make_asset()
    await scene.store.create(asset)
    damage(scene.store, asset, "")
    with pytest.raises(ValidationError, match=asset.id):
        await scene.move()
    assert await scene.store.find_record(MOVE, STORE) is None and scene.movable.uri == scene.old


@pytest.mark.gen_test(timeout=60)
@only_files
async def test_move_that_cannot_go_on_leaves_no_record(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when its heartbeat is just writing the record anew."""

    async def find_one(self: StoreCopy) -> list[str]:
        keep, discard = self._old.put_record, self._old.delete_records
        is_writing, is_written, is_removed = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def keep_after_the_removal(record: Record) -> None:
            is_writing.set()
            with suppress(TimeoutError):  # the removal waits for this one, as it should
                await asyncio.wait_for(is_removed.wait(), 0.3)
            await keep(record)
            is_written.set()

        async def discard_and_wait(kind: str, *ids: str) -> None:
            await discard(kind, *ids)
            if (kind, ids) == (MOVE, (STORE,)):
                is_removed.set()
                await is_written.wait()

        monkeypatch.setattr(self._old, "put_record", keep_after_the_removal)
        monkeypatch.setattr(self._old, "delete_records", discard_and_wait)
        await is_writing.wait()
        return ["a" * 24]

    monkeypatch.setattr(StoreCopy, "complete", find_one)
    with pytest.raises(ValidationError):
        await scene.move()
    assert await scene.raw(scene.old, lambda store: store.find_record(MOVE, STORE)) is None


@pytest.mark.gen_test(timeout=60)
@only_files
async def test_abandoned_move_leaves_no_notes(scene: Scene) -> None:
    """Writes are noted no longer; a move that is done cannot be abandoned."""
    with suppress(asyncio.CancelledError):
        reached = asyncio.Event()
        moving = asyncio.create_task(scene.move(on_phase=lambda words: reached.set()))
        await reached.wait()
        moving.cancel()
        await moving
    await scene.movable.look()
    await scene.store.create(make_asset())
    assert await scene.store.records(NOTE, limit=9) != []
    assert await scene.raw(scene.old, abandon)
    await scene.movable.look()
    await scene.store.create(make_asset())
    assert await scene.store.records(NOTE, limit=9) == [] and not await scene.raw(scene.old, abandon)
    await scene.move()
    assert not await scene.raw(scene.old, abandon) and scene.movable.uri == scene.new


@pytest.mark.gen_test(timeout=60)
@only_files
async def test_process_that_was_away_asks_before_it_writes(scene: Scene) -> None:
    """One that has not looked since before a whole move writes into the new store."""
    away = MovableStore(scene.opener(scene.old), scene.old, scene.opener)
    await away.open()
    await scene.move()
    asset = make_asset()
    assert await away.as_asset_store().create(asset)
    assert await scene.store.get(asset.id) is not None
    await away.close()


@pytest.mark.gen_test(timeout=60)
@only_files
async def test_purges_and_upgrades_wait_for_the_end_of_a_move(scene: Scene) -> None:
    """They change things without saying which."""
    await scene.store.put_record(Move("t-1", Phase.COPYING, scene.new, "nobody").record())
    await scene.movable.look()
    await scene.store.claim_key("k", KeyRecord("a" * 24, "f"), NOON)
    assert await scene.store.purge_keys(utc_now()) == 0 and await scene.store.find_key("k") is not None
    with pytest.raises(DependencyUnavailable):
        await scene.store.upgrade("", limit=9, backend_of=lambda *_: "x")
    await scene.raw(scene.old, abandon)
    await scene.movable.look()
    assert await scene.store.purge_keys(utc_now()) >= 1


@pytest.mark.gen_test(timeout=60)
@only_files
async def test_late_change_of_a_stopped_process_is_told(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was taken for dead in the middle of a write makes it after the decision: the asset is named."""
    asset = make_asset()
    await scene.store.create(asset)
    subjects = {"subjects": [["asset", asset.id]], "isDone": False}
    await scene.store.put_record(Record(NOTE, "of the stopped one", NOON, subjects))
    claim = StoreMove._claim

    async def claim_and_write(self: StoreMove, what: str, move: Move | None = None) -> str:
        stands = await claim(self, what, move)
        await self._old.begin(asset.id, asset.user_id, asset.processing_job_id)
        return stands

    monkeypatch.setattr(StoreMove, "_claim", claim_and_write)
    copied = await scene.move()
    assert len(copied.late) == 1 and asset.id in copied.late[0]


@pytest.mark.gen_test(timeout=60)
@only_files
async def test_other_store_that_was_emptied_between_two_runs_gets_everything(scene: Scene) -> None:
    """The second run goes on behind what the first one copied, and still nothing is missing."""
    assets = sorted((make_asset() for _ in range(5)), key=lambda asset: asset.id)
    for asset in assets:
        await scene.store.create(asset)
    await scene.store.put_record(Move("t-1", Phase.COPYING, scene.new, "nobody", after=assets[-1].id).record())
    await scene.move()
    assert scene.movable.uri == scene.new
    assert await scene.store.all_ids(limit=9) == [asset.id for asset in assets]


@pytest.mark.gen_test(timeout=60)
@only_files
async def test_half_a_copy_is_not_moved_over_the_store_it_was_made_from(scene: Scene) -> None:
    """A move that was killed, and then one in the other direction: it would remove what was not copied yet."""
    asset = make_asset()
    await scene.store.create(asset)
    await scene.store.put_record(Move("t-1", Phase.COPYING, scene.new, "nobody").record())
    identity = await scene.store.find_record(IDENTITY, IDENTITY)
    assert identity is not None
    await scene.raw(scene.new, lambda store: store.put_record(identity))
    with pytest.raises(Conflict, match="not finished"):
        await scene.move(scene.new, scene.old)
    assert await scene.raw(scene.old, lambda store: store.get(asset.id)) is not None


@pytest.mark.gen_test(timeout=60)
@only_files
async def test_decision_of_a_command_that_died_after_it_outlives_the_move_back(scene: Scene) -> None:
    """The keys of the first store, the decision among them, go; its record still says that it was moved."""
    left = Move("t-1", Phase.FREEZING, scene.new, "nobody")
    identity = await scene.store.find_record(IDENTITY, IDENTITY)
    assert identity is not None
    await scene.raw(scene.new, lambda store: store.put_record(identity))
    await scene.raw(scene.old, lambda store: store.put_record(left.record()))
    await scene.raw(scene.old, lambda store: store.claim_key(left.decision, KeyRecord("", "moved"), NOON))

    class Killed(Exception):
        pass

    def die(words: str) -> None:
        if words == "Copying what has changed":
            raise Killed

    with pytest.raises(Killed):
        await scene.move(scene.new, scene.old, on_phase=die)
    record = await scene.raw(scene.old, lambda store: store.find_record(MOVE, STORE))
    assert record.data["phase"] == "moved"


@pytest.mark.gen_test(timeout=60)
async def test_half_a_copy_is_nobodys_store(scene: Scene) -> None:
    """A process whose settings name it too early does not start; after the move it does."""

    class Killed(Exception):
        pass

    def die(words: str) -> None:
        if words == "Copying what has changed":
            raise Killed

    await scene.store.create(make_asset())
    with pytest.raises(Killed):
        await scene.move(on_phase=die)
    early = MovableStore(scene.opener(scene.new), scene.new, scene.opener)
    with pytest.raises(ConfigurationError, match="not finished"):
        await early.open()
    await early.close()
    await scene.move()
    later = MovableStore(scene.opener(scene.new), scene.new, scene.opener)
    await later.open()
    assert len(await later.as_asset_store().all_ids(limit=9)) == 1
    await later.close()


@pytest.mark.gen_test(timeout=30)
@only_files
async def test_writes_that_never_ended_do_not_keep_a_move_from_its_end(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them than are few: a failover, or a process killed under load, leaves as many."""
    monkeypatch.setattr(store_moving, "FEW_NOTES", 3)
    for number in range(5):
        note = Record(NOTE, f"n-{number}", NOON, {"subjects": [["asset", make_asset().id]], "isDone": False})
        await scene.store.put_record(note)
    await asyncio.wait_for(scene.move(), 10)
    assert scene.movable.uri == scene.new


@pytest.mark.gen_test(timeout=60)
@only_files
async def test_writes_are_not_slowed_for_a_command_that_is_gone(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command that was killed while it slowed them would slow them until somebody runs it again."""
    monkeypatch.setattr(movable, "THAW_SECONDS", 0.2)
    await scene.store.put_record(Move("t-1", Phase.COPYING, scene.new, "nobody", pace_seconds=30.0).record())
    await scene.movable.look()
    await asyncio.sleep(0.3)  # it has given no sign of life for the limit
    await asyncio.wait_for(scene.store.create(make_asset()), 5)


@pytest.mark.gen_test(timeout=60)
@only_files
async def test_address_that_leads_elsewhere_from_here_is_not_used(scene: Scene) -> None:
    """`sqlite` names another file on another machine: an empty store there would take uploads that nobody finds."""
    elsewhere = str(Path(scene.new).parent / "elsewhere.sqlite")

    def opener(uri: str) -> AssetStore:
        return scene.opener(elsewhere if uri == scene.new else uri)

    other = MovableStore(scene.opener(scene.old), scene.old, opener)
    await other.open()
    await scene.move()
    with pytest.raises(DependencyUnavailable):
        await other.as_asset_store().create(make_asset())
    assert await scene.raw(elsewhere, lambda store: store.all_ids(limit=9)) == []
    await other.close()


@pytest.mark.gen_test(timeout=60)
@pytest.mark.parametrize("since", ["before the move", "during the move"])
async def test_write_that_outlived_a_move_is_not_called_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, since: str
) -> None:
    """A process that stood still in the middle of a write has written into a store that nobody reads any more."""
    scene = Scene(str(tmp_path / "old.sqlite"), str(tmp_path / "new.sqlite"))
    slow = Slow(SqliteAssetStore(tmp_path / "old.sqlite"))
    away = MovableStore(slow, scene.old, scene.opener)
    await away.open()
    await scene.movable.open()
    if since == "during the move":
        await scene.store.put_record(Move("t-1", Phase.COPYING, scene.new, "nobody").record())
        await away.look()
    monkeypatch.setattr(moving_processes, "DEAD_SECONDS", 0.3)
    writing = asyncio.create_task(away.as_asset_store().create(make_asset()))
    await slow.has_begun.wait()
    await scene.move()
    slow.may_end.set()
    try:
        with pytest.raises(OutcomeUnknown):
            await writing
    finally:
        await away.close()
        await scene.movable.close()


def test_record_of_a_move_does_not_show_the_address() -> None:
    """It holds a password, and a trace or an assertion shows a record."""
    assert "hunter2" not in repr(Move("t-1", Phase.COPYING, "mongodb://u:hunter2@host/", "o"))


@pytest.mark.gen_test(timeout=180)
async def test_service_takes_uploads_while_its_store_moves_and_back(
    tmp_path: Path, ai_service: AiService, mongo_uri: str
) -> None:
    """From the embedded store to a MongoDB, with the command killed once, and back: no upload is refused, all end, also
    over a restart with the settings of before; the address is in no log.
    """
    with Service(tmp_path, ai_service.url) as service:
        with Uploads(service) as uploads:
            arguments = [sys.executable, str(ROOT / "run.py"), "move", "--store", mongo_uri]
            killed = subprocess.Popen(arguments, env=service.environment, stderr=subprocess.DEVNULL)
            raw = SqliteAssetStore(tmp_path / "assets.sqlite")
            await raw.open()
            while not (move := await raw.find_record(MOVE, STORE)) or not move.data["beat"]:
                await asyncio.sleep(0.02)
            await raw.close()
            killed.send_signal(signal.SIGKILL)
            killed.wait()
            moved = command(service, "move", "--store", mongo_uri, "--json")
            assert moved.returncode == 0, moved.stderr
            assert json.loads(moved.stdout)["flaws"] == []
            service.wait_log("store_moved")
        service.stop()
        service.start()
        with Uploads(service) as more:
            service.wait_log("store_moved")
        for asset_id in uploads.accepted + more.accepted:
            assert read(service, asset_id)["status"] == "active"
        assert uploads.refused == more.refused == []
        assert mongo_uri not in json.dumps(service.lines) + moved.stderr + moved.stdout
        again = command(service, "move", "--store", mongo_uri)
        assert again.returncode == 0 and "in that store already" in again.stderr
        assert command(service, "verify").returncode == 0
        with Uploads(service) as last:
            back = command(service, "move", "--store", "sqlite", "--json")
            assert back.returncode == 0, back.stderr
            service.wait_log("store_moved", 2)
        for asset_id in uploads.accepted + more.accepted + last.accepted:
            assert read(service, asset_id)["status"] == "active"
        assert last.refused == []
        listed = httpx.get(f"{service.url}/api/assets?limit=100", headers=service.headers()).json()["data"]["items"]
        assert len(listed) == min(100, len(uploads.accepted + more.accepted + last.accepted))


def test_command_says_what_it_needs(tmp_path: Path) -> None:
    """Without a target, with two, or with an address of another kind it says so."""
    service = Service(tmp_path)
    for arguments, text in (
        ([], "Use either"),
        (["--storage", "local", "--abandon"], "Use either"),
        (["--store", "postgres://x"], "mongodb://"),
    ):
        told = command(service, "move", *arguments)
        assert told.returncode == 2 and text in told.stderr and "Traceback" not in told.stderr
