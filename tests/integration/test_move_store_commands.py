"""Commands that move the asset store, step by step in one process: killed ones, two at once, and refused moves."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.assets.movable import MovableStore
from pipeline.assets.store import AssetStore, Record, KeyRecord
from pipeline.assets.store_move import MOVE, NOTE, STORE, Move, Phase
from pipeline.errors import ConfigurationError, Conflict, ValidationError
from pipeline.usecases.store_copying import StoreCopy
from pipeline.usecases.moving_processes import abandon
from pipeline.usecases.store_moving import StoreMove
from tests.factories import make_asset
from tests.integration.store_moves import (
    Killed,
    Load,
    Scene,
    closed_at_the_end,
    die_at,
    only_files,
    opened,
    short_waits,
    scene,
)
from tests.integration.asset_stores import NOON, damage

__all__ = ["closed_at_the_end", "short_waits", "scene"]  # fixtures
pytestmark = pytest.mark.fault("U17")


@pytest.mark.gen_test(timeout=60)
@pytest.mark.parametrize("phase", ["Waiting", "Copying", "Copying what", "Copying the last"])
@only_files
async def test_move_that_was_killed_is_finished_by_the_next_one(scene: Scene, phase: str) -> None:
    """Writes before, between and during the two runs are in the new store."""
    async with Load(scene.store) as load:
        with pytest.raises(Killed):
            await scene.move(on_phase=die_at(phase))
        assert scene.movable.uri == scene.old
        await scene.move()
    await load.check(await opened(scene.new))


@pytest.mark.gen_test(timeout=60)
@only_files
async def test_second_command_is_refused_while_the_first_one_runs(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second command gets a conflict, and the first one ends its move."""
    copying, may_continue = asyncio.Event(), asyncio.Event()
    catch_up = StoreMove._catch_up

    async def late_catch_up(self: StoreMove) -> None:
        await may_continue.wait()
        await catch_up(self)

    monkeypatch.setattr(StoreMove, "_catch_up", late_catch_up)
    first = asyncio.create_task(scene.move(on_phase=lambda words: copying.set()))
    await copying.wait()
    with pytest.raises(Conflict, match="is running"):
        await scene.move()
    with pytest.raises(Conflict, match="is running"):
        await scene.raw(scene.old, abandon)
    may_continue.set()
    await first
    assert scene.movable.uri == scene.new


@pytest.mark.gen_test(timeout=60)
@only_files
async def test_command_that_looked_dead_cannot_decide(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first command hangs after the copy, a second one takes over, and then the first one continues and fails."""
    stopped, may_continue = asyncio.Event(), asyncio.Event()
    claim = StoreMove._claim

    async def late_claim(self: StoreMove, what: str, move: Move | None = None) -> str:
        if move is None and not stopped.is_set():
            stopped.set()
            await may_continue.wait()
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
    may_continue.set()
    with pytest.raises(Conflict, match="taken over"):
        await first
    assert scene.movable.uri == scene.old
    await second
    assert scene.movable.uri == scene.new


@pytest.mark.gen_test(timeout=60)
@only_files
async def test_move_to_an_unfit_store_is_refused(scene: Scene) -> None:
    """Unfit are the same store by another name, and a store of other data; a damaged document stops a move, too."""
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
async def test_move_that_fails_leaves_no_record(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record is removed also when the heartbeat writes it at the same time."""

    async def find_one(self: StoreCopy) -> list[str]:
        keep, discard = self._old.put_record, self._old.delete_records
        is_writing, is_written, is_removed = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def keep_after_the_removal(record: Record) -> None:
            is_writing.set()
            with suppress(TimeoutError):  # the removal waits for this write
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
    """After an abandoned move no writes are noted; a finished move cannot be abandoned."""
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
async def test_other_store_that_was_emptied_between_two_runs_gets_all_assets(scene: Scene) -> None:
    """The second run starts after the last asset of the first run, and still no asset is missing."""
    assets = sorted((make_asset() for _ in range(5)), key=lambda asset: asset.id)
    for asset in assets:
        await scene.store.create(asset)
    await scene.store.put_record(Move("t-1", Phase.COPYING, scene.new, "no process", after=assets[-1].id).record())
    await scene.move()
    assert scene.movable.uri == scene.new
    assert await scene.store.all_ids(limit=9) == [asset.id for asset in assets]


@pytest.mark.gen_test(timeout=60)
@only_files
async def test_unfinished_copy_is_not_moved_over_its_source(scene: Scene) -> None:
    """After a killed move a move in the other direction is refused: it would remove assets that were not copied."""
    asset = make_asset()
    await scene.store.create(asset)
    await scene.store.put_record(Move("t-1", Phase.COPYING, scene.new, "no process").record())
    await scene.copy_identity()
    with pytest.raises(Conflict, match="not finished"):
        await scene.move(scene.new, scene.old)
    assert await scene.raw(scene.old, lambda store: store.get(asset.id)) is not None


@pytest.mark.gen_test(timeout=60)
@only_files
async def test_decision_of_a_killed_command_survives_the_move_back(scene: Scene) -> None:
    """The keys of the first store, also the decision, are removed; its record still says that it was moved."""
    left = Move("t-1", Phase.FREEZING, scene.new, "no process")
    await scene.copy_identity()
    await scene.raw(scene.old, lambda store: store.put_record(left.record()))
    await scene.raw(scene.old, lambda store: store.claim_key(left.decision, KeyRecord("", "moved"), NOON))

    with pytest.raises(Killed):
        await scene.move(scene.new, scene.old, on_phase=die_at("Copying what has changed"))
    record = await scene.raw(scene.old, lambda store: store.find_record(MOVE, STORE))
    assert record.data["phase"] == "moved"


@pytest.mark.gen_test(timeout=60)
async def test_process_does_not_start_on_an_unfinished_copy(scene: Scene) -> None:
    """A process whose settings name the new store too early does not start; after the move it starts."""

    await scene.store.create(make_asset())
    with pytest.raises(Killed):
        await scene.move(on_phase=die_at("Copying what has changed"))
    early = MovableStore(scene.opener(scene.new), scene.new, scene.opener)
    with pytest.raises(ConfigurationError, match="not finished"):
        await early.open()
    await early.close()
    await scene.move()
    later = MovableStore(scene.opener(scene.new), scene.new, scene.opener)
    await later.open()
    assert len(await later.as_asset_store().all_ids(limit=9)) == 1
    await later.close()


def test_record_of_a_move_does_not_show_the_address() -> None:
    """The address has a password, and a trace or an assertion shows a record."""
    assert "hunter2" not in repr(Move("t-1", Phase.COPYING, "mongodb://u:hunter2@host/", "o"))
