"""Writes and reads of processes while the asset store moves to another one, step by step in one process."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from pipeline.assets import movable
from pipeline.assets.movable import MovableStore
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.assets.store import AssetStore, Record, KeyRecord
from pipeline.assets.store_move import MOVE, NOTE, PROCESS, STORE, Move, Phase
from pipeline.clock import utc_now
from pipeline.errors import DependencyUnavailable, OutcomeUnknown
from pipeline.usecases import moving_processes, store_moving
from pipeline.usecases.moving_processes import abandon
from pipeline.usecases.store_moving import StoreMove
from tests.factories import make_asset
from tests.integration.store_moves import (
    Load,
    Scene,
    SlowStore,
    closed_at_the_end,
    only_files,
    opened,
    scene,
    short_waits,
)
from tests.integration.asset_stores import NOON

__all__ = ["closed_at_the_end", "scene", "short_waits"]  # fixtures
pytestmark = pytest.mark.fault("U17")


@pytest.mark.gen_test(timeout=60)
async def test_writes_during_a_move_are_in_the_new_store(scene: Scene) -> None:
    """What was deleted meanwhile is deleted there, too. A move back overwrites the old data of the first store."""
    identity = await scene.store.identity()
    async with Load(scene.store) as load:
        copied = await scene.move()
        assert copied.late == [] and scene.movable.uri == scene.new
        back = await scene.move(scene.new, scene.old)
        assert back.late == [] and scene.movable.uri == scene.old
    await load.check(scene.store)
    await load.check(await opened(scene.old))
    assert await scene.store.identity() == identity
    for kind in (NOTE, PROCESS):
        assert await scene.store.records(kind, limit=1) == []


@pytest.mark.gen_test(timeout=60)
@only_files
async def test_writes_wait_for_a_killed_command_no_longer_than_the_limit(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the limit the process decides against the move. A later decision of the command has no effect."""
    monkeypatch.setattr(movable, "THAW_SECONDS", 0.3)
    killed = Move("t-1", Phase.FREEZING, scene.new, "no process")
    await scene.store.put_record(killed.record())
    await scene.movable.look()
    assert await scene.store.create(make_asset())
    assert scene.movable.uri == scene.old
    late = KeyRecord("", "moved")
    decision = await scene.raw(scene.old, lambda store: store.claim_key(killed.decision, late, NOON))
    assert decision.fingerprint == "thawed"
    await scene.move()
    assert scene.movable.uri == scene.new and len(await scene.store.all_ids(limit=9)) == 1


@pytest.mark.gen_test(timeout=60)
@only_files
async def test_reads_work_while_writes_wait(scene: Scene) -> None:
    """A write that waited is made in the new store."""
    asset = make_asset()
    await scene.store.create(asset)
    await scene.store.put_record(Move("t-1", Phase.FREEZING, scene.new, "no process").record())
    await scene.movable.look()
    waiting = asyncio.create_task(scene.store.put_record(Record("letter", "1", NOON, {})))
    assert await scene.store.get(asset.id) is not None
    assert not waiting.done()
    await scene.copy_identity()
    moved = Move("t-1", Phase.MOVED, scene.new, "no process").record()
    await scene.raw(scene.old, lambda store: store.put_record(moved))
    await waiting
    assert await scene.raw(scene.new, lambda store: store.find_record("letter", "1")) is not None
    assert await scene.raw(scene.old, lambda store: store.find_record("letter", "1")) is None


@pytest.mark.gen_test(timeout=60)
@pytest.mark.parametrize("since", ["before the move", "during the move"])
async def test_move_waits_for_a_write_under_way(tmp_path: Path, since: str) -> None:
    """The move is not decided before the write has ended, and the written asset is in the new store."""
    scene = Scene(str(tmp_path / "old.sqlite"), str(tmp_path / "new.sqlite"))
    slow = SlowStore(SqliteAssetStore(tmp_path / "old.sqlite"))
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
async def test_process_that_missed_a_move_writes_into_the_new_store(scene: Scene) -> None:
    """A process that has not read the record since before the move reads it before it writes."""
    away = MovableStore(scene.opener(scene.old), scene.old, scene.opener)
    await away.open()
    await scene.move()
    asset = make_asset()
    assert await away.as_asset_store().create(asset)
    assert await scene.store.get(asset.id) is not None
    await away.close()


