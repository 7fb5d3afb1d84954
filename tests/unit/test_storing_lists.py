"""How the service lists the images of a storage, part by part."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from tornado.ioloop import IOLoop

from pipeline.errors import DependencyUnavailable
from pipeline.hooks import StoredImage
from tests.unit.storages import Make, storage_calls

AT = datetime(2026, 1, 31, tzinfo=UTC)


@pytest.fixture
def make(io_loop: IOLoop) -> Iterator[Make]:
    """A function that returns the calls of a storage with these methods."""
    with storage_calls(io_loop) as make:
        yield make


class Listing:
    """Lists ten images, with one method for each way to write `list`; records the number of images and the threads."""

    def __init__(self) -> None:
        self.made = 0
        self.threads: set[int] = set()

    def make_image(self, number: int) -> StoredImage:
        self.made += 1
        self.threads.add(threading.get_ident())
        return StoredImage(f"a/{number}", AT)

    def generator(self, prefix: str) -> Iterator[StoredImage]:
        for number in range(10):
            yield self.make_image(number)

    def iterable(self, prefix: str) -> Iterable[StoredImage]:
        return [self.make_image(number) for number in range(10)]

    async def async_generator(self, prefix: str) -> AsyncIterator[StoredImage]:
        for number in range(10):
            await asyncio.sleep(0)
            yield self.make_image(number)

    async def coroutine(self, prefix: str) -> AsyncIterator[StoredImage]:
        return self.async_generator(prefix)


@pytest.mark.gen_test
@pytest.mark.parametrize("way", ["generator", "iterable", "async_generator", "coroutine"])
async def test_images_are_listed_in_parts(make: Make, way: str) -> None:
    """All images are listed, four at a time, for each way to write `list`; a generator runs only as far as needed."""
    listing = Listing()
    parts = make(list=getattr(listing, way)).list_images("a/", 4)
    first = await anext(parts)
    assert listing.made == (10 if way == "iterable" else 4)
    rest = [part async for part in parts]
    assert [len(part) for part in (first, *rest)] == [4, 4, 2]
    assert [image.public_id for part in (first, *rest) for image in part] == [f"a/{number}" for number in range(10)]
    runs_on_loop = way in ("async_generator", "coroutine")
    assert (threading.get_ident() in listing.threads) == runs_on_loop


@pytest.mark.gen_test
@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_step_of_a_list_has_the_time_of_one_call(make: Make, kind: str) -> None:
    """A storage that hangs in the middle of its list is unavailable, like one that hangs in a call."""
    hangs = threading.Event()

    def plain(prefix: str) -> Iterator[StoredImage]:
        yield StoredImage("a/1", AT)
        hangs.wait(30)

    async def asynchronous(prefix: str) -> AsyncIterator[StoredImage]:
        yield StoredImage("a/1", AT)
        await asyncio.Event().wait()

    parts = make(0.2, list=plain if kind == "plain" else asynchronous).list_images("", 1)
    assert len(await anext(parts)) == 1
    with pytest.raises(DependencyUnavailable):
        await anext(parts)
    hangs.set()


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "yielded", ["a/1", None, StoredImage("a/1", datetime(2026, 1, 31)), StoredImage(7, AT)], ids=repr  # type: ignore
)
async def test_list_with_an_invalid_image_fails(make: Make, yielded: Any) -> None:
    """A text or a time without a zone makes the list fail, because images could be removed wrongly."""
    with pytest.raises(DependencyUnavailable):
        await anext(make(list=lambda prefix: iter([yielded])).list_images("", 10))


def test_list_is_optional(make: Make) -> None:
    """A storage without `list` has `can_list` False."""
    assert (make(save=print).can_list, make(list=print).can_list) == (False, True)
