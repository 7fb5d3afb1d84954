"""How the storage is called: images listed part by part, and what becomes of a save that ends too late."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from tornado.ioloop import IOLoop

from pipeline.errors import DependencyUnavailable
from pipeline.hooks import NewImage, StoredImage
from pipeline.hooks.bound_plugin import BoundPlugin
from pipeline.hooks.storage_calls import SMALL_BYTES, StorageCalls
from pipeline.metrics import Metrics
from pipeline.tracing import OFF

AT = datetime(2026, 1, 31, tzinfo=UTC)
URL = "https://images.example/x"
Make = Callable[..., StorageCalls]


@pytest.fixture
def make(io_loop: IOLoop) -> Iterator[Make]:
    """A function that returns a Storing over these methods, closed at the end."""
    made = []

    def make(seconds: float = 5, **methods: Callable[..., Any]) -> StorageCalls:
        plugin = BoundPlugin("storage", "x", object(), methods, threads=2, metrics=Metrics())
        made.append(StorageCalls(plugin, seconds, OFF))
        return made[-1]

    yield make
    for each in made:
        io_loop.run_sync(each.close)


class Listing:
    """Lists ten images and remembers how many it was asked for, and in which threads; one method for each way to write
    it.
    """

    def __init__(self) -> None:
        self.given = 0
        self.threads: set[int] = set()

    def give(self, number: int) -> StoredImage:
        self.given += 1
        self.threads.add(threading.get_ident())
        return StoredImage(f"a/{number}", AT)

    def generator(self, prefix: str) -> Iterator[StoredImage]:
        for number in range(10):
            yield self.give(number)

    def iterable(self, prefix: str) -> Iterable[StoredImage]:
        return [self.give(number) for number in range(10)]

    async def async_generator(self, prefix: str) -> AsyncIterator[StoredImage]:
        for number in range(10):
            await asyncio.sleep(0)
            yield self.give(number)

    async def coroutine(self, prefix: str) -> AsyncIterator[StoredImage]:
        return self.async_generator(prefix)


@pytest.mark.gen_test
@pytest.mark.parametrize("way", ["generator", "iterable", "async_generator", "coroutine"])
async def test_images_are_listed_in_parts(make: Make, way: str) -> None:
    """All of them, four at a time, however `list` is written; a generator is asked for no more than was taken."""
    listing = Listing()
    parts = make(list=getattr(listing, way)).list_images("a/", 4)
    first = await anext(parts)
    assert listing.given == (10 if way == "iterable" else 4)
    rest = [part async for part in parts]
    assert [len(part) for part in (first, *rest)] == [4, 4, 2]
    assert [image.public_id for part in (first, *rest) for image in part] == [f"a/{number}" for number in range(10)]
    runs_on_loop = way in ("async_generator", "coroutine")
    assert (threading.get_ident() in listing.threads) == runs_on_loop


@pytest.mark.gen_test
@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_step_of_a_list_has_the_time_of_one_call(make: Make, kind: str) -> None:
    """A storage that hangs in the middle of its list is away, as one that hangs in a call is."""
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
async def test_list_that_yields_something_else_is_not_believed(make: Make, yielded: Any) -> None:
    """A text, a time without a zone: images would be removed because of it."""
    with pytest.raises(DependencyUnavailable):
        await anext(make(list=lambda prefix: iter([yielded])).list_images("", 10))


def test_list_is_optional(make: Make) -> None:
    """A storage without it says so."""
    assert (make(save=print).can_list, make(list=print).can_list) == (False, True)


@pytest.mark.fault("E14")
@pytest.mark.gen_test
@pytest.mark.parametrize("reason", ["its time is over", "its caller was cancelled"])
@pytest.mark.parametrize("kind", ["plain", "async", "async that ends at once"])
async def test_image_of_a_save_that_was_given_up_is_removed_when_it_ends(make: Make, kind: str, reason: str) -> None:
    """Whether it hangs in a thread, pays no heed to a cancellation, or stores the image although it was cancelled."""
    loop = asyncio.get_running_loop()
    begun, released, deleted = asyncio.Event(), threading.Event(), asyncio.Event()
    stored: set[str] = set()

    def save(public_id: str, file: Any, content_type: str) -> str:
        loop.call_soon_threadsafe(begun.set)
        released.wait(30)
        stored.add(public_id)
        return URL

    async def save_async(public_id: str, file: Any, content_type: str) -> str:
        begun.set()
        while not released.is_set():
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                if kind != "async":
                    break
        stored.add(public_id)
        return URL

    async def delete(public_id: str) -> None:
        stored.remove(public_id)
        deleted.set()

    seconds = 0.2 if reason == "its time is over" else 30
    storing = make(seconds, save=save if kind == "plain" else save_async, delete=delete)
    saving = asyncio.create_task(storing.save("a/original-1", io.BytesIO(), "image/jpeg"))
    await begun.wait()
    if seconds == 30:
        saving.cancel()
    with pytest.raises((DependencyUnavailable, asyncio.CancelledError)):
        await saving
    released.set()
    await deleted.wait()
    assert stored == set()


@pytest.mark.gen_test
async def test_save_that_ends_in_time_or_raises_removes_nothing(make: Make) -> None:
    """What was stored stays; a storage that raised has stored nothing."""

    def refuse(public_id: str, file: Any, content_type: str) -> str:
        raise OSError("no")

    async def delete(public_id: str) -> None:
        raise AssertionError("nothing is to be removed")

    assert await make(save=lambda *_: URL, delete=delete).save("a/1", io.BytesIO(), "image/jpeg") == URL
    with pytest.raises(DependencyUnavailable):
        await make(save=refuse, delete=delete).save("a/1", io.BytesIO(), "image/jpeg")
    await asyncio.sleep(0)


@pytest.mark.gen_test
async def test_image_whose_url_is_none_is_removed(make: Make) -> None:
    """A storage that returns something else has stored the image all the same."""
    deleted: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def delete(public_id: str) -> None:
        loop.call_soon_threadsafe(deleted.put_nowait, public_id)

    with pytest.raises(DependencyUnavailable):
        await make(save=lambda *_: "/media/x", delete=delete).save("a/1", io.BytesIO(), "image/jpeg")
    assert await deleted.get() == "a/1"


@pytest.mark.fault("U16")
@pytest.mark.gen_test
@pytest.mark.parametrize("is_async", [False, True])
async def test_image_without_a_url_leaves_the_others_theirs(make: Make, is_async: bool) -> None:
    """One of three raises, and one gets what is no URL; when all raise, so does the whole."""

    def url(public_id: str, seconds: int) -> str:
        if public_id == "bad":
            raise ValueError("no")
        return "here" if public_id == "odd" else f"{URL}/{public_id}"

    async def url_later(public_id: str, seconds: int) -> str:
        return url(public_id, seconds)

    storing = make(url=url_later if is_async else url)
    assert await storing.urls(["bad", "a", "odd", "b"], 60) == {"a": f"{URL}/a", "b": f"{URL}/b"}
    with pytest.raises(DependencyUnavailable):
        await storing.urls(["bad"], 60)


@pytest.mark.fault("U16")
@pytest.mark.gen_test
async def test_url_that_does_not_come_takes_the_place_of_no_other(make: Make) -> None:
    """One of three hangs until the time is over."""

    async def url(public_id: str, seconds: int) -> str:
        await (asyncio.Event().wait() if public_id == "bad" else asyncio.sleep(0))
        return f"{URL}/{public_id}"

    assert await make(0.3, url=url).urls(["bad", "a", "b"], 60) == {"a": f"{URL}/a", "b": f"{URL}/b"}


class Shelf:
    """Takes several images at once, in a thread, once it is let go."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.goes = threading.Event()
        self.deleted: list[str] = []

    def save(self, public_id: str, file: Any, content_type: str) -> str:
        return URL + "/alone"

    def save_many(self, images: Sequence[NewImage]) -> Sequence[str | Exception]:
        self.calls.append([image.public_id for image in images])
        self.goes.wait(30)
        if any(image.public_id == "all" for image in images):
            raise LookupError("nothing goes")
        return [ValueError("no") if image.public_id == "bad" else f"{URL}/{image.public_id}" for image in images]

    def delete(self, public_id: str) -> None:
        self.deleted.append(public_id)

    def methods(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("save", "save_many", "delete")}


