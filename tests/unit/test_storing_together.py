"""How the service saves several small images in one call of a storage."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from tornado.ioloop import IOLoop

from pipeline.errors import DependencyUnavailable
from pipeline.hooks import NewImage
from pipeline.hooks.bound_plugin import BoundPlugin
from pipeline.hooks.storage_calls import SMALL_BYTES, StorageCalls
from pipeline.metrics import Metrics
from pipeline.tracing import OFF
from tests.unit.storages import Make, storage_calls

URL = "https://images.example/x"


@pytest.fixture
def make(io_loop: IOLoop) -> Iterator[Make]:
    """A function that returns the calls of a storage with these methods."""
    with storage_calls(io_loop) as make:
        yield make


class BatchStorage:
    """A storage that saves several images at once, in a thread, after the test has released it."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.released = threading.Event()
        self.deleted: list[str] = []

    def save(self, public_id: str, file: Any, content_type: str) -> str:
        return URL + "/alone"

    def save_many(self, images: Sequence[NewImage]) -> Sequence[str | Exception]:
        self.calls.append([image.public_id for image in images])
        self.released.wait(30)
        if any(image.public_id == "all" for image in images):
            raise LookupError("all images fail")
        return [ValueError("no") if image.public_id == "bad" else f"{URL}/{image.public_id}" for image in images]

    def delete(self, public_id: str) -> None:
        self.deleted.append(public_id)

    def methods(self) -> dict[str, Any]:
        """Return the methods by name, as a plugin has them."""
        return {name: getattr(self, name) for name in ("save", "save_many", "delete")}


async def begin(storing: StorageCalls, batch_storage: BatchStorage, *names: str) -> list[asyncio.Task[str]]:
    """Begin to save these images: the first is saved alone, and the others wait for it."""
    tasks = []
    for name in names:
        tasks.append(asyncio.create_task(storing.save(name, io.BytesIO(b"x"), "image/png")))
        while not batch_storage.calls:
            await asyncio.sleep(0.001)
    await asyncio.sleep(0)
    return tasks


@pytest.mark.gen_test
async def test_small_images_are_saved_together(make: Make) -> None:
    """Images that arrive during a call are saved in one call, a large one alone; each save has its own result."""
    batch_storage = BatchStorage()
    storing = make(**batch_storage.methods())
    tasks = await begin(storing, batch_storage, "a", "b", "c", "bad", "d")
    batch_storage.released.set()
    assert await storing.save("large", io.BytesIO(bytes(SMALL_BYTES + 1)), "image/png") == URL + "/alone"
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    urls = [f"{URL}/{name}" for name in "abcd"]
    assert [str(end) for end in ends] == [*urls[:3], "Image storage unavailable", urls[3]]
    assert isinstance(ends[3], DependencyUnavailable) and str(ends[3].__cause__) == "no"
    assert batch_storage.calls == [["a"], ["b", "c", "bad", "d"]]
    assert storing.storage.errors == 1


@pytest.mark.gen_test
async def test_fault_of_a_call_fails_all_its_images(make: Make) -> None:
    """An exception and an invalid result fail each image of the call."""
    batch_storage = BatchStorage()
    storing = make(**batch_storage.methods())
    tasks = await begin(storing, batch_storage, "a", "b", "c", "all")
    batch_storage.released.set()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert ends[0] == f"{URL}/a"
    causes = [repr(end.__cause__) for end in ends[1:] if isinstance(end, Exception)]
    assert causes == ["LookupError('all images fail')"] * 3
    for odd in (None, URL, [URL, URL], 7):
        short = make(**batch_storage.methods() | {"save_many": lambda images, odd=odd: odd})
        with pytest.raises(DependencyUnavailable) as caught:
            await short.save("x", io.BytesIO(b"x"), "image/png")
        assert isinstance(caught.value.__cause__, TypeError)


@pytest.mark.fault("E14")
@pytest.mark.gen_test
@pytest.mark.parametrize("reason", ["its time has ended", "its caller was cancelled"])
async def test_small_image_of_an_abandoned_save_is_removed_when_the_save_ends(make: Make, reason: str) -> None:
    """An image of a running call is removed, a waiting one is not stored at all, and the others of the call stay."""
    batch_storage = BatchStorage()
    storing = make(0.2 if reason == "its time has ended" else 5, **batch_storage.methods())
    tasks = await begin(storing, batch_storage, "a", "b", "c")
    if reason == "its time has ended":
        for task in tasks:
            with pytest.raises(DependencyUnavailable):
                await task
    else:
        for task in (tasks[0], tasks[1]):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
    batch_storage.released.set()
    if reason == "its time has ended":
        # The save of the others may have begun a moment before their own time ended.
        while sorted(batch_storage.deleted) != sorted(name for call in batch_storage.calls for name in call):
            await asyncio.sleep(0.001)
        assert "a" in batch_storage.deleted
    else:
        assert await tasks[2] == f"{URL}/c"
        while not batch_storage.deleted:
            await asyncio.sleep(0.001)
        assert batch_storage.deleted == ["a"] and batch_storage.calls == [["a"], ["c"]]


@pytest.mark.gen_test
async def test_storage_that_overrides_only_save_is_called_with_it(io_loop: IOLoop) -> None:
    """A subclass of our storage that was written before `save_many` existed is called with `save`."""

    class Older(BatchStorage):
        def save(self, public_id: str, file: Any, content_type: str) -> str:
            return URL + "/older"

    older = Older()
    storing = StorageCalls(BoundPlugin("storage", "x", older, older.methods(), threads=2, metrics=Metrics()), 5, OFF)
    assert await storing.save("a", io.BytesIO(b"x"), "image/png") == URL + "/older"
    await storing.close()
