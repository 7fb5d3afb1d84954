"""The promises of AssetStore for changes of a finished asset: corrections, replaced images, dropped originals."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from pipeline.assets.asset import AssetStatus, ImageRef
from pipeline.assets.store import AssetStore
from tests.factories import make_asset
from tests.integration.asset_stores import MINUTE, NOON, begin, create, create_finished, finish
from tests.integration.asset_stores import make_store, store  # noqa: F811

__all__ = ["make_store", "store"]


@pytest.mark.gen_test
async def test_correction_is_committed_only_on_the_asset_that_was_seen(store: AssetStore) -> None:
    """After another correction, another status or a delete, a correction of the older asset returns None."""
    asset = await create_finished(store, AssetStatus.PARTIAL)
    first = replace(asset, corrections={"brand": {"value": "A", "by": "u", "at": "t"}})
    corrected = await store.correct(asset, first)
    assert corrected is not None and corrected.corrections == first.corrections
    assert await store.correct(asset, first) is None
    active = replace(corrected, status=AssetStatus.ACTIVE, history=({"field": "brand", "value": "A"},))
    stored = await store.correct(corrected, active)
    assert stored is not None and (stored.status, stored.history) == (AssetStatus.ACTIVE, active.history)
    assert await store.correct(corrected, first) is None
    assert await store.delete(asset.id, asset.user_id) is not None
    assert await store.correct(stored, active) is None


@pytest.mark.gen_test
async def test_changes_in_the_millisecond_of_a_begin_are_not_overwritten(
    store: AssetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A correction or a moved image is in the finished asset, although the clock stood still since the run began."""
    for module in ("sqlite_runs", "mongo_runs"):
        monkeypatch.setattr(f"pipeline.assets.{module}.utc_now", lambda: NOON)
    corrections = {"brand": {"value": "A", "by": "u", "at": "t"}}
    for is_moved in (False, True):
        begun = await begin(store, await create(store))
        if is_moved:
            new = replace(begun.original, backend="new")
            assert await store.replace_image(begun.id, begun.image_names[0], new) is not None
        else:
            assert await store.correct(begun, replace(begun, corrections=corrections)) is not None
        done = await finish(store, begun, begun.fence, seen=begun)
        assert done is not None and done == await store.get(begun.id)
        assert (done.original.backend == "new", done.corrections == corrections) == (is_moved, not is_moved)


@pytest.mark.gen_test
async def test_dropped_original_keeps_size_and_kind(store: AssetStore) -> None:
    """The first drop removes name and address; size and kind stay. Neither the asset nor a copy can be requeued."""
    asset = await create_finished(store, AssetStatus.PARTIAL)
    dropped = await store.drop_original(asset.id, asset.processing_job_id)
    assert dropped is not None and not dropped.has_original
    assert (dropped.original.bytes, dropped.original.content_type) == (1234, "image/jpeg")
    assert dropped.to_json({})["images"]["original"]["url"] is None
    assert dropped.processed == asset.processed
    assert await store.drop_original(asset.id, asset.processing_job_id) is None
    assert await store.requeue(asset.id, asset.user_id, "ai-processing:new") is None
    copy = replace(dropped, id=make_asset().id)
    assert await store.create(copy)
    assert await store.requeue(copy.id, copy.user_id, "ai-processing:new") is None
    assert await store.originals_before(NOON + MINUTE, limit=10) == []


@pytest.mark.gen_test
async def test_replacing_an_image_loses_no_concurrent_change(store: AssetStore) -> None:
    """Attempts, refunds, a correction and a result that are written at the same time are all stored.

    Of several replacements of one image one succeeds. A dropped image is not replaced.
    """
    asset = await create(store)
    begun = await begin(store, asset)
    old = asset.image_names[0]

    def moved(image: ImageRef, number: int) -> ImageRef:
        return replace(image, backend=f"new-{number}")

    attempt = {"attempt": 1, "outcome": "retry"}
    changed = await asyncio.gather(
        store.add_attempt(asset.id, asset.processing_job_id, begun.fence, attempt),
        store.refund_start(asset.id, asset.processing_job_id),
        *(store.replace_image(asset.id, old, moved(asset.original, number)) for number in range(4)),
    )
    assert len([each for each in changed if each]) == 1
    preview = ImageRef("memory", f"{asset.id}/preview-320", sha256="1" * 64)
    processed = ImageRef("memory", f"{asset.id}/processed-1", sha256="2" * 64)
    done = await finish(store, asset, begun.fence, previews={"320": preview}, processed=processed)
    assert done is not None
    corrected = replace(done, corrections={"brand": {"value": "Adidas"}})
    replaced, *_ = await asyncio.gather(
        store.replace_image(asset.id, preview.name or old, moved(preview, 5)),
        store.replace_image(asset.id, processed.name or old, moved(processed, 6)),
        store.correct(done, corrected),
    )
    current = await store.get(asset.id)
    assert replaced is not None and current is not None
    assert current.original.backend.startswith("new-") and (current.fence, current.excused) == (1, 1)
    assert current.processed == moved(processed, 6) and current.previews == {"320": moved(preview, 5)}
    assert current.corrections == corrected.corrections and attempt in current.attempts
    dropped = await store.drop_original(asset.id, asset.processing_job_id)
    assert dropped is not None and await store.replace_image(asset.id, old, moved(asset.original, 7)) is None