async def begin(storing: StorageCalls, shelf: Shelf, *names: str) -> list[asyncio.Task[str]]:
    """Begin to save: the first one goes alone; the others wait for it."""
    tasks = []
    for name in names:
        tasks.append(asyncio.create_task(storing.save(name, io.BytesIO(b"x"), "image/png")))
        while not shelf.calls:
            await asyncio.sleep(0.001)
    await asyncio.sleep(0)
    return tasks


@pytest.mark.gen_test
async def test_small_images_are_saved_together(make: Make) -> None:
    """Those that come while calls are under way; a large one goes alone, and each is told its own end."""
    shelf = Shelf()
    storing = make(**shelf.methods())
    tasks = await begin(storing, shelf, "a", "b", "c", "bad", "d")
    shelf.goes.set()
    assert await storing.save("large", io.BytesIO(bytes(SMALL_BYTES + 1)), "image/png") == URL + "/alone"
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    urls = [f"{URL}/{name}" for name in "abcd"]
    assert [str(end) for end in ends] == [*urls[:3], "Image storage unavailable", urls[3]]
    assert isinstance(ends[3], DependencyUnavailable) and str(ends[3].__cause__) == "no"
    assert shelf.calls == [["a"], ["b", "c", "bad", "d"]]
    assert storing.storage.errors == 1


