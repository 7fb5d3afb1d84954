"""The promises of AssetStore for what is stored next to the assets: idempotency keys and records."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import replace

import pytest

from pipeline.assets.store import AssetStore, Record, KeyRecord
from pipeline.clock import utc_now
from tests.integration.asset_stores import MINUTE, NOON, MakeStore
from tests.integration.asset_stores import make_store, store  # noqa: F811

__all__ = ["make_store", "store"]


@pytest.mark.gen_test
async def test_key_belongs_to_the_first_claim(store: AssetStore) -> None:
    """Of twenty claims at the same time one wins, and all claims return the record of that one."""
    claims = [store.claim_key("key", KeyRecord(f"asset-{number}", "print"), NOON) for number in range(20)]
    records = await asyncio.gather(*claims)
    assert len({record.asset_id for record in records}) == 1
    assert await store.claim_key("key", KeyRecord("late", "other"), utc_now()) == records[0]
    assert (await store.claim_key("key 2", KeyRecord("new", "print"), NOON)).asset_id == "new"


@pytest.mark.gen_test
async def test_key_is_found_as_it_was_claimed(store: AssetStore) -> None:
    """Finding a key does not claim it; a purged key is not found."""
    record = KeyRecord("asset", "print")
    assert await store.find_key("key") is None
    assert await store.find_key("key") is None
    assert await store.claim_key("key", record, NOON) == record
    assert await store.find_key("key") == record
    assert await store.find_key("key 2") is None
    await store.claim_key("key", KeyRecord("newer", "other"), NOON, instead_of="asset")
    assert await store.find_key("key") == KeyRecord("newer", "other")
    await store.purge_keys(NOON + MINUTE)
    assert await store.find_key("key") is None


@pytest.mark.gen_test(timeout=30)
async def test_key_is_replaced_only_instead_of_the_record_named(store: AssetStore) -> None:
    """A claim that names the current record replaces it; a later claim with the old name returns the new record."""
    key, now = secrets.token_hex(32), utc_now()
    first, second, third = (KeyRecord(secrets.token_hex(12), name) for name in ("one", "two", "three"))
    assert await store.claim_key(key, first, now, instead_of="0" * 24) == first
    assert await store.claim_key(key, second, now, instead_of="0" * 24) == first
    assert await store.claim_key(key, second, now, instead_of=first.asset_id) == second
    assert await store.claim_key(key, third, now, instead_of=first.asset_id) == second
    assert await store.claim_key(key, third, now) == second


@pytest.mark.gen_test
async def test_purge_removes_old_keys(store: AssetStore) -> None:
    """A key from before the instant can be claimed by another asset; a later key cannot."""
    await store.claim_key("old", KeyRecord("a", "p"), NOON - MINUTE)
    await store.claim_key("new", KeyRecord("b", "p"), NOON)
    assert await store.purge_keys(NOON) == 1
    assert (await store.claim_key("old", KeyRecord("c", "p"), NOON)).asset_id == "c"
    assert (await store.claim_key("new", KeyRecord("d", "p"), NOON)).asset_id == "b"


@pytest.mark.gen_test
async def test_identity_is_the_same_for_all_processes(store: AssetStore, make_store: MakeStore) -> None:
    """Two stores that open a new database at the same time get the same id, also later.

    Identity uses insert_record, which stores only one of several records that are inserted at the same time.
    """
    other = make_store()
    await other.open()
    try:
        ids = await asyncio.gather(store.identity(), other.identity(), store.identity())
        assert len(set(ids)) == 1 and len(ids[0]) == 16
        assert await other.identity() == ids[0]
        records = [Record("first", "i", NOON + n * MINUTE, {"n": n}) for n in range(6)]
        stored = await asyncio.gather(*((store, other)[n % 2].insert_record(each) for n, each in enumerate(records)))
        assert len({each.data["n"] for each in stored}) == 1
        assert await other.find_record("first", "i") == stored[0] in records
    finally:
        await other.close()


@pytest.mark.gen_test
async def test_records_are_listed_in_order(store: AssetStore) -> None:
    """Records of one kind are listed oldest or newest first, in pages, until they are replaced, deleted or purged."""
    written = [Record("job of q", f"q:{n}", NOON + n // 2 * MINUTE, {"a.b": n, "$c": ["\ud800"]}) for n in range(5)]
    for each in (*reversed(written), Record("pause", "q:0", NOON, {})):
        await store.put_record(each)
    first = await store.records("job of q", limit=3)
    assert first == written[:3]
    assert await store.records("job of q", limit=3, after=(first[-1].at, first[-1].id)) == written[3:]
    last = await store.newest_records("job of q", limit=3)
    assert last == written[:1:-1]
    assert await store.newest_records("job of q", limit=3, after=(last[-1].at, last[-1].id)) == written[1::-1]
    assert await store.newest_records("job of q", limit=3, after=(NOON - MINUTE, "q:9")) == []
    await store.put_record(replace(written[1], at=NOON + 9 * MINUTE, data={"n": 1}))
    await store.delete_records("job of q", written[0].id, written[2].id, "not there")
    assert [each.id for each in await store.records("job of q", limit=9)] == ["q:3", "q:4", "q:1"]
    assert await store.purge_records("job of q", NOON + 2 * MINUTE) == 1
    assert [each.id for each in await store.records("job of q", limit=9)] == ["q:4", "q:1"]
    assert [each.id for each in await store.records("pause", limit=9)] == ["q:0"]


@pytest.mark.gen_test
async def test_discard_removes_all_keys_of_an_asset(store: AssetStore) -> None:
    """All keys of the asset are removed, and the keys of other assets stay."""
    for key, asset_id in (("a", "1" * 24), ("b", "1" * 24), ("c", "2" * 24)):
        await store.claim_key(key, KeyRecord(asset_id, "print"), NOON)
    await store.discard_keys("1" * 24)
    assert [await store.find_key(key) for key in "ab"] == [None, None]
    assert await store.find_key("c") == KeyRecord("2" * 24, "print")


@pytest.mark.gen_test
async def test_records_are_found_by_user_and_asset(store: AssetStore) -> None:
    """Records of all kinds are found by user, or by user and asset; a record without a user is not found."""
    mine = Record("job of q", "1", NOON, {"n": 1}, "user-1", "a" * 24)
    other = Record("job of r", "2", NOON, {"n": 2}, "user-1", "b" * 24)
    for each in (mine, other, Record("job of q", "3", NOON, {}, "user-2", "a" * 24), Record("pause", "q", NOON, {})):
        await store.put_record(each)
    assert sorted(await store.records_of("user-1"), key=lambda record: record.id) == [mine, other]
    assert await store.records_of("user-1", "a" * 24) == [mine]
    assert await store.records_of("user-1", kinds=["job of r", "no such kind"]) == [other]
    assert await store.records_of("user-1", "a" * 24, kinds=["job of r"]) == []
    assert [*await store.records_of(""), *await store.records_of("user-3")] == []
    await store.put_record(replace(mine, user_id="user-4"))
    assert await store.records_of("user-1", "a" * 24) == []