@pytest.mark.gen_test(timeout=60)
@only_files
async def test_purges_and_upgrades_change_nothing_during_a_move(scene: Scene) -> None:
    """A purge and an upgrade write no notes of their changes, so they have to wait for the end of the move."""
    await scene.store.put_record(Move("t-1", Phase.COPYING, scene.new, "no process").record())
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
async def test_late_change_of_a_stopped_process_is_reported(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that looked dead during a write makes the write after the decision: the move names the asset."""
    asset = make_asset()
    await scene.store.create(asset)
    subjects = {"subjects": [["asset", asset.id]], "isDone": False}
    await scene.store.put_record(Record(NOTE, "of the stopped one", NOON, subjects))
    claim = StoreMove._claim

    async def claim_and_write(self: StoreMove, what: str, move: Move | None = None) -> str:
        decision = await claim(self, what, move)
        await self._old.begin(asset.id, asset.user_id, asset.processing_job_id)
        return decision

    monkeypatch.setattr(StoreMove, "_claim", claim_and_write)
    copied = await scene.move()
    assert len(copied.late) == 1 and asset.id in copied.late[0]


@pytest.mark.gen_test(timeout=30)
@only_files
async def test_notes_of_writes_that_never_ended_do_not_block_a_move(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be more notes than FEW_NOTES: a failover, or a process killed under load, leaves as many."""
    monkeypatch.setattr(store_moving, "FEW_NOTES", 3)
    for number in range(5):
        note = Record(NOTE, f"n-{number}", NOON, {"subjects": [["asset", make_asset().id]], "isDone": False})
        await scene.store.put_record(note)
    await asyncio.wait_for(scene.move(), 10)
    assert scene.movable.uri == scene.new


@pytest.mark.gen_test(timeout=60)
@only_files
async def test_writes_are_not_slowed_down_for_a_killed_command(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pace of a command that was killed ends after the limit, not with the next run of the command."""
    monkeypatch.setattr(movable, "THAW_SECONDS", 0.2)
    await scene.store.put_record(Move("t-1", Phase.COPYING, scene.new, "no process", pace_seconds=30.0).record())
    await scene.movable.look()
    await asyncio.sleep(0.3)  # no heartbeat for longer than the limit
    await asyncio.wait_for(scene.store.create(make_asset()), 5)


@pytest.mark.gen_test(timeout=60)
@only_files
async def test_address_that_names_another_store_here_is_not_used(scene: Scene) -> None:
    """`sqlite` names another file on another machine: uploads into an empty store there would be lost."""
    other_file = str(Path(scene.new).parent / "other.sqlite")

    def opener(uri: str) -> AssetStore:
        return scene.opener(other_file if uri == scene.new else uri)

    other = MovableStore(scene.opener(scene.old), scene.old, opener)
    await other.open()
    await scene.move()
    with pytest.raises(DependencyUnavailable):
        await other.as_asset_store().create(make_asset())
    assert await scene.raw(other_file, lambda store: store.all_ids(limit=9)) == []
    await other.close()


@pytest.mark.gen_test(timeout=60)
@pytest.mark.parametrize("since", ["before the move", "during the move"])
async def test_write_into_the_old_store_after_a_move_is_not_confirmed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, since: str
) -> None:
    """A process that hung during a write has written into a store that no process reads any more."""
    scene = Scene(str(tmp_path / "old.sqlite"), str(tmp_path / "new.sqlite"))
    slow = SlowStore(SqliteAssetStore(tmp_path / "old.sqlite"))
    away = MovableStore(slow, scene.old, scene.opener)
    await away.open()
    await scene.movable.open()
    if since == "during the move":
        await scene.store.put_record(Move("t-1", Phase.COPYING, scene.new, "no process").record())
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