@pytest.mark.gen_test
async def test_what_concerns_all_images_of_a_call_is_told_to_all(make: Make) -> None:
    """An exception, and an answer that is none."""
    shelf = Shelf()
    storing = make(**shelf.methods())
    tasks = await begin(storing, shelf, "a", "b", "c", "all")
    shelf.goes.set()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert ends[0] == f"{URL}/a"
    causes = [repr(end.__cause__) for end in ends[1:] if isinstance(end, Exception)]
    assert causes == ["LookupError('nothing goes')"] * 3
    for odd in (None, URL, [URL, URL], 7):
        short = make(**shelf.methods() | {"save_many": lambda images, odd=odd: odd})
        with pytest.raises(DependencyUnavailable) as caught:
            await short.save("x", io.BytesIO(b"x"), "image/png")
        assert isinstance(caught.value.__cause__, TypeError)


@pytest.mark.fault("E14")
@pytest.mark.gen_test
@pytest.mark.parametrize("reason", ["its time is over", "its caller was cancelled"])
async def test_small_image_whose_save_was_given_up_is_removed_when_it_ends(make: Make, reason: str) -> None:
    """One that is under way; one that waits is not stored at all. The others of its call stay."""
    shelf = Shelf()
    storing = make(0.2 if reason == "its time is over" else 5, **shelf.methods())
    tasks = await begin(storing, shelf, "a", "b", "c")
    if reason == "its time is over":
        for task in tasks:
            with pytest.raises(DependencyUnavailable):
                await task
    else:
        for task in (tasks[0], tasks[1]):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
    shelf.goes.set()
    if reason == "its time is over":
        # The others may have begun when their turn came, a moment before their own time was over.
        while sorted(shelf.deleted) != sorted(name for call in shelf.calls for name in call):
            await asyncio.sleep(0.001)
        assert "a" in shelf.deleted
    else:
        assert await tasks[2] == f"{URL}/c"
        while not shelf.deleted:
            await asyncio.sleep(0.001)
        assert shelf.deleted == ["a"] and shelf.calls == [["a"], ["c"]]


@pytest.mark.gen_test
async def test_storage_that_overrides_save_alone_is_called_by_it(io_loop: IOLoop) -> None:
    """A subclass of one of ours that was written before there was `save_many`."""

    class Older(Shelf):
        def save(self, public_id: str, file: Any, content_type: str) -> str:
            return URL + "/older"

    older = Older()
    storing = StorageCalls(BoundPlugin("storage", "x", older, older.methods(), threads=2, metrics=Metrics()), 5, OFF)
    assert await storing.save("a", io.BytesIO(b"x"), "image/png") == URL + "/older"
    await storing.close()
